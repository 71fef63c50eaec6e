/** Rings of a kernel's bridge and its own frames: cursors, and the bytes that the document gives. */

import { assertEquals } from "@std/assert";
import {
  BridgeId,
  bridgeIdOf,
  endpointLimitOf,
  epochOf,
  mapRequestOf,
  offlineReasonOf,
  writeMapAnswer,
  writeTopology,
} from "../../src/bus/bridge_frames.ts";
import {
  BRIDGE_RING,
  BRIDGE_SLOT,
  BridgeConsumer,
  BridgeProducer,
} from "../../src/bus/bridge_ring.ts";

const PROD = 0, CONS = 1;
const NEAR_END = 0xffff_ff80;

/** A ring somewhere in memory, and its header. */
function ringOf<R extends BridgeProducer | BridgeConsumer>(ring: R) {
  const memory = { address: 0n, buffer: new ArrayBuffer(BRIDGE_RING + 64), size: BRIDGE_RING + 64 };
  ring.begin(memory, 64);
  const words = new Uint32Array(memory.buffer, 64, BRIDGE_RING / 4);
  return { ring, words };
}

function send(ring: BridgeProducer, value: number): boolean {
  const at = ring.claim();
  if (at < 0) return false;
  ring.view.setUint32(at, value, true);
  ring.publish();
  return true;
}

Deno.test("bridge ring: the header is as the kernel wants it, and of it only our cursor is written", () => {
  const { ring, words } = ringOf(new BridgeProducer());
  assertEquals([...words.subarray(0, 6)], [0, 0, 256, 128, 0, 0]);
  send(ring, 1);
  assertEquals([...words.subarray(0, 7)], [1, 0, 256, 128, 0, 0, 1]);
  assertEquals([...ringOf(new BridgeConsumer()).words.subarray(0, 6)], [0, 0, 256, 128, 0, 0]);
});

Deno.test("bridge ring: 256 frames, then none until the kernel has read one", () => {
  const { ring, words } = ringOf(new BridgeProducer());
  for (let i = 0; i < 256; i++) assertEquals(send(ring, i), true);
  assertEquals([send(ring, 0), ring.free, ring.isRead, words[PROD]], [false, 0, false, 256]);
  words[CONS] = 3;
  assertEquals([ring.free, send(ring, 256), send(ring, 257)], [3, true, true]);
  assertEquals([words[6], words[6 + BRIDGE_SLOT / 4]], [256, 257], "slots are used again in turn");
  words[CONS] = 258;
  assertEquals([ring.isRead, ring.free], [true, 256]);
});

Deno.test("bridge ring: cursors go round at 2^32", () => {
  const slot = new Uint32Array(BRIDGE_SLOT / 4);
  const producer = ringOf(new BridgeProducer()), consumer = ringOf(new BridgeConsumer());
  // As far as it takes: each is shown that the other keeps up.
  Object.assign(producer.ring, { own: NEAR_END, other: NEAR_END, shown: NEAR_END });
  Object.assign(consumer.ring, { own: NEAR_END, other: NEAR_END });
  producer.words.set([NEAR_END, NEAR_END]);
  consumer.words.set([NEAR_END, NEAR_END]);
  for (let i = 0; i < 256; i++) assertEquals(send(producer.ring, i), true);
  assertEquals([send(producer.ring, 0), producer.words[PROD]], [false, 128]);
  consumer.words.set(producer.words.subarray(6), 6);
  consumer.words[PROD] = 128;
  for (let i = 0; i < 256; i++) {
    assertEquals([consumer.ring.receive(slot), slot[0]], [true, i]);
  }
  assertEquals([consumer.ring.receive(slot), consumer.words[CONS]], [false, 128]);
});

Deno.test("bridge ring: a cursor of the kernel's that cannot be moves nothing", () => {
  const slot = new Uint32Array(BRIDGE_SLOT / 4);
  const { ring, words } = ringOf(new BridgeConsumer());
  for (const prod of [257, 0x8000_0000, 0xffff_ffff]) {
    words[PROD] = prod;
    assertEquals([ring.receive(slot), words[CONS]], [false, 0], `${prod}`);
  }
  words[PROD] = 256;
  assertEquals([ring.receive(slot), ring.badIndices], [true, 3]);
  const producer = ringOf(new BridgeProducer());
  producer.words[CONS] = 1;
  assertEquals([producer.ring.free, producer.ring.badIndices], [256, 1]);
});

Deno.test("bridge ring: a cursor that was set back is stored again, what is withheld is not", () => {
  const { ring, words } = ringOf(new BridgeProducer());
  send(ring, 1);
  send(ring, 2);
  assertEquals(ring.lags(), false);
  words[PROD] = 1;
  assertEquals([ring.lags(), words[PROD], ring.lags(), ring.restored], [true, 2, false, 1]);
  ring.claim();
  ring.withhold();
  assertEquals([ring.lags(), words[PROD]], [false, 2]);
  const consumer = ringOf(new BridgeConsumer());
  consumer.words[PROD] = 2;
  consumer.ring.receive(new Uint32Array(BRIDGE_SLOT / 4));
  consumer.words[CONS] = 0;
  assertEquals([consumer.ring.lags(), consumer.words[CONS]], [true, 1]);
});

