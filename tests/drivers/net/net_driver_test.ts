/** The user-space driver and a device side that does what it must not. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../../src/linux/errors.ts";
import { mapAnonymous, type Mapping } from "../../../src/linux/mapping.ts";
import { Kind, type Message } from "../../../src/message/message.ts";
import { createLog } from "../../../src/observe/log.ts";
import { knownMemory } from "../../../src/sharing/driver_memory.ts";
import { NetConfig } from "../../../src/virtio/net_header.ts";
import { NetFeature } from "../../../src/virtio/features.ts";
import { NetDriver } from "../../../src/drivers/net/net_driver.ts";
import type { RingFormat } from "../../../src/drivers/own_features.ts";
import { type DriverRig, withDriverSide } from "../../support/driver_rig.ts";
import { cleanTest } from "../../support/leaks.ts";
import { SetQueues } from "../../support/raw_peer.ts";

const AT = 0x1000_0000;
const TRANSMIT = 1;
const NEEDS_RESET = 0x40;
const FRAME_SIZE = 64;
const TRANSMIT_BUFFERS = 128;
const SIZE = 16 << 20;

interface Rig extends DriverRig {
  readonly driver: NetDriver;
  readonly memory: Mapping;
  readonly downs: string[];
  /** What ended a bring-up. */
  readonly failures: unknown[];
  /** How many pairs the listener was told of. */
  readonly inUse: number[];
  /** Where the used ring of a queue lies in the memory. */
  readonly used: number[];
}

/** What the device has: its features' first word, and its queue pairs; and how many the driver would use. */
const ONE_PAIR = { features: 0, pairs: 1, wanted: 1 };

/** A driver that is up, in memory that the test writes as its device. */
async function withDriver(
  body: (rig: Rig) => Promise<void>,
  { features, pairs, wanted, rings }: typeof ONE_PAIR & { rings?: RingFormat } = ONE_PAIR,
): Promise<void> {
  using memory = mapAnonymous(SIZE);
  await withDriverSide(async (rig) => {
    const { peer } = rig;
    const used: number[] = [];
    const greets = peer.onMessage!;
    const queues = new SetQueues();
    const answer = (request: Message) =>
      peer.reply(request, (m) => {
        m.deviceId = 1;
        m.featureBlocks = 2;
        m.configSize = 12;
        m.maxQueues = 2 * pairs + (pairs > 1 ? 1 : 0);
        m.offset = request.offset;
        m.length = request.length;
        if (request.offset === NetConfig.PAIRS) m.bytes[0] = pairs;
        m.index = request.index;
        m.count = request.count;
        if (request.kind !== Kind.GET_CONFIG) m.words.set([features, 1]);
        m.status = request.status;
        queues.answer(request, m);
      });
    peer.onMessage = (message) => {
      if (message.kind === Kind.HELLO) return greets(message);
      if (message.kind === Kind.EVENT_AVAIL) return false;
      if (message.kind === Kind.SET_VQUEUE) used[message.index] = message.deviceAddress - AT;
      answer(message);
      return false;
    };
    const downs: string[] = [];
    const inUse: number[] = [];
    const listener = {
      pairs: (count: number) => inUse.push(count),
      up: () => {},
      down: (reason: string) => downs.push(reason),
      frame: () => true,
      writable: () => {},
    };
    const log = createLog("test", "info", (line) => rig.lines.push(line));
    const shared = knownMemory(memory, AT);
    using driver = new NetDriver(rig.reactor, rig.side, 3, listener, log, {
      memory: shared,
      pairs: wanted,
      rings,
    });
    const failures: unknown[] = [];
    driver.failed = (error) => failures.push(error);
    await rig.wait(() => driver.isUp || failures.length > 0);
    await body({ ...rig, driver, memory, downs, used, inUse, failures });
  });
}

