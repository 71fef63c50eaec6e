/**
 * What every dialect's codec can do.
 *
 * A codec writes a {@link Message} into a slot and reads one from a private copy of a slot. It knows
 * layouts and sizes and nothing else: whether an index, an address or a feature makes sense is for
 * the handler. What a peer sent is never an exception, it is {@link Malformed}: the caller counts it
 * and drops the message (rule G14: nobody answers a malformed one). What we ask to be written and
 * does not fit is our own error and throws.
 *
 * {@link codecFor} in codecs.ts gives the codec of a dialect.
 */

import type { Conduct } from "./conduct.ts";
import type { Dialect } from "./layout.ts";
import type { Kind, Message } from "./message.ts";

export type { Conduct } from "./conduct.ts";
export type { Dialect } from "./layout.ts";

/**
 * Why a slot holds no message:
 *
 * - "bad size": the size in the header is below the header's or above the bus maximum
 * - "unknown id": no such message in this dialect
 * - "no answer exists": an answer to an event, or to a request that is not answered
 * - "short": fewer bytes than its layout, or its own count, needs
 * - "long": an event with bytes behind its payload (rule G19), or `v1`'s GET_DEVICE_INFO answer where
 *   `v1-2025` is spoken
 * - "bad length": more data named than the layout can hold
 */
export type Malformed =
  | "bad size"
  | "unknown id"
  | "no answer exists"
  | "short"
  | "long"
  | "bad length";

/** How much one message carries on a bus with {@link Codec.maxSize} (wire document 5N.1). */
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

/** Reads and writes the messages of one dialect. */
export interface Codec {
  /** Which dialect. */
  readonly dialect: Dialect;
  /** Bytes before the payload. */
  readonly headerSize: number;
  /** Most bytes a message has. */
  readonly maxSize: number;
  /** Bytes a slot has; {@link decode} is given that many. */
  readonly slotSize: number;
  /** Whether answers are paired with requests by a token; otherwise by kind alone. */
  readonly hasTokens: boolean;
  /** How sides that speak it behave. */
  readonly conduct: Conduct;
  /** How much one message carries. */
  readonly limits: Limits;

  /**
   * Writes a message to a slot, zeros behind it included (`proto`: all of its 40 bytes), and sets
   * `message.size`. Throws if the dialect lacks the message or it is too long: check {@link limits}.
   *
   * @returns bytes the message has
   */
  encode(message: Message, view: DataView, offset: number): number;

  /**
   * Reads a message from a private copy of a slot, never from shared memory: a size must not change
   * between its check and its use. Reads nothing outside the slot and never throws, whatever the
   * bytes. If the result is not undefined, the message's contents mean nothing.
   */
  decode(view: DataView, offset: number, message: Message): Malformed | undefined;

  /** Whether the dialect has the message. */
  has(kind: Kind): boolean;

  /** Whether this dialect answers the message. */
  answered(kind: Kind): boolean;
}
