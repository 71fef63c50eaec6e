/**
 * The device side: requests of any peer. Rules that a peer can be asked for are in tests/conformance; here
 * is what they look like from inside. Numbers are those of docs/wire.md, section 7.
 */

import { assert, assertEquals } from "@std/assert";
import { Kind, QUEUE_ENABLED } from "../../src/message/message.ts";
import { snapshot } from "../../src/observe/counters.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import { MAX_ANSWERS } from "../../src/transport/link.ts";
import { EPOCH, getQueue, RINGS, UNSET, withForeign, withSide } from "../support/device_rig.ts";
import {
  FAKE_DEVICE_ID,
  FAKE_FEATURES,
  FAKE_MAX_QUEUE_SIZE,
  FAKE_VENDOR_ID,
} from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";
import type { Fill } from "../support/raw_peer.ts";

// --- identity and features -----------------------------------------------------------------------

cleanTest(
  "V2: GET_DEVICE_INFO says what the device says",
  () =>
    withSide(async ({ peer }) => {
      const info = await peer.ask(Kind.GET_DEVICE_INFO);
      assertEquals(
        [info.deviceId, info.vendorId, info.featureBlocks, info.configSize, info.maxQueues],
        [FAKE_DEVICE_ID, FAKE_VENDOR_ID, 2, 12, 3],
      );
    }),
);

cleanTest(
  "V7: what was offered is judged at FEATURES_OK, and the device sees the words",
  () =>
    withForeign(async ({ peer, device, setStatus }) => {
      await setStatus(0x3);
      for (const [index, word] of [[0, 0x21], [1, 1]]) {
        await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
          m.index = index!;
          m.count = 1;
          m.words[0] = word!;
        });
      }
      assertEquals(device.takeCalls(), [], "judged at FEATURES_OK only");
      assertEquals(await setStatus(0xb), 0xb);
      assertEquals([device.takeCalls(), device.accepted], [["accept"], [0x21, 1]]);
      // Written again, it is not asked again.
      assertEquals(await setStatus(0xb), 0xb);
      assertEquals(device.takeCalls(), []);
    }),
);

cleanTest(
  "V7: a bit of a block that no device has is not forgotten",
  () =>
    withForeign(async ({ peer, device, setStatus }) => {
      for (const block of [2, 15, 16, 1000, 0xffff_ffff]) {
        await setStatus(0x3);
        for (const [index, word] of [[1, 1], [block, 0x8000]]) {
          await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
            m.index = index!;
            m.count = 1;
            m.words[0] = word!;
          });
        }
        assertEquals([await setStatus(0xb), device.takeCalls()], [0x3, []], `block ${block}`);
        await setStatus(0);
      }
    }),
);

cleanTest(
  "V7: FEATURES_OK is refused when the device refuses",
  () =>
    withForeign(async ({ device, peer, setStatus }) => {
      device.acceptsFeatures = false;
      await setStatus(0x3);
      await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
        m.count = 2;
        m.words[1] = 1;
      });
      assertEquals(await setStatus(0xb), 0x3);
      assertEquals(device.takeCalls(), ["accept"]);
    }),
);

cleanTest(
  "features are fixed by FEATURES_OK, which stays until a reset",
  () =>
    withForeign(async ({ device, peer, negotiate, setStatus }) => {
      await negotiate();
      device.takeCalls();
      await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
        m.count = 1;
        m.words[0] = 0x20;
      });
      // A driver must not clear a bit; one that does must not bring new features under running queues.
      assertEquals(await setStatus(0x7), 0xf);
      assertEquals(await setStatus(0xf), 0xf);
      assertEquals([device.takeCalls(), device.accepted], [["resume"], [0, 1]]);
    }),
);

// --- status and reset ----------------------------------------------------------------------------

cleanTest(
  "V9: status 0 stops the queues, and what that finds used is not for the new start",
  () =>
    withForeign(async ({ device, negotiate, setStatus, setQueue, quiet }) => {
      await negotiate();
      await setQueue(0);
      await setQueue(2);
      await setStatus(0xf);
      device.takeCalls();
      device.usedAtStop.add(0);
      assertEquals(await setStatus(0), 0);
      assertEquals(device.takeCalls(), ["stop 0", "stop 2"]);
      await quiet();
    }),
);

