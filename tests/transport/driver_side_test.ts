/**
 * The driver side against a raw peer. Rules that a peer can be asked for are in tests/conformance. Numbers
 * are those of docs/wire.md, section 7.
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { linuxErrno, type VmsgError } from "../../src/linux/errors.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, type Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import { PeerLost, RequestRefused } from "../../src/transport/requests.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import {
  answerHello,
  DEVICE_EPOCH,
  type DriverRig,
  type DriverRigOptions,
  withDriverSide,
  withReady,
} from "../support/driver_rig.ts";
import { cleanTest } from "../support/leaks.ts";
import type { Fill } from "../support/raw_peer.ts";

/** Where a queue may lie. */
const RINGS = { descriptorAddress: 0x1000, driverAddress: 0x2000, deviceAddress: 0x3000 };

/** The error a promise ends with; watched from the start, so that it is never unhandled. */
function failureOf(promise: Promise<unknown>): Promise<VmsgError> {
  return promise.then(
    () => Promise.reject(new Error("it did not fail")),
    (error) => error,
  );
}

/** Answers the next request, which must be of this kind. */
async function serve({ peer }: DriverRig, kind: Kind, fill: Fill = () => {}): Promise<Message> {
  const request = await peer.nextOf(kind);
  peer.reply(request, fill);
  return request;
}

// --- who is there --------------------------------------------------------------------------------

cleanTest("attach: HELLO and GET_DEVICE_INFO become visible together", () => {
  // A device side that attached between the two would take us for foreign.
  using reactor = new Reactor();
  using pair = inProcessBus(reactor);
  const bus = pair.driver;
  const heads: number[] = [];
  for (const name of ["send", "sendWithNext"] as const) {
    const original = bus[name].bind(bus);
    bus[name] = () => {
      original();
      heads.push(bus.view.getUint32(0, true));
    };
  }
  const log = createLog("test", "error", () => {});
  using side = new DriverSide({ reactor, bus, codec: codecFor("v1"), log });
  side.open();
  assertEquals([heads, side.peer], [[0, 2], "probing"]);
});

cleanTest(
  "attach: HELLO comes first, then GET_DEVICE_INFO, both with random tokens",
  () =>
    withDriverSide(async ({ peer, hellos, wait, side, device }) => {
      await wait(() => hellos.length > 0);
      const probe = await peer.nextOf(Kind.GET_DEVICE_INFO);
      const [hello] = hellos;
      assertEquals([hello!.nonce, hello!.peerEpoch, hello!.version], [0, 0, PRIVATE_VERSION]);
      assert(hello!.epoch !== 0 && Number.isSafeInteger(hello!.epoch));
      assertEquals([probe.device, side.peer, side.isReady], [device.number, "probing", false]);
      assert(probe.token !== 0 && hello!.token !== 0);
    }, { answersHello: false }),
);

cleanTest(
  "a peer that answers HELLO is a vmsg: its epoch is named at once, then ready",
  () =>
    withDriverSide(async ({ wait, side, hellos, events, peer }) => {
      await wait(() => side.peer === "vmsg");
      assertEquals(events, ["ready"]);
      await wait(() => hellos.length >= 2);
      assertEquals([hellos[1]!.peerEpoch, hellos[1]!.epoch], [DEVICE_EPOCH, hellos[0]!.epoch]);
      assert(hellos[1]!.nonce >= 1001, "the nonce comes back");
      // A late answer to the probe changes nothing.
      peer.reply(await peer.nextOf(Kind.GET_DEVICE_INFO), (m) => m.deviceId = 1);
      await wait(() => side.counters.dropped > 0);
      assertEquals([side.peer, events], ["vmsg", ["ready"]]);
    }),
);

cleanTest(
  "the heartbeat goes on and returns the last nonce",
  () =>
    withReady(async ({ wait, hellos, reactor }) => {
      const before = hellos.length;
      const startMs = reactor.now();
      await wait(() => hellos.length >= before + 3);
      const tookMs = reactor.now() - startMs;
      assert(tookMs > 200 && tookMs < 310, `ten a second, not three in ${tookMs} ms`);
      const [a, b] = hellos.slice(-2);
      assert(b!.nonce > a!.nonce);
      await reactor.sleep(0);
    }),
);

