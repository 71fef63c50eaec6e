/**
 * The table of messages: everything the rest of the house knows about them comes from here.
 *
 * One entry per {@link Kind}: its name, its class, who sends it, and per dialect its id and the layout
 * of request and answer. Sources: wire document 2.2 for `proto`, 5N.2 for `v1`, 5.2 for `v1-2025`,
 * private.ts for our own. `v1-2025` has entries only where it differs from `v1` (5N.4). A layout that
 * has no answer means a message that is never answered in that dialect; `proto` has several such
 * requests. All layouts are checked when this file loads, against gaps and against the message sizes
 * of wire document 5N.3 and 5.3 and the 40 bytes of 2.1.
 */

import { Kind, KIND_COUNT, QUEUE_ENABLED } from "./message.ts";
import { checkLayout, type Definition, type Dialect, EMPTY, type Layout } from "./layout.ts";
import type { Wire } from "./layout.ts";
import { isPrivate, PRIVATE_MESSAGES } from "./private.ts";

export type { Definition, Layout, LayoutField, Type, Wire } from "./layout.ts";

const INDEX: Layout = { size: 4, fields: [[0, "u32", "index"]] };
const STATUS: Layout = { size: 4, fields: [[0, "u32", "status"]] };
const PING: Layout = { size: 4, fields: [[0, "u32", "data"]] };

const BLOCKS: Layout = {
  size: 8,
  fields: [
    [0, "u32", "index"],
    [4, "u32", "count"],
    [8, "words[count]", "words"],
  ],
};

const CONFIG: Layout = {
  size: 12,
  fields: [
    [0, "u32", "generation"],
    [4, "u32", "offset"],
    [8, "u32", "length"],
    [12, "bytes[length]", "bytes"],
  ],
};

/** `proto` names no block count: it is always one u64, two blocks. */
const PROTO_FEATURES: Layout = {
  size: 12,
  fields: [[0, "u32", "index"], [4, "words[2]", "words"]],
  implied: ["count", 2],
};

/** The data is a u64 of which the Linux flavour uses all 8 bytes, QEMU at most 4 (2.2, 2.6). */
const PROTO_CONFIG: Layout = {
  size: 12,
  fields: [[0, "u24", "offset"], [3, "u8", "length"], [4, "bytes[8]", "bytes"]],
};