cleanTest(
  "EVENT_CONFIG: none before the first status; changes before there is room are one",
  () =>
    withForeign(async ({ device, peer, setStatus, quiet }) => {
      device.host.configChanged();
      await setStatus(1);
      await quiet();
      device.host.configChanged();
      device.host.configChanged();
      assertEquals((await peer.nextOf(Kind.EVENT_CONFIG)).generation, 3);
      await quiet();
    }),
);

cleanTest(
  "V18: NEEDS_RESET is announced, stays, is the device's own bit, and goes with reset",
  () =>
    withForeign(async ({ device, peer, setStatus, quiet, lines }) => {
      assertEquals(await setStatus(0x43), 0x3, "the driver cannot set it");
      await setStatus(0x7);
      device.host.needsReset("broken");
      device.host.needsReset("again");
      const event = await peer.nextOf(Kind.EVENT_CONFIG);
      assertEquals([event.status, event.length], [0x47, 0]);
      assertEquals(device.host.mayTouchMemory(), false);
      assertEquals(await setStatus(0x7), 0x47);
      await quiet();
      assertEquals(lines.filter((line) => line.includes("needs a reset")).length, 1);
      assertEquals(await setStatus(0), 0);
      assertEquals(await setStatus(0x7), 0x7);
      assertEquals(device.host.mayTouchMemory(), true);
    }),
);

cleanTest(
  "U3: no event before the first status write, also for what is broken",
  () =>
    withForeign(async ({ device, setQueue, quiet, peer }) => {
      device.startProblem = "nonsense";
      await setQueue(0);
      await quiet();
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0);
    }),
);

cleanTest(
  "V25: no memory before DRIVER_OK; resume when it comes, and only then",
  () =>
    withForeign(async ({ device, negotiate, setStatus }) => {
      assertEquals(device.host.mayTouchMemory(), false);
      await negotiate();
      assertEquals(device.host.mayTouchMemory(), false);
      device.takeCalls();
      await setStatus(0xf);
      assertEquals(device.takeCalls(), ["resume"]);
      assertEquals(device.host.mayTouchMemory(), true);
      await setStatus(0xf);
      assertEquals(device.takeCalls(), []);
    }),
);

// --- configuration -------------------------------------------------------------------------------

cleanTest(
  "GET_CONFIG across the end is zeros there; outside, or too long for a message, length 0 (G23)",
  () =>
    withForeign(async ({ peer, quiet }) => {
      const read = (offset: number, length: number): Fill => (m) => {
        m.offset = offset;
        m.length = length;
      };
      const nothing = await peer.ask(Kind.GET_CONFIG, read(12, 0));
      assertEquals([nothing.offset, nothing.length, nothing.size], [12, 0, 20]);
      const across = await peer.ask(Kind.GET_CONFIG, read(10, 4));
      assertEquals([...across.bytes.subarray(0, 4)], [11, 12, 0, 0]);
      for (const [at, size] of [[13, 1], [0xffff_ffff, 4], [0, 45], [0, 0xffff_ffff]] as const) {
        const none = await peer.ask(Kind.GET_CONFIG, read(at, size));
        assertEquals([none.offset, none.length, none.size], [at, 0, 20]);
      }
      await quiet();
    }),
);

cleanTest(
  "V37: the device is asked to write what is inside only; it may change or refuse it",
  () =>
    withForeign(async ({ peer, device }) => {
      const write = (offset: number, bytes: readonly number[]) =>
        peer.ask(Kind.SET_CONFIG, (m) => {
          m.offset = offset;
          m.length = bytes.length;
          m.bytes.set(bytes);
        });
      await write(4, [0xa, 0xb]);
      for (
        const [offset, bytes] of [[11, [1, 2]], [12, [1]], [0xffff_ffff, [1]], [3, []]] as const
      ) {
        const refused = await write(offset, bytes);
        assertEquals([refused.offset, refused.length, refused.size], [offset, 0, 20]);
      }
      assertEquals(device.takeCalls(), ["config 4+2"]);
      device.acceptsConfig = false;
      assertEquals((await write(0, [9])).length, 0);
      device.writeConfig = (offset, bytes) => {
        device.config[offset] = bytes[0]! & 0x0f;
        return true;
      };
      const answer = await write(0, [0xff]);
      assertEquals([answer.length, answer.bytes[0]], [1, 0x0f]);
    }),
);

