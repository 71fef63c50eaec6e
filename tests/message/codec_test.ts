import { assert, assertEquals, assertThrows } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import type { Dialect } from "../../src/message/codec.ts";
import {
  DIALECTS,
  type Field,
  FIELDS,
  Kind,
  Message,
  QUEUE_ENABLED,
} from "../../src/message/message.ts";
import { PRIVATE_MESSAGES } from "../../src/message/private.ts";
import { MESSAGES } from "../../src/message/table.ts";
import { describe } from "../../src/message/text.ts";
import { bytesOf, readVectors, slotOf } from "./vectors.ts";

/** What a vector means: the fields that are not 0, and arrays by their leading elements. */
interface Expected extends Partial<Record<Field, number>> {
  readonly kind: Kind;
  readonly device?: number;
  readonly token?: number;
  readonly response?: boolean;
  readonly words?: readonly number[];
  readonly bytes?: readonly number[];
  readonly uuid?: readonly number[];
}

const QUEUE_1 = {
  index: 1,
  queueSize: 256,
  descriptorAddress: 0x40010000,
  driverAddress: 0x40011000,
  deviceAddress: 0x40012000,
};
const OFFERED = [0x30010020, 3];
const ACCEPTED = [0x00010020, 3];
const MAC = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const UUID = Array.from({ length: 16 }, (_, n) => 0x11 * n);
const NET = { deviceId: 1, vendorId: 0x554d4551 };
const INFO = { ...NET, featureBlocks: 2, configSize: 12, maxQueues: 3 };
const T = true;

const PROTO: Readonly<Record<string, Expected>> = {
  "CONNECT.req": { kind: Kind.CONNECT },
  "DISCONNECT.req": { kind: Kind.DISCONNECT },
  "DEVICE_INFO.req": { kind: Kind.GET_DEVICE_INFO },
  "DEVICE_INFO.resp": { kind: Kind.GET_DEVICE_INFO, response: T, version: 1, ...NET },
  "GET_FEATURES.req": { kind: Kind.GET_DEVICE_FEATURES, count: 2 },
  "GET_FEATURES.resp": { kind: Kind.GET_DEVICE_FEATURES, response: T, count: 2, words: OFFERED },
  "SET_FEATURES.req": { kind: Kind.SET_DRIVER_FEATURES, count: 2, words: ACCEPTED },
  "SET_FEATURES.resp": { kind: Kind.SET_DRIVER_FEATURES, response: T, count: 2, words: ACCEPTED },
  "GET_CONFIG.req": { kind: Kind.GET_CONFIG, length: 4 },
  "GET_CONFIG.resp": { kind: Kind.GET_CONFIG, response: T, length: 4, bytes: MAC.slice(0, 4) },
  "GET_CONFIG.req.far": { kind: Kind.GET_CONFIG, offset: 0x012345, length: 2 },
  "SET_CONFIG.req": { kind: Kind.SET_CONFIG, offset: 8, length: 4, bytes: [0x41] },
  "SET_CONFIG.resp": { kind: Kind.SET_CONFIG, response: T, offset: 8, length: 4, bytes: [0x41] },
  "GET_CONFIG_GEN.req": { kind: Kind.GET_CONFIG_GENERATION },
  "GET_CONFIG_GEN.resp": { kind: Kind.GET_CONFIG_GENERATION, response: T, generation: 7 },
  "GET_DEVICE_STATUS.req": { kind: Kind.GET_DEVICE_STATUS },
  "GET_DEVICE_STATUS.resp": { kind: Kind.GET_DEVICE_STATUS, response: T, status: 0x0b },
  "SET_DEVICE_STATUS.req": { kind: Kind.SET_DEVICE_STATUS, status: 0x0f },
  "GET_VQUEUE.req": { kind: Kind.GET_VQUEUE, index: 1 },
  "GET_VQUEUE.resp": { kind: Kind.GET_VQUEUE, response: T, index: 1, maxSize: 1024 },
  "GET_VQUEUE.resp.absent": { kind: Kind.GET_VQUEUE, response: T, index: 3 },
  "SET_VQUEUE.req": { kind: Kind.SET_VQUEUE, ...QUEUE_1 },
  "RESET_VQUEUE.req": { kind: Kind.RESET_VQUEUE, index: 1 },
  "EVENT_CONFIG": { kind: Kind.EVENT_CONFIG, status: 0x4f },
  "EVENT_CONFIG.data": {
    kind: Kind.EVENT_CONFIG,
    status: 0x0f,
    offset: 6,
    length: 2,
    bytes: [1, 0],
  },
  "EVENT_AVAIL": { kind: Kind.EVENT_AVAIL, index: 1 },
  "EVENT_USED": { kind: Kind.EVENT_USED, index: 1 },
  "IOMMU_ENABLE": { kind: Kind.IOMMU_ENABLE, state: 1 },
  "IOMMU_TRANSLATE.req": { kind: Kind.IOMMU_TRANSLATE, address: 0x43210000, prot: 1 },
  "IOMMU_TRANSLATE.resp": {
    kind: Kind.IOMMU_TRANSLATE,
    response: T,
    address: 0x43210000,
    physicalAddress: 0x7a5c3000,
    prot: 1,
  },
  "IOMMU_TRANSLATE.resp.fail": { kind: Kind.IOMMU_TRANSLATE, response: T },
  "IOMMU_INVALIDATE": { kind: Kind.IOMMU_INVALIDATE },
};

/** Device 3 unless said otherwise. */
function on3(kind: Kind, token: number, response: boolean, fields: Partial<Expected>): Expected {
  return { kind, token, response, device: 3, ...fields };
}

