/** Links that stand still, as two processes count them: what is named where processes of a test could not be held there. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Kind } from "../../src/message/message.ts";
import { diagnoseProcesses, type Process, type RingState } from "../../src/observe/live_link.ts";

interface Told {
  readonly subcommand?: string;
  readonly bus?: Record<string, number>;
  readonly doorbell?: Record<string, number>;
  /** Of device 0. */
  readonly device?: Record<string, number>;
  readonly queues?: readonly Record<string, number>[];
  readonly driver?: Record<string, number>;
  readonly requests?: Record<string, number>;
  readonly peer?: number;
  readonly ring?: Partial<RingState>;
  /** Whose ring that is. */
  readonly ringOf?: number;
}

const group = (kind: string, name: string, values: Record<string, number>) => ({
  kind,
  name,
  counters: Object.entries(values).map(([name, value]) => ({ name, value })),
});

const RING: RingState = {
  ...{ pending: 0, used: "5", isUntouched: false, problem: undefined },
};

function process(told: Told): Process {
  const { subcommand = "device", bus = {}, doorbell, device, queues = [], driver, requests } = told;
  const { peer, ring, ringOf = 0 } = told;
  return {
    ...{ subcommand, pid: subcommand === "device" ? 1 : 2, startMs: 1, generation: 2 },
    ...{ path: subcommand, isRunning: true, isStopped: false, queueFile: "queue" },
    rings: new Map(ring === undefined ? [] : [[`0 ${ringOf}`, { ...RING, ...ring }]]),
    groups: [
      group("bus", "a bus", { sent: 10, received: 10, ...bus }),
      ...doorbell ? [group("doorbell", "a bus", doorbell)] : [],
      ...device ? [group("state", "device 0", device)] : [],
      ...queues.map((queue, n) => group("state", `device 0 queue ${n}`, queue)),
      ...driver ? [group("driver", "device 0", driver)] : [],
      ...requests ? [group("state", "requests", requests)] : [],
      ...peer === undefined ? [] : [group("state", "driver side", { state: peer })],
    ],
  };
}

const NOW_MS = 100_000;
const BLK = { "device id": 2, status: 15, "features 1": 1, queues: 2, "since ms": 1000 };
const NET = { ...BLK, "device id": 1 };
const QUEUE = { enabled: 1, size: 64, kicks: 3, calls: 2 };
const DRIVER = { subcommand: "driver" };

/** What is said of a device side, and of a driver side; both may have been looked at before. */
function step(device: Told, driver: Told, before?: readonly [Told, Told]) {
  const found = diagnoseProcesses(
    [device, { ...DRIVER, ...driver }].map(process),
    NOW_MS,
    before && [before[0], { ...DRIVER, ...before[1] }].map(process),
  );
  return found.find(({ stuck }) => stuck !== undefined)?.stuck;
}

/** Of one that was the same before, but for what is given. */
function later(device: Told, driver: Told, before: Told = {}, driverBefore: Told = {}) {
  return step(device, driver, [{ ...device, ...before }, { ...driver, ...driverBefore }]);
}

const SOUND: Told = { device: BLK, queues: [QUEUE], ring: {} };

Deno.test("links: where all goes on nothing is stuck, also with nothing to do", () => {
  assertEquals(step(SOUND, {}), undefined);
  assertEquals(later(SOUND, {}), undefined);
  // Buffers for what comes, which wait for it.
  const waits = { device: NET, queues: [QUEUE, QUEUE], ring: { pending: 9 } };
  assertEquals(later(waits, {}), undefined);
  // Used meanwhile, or in a packed ring, of which it is not known.
  const busy = { ...SOUND, ring: { pending: 2, used: "6" } };
  assertEquals(later(busy, {}, { ring: { pending: 2, used: "5" } }), undefined);
  assertEquals(later({ ...SOUND, ring: { pending: undefined } }, {}), undefined);
  // Indices that have come round.
  assertEquals(step({ ...SOUND, ring: { isUntouched: true } }, {}), undefined);
  // Notifications that this process does not see.
  const apart = { ...QUEUE, kicks: 0, calls: 0, unseen: 1 };
  assertEquals(step({ device: BLK, queues: [apart], ring: { isUntouched: true } }, {}), undefined);
});