// --- queues --------------------------------------------------------------------------------------

cleanTest(
  "SET_VQUEUE: the device gets the ring, and is told to look at it",
  () =>
    withForeign(async ({ device, setQueue, negotiate }) => {
      await negotiate();
      device.takeCalls();
      await setQueue(1);
      // Nobody kicks for what is there already.
      assertEquals(device.takeCalls(), ["start 1", "available 1"]);
      assertEquals(device.setups, [{ ...RINGS, size: 64, base: 0 }]);
    }),
);

const FIELDS_OF_QUEUE = [
  "queueSize",
  "descriptorAddress",
  "driverAddress",
  "deviceAddress",
] as const;
/** SET_VQUEUE's three-step form: what is stored is enabled. */
const ENABLE_STORED = 0x3d;

cleanTest(
  "V45 V46 V47: SET_VQUEUE 0 and 2 store, what bits 2 to 5 name stays, 0x3d enables what is stored",
  () =>
    withForeign(async (rig) => {
      const { device, setQueue, negotiate } = rig;
      await negotiate();
      device.takeCalls();
      const stored = { ...UNSET, queueSize: 64, ...RINGS };
      for (const flags of [0, 2]) {
        await setQueue(1, (m) => m.flags = flags);
        assertEquals(await getQueue(rig, 1), stored);
      }
      const elsewhere: Fill = (m) => {
        m.queueSize = 32;
        m.descriptorAddress = 0x5000;
        m.driverAddress = 0x6000;
        m.deviceAddress = 0x7000;
      };
      // Each of the four is kept in turn, the other three are taken.
      for (const [bit, field] of FIELDS_OF_QUEUE.entries()) {
        await setQueue(1, (m) => m.flags = 0);
        await setQueue(1, (m) => {
          elsewhere(m);
          m.flags = 4 << bit;
        });
        const now = await getQueue(rig, 1);
        for (const other of FIELDS_OF_QUEUE) {
          assertEquals(now[other] === stored[other], other === field, `${other}, ${field} kept`);
        }
      }
      await setQueue(1, (m) => m.flags = 0);
      assertEquals(device.takeCalls(), [], "nothing of this is the device's business");
      await setQueue(1, (m) => {
        elsewhere(m);
        m.flags = ENABLE_STORED;
      });
      assertEquals(device.takeCalls(), ["start 1", "available 1"]);
      assertEquals(device.setups, [{ ...RINGS, size: 64, base: 0 }]);
      assertEquals(await getQueue(rig, 1), { ...stored, flags: QUEUE_ENABLED });
    }),
);

cleanTest(
  "V45: what is stored goes with a reset, and EVENT_AVAIL for it is dropped",
  () =>
    withForeign(async (rig) => {
      const { device, peer, setQueue, setStatus, negotiate, quiet } = rig;
      await negotiate();
      await setQueue(1, (m) => m.flags = 0);
      device.takeCalls();
      peer.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
      await quiet();
      await setStatus(0);
      assertEquals(device.takeCalls(), [], "it never had the queue");
      assertEquals(await getQueue(rig, 1), UNSET);
      await negotiate();
      device.takeCalls();
      await setQueue(1, (m) => m.flags = ENABLE_STORED);
      assertEquals([device.takeCalls(), await getQueue(rig, 1)], [[], UNSET], "nothing is stored");
    }),
);

/** SET_VQUEUE that nothing may come of, whatever else it says. */
const IMPOSSIBLE: readonly (readonly [what: string, fill: Fill])[] = [
  ["operation 3", (m) => m.flags |= 3],
  ["bit 6", (m) => m.flags |= 0x40],
  ["bit 31", (m) => m.flags += 0x8000_0000],
  ["the word at 12", (m) => m.mustBeZero = 1],
  ["size 0", (m) => m.queueSize = 0],
  ["size 3", (m) => m.queueSize = 3],
  ["size max + 1", (m) => m.queueSize = FAKE_MAX_QUEUE_SIZE + 1],
  ["size 2 max", (m) => m.queueSize = 2 * FAKE_MAX_QUEUE_SIZE],
  ["size 2^32 - 1", (m) => m.queueSize = 0xffff_ffff],
  ["a descriptor area at 8", (m) => m.descriptorAddress = 0x1008],
  ["a driver area at 1", (m) => m.driverAddress = 0x2001],
  ["a device area at 2", (m) => m.deviceAddress = 0x3002],
  ["an address of 2^63", (m) => m.deviceAddress = 2 ** 63],
  ["index max", (m) => m.index = 3],
  ["index 2^32 - 1", (m) => m.index = 0xffff_ffff],
];