const V1: Readonly<Record<string, Expected>> = {
  "GET_DEVICE_INFO.req": on3(Kind.GET_DEVICE_INFO, 0x101, false, {}),
  "GET_DEVICE_INFO.resp": on3(Kind.GET_DEVICE_INFO, 0x101, T, { ...INFO, uuid: UUID }),
  "GET_DEVICE_INFO.resp.nil": on3(Kind.GET_DEVICE_INFO, 0x101, T, INFO),
  "GET_DEVICE_INFO.resp.admin": on3(Kind.GET_DEVICE_INFO, 0x101, T, {
    ...INFO,
    maxQueues: 5,
    adminStart: 3,
    adminCount: 2,
  }),
  "GET_DEVICE_FEATURES.req": on3(Kind.GET_DEVICE_FEATURES, 0x102, false, { count: 2 }),
  "GET_DEVICE_FEATURES.resp": on3(Kind.GET_DEVICE_FEATURES, 0x102, T, {
    count: 2,
    words: OFFERED,
  }),
  "SET_DRIVER_FEATURES.req": on3(Kind.SET_DRIVER_FEATURES, 0x103, false, {
    count: 2,
    words: ACCEPTED,
  }),
  "SET_DRIVER_FEATURES.resp": on3(Kind.SET_DRIVER_FEATURES, 0x103, T, {}),
  "GET_CONFIG.req": on3(Kind.GET_CONFIG, 0x104, false, { length: 6 }),
  "GET_CONFIG.resp": on3(Kind.GET_CONFIG, 0x104, T, { generation: 7, length: 6, bytes: MAC }),
  "SET_CONFIG.req": on3(Kind.SET_CONFIG, 0x105, false, { offset: 8, length: 4, bytes: [0x41] }),
  "SET_CONFIG.req.strict": on3(Kind.SET_CONFIG, 0x105, false, {
    generation: 7,
    offset: 8,
    length: 4,
    bytes: [0x41],
  }),
  "SET_CONFIG.resp": on3(Kind.SET_CONFIG, 0x105, T, {
    generation: 7,
    offset: 8,
    length: 4,
    bytes: [0x41],
  }),
  "SET_CONFIG.resp.nodata": on3(Kind.SET_CONFIG, 0x105, T, {
    generation: 7,
    offset: 8,
    length: 4,
    omitData: 1,
  }),
  "SET_CONFIG.resp.rejected": on3(Kind.SET_CONFIG, 0x106, T, { generation: 8, offset: 8 }),
  "GET_DEVICE_STATUS.req": on3(Kind.GET_DEVICE_STATUS, 0x107, false, {}),
  "GET_DEVICE_STATUS.resp": on3(Kind.GET_DEVICE_STATUS, 0x107, T, { status: 0x0b }),
  "SET_DEVICE_STATUS.req": on3(Kind.SET_DEVICE_STATUS, 0x108, false, { status: 0x0f }),
  "SET_DEVICE_STATUS.resp": on3(Kind.SET_DEVICE_STATUS, 0x108, T, { status: 0x0f }),
  "SET_DEVICE_STATUS.req.reset": on3(Kind.SET_DEVICE_STATUS, 0x10d, false, {}),
  "SET_DEVICE_STATUS.resp.reset": on3(Kind.SET_DEVICE_STATUS, 0x10d, T, {}),
  "GET_VQUEUE.req": on3(Kind.GET_VQUEUE, 0x109, false, { index: 1 }),
  "GET_VQUEUE.resp": on3(Kind.GET_VQUEUE, 0x109, T, { ...QUEUE_1, maxSize: 1024, flags: 1 }),
  "GET_VQUEUE.resp.unset": on3(Kind.GET_VQUEUE, 0x109, T, { index: 1, maxSize: 1024 }),
  "GET_VQUEUE.resp.absent": on3(Kind.GET_VQUEUE, 0x109, T, { index: 7 }),
  "SET_VQUEUE.req": on3(Kind.SET_VQUEUE, 0x10a, false, { ...QUEUE_1, flags: 1 }),
  "SET_VQUEUE.resp": on3(Kind.SET_VQUEUE, 0x10a, T, {}),
  "RESET_VQUEUE.req": on3(Kind.RESET_VQUEUE, 0x10b, false, { index: 1 }),
  "RESET_VQUEUE.resp": on3(Kind.RESET_VQUEUE, 0x10b, T, {}),
  "GET_SHM.req": on3(Kind.GET_SHM, 0x10c, false, {}),
  "GET_SHM.resp": on3(Kind.GET_SHM, 0x10c, T, { length: 0x00100000, address: 0x50000000 }),
  "GET_SHM.resp.absent": on3(Kind.GET_SHM, 0x10c, T, { index: 9 }),
  "EVENT_CONFIG": on3(Kind.EVENT_CONFIG, 0, false, {
    status: 0x0f,
    generation: 8,
    offset: 6,
    length: 2,
    bytes: [1, 0],
  }),
  "EVENT_CONFIG.status": on3(Kind.EVENT_CONFIG, 0, false, { status: 0x4f, generation: 8 }),
  "EVENT_AVAIL": on3(Kind.EVENT_AVAIL, 0, false, { index: 1 }),
  "EVENT_AVAIL.packed": on3(Kind.EVENT_AVAIL, 0, false, { index: 1, nextOffset: 5, nextWrap: 1 }),
  "EVENT_AVAIL.split": on3(Kind.EVENT_AVAIL, 0, false, { index: 1, nextOffset: 0x8005 }),
  "EVENT_USED": on3(Kind.EVENT_USED, 0, false, { index: 1 }),
  "BUS_GET_DEVICES.req": { kind: Kind.GET_DEVICES, token: 0x201, count: 32 },
  "BUS_GET_DEVICES.resp": {
    kind: Kind.GET_DEVICES,
    token: 0x201,
    response: T,
    count: 32,
    bytes: [9],
  },
  "BUS_GET_DEVICES.resp.short": {
    kind: Kind.GET_DEVICES,
    token: 0x201,
    response: T,
    nextOffset: 40,
    count: 4,
    bytes: [9],
  },
  "BUS_PING.req": { kind: Kind.PING, token: 0x202, data: 0xcafef00d },
  "BUS_PING.resp": { kind: Kind.PING, token: 0x202, response: T, data: 0xcafef00d },
  "BUS_EVENT_DEVICE": { kind: Kind.EVENT_DEVICE, number: 5, state: 1 },
  "BUS_EVENT_DEVICE.removed": { kind: Kind.EVENT_DEVICE, number: 5, state: 2 },
};