const TRANSPORT_MESSAGES: readonly Definition[] = [
  {
    kind: Kind.GET_DEVICE_INFO,
    name: "GET_DEVICE_INFO",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x02,
        request: EMPTY,
        response: {
          size: 44,
          fields: [
            [0, "u32", "deviceId"],
            [4, "u32", "vendorId"],
            [8, "uuid", "uuid"],
            [24, "u32", "featureBlocks"],
            [28, "u32", "configSize"],
            [32, "u32", "maxQueues"],
            [36, "u32", "adminStart"],
            [40, "u32", "adminCount"],
          ],
        },
      },
      "v1-2025": {
        id: 0x02,
        request: EMPTY,
        response: {
          size: 24,
          fields: [
            [0, "u32", "deviceId"],
            [4, "u32", "vendorId"],
            [8, "u32/32", "featureBlocks"],
            [12, "u32", "configSize"],
            [16, "u32", "maxQueues"],
            [20, "u16", "adminStart"],
            [22, "u16", "adminCount"],
          ],
          // From here on it is `v1`'s, whose UUID is where these fields are (5N.7).
          below: 44,
        },
      },
      proto: {
        id: 0x03,
        request: EMPTY,
        response: {
          size: 12,
          fields: [
            [0, "u32", "version"],
            [4, "u32", "deviceId"],
            [8, "u32", "vendorId"],
          ],
        },
      },
    },
  },
  {
    kind: Kind.GET_DEVICE_FEATURES,
    name: "GET_DEVICE_FEATURES",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x03,
        request: { size: 8, fields: [[0, "u32", "index"], [4, "u32", "count"]] },
        response: BLOCKS,
      },
      "v1-2025": {
        id: 0x03,
        request: { size: 8, fields: [[0, "u32", "index"], [4, "u32", "count"]] },
        // A Rust front end sends two blocks and says one (12, row 16).
        response: {
          size: 8,
          fields: [...BLOCKS.fields.slice(0, 2), [8, "words[count]+", "words"]],
        },
      },
      proto: {
        id: 0x04,
        request: { ...INDEX, implied: ["count", 2] },
        response: PROTO_FEATURES,
      },
    },
  },
  {
    kind: Kind.SET_DRIVER_FEATURES,
    name: "SET_DRIVER_FEATURES",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: { id: 0x04, request: BLOCKS, response: EMPTY },
      proto: { id: 0x05, request: PROTO_FEATURES, response: PROTO_FEATURES },
    },
  },
  {
    kind: Kind.GET_CONFIG,
    name: "GET_CONFIG",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x05,
        request: { size: 8, fields: [[0, "u32", "offset"], [4, "u32", "length"]] },
        response: CONFIG,
      },
      proto: {
        id: 0x06,
        request: { size: 4, fields: [[0, "u24", "offset"], [3, "u8", "length"]] },
        response: PROTO_CONFIG,
      },
    },
  },
  {
    kind: Kind.SET_CONFIG,
    name: "SET_CONFIG",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x06,
        request: CONFIG,
        // The answer need not mirror the data (5N.2); Linux ignores it if it does.
        response: {
          size: 12,
          fields: [...CONFIG.fields.slice(0, 3), [12, "bytes[length]?", "bytes"]],
        },
      },
      "v1-2025": { id: 0x06, request: CONFIG, response: CONFIG },
      proto: { id: 0x07, request: PROTO_CONFIG, response: PROTO_CONFIG },
    },
  },
  {
    kind: Kind.GET_DEVICE_STATUS,
    name: "GET_DEVICE_STATUS",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: { id: 0x07, request: EMPTY, response: STATUS },
      proto: { id: 0x09, request: EMPTY, response: STATUS },
    },
  },
  {
    kind: Kind.SET_DEVICE_STATUS,
    name: "SET_DEVICE_STATUS",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: { id: 0x08, request: STATUS, response: STATUS },
      proto: { id: 0x0a, request: STATUS },
    },
  },
  {
    kind: Kind.GET_VQUEUE,
    name: "GET_VQUEUE",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x09,
        request: INDEX,
        response: {
          size: 40,
          fields: [
            [0, "u32", "index"],
            [4, "u32", "maxSize"],
            [8, "u32", "queueSize"],
            [12, "u32", "flags"],
            [16, "u64", "descriptorAddress"],
            [24, "u64", "driverAddress"],
            [32, "u64", "deviceAddress"],
          ],
        },
      },
      "v1-2025": {
        id: 0x09,
        request: INDEX,
        response: {
          size: 40,
          fields: [
            [0, "u32", "index"],
            [4, "u32", "maxSize"],
            [8, "u32", "queueSize"],
            [12, "u32", "reserved"],
            [16, "u64", "descriptorAddress"],
            [24, "u64", "driverAddress"],
            [32, "u64", "deviceAddress"],
          ],
          // A size alone says nothing: QEMU names its default before the queue is set up (12, row 29).
          implied: ["flags", QUEUE_ENABLED],
          impliedIf: ["queueSize", "deviceAddress"],
        },
      },
      proto: {
        id: 0x0b,
        request: INDEX,
        // Linux reads maxSize as a u64: the zero padding behind it is part of the format (2.6).
        response: { size: 8, fields: [[0, "u32", "index"], [4, "u32", "maxSize"]] },
      },
    },
  },
  {
    kind: Kind.SET_VQUEUE,
    name: "SET_VQUEUE",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x0a,
        request: {
          size: 40,
          fields: [
            [0, "u32", "index"],
            [4, "u32", "flags"],
            [8, "u32", "queueSize"],
            [12, "u32", "reserved"],
            [16, "u64", "descriptorAddress"],
            [24, "u64", "driverAddress"],
            [32, "u64", "deviceAddress"],
          ],
        },
        response: EMPTY,
      },
      "v1-2025": {
        id: 0x0a,
        request: {
          size: 40,
          fields: [
            [0, "u32", "index"],
            [4, "u32", "reserved"],
            [8, "u32", "queueSize"],
            [12, "u32", "reserved"],
            [16, "u64", "descriptorAddress"],
            [24, "u64", "driverAddress"],
            [32, "u64", "deviceAddress"],
          ],
          implied: ["flags", QUEUE_ENABLED],
        },
        response: EMPTY,
      },
      proto: {
        id: 0x0c,
        request: {
          size: 32,
          fields: [
            [0, "u32", "index"],
            [4, "u32", "queueSize"],
            [8, "u64", "descriptorAddress"],
            [16, "u64", "driverAddress"],
            [24, "u64", "deviceAddress"],
          ],
        },
      },
    },
  },
  {
    kind: Kind.RESET_VQUEUE,
    name: "RESET_VQUEUE",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: { id: 0x0b, request: INDEX, response: EMPTY },
      proto: { id: 0x0d, request: INDEX },
    },
  },
  {
    kind: Kind.GET_SHM,
    name: "GET_SHM",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x0c,
        request: INDEX,
        response: {
          size: 24,
          fields: [
            [0, "u32", "index"],
            [4, "u32", "reserved"],
            [8, "u64", "length"],
            [16, "u64", "address"],
          ],
        },
      },
      "v1-2025": {
        id: 0x0c,
        request: INDEX,
        response: {
          size: 12,
          fields: [[0, "u32", "index"], [4, "u32", "length"], [8, "u32", "address"]],
        },
      },
    },
  },
  {
    kind: Kind.EVENT_CONFIG,
    name: "EVENT_CONFIG",
    bus: false,
    event: true,
    sender: "device",
    wire: {
      v1: {
        id: 0x40,
        request: {
          size: 16,
          fields: [
            [0, "u32", "status"],
            [4, "u32", "generation"],
            [8, "u32", "offset"],
            [12, "u32", "length"],
            [16, "bytes[length]", "bytes"],
          ],
        },
      },
      proto: {
        id: 0x10,
        request: {
          size: 24,
          fields: [
            [0, "u32", "status"],
            [4, "u24", "offset"],
            [7, "u8", "length"],
            [8, "bytes[16]", "bytes"],
          ],
        },
      },
    },
  },
  {
    kind: Kind.EVENT_AVAIL,
    name: "EVENT_AVAIL",
    bus: false,
    event: true,
    sender: "driver",
    wire: {
      v1: {
        id: 0x41,
        request: { size: 8, fields: [[0, "u32", "index"], [4, "next", "nextOffset"]] },
      },
      proto: {
        id: 0x11,
        request: {
          size: 20,
          fields: [[0, "u32", "index"], [4, "u64", "nextOffset"], [12, "u64", "nextWrap"]],
        },
      },
    },
  },
  {
    kind: Kind.EVENT_USED,
    name: "EVENT_USED",
    bus: false,
    event: true,
    sender: "device",
    wire: { v1: { id: 0x42, request: INDEX }, proto: { id: 0x12, request: INDEX } },
  },
];

