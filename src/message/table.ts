/**
 * The table of messages: everything the rest of the house knows about them comes from here.
 *
 * One entry per {@link Kind}: its name, its class, who sends it, and per dialect its id and the layout
 * of request and answer. Sources: docs/wire.md 2.2 for `proto`, 3.2 for `v1`, 3.4 for `v1-2025`, 3.8 for `rfc` and
 * `rfc-q`, private.ts for our own, 4.7 for a kernel's bridge. `v1-2025` has entries only where it differs from `v1`, `rfc` where it differs from
 * that, and `rfc-q` from that ({@link OLDER}). A message whose entry has no response is never answered in that dialect; `proto` has several such requests. All layouts
 * are checked when this file loads; the sizes of 3.3 and 3.4 are what tests/message asserts.
 */

import { type Dialect, type Kind, KIND_COUNT, QUEUE_ENABLED } from "./message.ts";
import {
  type Definition,
  EMPTY,
  event,
  type Layout,
  layout,
  request,
  type Wire,
} from "./layout.ts";
import { BRIDGE_MESSAGES, isOfBridge } from "./bridge_messages.ts";
import { isPrivate, PRIVATE_MESSAGES } from "./private.ts";

export type { Definition, Layout, LayoutField, Type, Wire } from "./layout.ts";

const INDEX: Layout = layout(4, "0 u32 index");
const STATUS: Layout = layout(4, "0 u32 status");
const PING: Layout = layout(4, "0 u32 data");

const SOME_BLOCKS = "0 u32 index, 4 u32 count";
const BLOCKS: Layout = layout(8, SOME_BLOCKS, "8 words[count] words");

const CONFIG_HEAD = "0 u32 generation, 4 u32 offset, 8 u32 length";
const CONFIG: Layout = layout(12, CONFIG_HEAD, "12 bytes[length] bytes");

/** Where a queue's rings are, in revision 1. */
const RINGS = "16 u64 descriptorAddress, 24 u64 driverAddress, 32 u64 deviceAddress";

/** The same in `rfc`, where they are not aligned. */
const RFC_RINGS = "12 u64 descriptorAddress, 20 u64 driverAddress, 28 u64 deviceAddress";

const DEVICE_INFO_2025: Layout = layout(
  24,
  "0 u32 deviceId, 4 u32 vendorId, 8 u32/32 featureBlocks, 12 u32 configSize",
  "16 u32 maxQueues, 20 u16 adminStart, 22 u16 adminCount",
);

/** `rfc-q`: always both blocks, whatever number is said. */
const RFC_Q_FEATURES: Layout = {
  ...layout(16, SOME_BLOCKS, "8 words[2] words"),
  implied: ["count", 2],
};
const RFC_Q_CONFIG: Layout = layout(20, CONFIG_HEAD, "12 bytes[8] bytes");

const RFC_SET_VQUEUE: Layout = {
  ...layout(36, "0 u32 index, 4 u32 reserved, 8 u32 queueSize", RFC_RINGS),
  implied: ["flags", QUEUE_ENABLED],
};

const SOME_DEVICES: Layout = layout(4, "0 u16 offset, 2 u16 count");

/** `proto` names no block count: it is always one u64, two blocks. */
const PROTO_FEATURES: Layout = {
  ...layout(12, "0 u32 index, 4 words[2] words"),
  implied: ["count", 2],
};

/** The data is a u64 of which the Linux flavour uses all 8 bytes, QEMU at most 4 (2.2, 2.5). */
const PROTO_CONFIG: Layout = layout(12, "0 u24 offset, 3 u8 length, 4 bytes[8] bytes");