const ENABLED = QUEUE_ENABLED;

/** The vectors of `v1-2025` mean what those of `v1` mean, except that no device has a UUID. */
const V1_2025: Readonly<Record<string, Expected>> = {
  ...pick(V1, [
    "GET_DEVICE_INFO.req",
    "GET_DEVICE_FEATURES.req",
    "GET_DEVICE_FEATURES.resp",
    "SET_DRIVER_FEATURES.req",
    "SET_DRIVER_FEATURES.resp",
    "GET_CONFIG.req",
    "GET_CONFIG.resp",
    "SET_CONFIG.resp",
    "SET_CONFIG.resp.rejected",
    "GET_DEVICE_STATUS.req",
    "GET_DEVICE_STATUS.resp",
    "SET_DEVICE_STATUS.req",
    "SET_DEVICE_STATUS.resp",
    "GET_VQUEUE.req",
    "GET_VQUEUE.resp",
    "SET_VQUEUE.req",
    "SET_VQUEUE.resp",
    "RESET_VQUEUE.req",
    "RESET_VQUEUE.resp",
    "GET_SHM.req",
    "GET_SHM.resp",
    "EVENT_CONFIG",
    "EVENT_CONFIG.status",
    "EVENT_AVAIL",
    "EVENT_USED",
    "BUS_GET_DEVICES.req",
    "BUS_GET_DEVICES.resp",
    "BUS_PING.req",
    "BUS_PING.resp",
    "BUS_EVENT_DEVICE",
    "BUS_EVENT_DEVICE.removed",
  ]),
  "GET_DEVICE_INFO.resp": V1["GET_DEVICE_INFO.resp.nil"]!,
  "SET_CONFIG.req": V1["SET_CONFIG.req.strict"]!,
  "EVENT_AVAIL.data": V1["EVENT_AVAIL.packed"]!,
};

/** `rfc` means the same, but for tokens. */
const RFC: Readonly<Record<string, Expected>> = Object.fromEntries(
  Object.entries(V1_2025).map(([name, expected]) => [name, { ...expected, token: 0 }]),
);

/** `rfc-q` names messages as `proto` does, is about device 0 as it is, and means what `rfc` means. */
const RFC_Q: Readonly<Record<string, Expected>> = {
  ...pick(PROTO, [
    ...["DEVICE_INFO.req", "GET_FEATURES.req", "GET_FEATURES.resp", "SET_FEATURES.req"],
    ...["SET_FEATURES.resp", "GET_CONFIG.req", "GET_DEVICE_STATUS.req", "GET_DEVICE_STATUS.resp"],
    ...["SET_DEVICE_STATUS.req", "GET_VQUEUE.req", "RESET_VQUEUE.req", "EVENT_AVAIL"],
    ...["EVENT_USED", "IOMMU_ENABLE", "IOMMU_TRANSLATE.req", "IOMMU_TRANSLATE.resp"],
    "IOMMU_INVALIDATE",
  ]),
  "DEVICE_INFO.resp": { kind: Kind.GET_DEVICE_INFO, response: T, ...INFO, maxQueues: 1024 },
  "GET_CONFIG.resp": { ...PROTO["GET_CONFIG.resp"]!, generation: 7 },
  "SET_CONFIG.req": { ...PROTO["SET_CONFIG.req"]!, generation: 7 },
  "SET_CONFIG.resp": { ...PROTO["SET_CONFIG.resp"]!, generation: 7 },
  "SET_DEVICE_STATUS.resp": { kind: Kind.SET_DEVICE_STATUS, response: T, status: 0x0f },
  "GET_VQUEUE.resp": { ...RFC["GET_VQUEUE.resp"]!, device: 0 },
  "SET_VQUEUE.req": { ...RFC["SET_VQUEUE.req"]!, device: 0 },
  "SET_VQUEUE.resp": { ...RFC["SET_VQUEUE.req"]!, device: 0, response: T },
  "RESET_VQUEUE.resp": { kind: Kind.RESET_VQUEUE, response: T },
  "EVENT_CONFIG": { ...RFC["EVENT_CONFIG"]!, device: 0 },
};

function pick<T>(from: Readonly<Record<string, T>>, names: readonly string[]): Record<string, T> {
  return Object.fromEntries(names.map((name) => [name, from[name]!]));
}

function padded(values: readonly number[] | undefined, length: number): number[] {
  return Array.from({ length }, (_, n) => values?.[n] ?? 0);
}

function assertMeans(message: Message, expected: Expected, name: string): void {
  assertEquals(message.kind, expected.kind, name);
  assertEquals(message.response, expected.response ?? false, name);
  assertEquals(message.device, expected.device ?? 0, name);
  assertEquals(message.token, expected.token ?? 0, name);
  for (const field of FIELDS) {
    assertEquals(message[field], expected[field] ?? 0, `${name}: ${field}`);
  }
  // Both are in the same place; what the message does not have is what it does have, seen otherwise.
  if (expected.words !== undefined) {
    assertEquals([...message.words], padded(expected.words, message.words.length), name);
  } else {
    assertEquals([...message.bytes], padded(expected.bytes, message.bytes.length), name);
  }
  assertEquals([...message.uuid], padded(expected.uuid, 16), name);
}