const BUS_MESSAGES: readonly Definition[] = [
  {
    kind: Kind.GET_DEVICES,
    name: "GET_DEVICES",
    bus: true,
    event: false,
    sender: "driver",
    wire: {
      v1: {
        id: 0x02,
        request: { size: 4, fields: [[0, "u16", "offset"], [2, "u16", "count"]] },
        response: {
          size: 6,
          fields: [
            [0, "u16", "offset"],
            [2, "u16", "nextOffset"],
            [4, "u16", "count"],
            [6, "bits[count]", "bytes"],
          ],
        },
      },
      "v1-2025": {
        id: 0x02,
        request: { size: 4, fields: [[0, "u16", "offset"], [2, "u16", "count"]] },
        response: {
          size: 6,
          // QEMU's has more bytes than it counts (12, row 13); OP-TEE counts devices (row 15).
          fields: [
            [0, "u16", "offset"],
            [2, "u16", "count"],
            [4, "u16", "nextOffset"],
            [6, "bits[count]~", "bytes"],
          ],
        },
      },
    },
  },
  {
    kind: Kind.PING,
    name: "PING",
    bus: true,
    event: false,
    sender: "either",
    wire: { v1: { id: 0x03, request: PING, response: PING } },
  },
  {
    kind: Kind.EVENT_DEVICE,
    name: "EVENT_DEVICE",
    bus: true,
    event: true,
    sender: "device",
    wire: {
      v1: { id: 0x40, request: { size: 4, fields: [[0, "u16", "number"], [2, "u16", "state"]] } },
    },
  },
];

