/** Driver sides that are wrong in one way each (fault.ts). */

import {
  add,
  ALL,
  answerTo,
  edit,
  EVENT_DEVICE,
  type Fault,
  fault,
  gone,
  Id,
  idOf,
  is,
  isAnswer,
  knownIds,
  message,
  omit,
  PING,
  PROTO,
  react,
  REVISION_1,
  said,
  status,
} from "./fault.ts";
import { Kind, type Message } from "../../src/message/message.ts";
import type { From } from "./relay.ts";

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
    in: ["v1-2025"],
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
    in: REVISION_1,
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
    in: PROTO,
    change: add("driver", is(0x04), () => message(0, 0x20, 3, 0, 1)),
  }),
];

/** Of the address of the card that is played, the last byte, and where it is. */
const [LAST_MAC, LAST_OF_MAC] = [0x56, 5];

/** The device has said one of these so many times. */
const hasHeard = (kinds: readonly Kind[], times: number) => () => {
  let count = 0;
  return (from: From, { kind, response }: Message) =>
    from === "device" && !response && kinds.includes(kind) && ++count === times;
};

/** Driver sides that a device's bad day is too much for: mostly they end when they see it. */
const BAD_DAY_FAULTS: readonly Fault[] = [
  fault("late", "everything is said again at once", {
    in: ALL,
    change: (way) => (from, bytes) =>
      from === "driver" && said(way, bytes)?.kind === Kind.SET_DEVICE_STATUS
        ? new Array<Uint8Array>(200).fill(bytes)
        : [bytes],
  }),
  fault("reordered", "it ends at an event before the first buffer", {
    in: ALL,
    change: gone(hasHeard([Kind.EVENT_USED], 1)),
  }),
  fault("silent", "it ends at a change of the configuration", {
    in: ["v1", "v1-2025", "rfc"],
    change: gone(hasHeard([Kind.EVENT_CONFIG], 1)),
  }),
  // The first ones are how it is seen, without PING, that it is alive.
  fault("silent", "it ends at a third change of the configuration", {
    in: ["rfc-q", "proto"],
    change: gone(hasHeard([Kind.EVENT_CONFIG], 3)),
  }),
  fault("torn", "it ends when the address of the card is not what it was", {
    in: ALL,
    change: gone(() => (_, { kind, response, offset, length, bytes }) => {
      const last = LAST_OF_MAC - offset;
      const isRead = kind === Kind.GET_CONFIG && response && last >= 0 && last < length;
      return isRead && bytes[last] !== LAST_MAC;
    }),
  }),
  fault("full", "it ends at more events or requests than it has room for", {
    in: ALL,
    change: gone(hasHeard([Kind.PING, Kind.EVENT_USED], 60)),
  }),
];

/** Wrong driver sides. */
export const DRIVER_FAULTS: readonly Fault[] = [
  ...BAD_DAY_FAULTS,
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
    change: edit("driver", [Id.SET_QUEUE], (_, b) => b[15] = b[20] = 7),
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
        if (from === "device" && isIt) bytes.set([3, 0, ...open, 12, 0], 2);
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
    in: ["v1-2025"],
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
  fault("R1", "GET_DEVICE_STATUS comes first", {
    in: PROTO,
    change: add("driver", is(0x03), () => message(0, 0x09, 3, 0), "before"),
  }),
  fault("R4", "a queue larger than it can be", {
    in: PROTO,
    change: edit("driver", [0x0c], (v) => v.setUint32(8, 2048, true)),
  }),
  fault("R6 R10", "EVENT_AVAIL before any queue is set up", {
    in: PROTO,
    change: add("driver", (b) => b[1] === 0x0a && b[4] === 0x0b, () => message(0, 0x11, 3, 0)),
  }),
  fault("R11", "EVENT_AVAIL with an index", {
    in: PROTO,
    change: edit("driver", [0x11], (_, b) => b[8] = 9),
  }),
  fault("R34", "a descriptor area at an odd address", {
    in: PROTO,
    change: edit("driver", [0x0c], (_, b) => b[12]! |= 1),
  }),
  fault("P3", "a type of 4", {
    in: PROTO,
    change: edit("driver", "all", (_, b) => b[0]! |= 4),
  }),
  fault("P4", "three bytes of configuration", {
    in: PROTO,
    change: edit("driver", [0x06], (_, b) => b[7] = 3),
  }),
  fault("P5", "a feature that is not offered is accepted", {
    in: PROTO,
    change: edit("driver", [0x05], (_, b) => b[12]! |= 0x10),
  }),
  fault("P6", "SET_DEVICE_STATUS is followed by something else", {
    in: PROTO,
    change: add("driver", is(0x0a), () => message(0, 0x0b, 3, 0)),
  }),
  fault("P7", "an older message shows", {
    in: PROTO,
    change: edit("driver", [0x09], (_, b) => b[20] = 7),
  }),
  fault("P8", "EVENT_AVAIL before DRIVER_OK", {
    in: PROTO,
    change: add("driver", is(0x04), () => message(0, 0x11, 3, 0)),
  }),
  fault("P10", "IOMMU_TRANSLATE is sent to the device", {
    in: PROTO,
    change: add("driver", is(0x04), () => message(0, 0x21, 3, 0)),
  }),
  fault("P14", "an EVENT_CONFIG that says nothing leads to a reset", {
    in: PROTO,
    change: edit("device", [0x10], (_, b) => b[4] = 0x4f),
  }),
];