function fill(message: Message, expected: Expected): void {
  message.reset(expected.kind, expected.response ?? false);
  message.device = expected.device ?? 0;
  message.token = expected.token ?? 0;
  for (const field of FIELDS) message[field] = expected[field] ?? 0;
  message.words.set(expected.words ?? []);
  message.bytes.set(expected.bytes ?? []);
  message.uuid.set(expected.uuid ?? []);
}

/** The message, and behind it what is left in its slot, the last byte over and over. */
function expectedOf(bytes: Uint8Array, tail: readonly number[]): Uint8Array {
  const slot = new Uint8Array(64);
  for (let at = bytes.length; at < 64; at++) slot[at] = tail[at - bytes.length] ?? tail.at(-1)!;
  slot.set(bytes);
  return slot;
}

for (
  const [dialect, table, count] of [
    ["proto", PROTO, 32],
    ["v1", V1, 45],
    ["v1-2025", V1_2025, 34],
    ["rfc", RFC, 34],
    ["rfc-q", RFC_Q, 27],
  ] as const
) {
  Deno.test(`every ${dialect} vector decodes to its meaning and back to its bytes`, () => {
    const vectors = readVectors().filter((vector) => vector.dialect === dialect);
    assertEquals(vectors.length, count);
    assertEquals(Object.keys(table).sort(), vectors.map(({ name }) => name).sort());
    const codec = codecFor(dialect);
    const message = new Message();
    for (const { name, bytes } of vectors) {
      const expected = table[name]!;
      // What an older message left in the slot must not be read ...
      assertEquals(codec.decode(slotOf(bytes, 0xaa), 0, message), undefined, name);
      assertMeans(message, expected, name);
      assertEquals(message.size, bytes.length, name);
      // ... and is written over: all of it in revision 1 (B16), 40 bytes in proto, 44 rounded up in rfc-q.
      const tail =
        ({ proto: [0xaa], "rfc-q": [0, 0, 0, 0, 0xaa] } as Record<string, number[]>)[dialect] ??
          [0];
      const slot = slotOf(new Uint8Array(0), 0xaa);
      assertEquals(codec.encode(message, slot, 0), bytes.length, name);
      assertEquals(bytesOf(slot, 64), expectedOf(bytes, tail), name);
      // The other way round: from the meaning alone.
      fill(message, expected);
      const fresh = slotOf(new Uint8Array(0), 0xaa);
      codec.encode(message, fresh, 0);
      assertEquals(bytesOf(fresh, 64), expectedOf(bytes, tail), name);
    }
  });
}

Deno.test("vectors.txt is complete", () => {
  const vectors = readVectors();
  assertEquals(vectors.filter(({ dialect }) => dialect === "v1-2025").length, 34);
  assertEquals(vectors.length, 32 + 45 + 34 + 34 + 27);
});

Deno.test("offset of the slot is honoured", () => {
  const view = new DataView(new ArrayBuffer(192));
  const message = new Message();
  for (const dialect of DIALECTS) {
    const codec = codecFor(dialect);
    message.reset(Kind.EVENT_USED, false);
    message.index = 7;
    codec.encode(message, view, 64);
    message.reset(Kind.PING, false);
    assertEquals(codec.decode(view, 64, message), undefined);
    assertEquals([message.kind, message.index], [Kind.EVENT_USED, 7]);
  }
  for (let at = 0; at < 192; at++) {
    if (at < 64 || at >= 128) assertEquals(view.getUint8(at), 0);
  }
});

/** docs/wire.md 3.3 with n = 3 of whatever a message counts; 0 = there is no such message. */
const SIZES: Readonly<Partial<Record<Kind, readonly [request: number, response: number]>>> = {
  [Kind.GET_DEVICE_INFO]: [8, 52],
  [Kind.GET_DEVICE_FEATURES]: [16, 16 + 4 * 3],
  [Kind.SET_DRIVER_FEATURES]: [16 + 4 * 3, 8],
  [Kind.GET_CONFIG]: [16, 20 + 3],
  [Kind.SET_CONFIG]: [20 + 3, 20 + 3],
  [Kind.GET_DEVICE_STATUS]: [8, 12],
  [Kind.SET_DEVICE_STATUS]: [12, 12],
  [Kind.GET_VQUEUE]: [12, 48],
  [Kind.SET_VQUEUE]: [48, 8],
  [Kind.RESET_VQUEUE]: [12, 8],
  [Kind.GET_SHM]: [12, 32],
  [Kind.EVENT_CONFIG]: [24 + 3, 0],
  [Kind.EVENT_AVAIL]: [16, 0],
  [Kind.EVENT_USED]: [12, 0],
  [Kind.GET_DEVICES]: [12, 14 + 1],
  [Kind.PING]: [12, 12],
  [Kind.EVENT_DEVICE]: [12, 0],
  [Kind.HELLO]: [36, 36],
  [Kind.ADD_MEMORY]: [48, 20],
  [Kind.REMOVE_MEMORY]: [40, 20],
  [Kind.STOP_VQUEUE]: [24, 28],
  [Kind.SET_VQUEUE_STATE]: [28, 20],
  [Kind.SET_DOORBELLS]: [20, 20],
  [Kind.SET_NOTIFIER]: [28, 20],
};