const PROTO_MESSAGES: readonly Definition[] = [
  {
    kind: Kind.CONNECT,
    name: "CONNECT",
    bus: false,
    event: false,
    sender: "driver",
    wire: { proto: { id: 0x01, request: EMPTY } },
  },
  {
    kind: Kind.DISCONNECT,
    name: "DISCONNECT",
    bus: false,
    event: false,
    sender: "driver",
    wire: { proto: { id: 0x02, request: EMPTY } },
  },
  {
    kind: Kind.GET_CONFIG_GENERATION,
    name: "GET_CONFIG_GENERATION",
    bus: false,
    event: false,
    sender: "driver",
    wire: {
      proto: {
        id: 0x08,
        request: EMPTY,
        response: { size: 4, fields: [[0, "u32", "generation"]] },
      },
    },
  },
  {
    kind: Kind.IOMMU_ENABLE,
    name: "IOMMU_ENABLE",
    bus: false,
    event: false,
    sender: "driver",
    wire: { proto: { id: 0x20, request: { size: 1, fields: [[0, "u8", "state"]] } } },
  },
  {
    kind: Kind.IOMMU_TRANSLATE,
    name: "IOMMU_TRANSLATE",
    bus: false,
    event: false,
    sender: "device",
    wire: {
      proto: {
        id: 0x21,
        request: { size: 9, fields: [[0, "u64", "address"], [8, "u8", "prot"]] },
        response: {
          size: 17,
          fields: [[0, "u64", "address"], [8, "u64", "physicalAddress"], [16, "u8", "prot"]],
        },
      },
    },
  },
  {
    kind: Kind.IOMMU_INVALIDATE,
    name: "IOMMU_INVALIDATE",
    bus: false,
    event: false,
    sender: "driver",
    wire: { proto: { id: 0x22, request: EMPTY } },
  },
];

/** Every message; the position of an entry is its {@link Kind}. */
export const MESSAGES: readonly Definition[] = [
  ...TRANSPORT_MESSAGES,
  ...BUS_MESSAGES,
  ...PROTO_MESSAGES,
  ...PRIVATE_MESSAGES,
];

/**
 * How a dialect writes a message, undefined if it does not have it. `v1-2025` is `v1` except where the
 * table says otherwise, and without the private messages.
 */
export function wireOf(definition: Definition, dialect: Dialect): Wire | undefined {
  const { kind, wire } = definition;
  if (dialect !== "v1-2025" || isPrivate(kind)) return wire[dialect];
  return wire["v1-2025"] ?? wire.v1;
}

/** The name of a message. */
export function kindName(kind: Kind): string {
  return MESSAGES[kind]?.name ?? `kind ${kind}`;
}

