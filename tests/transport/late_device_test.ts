/** Devices that answer later (virtio/device.ts): nobody else waits, nothing is unmapped under them. */

import { assert, assertEquals } from "@std/assert";
import { MAX_WAITING_FDS } from "../../src/bus/stream_bus.ts";
import { linuxErrno } from "../../src/linux/errors.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { Kind, type Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { ANSWER_LIMIT_MS, MAX_WAITING } from "../../src/transport/conversation.ts";
import { LEASE_MS } from "../../src/transport/peer.ts";
import { Status } from "../../src/virtio/features.ts";
import { EPOCH, type Rig, RINGS, withForeign, withVmsg } from "../support/device_rig.ts";
import { waitUntil } from "../support/front_end.ts";
import { LateDevice } from "../support/late_device.ts";
import { cleanTest } from "../support/leaks.ts";
import type { Fill } from "../support/raw_peer.ts";

/** The late device's number; 0 and 5 answer at once. */
const LATE = 7;
/** More than a bus keeps descriptors that no message has named. */
const FDS = MAX_WAITING_FDS + 1;
const ETIMEDOUT = linuxErrno("ETIMEDOUT");
const NEEDS_RESET: number = Status.DEVICE_NEEDS_RESET;

interface LateRig extends Rig {
  readonly late: LateDevice;
  /** Sends a request about the late device; its token. */
  send(kind: Kind, fill?: Fill): number;
  /** The same for a private one. */
  sendPrivate(kind: Kind, fill?: Fill): number;
  /** Sends a request about the late device, which it answers at once. */
  askLate(kind: Kind, fill?: Fill): Promise<Message>;
  /** Everything that was sent has been handled. */
  settle(): Promise<void>;
  /** The late device answers, and what follows from it is done. */
  answer(): Promise<void>;
  /** Driver and features. */
  negotiateLate(): Promise<void>;
}

type WithPeer = typeof withVmsg;

async function withLate(body: (rig: LateRig) => Promise<void>, withPeer: WithPeer = withVmsg) {
  let late!: LateDevice;
  await withPeer(async (rig) => {
    const about = (fill: Fill): Fill => (m) => {
      m.device = LATE;
      fill(m);
    };
    const lateRig: LateRig = {
      ...rig,
      late,
      send: (kind, fill = () => {}) => rig.peer.send(kind, about(fill)),
      sendPrivate: (kind, fill = () => {}) =>
        rig.peer.send(kind, (m) => {
          m.epoch = EPOCH;
          m.memoryDevice = LATE;
          fill(m);
        }),
      askLate: (kind, fill = () => {}) => rig.peer.ask(kind, about(fill)),
      // Time passes only when there is nothing else to do.
      settle: () => rig.reactor.sleep(0.1),
      async answer() {
        late.answer();
        await rig.reactor.sleep(0.1);
      },
      async negotiateLate() {
        await lateRig.askLate(Kind.SET_DEVICE_STATUS, (m) => m.status = 0x3);
        await lateRig.askLate(Kind.SET_DRIVER_FEATURES, (m) => {
          m.count = 2;
          m.words[1] = 1;
        });
        assertEquals((await lateRig.askLate(Kind.SET_DEVICE_STATUS, status(0xb))).status, 0xb);
      },
    };
    await body(lateRig);
  }, {
    models: [[LATE, (reactor) => late = new LateDevice(reactor)]],
  });
}

const status = (value: number): Fill => (m) => m.status = value;
const queue = (index: number): Fill => (m) => {
  m.index = index;
  m.flags = QUEUE_ENABLED;
  m.queueSize = 64;
  Object.assign(m, RINGS);
};
const memory = (ordinal: number): Fill => (m) => {
  m.ordinal = ordinal;
  m.address = 0x10_0000;
  m.length = 4096;
};

/** Brings the late device up with queue 0, on memory of its own. */
async function bringUp(rig: LateRig): Promise<void> {
  using fd = createSealedMemory("vmsg-test", 4096);
  rig.peer.bus.sendFd(fd);
  rig.sendPrivate(Kind.ADD_MEMORY, memory(0));
  assertEquals((await rig.peer.nextOf(Kind.ADD_MEMORY)).result, 0);
  await rig.negotiateLate();
  await rig.askLate(Kind.SET_VQUEUE, queue(0));
  assertEquals((await rig.askLate(Kind.SET_DEVICE_STATUS, status(0xf))).status, 0xf);
  assert(rig.late.host.mayTouchMemory());
}

