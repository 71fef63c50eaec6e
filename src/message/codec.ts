/**
 * The codec: one for all dialects, driven by the table.
 *
 * A codec writes a {@link Message} into a slot and reads one from a private copy of a slot. It knows
 * layouts and sizes and nothing else: whether an index, an address or a feature makes sense is for
 * the handler. What a peer sent is never an exception, it is {@link Malformed}: the caller counts it
 * and drops the message (rule G14: nobody answers a malformed one). What we ask to be written and
 * does not fit is our own error and throws.
 *
 * What differs by dialect is its part of the table and its {@link Form}: where the header has a token and a
 * size, and whether sizes are fixed. What differs by bus is the size of a slot. The forms are in codecs.ts,
 * whose {@link codecFor} gives the codec of a dialect.
 */

import { isOfBridge } from "./bridge_messages.ts";
import { type Conduct, CONDUCTS } from "./conduct.ts";
import type { Definition } from "./layout.ts";
import { type Dialect, type Kind, KIND_COUNT, MAX_MESSAGE, type Message } from "./message.ts";
import { type Malformed, Program } from "./program.ts";
import { kindName, MESSAGES, wireOf } from "./table.ts";

export type { Conduct } from "./conduct.ts";
export type { Dialect } from "./message.ts";
export type { Malformed } from "./program.ts";

/** How much one message carries on a bus with {@link Codec.maxSize} (docs/wire.md 3.1). */
export interface Limits {
  /** Feature blocks in one message. */
  readonly featureBlocks: number;
  /** Bytes of configuration in one GET_CONFIG answer or SET_CONFIG. */
  readonly configBytes: number;
  /** Bytes of configuration to ask for or to write at once: some peers take fewer than fit. */
  readonly configChunk: number;
  /** Bytes of configuration in one EVENT_CONFIG. */
  readonly eventBytes: number;
  /** Device bits in one GET_DEVICES answer. */
  readonly deviceBits: number;
}

/** How a dialect frames its messages. All headers begin with u8 type, u8 id, u16 device. */
export interface Form {
  /** Bytes of the header. */
  readonly headerSize: number;
  /** Where the u16 token is; 0: answers are paired with requests by kind alone. */
  readonly tokenAt: number;
  /** Where the u16 size of header and payload is; 0: nowhere. Not read where there is a {@link Form.fixedSize}. */
  readonly sizeAt: number;
  /** The bit of the type that marks a bus message; 0: there are none. */
  readonly busBit: number;
  /** Bytes of every message, of which a payload uses some; undefined: as many as it needs. */
  readonly fixedSize: number | undefined;
  /** Whether an event with bytes behind its payload is refused (rule G19). */
  readonly exactEvents: boolean;
  /** What fits in messages of `maxSize` bytes. */
  readonly limits: (maxSize: number) => Limits;
}

/** Type bit 0 in every dialect; bits that are not listed are sent 0 and ignored (rule G4). */
const RESPONSE = 1;
const NO_KIND = 255;

/** Reads and writes the messages of one dialect in slots of one size. Holds no state. */
export class Codec {
  /** Bytes before the payload. */
  readonly headerSize: number;
  /** Most bytes a message has. */
  readonly maxSize: number;
  /** How sides that speak it behave. */
  readonly conduct: Conduct;
  /** How much one message carries. */
  readonly limits: Limits;

  /** Bytes of a message whose size is fixed, else 0. */
  readonly #fixedSize: number;
  readonly #tokenAt: number;
  readonly #sizeAt: number;
  readonly #busBit: number;
  /** Kind by id, bus messages from 256 on. */
  readonly #kinds = new Uint8Array(512).fill(NO_KIND);
  /** Payloads and the first two bytes, type and id: requests and events at 2 x kind, answers behind. */
  readonly #programs: (Program | undefined)[] = [];
  readonly #heads = new Uint16Array(2 * KIND_COUNT);

  /**
   * Compiles the dialect's part of the table.
   *
   * @param dialect which dialect
   * @param form how it frames messages
   * @param slotSize bytes a slot of the bus has, and the longest message unless its size is fixed; a
   *   multiple of 8. {@link decode} is given that many
   */
  constructor(readonly dialect: Dialect, form: Form, readonly slotSize: number) {
    const { fixedSize } = form;
    this.headerSize = form.headerSize;
    this.maxSize = fixedSize ?? slotSize;
    this.conduct = CONDUCTS[dialect];
    this.limits = form.limits(this.maxSize);
    this.#fixedSize = fixedSize ?? 0;
    this.#tokenAt = form.tokenAt;
    this.#sizeAt = form.sizeAt;
    this.#busBit = form.busBit;
    if (slotSize % 8 !== 0 || slotSize < this.maxSize || slotSize > MAX_MESSAGE) {
      throw new Error(`slots of ${slotSize} bytes for messages of ${this.maxSize}`);
    }
    for (const definition of MESSAGES) this.#compile(definition, form);
  }