const STUCK: [name: string, of: () => ReturnType<typeof step>, step: RegExp, owes: string][] = [
  [
    "a device side that reads no more",
    () =>
      later(
        { ...SOUND, doorbell: { rings: 4, interrupts: 0 } },
        { bus: { sent: 20 }, doorbell: { rings: 12, interrupts: 4 } },
        {},
        { bus: { sent: 12 }, doorbell: { rings: 4, interrupts: 4 } },
      ),
    /^process 2 \(vmsg driver\) sent 8 more messages, process 1 \(vmsg device\) read none: doorbell rung 12 times, no interrupts taken$/,
    "device side",
  ],
  [
    "a driver side that reads no more",
    () => later({ ...SOUND, bus: { sent: 30 } }, {}, { bus: { sent: 29 } }),
    /^process 1 \(vmsg device\) sent 1 more messages, process 2 \(vmsg driver\) read none$/,
    "driver side",
  ],
  [
    "a message queue that stays full",
    () => later({ ...SOUND, bus: { full: 900 } }, {}, { bus: { full: 100 } }),
    /^process 1 \(vmsg device\) finds no room for a message/,
    "driver side",
  ],
  [
    "a driver side that is gone",
    () => diagnoseProcesses([process({ ...SOUND, peer: 0 })], NOW_MS)[0]!.stuck,
    /^no driver side: process 1 \(vmsg device\) waits for one$/,
    "driver side",
  ],
  [
    "a request that waits",
    () =>
      step(SOUND, {
        requests: { open: 1, kind: Kind.SET_DEVICE_STATUS, device: 0, "since ms": NOW_MS - 2500 },
      }),
    /^SET_DEVICE_STATUS has waited 2\.5 s for its answer$/,
    "device side",
  ],
  [
    "nobody drives it",
    () => step({ device: { ...BLK, status: 0 } }, {}),
    /^the device is in reset: nobody drives it$/,
    "driver side",
  ],
  [
    "queues that are refused",
    () =>
      step({ device: { ...BLK, status: 11, refused: 2 }, queues: [{ enabled: 0, size: 64 }] }, {}),
    /^SET_VQUEUE came, and was refused 2 times$/,
    "device side",
  ],
  [
    "other memory than the driver's",
    () => step({ ...SOUND, queues: [{ ...QUEUE, calls: 0 }], ring: { isUntouched: true } }, {}),
    /^queue 0 was kicked 3 times, and is empty where the device looks$/,
    "either side",
  ],
  [
    "a ring that makes no sense",
    () => step({ ...SOUND, ring: { problem: "avail.idx 9 is 9 ahead of used.idx 0, of 4" } }, {}),
    /^queue 0 makes no sense: avail\.idx 9 is 9 ahead/,
    "either side",
  ],
  [
    "buffers that are not used",
    () => later({ ...SOUND, ring: { pending: 2 } }, {}),
    /^2 buffers wait in queue 0, and none is used$/,
    "device side",
  ],
  [
    "frames that are not sent",
    () => later({ device: NET, queues: [QUEUE, QUEUE], ring: { pending: 7 }, ringOf: 1 }, {}),
    /^7 buffers wait in queue 1, and none is used$/,
    "device side",
  ],
  [
    "a kick that was lost",
    () => later({ device: BLK, queues: [{ ...QUEUE, kicks: 0 }], ring: { pending: 1 } }, {}),
    /^1 buffers wait in queue 0, and it was never kicked$/,
    "driver side",
  ],
  [
    "kicks without an answer",
    () => step({ device: BLK, queues: [{ ...QUEUE, calls: 0 }] }, {}),
    /^EVENT_AVAIL came 3 times, EVENT_USED never$/,
    "device side",
  ],
  [
    "a driver that does not take what was used",
    () => step({ device: NET, queues: [QUEUE, QUEUE] }, { driver: { received: 0 } }),
    /^the driver was called 2 times and took nothing$/,
    "driver side",
  ],
];

for (const [name, of, wanted, owes] of STUCK) {
  Deno.test(`links: ${name}`, () => {
    const stuck = of();
    assertMatch(stuck?.step ?? "nothing is said to be stuck", wanted);
    assertEquals(stuck?.owes, owes);
    assert((stuck?.likely ?? "").length > 20);
  });
}