/** Wire document 5.3: where `v1-2025` differs. */
const SIZES_2025: typeof SIZES = {
  ...SIZES,
  [Kind.GET_DEVICE_INFO]: [8, 32],
  [Kind.GET_SHM]: [12, 20],
  ...Object.fromEntries(PRIVATE_MESSAGES.map(({ kind }) => [kind, [0, 0]])),
};

Deno.test("sizes are those of docs/wire.md", () => {
  const proto = codecFor("proto");
  const message = new Message();
  const slot = new DataView(new ArrayBuffer(64));
  for (const { kind, name } of MESSAGES) {
    for (const response of [false, true]) {
      message.reset(kind, response);
      message.count = 3;
      message.length = 3;
      for (const [dialect, sizes] of [["v1", SIZES], ["v1-2025", SIZES_2025]] as const) {
        const codec = codecFor(dialect);
        const size = sizes[kind]?.[response ? 1 : 0] ?? 0;
        assertEquals(response ? codec.answered(kind) : codec.has(kind), size > 0, name);
        if (size === 0) assertThrows(() => codec.encode(message, slot, 0), Error, "has no");
        else assertEquals(codec.encode(message, slot, 0), size, name);
      }
      if (response ? proto.answered(kind) : proto.has(kind)) {
        assertEquals(proto.encode(message, slot, 0), 40, name);
      } else {
        assertThrows(() => proto.encode(message, slot, 0), Error, "has no");
      }
    }
  }
});

Deno.test("rfc: 2 bytes less than v1-2025 everywhere, 4 more where rings are; rfc-q always 44", () => {
  const [older, rfc, ofQemu] = (["v1-2025", "rfc", "rfc-q"] as const).map((d) => codecFor(d));
  const message = new Message();
  const slot = new DataView(new ArrayBuffer(64));
  for (const { kind, name, bus } of MESSAGES) {
    assertEquals(
      [rfc!.has(kind), rfc!.answered(kind)],
      [older!.has(kind), older!.answered(kind)],
      name,
    );
    const isOfQemu = kind >= Kind.IOMMU_ENABLE && kind <= Kind.IOMMU_INVALIDATE;
    const has = (rfc!.has(kind) && !bus && kind !== Kind.GET_SHM) || isOfQemu;
    assertEquals(ofQemu!.has(kind), has, name);
    for (const response of [false, true]) {
      message.reset(kind, response);
      message.count = message.length = 3;
      if (response ? ofQemu!.answered(kind) : ofQemu!.has(kind)) {
        assertEquals(ofQemu!.encode(message, slot, 0), 44, name);
      }
      if (!(response ? rfc!.answered(kind) : rfc!.has(kind))) continue;
      const hasRings = kind === (response ? Kind.GET_VQUEUE : Kind.SET_VQUEUE);
      const size = older!.encode(message, slot, 0) - 2 - (hasRings ? 4 : 0);
      assertEquals(rfc!.encode(message, slot, 0), size, name);
    }
  }
});

Deno.test("rfc: Linux and Xen leave what is written out of the size (docs/wire.md 3.8)", () => {
  const codec = codecFor("rfc");
  const message = new Message();
  const features = slotOf(
    Uint8Array.of(0, 4, 3, 0, 14, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x20, 0, 1, 0, 3),
  );
  assertEquals(codec.decode(features, 0, message), undefined);
  assertEquals([message.count, ...message.words.subarray(0, 3)], [2, 0x0001_0020, 3, 0]);
  assertEquals(message.size, 22, "a capture keeps all of it");
  const config = slotOf(
    Uint8Array.of(0, 6, 3, 0, 18, 0, 7, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 0x41, 9),
  );
  assertEquals(codec.decode(config, 0, message), undefined);
  assertEquals([message.length, ...message.bytes.subarray(0, 3)], [2, 0x41, 9, 0]);
  assertEquals(message.size, 20);
  // It has to be in the slot all the same.
  features.setUint32(10, 13, true);
  assertEquals(codec.decode(features, 0, message), "short");
  config.setUint32(14, 47, true);
  assertEquals(codec.decode(config, 0, message), "short");
  // What is no longer than its size is read as everywhere, and an answer is never found behind it.
  config.setUint32(14, 0, true);
  assertEquals([codec.decode(config, 0, message), message.size], [undefined, 18]);
  const answer = slotOf(Uint8Array.of(1, 3, 3, 0, 14, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x20));
  assertEquals(codec.decode(answer, 0, message), "short");
});

Deno.test("rfc-q: no size is read, and two blocks are two whatever is counted", () => {
  const codec = codecFor("rfc-q");
  const message = new Message();
  const slot = slotOf(
    Uint8Array.of(0, 4, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 2),
  );
  assertEquals(codec.decode(slot, 0, message), undefined);
  assertEquals([message.count, ...message.words.subarray(0, 3)], [2, 1, 2, 0]);
  assertEquals(
    codec.decode(slotOf(Uint8Array.of(0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9)), 0, message),
    "bad length",
  );
  assertEquals(codec.decode(slotOf(Uint8Array.of(2, 2)), 0, message), undefined);
  assertEquals(message.kind, Kind.GET_DEVICE_INFO, "there are no bus messages");
});

Deno.test("proto answers exactly the messages of section 2.2", () => {
  const proto = codecFor("proto");
  const answered = MESSAGES.filter(({ kind }) => proto.answered(kind)).map(({ kind }) => kind);
  assertEquals(answered, [
    Kind.GET_DEVICE_INFO,
    Kind.GET_DEVICE_FEATURES,
    Kind.SET_DRIVER_FEATURES,
    Kind.GET_CONFIG,
    Kind.SET_CONFIG,
    Kind.GET_DEVICE_STATUS,
    Kind.GET_VQUEUE,
    Kind.GET_CONFIG_GENERATION,
    Kind.IOMMU_TRANSLATE,
  ]);
});