const windows = ({ late }: LateRig) => late.host.memory.windows.map(({ at }) => at);
/** What came meanwhile. */
const kinds = ({ peer }: LateRig) => peer.messages.splice(0).map(({ kind }) => kind);

// --- answers that come later ---------------------------------------------------------------------

cleanTest(
  "late: a request keeps its token; other devices and the bus do not wait",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      late.isLate = true;
      const token = rig.send(Kind.GET_CONFIG, (m) => {
        m.offset = 2;
        m.length = 3;
      });
      await rig.settle();
      assertEquals([late.asked, peer.messages.length], [["read 2+3"], 0]);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0);
      await rig.quiet();
      await rig.greet();
      assert((await peer.ask(Kind.GET_CONFIG, (m) => m.length = 1)).bytes[0] === 1);
      late.answer();
      const answer = await peer.nextOf(Kind.GET_CONFIG);
      assertEquals([answer.token, answer.device], [token, LATE]);
      assertEquals([answer.offset, answer.length, ...answer.bytes.subarray(0, 3)], [2, 3, 3, 4, 5]);
    }),
);

cleanTest(
  "late: whatever is asked is answered as if it had been answered at once",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      const { fake } = late;
      /** A request whose questions the device answers one after the other. */
      const later = async (kind: Kind, fill: Fill, ...questions: string[]) => {
        late.isLate = true;
        rig.send(kind, fill);
        for (const question of questions) {
          await rig.settle();
          assertEquals([late.asked.splice(0), peer.messages.length], [[question], 0]);
          late.answer();
        }
        const answer = await peer.nextOf(kind);
        late.isLate = false;
        return answer;
      };
      await rig.askLate(Kind.SET_DEVICE_STATUS, status(3));
      await rig.askLate(Kind.SET_DRIVER_FEATURES, (m) => {
        m.count = 2;
        m.words[1] = 0x101;
      });
      fake.acceptsFeatures = false;
      assertEquals((await later(Kind.SET_DEVICE_STATUS, status(0xb), "accept")).status, 0x3);
      fake.acceptsFeatures = true;
      assertEquals((await later(Kind.SET_DEVICE_STATUS, status(0xb), "accept")).status, 0xb);
      await later(Kind.SET_VQUEUE, queue(1), "start 1");
      assertEquals((await rig.askLate(Kind.GET_VQUEUE, queue(1))).flags, QUEUE_ENABLED);
      assertEquals(fake.takeCalls().slice(-2), ["start 1", "available 1"]);
      await later(Kind.RESET_VQUEUE, queue(1), "stop 1");
      assertEquals((await rig.askLate(Kind.GET_VQUEUE, queue(1))).flags, 0);
      const write: Fill = (m) => {
        m.offset = 4;
        m.length = 2;
        m.bytes.set([0xaa, 0xbb]);
      };
      const written = await later(Kind.SET_CONFIG, write, "write 4+2", "read 4+2");
      assertEquals([written.length, ...written.bytes.subarray(0, 2)], [2, 0xaa, 0xbb]);
      fake.acceptsConfig = false;
      assertEquals((await later(Kind.SET_CONFIG, write, "write 4+2")).length, 0);
      await later(Kind.SET_VQUEUE, queue(0), "start 0");
      const reset = await later(Kind.SET_DEVICE_STATUS, status(0), "stop 0", "reset");
      assertEquals(reset.status, 0);
      fake.startProblem = "no";
      await rig.askLate(Kind.SET_DEVICE_STATUS, status(3));
      await later(Kind.SET_VQUEUE, queue(2), "start 2");
      assertEquals((await rig.askLate(Kind.GET_VQUEUE, queue(2))).queueSize, 0);
    }, withForeign),
);

cleanTest(
  "late: memory is mapped before, and unmapped after the device has answered",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      late.isLate = true;
      using fd = createSealedMemory("vmsg-test", 4096);
      for (const problem of ["no room", undefined]) {
        late.memoryProblem = problem;
        peer.bus.sendFd(fd);
        rig.sendPrivate(Kind.ADD_MEMORY, memory(problem ? 0 : 1));
        await rig.settle();
        const [region] = late.host.regions;
        assertEquals([region!.at, region!.size, region!.fileOffset], [0x10_0000, 4096, 0]);
        assert(region!.fd!.number !== fd.number, "its own descriptor");
        assertEquals([windows(rig), peer.messages.length], [[0x10_0000], 0]);
        late.answer();
        const { result } = await peer.nextOf(Kind.ADD_MEMORY);
        assertEquals(
          [result, late.host.regions.length],
          problem ? [linuxErrno("EINVAL"), 0] : [0, 1],
        );
      }
      const [{ memory: mapped }] = late.host.regions as [LateDevice["host"]["regions"][number]];
      rig.sendPrivate(Kind.REMOVE_MEMORY, memory(0));
      await rig.settle();
      assertEquals(late.asked.splice(0), ["added 1048576", "added 1048576", "removed 1048576"]);
      assertEquals([windows(rig), late.host.regions.length], [[], 0]);
      assertEquals(mapped.buffer.byteLength, 4096, "still there");
      late.answer();
      assertEquals((await peer.nextOf(Kind.REMOVE_MEMORY)).result, 0);
      assertEquals(mapped.buffer.byteLength, 0, "unmapped");
    }),
);