cleanTest(
  "V49 V50 V51: SET_VQUEUE with something that cannot be leaves all as it was, and is answered",
  () =>
    withForeign(async (rig) => {
      const { device, setQueue, setStatus, negotiate, quiet } = rig;
      await negotiate();
      device.takeCalls();
      for (const [what, fill] of IMPOSSIBLE) {
        for (const flags of [0, QUEUE_ENABLED, 2]) {
          const bad: Fill = (m) => {
            m.flags = flags;
            fill(m);
          };
          await setQueue(1, bad);
          assertEquals(await getQueue(rig, 1), UNSET, `${what}, on an unset queue`);
          await setQueue(2, (m) => m.flags = 0);
          const stored = await getQueue(rig, 2);
          await setQueue(2, (m) => {
            bad(m);
            if (m.index === 1) m.index = 2;
          });
          assertEquals(await getQueue(rig, 2), stored, `${what}, on a stored queue`);
        }
      }
      assertEquals(device.takeCalls(), []);
      await quiet();
      assertEquals(await setStatus(0xf), 0xf, "the device needs no reset");
    }),
);

cleanTest(
  "V48: SET_VQUEUE changes nothing of an enabled queue, whatever the operation",
  () =>
    withForeign(async (rig) => {
      const { device, setQueue, setStatus, negotiate } = rig;
      await negotiate();
      await setStatus(0xf);
      await setQueue(0);
      const running = await getQueue(rig, 0);
      device.takeCalls();
      for (const flags of [0, 1, 2, 3, 0x3c, 0x3d, 0x3e]) {
        await setQueue(0, (m) => {
          m.flags = flags;
          m.queueSize = 32;
          m.descriptorAddress = 0x8000;
        });
        assertEquals(await getQueue(rig, 0), running, `flags ${flags}`);
      }
      assertEquals(device.takeCalls(), []);
    }),
);

cleanTest(
  "V50: rings that the device cannot open leave all as it was; it needs no reset",
  () =>
    withForeign(async (rig) => {
      const { device, setQueue, setStatus, negotiate, quiet } = rig;
      await negotiate();
      device.startProblem = "descriptor area outside memory";
      await setQueue(0);
      assertEquals(await getQueue(rig, 0), UNSET);
      await setQueue(0, (m) => m.flags = 0);
      const stored = await getQueue(rig, 0);
      await setQueue(0, (m) => m.queueSize = 32);
      assertEquals(await getQueue(rig, 0), stored);
      await quiet();
      assertEquals(await setStatus(0xf), 0xf);
      assert(rig.lines.some((line) => line.includes("queue 0: descriptor area outside memory")));
      device.startProblem = undefined;
      await setQueue(0, (m) => m.flags = ENABLE_STORED);
      assertEquals(await getQueue(rig, 0), { ...stored, flags: QUEUE_ENABLED });
    }),
);

cleanTest(
  "v1-2025: SET_VQUEUE again sets the queue anew; rings that cannot be break the device",
  () =>
    withForeign(async (rig) => {
      const { device, setQueue, setStatus, negotiate, peer } = rig;
      await negotiate();
      await setStatus(0xf);
      await setQueue(0);
      device.takeCalls();
      await setQueue(0, (m) => m.queueSize = 32);
      assertEquals(device.takeCalls(), ["stop 0", "start 0", "available 0"]);
      assertEquals((await getQueue(rig, 0)).queueSize, 32);
      await peer.ask(Kind.RESET_VQUEUE);
      assertEquals(device.takeCalls(), ["stop 0"], "without RING_RESET");
      device.startProblem = "descriptor area outside memory";
      await setQueue(0);
      assertEquals((await peer.nextOf(Kind.EVENT_CONFIG)).status, 0x4f);
      assertEquals(await getQueue(rig, 0), UNSET);
    }, { dialect: "v1-2025" }),
);