cleanTest(
  "a peer that answers GET_DEVICE_INFO first is foreign, and HELLO stops",
  () =>
    withDriverSide(async ({ wait, side, hellos, events, peer, device, reactor }) => {
      const probe = await peer.nextOf(Kind.GET_DEVICE_INFO);
      peer.reply(probe, (m) => m.deviceId = 1);
      await wait(() => side.peer === "foreign");
      assertEquals(events, ["ready"]);
      const count = hellos.length;
      // A whole heartbeat of nothing.
      await reactor.sleep(130);
      assertEquals(hellos.length, count);
      // It stays foreign, whatever it says later.
      peer.reply(hellos[0]!, (m) => {
        m.epoch = DEVICE_EPOCH;
        m.peerEpoch = hellos[0]!.epoch;
        m.version = PRIVATE_VERSION;
      });
      const status = device.status();
      for (let request = await peer.next();; request = await peer.next()) {
        if (request.kind !== Kind.GET_DEVICE_STATUS) continue;
        peer.reply(request, (m) => m.status = 5);
        break;
      }
      assertEquals([await status, side.peer], [5, "foreign"]);
    }, { answersHello: false }),
);

cleanTest(
  "what is no answer to our HELLO or probe is discarded while probing",
  () =>
    withDriverSide(async ({ wait, side, hellos, events, peer }) => {
      const probe = await peer.nextOf(Kind.GET_DEVICE_INFO);
      const forged = (kind: Kind, fill: Fill) => {
        const message = Object.assign(
          Object.create(Object.getPrototypeOf(probe)),
          probe,
        ) as Message;
        message.kind = kind;
        message.token = probe.token ^ 0x4000;
        peer.reply(message, fill);
      };
      forged(Kind.GET_DEVICE_INFO, (m) => m.deviceId = 1);
      forged(Kind.GET_DEVICE_STATUS, (m) => m.status = 1);
      forged(Kind.HELLO, (m) => {
        m.epoch = DEVICE_EPOCH;
        m.peerEpoch = hellos[0]!.epoch + 1;
        m.version = PRIVATE_VERSION;
      });
      await wait(() => side.counters.dropped >= 3);
      assertEquals([side.peer, events], ["probing", []]);
    }, { answersHello: false }),
);

cleanTest(
  "an answer to an earlier HELLO counts: a round trip may be longer than a beat",
  () =>
    withDriverSide(async (rig) => {
      const { wait, side, hellos } = rig;
      await wait(() => hellos.length >= 3);
      answerHello(rig, hellos[0]!);
      await wait(() => side.peer === "vmsg");
    }, { answersHello: false }),
);

cleanTest(
  "a device side of another version is named, and not taken",
  () =>
    withDriverSide(async ({ wait, side, hellos, lines, peer }) => {
      await wait(() => hellos.length > 0);
      peer.reply(hellos[0]!, (m) => {
        m.epoch = DEVICE_EPOCH;
        m.peerEpoch = hellos[0]!.epoch;
        m.version = PRIVATE_VERSION + 1;
      });
      await wait(() => lines.some((line) => line.includes("another version (2)")));
      assertEquals(side.peer, "probing");
    }, { answersHello: false }),
);

cleanTest(
  "a replaced device side: every request fails, lost, then ready; the driver's epoch stays",
  () =>
    withReady(async ({ side, device, events, hello, hellos, wait, lines, peer, reactor }) => {
      const { epoch } = side;
      const open = [failureOf(device.status()), failureOf(device.info())];
      const order: string[] = [];
      for (const failure of open) failure.then((error) => order.push(error.code));
      await peer.next();
      hello.epoch = DEVICE_EPOCH + 1;
      await wait(() => events.length === 3);
      assertEquals(events, ["ready", "lost: the device side was replaced", "ready"]);
      for (const failure of open) assert((await failure) instanceof PeerLost);
      assertEquals(order, ["PEER_LOST", "PEER_LOST"]);
      assertEquals(side.epoch, epoch);
      await wait(() => hellos.at(-1)!.peerEpoch === DEVICE_EPOCH + 1);
      assert(lines.filter((line) => line.includes("a vmsg device side is there")).length === 2);
      await reactor.sleep(0);
    }),
);

cleanTest(
  "detach: every open request ends with PeerLost, and lost is said once",
  () =>
    withReady(async ({ side, device, events, peer, wait }) => {
      const open = [failureOf(device.status()), failureOf(device.queue(1))];
      await peer.next();
      await peer.next();
      peer.bus.drop("test");
      for (const failure of open) {
        const error = await failure;
        assert(error instanceof PeerLost);
        assertEquals([error.code, error.message], [
          "PEER_LOST",
          "the other side closed the connection",
        ]);
      }
      await wait(() => side.peer === "none");
      assertEquals(events, ["ready", "lost: the other side closed the connection"]);
      await assertRejects(() => device.status(), PeerLost);
      device.available(0);
    }),
);

