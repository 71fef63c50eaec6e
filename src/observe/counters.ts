/**
 * Counters by name, in memory that other processes can read while this one runs and after it crashed.
 *
 * A {@link counterShape} is made once for each kind of thing that counts. Its instances have a property per
 * counter, and `counters.received++` is what it looks like: two words of memory are read and one is written;
 * the compiler makes no call of it, and nothing is allocated (bench/counters_bench.ts). Where the words are
 * is settled when an instance is made: in the file of the process (counter_file.ts) if there is one and it
 * has room, else in memory of its own.
 *
 * The layout, little-endian, version 1; a text is filled up with zeros:
 *
 *     header    0  char[8]   "vmsgctrs"
 *               8  u32       version
 *              12  u32       process id
 *              16  u64       start, milliseconds since 1970
 *              24  u32       generation: changes with the set of groups, odd while it changes
 *              28  u32       bytes in use, header included
 *              32  char[32]  subcommand
 *     group     0  u32       how many counters
 *               4  u32       1 in use; 0 free, for the next group of as many counters
 *               8  char[16]  kind: "device", "bus", "port" ...
 *              24  char[40]  name
 *     counter   0  u64       value
 *               8  char[24]  name
 *
 * A group is followed by its counters and then by the next group. `od -A d -w32 -t u8z FILE` shows a counter
 * a line, the value first and the name last. A new group is written before the bytes in use cover it, and one
 * that takes a free place is in use only when it is whole: whoever reads after a crash finds no half of one.
 *
 * One thread writes a group. Therefore adding is reading, adding and storing, and no atomic operation; the high word
 * is stored only when it changes, before the low one. A reader that comes between the two sees a value that is
 * 2^32 too great; it reads twice.
 */

import { borrowMapping } from "../linux/mapping.ts";
import { storeRelease32 } from "../memory/atomics.ts";

/** Bytes of the header, and of a group's. */
export const HEADER_SIZE = 64;
/** Bytes of a counter. */
export const COUNTER_SIZE = 32;
/** What a file begins with. */
export const MAGIC = "vmsgctrs";
/** The version of the layout. */
export const VERSION = 1;

const GENERATION_WORD = 6;
const USED_WORD = 7;
const IN_USE_WORD = 1;
const COUNTER_WORDS = COUNTER_SIZE / 4;
const TWO_32 = 4294967296;

/** Properties that count: each a number that only grows. */
export type Counters<Name extends string> = Record<Name, number>;

/** Makes the counters of one thing of a kind ("device", "bus", "port" ...) with a name for people. */
export type CounterShape<Name extends string> = new (kind: string, name: string) => Counters<Name>;

/** Memory that holds groups; the thread that made it alone writes, and but for values reads nothing there. */
export class CounterMemory {
  readonly #words: Uint32Array<ArrayBuffer>;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  /** Places that were given back, by how many counters they have. */
  readonly #freed = new Map<number, number[]>();
  #used = HEADER_SIZE;
  #generation = 0;

  /** Takes zeroed memory and writes the header. */
  constructor(
    readonly buffer: ArrayBuffer,
    subcommand: string,
    pid: number,
    startMs: number,
    readonly address = 0,
  ) {
    this.#words = new Uint32Array(buffer);
    this.#bytes = new Uint8Array(buffer);
    this.#write(0, 8, MAGIC);
    this.#write(32, 32, subcommand);
    this.#words.set([VERSION, pid, startMs % TWO_32, startMs / TWO_32, 0, HEADER_SIZE], 2);
  }

