/**
 * The session between a driver that says what it wants and a device side that is replaced: where rings go on, by
 * device type, and what becomes of one that nobody can say of where it goes on.
 */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { positionAfterLoss } from "../../src/drivers/ring_position.ts";
import { Session } from "../../src/drivers/session.ts";
import type { WantedRing } from "../../src/drivers/wanted.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Kind, MEMORY_WINDOW, type Message, QUEUE_GOES_ON } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { PeerLost } from "../../src/transport/requests.ts";
import { type QueueSetup, VENDOR_ELSEWHERE } from "../../src/virtio/device.ts";
import { NetFeature } from "../../src/virtio/features.ts";
import { Descriptors } from "../../src/sharing/descriptors.ts";
import type { RingOwner, SharedRing } from "../../src/sharing/sharing.ts";
import { answerHello, type DriverRig, withDriverSide } from "../support/driver_rig.ts";
import { cleanTest } from "../support/leaks.ts";
import { SetQueues } from "../support/raw_peer.ts";

const NET = 1;
const CARD = { deviceId: NET, vendorId: 0 };
const BLOCK = 2;
const ENTROPY = 4;
const CONSOLE = 3;
const VSOCK = 19;
/** It gives buffers back in any order. */
const GRAPHICS = 16;
const AT = 0x4000_0000;
const SETUP = {
  size: 64,
  descriptorAddress: AT,
  driverAddress: AT + 0x1000,
  deviceAddress: AT + 0x2000,
  base: 0,
};

/** Memory with a ring of which so many buffers were made available, and so many used. */
function ringMemory(available: number, used: number) {
  const memory = mapAnonymous(0x4000);
  const view = new DataView(memory.buffer);
  view.setUint16(0x1002, available, true);
  view.setUint16(0x2002, used, true);
  return {
    at: AT,
    size: 0x4000,
    memory,
    offset: 0,
    from: MEMORY_WINDOW,
    [Symbol.dispose]: () => memory[Symbol.dispose](),
  };
}

Deno.test("position after a loss: in order, all used, or unknown", () => {
  using busy = ringMemory(5, 3);
  using idle = ringMemory(7, 7);
  const at = (region: typeof busy, deviceId: number, vendorId = 0) =>
    positionAfterLoss([region], SETUP, { deviceId, vendorId }, false);
  const types = [NET, ENTROPY, BLOCK, CONSOLE, VSOCK, GRAPHICS];
  // What another program has taken behind a device side of ours, it completes when that is gone.
  assertEquals(types.map((type) => at(busy, type, VENDOR_ELSEWHERE)), types.map(() => 3));
  assertEquals(types.map((type) => at(idle, type, VENDOR_ELSEWHERE)), types.map(() => 7));
  assertEquals(types.map((type) => at(busy, type)), [3, 3, 3, 3, 3, undefined]);
  assertEquals(types.map((type) => at(idle, type)), types.map(() => 7));
  assertEquals(positionAfterLoss([], SETUP, CARD, false), undefined);
  // The index itself has to lie in the memory.
  const short = { ...idle, size: 0x2003 };
  assertEquals(positionAfterLoss([short], SETUP, CARD, false), undefined);
});

interface Rig extends DriverRig {
  readonly session: Session;
  /** What is wanted; a test changes it. */
  readonly wanted: { features: Uint32Array; rings: WantedRing[] };
  readonly ring: WantedRing;
  /** What happened to the ring: "stopped at 3", "call", "fail". */
  readonly told: string[];
  /** What the next device side says of its device. */
  readonly shown: { maxQueues: number; features: number };
  /** What was asked since the last time, but for questions. */
  asked(): Message[];
  /** Another device side takes the place of the last one, and is brought up. */
  replace(): Promise<void>;
}

/** One ring of a device of that type runs, with so many buffers available and so many used. */
async function withRing(
  deviceId: number,
  [available, used]: readonly [number, number],
  body: (rig: Rig) => Promise<void>,
  shown = { maxQueues: 1, features: 0 },
  Shared = Descriptors,
): Promise<void> {
  using region = ringMemory(available, used);
  await withDriverSide(async (driver) => {
    const { reactor, side, device, peer, hello, hellos } = driver;
    const requests: Message[] = [];
    const greets = peer.onMessage!;
    const queues = new SetQueues();
    let info = deviceId;
    peer.onMessage = (message) => {
      if (message.kind === Kind.HELLO) return greets(message);
      if (message.kind === Kind.EVENT_AVAIL) return false;
      requests.push(message);
      peer.reply(message, (m) => {
        Object.assign(m, { deviceId: info, featureBlocks: 2, maxSize: 256 });
        m.maxQueues = shown.maxQueues;
        Object.assign(m, { index: message.index, count: message.count, status: message.status });
        m.base = 9;
        queues.answer(message, m);
        m.words[0] = shown.features;
        m.words[1] = 1;
      });
      return false;
    };
    const told: string[] = [];
    let base = 0;
    const ring: WantedRing = {
      index: 0,
      setup: () => ({ ...SETUP, base }),
      stopped: (next) => {
        base = next;
        told.push(`stopped at ${next}`);
      },
      call: () => told.push("call"),
      fail: () => told.push("fail"),
    };
    const owner = {
      features: Uint32Array.of(shown.features, 1),
      regions: [region],
      rings: [ring],
      mayRun: true,
      configChanged() {},
    };
    const log = createLog("test", "info", (line) => driver.lines.push(line));
    const sharing = new Shared(device);
    using session = new Session({ reactor, device, sharing, owner, whose: "our", log });
    side.listen({ ready: () => {}, lost: () => session.lost() });
    await driver.wait(() => side.isReady);
    await session.bringUp();
    assert(session.runs(0));
    const questions: readonly Kind[] = [
      Kind.GET_DEVICE_INFO,
      Kind.GET_DEVICE_FEATURES,
      Kind.GET_VQUEUE,
    ];
    const rig = {
      ...driver,
      session,
      wanted: owner,
      ring,
      told,
      shown,
      asked: () => requests.splice(0).filter(({ kind }) => !questions.includes(kind)),
      async replace() {
        told.length = 0;
        info = deviceId;
        hello.epoch++;
        answerHello(driver, hellos.at(-1)!);
        await driver.wait(() => !session.runs(0));
        rig.asked();
        await session.bringUp();
      },
    };
    await body(rig);
  });
}