const TRANSPORT_MESSAGES: readonly Definition[] = [
  request("GET_DEVICE_INFO", {
    v1: {
      id: 0x02,
      request: EMPTY,
      response: layout(
        44,
        "0 u32 deviceId, 4 u32 vendorId, 8 uuid uuid, 24 u32 featureBlocks",
        "28 u32 configSize, 32 u32 maxQueues, 36 u32 adminStart, 40 u32 adminCount",
      ),
    },
    "v1-2025": {
      id: 0x02,
      request: EMPTY,
      // From 44 bytes on it is `v1`'s, whose UUID is where these fields are (docs/wire.md 3.7).
      response: { ...DEVICE_INFO_2025, below: 44 },
    },
    rfc: { id: 0x02, request: EMPTY, response: DEVICE_INFO_2025 },
    proto: {
      id: 0x03,
      request: EMPTY,
      response: layout(12, "0 u32 version, 4 u32 deviceId, 8 u32 vendorId"),
    },
  }),
  request("GET_DEVICE_FEATURES", {
    v1: { id: 0x03, request: layout(8, SOME_BLOCKS), response: BLOCKS },
    "v1-2025": {
      id: 0x03,
      request: layout(8, SOME_BLOCKS),
      // A Rust front end sends two blocks and says one.
      response: layout(8, SOME_BLOCKS, "8 words[count]+ words"),
    },
    "rfc-q": { id: 0x03, request: layout(8, SOME_BLOCKS), response: RFC_Q_FEATURES },
    proto: { id: 0x04, request: { ...INDEX, implied: ["count", 2] }, response: PROTO_FEATURES },
  }),
  request("SET_DRIVER_FEATURES", {
    v1: { id: 0x04, request: BLOCKS, response: EMPTY },
    // Linux and Xen leave the blocks out of the size.
    rfc: {
      id: 0x04,
      request: layout(8, SOME_BLOCKS, "8 words[count]! words"),
      response: EMPTY,
    },
    "rfc-q": { id: 0x04, request: RFC_Q_FEATURES, response: RFC_Q_FEATURES },
    proto: { id: 0x05, request: PROTO_FEATURES, response: PROTO_FEATURES },
  }),
  request("GET_CONFIG", {
    v1: {
      id: 0x05,
      request: layout(8, "0 u32 offset, 4 u32 length"),
      response: CONFIG,
    },
    "rfc-q": {
      id: 0x05,
      request: layout(8, "0 u32 offset, 4 u32 length"),
      response: RFC_Q_CONFIG,
    },
    proto: {
      id: 0x06,
      request: layout(4, "0 u24 offset, 3 u8 length"),
      response: PROTO_CONFIG,
    },
  }),
  request("SET_CONFIG", {
    v1: {
      id: 0x06,
      request: CONFIG,
      // The answer need not mirror the data (docs/wire.md 3.2); Linux ignores it if it does.
      response: layout(12, CONFIG_HEAD, "12 bytes[length]? bytes"),
    },
    rfc: {
      id: 0x06,
      request: layout(12, CONFIG_HEAD, "12 bytes[length]! bytes"),
      response: layout(12, CONFIG_HEAD, "12 bytes[length]? bytes"),
    },
    "rfc-q": { id: 0x06, request: RFC_Q_CONFIG, response: RFC_Q_CONFIG },
    proto: { id: 0x07, request: PROTO_CONFIG, response: PROTO_CONFIG },
  }),
  request("GET_DEVICE_STATUS", {
    v1: { id: 0x07, request: EMPTY, response: STATUS },
    proto: { id: 0x09, request: EMPTY, response: STATUS },
  }),
  request("SET_DEVICE_STATUS", {
    v1: { id: 0x08, request: STATUS, response: STATUS },
    proto: { id: 0x0a, request: STATUS },
  }),
  request("GET_VQUEUE", {
    v1: {
      id: 0x09,
      request: INDEX,
      response: layout(40, "0 u32 index, 4 u32 maxSize, 8 u32 queueSize, 12 u32 flags", RINGS),
    },
    "v1-2025": {
      id: 0x09,
      request: INDEX,
      response: {
        ...layout(40, "0 u32 index, 4 u32 maxSize, 8 u32 queueSize, 12 u32 reserved", RINGS),
        // A size alone says nothing: QEMU names its default before the queue is set up (docs/wire.md 3.4).
        implied: ["flags", QUEUE_ENABLED],
        impliedIf: ["queueSize", "deviceAddress"],
      },
    },
    rfc: {
      id: 0x09,
      request: INDEX,
      response: {
        ...layout(36, "0 u32 index, 4 u32 maxSize, 8 u32 queueSize", RFC_RINGS),
        implied: ["flags", QUEUE_ENABLED],
        impliedIf: ["queueSize", "deviceAddress"],
      },
    },
    proto: {
      id: 0x0b,
      request: INDEX,
      // Linux reads maxSize as a u64: the zero padding behind it is part of the format (2.5).
      response: layout(8, "0 u32 index, 4 u32 maxSize"),
    },
  }),
  request("SET_VQUEUE", {
    v1: {
      id: 0x0a,
      request: layout(40, "0 u32 index, 4 u32 flags, 8 u32 queueSize, 12 u32 mustBeZero", RINGS),
      response: EMPTY,
    },
    "v1-2025": {
      id: 0x0a,
      request: {
        ...layout(40, "0 u32 index, 4 u32 reserved, 8 u32 queueSize, 12 u32 reserved", RINGS),
        implied: ["flags", QUEUE_ENABLED],
      },
      response: EMPTY,
    },
    rfc: { id: 0x0a, request: RFC_SET_VQUEUE, response: EMPTY },
    "rfc-q": { id: 0x0a, request: RFC_SET_VQUEUE, response: RFC_SET_VQUEUE },
    proto: {
      id: 0x0c,
      request: layout(
        32,
        "0 u32 index, 4 u32 queueSize, 8 u64 descriptorAddress, 16 u64 driverAddress",
        "24 u64 deviceAddress",
      ),
    },
  }),
  request("RESET_VQUEUE", {
    v1: { id: 0x0b, request: INDEX, response: EMPTY },
    proto: { id: 0x0d, request: INDEX },
  }),
  request("GET_SHM", {
    v1: {
      id: 0x0c,
      request: INDEX,
      response: layout(24, "0 u32 index, 4 u32 reserved, 8 u64 length, 16 u64 address"),
    },
    "v1-2025": {
      id: 0x0c,
      request: INDEX,
      response: layout(12, "0 u32 index, 4 u32 length, 8 u32 address"),
    },
    "rfc-q": undefined,
  }),
  event("EVENT_CONFIG", "device", {
    v1: {
      id: 0x40,
      request: layout(
        16,
        "0 u32 status, 4 u32 generation, 8 u32 offset, 12 u32 length",
        "16 bytes[length]? bytes",
      ),
    },
    "rfc-q": {
      id: 0x40,
      request: layout(
        32,
        "0 u32 status, 4 u32 generation, 8 u32 offset, 12 u32 length, 16 bytes[16] bytes",
      ),
    },
    proto: {
      id: 0x10,
      request: layout(24, "0 u32 status, 4 u24 offset, 7 u8 length, 8 bytes[16] bytes"),
    },
  }),
  event("EVENT_AVAIL", "driver", {
    v1: { id: 0x41, request: layout(8, "0 u32 index, 4 next nextOffset") },
    proto: {
      id: 0x11,
      request: layout(20, "0 u32 index, 4 u64 nextOffset, 12 u64 nextWrap"),
    },
  }),
  event("EVENT_USED", "device", {
    v1: { id: 0x42, request: INDEX },
    proto: { id: 0x12, request: INDEX },
  }),
];