cleanTest(
  "R24: silence is told once, and the first sign of life is taken",
  () =>
    withDriverSide(async (rig) => {
      const { wait, lines, hellos, side, hello } = rig;
      const told = () => lines.filter((line) => line.includes("no v1 answer")).length;
      await wait(() => told() === 1);
      const count = hellos.length;
      await wait(() => hellos.length >= count + 3);
      assertEquals(told(), 1);
      assert(lines.find((line) => line.includes("no v1 answer"))!.includes("dialect="));
      hello.answers = true;
      await wait(() => side.peer === "vmsg");
    }, { answersHello: false }),
);

cleanTest(
  "docs/wire.md 3.7: an answer of 32 bytes is v1-2025, and the log names it",
  () =>
    withDriverSide(async ({ peer, wait, lines, side }) => {
      const probe = await peer.nextOf(Kind.GET_DEVICE_INFO);
      peer.putBytes([1, 2, 3, 0, probe.token & 0xff, probe.token >> 8, 32, 0, 1, 0, 0, 0]);
      await wait(() => lines.some((line) => line.includes("the peer speaks v1-2025")));
      assertEquals([side.peer, side.counters.malformed], ["probing", 1]);
    }, { answersHello: false }),
);

// --- requests ------------------------------------------------------------------------------------

cleanTest(
  "G8 G20: answers in any order are paired by token",
  () =>
    withReady(async ({ device, peer }) => {
      const requests = [device.queue(0), device.queue(1), device.queue(2)];
      const seen = [await peer.next(), await peer.next(), await peer.next()];
      assertEquals(seen.map(({ index }) => index), [0, 1, 2]);
      const tokens = new Set(seen.map(({ token }) => token));
      assertEquals([tokens.size, tokens.has(0)], [3, false]);
      for (const n of [2, 0, 1]) peer.reply(seen[n]!, (m) => m.maxSize = 100 + n);
      const answers = await Promise.all(requests);
      assertEquals(answers.map(({ maxSize }) => maxSize), [100, 101, 102]);
    }),
);

/** A driver side whose peer is no vmsg; the answer to the probe is given. */
function withForeignReady(
  body: (rig: DriverRig) => Promise<void>,
  options: DriverRigOptions = {},
): Promise<void> {
  return withDriverSide(async (rig) => {
    rig.peer.reply(await rig.peer.nextOf(Kind.GET_DEVICE_INFO), (m) => m.deviceId = 1);
    await rig.wait(() => rig.side.isReady);
    rig.peer.messages.length = 0;
    await body(rig);
  }, { answersHello: false, ...options });
}

/** What happens to a device's user. */
function userOf({ device }: DriverRig): string[] {
  const told: string[] = [];
  device.listen({ ready: () => told.push("ready"), lost: () => told.push("lost") });
  return told;
}

cleanTest(
  "R24 R37: a request without an answer fails in time; the device is reset, until it says so",
  () =>
    withForeignReady(async (rig) => {
      const { reactor, side, device, peer, lines, wait } = rig;
      const told = userOf(rig);
      const others = userOf({ ...rig, device: side.device(4) });
      const startMs = reactor.now();
      const failure = failureOf(device.queue(0));
      const second = failureOf(device.info());
      const request = await peer.nextOf(Kind.GET_VQUEUE);
      await peer.nextOf(Kind.GET_DEVICE_INFO);
      const error = await failure;
      assertEquals([error.code, error instanceof PeerLost], ["TIMEOUT", true]);
      assert((await second) instanceof PeerLost, "what else was asked fails with it");
      assertBetween(reactor.now() - startMs, 30, 31);
      assertEquals([told.splice(0), others, device.isReady], [["lost"], [], false]);
      const dropped = side.counters.dropped;
      peer.reply(request, (m) => m.maxSize = 1);
      await wait(() => side.counters.dropped === dropped + 1);
      // The first reset is lost as well, and tried again; the second is not finished at once.
      assertEquals((await peer.nextOf(Kind.SET_DEVICE_STATUS)).status, 0);
      peer.reply(await peer.nextOf(Kind.SET_DEVICE_STATUS), (m) => m.status = 0xf);
      assertEquals(told, []);
      peer.reply(await peer.nextOf(Kind.GET_DEVICE_STATUS), (m) => m.status = 0);
      await wait(() => device.isReady);
      assertEquals([told, others], [["ready"], []]);
      const said = lines.filter((line) => line.includes("it is reset"));
      assertEquals(said.length, 1, lines.join("\n"));
      assert(said[0]!.includes("device 3: the device side did not answer GET_VQUEUE within 30 ms"));
      const next = device.status();
      peer.reply(await peer.nextOf(Kind.GET_DEVICE_STATUS), (m) => m.status = 2);
      assertEquals(await next, 2);
    }, { requestTimeoutMs: 30 }),
);