cleanTest(
  "late: STOP_VQUEUE answers the base, after the last EVENT_USED",
  () =>
    withLate(async (rig) => {
      await bringUp(rig);
      rig.late.isLate = true;
      rig.late.fake.base = 0x1234;
      rig.late.fake.usedAtStop.add(0);
      rig.sendPrivate(Kind.STOP_VQUEUE);
      await rig.settle();
      // It is unconfigured from the moment it is asked to stop.
      rig.send(Kind.EVENT_AVAIL);
      await rig.settle();
      assertEquals(rig.late.fake.takeCalls().at(-1), "resume");
      rig.late.answer();
      assertEquals((await rig.peer.next()).kind, Kind.EVENT_USED);
      assertEquals((await rig.peer.nextOf(Kind.STOP_VQUEUE)).base, 0x1234);
    }),
);

cleanTest(
  "late: later requests of the device wait in order, kicks do not",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      await bringUp(rig);
      late.fake.takeCalls();
      late.isLate = true;
      const tokens = [
        rig.send(Kind.SET_VQUEUE, queue(1)),
        rig.send(Kind.GET_VQUEUE, queue(1)),
        rig.send(Kind.GET_CONFIG, (m) => m.length = 1),
        rig.send(Kind.GET_DEVICE_STATUS),
      ];
      rig.send(Kind.EVENT_AVAIL);
      await rig.settle();
      assertEquals([late.fake.takeCalls(), peer.messages.length], [["available 0"], 0]);
      await rig.answer();
      assertEquals(kinds(rig), [Kind.SET_VQUEUE, Kind.GET_VQUEUE]);
      assertEquals(late.asked, ["start 1", "read 0+1"]);
      late.answer();
      const rest = [await peer.next(), await peer.next()].map(({ token }) => token);
      assertEquals(rest, tokens.slice(2));
    }),
);

/** Sends so many requests to the late device; their tokens. */
async function sendMany(rig: LateRig, count: number): Promise<number[]> {
  const tokens: number[] = [];
  while (tokens.length < count) {
    for (let n = 0; n < 50 && tokens.length < count; n++) {
      tokens.push(rig.send(Kind.GET_DEVICE_STATUS));
    }
    await rig.settle();
  }
  return tokens;
}

cleanTest(
  "late: however many requests wait, each is answered once and in its turn, other devices at once",
  () =>
    withLate(async (rig) => {
      const { late, peer, side } = rig;
      late.isLate = true;
      const first = rig.send(Kind.GET_CONFIG, (m) => m.length = 1);
      const tokens = [first, ...await sendMany(rig, 500)];
      const { dropped } = side.counters;
      // Of device 0.
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0);
      await rig.answer();
      await waitUntil(rig.reactor, () => peer.messages.length >= tokens.length);
      assertEquals(peer.messages.splice(0).map(({ token }) => token), tokens);
      assertEquals(side.counters.dropped, dropped);
    }),
);

cleanTest(
  "late: no more wait than there are tokens, and a descriptor that is dropped is closed",
  () =>
    withLate(async (rig) => {
      const { late, peer, side, lines } = rig;
      late.isLate = true;
      rig.send(Kind.GET_CONFIG, (m) => m.length = 1);
      await sendMany(rig, MAX_WAITING);
      const { dropped } = side.counters;
      using fd = createSealedMemory("vmsg-test", 4096);
      // More than the bus would keep for messages that name them.
      for (let ordinal = 0; ordinal < FDS; ordinal++) {
        peer.bus.sendFd(fd);
        rig.sendPrivate(Kind.ADD_MEMORY, memory(ordinal));
        await rig.settle();
      }
      assertEquals(side.counters.dropped, dropped + FDS);
      assert(lines.some((line) => line.includes("device 7 is busy")));
      await rig.answer();
      await waitUntil(rig.reactor, () => peer.messages.length >= 1 + MAX_WAITING);
    }),
);

