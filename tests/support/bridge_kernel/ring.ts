/**
 * The two rings of a session as the kernel sees them (wire document 8.12): a header of six words, 256 slots.
 * prod and cons run freely, the slot is the cursor mod 256.
 *
 * Strict about the other side's stores: only its own cursor may change in a header, and only forwards. The
 * kernel's fault of writing the whole header back (with the cursor it saw before) is {@link Ring.writeBack}.
 */

/** Slots of a ring, and bytes before them. */
export const ENTRIES = 256;
export const RING_HEADER = 24;
export const MAX_FRAME = 128;
/** Bytes of a ring with slots of {@link MAX_FRAME}. */
export const RING_BYTES = RING_HEADER + ENTRIES * MAX_FRAME;

const PROD = 0, CONS = 1;

/** What is wrong with a ring: the session has faulted. */
export class RingFault extends Error {}

export class Ring {
  readonly #words: Uint32Array<ArrayBuffer>;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  /** Our own cursor, and that of the other side as last seen. */
  own: number;
  #other: number;

  /**
   * @param isWriter the kernel writes rx and reads tx
   * @throws RingFault if the process did not make the header ready
   */
  constructor(buffer: ArrayBuffer, offset: number, readonly isWriter: boolean) {
    this.#words = new Uint32Array(buffer, offset, 6);
    this.#bytes = new Uint8Array(buffer, offset, RING_BYTES);
    this.#view = new DataView(buffer, offset, RING_BYTES);
    this.#assertShape();
    this.own = this.#load(isWriter ? PROD : CONS);
    this.#other = this.#load(isWriter ? CONS : PROD);
    if (this.own !== this.#other) throw new RingFault("a ring is not empty at ATTACH");
  }

  #load(word: number): number {
    return Atomics.load(this.#words, word);
  }

  #assertShape(): void {
    const [, , entries, entrySize, flags, zero] = this.#words;
    if (entries !== ENTRIES || entrySize !== MAX_FRAME || flags !== 0 || zero !== 0) {
      throw new RingFault(`a ring's header is ${this.header()}`);
    }
  }

  /** The header in words, for people. */
  header(): string {
    return [...this.#words].map((word) => word.toString(16)).join(" ");
  }

  /** The other side's cursor, which only goes forwards, and not beyond what it may. */
  other(): number {
    this.#assertShape();
    const own = this.#load(this.isWriter ? PROD : CONS);
    if (own !== this.own) throw new RingFault(`our cursor is ${own}, was ${this.own}`);
    const other = this.#load(this.isWriter ? CONS : PROD);
    const used = (this.isWriter ? own - other : other - own) >>> 0;
    if (used > ENTRIES) throw new RingFault(`prod - cons is ${used}: ${this.header()}`);
    const step = (other - this.#other) >>> 0;
    if (step > ENTRIES) throw new RingFault(`their cursor went from ${this.#other} to ${other}`);
    this.#other = other;
    return other;
  }

  /** Frames in the ring. */
  get used(): number {
    const other = this.other();
    return (this.isWriter ? this.own - other : other - this.own) >>> 0;
  }

  /** Puts bytes into the next slot; false if there is no room. */
  put(frame: Uint8Array): boolean {
    if (this.used === ENTRIES) return false;
    this.#bytes.set(frame, RING_HEADER + (this.own % ENTRIES) * MAX_FRAME);
    this.#advance(PROD);
    return true;
  }

  /** The next frame's bytes, which stay in the ring until {@link done}; undefined if there is none. */
  peek(): Uint8Array | undefined {
    if (this.used === 0) return undefined;
    const at = RING_HEADER + (this.own % ENTRIES) * MAX_FRAME;
    const size = this.#view.getUint16(at + 6, true);
    if (size < 8 || size > MAX_FRAME) throw new RingFault(`msg_size is ${size}`);
    return this.#bytes.slice(at, at + size);
  }

  done(): void {
    this.#advance(CONS);
  }

  #advance(word: number): void {
    this.own = (this.own + 1) >>> 0;
    Atomics.store(this.#words, word, this.own);
  }

  /** Stores a cursor of the other side's that is older than what it stored, as the kernel does at times. */
  writeBack(other: number): void {
    this.#other = other >>> 0;
    Atomics.store(this.#words, this.isWriter ? CONS : PROD, this.#other);
  }

  /** Any store of a hostile kernel's. */
  poke(word: number, value: number): void {
    Atomics.store(this.#words, word, value >>> 0);
  }
}