cleanTest(
  "R37: to a vmsg device side that does not answer a new epoch is the reset",
  () =>
    withReady(async (rig) => {
      const { device, hellos, events, lines, wait } = rig;
      const told = userOf(rig);
      const { epoch } = hellos.at(-1)!;
      assertEquals((await failureOf(device.status())).code, "TIMEOUT");
      await wait(() => events.length === 3);
      assertEquals([events[0], events[2], told], ["ready", "ready", ["lost", "ready"]]);
      assert(hellos.at(-1)!.epoch !== epoch);
      assert(lines.some((line) => line.includes("did not answer GET_DEVICE_STATUS within 30 ms")));
    }, { requestTimeoutMs: 30 }),
);

cleanTest(
  "R24: time-outs are each request's own",
  () =>
    withForeignReady(async ({ reactor, device, side, peer }) => {
      const ends: number[] = [];
      const startMs = reactor.now();
      const ask = (of: RemoteDevice) =>
        failureOf(of.status()).then(() => ends.push(reactor.now() - startMs));
      const first = ask(device);
      await reactor.sleep(20);
      const second = ask(side.device(4));
      await Promise.all([first, second]);
      assertBetween(ends[0]!, 40, 41);
      assertBetween(ends[1]!, 60, 61);
      peer.messages.length = 0;
    }, { requestTimeoutMs: 40 }),
);

cleanTest(
  "R38 B23: a removed device is lost to its user, an added one is found again, and neither twice",
  () =>
    withForeignReady(async (rig) => {
      const { device, side, peer, reactor } = rig;
      const told = userOf(rig);
      const others = userOf({ ...rig, device: side.device(4) });
      const tell = async (...states: number[]) => {
        for (const state of states) {
          peer.send(Kind.EVENT_DEVICE, (m) => Object.assign(m, { number: 3, state }));
        }
        await reactor.sleep(1);
        return told.splice(0);
      };
      assertEquals(await tell(1, 1), [], "it is there already");
      const open = failureOf(device.queue(0));
      await peer.nextOf(Kind.GET_VQUEUE);
      assertEquals(await tell(2, 2), ["lost"]);
      assert((await open) instanceof PeerLost);
      assertEquals([side.isReady, device.isReady], [true, false]);
      assert((await failureOf(device.status())) instanceof PeerLost);
      device.available(0);
      await reactor.sleep(1);
      assertEquals(peer.messages.length, 0, "nothing is said to a device that is gone");
      assertEquals(await tell(1, 1), ["ready"]);
      assertEquals(await tell(3, 0), [], "no such state");
      assertEquals([others, device.isReady], [[], true]);
    }),
);

/** Turns of the loop take time, too. */
function assertBetween(ms: number, least: number, most: number): void {
  assert(ms >= least && ms < most, `${ms} ms`);
}

/** Fills the driver's queue, with a peer that takes nothing; undo lets it take. */
function standStill({ peer, device }: DriverRig): () => void {
  const incoming = peer.bus as unknown as { rung(): void };
  const { rung } = incoming;
  incoming.rung = () => {};
  for (let queue = 0; queue < 200; queue++) device.available(queue);
  return () => {
    incoming.rung = rung;
    incoming.rung();
  };
}

cleanTest(
  "a full queue: a request waits for room, and is not sent twice",
  () =>
    withReady(async (rig) => {
      const goOn = standStill(rig);
      const status = rig.device.status();
      await rig.reactor.sleep(3);
      goOn();
      let requests = 0;
      rig.peer.onMessage = (message) => {
        if (message.kind !== Kind.GET_DEVICE_STATUS) return;
        requests++;
        rig.peer.reply(message, (m) => m.status = 9);
      };
      assertEquals([await status, requests], [9, 1]);
    }, { capacity: 32 }),
);