Deno.test("R36: a SET_CONFIG answer has its data or, in both forms of revision 1, none", () => {
  for (const dialect of ["v1", "v1-2025"] as const) {
    const codec = codecFor(dialect);
    const slot = new DataView(new ArrayBuffer(64));
    const message = new Message();
    message.reset(Kind.SET_CONFIG, true);
    assertEquals(codec.encode(message, slot, 0), 20);
    message.length = 4;
    assertEquals(codec.encode(message, slot, 0), 24);
    message.omitData = 1;
    assertEquals(codec.encode(message, slot, 0), 20);
    assertEquals(codec.decode(slot, 0, message), undefined);
    assertEquals([message.length, message.omitData], [4, 1]);
  }
});

for (const dialect of ["v1", "v1-2025"] as const) {
  Deno.test(`${dialect}: limits are what just fits`, () => assertLimits(dialect));
}

function assertLimits(dialect: Dialect): void {
  const codec = codecFor(dialect);
  const message = new Message();
  const slot = new DataView(new ArrayBuffer(64));
  const { featureBlocks, configBytes, configChunk, eventBytes, deviceBits } = codec.limits;
  assertEquals([featureBlocks, configBytes, eventBytes, deviceBits], [12, 44, 40, 400]);
  // QEMU's buffers have 48 bytes in v1-2025 (docs/wire.md 3.4).
  assertEquals(configChunk, dialect === "v1" ? 44 : 28);
  const cases: [Kind, boolean, "count" | "length", number][] = [
    [Kind.GET_DEVICE_FEATURES, true, "count", featureBlocks],
    [Kind.SET_DRIVER_FEATURES, false, "count", featureBlocks],
    [Kind.GET_CONFIG, true, "length", configBytes],
    [Kind.SET_CONFIG, false, "length", configBytes],
    [Kind.EVENT_CONFIG, false, "length", eventBytes],
    [Kind.GET_DEVICES, true, "count", deviceBits],
  ];
  for (const [kind, response, field, limit] of cases) {
    message.reset(kind, response);
    message[field] = limit;
    assertEquals(codec.encode(message, slot, 0), 64);
    message[field] = limit + 1;
    assertThrows(() => codec.encode(message, slot, 0), Error, "a slot has 64");
  }
  message.reset(Kind.SET_CONFIG, false);
  message.length = 9;
  assertThrows(() => codecFor("proto").encode(message, slot, 0), Error, "9 bytes");
}

/** A `v1` header and payload. */
function v1Slot(type: number, id: number, size: number, ...payload: number[]): DataView {
  return slotOf(Uint8Array.of(type, id, 3, 0, 1, 1, size & 0xff, size >>> 8, ...payload));
}

Deno.test("v1 refuses what is malformed and takes what is only long", () => {
  const codec = codecFor("v1");
  const message = new Message();
  const cases: [string, DataView, string | undefined][] = [
    ["size 7", v1Slot(0, 0x02, 7), "bad size"],
    ["size 0", v1Slot(0, 0x02, 0), "bad size"],
    ["size 65", v1Slot(0, 0x02, 65), "bad size"],
    ["size 0xffff", v1Slot(0, 0x02, 0xffff), "bad size"],
    ["id 0x3f", v1Slot(0, 0x3f, 8), "unknown id"],
    ["bus id as transport id", v1Slot(0, 0x90, 36), "unknown id"],
    ["transport id as bus id", v1Slot(2, 0x08, 12), "unknown id"],
    ["answer to an event", v1Slot(1, 0x42, 12, 1), "no answer exists"],
    ["request without its payload", v1Slot(0, 0x08, 11), "short"],
    ["52-byte answer of 51 bytes", v1Slot(1, 0x02, 51), "short"],
    ["52-byte answer of 60 bytes (G21)", v1Slot(1, 0x02, 60), undefined],
    ["request with bytes behind it", v1Slot(0, 0x07, 20), undefined],
    ["event of 16 instead of 12 bytes (G19)", v1Slot(0, 0x42, 16), "long"],
    ["event of 8 bytes", v1Slot(0, 0x42, 8), "short"],
    ["bus event too long", v1Slot(2, 0x40, 14), "long"],
    ["type 0xfc is a request (G4)", v1Slot(0xfc, 0x07, 8), undefined],
    ["2^32-1 blocks", v1Slot(0, 0x04, 24, 0, 0, 0, 0, 255, 255, 255, 255), "short"],
    ["13 blocks in 64 bytes", v1Slot(0, 0x04, 64, 0, 0, 0, 0, 13), "short"],
    ["3 blocks named, 2 sent", v1Slot(0, 0x04, 24, 0, 0, 0, 0, 3), "short"],
    ["4 bytes written, 3 sent", v1Slot(0, 0x06, 23, 0, 0, 0, 0, 0, 0, 0, 0, 4), "short"],
    ["2^32-1 bits", v1Slot(3, 0x02, 18, 0, 0, 0, 0, 255, 255), "short"],
    [
      "EVENT_CONFIG with a range but no data (R27)",
      v1Slot(0, 0x40, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4),
      undefined,
    ],
    [
      "EVENT_CONFIG with some of its data",
      v1Slot(0, 0x40, 26, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4),
      "long",
    ],
    [
      "EVENT_CONFIG with more data than range",
      v1Slot(0, 0x40, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2),
      "long",
    ],
  ];
  for (const [what, slot, expected] of cases) {
    assertEquals(codec.decode(slot, 0, message), expected, what);
  }
});