Deno.test("bridge ring: whenever the kernel can have found it full, it is told of room", () => {
  const slot = new Uint32Array(BRIDGE_SLOT / 4);
  const { ring, words } = ringOf(new BridgeConsumer());
  words[PROD] = 10;
  while (ring.receive(slot)) assertEquals(ring.wasFull(), false);
  // It fills while the first of it is read: full when 10 are read, and seen later.
  words[PROD] = 266;
  const told: number[] = [];
  for (let i = 10; ring.receive(slot); i++) if (ring.wasFull()) told.push(i);
  assertEquals(told, [10]);
});

/** What the document gives, behind a slot's end the rest of an older frame. */
const slotOf = (hex: string) => {
  const bytes = new Uint8Array(BRIDGE_SLOT).fill(0xee);
  bytes.set(Uint8Array.fromHex(hex));
  return new DataView(bytes.buffer);
};
const MAP_ADD = "02890000010048000100000000000000010000000000000001000000000000000000004000000000" +
  "0000080000000000001000000000000000000800000000000100000000000000";
const MAP_DEL = "028a0000020038000100000000000000010000000000000001000000000000000000004000000000" +
  "00000800000000000000000000000000";
const ONLINE = "02c000000000280002000000000000006c6f6f706261636b00000000000000008000000000000000";
const OFFLINE = "02c100000000180001000000000000000100000000000000";

Deno.test("bridge frames: those of the kernel are read as the document has them", () => {
  const window = { epoch: 1n, sequence: 1n, map: 1n, at: 0x4000_0000, length: 0x8_0000 };
  assertEquals(mapRequestOf(slotOf(MAP_ADD)), {
    ...{ ...window, id: BridgeId.MAP_ADD, token: 1, offset: 0x1000, mapLength: 0x8_0000 },
  });
  assertEquals(mapRequestOf(slotOf(MAP_DEL)), {
    ...{ ...window, id: BridgeId.MAP_DEL, token: 2, offset: 0, mapLength: 0 },
  });
  assertEquals([epochOf(slotOf(ONLINE)), endpointLimitOf(slotOf(ONLINE))], [2n, 128]);
  assertEquals([epochOf(slotOf(OFFLINE)), offlineReasonOf(slotOf(OFFLINE))], [1n, "removed"]);
});

Deno.test("bridge frames: another size, type, device or token is none of the kernel's", () => {
  for (const hex of [MAP_ADD, MAP_DEL, ONLINE, OFFLINE]) {
    const id = slotOf(hex).getUint8(1);
    assertEquals(bridgeIdOf(slotOf(hex)), id);
    for (const [at, flip] of [[0, 1], [0, 4], [1, 0x10], [2, 1], [6, 1], [7, 1]] as const) {
      const slot = slotOf(hex);
      slot.setUint8(at, slot.getUint8(at) ^ flip);
      assertEquals(bridgeIdOf(slot), -1, `${hex} byte ${at}`);
    }
    const other = slotOf(hex);
    other.setUint16(4, other.getUint16(4) === 0 ? 7 : 0);
    assertEquals(bridgeIdOf(other), -1, `${hex} token`);
  }
});

Deno.test("bridge frames: those of the process are written as the document has them", () => {
  const written = (size: number, write: (view: DataView, at: number) => void) => {
    const bytes = new Uint8Array(256).fill(0xee);
    write(new DataView(bytes.buffer), 24);
    assertEquals([bytes[23], bytes[24 + size]], [0xee, 0xee]);
    return bytes.subarray(24, 24 + size).toHex();
  };
  const answer = (hex: string, status: number) =>
    written(40, (view, at) => writeMapAnswer(view, at, mapRequestOf(slotOf(hex)), status));
  const named = "0100000000000000".repeat(3);
  assertEquals(answer(MAP_ADD, 0), `0389000001002800${named}0000000000000000`);
  assertEquals(answer(MAP_ADD, -12), `0389000001002800${named}f4ffffff00000000`);
  assertEquals(answer(MAP_DEL, 0), `038a000002002800${named}0000000000000000`);
  const topology = (id: number, value?: number) =>
    written(24, (view, at) => writeTopology(view, at, id, 1n, value));
  const head = (id: string) => `02${id}000000001800` + "0100000000000000";
  assertEquals(topology(BridgeId.TOPOLOGY_RESET), `${head("c2")}0000000000000000`);
  assertEquals(topology(BridgeId.TOPOLOGY_DEV_ADD, 3), `${head("c3")}0300000000000000`);
  assertEquals(topology(BridgeId.TOPOLOGY_COMMIT, 1), `${head("c4")}0100000000000000`);
});