cleanTest(
  "R24: a request that finds no room fails in time as well",
  () =>
    withReady(async (rig) => {
      standStill(rig);
      assertEquals((await failureOf(rig.device.status())).code, "TIMEOUT");
    }, { capacity: 32, requestTimeoutMs: 20 }),
);

cleanTest(
  "a request that waits for room when the device side is replaced is not sent to the next",
  () =>
    withReady(async (rig) => {
      const { peer, reactor, device, hello, hellos, events, wait } = rig;
      const goOn = standStill(rig);
      const failure = failureOf(device.status());
      await reactor.sleep(2);
      hello.epoch = DEVICE_EPOCH + 1;
      // The new one answers a HELLO that was sent before.
      answerHello(rig, hellos.at(-1)!);
      await wait(() => events.length === 3);
      assert((await failure) instanceof PeerLost);
      peer.onMessage = (message) => message.kind === Kind.GET_DEVICE_STATUS;
      goOn();
      await reactor.sleep(5);
      assertEquals(peer.messages, []);
    }, { capacity: 32 }),
);

// --- events --------------------------------------------------------------------------------------

cleanTest(
  "B6: with a full queue no available notification is lost, none is doubled",
  () =>
    withReady(async (rig) => {
      const goOn = standStill(rig);
      const { device, peer, wait } = rig;
      for (let queue = 0; queue < 200; queue++) device.available(queue);
      const counts = new Array(200).fill(0);
      peer.onMessage = ({ kind, index }) => {
        if (kind === Kind.EVENT_AVAIL) counts[index]++;
      };
      goOn();
      await wait(() => {
        (peer.bus as unknown as { rung(): void }).rung();
        return counts.every((count) => count > 0);
      });
      // Those that were out already when they were asked for again come twice, and rightly so.
      assertEquals(counts.slice(40).every((count) => count === 1), true);
    }, { capacity: 32 }),
);

cleanTest(
  "notifications of a lost device side are not sent to the next",
  () =>
    withReady(async (rig) => {
      const { peer, reactor, hello, hellos, events, wait } = rig;
      const goOn = standStill(rig);
      hello.epoch = DEVICE_EPOCH + 1;
      answerHello(rig, hellos.at(-1)!);
      await wait(() => events.length === 3);
      let count = 0;
      peer.onMessage = ({ kind }) => {
        if (kind === Kind.EVENT_AVAIL) count++;
      };
      goOn();
      await reactor.sleep(5);
      assert(count <= 31, "only those that were in the queue");
    }, { capacity: 32 }),
);

cleanTest(
  "R12 R13: EVENT_USED and EVENT_CONFIG reach their device, others are dropped",
  () =>
    withReady(async ({ side, device, peer, wait }) => {
      const seen: unknown[] = [];
      device.onUsed = (queue) => seen.push(queue);
      device.onConfig = (status, generation) => seen.push([status, generation]);
      const dropped = side.counters.dropped;
      peer.send(Kind.EVENT_USED, (m) => {
        m.device = 3;
        m.index = 1;
      });
      peer.send(Kind.EVENT_USED, (m) => m.device = 4);
      peer.send(Kind.EVENT_DEVICE, (m) => m.state = 1);
      peer.send(Kind.GET_DEVICE_STATUS, (m) => m.device = 3);
      peer.send(Kind.EVENT_CONFIG, (m) => {
        m.device = 3;
        m.status = 0x4f;
        m.generation = 7;
      });
      await wait(() => seen.length === 2);
      assertEquals([seen, side.counters.dropped], [[1, [0x4f, 7]], dropped + 3]);
    }),
);

cleanTest(
  "events before the device side is known are dropped",
  () =>
    withDriverSide(async ({ side, device, peer, wait }) => {
      let used = 0;
      device.onUsed = () => used++;
      peer.send(Kind.EVENT_USED, (m) => m.device = 3);
      await wait(() => side.counters.dropped === 1);
      assertEquals(used, 0);
    }, { answersHello: false }),
);

cleanTest(
  "G14: garbage is counted and said once, requests go on",
  () =>
    withReady(async ({ side, device, peer, lines }) => {
      for (let n = 0; n < 20; n++) peer.putBytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
      const status = device.status();
      peer.reply(await peer.nextOf(Kind.GET_DEVICE_STATUS), (m) => m.status = 3);
      assertEquals([await status, side.counters.malformed], [3, 20]);
      assertEquals(lines.filter((line) => line.includes("dropped a message")).length, 1);
    }),
);

// --- one request after another -------------------------------------------------------------------