/** Smallest sizes in `v1`, header included: request or event, answer (wire document 5N.3). */
const V1_SIZES: readonly (readonly [Kind, number, number])[] = [
  [Kind.GET_DEVICE_INFO, 8, 52],
  [Kind.GET_DEVICE_FEATURES, 16, 16],
  [Kind.SET_DRIVER_FEATURES, 16, 8],
  [Kind.GET_CONFIG, 16, 20],
  [Kind.SET_CONFIG, 20, 20],
  [Kind.GET_DEVICE_STATUS, 8, 12],
  [Kind.SET_DEVICE_STATUS, 12, 12],
  [Kind.GET_VQUEUE, 12, 48],
  [Kind.SET_VQUEUE, 48, 8],
  [Kind.RESET_VQUEUE, 12, 8],
  [Kind.GET_SHM, 12, 32],
  [Kind.EVENT_CONFIG, 24, 0],
  [Kind.EVENT_AVAIL, 16, 0],
  [Kind.EVENT_USED, 12, 0],
  [Kind.GET_DEVICES, 12, 14],
  [Kind.PING, 12, 12],
  [Kind.EVENT_DEVICE, 12, 0],
  [Kind.HELLO, 36, 36],
  [Kind.ADD_MEMORY, 48, 20],
  [Kind.REMOVE_MEMORY, 40, 20],
  [Kind.STOP_VQUEUE, 24, 28],
  [Kind.SET_VQUEUE_STATE, 28, 20],
];

/** Where `v1-2025` differs in that (wire document 5.3). */
const V1_2025_SIZES: readonly (readonly [Kind, number, number])[] = [
  [Kind.GET_DEVICE_INFO, 8, 32],
  [Kind.GET_SHM, 12, 20],
  ...PRIVATE_MESSAGES.map(({ kind }) => [kind, 0, 0] as const),
];

/** `proto` has 36 bytes behind its header. */
const PROTO_PAYLOAD = 36;
const V1_HEADER = 8;

function checkTable(): void {
  if (MESSAGES.length !== KIND_COUNT) throw new Error("a message is missing in the table");
  MESSAGES.forEach((definition, position) => {
    const { name, kind, wire } = definition;
    if (kind !== position) throw new Error(`${name} is at ${position}, should be at ${kind}`);
    if (Kind[name as keyof typeof Kind] !== kind) throw new Error(`${name} is misnamed`);
    for (const [dialect, entry] of Object.entries(wire)) {
      checkLayout(`${dialect} ${name} request`, entry.request);
      if (entry.response) checkLayout(`${dialect} ${name} response`, entry.response);
      if (definition.event && entry.response) throw new Error(`${name} is an event with an answer`);
    }
    const { proto } = wire;
    if (proto && Math.max(proto.request.size, proto.response?.size ?? 0) > PROTO_PAYLOAD) {
      throw new Error(`proto ${name} does not fit`);
    }
  });
  checkSizes("v1", V1_SIZES);
  checkSizes("v1-2025", [...V1_SIZES, ...V1_2025_SIZES]);
}

/** Of two entries for a kind the later one counts; a size of 0 means that there is no such message. */
function checkSizes(dialect: Dialect, list: readonly (readonly [Kind, number, number])[]): void {
  const sizes = new Map<Kind, readonly [number, number]>();
  for (const [kind, request, response] of list) sizes.set(kind, [request, response]);
  for (const definition of MESSAGES) {
    const wire = wireOf(definition, dialect);
    const [request, response] = sizes.get(definition.kind) ?? [0, 0];
    if (sizeOf(wire?.request) !== request) {
      throw new Error(`${dialect} ${definition.name}: request should have ${request} bytes`);
    }
    if (sizeOf(wire?.response) !== response) {
      throw new Error(`${dialect} ${definition.name}: answer should have ${response} bytes`);
    }
  }
}

function sizeOf(layout: Layout | undefined): number {
  return layout === undefined ? 0 : layout.size + V1_HEADER;
}

checkTable();

/** Whether a kind is a bus message: about the bus and not about one device. */
export function isBusMessage(kind: Kind): boolean {
  return MESSAGES[kind].bus;
}
