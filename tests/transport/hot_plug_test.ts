/** Devices that come and go while a driver side is there: EVENT_DEVICE, numbers that rest, what becomes of requests. */

import { assert, assertEquals } from "@std/assert";
import type { Dialect } from "../../src/message/codec.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { DEVICE_ADDED, DEVICE_REMOVED, Kind, QUEUE_ENABLED } from "../../src/message/message.ts";
import { REST_MS } from "../../src/transport/arrivals.ts";
import { ANSWER_LIMIT_MS } from "../../src/transport/conversation.ts";
import { EPOCH, type Rig, RINGS, withForeign, withSide, withVmsg } from "../support/device_rig.ts";
import { withReady } from "../support/driver_rig.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { LateDevice } from "../support/late_device.ts";
import { cleanTest } from "../support/leaks.ts";

/** A number that no device has at first. */
const NUMBER = 9;

/** What EVENT_DEVICE has said, and nothing else came. */
async function arrivals({ peer, reactor }: Rig): Promise<[number, number][]> {
  await reactor.sleep(0.1);
  return peer.messages.splice(0).map(({ kind, device, token, number, state }) => {
    assertEquals([kind, device, token], [Kind.EVENT_DEVICE, 0, 0]);
    return [number, state];
  });
}

async function devices({ peer }: Rig): Promise<number[]> {
  const { bytes } = await peer.ask(Kind.GET_DEVICES, (m) => m.count = 32);
  return Array.from({ length: 32 }, (_, n) => n).filter((n) => bytes[n >> 3]! >> (n & 7) & 1);
}

const idOf = async ({ peer }: Rig, number: number) =>
  (await peer.ask(Kind.GET_DEVICE_INFO, (m) => m.device = number)).deviceId;

for (const dialect of ["v1", "v1-2025"] as const satisfies Dialect[]) {
  cleanTest(
    `${dialect}, B13 B23 B33: a device is served when ADDED is said, and dropped at REMOVED`,
    () =>
      withForeign(async (rig) => {
        const { side, peer } = rig;
        assertEquals([await devices(rig), await idOf(rig, NUMBER)], [[0, 5], 0]);
        const added = new FakeDevice();
        side.add(NUMBER, added);
        assertEquals(await arrivals(rig), [[NUMBER, DEVICE_ADDED]]);
        assertEquals([await devices(rig), await idOf(rig, NUMBER)], [[0, 5, NUMBER], 1]);
        await side.remove(NUMBER);
        assertEquals(await arrivals(rig), [[NUMBER, DEVICE_REMOVED]]);
        assertEquals([await devices(rig), await idOf(rig, NUMBER)], [[0, 5], 0]);
        assertEquals(added.takeCalls(), ["dispose"]);
        peer.send(Kind.GET_DEVICE_STATUS, (m) => m.device = NUMBER);
        await rig.quiet();
      }, { dialect }),
  );
}

cleanTest(
  "proto has no such event: devices come and go, and nobody is told",
  () =>
    withForeign(async (rig) => {
      rig.side.add(NUMBER, new FakeDevice());
      assertEquals([await arrivals(rig), await idOf(rig, NUMBER)], [[], 1]);
      await rig.side.remove(NUMBER);
      assertEquals([await arrivals(rig), await idOf(rig, NUMBER)], [[], 0]);
      assertEquals(rig.side.restMs(NUMBER), 0);
    }, { dialect: "proto" }),
);

cleanTest("nobody is told before a driver side has said who it is", () =>
  withSide(async (rig) => {
    rig.side.add(NUMBER, new FakeDevice());
    await rig.side.remove(5);
    assertEquals(await arrivals(rig), []);
    await rig.greet();
    assertEquals([await arrivals(rig), await devices(rig)], [[], [0, NUMBER]]);
    assertEquals(rig.side.restMs(5), 0);
  }));

/** Memory for device 5, and its queue 0 on it, at work. */
async function bringUpFifth(rig: Rig): Promise<void> {
  using fd = createSealedMemory("vmsg-test", 0x4000);
  rig.peer.bus.sendFd(fd);
  const { result } = await rig.ask(Kind.ADD_MEMORY, (m) => {
    Object.assign(m, { memoryDevice: 5, address: 0x1000, length: 0x4000 });
  });
  assertEquals(result, 0);
  await rig.setStatus(3, 5);
  await rig.peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
    Object.assign(m, { device: 5, count: 2 });
    m.words[1] = 1;
  });
  assertEquals(await rig.setStatus(0xb, 5), 0xb);
  await rig.setQueue(0, (m) => m.device = 5);
  assertEquals(await rig.setStatus(0xf, 5), 0xf);
}