Deno.test("a SET_CONFIG answer with some of its data counts as one without", () => {
  const codec = codecFor("v1");
  const message = new Message();
  const slot = v1Slot(1, 0x06, 22, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0x41, 0x42);
  assertEquals(codec.decode(slot, 0, message), undefined);
  assertEquals([message.length, message.omitData, message.bytes[0]], [4, 1, 0]);
});

Deno.test("MBZ words are ignored and not sent on", () => {
  const codec = codecFor("v1");
  const message = new Message();
  const slot = v1Slot(1, 0x0c, 32, 1, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef);
  assertEquals(codec.decode(slot, 0, message), undefined);
  codec.encode(message, slot, 0);
  assertEquals(slot.getUint32(12), 0);
});

Deno.test("v1-2025: bytes behind a message are ignored, v1's first answer is refused", () => {
  const codec = codecFor("v1-2025");
  const message = new Message();
  const cases: [string, DataView, string | undefined][] = [
    ["GET_DEVICE_INFO answer of 31 bytes", v1Slot(1, 0x02, 31), "short"],
    ["the Rust front ends' 50 bytes", v1Slot(1, 0x02, 50), undefined],
    ["GET_DEVICE_INFO answer of 51 bytes", v1Slot(1, 0x02, 51), undefined],
    ["v1's GET_DEVICE_INFO answer (docs/wire.md 3.7)", v1Slot(1, 0x02, 52), "long"],
    ["EVENT_USED of 48 bytes", v1Slot(0, 0x42, 48, 1), undefined],
    ["EVENT_USED of 11 bytes", v1Slot(0, 0x42, 11, 1), "short"],
    ["HELLO", v1Slot(2, 0x90, 36), "unknown id"],
    ["SET_CONFIG answer without its data", v1Slot(1, 0x06, 20, ...zeros(8), 4), undefined],
    ["32 bits, 3 bytes", v1Slot(3, 0x02, 17, 0, 0, 32), "short"],
  ];
  for (const [what, slot, expected] of cases) {
    assertEquals(codec.decode(slot, 0, message), expected, what);
  }
});

function zeros(count: number): number[] {
  return new Array<number>(count).fill(0);
}

Deno.test("v1-2025: feature bits are blocks times 32, rounded up", () => {
  const codec = codecFor("v1-2025");
  const message = new Message();
  const slot = v1Slot(1, 0x02, 32);
  const cases = [[0, 0], [32, 1], [64, 2], [40, 2], [1, 1], [2 ** 32 - 1, 2 ** 27]] as const;
  for (const [bits, blocks] of cases) {
    slot.setUint32(16, bits, true);
    assertEquals(codec.decode(slot, 0, message), undefined);
    assertEquals(message.featureBlocks, blocks);
    codec.encode(message, slot, 0);
    assertEquals(slot.getUint32(16, true), Math.min(32 * blocks, 2 ** 32 - 1));
  }
});

Deno.test("v1-2025: a queue is enabled by SET_VQUEUE, and if it has a size and a ring", () => {
  const codec = codecFor("v1-2025");
  const message = new Message();
  const slot = new DataView(new ArrayBuffer(64));
  const unset = { index: 1, maxSize: 1024 };
  const cases: [Expected, number][] = [
    [{ kind: Kind.SET_VQUEUE }, ENABLED],
    [{ kind: Kind.GET_VQUEUE, response: true, ...unset }, 0],
    // QEMU's default size, before the queue is set up (docs/wire.md 3.4).
    [{ kind: Kind.GET_VQUEUE, response: true, ...unset, queueSize: 1024 }, 0],
    [{ kind: Kind.GET_VQUEUE, response: true, ...unset, ...QUEUE_1 }, ENABLED],
  ];
  for (const [fields, flags] of cases) {
    fill(message, fields);
    message.flags = 0xffff;
    codec.encode(message, slot, 0);
    // Both MBZ words, whatever the record says; and they are ignored.
    assertEquals(slot.getUint32(fields.response ? 20 : 12, true), 0);
    slot.setUint32(20, 0xdeadbeef);
    if (!fields.response) slot.setUint32(12, 0xdeadbeef);
    assertEquals(codec.decode(slot, 0, message), undefined);
    assertEquals(message.flags, flags);
  }
});

/** Wire document 6.4: what QEMU and Linux really send; zeros behind it. */
const QEMU_DEVICES = [0x03, 0x02, 0, 0, 0, 0, 0x2e, 0, 0, 0, 0x20, 0, 0, 0, 0x01];
const QEMU_DEVICES_3BD8536 = [0x03, 0x02, 0, 0, 0, 0, 0x12, 0, 0, 0, 0x20, 0, 0x20, 0, 0x01];
const LINUX_GENERATION = [0x01, 0x05, 0, 0, 0x01, 0, 0x14, 0, 0x07];

Deno.test("v1-2025: peers that differ are understood (docs/wire.md 3.4)", () => {
  const codec = codecFor("v1-2025");
  const message = new Message();
  function decode(...bytes: number[]): void {
    assertEquals(codec.decode(slotOf(Uint8Array.from(bytes)), 0, message), undefined);
  }
  // Row 13: 46 bytes for 32 devices.
  decode(...QEMU_DEVICES);
  assertEquals([message.count, message.nextOffset, message.bytes[0]], [32, 0, 1]);
  // Row 14: the next offset is never 0.
  decode(...QEMU_DEVICES_3BD8536);
  assertEquals([message.count, message.nextOffset, message.bytes[0]], [32, 32, 1]);
  // Row 15: OP-TEE counts three devices and sends two bytes.
  decode(3, 2, 0, 0, 1, 1, 16, 0, 0, 0, 3, 0, 0, 0, 0x09, 0x80);
  assertEquals([message.count, message.bytes[0], message.bytes[1]], [16, 0x09, 0x80]);
  assertEquals(describe(message), "GET_DEVICES = 0 3 15 of 16 from 0");
  decode(3, 2, 0, 0, 1, 1, 14, 0, 0, 0, 3);
  assertEquals(message.count, 0);
  // Row 16: a Rust front end says one block, sends two, and 50 bytes in any case.
  decode(1, 3, 0, 0, 1, 0, 50, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x20, 0, 1, 0x30, 3);
  assertEquals([message.count, ...message.words.subarray(0, 3)], [1, 0x30010020, 3, 0]);
  // Row 31: Linux reads the generation with no bytes.
  decode(...LINUX_GENERATION);
  assertEquals([message.generation, message.length, message.size], [7, 0, 20]);
});