const BUS_MESSAGES: readonly Definition[] = [
  request("GET_DEVICES", {
    v1: {
      id: 0x02,
      request: SOME_DEVICES,
      response: layout(6, "0 u16 offset, 2 u16 nextOffset, 4 u16 count, 6 bits[count] bytes"),
    },
    "v1-2025": {
      id: 0x02,
      request: SOME_DEVICES,
      // QEMU's has more bytes than it counts (docs/wire.md 3.4); OP-TEE counts devices.
      response: layout(6, "0 u16 offset, 2 u16 count, 4 u16 nextOffset, 6 bits[count]~ bytes"),
    },
  }, { bus: true }),
  request("PING", { v1: { id: 0x03, request: PING, response: PING } }, {
    bus: true,
    sender: "either",
  }),
  event("EVENT_DEVICE", "device", {
    v1: { id: 0x40, request: layout(4, "0 u16 number, 2 u16 state") },
  }, { bus: true }),
];

/** What `proto` and `rfc-q` have under two ids. */
function ofQemu(proto: number, rfc: number, wire: Omit<Wire, "id">): Definition["wire"] {
  return { proto: { id: proto, ...wire }, "rfc-q": { id: rfc, ...wire } };
}

const PROTO_MESSAGES: readonly Definition[] = [
  request("CONNECT", { proto: { id: 0x01, request: EMPTY } }),
  request("DISCONNECT", { proto: { id: 0x02, request: EMPTY } }),
  request("GET_CONFIG_GENERATION", {
    proto: { id: 0x08, request: EMPTY, response: layout(4, "0 u32 generation") },
  }),
  request("IOMMU_ENABLE", ofQemu(0x20, 0x80, { request: layout(1, "0 u8 state") })),
  request(
    "IOMMU_TRANSLATE",
    ofQemu(0x21, 0x81, {
      request: layout(9, "0 u64 address, 8 u8 prot"),
      response: layout(17, "0 u64 address, 8 u64 physicalAddress, 16 u8 prot"),
    }),
    { sender: "device" },
  ),
  request("IOMMU_INVALIDATE", ofQemu(0x22, 0x82, { request: EMPTY })),
];

/** Every message; the position of an entry is its {@link Kind}. */
export const MESSAGES: readonly Definition[] = [
  ...TRANSPORT_MESSAGES,
  ...BUS_MESSAGES,
  ...PROTO_MESSAGES,
  ...BRIDGE_MESSAGES,
  ...PRIVATE_MESSAGES,
];

if (MESSAGES.length !== KIND_COUNT) throw new Error("a message is missing in the table");
MESSAGES.forEach(({ name, kind }, position) => {
  if (kind !== position) throw new Error(`${name} is at ${position}, should be at ${kind}`);
});

/** The dialect that says how a dialect writes what it has no entry for. */
const OLDER: Readonly<Partial<Record<Dialect, Dialect>>> = {
  "v1-2025": "v1",
  rfc: "v1-2025",
  "rfc-q": "rfc",
};

/**
 * How a dialect writes a message, undefined if it does not have it. The private messages and those of a kernel's bridge
 * are `v1`'s only, and `rfc-q` has no bus messages.
 */
export function wireOf({ kind, bus, wire }: Definition, dialect: Dialect): Wire | undefined {
  if (isPrivate(kind) || isOfBridge(kind) || (bus && dialect === "rfc-q")) return wire[dialect];
  let asked: Dialect | undefined = dialect;
  while (asked !== undefined && !(asked in wire)) asked = OLDER[asked];
  return asked && wire[asked];
}

export function kindName(kind: Kind): string {
  return MESSAGES[kind]?.name ?? `kind ${kind}`;
}

/** Whether a kind is a bus message: about the bus and not about one device. */
export function isBusMessage(kind: Kind): boolean {
  return MESSAGES[kind].bus;
}