cleanTest(
  "V22 G15: EVENT_AVAIL for a queue that is not set up is dropped, for another it arrives",
  () =>
    withForeign(async ({ peer, device, side, setQueue, negotiate, setStatus, quiet }) => {
      await negotiate();
      await setQueue(1);
      await setStatus(0xf);
      device.takeCalls();
      const dropped = side.counters.dropped;
      for (const index of [0, 3, 0xffff_ffff]) peer.send(Kind.EVENT_AVAIL, (m) => m.index = index);
      await quiet();
      assertEquals([device.takeCalls(), side.counters.dropped], [[], dropped + 3]);
      assertEquals(side.counters["no such queue"], 3);
      peer.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
      await quiet();
      assertEquals(device.takeCalls(), ["available 1"]);
    }),
);

/** Block 1: VERSION_1 and RING_RESET. */
const WITH_RING_RESET = { device: { features: [FAKE_FEATURES[0]!, 0x101] } };

cleanTest(
  "V24 V42: RESET_VQUEUE stops the queue and shows it unset",
  () =>
    withForeign(async (rig) => {
      const { peer, device, setQueue, negotiate, quiet } = rig;
      await negotiate(0x101);
      await setQueue(1);
      device.takeCalls();
      device.usedAtStop.add(1);
      await peer.ask(Kind.RESET_VQUEUE, (m) => m.index = 1);
      assertEquals(device.takeCalls(), ["stop 1"]);
      assertEquals(await getQueue(rig, 1), UNSET);
      await setQueue(0, (m) => m.flags = 0);
      for (const index of [0, 1, 3, 0xffff_ffff]) {
        await peer.ask(Kind.RESET_VQUEUE, (m) => m.index = index);
      }
      assertEquals([device.takeCalls(), await getQueue(rig, 0)], [[], UNSET]);
      await quiet();
    }, WITH_RING_RESET),
);

cleanTest(
  "V52: RESET_VQUEUE without RING_RESET is answered, and the queue runs on",
  () =>
    withForeign(async (rig) => {
      const { peer, device, setQueue, setStatus, negotiate } = rig;
      await negotiate();
      await setQueue(1);
      await setStatus(0xf);
      const running = await getQueue(rig, 1);
      device.takeCalls();
      await peer.ask(Kind.RESET_VQUEUE, (m) => m.index = 1);
      assertEquals([device.takeCalls(), await getQueue(rig, 1)], [[], running]);
    }, WITH_RING_RESET),
);

cleanTest(
  "V53 V54: GET_DEVICE_FEATURES shows what is offered, always; the chosen set is built in blocks",
  () =>
    withForeign(async ({ peer, device, setStatus }) => {
      const offered = async () => {
        const { words } = await peer.ask(Kind.GET_DEVICE_FEATURES, (m) => m.count = 2);
        return [...words.subarray(0, 2)];
      };
      const choose = (index: number, word: number) =>
        peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
          m.index = index;
          m.count = 1;
          m.words[0] = word;
        });
      await setStatus(3);
      assertEquals(await offered(), [...FAKE_FEATURES]);
      await choose(0, 0x21);
      await choose(1, 1);
      assertEquals(await offered(), [...FAKE_FEATURES]);
      await choose(0, 0x20);
      assertEquals(await setStatus(0xb), 0xb);
      assertEquals(device.accepted, [0x20, 1]);
      assertEquals(await offered(), [...FAKE_FEATURES]);
    }),
);

cleanTest(
  "V58 V59: SET_CONFIG of length 0 changes nothing; a write and a change have new generations",
  () =>
    withForeign(async ({ peer, device, setStatus }) => {
      const write = async (bytes: readonly number[]) => {
        const answer = await peer.ask(Kind.SET_CONFIG, (m) => {
          m.length = bytes.length;
          m.bytes.set(bytes);
        });
        return [answer.length, answer.size, answer.generation];
      };
      const generation = async () =>
        (await peer.ask(Kind.GET_CONFIG, (m) => m.length = 1)).generation;
      await setStatus(1);
      const first = await generation();
      assertEquals(await write([]), [0, 20, first]);
      assertEquals(device.takeCalls(), []);
      assertEquals(await write([7]), [1, 21, first + 1]);
      assertEquals(await generation(), first + 1);
      device.acceptsConfig = false;
      assertEquals(await write([8]), [0, 20, first + 1]);
      device.host.configChanged();
      const told = await peer.nextOf(Kind.EVENT_CONFIG);
      assertEquals([told.generation, told.offset, told.length], [first + 2, 0, 0], "V60");
    }),
);

