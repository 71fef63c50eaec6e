/** Random numbers that tell one attachment, and one heartbeat, from another (docs/wire.md 6). */

import type { Bus } from "../bus/bus.ts";

/** The version of the private messages that HELLO carries. */
export const PRIVATE_VERSION = 1;

/** A capability in HELLO: the driver side keeps a grant (docs/wire.md 6), the device side heeds it. */
export const CAPABILITY_GRANT = 1;
/** A capability in HELLO: the bus can ring by eventfds. */
export const CAPABILITY_DOORBELLS = 2;
/**
 * A capability in HELLO: a queue's kick and call can be the device side's (linux/notifier.ts), or the call where the bus has
 * interrupts for it.
 */
export const CAPABILITY_NOTIFIERS = 4;

/** What this side can do. */
export function capabilitiesOf(
  { offerDoorbells, carriesFds, lendVector, ringVector, grantAddress }: Bus,
): number {
  const notifies = carriesFds || lendVector !== undefined || ringVector !== undefined;
  return (grantAddress === 0n ? 0 : CAPABILITY_GRANT) |
    (offerDoorbells === undefined ? 0 : CAPABILITY_DOORBELLS) |
    (notifies ? CAPABILITY_NOTIFIERS : 0);
}

/** What stands for the memory of an epoch where the driver side grants it: never 0. */
export function grantOf(epoch: number): number {
  return epoch % 0x1_0000_0000 || 1;
}

const words = new Uint32Array(2);

/** A random epoch: a safe integer, never 0, which means "none known". */
export function randomEpoch(): number {
  crypto.getRandomValues(words);
  return (words[0] & 0x1f_ffff) * 0x1_0000_0000 + words[1] || 1;
}

/** A random nonce of 32 bits, never 0. */
export function randomNonce(): number {
  crypto.getRandomValues(words);
  return words[0] || 1;
}

/** A random token of 16 bits, never 0, which means "event". */
export function randomToken(): number {
  crypto.getRandomValues(words);
  return (words[0] & 0xffff) || 1;
}