cleanTest(
  "R2 R19 G3: features in blocks, split where a message is too short",
  () =>
    withReady(async (rig) => {
      const { device } = rig;
      const offered = device.features(14);
      const asked: [number, number][] = [];
      for (let n = 0; n < 2; n++) {
        const { index, count } = await serve(rig, Kind.GET_DEVICE_FEATURES, (m) => {
          m.index = [0, 12][n]!;
          m.count = [12, 2][n]!;
          for (let i = 0; i < m.count; i++) m.words[i] = 0x8000_0000 + m.index + i;
        });
        asked.push([index, count]);
      }
      assertEquals(asked, [[0, 12], [12, 2]]);
      const words = Array.from({ length: 14 }, (_, i) => 0x8000_0000 + i);
      assertEquals([...await offered], words);
      const done = device.setFeatures(Uint32Array.from(words));
      const written: number[] = [];
      for (let n = 0; n < 2; n++) {
        const { index, count, words } = await serve(rig, Kind.SET_DRIVER_FEATURES);
        assertEquals(index, written.length);
        written.push(...words.subarray(0, count));
      }
      await done;
      assertEquals(written, words);
    }),
);

/** A device side that answers GET_CONFIG with the generations of a list, then the last one forever. */
function serveGenerations({ peer }: DriverRig, generations: number[]): { reads: number } {
  const counted = { reads: 0 };
  peer.onMessage = (request) => {
    if (request.kind !== Kind.GET_CONFIG) return;
    const generation = generations[Math.min(counted.reads++, generations.length - 1)]!;
    peer.reply(request, (m) => {
      m.offset = request.offset;
      m.length = request.length;
      m.generation = generation;
      m.bytes.fill(generation, 0, m.length);
    });
  };
  return counted;
}

cleanTest(
  "R21: a read of one chunk never starts over; one that never settles ends",
  () =>
    withReady(async (rig) => {
      const counted = serveGenerations(rig, Array.from({ length: 100 }, (_, n) => n));
      await rig.device.config(0, 44);
      assertEquals(counted.reads, 1);
      assertEquals((await failureOf(rig.device.config(0, 60))).code, "CONFIG_UNSTABLE");
      assertEquals(counted.reads, 1 + 10);
    }),
);

cleanTest("G18: a short answer is an error, not zeros", () =>
  withReady(async (rig) => {
    const { device } = rig;
    const config = failureOf(device.config(0, 6));
    await serve(rig, Kind.GET_CONFIG, (m) => m.length = 2);
    assertEquals((await config).code, "BAD_ANSWER");
    const elsewhere = failureOf(device.config(4, 2));
    await serve(rig, Kind.GET_CONFIG, (m) => m.length = 2);
    assertEquals((await elsewhere).code, "BAD_ANSWER");
    const features = failureOf(device.features(2));
    await serve(rig, Kind.GET_DEVICE_FEATURES, (m) => m.count = 1);
    assertEquals((await features).code, "BAD_ANSWER");
  }));

cleanTest(
  "R35 R36: SET_CONFIG answers all, with or without the bytes, or nothing; else the device is broken",
  async () => {
    for (const dialect of ["v1", "v1-2025"] as const) {
      const ready = dialect === "v1" ? withReady : withDriverSide;
      await ready(async (rig) => {
        const { device } = rig;
        const write = async (length: number, omitData: number) => {
          const written = device.setConfig(2, new Uint8Array(4).fill(7)).catch(({ code }) => code);
          await serve(rig, Kind.SET_CONFIG, (m) => {
            Object.assign(m, { offset: 2, length, omitData, generation: device.generation });
          });
          return await written;
        };
        assertEquals(await write(4, 1), true);
        assertEquals(await write(4, 0), true);
        assertEquals(await write(0, 0), false);
        assertEquals(await write(3, 0), "BAD_ANSWER");
      }, { dialect });
    }
  },
);

cleanTest(
  "a reset that is waited for when the device side is replaced asks the next nothing",
  () =>
    withReady(async (rig) => {
      const { peer, reactor, device, hello, hellos, events, wait } = rig;
      const failure = failureOf(device.reset());
      await serve(rig, Kind.SET_DEVICE_STATUS, (m) => m.status = 0xf);
      await reactor.sleep(1);
      hello.epoch = DEVICE_EPOCH + 1;
      // The new one answers a HELLO that was sent before.
      answerHello(rig, hellos.at(-1)!);
      await wait(() => events.length === 3);
      assert((await failure) instanceof PeerLost);
      assertEquals(peer.messages, []);
    }),
);