cleanTest(
  "V28: two devices are two devices",
  () =>
    withForeign(async ({ peer, device, fifth, setStatus }) => {
      assertEquals(await setStatus(3, 5), 3);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0);
      const answer = await peer.ask(Kind.GET_DEVICE_STATUS, (m) => m.device = 5);
      assertEquals([answer.device, answer.status], [5, 3]);
      fifth.host.configChanged();
      assertEquals((await peer.nextOf(Kind.EVENT_CONFIG)).device, 5);
      assertEquals([device.calls, fifth.calls], [[], []]);
    }),
);

// --- notifications and room ----------------------------------------------------------------------

cleanTest(
  "V26: one EVENT_USED for several buffers of a turn",
  () =>
    withForeign(async ({ device, peer, quiet }) => {
      device.host.used(2);
      device.host.used(0);
      device.host.used(2);
      const events = [await peer.nextOf(Kind.EVENT_USED), await peer.nextOf(Kind.EVENT_USED)];
      assertEquals(events.map(({ index }) => index), [2, 0]);
      await quiet();
    }),
);

cleanTest(
  "B6: a full queue loses no notification, and answers still have room",
  () =>
    withForeign(async ({ device, fifth, peer, side, reactor, setStatus }) => {
      await setStatus(1);
      // The peer stands still: nothing is taken from the queue of 31 messages.
      const incoming = peer.bus as unknown as { rung(): void };
      const { rung } = incoming;
      incoming.rung = () => {};
      for (let n = 0; n < 40; n++) {
        device.host.used(n % 3);
        fifth.host.used(n % 3);
        await reactor.sleep(0);
      }
      device.host.configChanged();
      await reactor.sleep(3);
      assertEquals(side.counters.unansweredFull, 0);
      // ANSWER_RESERVE slots were left for answers.
      for (let n = 0; n < 16; n++) peer.send(Kind.PING, (m) => m.data = n);
      await reactor.sleep(2);
      assertEquals(side.counters.unansweredFull, 0);
      incoming.rung = rung;
      incoming.rung();
      await reactor.sleep(5);
      const messages = peer.messages.splice(0);
      const pings = messages.filter(({ kind }) => kind === Kind.PING).map(({ data }) => data);
      assertEquals(pings, Array.from({ length: 16 }, (_, n) => n), "G13: in order");
      const last = (kind: Kind, number: number, index: number) =>
        messages.some((m) => m.kind === kind && m.device === number && m.index === index);
      for (const index of [0, 1, 2]) {
        assert(last(Kind.EVENT_USED, 0, index), `queue ${index} of device 0`);
        assert(last(Kind.EVENT_USED, 5, index), `queue ${index} of device 5`);
      }
      assert(last(Kind.EVENT_CONFIG, 0, 0));
    }, { capacity: 32 }),
);

cleanTest(
  "G23: each request has its answer also when the queue is full, in order, and events behind them",
  () =>
    withForeign(async ({ device, peer, side, reactor, setStatus }) => {
      await setStatus(1);
      const stream = peer.bus as unknown as { rung(): void };
      const { rung } = stream;
      stream.rung = () => {};
      // 31 fit. More than ever wait are asked, by one who reads nothing: what is too much is not even taken.
      const asked = 31 + MAX_ANSWERS + 40;
      let sent = 0;
      for (let turn = 0; turn < 200 && sent < asked; turn++) {
        for (; sent < asked && peer.bus.claim() >= 0; sent++) {
          peer.send(Kind.PING, (m) => m.data = sent);
        }
        await reactor.sleep(1);
      }
      assert(sent < asked, "who reads nothing stands still in the end");
      assertEquals(side.counters.received, 2 + 31 + MAX_ANSWERS);
      device.host.used(1);
      await reactor.sleep(3);
      stream.rung = rung;
      const data: number[] = [];
      while (data.length < asked) {
        stream.rung();
        for (; sent < asked && peer.bus.claim() >= 0; sent++) {
          peer.send(Kind.PING, (m) => m.data = sent);
        }
        await reactor.sleep(1);
        for (const message of peer.messages.splice(0)) {
          if (message.kind === Kind.PING) data.push(message.data);
          else assert(data.length > MAX_ANSWERS, "an event before answers that waited");
        }
      }
      assertEquals(data, Array.from({ length: asked }, (_, n) => n));
      assertEquals(side.counters.unansweredFull, 0);
    }, { capacity: 32 }),
);