// --- the driver side leaves meanwhile ------------------------------------------------------------

cleanTest(
  "late: HELLO of a new epoch waits for the device, and a stale answer is not sent",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      await bringUp(rig);
      const [{ memory: mapped }] = late.host.regions as [LateDevice["host"]["regions"][number]];
      late.isLate = true;
      rig.send(Kind.SET_VQUEUE, queue(1));
      rig.send(Kind.GET_DEVICE_STATUS);
      await rig.settle();
      const greet = () =>
        peer.send(Kind.HELLO, (m) => {
          m.epoch = EPOCH + 1;
          m.version = 1;
        });
      greet();
      await rig.settle();
      assertEquals([late.host.mayTouchMemory(), mapped.buffer.byteLength], [false, 4096]);
      // Both queues are stopped: the device may have started the second one meanwhile.
      const steps = ["start 1", "stop 0", "stop 1", "reset", "removed 1048576"];
      for (const step of steps) {
        greet();
        await rig.settle();
        assertEquals([late.asked.at(-1), kinds(rig)], [step, []]);
        assertEquals(mapped.buffer.byteLength, 4096);
        await rig.answer();
      }
      assertEquals([late.asked, kinds(rig)], [steps, []]);
      assertEquals([mapped.buffer.byteLength, windows(rig)], [0, []]);
      late.isLate = false;
      await rig.greet(EPOCH + 1);
      assertEquals((await rig.askLate(Kind.GET_DEVICE_STATUS)).status, 0);
      assertEquals((await rig.askLate(Kind.GET_VQUEUE, queue(1))).flags, 0);
      await rig.quiet();
    }),
);

cleanTest("late: the heartbeat goes on while the device thinks", () =>
  withLate(async (rig) => {
    await bringUp(rig);
    rig.late.isLate = true;
    rig.send(Kind.GET_CONFIG, (m) => m.length = 1);
    for (let n = 0; n < 5; n++) {
      rig.clock.advance(LEASE_MS - 50);
      await rig.greet();
      assert(rig.late.host.mayTouchMemory());
    }
    await rig.answer();
    assertEquals(kinds(rig), [Kind.GET_CONFIG]);
  }));

cleanTest(
  "late: status 0 waits its turn, stops queue by queue, and then is 0",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      await bringUp(rig);
      late.isLate = true;
      rig.send(Kind.SET_VQUEUE, queue(2));
      rig.send(Kind.SET_DEVICE_STATUS, status(0));
      rig.sendPrivate(Kind.REMOVE_MEMORY, memory(0));
      await rig.settle();
      assertEquals(late.host.mayTouchMemory(), true, "not yet");
      await rig.answer();
      assertEquals([kinds(rig), late.host.mayTouchMemory()], [[Kind.SET_VQUEUE], false]);
      for (const step of ["stop 0", "stop 2", "reset"]) {
        assertEquals([late.asked.at(-1), peer.messages.length], [step, 0]);
        // Whatever it reports while it is reset, nobody is told.
        late.host.used(0);
        late.host.configChanged();
        await rig.answer();
      }
      const { kind, status: result } = await peer.next();
      assertEquals([kind, result], [Kind.SET_DEVICE_STATUS, 0]);
      // No queue runs any more, so memory may go.
      assertEquals(late.asked.at(-1), "removed 1048576");
      late.answer();
      assertEquals((await peer.nextOf(Kind.REMOVE_MEMORY)).result, 0);
      await rig.quiet();
    }),
);

cleanTest(
  "late: a foreign driver side sees its memory when nothing of the one before is left",
  () => {
    const ram = { address: 0n, buffer: new ArrayBuffer(8192), size: 8192 };
    let late!: LateDevice;
    return withForeign(async ({ side, peer, reactor }) => {
      const regions = () => late.host.regions.map(({ at }) => at);
      side.add(LATE, late = new LateDevice(reactor), [{
        at: 0x8000,
        size: 8192,
        memory: ram,
        offset: 0,
      }]);
      const first = () => peer.send(Kind.GET_DEVICE_INFO, (m) => m.device = LATE);
      // It is added late, so the memory is shown to the next driver side.
      side.detached("gone");
      side.attached();
      first();
      await reactor.sleep(0.1);
      assertEquals(regions(), [0x8000]);
      late.isLate = true;
      side.detached("gone");
      side.attached();
      assertEquals([late.asked, regions()], [["removed 32768"], []]);
      peer.messages.length = 0;
      first();
      await reactor.sleep(0.1);
      assertEquals([late.asked.length, regions(), peer.messages.length], [1, [], 0]);
      late.answer();
      await reactor.sleep(0.1);
      assertEquals([late.asked.at(-1), regions(), peer.messages.length], [
        "added 32768",
        [0x8000],
        0,
      ]);
      late.answer();
      assertEquals((await peer.nextOf(Kind.GET_DEVICE_INFO)).device, LATE);
    });
  },
);