  /** The offset of a new group whose counters are 0, or -1 if there is no room. */
  take(kind: string, name: string, names: readonly string[]): number {
    const size = HEADER_SIZE + COUNTER_SIZE * names.length;
    const at = this.#freed.get(names.length)?.pop() ?? this.#used;
    if (at + size > this.#bytes.length) return -1;
    this.#changing();
    // The size of a free group stays as it is: readers find the next group by it.
    this.#bytes.fill(0, at + 8, at + size);
    this.#write(at + 8, 16, kind);
    this.#write(at + 24, 40, name);
    names.forEach((name, n) => this.#write(at + HEADER_SIZE + COUNTER_SIZE * n + 8, 24, name));
    this.#words[at / 4] = names.length;
    storeRelease32(this.#words, at / 4 + IN_USE_WORD, 1);
    if (at === this.#used) storeRelease32(this.#words, USED_WORD, this.#used += size);
    this.#changing();
    return at;
  }

  /** Gives the place of a group of `count` counters back. */
  free(at: number, count: number): void {
    this.#changing();
    storeRelease32(this.#words, at / 4 + IN_USE_WORD, 0);
    this.#changing();
    const places = this.#freed.get(count);
    if (places === undefined) this.#freed.set(count, [at]);
    else places.push(at);
  }

  #changing(): void {
    storeRelease32(this.#words, GENERATION_WORD, ++this.#generation);
  }

  #write(at: number, size: number, text: string): void {
    new TextEncoder().encodeInto(text, this.#bytes.subarray(at, at + size));
  }
}

/** Where new groups go: one place per process, which is that of the thread with the data plane. */
let memory: Pick<CounterMemory, "buffer" | "address" | "take" | "free"> | undefined;

/** Has groups that are made from now on go there, or into memory of their own. */
export function countIn(place: CounterMemory | undefined): void {
  memory = place;
}

/** Runs what is not for others to see: its groups go into memory of their own. */
export function uncounted<T>(work: () => T): T {
  const place = memory;
  memory = undefined;
  try {
    return work();
  } finally {
    memory = place;
  }
}

/** For who makes groups later: runs what makes them as if it were now, where {@link uncounted} may be under way. */
export function countingAsNow(): <T>(work: () => T) => T {
  return memory === undefined ? uncounted : (work) => work();
}

/** Makes what counts in one group in the place of {@link addressOf} another thread's, which does not count meanwhile. */
export function countAt<T>(address: number, make: () => T): T {
  const before = memory;
  let buffer = new ArrayBuffer();
  const take = (_kind: string, _name: string, { length }: readonly string[]) => {
    buffer = borrowMapping(BigInt(address), HEADER_SIZE + COUNTER_SIZE * length).buffer;
    return 0;
  };
  memory = address === 0 ? undefined : {
    address: 0,
    take,
    free: () => {},
    get buffer() {
      return buffer;
    },
  };
  try {
    return make();
  } finally {
    memory = before;
  }
}

let noted: Counters<string>[] | undefined;

/** Notes the counters that are made while `work` runs; undefined for those that outlive whatever else is being made. */
export function noteCounters<T>(counters: Counters<string>[] | undefined, work: () => T): T {
  const outer = noted;
  noted = counters;
  try {
    return work();
  } finally {
    noted = outer;
  }
}

/** What instances of all shapes have; a shape adds its accessors. */
class Group {
  /** Of each counter the first {@link COUNTER_WORDS}: low word, high word, name. */
  readonly words: Uint32Array;
  readonly #memory = memory;
  #at = -1;

  constructor(readonly names: readonly string[], kind: string, name: string) {
    if (this.#memory !== undefined) this.#at = this.#memory.take(kind, name, names);
    noted?.push(this as unknown as Counters<string>);
    const length = COUNTER_WORDS * names.length;
    this.words = this.#at < 0
      ? new Uint32Array(length)
      : new Uint32Array(this.#memory!.buffer, this.#at + HEADER_SIZE, length);
  }

  /** Stores a high word if it is another one than before; a division that a `++` is spared. */
  highFor(low: number, value: number): number {
    const high = this.words[low + 1]!;
    if (value < TWO_32 * (high + 1)) return high;
    return this.words[low + 1] = Math.floor(value / TWO_32);
  }

  /** For JSON.stringify. */
  toJSON(): Counters<string> {
    const counters = this as unknown as Counters<string>;
    return Object.fromEntries(this.names.map((name) => [name, counters[name]!]));
  }

  /** See {@link addressOf}. */
  get address(): number {
    const { address } = this.#memory ?? { address: 0 };
    return this.#at < 0 || address === 0 ? 0 : address + this.#at;
  }

  /** See {@link retire}. */
  retire(): void {
    if (this.#at >= 0) this.#memory!.free(this.#at, this.names.length);
    this.#at = -1;
  }
}

/**
 * A class for counters of these names.
 *
 * @param names in the order in which they are shown, at most 24 letters each
 */
export function counterShape<Name extends string>(...names: Name[]): CounterShape<Name> {
  class Shape extends Group {
    constructor(kind: string, name: string) {
      super(names, kind, name);
    }
  }
  names.forEach((name, n) => {
    if (name.length > COUNTER_SIZE - 8) throw new Error(`the counter's name ${name} is too long`);
    const low = COUNTER_WORDS * n;
    Object.defineProperty(Shape.prototype, name, {
      get(this: Group): number {
        const high = this.words[low + 1]!;
        return high === 0 ? this.words[low]! : this.words[low]! + TWO_32 * high;
      },
      set(this: Group, value: number): void {
        if (value < TWO_32) this.words[low] = value;
        else this.words[low] = value - TWO_32 * this.highFor(low, value);
      },
    });
  });
  return Shape as unknown as CounterShape<Name>;
}

/** Where counters are in this process, for {@link countAt}; 0 if they are in no file. */
export function addressOf(counters: Counters<string>): number {
  return counters instanceof Group ? counters.address : 0;
}

/** Says that what was counted is gone. The counters must not be used any more: others may be there. */
export function retire(counters: Counters<string>): void {
  if (counters instanceof Group) counters.retire();
}

/** The values as they are now, as a plain object; properties that count are not copied by `...`. */
export function snapshot<Name extends string>(counters: Counters<Name>): Counters<Name> {
  return JSON.parse(JSON.stringify(counters));
}