cleanTest(
  "G23: answers that wait go with their driver side",
  () =>
    withSide(async ({ peer, greet, reactor }) => {
      await greet();
      const stream = peer.bus as unknown as { rung(): void };
      const { rung } = stream;
      stream.rung = () => {};
      for (let n = 0; n < 20; n++) {
        peer.send(Kind.PING, (m) => m.data = n);
        await reactor.sleep(1);
      }
      // A driver side of another epoch: what waited is not for it.
      peer.send(
        Kind.HELLO,
        (m) => Object.assign(m, { epoch: EPOCH + 1, version: PRIVATE_VERSION }),
      );
      await reactor.sleep(3);
      stream.rung = rung;
      stream.rung();
      await reactor.sleep(5);
      const kinds = peer.messages.splice(0).map(({ kind }) => kind);
      assertEquals(kinds.length, 7 + 1, "seven were in the queue");
      assertEquals(kinds.at(-1), Kind.HELLO);
    }, { capacity: 8 }),
);

// --- bus messages --------------------------------------------------------------------------------

cleanTest("B8 B10 B18 B19: GET_DEVICES windows", () =>
  withSide(async ({ peer }) => {
    const window = async (offset: number, count: number) => {
      const answer = await peer.ask(Kind.GET_DEVICES, (m) => {
        m.offset = offset;
        m.count = count;
      });
      assertEquals([answer.offset, answer.size], [offset, 14 + Math.ceil(answer.count / 8)]);
      const bytes = [...answer.bytes.subarray(0, Math.ceil(answer.count / 8))];
      return [answer.count, answer.nextOffset, bytes];
    };
    assertEquals(await window(0, 32), [32, 0, [0x21, 0, 0, 0]]);
    assertEquals(await window(0, 4), [4, 5, [0x01]]);
    assertEquals(await window(5, 8), [8, 0, [0x01]]);
    assertEquals(await window(3, 4), [4, 0, [0x04]]);
    assertEquals(await window(6, 8), [8, 0, [0]]);
    assertEquals(await window(1, 0), [0, 5, []]);
    const [count, next, bytes] = await window(0, 0xffff) as [number, number, number[]];
    assertEquals([count, next, bytes.length], [400, 0, 50]);
    assertEquals((await window(0xffff, 0xffff))[1], 0);
  }));

cleanTest(
  "G14: garbage is counted, and so is an answer that nobody asked for",
  () =>
    withForeign(async ({ peer, side, quiet }) => {
      const before = snapshot(side.counters);
      const nonsense = [
        [0x00, 0x3f, 0, 0, 1, 0, 8, 0], // unknown id
        [0x02, 0x3f, 0, 0, 1, 0, 8, 0],
        [0x00, 0x02, 0, 0, 1, 0, 7, 0], // sizes
        [0x00, 0x02, 0, 0, 1, 0, 0, 0],
        [0x00, 0x02, 0, 0, 1, 0, 0xff, 0xff],
        [0x00, 0x09, 0, 0, 1, 0, 8, 0], // GET_VQUEUE without its index
        [0x00, 0x41, 0, 0, 0, 0, 15, 0], // G15: EVENT_AVAIL too short
        [0x00, 0x41, 0, 0, 0, 0, 17, 0], // G19: and too long
        [0x01, 0x41, 0, 0, 0, 0, 16, 0], // G22: an event with the answer bit
        [0x03, 0x40, 0, 0, 0, 0, 12, 0],
      ];
      for (const bytes of nonsense) peer.putBytes(bytes);
      await quiet();
      assertEquals(side.counters.malformed, before.malformed + nonsense.length);
      // G15 and G19, by cause.
      assertEquals([side.counters.short >= before.short + 1, side.counters.long], [
        true,
        before.long + 1,
      ]);
      // An answer is no request.
      peer.putBytes([0x01, 0x07, 0, 0, 1, 0, 12, 0, 3, 0, 0, 0]);
      await quiet();
      assertEquals(side.counters.dropped, before.dropped + 1);
      assertEquals(side.counters["not asked for"], before["not asked for"] + 1);
    }),
);