Deno.test("v1 reads no more blocks than are counted, and takes any count of device bits", () => {
  const codec = codecFor("v1");
  const message = new Message();
  codec.decode(v1Slot(1, 0x03, 24, ...zeros(4), 1, 0, 0, 0, 1, 0, 0, 0, 2), 0, message);
  assertEquals([...message.words.subarray(0, 2)], [1, 0]);
  codec.decode(v1Slot(3, 0x02, 16, 0, 0, 0, 0, 3, 0, 9, 9), 0, message);
  assertEquals([message.count, ...message.bytes.subarray(0, 2)], [3, 9, 0]);
});

Deno.test("proto refuses what QEMU never sends and ignores what QEMU ignores", () => {
  const codec = codecFor("proto");
  const message = new Message();
  function decode(...bytes: number[]): string | undefined {
    return codec.decode(slotOf(Uint8Array.from(bytes)), 0, message);
  }
  assertEquals(decode(0, 0x0e), "unknown id");
  assertEquals(decode(0, 0xff), "unknown id");
  for (const id of [0x01, 0x02, 0x0a, 0x0c, 0x0d, 0x10, 0x11, 0x12, 0x20, 0x22]) {
    assertEquals(decode(1, id), "no answer exists");
  }
  assertEquals(decode(0, 0x07, 0, 0, 0, 0, 0, 9), "bad length");
  assertEquals(decode(0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 17), "bad length");
  // The handler answers for an unusable size of a read; there is no data to lose here.
  assertEquals(decode(0, 0x06, 0, 0, 0, 0, 0, 255), undefined);
  assertEquals(message.length, 255);
  assertEquals(decode(0xfe, 0x12, 5, 0, 1), undefined);
  assertEquals([message.kind, message.response, message.device], [Kind.EVENT_USED, false, 5]);
});

Deno.test("64-bit values are exact below 2^53 and never become small above it", () => {
  const codec = codecFor("v1");
  const message = new Message();
  const slot = new DataView(new ArrayBuffer(64));
  for (const value of [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 0x1234_5678_9abc, 2 ** 53 - 1]) {
    message.reset(Kind.SET_VQUEUE, false);
    message.driverAddress = value;
    codec.encode(message, slot, 0);
    assertEquals(slot.getBigUint64(8 + 24, true), BigInt(value));
    codec.decode(slot, 0, message);
    assertEquals(message.driverAddress, value);
  }
  slot.setBigUint64(8 + 24, 0xffff_ffff_ffff_ffffn, true);
  codec.decode(slot, 0, message);
  assertEquals(message.driverAddress, 2 ** 64);
  codec.encode(message, slot, 0);
  assertEquals(slot.getBigUint64(8 + 24, true), 0xffff_ffff_ffff_ffffn);
});

/** mulberry32: small, seeded, good enough to reach every branch. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
}

Deno.test("random slots never throw, and what is accepted is stable", () => {
  const seed = Number(Deno.env.get("VMSG_SEED") ?? Date.now() % 2 ** 32);
  console.log(`seed ${seed} (VMSG_SEED=${seed} repeats this run)`);
  const next = random(seed);
  const vectors = readVectors();
  const first = new Message();
  const second = new Message();
  // The view ends where the slot ends: a read outside it would throw.
  const slot = new DataView(new ArrayBuffer(64));
  const bytes = bytesOf(slot, 64);
  let where = "";
  function assertStable(condition: boolean, what: string): void {
    if (!condition) throw new Error(`seed ${seed}, ${where}: ${what} changed, slot ${bytes}`);
  }
  for (const dialect of DIALECTS) {
    const codec = codecFor(dialect);
    let accepted = 0;
    for (let round = 0; round < 100_000; round++) {
      for (let at = 0; at < 64; at++) bytes[at] = next();
      // Two thirds of the rounds look like messages, or nearly nothing would be accepted.
      if (round % 3 === 1) {
        bytes[0]! &= 3;
        bytes[1]! &= 0x9f;
        slot.setUint16(dialect === "rfc" ? 4 : 6, next() % 70, true);
      } else if (round % 3 === 2) {
        bytes.set(vectors[next() % vectors.length]!.bytes);
        for (let flips = next() % 4; flips > 0; flips--) bytes[next() % 64] = next();
      }
      if (codec.decode(slot, 0, first) !== undefined) continue;
      accepted++;
      where = `${dialect} round ${round}`;
      if (round % 16 < 2) assertStable(!/undefined|NaN/.test(describe(first)), "text");
      const size = codec.encode(first, slot, 0);
      assert(size <= codec.maxSize);
      const written = bytes.slice();
      assertStable(codec.decode(slot, 0, second) === undefined, "verdict");
      for (const field of FIELDS) assertStable(first[field] === second[field], field);
      codec.encode(second, slot, 0);
      for (let at = 0; at < 64; at++) assertStable(bytes[at] === written[at], "a byte");
    }
    assert(accepted > 10_000, `${dialect}: only ${accepted} accepted`);
  }
});