cleanTest(
  "a running device is stopped, and its memory let go, before it is disposed of",
  () =>
    withVmsg(async (rig) => {
      await bringUpFifth(rig);
      rig.fifth.takeCalls();
      assertEquals(rig.fifth.host.regions.length, 1);
      // What it still has to say is not said any more.
      rig.fifth.usedAtStop.add(0);
      rig.fifth.host.configChanged();
      await rig.side.remove(5);
      assertEquals(rig.fifth.takeCalls(), ["stop 0", "dispose"]);
      assertEquals(rig.fifth.host.regions.length, 0);
      assertEquals(await arrivals(rig), [[5, DEVICE_REMOVED]]);
      assertEquals((await rig.ask(Kind.ADD_MEMORY, (m) => m.memoryDevice = 5)).result, 19);
      assertEquals(await rig.setStatus(0), 0, "the other is as it was");
    }),
);

interface LateRig extends Rig {
  readonly late: LateDevice;
}

const withLate = (body: (rig: LateRig) => Promise<void>, withPeer: typeof withForeign) => {
  let late!: LateDevice;
  return withPeer((rig) => body({ ...rig, late }), {
    models: [[NUMBER, (reactor) => late = new LateDevice(reactor)]],
  });
};

cleanTest(
  "B27 G23: whoever has asked a device is answered before REMOVED, when it has let go",
  () =>
    withLate(async (rig) => {
      const { late, peer, side, reactor } = rig;
      await peer.ask(Kind.SET_VQUEUE, (m) => {
        Object.assign(m, { device: NUMBER, flags: QUEUE_ENABLED, queueSize: 64, ...RINGS });
      });
      late.isLate = true;
      const tokens = [
        peer.send(Kind.GET_CONFIG, (m) => Object.assign(m, { device: NUMBER, length: 4 })),
        peer.send(Kind.GET_VQUEUE, (m) => m.device = NUMBER),
        peer.send(Kind.SET_DEVICE_STATUS, (m) => m.device = NUMBER),
      ];
      await reactor.sleep(0.1);
      const removed = side.remove(NUMBER);
      assertEquals([await devices(rig), late.asked], [[0, 5], ["read 0+4"]]);
      peer.send(Kind.GET_CONFIG, (m) => Object.assign(m, { device: NUMBER, length: 1 }));
      for (const question of ["read 0+4", "stop 0"]) {
        await reactor.sleep(0.1);
        assertEquals([late.asked.splice(0), peer.messages.length], [[question], 0]);
        late.answer();
      }
      await removed;
      await reactor.sleep(0.1);
      const last = peer.messages.pop()!;
      assertEquals([last.kind, last.number, last.state], [
        Kind.EVENT_DEVICE,
        NUMBER,
        DEVICE_REMOVED,
      ]);
      const answers = peer.messages.splice(0);
      assertEquals(answers.map(({ token }) => token), tokens);
      assertEquals([answers[0]!.length, answers[1]!.flags], [0, 0]);
    }, withForeign),
);

cleanTest(
  "of a vmsg's requests EVENT_DEVICE is the end: no errno says that its device has failed",
  () =>
    withLate(async (rig) => {
      const { late, peer, side, reactor } = rig;
      late.isLate = true;
      using fd = createSealedMemory("vmsg-test", 4096);
      for (const ordinal of [0, 1, 2]) {
        if (ordinal === 2) void side.remove(NUMBER);
        peer.bus.sendFd(fd);
        peer.send(Kind.ADD_MEMORY, (m) => {
          const address = 0x10_0000 * (ordinal + 1);
          Object.assign(m, { epoch: EPOCH, memoryDevice: NUMBER, ordinal, address, length: 4096 });
        });
        await reactor.sleep(0.1);
      }
      late.answer();
      await reactor.sleep(0.1);
      late.answer();
      assertEquals(await arrivals(rig), [[NUMBER, DEVICE_REMOVED]]);
    }, withVmsg),
);

cleanTest("a device that does not answer is ended all the same", () =>
  withLate(async (rig) => {
    const { late, peer, side, reactor } = rig;
    late.isLate = true;
    peer.send(Kind.GET_CONFIG, (m) => Object.assign(m, { device: NUMBER, length: 4 }));
    await reactor.sleep(0.1);
    const startMs = reactor.now();
    await side.remove(NUMBER);
    assert(reactor.now() - startMs <= ANSWER_LIMIT_MS);
    assertEquals(late.fake.takeCalls(), ["dispose"]);
    await reactor.sleep(0.1);
    const kinds = peer.messages.splice(0).map(({ kind }) => kind);
    assertEquals(kinds, [Kind.GET_CONFIG, Kind.EVENT_DEVICE]);
    // And so is one that was silent for longer.
    const hung = new LateDevice(reactor);
    side.add(NUMBER + 1, hung);
    hung.isLate = true;
    peer.send(Kind.GET_CONFIG, (m) => Object.assign(m, { device: NUMBER + 1, length: 4 }));
    await reactor.sleep(ANSWER_LIMIT_MS + 1);
    const hungMs = reactor.now();
    await side.remove(NUMBER + 1);
    assertEquals([reactor.now(), hung.fake.takeCalls()], [hungMs, ["dispose"]]);
  }, withForeign));

