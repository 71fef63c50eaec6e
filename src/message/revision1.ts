/**
 * The 8-byte header of revision 1: dialects `v1` and `v1-2025`, which differ in layouts.
 *
 * Header (wire document 5N.1): u8 type, u8 id, u16 device, u16 token, u16 size of header and payload.
 * Type bit 0 is the answer, bit 1 the bus message, the rest is sent 0 and ignored (rule G4). Requests
 * and answers may be longer than their layout, which leaves room for later revisions; events are
 * exact in `v1` (G19), while in `v1-2025` they need only be long enough. Behind the size a writer puts
 * zeros up to the end of the slot (B16), since a slot still holds an older message, and a reader looks
 * at none of it (G6).
 */

import { KIND_COUNT } from "./message.ts";
import type { Kind, Message } from "./message.ts";
import { type Conduct, conductOf } from "./conduct.ts";
import type { Codec, Limits, Malformed } from "./codec.ts";
import type { Dialect } from "./layout.ts";
import { Program } from "./program.ts";
import { kindName, MESSAGES, wireOf } from "./table.ts";

const HEADER = 8;
/** One slot of an SPSC queue, which is also the longest message there. */
const SLOT = 64;

const RESPONSE = 1;
const BUS = 2;
const NO_KIND = 255;

/** QEMU has 48-byte buffers in `v1-2025` and answers to no access to more (wire document 6.1). */
const QEMU_CONFIG = 48 - 20;

/** A codec for messages of at most 64 bytes. */
export class Revision1Codec implements Codec {
  readonly dialect: Dialect;
  readonly headerSize: number = HEADER;
  readonly maxSize: number = SLOT;
  readonly slotSize: number = SLOT;
  readonly hasTokens: boolean = true;
  readonly conduct: Conduct;
  readonly limits: Limits;

  /** Kind by id, bus messages from 256 on. */
  readonly #kinds = new Uint8Array(512).fill(NO_KIND);
  readonly #ids = new Uint8Array(KIND_COUNT);
  readonly #busBits = new Uint8Array(KIND_COUNT);
  /** Whose size must be exact. */
  readonly #exact = new Uint8Array(KIND_COUNT);
  readonly #requests: (Program | undefined)[] = [];
  readonly #responses: (Program | undefined)[] = [];

  /** Compiles the dialect's part of the table. */
  constructor(dialect: Dialect) {
    this.dialect = dialect;
    this.conduct = conductOf(dialect);
    this.limits = {
      featureBlocks: (SLOT - 16) / 4,
      configBytes: SLOT - 20,
      configChunk: dialect === "v1" ? SLOT - 20 : QEMU_CONFIG,
      eventBytes: SLOT - 24,
      deviceBits: 8 * (SLOT - 14),
    };
    for (const definition of MESSAGES) {
      const { kind, bus, event } = definition;
      const wire = wireOf(definition, dialect);
      this.#requests.push(wire && new Program(wire.request));
      this.#responses.push(wire?.response && new Program(wire.response));
      if (wire === undefined) continue;
      this.#ids[kind] = wire.id;
      this.#busBits[kind] = bus ? BUS : 0;
      this.#exact[kind] = event && dialect === "v1" ? 1 : 0;
      const position = (bus ? 256 : 0) + wire.id;
      if (this.#kinds[position] !== NO_KIND) throw new Error(`two messages with id ${wire.id}`);
      this.#kinds[position] = kind;
    }
  }

  /** See {@link Codec.encode}. */
  encode(message: Message, view: DataView, offset: number): number {
    const { kind, response } = message;
    const program = response ? this.#responses[kind] : this.#requests[kind];
    if (program === undefined) {
      const what = response ? "answer to " : "";
      throw new Error(`dialect ${this.dialect} has no ${what}${kindName(kind)}`);
    }
    const size = HEADER + program.sizeOf(message);
    if (size > SLOT) throw new Error(`${kindName(kind)} of ${size} bytes, a slot has ${SLOT}`);
    for (let at = 0; at < SLOT; at += 8) view.setFloat64(offset + at, 0);
    view.setUint8(offset, this.#busBits[kind]! | (response ? RESPONSE : 0));
    view.setUint8(offset + 1, this.#ids[kind]!);
    view.setUint16(offset + 2, message.device, true);
    view.setUint16(offset + 4, message.token, true);
    view.setUint16(offset + 6, size, true);
    program.encode(message, view, offset + HEADER);
    message.dialect = this.dialect;
    message.size = size;
    return size;
  }

  /** See {@link Codec.decode}. */
  decode(view: DataView, offset: number, message: Message): Malformed | undefined {
    const size = view.getUint16(offset + 6, true);
    if (size < HEADER || size > SLOT) return "bad size";
    const type = view.getUint8(offset);
    const kind = this.#kinds[((type & BUS) << 7) + view.getUint8(offset + 1)]!;
    if (kind === NO_KIND) return "unknown id";
    const response = (type & RESPONSE) !== 0;
    const program = response ? this.#responses[kind] : this.#requests[kind];
    if (program === undefined) return "no answer exists";
    message.reset(kind as Kind, response);
    message.dialect = this.dialect;
    message.device = view.getUint16(offset + 2, true);
    message.token = view.getUint16(offset + 4, true);
    message.size = size;
    return program.decode(view, offset + HEADER, size - HEADER, this.#exact[kind] !== 0, message);
  }

  /** See {@link Codec.has}. */
  has(kind: Kind): boolean {
    return this.#requests[kind] !== undefined;
  }

  /** See {@link Codec.answered}. */
  answered(kind: Kind): boolean {
    return this.#responses[kind] !== undefined;
  }
}
