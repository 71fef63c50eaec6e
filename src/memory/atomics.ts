/**
 * Memory order, the one place that thinks about it and the only user of `Atomics`.
 *
 * The other side of a ring or queue is another process, machine or guest; what it sees is decided by
 * the processor, not by the language. ECMAScript's Atomics are sequentially consistent: V8 compiles a
 * load to an acquiring load (x86 mov, arm64 ldar) and a store to a full barrier on x86 (xchg) and a
 * releasing store on arm64 (stlr). They work on foreign mappings as on SharedArrayBuffers, each is a
 * call of about 10 ns, and so each is used once per batch: where an index is published, consumed, or
 * where a store must be visible before a load. Everything between two such points is plain access.
 *
 * All multi-byte fields are little-endian; so is every machine vmsg runs on (asserted below), and
 * typed arrays need no swapping.
 */

if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1) {
  throw new Error("vmsg needs a little-endian machine");
}

/**
 * On x86 every load acquires, V8 leaves loads of typed arrays in the order in which they are written and makes no two of
 * one, and none passes the call that an atomic store is: a plain load, a tenth of the price, is all that is needed.
 */
const LOADS_ACQUIRE = Deno.build.arch === "x86_64";

/**
 * Reads an index that the other side publishes. What it wrote before publishing is visible to the
 * plain loads that follow.
 */
export function loadAcquire16(view: Uint16Array, index: number): number {
  return LOADS_ACQUIRE ? view[index] : Atomics.load(view, index);
}

/** As {@link loadAcquire16}, for the 32-bit indices of message queues. */
export function loadAcquire32(view: Uint32Array, index: number): number {
  return LOADS_ACQUIRE ? view[index] : Atomics.load(view, index);
}

/**
 * QEMU's emulated arm64 lets ldar pass an stlr when the host is x86, which no arm64 processor does. An exchange
 * it cannot be passed by, and on a real one it costs little more.
 */
const EXCHANGES = Deno.build.arch === "aarch64";

/**
 * Publishes an index or a wish to be woken. Plain stores before it (descriptors, used elements, message bytes)
 * are visible to whoever sees the new value.
 *
 * A {@link loadAcquire16} that follows cannot pass it, which "publish, then look whether the other side sleeps"
 * and "ask, then look once more" need: both sides could miss each other. Both being sequentially consistent, no
 * fence belongs between them: on x86 the store is a locked exchange, on arm64 we make it one.
 */
export function storeRelease16(view: Uint16Array, index: number, value: number): void {
  if (EXCHANGES) Atomics.exchange(view, index, value);
  else Atomics.store(view, index, value);
}

/** As {@link storeRelease16}, for the 32-bit indices of message queues. */
export function storeRelease32(view: Uint32Array, index: number, value: number): void {
  if (EXCHANGES) Atomics.exchange(view, index, value);
  else Atomics.store(view, index, value);
}

/** Adds bits to a word; what was written before is visible to who takes them. @returns those that were there */
export function addBits(words: Uint32Array, index: number, bits: number): number {
  return Atomics.or(words, index, bits);
}

/** Takes all bits out of a word. */
export function takeBits(words: Uint32Array, index: number): number {
  return Atomics.exchange(words, index, 0);
}

/** Blocks this thread while a word of a SharedArrayBuffer has a value; false if nobody woke it ({@link wakeWaiting}) in time. */
export function waitWhile(words: Uint32Array, index: number, value: number, ms: number): boolean {
  return Atomics.wait(new Int32Array(words.buffer), index, value | 0, ms) !== "timed-out";
}

/** Stores a word, and wakes who waits while it has another value. */
export function wakeWaiting(words: Uint32Array, index: number, value: number): void {
  Atomics.store(words, index, value);
  Atomics.notify(new Int32Array(words.buffer), index);
}

const fenceWord = new Int32Array(new SharedArrayBuffer(4));

/**
 * Orders every earlier store before every later load: for a handshake as at {@link storeRelease16} where the
 * store or the load is plain access.
 *
 * A sequentially consistent exchange of a word, and a load of it, do it on both.
 */
export function fullFence(): void {
  Atomics.exchange(fenceWord, 0, 0);
  Atomics.load(fenceWord, 0);
}