cleanTest(
  "session: a network card that is replaced goes on from the used index",
  () =>
    withRing(NET, [5, 3], async ({ session, told, asked, replace }) => {
      await replace();
      assert(session.runs(0));
      assertEquals(told, ["stopped at 3", "call", "call"]);
      const state = asked().find(({ kind }) => kind === Kind.SET_VQUEUE_STATE);
      assertEquals(state?.base, 3);
    }),
);

/** Shows the device side copies of rings, which begin at 0. */
class Copies extends Descriptors {
  override open(owner: RingOwner, setup: QueueSetup): SharedRing {
    return super.open(owner, { ...setup, base: 0 });
  }
}

cleanTest(
  "session: that a ring goes on is said to a device that sees a copy of it, and to none that sees a new one",
  () =>
    withRing(
      NET,
      [5, 3],
      async ({ asked, replace }) => {
        const states = () => asked().filter(({ kind }) => kind === Kind.SET_VQUEUE_STATE);
        assertEquals(states(), []);
        await replace();
        assertEquals(states().map(({ base, flags }) => [base, flags]), [[0, QUEUE_GOES_ON]]);
      },
      undefined,
      Copies,
    ),
);

cleanTest(
  "session: a device without an order that is replaced goes on if nothing was under way",
  () =>
    withRing(GRAPHICS, [7, 7], async ({ session, told, replace }) => {
      await replace();
      assert(session.runs(0));
      assertEquals(told, ["stopped at 7", "call", "call"]);
    }),
);

cleanTest(
  "session: a device without an order that is lost with buffers: the driver is told, and has to start over",
  () =>
    withRing(GRAPHICS, [5, 3], async ({ session, wanted, ring, told, lines, asked, replace }) => {
      await replace();
      assert(!session.runs(0));
      assertEquals(told, ["fail", "call"]);
      assertEquals(lines.filter((line) => line.includes("restart our driver")).length, 1);
      // Nothing but memory: the ring stays as it is until the driver gives it up.
      await session.apply();
      assertEquals(asked().map(({ kind }) => kind), [Kind.ADD_MEMORY]);
      wanted.rings = [];
      await session.apply();
      wanted.rings = [ring];
      await session.apply();
      assert(session.runs(0));
    }),
);

cleanTest(
  "session: a device that does not take a ring is no silence",
  () =>
    withRing(ENTROPY, [0, 0], async ({ session, peer, wanted, ring }) => {
      wanted.rings = [];
      await session.apply();
      const answers = peer.onMessage!;
      peer.onMessage = (message) => {
        if (message.kind !== Kind.GET_VQUEUE) return answers(message);
        peer.reply(message, (m) => m.maxSize = 256);
        return false;
      };
      wanted.rings = [ring];
      let failure = "";
      await session.apply().catch((error) => failure = error.message);
      assertEquals(failure, "the device did not take queue 0");
    }),
);

cleanTest(
  "session: a device that is lost right behind what it said of itself is not known",
  () =>
    withRing(NET, [0, 0], async ({ session, device, side, wait, replace }) => {
      const features = device.features;
      device.features = async (blocks) => {
        const offered = await features.call(device, blocks);
        device.features = features;
        side.replaced("the test");
        return offered;
      };
      await assertRejects(() => replace(), PeerLost);
      let asked = 0;
      const answer = session.ask(() => {
        // Whoever asks somebody that is not there asks for ever.
        assert(++asked < 10);
        return device.status();
      });
      await wait(() => side.isReady);
      assertEquals(asked, 0);
      await session.bringUp();
      await answer;
      assertEquals(asked, 1);
    }),
);

const MQ = 1 << NetFeature.MQ;

for (
  const [what, features, maxQueues, problem] of [
    [
      "with fewer queue pairs, to a driver that uses several",
      MQ,
      3,
      /queues=1, the last one had 2: restart/,
    ],
    ["with more", MQ, 9, /queues=4, the last one had 2: restart/],
    ["with as many", MQ, 5, undefined],
    ["with fewer, to a driver that uses one", 0, 3, undefined],
  ] as const
) {
  cleanTest(`session: a network card is replaced by one ${what}`, () =>
    withRing(
      NET,
      [5, 3],
      async ({ session, shown, replace }) => {
        shown.maxQueues = maxQueues;
        let failure: string | undefined;
        await replace().catch((error) => failure = error.message);
        assertEquals([session.runs(0), failure === undefined], [
          problem === undefined,
          problem === undefined,
        ]);
        if (problem !== undefined) assertMatch(failure!, problem);
      },
      { maxQueues: 5, features },
    ));
}
