/**
 * How sides behave in a dialect, beyond the bytes that its codec writes: each habit by name, so that the
 * transport asks for what it means and never for a dialect.
 *
 * The section numbers are those of docs/wire.md. A habit that shows in the table of messages needs no entry
 * here: whether a message exists ({@link Codec.has}) and whether it is answered ({@link Codec.answered}).
 */

import type { Dialect } from "./message.ts";

/** See the head of this file. */
export interface Conduct {
  /** A token pairs an answer with its request; otherwise kind and device number do (2.1). */
  readonly hasTokens: boolean;
  /** The peer wants a doorbell for every message instead of one per turn (rule P11). */
  readonly ringsPerMessage: boolean;
  /** Feature messages always carry both blocks of 64 bits, whatever index they name (2.3, 3.8). */
  readonly featuresComeWhole: boolean;
  /** GET_DEVICE_INFO names the size of the configuration space, and the number of queues. */
  readonly configSizeIsNamed: boolean;
  /** A read across the end of the configuration space is answered with 32 bits of ones (2.3). */
  readonly configPastEndReadsOnes: boolean;
  /** Configuration is accessed 1, 2 or 4 bytes at a time: the peer aborts on 3 (rule P4). */
  readonly configAccessIsPowerOfTwo: boolean;
  /** SET_CONFIG is answered with what was asked to be written, whether it was or not (2.3). */
  readonly configWriteIsEchoed: boolean;
  /** SET_CONFIG names the generation the driver has seen, and is refused if there is a newer one (rule V13). */
  readonly configWriteNamesGeneration: boolean;
  /**
   * SET_VQUEUE names an operation, is all or nothing and leaves an enabled queue alone; RESET_VQUEUE does
   * nothing without RING_RESET (rules V45 to V52). Elsewhere a queue is set anew as often as it is asked,
   * and one that cannot be breaks the device.
   */
  readonly queueOperationIsNamed: boolean;
  /** SET_VQUEUE is answered with what it asks for, done or not (3.8). */
  readonly queueIsEchoed: boolean;
  /** GET_VQUEUE tells whether and how a queue was set up, not only its greatest size. */
  readonly queueStateIsNamed: boolean;
  /** GET_DEVICES names a multiple of 8 to go on from, and none inside the window (rules B8, B10). */
  readonly nextOffsetIsAligned: boolean;
}

const V1: Conduct = {
  hasTokens: true,
  ringsPerMessage: false,
  featuresComeWhole: false,
  configSizeIsNamed: true,
  configPastEndReadsOnes: false,
  configAccessIsPowerOfTwo: false,
  configWriteIsEchoed: false,
  configWriteNamesGeneration: false,
  queueOperationIsNamed: true,
  queueIsEchoed: false,
  queueStateIsNamed: true,
  nextOffsetIsAligned: false,
};

const V1_2025: Conduct = {
  ...V1,
  configWriteNamesGeneration: true,
  queueOperationIsNamed: false,
  nextOffsetIsAligned: true,
};

const RFC: Conduct = { ...V1_2025, hasTokens: false };

export const CONDUCTS: Readonly<Record<Dialect, Conduct>> = {
  v1: V1,
  "v1-2025": V1_2025,
  rfc: RFC,
  "rfc-q": {
    ...RFC,
    ringsPerMessage: true,
    featuresComeWhole: true,
    configAccessIsPowerOfTwo: true,
    configWriteIsEchoed: true,
    configWriteNamesGeneration: false,
    queueIsEchoed: true,
  },
  proto: {
    ...V1,
    hasTokens: false,
    ringsPerMessage: true,
    featuresComeWhole: true,
    configSizeIsNamed: false,
    configPastEndReadsOnes: true,
    configAccessIsPowerOfTwo: true,
    configWriteIsEchoed: true,
    queueOperationIsNamed: false,
    queueStateIsNamed: false,
  },
};