cleanTest(
  "driver: a device that breaks the transmit queue while frames wait takes it down",
  () =>
    withDriver(async ({ reactor, driver, memory, downs, used }) => {
      for (let i = 0; i < TRANSMIT_BUFFERS; i++) {
        assert(driver.claim());
        driver.send(FRAME_SIZE);
      }
      await reactor.sleep(1);
      // One buffer comes back as it should, the next is none.
      const ring = new DataView(memory.buffer, used[TRANSMIT]);
      ring.setUint32(4, 0, true);
      ring.setUint32(12, 0xffff, true);
      ring.setUint16(2, 2, true);
      assert(!driver.claim());
      assertEquals(downs, ["the device broke a queue"]);
      assertEquals(driver.counters.badQueues, 1);
    }),
);

cleanTest(
  "driver: a device that needs a reset again and again is brought up each time",
  () =>
    withDriver(async ({ driver, peer, wait, downs }) => {
      for (let i = 0; i < 20; i++) {
        peer.send(Kind.EVENT_CONFIG, (m) => {
          m.device = 3;
          m.status = NEEDS_RESET;
        });
        await wait(() => downs.length === i + 1);
        await wait(() => driver.isUp);
      }
    }),
);

cleanTest(
  "driver: memory at an odd address is refused in words, before anything is set up",
  () =>
    withDriver(({ memory }) => {
      assertThrows(() => knownMemory(memory, AT + 8), VmsgError, "multiple of 4096");
      return Promise.resolve();
    }),
);

const SEVERAL = { features: 1 << NetFeature.MQ | 1 << NetFeature.CTRL_VQ, pairs: 2, wanted: 2 };
const CONTROL = 4;
/** Where the command lies, and what the device makes of it. */
const [COMMAND, ACK] = [4096, 4100];

for (const [what, ack, told] of [["accepts", 0, [2]], ["refuses", 1, []]] as const) {
  cleanTest(
    `driver: a device that ${what} two queue pairs`,
    () =>
      withDriver(async ({ memory, used, peer, wait, inUse, lines, driver, downs }) => {
        const bytes = new Uint8Array(memory.buffer);
        await wait(() => bytes[COMMAND] === 4);
        assertEquals([...bytes.slice(COMMAND, COMMAND + 4)], [4, 0, 2, 0]);
        assertEquals(inUse, [], "one until it is answered");
        bytes[ACK] = ack;
        const ring = new DataView(memory.buffer, used[CONTROL]);
        ring.setUint32(4, 0, true);
        ring.setUint32(8, 1, true);
        ring.setUint16(2, 1, true);
        peer.send(Kind.EVENT_USED, (m) => Object.assign(m, { device: 3, index: CONTROL }));
        const isSaid = () => lines.some((line) => line.includes("refuses 2 queue pairs"));
        await wait(() => inUse.length > 0 || isSaid());
        assertEquals([inUse, isSaid(), driver.isUp, downs], [[...told], ack === 1, true, []]);
      }, SEVERAL),
  );
}

cleanTest(
  "driver: a device that has more queue pairs, or none but one, and one that is lost while it is asked",
  async () => {
    await withDriver(async ({ memory, wait, peer, downs, driver }) => {
      const bytes = new Uint8Array(memory.buffer);
      await wait(() => bytes[COMMAND] === 4);
      assertEquals([...bytes.slice(COMMAND, COMMAND + 4)], [4, 0, 2, 0]);
      peer.send(Kind.EVENT_CONFIG, (m) => Object.assign(m, { device: 3, status: NEEDS_RESET }));
      await wait(() => downs.length === 1 && driver.isUp);
    }, { ...SEVERAL, pairs: 8 });
    await withDriver(({ driver, inUse }) => {
      assert(driver.isUp);
      assertEquals(inUse, []);
      return Promise.resolve();
    }, { ...ONE_PAIR, wanted: 2 });
  },
);

cleanTest(
  "driver: packed rings that the device does not offer are refused in words",
  () =>
    withDriver(({ failures }) => {
      const [failure] = failures;
      assert(failure instanceof VmsgError && failure.code === "NO_PACKED_RINGS", `${failure}`);
      return Promise.resolve();
    }, { ...ONE_PAIR, rings: "packed" }),
);
