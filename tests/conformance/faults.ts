/**
 * Peers that are wrong in one way each: what one of our own sides says is changed by a relay. With each go
 * the rules that must find it.
 */

import type { Dialect } from "../../src/message/codec.ts";
import type { Change, From } from "./relay.ts";

/** One way of being wrong. */
export interface Fault {
  readonly what: string;
  /** Numbers of the rules that must find it. */
  readonly breaks: string;
  readonly dialect: Dialect;
  /** A fresh one for each rule. */
  readonly change: () => Change;
  /** It is found without a hand on the driver side. */
  readonly unled: boolean;
}

interface How {
  readonly change: () => Change;
  readonly dialect?: Dialect;
  readonly unled?: boolean;
}

function fault(
  breaks: string,
  what: string,
  { change, dialect = "v1", unled = false }: How,
): Fault {
  return { breaks, what, change, dialect, unled };
}

/** Ids of revision 1. */
const Id = {
  INFO: 0x02,
  GET_FEATURES: 0x03,
  SET_FEATURES: 0x04,
  GET_CONFIG: 0x05,
  SET_CONFIG: 0x06,
  GET_STATUS: 0x07,
  SET_STATUS: 0x08,
  GET_QUEUE: 0x09,
  SET_QUEUE: 0x0a,
  RESET_QUEUE: 0x0b,
  GET_SHM: 0x0c,
  EVENT_CONFIG: 0x40,
  EVENT_AVAIL: 0x41,
  EVENT_USED: 0x42,
} as const;
const PING = 0x203;
const GET_DEVICES = 0x202;
const EVENT_DEVICE = 0x240;
const NOBODY = 0xfffe;

type Edit = (view: DataView, bytes: Uint8Array) => void;

/** Class and id: bus messages from 0x200 on. */
const idOf = (bytes: Uint8Array) => bytes[1]! | (bytes[0]! & 2) << 8;
const isAnswer = (bytes: Uint8Array) => (bytes[0]! & 1) !== 0;
const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer);

/** A message of 64 bytes to or from device 3. */
function message(...bytes: number[]): Uint8Array {
  const slot = new Uint8Array(64);
  slot.set(bytes);
  return slot;
}

/** Changes what one side says, if it is one of these. */
function edit(from: From, ids: readonly number[] | "all", change: Edit): () => Change {
  return () => (who, bytes) => {
    const isIt = who === from && (ids === "all" || ids.includes(idOf(bytes)));
    if (isIt) change(viewOf(bytes), bytes);
    return [bytes];
  };
}

/** As {@link edit}, of what has answer's bit. */
const editAnswer = (id: number, change: Edit) =>
  edit("device", [id], (view, bytes) => {
    if (isAnswer(bytes)) change(view, bytes);
  });

/** One side does not say these. */
const omit = (from: From, which: (bytes: Uint8Array) => boolean) => (): Change => (who, bytes) =>
  who === from && which(bytes) ? [] : [bytes];

/** One side says more: beside each of these, what is made of it. */
const add = (
  from: From,
  which: (bytes: Uint8Array, view: DataView) => boolean,
  make: (bytes: Uint8Array) => Uint8Array,
  where: "before" | "behind" = "behind",
) =>
(): Change =>
(who, bytes) => {
  if (who !== from || !which(bytes, viewOf(bytes))) return [bytes];
  return where === "before" ? [make(bytes), bytes] : [bytes, make(bytes)];
};

/** What the other side says leads this side to say something, with the next thing that it says. */
const react = (
  from: From,
  to: (bytes: Uint8Array) => boolean,
  make: (bytes: Uint8Array) => Uint8Array,
) =>
(): Change => {
  const waiting: Uint8Array[] = [];
  return (who, bytes) => {
    if (who === from) return [bytes, ...waiting.splice(0)];
    if (to(bytes)) waiting.push(make(bytes.slice()));
    return [bytes];
  };
};

const answerTo = (bytes: Uint8Array) => {
  bytes[0]! |= 1;
  return bytes;
};
const is = (id: number) => (bytes: Uint8Array) => idOf(bytes) === id;
const status = (value: number) => (bytes: Uint8Array) =>
  idOf(bytes) === Id.SET_STATUS && bytes[8] === value;
const knownIds = new Set<number>([...Object.values(Id), PING, GET_DEVICES]);

/** SET_VQUEUE, as the device gets to see it. */
const editSetQueue = (change: Edit) => edit("driver", [Id.SET_QUEUE], change);