cleanTest("late: the side ends while the device thinks", () =>
  withLate(async (rig) => {
    await bringUp(rig);
    rig.late.isLate = true;
    rig.send(Kind.SET_VQUEUE, queue(1));
    rig.send(Kind.GET_DEVICE_STATUS);
    await rig.settle();
    rig.side[Symbol.dispose]();
    assertEquals([rig.late.fake.calls.at(-1), windows(rig)], ["dispose", []]);
    await rig.answer();
    assertEquals(rig.late.asked, ["start 1"], "nothing follows");
  }));

// --- devices that do not answer ------------------------------------------------------------------

cleanTest(
  "hung: a visible failure for whoever waits, and for nobody else",
  () =>
    withLate(async (rig) => {
      const { late, peer, reactor, lines } = rig;
      await bringUp(rig);
      late.isLate = true;
      const startMs = reactor.now();
      rig.send(Kind.SET_VQUEUE, queue(1));
      rig.send(Kind.GET_DEVICE_STATUS);
      rig.sendPrivate(Kind.STOP_VQUEUE);
      const started = await peer.nextOf(Kind.SET_VQUEUE);
      const tookMs = reactor.now() - startMs;
      assert(tookMs >= ANSWER_LIMIT_MS && tookMs < 4500, "before the driver side's 5 s");
      assertEquals(started.device, LATE);
      assertEquals((await peer.nextOf(Kind.GET_DEVICE_STATUS)).status, 0xf | NEEDS_RESET);
      assertEquals((await peer.nextOf(Kind.STOP_VQUEUE)).result, ETIMEDOUT);
      const event = await peer.nextOf(Kind.EVENT_CONFIG);
      assertEquals([event.device, event.status], [LATE, 0xf | NEEDS_RESET]);
      const told = lines.filter((line) =>
        line.includes("device 7 needs a reset: no answer within")
      );
      assertEquals(told.length, 1, lines.join("\n"));
      // From now on nothing that needs it waits, and it is not asked.
      assertEquals((await rig.askLate(Kind.SET_CONFIG, (m) => m.length = 1)).length, 0);
      assertEquals((await rig.askLate(Kind.GET_DEVICE_INFO)).configSize, 12);
      await rig.askLate(Kind.SET_VQUEUE, queue(2));
      await rig.askLate(Kind.RESET_VQUEUE);
      assertEquals((await rig.askLate(Kind.GET_VQUEUE)).flags, QUEUE_ENABLED, "it did not happen");
      assertEquals((await rig.askLate(Kind.GET_CONFIG, (m) => m.length = 1)).length, 0);
      // A reset is not finished before it is (rule V57).
      assertEquals((await rig.askLate(Kind.SET_DEVICE_STATUS, status(0))).status, NEEDS_RESET);
      assertEquals([late.asked, late.host.mayTouchMemory()], [["start 1"], false]);
      assertEquals((await peer.ask(Kind.GET_CONFIG, (m) => m.length = 1)).length, 1);
      await rig.quiet();
      // It answers at last: the reset goes on, and the device can be used again.
      late.isLate = false;
      await rig.answer();
      assertEquals((await rig.askLate(Kind.GET_DEVICE_STATUS)).status, 0);
      assertEquals(late.fake.takeCalls().slice(-2), ["stop 0", "stop 1"]);
      await rig.negotiateLate();
      await rig.askLate(Kind.SET_VQUEUE, queue(0));
      await rig.quiet();
    }),
);

cleanTest(
  "hung: a reset that takes too long is answered once, and finished all the same",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      await bringUp(rig);
      late.isLate = true;
      rig.send(Kind.SET_DEVICE_STATUS, status(0));
      assertEquals((await peer.nextOf(Kind.SET_DEVICE_STATUS)).status, NEEDS_RESET);
      await rig.answer();
      assertEquals(late.asked, ["stop 0", "reset"]);
      rig.send(Kind.GET_DEVICE_STATUS);
      await rig.settle();
      await rig.answer();
      assertEquals((await peer.next()).status, 0);
      assertEquals(kinds(rig), [], "one answer to each");
    }),
);

