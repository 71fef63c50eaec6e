/**
 * Dialect `proto`: the 40-byte messages of the prototype QEMU.
 *
 * Header (wire document 2.1): u8 type, u8 id, u16 device, then 36 bytes of payload, unused ones zero.
 * There is no size, no token and no bus message. QEMU writes device 0 and examines neither it nor
 * the bus bit, so neither do we. A message is 40 bytes whatever its slot holds: the 24 bytes behind
 * it belong to an older message and are neither written nor read.
 *
 * SET_DEVICE_STATUS, SET_VQUEUE and RESET_VQUEUE are requests without an answer, and QEMU aborts on an
 * answer it does not wait for: the codec refuses to write one.
 */

import { KIND_COUNT } from "./message.ts";
import type { Kind, Message } from "./message.ts";
import { type Conduct, conductOf } from "./conduct.ts";
import type { Codec, Limits, Malformed } from "./codec.ts";
import type { Dialect } from "./layout.ts";
import { Program } from "./program.ts";
import { kindName, MESSAGES, wireOf } from "./table.ts";

const HEADER = 4;
const MESSAGE = 40;
const SLOT = 64;
const RESPONSE = 1;
const NO_KIND = 255;

/** A codec for `proto`. */
export class ProtoCodec implements Codec {
  readonly dialect: Dialect = "proto";
  readonly headerSize: number = HEADER;
  readonly maxSize: number = MESSAGE;
  readonly slotSize: number = SLOT;
  readonly hasTokens: boolean = false;
  readonly conduct: Conduct = conductOf("proto");
  // QEMU aborts on configuration accesses of other than 1, 2 or 4 bytes (2.3).
  readonly limits: Limits = {
    featureBlocks: 2,
    configBytes: 4,
    configChunk: 4,
    eventBytes: 16,
    deviceBits: 0,
  };

  readonly #kinds = new Uint8Array(256).fill(NO_KIND);
  readonly #ids = new Uint8Array(KIND_COUNT);
  readonly #requests: (Program | undefined)[] = [];
  readonly #responses: (Program | undefined)[] = [];

  /** Compiles the dialect's part of the table. */
  constructor() {
    for (const definition of MESSAGES) {
      const wire = wireOf(definition, "proto");
      this.#requests.push(wire && new Program(wire.request));
      this.#responses.push(wire?.response && new Program(wire.response));
      if (wire === undefined) continue;
      this.#ids[definition.kind] = wire.id;
      if (this.#kinds[wire.id] !== NO_KIND) throw new Error(`two messages with id ${wire.id}`);
      this.#kinds[wire.id] = definition.kind;
    }
  }

  /** See {@link Codec.encode}. */
  encode(message: Message, view: DataView, offset: number): number {
    const { kind, response } = message;
    const program = response ? this.#responses[kind] : this.#requests[kind];
    if (program === undefined) {
      throw new Error(`dialect proto has no ${response ? "answer to " : ""}${kindName(kind)}`);
    }
    for (let at = 0; at < MESSAGE; at += 8) view.setFloat64(offset + at, 0);
    view.setUint8(offset, response ? RESPONSE : 0);
    view.setUint8(offset + 1, this.#ids[kind]!);
    view.setUint16(offset + 2, message.device, true);
    program.encode(message, view, offset + HEADER);
    message.dialect = "proto";
    message.size = MESSAGE;
    return MESSAGE;
  }

  /** See {@link Codec.decode}. */
  decode(view: DataView, offset: number, message: Message): Malformed | undefined {
    const kind = this.#kinds[view.getUint8(offset + 1)]!;
    if (kind === NO_KIND) return "unknown id";
    const response = (view.getUint8(offset) & RESPONSE) !== 0;
    const program = response ? this.#responses[kind] : this.#requests[kind];
    if (program === undefined) return "no answer exists";
    message.reset(kind as Kind, response);
    message.dialect = "proto";
    message.device = view.getUint16(offset + 2, true);
    message.size = MESSAGE;
    return program.decode(view, offset + HEADER, MESSAGE - HEADER, false, message);
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