/** Device sides that do SET_VQUEUE and RESET_VQUEUE otherwise than the text of 2026. */
const QUEUE_FAULTS: readonly Fault[] = [
  fault("V45 V46 V47", "SET_VQUEUE always takes all and enables", {
    change: editSetQueue((_, b) => b[12] = 1),
  }),
  fault("V48", "SET_VQUEUE resets the queue first", {
    change: add("driver", (b) => idOf(b) === Id.SET_QUEUE && (b[12]! & 3) === 1, (b) => {
      return message(0, Id.RESET_QUEUE, 3, 0, 0x77, 0x77, 12, 0, b[8]!);
    }, "before"),
  }),
  fault("V49", "reserved bits are ignored", {
    change: editSetQueue((v) => {
      v.setUint32(12, v.getUint32(12, true) & 0x3d, true);
      v.setUint32(20, 0, true);
    }),
  }),
  fault("V50", "a size that cannot be is made one that can", {
    change: editSetQueue((v) => {
      if (![16, 64].includes(v.getUint32(16, true))) v.setUint32(16, 64, true);
    }),
  }),
  fault("V50", "an address that cannot be is made one that can", {
    change: editSetQueue((_, b) => [24, 32, 40].forEach((at) => b[at]! &= ~1)),
  }),
  fault("V51", "an index that does not exist is queue 0's", {
    change: editSetQueue((v) => v.setUint32(8, v.getUint32(8, true) % 3, true)),
  }),
  fault("V52", "RESET_VQUEUE is done without RING_RESET", {
    change: () => {
      let isReset = false;
      return (from, bytes) => {
        isReset ||= idOf(bytes) === Id.RESET_QUEUE;
        if (isReset && from === "device" && idOf(bytes) === Id.GET_QUEUE) bytes.fill(0, 16, 48);
        return [bytes];
      };
    },
  }),
];