  #compile(definition: Definition, form: Form): void {
    const { name, kind, bus, event } = definition;
    const isHeld = this.slotSize === MAX_MESSAGE || !isOfBridge(kind);
    const wire = isHeld ? wireOf(definition, this.dialect) : undefined;
    const layouts = [wire?.request, wire?.response];
    for (const layout of layouts) {
      if (layout !== undefined && this.headerSize + layout.size > this.maxSize) {
        throw new Error(`${this.dialect} ${name} does not fit in ${this.maxSize} bytes`);
      }
      this.#programs.push(layout && new Program(layout, event && form.exactEvents));
    }
    if (wire === undefined) return;
    const head = (bus ? this.#busBit : 0) + 256 * wire.id;
    this.#heads[2 * kind] = head;
    this.#heads[2 * kind + 1] = head + RESPONSE;
    const position = (bus ? 256 : 0) + wire.id;
    if (this.#kinds[position] !== NO_KIND) throw new Error(`two messages with id ${wire.id}`);
    this.#kinds[position] = kind;
  }

  /**
   * Writes a message to a slot, zeros behind it up to the slot's end included (B16: a slot still holds an
   * older message; of a fixed size, up to the message's end), and sets `message.size`. Throws if the
   * dialect lacks the message or it is too long: check {@link limits}.
   *
   * @returns bytes the message has
   */
  encode(message: Message, view: DataView, offset: number): number {
    const form = 2 * message.kind + (message.response ? 1 : 0);
    const program = this.#programs[form];
    if (program === undefined) throw this.#lacks(message);
    const named = this.headerSize + program.sizeOf(message);
    const size = this.#fixedSize === 0 ? named : this.#fixedSize;
    if (named > this.maxSize) throw this.#tooLong(message, named);
    const end = offset + this.maxSize;
    for (let at = offset; at < end; at += 8) view.setFloat64(at, 0, true);
    view.setUint32(offset, this.#heads[form]! | message.device << 16, true);
    if (this.#tokenAt !== 0) view.setUint16(offset + this.#tokenAt, message.token, true);
    if (this.#sizeAt !== 0) view.setUint16(offset + this.#sizeAt, named, true);
    program.encode(message, view, offset + this.headerSize);
    message.dialect = this.dialect;
    message.size = size;
    return size;
  }

  #lacks({ kind, response }: Message): Error {
    const what = response ? "answer to " : "";
    return new Error(`dialect ${this.dialect} has no ${what}${kindName(kind)}`);
  }

  #tooLong({ kind }: Message, size: number): Error {
    return new Error(`${kindName(kind)} of ${size} bytes, a slot has ${this.maxSize}`);
  }

  /**
   * Reads a message from a private copy of a slot, never from shared memory: a size must not change
   * between its check and its use. Reads nothing outside the slot, nothing behind the message's size (rule
   * G6) unless its sender is known to leave data out of it ("words[count]!" in layout.ts), and never throws, whatever the bytes. A request or an answer may be longer than its layout, which
   * leaves room for later revisions. If the result is not undefined, the message's contents mean nothing.
   */
  decode(view: DataView, offset: number, message: Message): Malformed | undefined {
    const fixedSize = this.#fixedSize;
    const size = fixedSize !== 0 ? fixedSize : view.getUint16(offset + this.#sizeAt, true);
    if (size < this.headerSize || size > this.maxSize) return "bad size";
    const head = view.getUint32(offset, true);
    const bus = (head & this.#busBit) !== 0 ? 256 : 0;
    const kind = this.#kinds[bus + ((head >>> 8) & 0xff)]!;
    if (kind === NO_KIND) return "unknown id";
    const response = head & RESPONSE;
    const program = this.#programs[2 * kind + response];
    if (program === undefined) return "no answer exists";
    message.reset(kind as Kind, response !== 0);
    message.dialect = this.dialect;
    message.device = head >>> 16;
    if (this.#tokenAt !== 0) message.token = view.getUint16(offset + this.#tokenAt, true);
    message.size = size;
    const from = offset + this.headerSize;
    return program.decode(view, from, size - this.headerSize, this.maxSize - size, message);
  }

  /** Bytes of a message with such a payload. */
  sizeOf(payload: number): number {
    return this.#fixedSize === 0 ? this.headerSize + payload : this.#fixedSize;
  }

  /** Whether the dialect has the message. */
  has(kind: Kind): boolean {
    return this.#programs[2 * kind] !== undefined;
  }

  /** Whether this dialect answers the message. */
  answered(kind: Kind): boolean {
    return this.#programs[2 * kind + 1] !== undefined;
  }
}
