/**
 * The dialects' forms, and the codecs made of them: one per dialect and size of slot, shared.
 *
 * Revision 1 (docs/wire.md 3.1), dialects `v1` and `v1-2025`: 8 bytes of header with token and size. The
 * two differ in layouts, and in that an event of `v1-2025` need only be long enough.
 *
 * `proto`, the prototype QEMU (docs/wire.md 2.1): 4 bytes of header and 36 of payload, unused ones zero.
 * There is no size, no token and no bus message; QEMU writes device 0 and examines neither it nor the bus
 * bit, so neither do we. A message is 40 bytes whatever its slot holds: what is behind belongs to an older
 * message and is neither written nor read. SET_DEVICE_STATUS, SET_VQUEUE and RESET_VQUEUE are requests
 * without an answer, and QEMU aborts on an answer it does not wait for: the codec refuses to write one.
 *
 * `rfc` (docs/wire.md 3.8) is `v1-2025` before it had tokens: 6 bytes of header with the size. QEMU's flavour of it,
 * `rfc-q`, writes 44 bytes whatever the size says, and does not read the size.
 */

import { Codec, type Form } from "./codec.ts";
import type { Dialect } from "./message.ts";

/** Bytes of a slot of an SPSC queue, which is also the longest message there. */
export const QUEUE_SLOT = 64;

/** QEMU has 48-byte buffers in `v1-2025` and answers to no access to more (docs/wire.md 3.4). */
const QEMU_CONFIG = 48 - 20;
/** Bytes of the structure that peers of mid 2025 have for a message (docs/wire.md 3.8). */
const RFC_MESSAGE = 44;

function revision1(exactEvents: boolean, mostConfig: number): Form {
  return {
    headerSize: 8,
    tokenAt: 4,
    sizeAt: 6,
    busBit: 2,
    fixedSize: undefined,
    exactEvents,
    limits: (maxSize) => ({
      featureBlocks: (maxSize - 16) >>> 2,
      configBytes: maxSize - 20,
      configChunk: Math.min(maxSize - 20, mostConfig),
      eventBytes: maxSize - 24,
      deviceBits: 8 * (maxSize - 14),
    }),
  };
}

const RFC: Form = {
  headerSize: 6,
  tokenAt: 0,
  sizeAt: 4,
  busBit: 2,
  fixedSize: undefined,
  exactEvents: false,
  limits: (maxSize) => ({
    featureBlocks: (maxSize - 14) >>> 2,
    configBytes: maxSize - 18,
    configChunk: Math.min(maxSize - 18, RFC_MESSAGE - 18),
    eventBytes: maxSize - 22,
    deviceBits: 8 * (maxSize - 12),
  }),
};

/** How each dialect frames its messages. */
export const FORMS: Readonly<Record<Dialect, Form>> = {
  v1: revision1(true, Infinity),
  "v1-2025": revision1(false, QEMU_CONFIG),
  rfc: RFC,
  "rfc-q": {
    ...RFC,
    busBit: 0,
    fixedSize: RFC_MESSAGE,
    // As in proto: accesses of 1, 2 or 4 bytes, in a field of 8.
    limits: () => ({
      featureBlocks: 2,
      configBytes: 8,
      configChunk: 4,
      eventBytes: 16,
      deviceBits: 0,
    }),
  },
  proto: {
    headerSize: 4,
    tokenAt: 0,
    sizeAt: 0,
    busBit: 0,
    fixedSize: 40,
    exactEvents: false,
    // QEMU aborts on configuration accesses of other than 1, 2 or 4 bytes (2.3).
    limits: () => ({
      featureBlocks: 2,
      // Linux's flavour reads up to 8 (2.5).
      configBytes: 8,
      configChunk: 4,
      eventBytes: 16,
      deviceBits: 0,
    }),
  },
};

const codecs = new Map<string, Codec>();

/**
 * The codec of a dialect.
 *
 * @param slotSize bytes of the bus's slots: 64 on SPSC queues, 128 on the kernel's bridge
 */
export function codecFor(dialect: Dialect, slotSize: number = QUEUE_SLOT): Codec {
  const key = `${dialect} ${slotSize}`;
  let codec = codecs.get(key);
  if (codec === undefined) codecs.set(key, codec = new Codec(dialect, FORMS[dialect], slotSize));
  return codec;
}