/** Wrong device sides. */
export const DEVICE_FAULTS: readonly Fault[] = [
  fault("G1", "an index with its bytes the other way round", {
    change: editAnswer(Id.GET_FEATURES, (v) => v.setUint32(8, v.getUint32(8), true)),
  }),
  fault("G2", "a size that is one too much", {
    change: editAnswer(Id.GET_STATUS, (v) => v.setUint16(6, 13, true)),
  }),
  fault("G3", "an answer of 65 bytes", {
    change: editAnswer(Id.GET_CONFIG, (v) => v.setUint16(6, v.getUint16(6, true) + 1, true)),
  }),
  fault("G4", "a type bit more", { change: edit("device", "all", (_, b) => b[0]! |= 0x80) }),
  fault("G4", "type bits are not ignored", { change: omit("driver", (b) => b[0]! > 3) }),
  fault("G5", "SET_VQUEUE with something in a reserved field is not taken", {
    dialect: "v1-2025",
    change: omit("driver", (b) => idOf(b) === Id.SET_QUEUE && b[20] !== 0),
  }),
  fault("G6 B16", "a slot that holds an older message", {
    change: edit("device", "all", (_, b) => b[63] = 7),
  }),
  fault("G7", "PING's answer with a device number", {
    change: edit("device", [PING], (_, b) => b[2] = 3),
  }),
  fault("G7 G10 V28", "another device's number", {
    change: editAnswer(Id.GET_STATUS, (_, b) => b[2] = 4),
  }),
  fault("G9", "an event with a token", {
    change: edit("device", [Id.EVENT_USED], (_, b) => b[4] = 7),
  }),
  fault("G10 G12 G13 G20", "tokens of one byte", {
    change: edit("device", "all", (_, b) => b[5] = 0),
  }),
  fault("G11", "an answer is taken for a request", {
    change: edit("driver", "all", (_, b) => b[0]! &= ~1),
  }),
  fault("G13 G20 V1", "every answer twice", { change: add("device", isAnswer, (b) => b) }),
  fault("G14 G15 G17 G22 B4 B15 B20", "whatever cannot be done is answered", {
    change: react(
      "device",
      (b) =>
        !knownIds.has(idOf(b)) || (b[1]! & 0x40) !== 0 || viewOf(b).getUint16(2, true) === NOBODY,
      (b) => {
        // As the answer to what it may have been.
        if (!knownIds.has(idOf(b)) || (b[1]! & 0x40) !== 0) b.set([1, Id.RESET_QUEUE]);
        viewOf(b).setUint16(6, 12, true);
        return answerTo(b);
      },
    ),
  }),
  fault("G23", "what finds a queue full is lost (the relay's way)", {
    change: () => (_, bytes) => [bytes],
  }),
  fault("G16", "a message of a revision to come", {
    change: add("device", isAnswer, () => message(0, 0x3f, 3, 0, 0, 0, 8, 0)),
  }),
  fault("G19 V11 V15 V16 V17 V18 V41", "EVENT_CONFIG of 25 bytes", {
    change: edit("device", [Id.EVENT_CONFIG], (v) => v.setUint16(6, 25, true)),
  }),
  fault("V1", "RESET_VQUEUE is not answered", { change: omit("device", is(Id.RESET_QUEUE)) }),
  fault("V2 V19", "one queue too few is told", {
    change: editAnswer(Id.INFO, (v) => v.setUint32(40, v.getUint32(40, true) - 1, true)),
  }),
  fault("V3", "65 feature bits", {
    dialect: "v1-2025",
    change: editAnswer(Id.INFO, (v) => v.setUint32(16, 65, true)),
  }),
  fault("V4", "a device on every number", {
    change: editAnswer(Id.INFO, (v) => v.setUint32(8, 1, true)),
  }),
  fault("V5", "features repeat beyond their blocks", {
    change: editAnswer(Id.GET_FEATURES, (v) => v.setUint32(16, 0x20, true)),
  }),
  fault("V6", "a count of 1 whatever was asked", {
    change: editAnswer(Id.GET_FEATURES, (v) => {
      v.setUint32(12, 1, true);
      v.setUint16(6, 20, true);
    }),
  }),
  fault("V7 V8", "SET_DEVICE_STATUS answers what was asked", {
    change: () => {
      let asked = 0;
      return (from, bytes) => {
        if (idOf(bytes) !== Id.SET_STATUS) return [bytes];
        if (from === "driver") asked = bytes[8]!;
        else bytes[8] = asked;
        return [bytes];
      };
    },
  }),
  fault("V9 V20 V24 V32 V42", "a queue always shows a size", {
    change: editAnswer(Id.GET_QUEUE, (v) => v.setUint32(16, 64, true)),
  }),
  fault("V10", "the generation begins anew at a reset", {
    dialect: "v1-2025",
    change: () => {
      let resets = 0;
      return (from, bytes) => {
        if (from === "driver" && status(0)(bytes)) resets++;
        const isIt = from === "device" && idOf(bytes) === Id.GET_CONFIG;
        if (isIt) viewOf(bytes).setUint32(8, resets, true);
        return [bytes];
      };
    },
  }),
  fault("V11 V16 V59", "changes keep their generation", {
    change: edit("device", [Id.GET_CONFIG, Id.SET_CONFIG, Id.EVENT_CONFIG], (v, b) => {
      v.setUint32(idOf(b) === Id.EVENT_CONFIG ? 12 : 8, 1, true);
    }),
  }),
  fault("V15", "a change is announced with another generation", {
    change: edit("device", [Id.EVENT_CONFIG], (v) => v.setUint32(12, 99, true)),
  }),
  fault("V17 V60", "a change of everything is announced as one of four bytes", {
    change: edit("device", [Id.EVENT_CONFIG], (v) => {
      v.setUint32(20, 4, true);
      v.setUint16(6, 28, true);
    }),
  }),
  fault("V30", "GET_DEVICE_INFO is answered after a status only", {
    change: () => {
      let isKnown = false;
      return (from, bytes) => {
        isKnown ||= idOf(bytes) === Id.SET_STATUS;
        return from === "device" && idOf(bytes) === Id.INFO && !isKnown ? [] : [bytes];
      };
    },
  }),
  fault("V12", "GET_CONFIG answers from the beginning", {
    change: edit("driver", [Id.GET_CONFIG], (v) => v.setUint32(8, 0, true)),
  }),
  fault("V13", "any generation will do", {
    dialect: "v1-2025",
    change: () => {
      let latest = 0;
      return (from, bytes) => {
        const isRead = from === "device" && idOf(bytes) === Id.GET_CONFIG;
        if (isRead) latest = viewOf(bytes).getUint32(8, true);
        const isWrite = from === "driver" && idOf(bytes) === Id.SET_CONFIG;
        if (isWrite) viewOf(bytes).setUint32(8, latest, true);
        return [bytes];
      };
    },
  }),
  fault("V14", "what was not written is mirrored", {
    dialect: "v1-2025",
    change: editAnswer(Id.SET_CONFIG, (_, b) => b[20]! ^= 0xff),
  }),
  fault("V18", "NEEDS_RESET is announced without its bit", {
    change: edit("device", [Id.EVENT_CONFIG], (_, b) => b[8]! &= ~0x40),
  }),
  fault("V21 V23 V33 G5", "a queue forgets its descriptor area", {
    change: editAnswer(Id.GET_QUEUE, (v) => v.setUint32(24, 0, true)),
  }),
  fault("V22", "EVENT_AVAIL of no queue is followed by EVENT_USED", {
    change: react("device", is(Id.EVENT_AVAIL), () => message(0, Id.EVENT_USED, 3, 0, 0, 0, 12, 0)),
  }),
  fault("V26 B6", "every second EVENT_USED is lost", {
    change: () => {
      let count = 0;
      return (_, bytes) => idOf(bytes) === Id.EVENT_USED && count++ % 2 === 1 ? [] : [bytes];
    },
  }),
  fault("V27", "a region of shared memory", {
    dialect: "v1-2025",
    change: editAnswer(Id.GET_SHM, (v) => v.setUint32(12, 4096, true)),
  }),
  fault("V38", "a region of shared memory", {
    change: editAnswer(Id.GET_SHM, (v) => v.setUint32(16, 4096, true)),
  }),
  fault("V29", "an answer of the size of 2025", {
    change: editAnswer(Id.INFO, (v) => v.setUint16(6, 32, true)),
  }),
  fault("V31", "admin queues outside", {
    change: editAnswer(Id.INFO, (v) => v.setUint32(48, 9, true)),
  }),
  fault("V35", "a generation from 999 on is refused", {
    change: edit("driver", [Id.SET_CONFIG], (v) => {
      if (v.getUint32(8, true) >= 999) v.setUint32(12, 0xffff_ffff, true);
    }),
  }),
  fault("V37 V58 V2", "a write across the end takes part of it", {
    change: editAnswer(Id.SET_CONFIG, (v) => {
      if (v.getUint32(16, true) !== 0) return;
      v.setUint32(16, 1, true);
      v.setUint16(6, 21, true);
    }),
  }),
  fault("V39", "NOTIF_CONFIG_DATA is offered", {
    change: editAnswer(Id.GET_FEATURES, (_, b) => b[20]! |= 0x80),
  }),
  fault("B7 B34", "NOTIFICATION_DATA is offered", {
    change: editAnswer(Id.GET_FEATURES, (_, b) => b[20]! |= 0x40),
  }),
  fault("V43", "ACCESS_PLATFORM is not offered", {
    change: editAnswer(Id.GET_FEATURES, (_, b) => b[20]! &= ~2),
  }),
  fault("V40", "each status is announced", {
    change: react(
      "device",
      is(Id.SET_STATUS),
      (b) => message(0, Id.EVENT_CONFIG, 3, 0, 0, 0, 24, 0, b[8]!),
    ),
  }),
  fault("B8 B9 B10", "GET_DEVICES goes on in the middle of its window", {
    dialect: "v1-2025",
    change: edit("device", [GET_DEVICES], (v) => v.setUint16(12, 3, true)),
  }),
  fault("B11", "GET_DEVICES counts what it does not bring", {
    dialect: "v1-2025",
    change: edit("device", [GET_DEVICES], (v) => v.setUint16(10, 1024, true)),
  }),
  fault("B18", "GET_DEVICES' words in the order of 2025", {
    change: edit("device", [GET_DEVICES], (v) => {
      const next = v.getUint16(10, true);
      v.setUint16(10, v.getUint16(12, true), true);
      v.setUint16(12, next, true);
    }),
  }),
  fault("B12", "PING's data is changed", { change: edit("device", [PING], (_, b) => b[8]! ^= 1) }),
  ...QUEUE_FAULTS,
  fault("V53", "what is offered is what was accepted", {
    change: () => {
      let isWritten = false;
      return (from, bytes) => {
        isWritten ||= idOf(bytes) === Id.SET_FEATURES;
        const isIt = isWritten && from === "device" && idOf(bytes) === Id.GET_FEATURES;
        if (isIt) viewOf(bytes).setUint32(16, 0, true);
        return [bytes];
      };
    },
  }),
  fault("V54", "a block is taken for all of them", {
    change: edit("driver", [Id.SET_FEATURES], (v) => {
      if (v.getUint32(8, true) !== 0 || v.getUint32(12, true) !== 1) return;
      v.setUint32(12, 2, true);
      v.setUint16(6, 24, true);
    }),
  }),
  fault("V55", "a feature block less than there is", {
    change: editAnswer(Id.INFO, (v) => v.setUint32(32, 1, true)),
  }),
  fault("V56", "a UUID that is none", { change: editAnswer(Id.INFO, (_, b) => b[16] = 1) }),
  fault("V56", "a UUID without a version", { change: editAnswer(Id.INFO, (_, b) => b[24] = 0x80) }),
  fault("V56", "one UUID for all devices", {
    change: editAnswer(Id.INFO, (_, b) => b.set([0x40, 0, 0x80], 22)),
  }),
  fault("V56", "another UUID each time", {
    change: () => {
      let count = 1;
      return (from, bytes) => {
        if (from === "device" && idOf(bytes) === Id.INFO) bytes.set([count++, 0x80], 23);
        return [bytes];
      };
    },
  }),
  fault("V57", "status 0 is answered and not done", {
    change: () => {
      let token = -1;
      return (from, bytes) => {
        const [view, isReset] = [viewOf(bytes), from === "driver" && status(0)(bytes)];
        if (isReset) {
          token = view.getUint16(4, true);
          bytes[1] = Id.GET_STATUS;
          view.setUint16(6, 8, true);
        } else if (from === "device" && view.getUint16(4, true) === token) {
          bytes.set([1, Id.SET_STATUS]);
          bytes[8] = 0;
        }
        return [bytes];
      };
    },
  }),
  fault("B31", "GET_DEVICES goes on where it was", {
    change: edit("device", [GET_DEVICES], (v) => v.setUint16(10, v.getUint16(8, true), true)),
  }),
  fault("B31", "GET_DEVICES with something in spare bits", {
    change: edit("device", [GET_DEVICES], (v, b) => {
      if (v.getUint16(12, true) % 8 !== 0) b[viewOf(b).getUint16(6, true) - 1]! |= 0x80;
    }),
  }),
  fault("B32", "events wait for the next answer", {
    change: () => {
      const waiting: Uint8Array[] = [];
      return (from, bytes) => {
        if (from === "driver") return [bytes];
        if (isAnswer(bytes)) return [bytes, ...waiting.splice(0)];
        waiting.push(bytes);
        return [];
      };
    },
  }),
  fault("P1", "SET_DEVICE_STATUS is answered", {
    dialect: "proto",
    change: react("device", is(0x0a), answerTo),
  }),
  fault("P2", "every answer twice", {
    dialect: "proto",
    change: add("device", isAnswer, (b) => b),
  }),
  fault("P3", "a type of 3", {
    dialect: "proto",
    change: edit("device", "all", (_, b) => b[0]! |= 2),
  }),
  fault("P7", "an older message shows", {
    dialect: "proto",
    change: edit("device", "all", (_, b) => b[20] = 7),
  }),
  fault("P10", "IOMMU_INVALIDATE", {
    dialect: "proto",
    change: react("device", is(0x09), () => message(0, 0x22, 3, 0)),
  }),
  fault("P12", "an event for each of 140 changes", {
    dialect: "proto",
    change: () => (from, bytes) =>
      from === "device" && bytes[1] === 0x10 ? new Array<Uint8Array>(140).fill(bytes) : [bytes],
  }),
  fault("P13", "no GET_VQUEUE after SET_VQUEUE", {
    dialect: "proto",
    change: () => {
      let isSet = false;
      return (_, bytes) => {
        isSet ||= bytes[1] === 0x0c;
        return isSet && bytes[1] === 0x0b ? [] : [bytes];
      };
    },
  }),
];