cleanTest(
  "R3 R22: status answers the result, SET_VQUEUE enables, GET_VQUEUE tells",
  () =>
    withReady(async (rig) => {
      const { device } = rig;
      const status = device.setStatus(0xb);
      await serve(rig, Kind.SET_DEVICE_STATUS, (m) => m.status = 0x3);
      assertEquals(await status, 0x3);
      const setup = {
        size: 256,
        descriptorAddress: 0x1_0000_1000,
        driverAddress: 0x2000,
        deviceAddress: 0x3000,
        base: 0,
      };
      const started = device.startQueue(1, setup);
      const request = await serve(rig, Kind.SET_VQUEUE);
      const stored = (m: Message) => {
        const { queueSize, descriptorAddress, driverAddress, deviceAddress } = request;
        const at = { descriptorAddress, driverAddress, deviceAddress };
        Object.assign(m, { maxSize: 1024, queueSize, flags: QUEUE_ENABLED, ...at });
      };
      await serve(rig, Kind.GET_VQUEUE, stored);
      await started;
      assertEquals(
        [request.index, request.flags, request.queueSize, request.descriptorAddress],
        [1, QUEUE_ENABLED, 256, 0x1_0000_1000],
      );
      assertEquals([request.driverAddress, request.deviceAddress], [0x2000, 0x3000]);
      const queue = device.queue(1);
      await serve(rig, Kind.GET_VQUEUE, stored);
      const { base: _, ...there } = setup;
      assertEquals(await queue, { ...there, maxSize: 1024, enabled: true });
      const others: Fill[] = [
        (m) => m.flags = 0,
        (m) => m.queueSize = 128,
        (m) => m.deviceAddress = 0x4000,
        (m) => Object.assign(m, { flags: 0, queueSize: 0 }),
      ];
      for (const other of others) {
        const refused = failureOf(device.startQueue(1, setup));
        await serve(rig, Kind.SET_VQUEUE);
        await serve(rig, Kind.GET_VQUEUE, (m) => {
          stored(m);
          other(m);
        });
        assertEquals((await refused).code, "QUEUE_REFUSED");
      }
    }),
);

cleanTest(
  "R34: a queue at addresses that none can have is not even asked for",
  () =>
    withReady(async ({ device, peer, reactor }) => {
      const fine = { size: 8, descriptorAddress: 16, driverAddress: 2, deviceAddress: 4, base: 0 };
      for (
        const other of [
          { descriptorAddress: 8 },
          { driverAddress: 1 },
          { deviceAddress: 2 },
          { deviceAddress: 2 ** 53 },
        ]
      ) {
        const failure = await failureOf(device.startQueue(0, { ...fine, ...other }));
        assertEquals(failure.code, "QUEUE_ADDRESS");
      }
      await reactor.sleep(1);
      assertEquals(peer.messages.length, 0);
    }),
);

cleanTest(
  "R33: a device has started when it shows DRIVER_OK, and not when it needs a reset",
  () =>
    withReady(async (rig) => {
      const { device, peer, reactor } = rig;
      let isStarted = false;
      const started = device.start(0xf).then(() => isStarted = true);
      await serve(rig, Kind.SET_DEVICE_STATUS, (m) => m.status = 0xb);
      for (const status of [0xb, 0xb, 0xf]) {
        assertEquals(isStarted, false);
        peer.reply(await peer.nextOf(Kind.GET_DEVICE_STATUS), (m) => m.status = status);
      }
      await started;
      const broken = failureOf(device.start(0xf));
      await serve(rig, Kind.SET_DEVICE_STATUS, (m) => m.status = 0x4b);
      assertEquals((await broken).code, "NOT_STARTED");
      const never = failureOf(device.start(0xf));
      const startMs = reactor.now();
      peer.onMessage = (request) => {
        if (request.kind === Kind.HELLO) return answerHello(rig, request);
        peer.reply(request, (m) => m.status = 0xb);
      };
      assertEquals((await never).code, "TIMEOUT");
      assert(reactor.now() - startMs < 11_000);
    }),
);

cleanTest(
  "R11 R26: NOTIFICATION_DATA and NOTIF_CONFIG_DATA are not taken, whatever is offered",
  () =>
    withReady(async (rig) => {
      const features = rig.device.features(2);
      await serve(rig, Kind.GET_DEVICE_FEATURES, (m) => {
        m.count = 2;
        m.words.fill(0xffff_ffff, 0, 2);
      });
      assertEquals([...await features], [0xffff_ffff, 0xffff_ff3f]);
    }),
);

