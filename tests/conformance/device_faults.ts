/** Device sides that are wrong in one way each (fault.ts). */

import {
  add,
  ALL,
  answerTo,
  type Edit,
  edit,
  editAnswer,
  type Fault,
  fault,
  GET_DEVICES,
  gone,
  Id,
  idOf,
  is,
  isAnswer,
  knownIds,
  message,
  NOBODY,
  omit,
  PING,
  PROTO,
  react,
  REVISION_1,
  said,
  sayOtherwise,
  status,
  viewOf,
} from "./fault.ts";
import { Kind } from "../../src/message/message.ts";

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

/** A moment at which a device has given its driver up. */
const givesUpAfter = (pauseMs: number) =>
  gone(({ reactor }) => {
    let heardMs = Infinity;
    return (from) => {
      if (from === "device") return false;
      const isLate = reactor.now() - heardMs > pauseMs;
      heardMs = reactor.now();
      return isLate;
    };
  });

/** Device sides that a driver's bad day is too much for. */
const BAD_DAY_FAULTS: readonly Fault[] = [
  fault("late silent", "a driver that says nothing for 50 ms is given up", {
    in: ALL,
    change: givesUpAfter(50),
  }),
  fault("silent", "a driver that says nothing for two seconds is given up", {
    in: ALL,
    change: givesUpAfter(2000),
  }),
  fault("reordered", "a request that comes while another is worked on is lost", {
    in: ALL,
    change: (way) => {
      let isOpen = false;
      return (from, bytes) => {
        if (from === "device") isOpen &&= !said(way, bytes)?.response;
        else if (isOpen) return [];
        else isOpen = way.codec.answered(said(way, bytes)?.kind ?? Kind.EVENT_USED);
        return [bytes];
      };
    },
  }),
  fault("torn", "configuration is shown while the status is 0 only", {
    in: ALL,
    change: (way) => {
      let status = 0;
      return (from, bytes) => {
        const message = said(way, bytes);
        if (from === "driver" && message?.kind === Kind.SET_DEVICE_STATUS) status = message.status;
        if (from === "device" && message?.kind === Kind.GET_CONFIG && status !== 0) {
          message.bytes.fill(0);
          way.codec.encode(message, viewOf(bytes), 0);
        }
        return [bytes];
      };
    },
  }),
  fault("full", "what finds the queue to a driver full is lost (the relay's way)", {
    in: ALL,
    change: () => (_, bytes) => [bytes],
  }),
];

/** Wrong device sides. */
export const DEVICE_FAULTS: readonly Fault[] = [
  ...BAD_DAY_FAULTS,
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
    in: ["v1-2025"],
    change: omit("driver", (b) => idOf(b) === Id.SET_QUEUE && (b[12] !== 0 || b[20] !== 0)),
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
    in: REVISION_1,
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
    // In the other form it need only be long enough.
    in: ["v1"],
    change: edit("device", [Id.EVENT_CONFIG], (v) => v.setUint16(6, 25, true)),
  }),
  fault("V1", "RESET_VQUEUE is not answered", { change: omit("device", is(Id.RESET_QUEUE)) }),
  fault("V2 V19", "one queue too few is told", {
    change: sayOtherwise("device", Kind.GET_DEVICE_INFO, (m) => m.maxQueues--),
  }),
  fault("V3", "65 feature bits", {
    in: ["v1-2025"],
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
    in: ["v1-2025"],
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
    in: ALL,
    change: sayOtherwise("driver", Kind.GET_CONFIG, (m) => m.offset = 0),
  }),
  fault("V9", "a reset is another status", {
    in: ALL,
    change: sayOtherwise("driver", Kind.SET_DEVICE_STATUS, (m) => m.status ||= 1),
  }),
  fault("V19", "a queue on every number", {
    in: ALL,
    change: sayOtherwise("device", Kind.GET_VQUEUE, (m) => m.maxSize = 256),
  }),
  fault("V13", "any generation will do", {
    in: ["v1-2025"],
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
    in: ["v1-2025"],
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
    in: ["v1-2025"],
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
    in: ["v1-2025"],
    change: edit("device", [GET_DEVICES], (v) => v.setUint16(12, 3, true)),
  }),
  fault("B11", "GET_DEVICES counts what it does not bring", {
    in: ["v1-2025"],
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
    in: PROTO,
    change: react("device", is(0x0a), answerTo),
  }),
  fault("P2", "every answer twice", {
    in: PROTO,
    change: add("device", isAnswer, (b) => b),
  }),
  fault("P2", "one answer in ten takes a tenth of a second", {
    in: PROTO,
    change: ({ reactor, say }) => {
      let count = 0;
      return (from, bytes) => {
        if (from === "driver" || !isAnswer(bytes) || ++count % 10 !== 0) return [bytes];
        reactor.sleep(100).then(() => say("device", bytes));
        return [];
      };
    },
  }),
  fault("P2", "every answer takes four milliseconds", {
    in: PROTO,
    change: ({ reactor, say }) => (from, bytes) => {
      if (from === "driver" || !isAnswer(bytes)) return [bytes];
      reactor.sleep(4).then(() => say("device", bytes));
      return [];
    },
  }),
  fault("P3", "a type of 3", {
    in: PROTO,
    change: edit("device", "all", (_, b) => b[0]! |= 2),
  }),
  fault("P7", "an older message shows", {
    in: PROTO,
    change: edit("device", "all", (_, b) => b[20] = 7),
  }),
  fault("P10", "IOMMU_INVALIDATE", {
    in: PROTO,
    change: react("device", is(0x09), () => message(0, 0x22, 3, 0)),
  }),
  fault("P12", "an event for each of 140 changes", {
    in: PROTO,
    change: () => (from, bytes) =>
      from === "device" && bytes[1] === 0x10 ? new Array<Uint8Array>(140).fill(bytes) : [bytes],
  }),
  fault("P13", "no GET_VQUEUE after SET_VQUEUE", {
    in: PROTO,
    change: () => {
      let isSet = false;
      return (_, bytes) => {
        isSet ||= bytes[1] === 0x0c;
        return isSet && bytes[1] === 0x0b ? [] : [bytes];
      };
    },
  }),
];