/** A request of our own, in the name of the driver; nobody waits for its answer. */
const request = (id: number, ...payload: number[]) =>
  message(0, id, 3, 0, 0x77, 0x77, 8 + payload.length, 0, ...payload);
const word = (value: number) => [value & 0xff, value >> 8 & 0xff, value >> 16 & 0xff, value >>> 24];
const queue = (index: number, size: number) =>
  request(Id.SET_QUEUE, ...[index, 1, size, 0, 4096, 0, 8192, 0, 12288, 0].flatMap(word));
const kick = (index: number) => message(0, Id.EVENT_AVAIL, 3, 0, 0, 0, 16, 0, index);
const echo = react("driver", (b) => !isAnswer(b) && idOf(b) !== PING, (b) => {
  if (!knownIds.has(idOf(b)) || (b[1]! & 0x40) !== 0) b.set([1, Id.RESET_QUEUE]);
  return answerTo(b);
});

const writeConfig = (generation: number) =>
  request(Id.SET_CONFIG, ...[generation, 0, 1].flatMap(word), 7);
const readConfig = (offset: number, length: number) =>
  request(Id.GET_CONFIG, ...[offset, length].flatMap(word));

/** Wrong driver sides that do, or do not, what ours does only if it is led. */
const UNLED_FAULTS: readonly Fault[] = [
  fault("R20 R29", "SET_CONFIG with a generation, behind DRIVER_OK", {
    unled: true,
    change: add("driver", status(0x0f), () => writeConfig(41)),
  }),
  fault("R8", "SET_CONFIG with generation 0, behind DRIVER_OK", {
    unled: true,
    dialect: "v1-2025",
    change: add("driver", status(0x0f), () => writeConfig(0)),
  }),
  fault("R9", "SET_CONFIG is repeated with every notification", {
    unled: true,
    change: () => (from, bytes) =>
      from === "driver" && status(0x0f)(bytes)
        ? [bytes, writeConfig(0), writeConfig(0), writeConfig(0)]
        : [bytes],
  }),
  fault("R18", "60 bytes of configuration at once, behind DRIVER_OK", {
    unled: true,
    change: add("driver", status(0x0f), () => readConfig(0, 60)),
  }),
  fault("R21", "a read in two parts, whatever their generations", {
    unled: true,
    change: () => (from, bytes) =>
      from === "driver" && status(0x0f)(bytes)
        ? [bytes, readConfig(0, 44), readConfig(44, 6)]
        : [bytes],
  }),
  fault("R24 B27", "a request without an answer leads to no reset", {
    unled: true,
    change: omit("driver", status(0)),
  }),
  fault("B19", "GET_DEVICES is asked once", {
    change: add(
      "driver",
      is(Id.INFO),
      () => message(2, 2, 0, 0, 0x77, 0x77, 12, 0, 0, 0, 64, 0),
      "before",
    ),
  }),
  fault("B36", "a PING without an answer is not minded", {
    change: () => {
      let isUp = false;
      return (from, bytes) => {
        if (from === "device") return [bytes];
        if (isUp && [Id.GET_STATUS, Id.SET_STATUS].some((id) => is(id)(bytes))) return [];
        isUp ||= status(0x0f)(bytes);
        const ping = message(2, 3, 0, 0, 0x77, 0x77, 12, 0, 1);
        return is(Id.EVENT_AVAIL)(bytes) ? [bytes, ping] : [bytes];
      };
    },
  }),
  fault("P9", "an IOMMU that is enabled translates nothing", {
    dialect: "proto",
    change: add("driver", is(0x04), () => message(0, 0x20, 3, 0, 1)),
  }),
];

