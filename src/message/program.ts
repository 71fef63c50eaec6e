/**
 * A layout made ready to run.
 *
 * The table's lists are easy to read and slow to follow, so every layout is compiled once, when a
 * codec is made, to three small arrays: operation, offset, position of the value. Encoding and
 * decoding walk them; nothing is allocated. Sizes that a message names (`count`, `length`) are the
 * peer's word and count for nothing until they fit in what arrived.
 */

import { isVariable, type Layout, type LayoutField, type Type } from "./layout.ts";
import { type Message, positionOf } from "./message.ts";

/** Why a slot holds no message. */
export type Malformed =
  | "bad size" // the size in the header is below the header's or above the bus maximum
  | "unknown id" // no such message in this dialect
  | "no answer exists" // an answer to an event, or to a request that is not answered
  | "short" // fewer bytes than its layout, or its own count, needs
  | "long" // an event with more bytes (rule G19), or `v1`'s GET_DEVICE_INFO answer in `v1-2025`
  | "bad length"; // more data named than the layout can hold

const U8 = 0;
const U16 = 1;
const U24 = 2;
const U32 = 3;
const U64 = 4;
const NEXT = 5;
const UUID = 6;
const WORDS = 7;
const BYTES = 8;
const TIMES_32 = 9;
const S32 = 10;

const TWO_32 = 4294967296;
const NEXT_OFFSET = positionOf("nextOffset");
const NEXT_WRAP = positionOf("nextWrap");

const OPERATION: Readonly<Record<Type, number>> = {
  u8: U8,
  u16: U16,
  u24: U24,
  u32: U32,
  "u32/32": TIMES_32,
  u64: U64,
  s32: S32,
  next: NEXT,
  uuid: UUID,
  "words[2]": WORDS,
  "bytes[8]": BYTES,
  "bytes[16]": BYTES,
  "words[count]": WORDS,
  "words[count]+": WORDS,
  "words[count]!": WORDS,
  "bytes[length]": BYTES,
  "bytes[length]?": BYTES,
  "bytes[length]!": BYTES,
  "bits[count]": BYTES,
  "bits[count]~": BYTES,
};

function operandOf(type: Type, name: LayoutField[2]): number {
  if (name === "words" || name === "bytes") return Number(/\d+/.exec(type)![0]);
  return name === "uuid" || name === "reserved" ? 0 : positionOf(name);
}

export class Program {
  /** Bytes without the variable part. */
  readonly size: number;
  /**
   * Three bytes a step, in one array because that is quicker than three: operation, offset, and the position
   * of a number or, for words and bytes that are not variable, how many there are.
   */
  readonly #steps: Uint8Array;
  /** The type of the variable part at the end, or "none". */
  readonly #tail: Type | "none";
  /** Most bytes that `length` may name where the layout holds a fixed number, else 0. */
  readonly #capacity: number;
  readonly #impliedPosition: number;
  readonly #impliedValue: number;
  /** Positions of what must not be 0 for that. */
  readonly #impliedIf: Uint8Array;
  /** Payloads of this size are refused. */
  readonly #below: number;
  readonly #exact: boolean;