cleanTest(
  "private requests: epoch and device number in the payload, state before SET_VQUEUE",
  () =>
    withReady(async (rig) => {
      const { device, side } = rig;
      const setup = { ...RINGS, size: 8, base: 77 };
      const started = device.startQueue(2, setup);
      const state = await serve(rig, Kind.SET_VQUEUE_STATE);
      assertEquals(
        [state.device, state.memoryDevice, state.epoch, state.index, state.base],
        [0, 3, side.epoch, 2, 77],
      );
      await serve(rig, Kind.SET_VQUEUE);
      await serve(rig, Kind.GET_VQUEUE, (m) => {
        Object.assign(m, { ...RINGS, queueSize: 8, flags: QUEUE_ENABLED });
      });
      await started;
      const stopped = device.stopQueue(2);
      const stop = await serve(rig, Kind.STOP_VQUEUE, (m) => m.base = 79);
      assertEquals([stop.memoryDevice, stop.index, await stopped], [3, 2, 79]);
      const removed = failureOf(device.removeMemory(0x1000, 0x2000));
      const remove = await serve(rig, Kind.REMOVE_MEMORY, (m) => m.result = linuxErrno("EBUSY"));
      assertEquals([remove.memoryDevice, remove.address, remove.length], [3, 0x1000, 0x2000]);
      const error = await removed;
      assert(error instanceof RequestRefused);
      assertEquals([error.code, (error as RequestRefused).errno], ["REFUSED", linuxErrno("EBUSY")]);
      assertEquals(error.message, "device 3 refused REMOVE_MEMORY: EBUSY");
    }),
);

cleanTest(
  "ADD_MEMORY: the descriptor is there before its message, ordinals count",
  () =>
    withReady(async (rig) => {
      using fd = createSealedMemory("vmsg-test", 4096);
      for (const ordinal of [0, 1]) {
        const added = rig.device.addMemory(fd, 0x4000_0000, 4096, 512);
        const request = await rig.peer.nextOf(Kind.ADD_MEMORY);
        using received = rig.peer.bus.takeFd(request.ordinal);
        assert(received !== undefined);
        assertEquals(
          [request.ordinal, request.address, request.length, request.offset, request.flags],
          [ordinal, 0x4000_0000, 4096, 512, 0],
        );
        rig.peer.reply(request);
        await added;
      }
      assertEquals(fd.number >= 0, true, "the caller keeps owning it");
    }),
);

cleanTest(
  "ADD_MEMORY: no descriptor goes out before the device side is known",
  () =>
    withDriverSide(async ({ device, peer, reactor }) => {
      using fd = createSealedMemory("vmsg-test", 4096);
      assert((await failureOf(device.addMemory(fd, 0, 4096, 0))) instanceof PeerLost);
      await reactor.sleep(2);
      assertEquals(peer.bus.takeFd(0), undefined);
    }, { answersHello: false }),
);

// --- dialect proto -------------------------------------------------------------------------------

cleanTest(
  "proto: the peer is foreign at once, and there is no HELLO and no probe",
  () =>
    withDriverSide(async ({ side, events, peer, reactor }) => {
      assertEquals([side.peer, events], ["foreign", ["ready"]]);
      await reactor.sleep(10);
      assertEquals(peer.messages, []);
    }, { dialect: "proto" }),
);

cleanTest(
  "proto: SET_VQUEUE is not answered; two of a kind are answered in order",
  () =>
    withDriverSide(async ({ device, peer }) => {
      const setup = { ...RINGS, size: 8, base: 0 };
      await device.startQueue(1, setup);
      assertEquals((await peer.nextOf(Kind.SET_VQUEUE)).index, 1);
      const queues = [device.queue(0), device.queue(1)];
      for (const n of [0, 1]) {
        peer.reply(await peer.nextOf(Kind.GET_VQUEUE), (m) => {
          m.index = n;
          m.maxSize = 10 + n;
        });
      }
      assertEquals((await Promise.all(queues)).map(({ maxSize }) => maxSize), [10, 11]);
    }, { dialect: "proto" }),
);

cleanTest(
  "v1-2025: no HELLO either",
  () =>
    withDriverSide(async ({ side, events, peer, reactor }) => {
      assertEquals([side.peer, events], ["foreign", ["ready"]]);
      await reactor.sleep(10);
      assertEquals(peer.messages, []);
    }, { dialect: "v1-2025" }),
);
