/**
 * What cards want of their registers (docs/wire.md 4.6). They are written by plain stores, each a write on a bus; a fence keeps two
 * of them apart.
 *
 * A doorbell is a store, or a pulse of two. An interrupt is taken back by a 0 in a register, whose bit 0 says that there is one:
 * perhaps another already.
 *
 * By a mailbox of three registers the driver side says where its queues are:
 *
 *     0  u32 1: there is something, which the device side takes and sets to 0
 *     4  u32 low half, 8 u32 high half of the offset in what the device side sees of the driver's memory
 *
 * The driver side says it at its start and then once a second, as the device side may have been started anew and knows nothing. The
 * device side looks all the time, as the driver side may be started anew and have its queues elsewhere.
 */

import type { Reactor } from "../linux/reactor.ts";
import { fullFence, loadAcquire32 } from "../memory/mod.ts";

const LOOK_MS = 20;
const SAY_MS = 1000;
const TWO_32 = 0x1_0000_0000;
/** The positions of the words. */
const [FULL, LOW, HIGH] = [0, 1, 2];
/** How many words there are. */
export const MAILBOX_WORDS = 3;

/** An interrupt that comes again and again while it is taken back is left to the next time. */
const MAX_ACKNOWLEDGED = 16;

/** Rings: the value, and behind it the other one, if there is one. */
export function ringDoorbell(
  words: Uint32Array,
  { value, pulse }: { readonly value: number; readonly pulse?: number | undefined },
): void {
  // The messages are there before the peer is told to look.
  fullFence();
  words[0] = value;
  if (pulse === undefined) return;
  fullFence();
  words[0] = pulse;
}

/** Takes an interrupt back, and those that come meanwhile. */
export function acknowledge(words: Uint32Array): void {
  for (let n = 0; n < MAX_ACKNOWLEDGED; n++) {
    words[0] = 0;
    fullFence();
    if ((loadAcquire32(words, 0) & 1) === 0) return;
  }
}

function every(reactor: Reactor, ms: number, act: () => void): Disposable {
  const timer = reactor.timer(() => {
    timer.arm(ms);
    act();
  });
  timer.arm(0);
  return { [Symbol.dispose]: () => reactor.dropTimer(timer) };
}

/** Driver side: says where the queues are, unless that was said and not taken yet; until what is returned is disposed. */
export function sayWhere(reactor: Reactor, words: Uint32Array, base: number): Disposable {
  return every(reactor, SAY_MS, () => {
    if (loadAcquire32(words, FULL) !== 0) return;
    words[LOW] = base % TWO_32;
    words[HIGH] = Math.floor(base / TWO_32);
    // The place is there before what says so; these are registers, which take plain stores only.
    fullFence();
    words[FULL] = 1;
  });
}

/** Device side: is told where they are, as often as it is said; any number. Until what is returned is disposed. */
export function hearWhere(
  reactor: Reactor,
  words: Uint32Array,
  heard: (base: number) => void,
): Disposable {
  return every(reactor, LOOK_MS, () => {
    if (loadAcquire32(words, FULL) === 0) return;
    const base = words[LOW]! + TWO_32 * words[HIGH]!;
    fullFence();
    words[FULL] = 0;
    heard(base);
  });
}