cleanTest(
  "a new driver side is not greeted before a leaving device has let go of the old one's memory",
  () =>
    withLate(async (rig) => {
      const { late, peer, side, reactor } = rig;
      using fd = createSealedMemory("vmsg-test", 4096);
      peer.bus.sendFd(fd);
      await rig.ask(Kind.ADD_MEMORY, (m) => {
        Object.assign(m, { memoryDevice: NUMBER, address: 0x10_0000, length: 4096 });
      });
      late.isLate = true;
      const removed = side.remove(NUMBER);
      await reactor.sleep(0.1);
      peer.send(Kind.HELLO, (m) => Object.assign(m, { epoch: EPOCH + 1, version: 1 }));
      await reactor.sleep(0.1);
      assertEquals([peer.messages.length, late.host.memory.windows.length], [0, 0]);
      late.answer();
      await removed;
      await rig.greet(EPOCH + 1);
      assertEquals(await arrivals(rig), [], "it has heard of neither");
    }, withVmsg),
);

cleanTest(
  "B28: a number rests when its device is gone; others are given before it",
  () =>
    withVmsg(async (rig) => {
      const { side, reactor } = rig;
      const rest = side.restMs(5);
      assertEquals([rest, side.freeNumber()], [0, 6]);
      await side.remove(5);
      assertEquals(side.restMs(5), REST_MS);
      assertEquals(side.freeNumber(), 6);
      side.add(6, new FakeDevice());
      await side.remove(6);
      assertEquals(side.freeNumber(), 7);
      side.add(0xffff, new FakeDevice());
      // All have been given once: 0 is taken.
      assertEquals(side.freeNumber(), 1);
      await reactor.sleep(REST_MS + 1);
      assertEquals([side.restMs(5), side.restMs(6)], [0, 0]);
      side.add(5, new FakeDevice());
      const told = await arrivals(rig);
      // That 6 came was not said yet when it was gone.
      assertEquals(told.map(([number]) => number), [5, 6, 0xffff, 5]);
    }),
);

cleanTest(
  "B28: a number rests until a driver side that stands still has been told",
  () =>
    withVmsg(async (rig) => {
      const { side, peer, reactor } = rig;
      const incoming = peer.bus as unknown as { rung(): void };
      const { rung } = incoming;
      incoming.rung = () => {};
      // More than there is room for; each once added and once removed, or the first said no more.
      for (let number = 10; number < 60; number++) side.add(number, new FakeDevice());
      await reactor.sleep(1);
      for (let number = 10; number < 60; number++) await side.remove(number);
      await reactor.sleep(10 * REST_MS);
      assertEquals(side.restMs(59), REST_MS);
      incoming.rung = rung;
      incoming.rung();
      await reactor.sleep(10);
      const left = side.restMs(59);
      assert(left > 0 && left < REST_MS, `${left}`);
      const told = peer.messages.splice(0).filter(({ kind }) => kind === Kind.EVENT_DEVICE);
      const removed = told.filter(({ state }) => state === DEVICE_REMOVED);
      assertEquals(
        removed.map(({ number }) => number),
        Array.from({ length: 50 }, (_, n) => n + 10),
      );
    }),
);

// --- the driver side -------------------------------------------------------------------------------

cleanTest(
  "a device that is not there yet is lost to its user, and comes when ADDED is said",
  () =>
    withReady(async ({ device, peer, reactor, lines }) => {
      const told: string[] = [];
      device.listen({ ready: () => told.push("ready"), lost: () => told.push("lost") });
      const info = device.info().catch((error) => error.message);
      peer.reply(await peer.nextOf(Kind.GET_DEVICE_INFO), () => {});
      assertEquals(await info, "the device side has no device 3");
      assertEquals([told.splice(0), device.isReady, device.isRemoved], [["lost"], false, false]);
      assertEquals(lines.filter((line) => line.includes("no device 3: waiting for it")).length, 1);
      // A vmsg says when it comes, so it is not asked.
      await reactor.sleep(5000);
      assertEquals(peer.messages.splice(0), []);
      peer.send(Kind.EVENT_DEVICE, (m) => Object.assign(m, { number: 3, state: DEVICE_ADDED }));
      await reactor.sleep(1);
      assertEquals([told.splice(0), device.isReady], [["ready"], true]);
      peer.send(Kind.EVENT_DEVICE, (m) => Object.assign(m, { number: 3, state: DEVICE_REMOVED }));
      await reactor.sleep(1);
      assertEquals([told, device.isReady, device.isRemoved], [["lost"], false, true]);
    }),
);