/** Wrong driver sides. */
export const DRIVER_FAULTS: readonly Fault[] = [
  ...UNLED_FAULTS,
  fault("G1 G3", "a size with its bytes the other way round", {
    change: edit("driver", [Id.INFO], (v) => v.setUint16(6, v.getUint16(6, true))),
  }),
  fault("G2", "a size that is one too much", {
    change: edit("driver", [Id.SET_STATUS], (v) => v.setUint16(6, 13, true)),
  }),
  fault("G4", "a type bit more", { change: edit("driver", "all", (_, b) => b[0]! |= 0x80) }),
  fault("G4", "type bits are not ignored", { change: omit("device", (b) => b[0]! > 3) }),
  fault("G5 R30", "something in a reserved field", {
    change: edit("driver", [Id.SET_QUEUE], (_, b) => b[20] = 7),
  }),
  fault("G6 B16", "a slot that holds an older message", {
    change: edit("driver", "all", (_, b) => b[63] = 7),
  }),
  fault("G6 G21", "only answers that end with zeros are taken", {
    change: omit("device", (b) => b[59] === 0xee),
  }),
  fault("G7", "PING's answer with a device number", {
    change: edit("driver", [PING], (_, b) => b[2] = 3),
  }),
  fault("G8", "requests with token 0", {
    change: edit("driver", "all", (_, b) => b.fill(0, 4, 6)),
  }),
  fault("G9", "an event with a token", {
    change: edit("driver", [Id.EVENT_AVAIL], (_, b) => b[4] = 7),
  }),
  fault("G10", "PING's answer with another token", {
    change: edit("driver", [PING], (_, b) => b[4]! ^= 1),
  }),
  fault("G11 G18", "any answer is taken for the one that is waited for", {
    change: () => {
      const open = [0, 0];
      return (from, bytes) => {
        const isIt = idOf(bytes) === Id.SET_STATUS;
        if (from === "driver" && isIt) open.splice(0, 2, bytes[4]!, bytes[5]!);
        if (from === "device" && isIt) bytes.set(open, 4);
        return [bytes];
      };
    },
  }),
  fault("G14 G15 G17 G19", "whatever cannot be done is answered", { change: echo }),
  fault("G22", "an event is one, with an answer's bit or without", {
    change: edit("device", "all", (_, b) => {
      if ((b[1]! & 0x40) !== 0) b[0]! &= ~1;
    }),
  }),
  fault("G16", "a message of a revision to come", {
    change: add("driver", is(Id.INFO), () => message(0, 0x3f, 3, 0, 0, 0, 8, 0)),
  }),
  fault("B5 R1", "GET_DEVICE_STATUS comes first", {
    change: add("driver", is(Id.INFO), () => request(Id.GET_STATUS), "before"),
  }),
  fault("B7 B34", "NOTIFICATION_DATA is accepted", {
    change: edit("driver", [Id.SET_FEATURES], (_, b) => b[20]! |= 0x40),
  }),
  fault("B12", "PING's data is changed", { change: edit("driver", [PING], (_, b) => b[8]! ^= 1) }),
  fault("R2", "a feature that is not offered is accepted", {
    change: edit("driver", [Id.SET_FEATURES], (_, b) => b[21]! |= 0x10),
  }),
  fault("R3", "a queue is set up, FEATURES_OK or not", {
    change: add("driver", status(0x0b), () => queue(0, 64)),
  }),
  fault("R4", "a queue larger than it can be", {
    change: edit("driver", [Id.SET_QUEUE], (v) => v.setUint32(16, 2048, true)),
  }),
  fault("R5", "a queue of largest size 0 is set up", {
    change: add("driver", is(Id.GET_QUEUE), () => queue(1, 64)),
  }),
  fault("R26", "NOTIF_CONFIG_DATA is accepted", {
    change: edit("driver", [Id.SET_FEATURES], (_, b) => b[20]! |= 0x80),
  }),
  fault("R6 R10 R32", "EVENT_AVAIL before any queue is set up", {
    change: add("driver", status(0x0b), () => kick(0)),
  }),
  fault("R32", "EVENT_AVAIL behind a reset of a queue that was set up before it", {
    change: () => {
      let resets = 0;
      return (from, bytes) => {
        if (from === "driver" && status(0)(bytes)) resets++;
        return resets > 1 && status(0x0b)(bytes) && from === "driver" ? [kick(0), bytes] : [bytes];
      };
    },
  }),
  fault("R33", "EVENT_AVAIL before DRIVER_OK was answered", {
    change: add("driver", status(0x0f), () => kick(0)),
  }),
  fault("R7", "configuration beyond its end", {
    change: add("driver", is(Id.INFO), () => request(Id.GET_CONFIG, 10, 0, 0, 0, 4, 0, 0, 0)),
  }),
  fault("R8", "SET_CONFIG with generation 0", {
    dialect: "v1-2025",
    change: edit("driver", [Id.SET_CONFIG], (v) => v.setUint32(8, 0, true)),
  }),
  fault("R9", "a refused SET_CONFIG is repeated", {
    change: add("driver", is(Id.SET_CONFIG), (b) => b),
  }),
  fault("R10", "EVENT_AVAIL of a queue that there is not", {
    change: edit("driver", [Id.EVENT_AVAIL], (_, b) => b[8] = 9),
  }),
  fault("R11", "EVENT_AVAIL with an index", {
    change: edit("driver", [Id.EVENT_AVAIL], (_, b) => b[12] = 9),
  }),
  fault("R14 R15", "a reset is some other status", {
    change: () => {
      let isUp = false;
      return (from, bytes) => {
        if (isUp && from === "driver" && status(0)(bytes)) bytes[8] = 0x80;
        isUp ||= status(0x0f)(bytes);
        return [bytes];
      };
    },
  }),
  fault("R16", "RESET_VQUEUE with every reset", {
    change: add("driver", status(0), () => request(Id.RESET_QUEUE, 0, 0, 0, 0)),
  }),
  fault("R18", "60 bytes of configuration at once", {
    change: edit("driver", [Id.GET_CONFIG], (v) => {
      if (v.getUint32(12, true) > 6) v.setUint32(12, 60, true);
    }),
  }),
  fault("R19", "only the first blocks are written", {
    change: edit("driver", [Id.SET_FEATURES], (v) => v.setUint32(8, 0, true)),
  }),
  fault("R20 R29", "SET_CONFIG with a generation", {
    change: edit("driver", [Id.SET_CONFIG], (v) => v.setUint32(8, 41, true)),
  }),
  fault("R21", "a generation that moves is not seen", {
    change: edit("device", [Id.GET_CONFIG], (v) => v.setUint32(8, 1, true)),
  }),
  fault("R12", "a change is not heard of", { change: omit("device", is(Id.EVENT_CONFIG)) }),
  fault("R31", "DRIVER_OK, whether the queue was taken or not", {
    change: add("driver", is(Id.SET_QUEUE), () => request(Id.SET_STATUS, 0x0f, 0, 0, 0)),
  }),
  fault("R23", "features are read while the reset goes on", {
    change: add("driver", status(0), () => request(Id.GET_FEATURES, 0, 0, 0, 0, 2, 0, 0, 0)),
  }),
  fault("R27", "a range without data is dropped", {
    change: omit("device", (b) => idOf(b) === Id.EVENT_CONFIG && b[20] !== 0 && b[6] === 24),
  }),
  fault("R28", "a generation before the last one is not taken", {
    change: () => {
      let latest = 0;
      return (from, bytes) => {
        if (from === "driver" || idOf(bytes) !== Id.GET_CONFIG) return [bytes];
        latest = Math.max(latest, bytes[8]!);
        return bytes[8]! < latest ? [] : [bytes];
      };
    },
  }),
  fault("R34", "a descriptor area at an odd address", {
    change: edit("driver", [Id.SET_QUEUE], (_, b) => b[24]! |= 1),
  }),
  fault("R35", "three bytes are taken for four", {
    change: edit("device", [Id.SET_CONFIG], (v) => v.setUint32(16, 4, true)),
  }),
  fault("R36", "a success without data is not taken", {
    change: omit("device", (b) => idOf(b) === Id.SET_CONFIG && b[6] === 20),
  }),
  fault("R37", "a reset is not thought of", { change: omit("driver", status(0)) }),
  fault("R38 B14", "EVENT_AVAIL to a device that was removed", {
    change: react("driver", (b) => idOf(b) === EVENT_DEVICE && b[10] === 2, () => kick(0)),
  }),
  fault("B23", "a device that is there is said to be new", {
    change: react("driver", is(EVENT_DEVICE), () => request(Id.INFO)),
  }),
  fault("B25 B27", "a request has an answer, if nobody gave any", {
    change: react("device", (b) => is(Id.GET_CONFIG)(b) && !isAnswer(b), (b) => {
      const answer = message(1, Id.GET_CONFIG, 3, 0, b[4]!, b[5]!, 20 + b[12]!, 0);
      answer.set([b[8]!, b[9]!, 0, 0, b[12]!], 12);
      return answer;
    }),
  }),
  fault("R24", "a device that was silent is not reset", {
    change: () => {
      let isUp = false;
      return (from, bytes) => {
        if (isUp && from === "driver" && status(0)(bytes)) return [];
        isUp ||= status(0x0f)(bytes);
        return [bytes];
      };
    },
  }),
  fault("R25", "a queue is set up before it reads as clear", {
    change: add("driver", is(Id.RESET_QUEUE), () => queue(1, 64)),
  }),
  fault("P3", "a type of 4", {
    dialect: "proto",
    change: edit("driver", "all", (_, b) => b[0]! |= 4),
  }),
  fault("P4", "three bytes of configuration", {
    dialect: "proto",
    change: edit("driver", [0x06], (_, b) => b[7] = 3),
  }),
  fault("P5", "a feature that is not offered is accepted", {
    dialect: "proto",
    change: edit("driver", [0x05], (_, b) => b[12]! |= 0x10),
  }),
  fault("P6", "SET_DEVICE_STATUS is followed by something else", {
    dialect: "proto",
    change: add("driver", is(0x0a), () => message(0, 0x0b, 3, 0)),
  }),
  fault("P7", "an older message shows", {
    dialect: "proto",
    change: edit("driver", [0x09], (_, b) => b[20] = 7),
  }),
  fault("P8", "EVENT_AVAIL before DRIVER_OK", {
    dialect: "proto",
    change: add("driver", is(0x04), () => message(0, 0x11, 3, 0)),
  }),
  fault("P10", "IOMMU_TRANSLATE is sent to the device", {
    dialect: "proto",
    change: add("driver", is(0x04), () => message(0, 0x21, 3, 0)),
  }),
  fault("P14", "an EVENT_CONFIG that says nothing leads to a reset", {
    dialect: "proto",
    change: edit("device", [0x10], (_, b) => b[4] = 0x4f),
  }),
];