cleanTest(
  "hung: memory that was being added goes when the device answers",
  () =>
    withLate(async (rig) => {
      const { late, peer } = rig;
      using fd = createSealedMemory("vmsg-test", 4096);
      late.isLate = true;
      for (const ordinal of [0, 1]) {
        peer.bus.sendFd(fd);
        rig.sendPrivate(Kind.ADD_MEMORY, memory(ordinal));
      }
      assertEquals((await peer.nextOf(Kind.ADD_MEMORY)).result, ETIMEDOUT);
      assertEquals((await peer.nextOf(Kind.ADD_MEMORY)).result, ETIMEDOUT);
      assertEquals([late.asked, windows(rig)], [["added 1048576"], [0x10_0000]]);
      await rig.answer();
      assertEquals([late.asked.at(-1), windows(rig)], ["removed 1048576", []]);
      await rig.answer();
      late.isLate = false;
      peer.bus.sendFd(fd);
      rig.sendPrivate(Kind.ADD_MEMORY, memory(2));
      assertEquals((await peer.nextOf(Kind.ADD_MEMORY)).result, 0);
    }),
);

cleanTest(
  "hung: the next driver side is not held up, and memory stays until it answers",
  () =>
    withLate(async (rig) => {
      const { late, peer, reactor } = rig;
      await bringUp(rig);
      const [{ memory: mapped }] = late.host.regions as [LateDevice["host"]["regions"][number]];
      late.isLate = true;
      await rig.hello(EPOCH + 1, 0, 0).then(() => assert(false, "answered"), () => {});
      await reactor.sleep(ANSWER_LIMIT_MS);
      await rig.greet(EPOCH + 1);
      assertEquals([late.asked, mapped.buffer.byteLength], [["stop 0"], 4096]);
      assertEquals((await rig.askLate(Kind.GET_DEVICE_STATUS)).status, NEEDS_RESET);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0);
      late.isLate = false;
      await rig.answer();
      assertEquals((await rig.askLate(Kind.GET_DEVICE_STATUS)).status, 0);
      assertEquals(mapped.buffer.byteLength, 0);
    }),
);

cleanTest(
  "failed: a promise that is rejected is a failure, and the device goes on",
  () =>
    withLate(async (rig) => {
      const { late, peer, lines } = rig;
      await bringUp(rig);
      late.isLate = true;
      rig.sendPrivate(Kind.STOP_VQUEUE);
      await rig.settle();
      late.fail("the other process is gone");
      assertEquals((await peer.nextOf(Kind.STOP_VQUEUE)).result, linuxErrno("EIO"));
      assertEquals((await peer.nextOf(Kind.EVENT_CONFIG)).status, 0xf | NEEDS_RESET);
      assert(lines.some((line) => line.includes("the other process is gone")));
      // Memory that it fails to take is taken back: it may have it.
      using fd = createSealedMemory("vmsg-test", 4096);
      peer.bus.sendFd(fd);
      rig.sendPrivate(Kind.ADD_MEMORY, (m) => {
        memory(1)(m);
        m.address = 0;
      });
      await rig.settle();
      late.fail("no room");
      assertEquals((await peer.nextOf(Kind.ADD_MEMORY)).result, linuxErrno("EIO"));
      await rig.settle();
      assertEquals([late.asked.at(-1), windows(rig)], ["removed 0", [0x10_0000]]);
      await rig.answer();
      // A reset that fails half way is finished all the same.
      rig.send(Kind.SET_DEVICE_STATUS, status(0));
      await rig.settle();
      assertEquals(late.asked.at(-1), "reset");
      late.fail("again");
      assertEquals((await peer.nextOf(Kind.SET_DEVICE_STATUS)).status, 0);
    }),
);

Deno.test("a device that answers at once costs no promise and no timer", () =>
  withLate(async (rig) => {
    let sequences = 0;
    let timers = 0;
    const { spawn, timer } = rig.reactor;
    rig.reactor.spawn = (sequence) => (sequences++, spawn.call(rig.reactor, sequence));
    rig.reactor.timer = (fire) => (timers++, timer.call(rig.reactor, fire));
    await rig.negotiateLate();
    await rig.askLate(Kind.SET_VQUEUE, queue(0));
    assertEquals([sequences, timers], [0, 4], "the peer's own: one for each answer it waits for");
  }));