  /** @param exact refuse bytes behind the payload, as for events (rule G19) */
  constructor(layout: Layout, exact: boolean) {
    const steps = layout.fields.filter(([, type, name]) =>
      name !== "reserved" && !isVariable(type)
    );
    const last = layout.fields.at(-1);
    this.size = layout.size;
    this.#tail = last !== undefined && isVariable(last[1]) ? last[1] : "none";
    this.#steps = Uint8Array.from(steps.flatMap(([offset, type, name]) => [
      OPERATION[type],
      offset,
      operandOf(type, name),
    ]));
    const fixedBytes = steps.find(([, , name]) => name === "bytes");
    this.#capacity = fixedBytes === undefined ? 0 : Number(/\d+/.exec(fixedBytes[1])![0]);
    this.#impliedPosition = layout.implied ? positionOf(layout.implied[0]) : -1;
    this.#impliedValue = layout.implied ? layout.implied[1] : 0;
    this.#impliedIf = Uint8Array.from(layout.impliedIf ?? [], positionOf);
    this.#below = layout.below ?? Infinity;
    this.#exact = exact;
  }

  sizeOf(message: Message): number {
    return this.size + this.#tailSize(message);
  }

  #tailSize(message: Message): number {
    switch (this.#tail) {
      // First, as most have none.
      case "none":
        return 0;
      case "words[count]":
      case "words[count]+":
      case "words[count]!":
        return 4 * message.count;
      case "bytes[length]":
      case "bytes[length]!":
        return message.length;
      case "bytes[length]?":
        return message.omitData === 0 ? message.length : 0;
      default:
        return Math.ceil(message.count / 8);
    }
  }

  /** Writes the payload at `at`, over zeros; the caller has checked that {@link sizeOf} fits. */
  encode(message: Message, view: DataView, at: number): void {
    if (this.#capacity !== 0 && message.length > this.#capacity) {
      throw new Error(`${message.length} bytes of data, the layout holds ${this.#capacity}`);
    }
    const steps = this.#steps;
    const numbers = message.numbers;
    for (let i = 0; i < steps.length; i += 3) {
      const to = at + steps[i + 1]!;
      const operand = steps[i + 2]!;
      switch (steps[i]) {
        case U8:
          view.setUint8(to, numbers[operand]!);
          break;
        case U16:
          view.setUint16(to, numbers[operand]!, true);
          break;
        case U24:
          view.setUint16(to, numbers[operand]!, true);
          view.setUint8(to + 2, numbers[operand]! >>> 16);
          break;
        case U32:
        case S32:
          view.setUint32(to, numbers[operand]!, true);
          break;
        case TIMES_32:
          // What was rounded up to 2^32 does not turn into 0.
          view.setUint32(to, Math.min(32 * numbers[operand]!, TWO_32 - 1), true);
          break;
        case U64:
          encodeU64(view, to, numbers[operand]!);
          break;
        case NEXT:
          view.setUint32(to, numbers[NEXT_OFFSET]! % 0x80000000, true);
          if (numbers[NEXT_WRAP] !== 0) view.setUint8(to + 3, view.getUint8(to + 3) | 0x80);
          break;
        case UUID:
          for (let n = 0; n < 16; n++) view.setUint8(to + n, message.uuid[n]!);
          break;
        case WORDS:
          encodeWords(message, view, to, operand);
          break;
        case BYTES:
          encodeBytes(message, view, to, operand);
          break;
      }
    }
    if (this.#tail === "none") return;
    const size = this.#tailSize(message);
    const to = at + this.size;
    if (this.#tail.startsWith("words")) {
      encodeWords(message, view, to, size / 4);
    } else {
      encodeBytes(message, view, to, size);
    }
  }

  /**
   * Reads a payload into a message that is reset.
   *
   * @param available bytes that arrived, as the header says
   * @param behind bytes of the slot behind them
   */
  decode(
    view: DataView,
    at: number,
    available: number,
    behind: number,
    message: Message,
  ): Malformed | undefined {
    if (available < this.size) return "short";
    if (available >= this.#below) return "long";
    const steps = this.#steps;
    const numbers = message.numbers;
    for (let i = 0; i < steps.length; i += 3) {
      const from = at + steps[i + 1]!;
      const operand = steps[i + 2]!;
      switch (steps[i]) {
        case U8:
          numbers[operand] = view.getUint8(from);
          break;
        case U16:
          numbers[operand] = view.getUint16(from, true);
          break;
        case U24:
          numbers[operand] = view.getUint16(from, true) + 65536 * view.getUint8(from + 2);
          break;
        case U32:
          numbers[operand] = view.getUint32(from, true);
          break;
        case S32:
          numbers[operand] = view.getInt32(from, true);
          break;
        case TIMES_32:
          numbers[operand] = Math.ceil(view.getUint32(from, true) / 32);
          break;
        case U64:
          numbers[operand] = view.getUint32(from, true) + TWO_32 * view.getUint32(from + 4, true);
          break;
        case NEXT: {
          const word = view.getUint32(from, true);
          numbers[NEXT_OFFSET] = word & 0x7fffffff;
          numbers[NEXT_WRAP] = word >>> 31;
          break;
        }
        case UUID:
          for (let n = 0; n < 16; n++) message.uuid[n] = view.getUint8(from + n);
          break;
        case WORDS:
          decodeWords(message, view, from, operand);
          break;
        case BYTES:
          decodeBytes(message, view, from, operand);
          break;
      }
    }
    if (this.#capacity !== 0 && message.length > this.#capacity) return "bad length";
    if (this.#impliedPosition >= 0) this.#imply(numbers);
    if (this.#tail === "none") return this.#exact && available !== this.size ? "long" : undefined;

    const isLeftOut = this.#tail === "words[count]!" || this.#tail === "bytes[length]!";
    const room = available - this.size + (isLeftOut ? behind : 0);
    if (this.#tail === "bits[count]~" && message.count % 8 !== 0) message.count = 8 * room;
    let size = this.#tailSize(message);
    if (this.#tail === "bytes[length]?" && size > room) {
      // With fewer bytes than it names, the answer is the form without data; the rest is ignored.
      message.omitData = 1;
      size = 0;
    }
    if (size > room) return "short";
    if (this.#exact && size !== room) return "long";
    const from = at + this.size;
    // So that captures keep the data.
    if (isLeftOut && this.size + size > available) message.size += this.size + size - available;
    if (this.#tail === "words[count]" || this.#tail === "words[count]!") {
      decodeWords(message, view, from, size / 4);
    } else if (this.#tail === "words[count]+") decodeWords(message, view, from, room >>> 2);
    else decodeBytes(message, view, from, size);
    return undefined;
  }

  #imply(numbers: Float64Array): void {
    for (const position of this.#impliedIf) {
      if (numbers[position] === 0) return;
    }
    numbers[this.#impliedPosition] = this.#impliedValue;
  }
}

/**
 * Writes two u32 halves. A value that decode rounded up to 2^64 is written as all ones, so that it
 * does not turn into an innocent 0.
 */
function encodeU64(view: DataView, to: number, value: number): void {
  const high = Math.floor(value / TWO_32);
  if (high >= TWO_32) {
    view.setUint32(to, 0xffffffff, true);
    view.setUint32(to + 4, 0xffffffff, true);
    return;
  }
  view.setUint32(to, value - TWO_32 * high, true);
  view.setUint32(to + 4, high, true);
}

function encodeWords(message: Message, view: DataView, to: number, count: number): void {
  for (let n = 0; n < count; n++) view.setUint32(to + 4 * n, message.words[n]!, true);
}

function encodeBytes(message: Message, view: DataView, to: number, count: number): void {
  for (let n = 0; n < count; n++) view.setUint8(to + n, message.bytes[n]!);
}

function decodeWords(message: Message, view: DataView, from: number, count: number): void {
  for (let n = 0; n < count; n++) message.words[n] = view.getUint32(from + 4 * n, true);
}

function decodeBytes(message: Message, view: DataView, from: number, count: number): void {
  for (let n = 0; n < count; n++) message.bytes[n] = view.getUint8(from + n);
}
