/**
 * An {@link Engine} by preadv, pwritev and their kind, where there is no io_uring (containers often forbid it).
 *
 * Each blocks this process while the disk is at work, and with it all its devices. So a turn of the reactor does at
 * most {@link MOST_BYTES} of transfers, or one other operation: what is asked of a large transfer is done
 * in part, as every transfer may be.
 */

import { allocate } from "../../linux/arena.ts";
import type { Fd } from "../../linux/fd.ts";
import { errno, libc } from "../../linux/libc.ts";
import type { Reactor, Task } from "../../linux/reactor.ts";
import type { IovecList } from "../../memory/mod.ts";
import { type Done, type Engine, Operation } from "./engine.ts";

const MOST_BYTES = 1 << 20;

/** struct iovec: a first segment that alone is too long. */
const shortened = allocate(16);

interface Planned {
  operation: number;
  list: IovecList | undefined;
  mode: number;
  offset: number;
  length: number;
}

/** See the head of this file. */
export class PlainIo implements Engine {
  readonly name = "system calls";
  /** By tag. */
  readonly #planned: Planned[];
  /** Tags in the order in which they were begun, from `#first` on. */
  readonly #order: Uint16Array;
  #first = 0;
  #count = 0;
  readonly #task: Task = { run: () => this.#run() };

  /** Opens nothing; the file stays the caller's. */
  constructor(readonly reactor: Reactor, readonly file: Fd, tags: number, readonly done: Done) {
    this.#planned = Array.from(
      { length: tags },
      () => ({ operation: 0, list: undefined, mode: 0, offset: 0, length: 0 }),
    );
    this.#order = new Uint16Array(tags);
  }

  transfer(tag: number, operation: number, list: IovecList, offset: number): void {
    this.#begin(tag, operation, list, 0, offset, 0);
  }

  flush(tag: number): void {
    this.#begin(tag, Operation.FLUSH, undefined, 0, 0, 0);
  }

  allocate(tag: number, mode: number, offset: number, length: number): void {
    this.#begin(tag, Operation.ALLOCATE, undefined, mode, offset, length);
  }

  #begin(
    tag: number,
    operation: number,
    list: IovecList | undefined,
    mode: number,
    offset: number,
    length: number,
  ): void {
    const planned = this.#planned[tag]!;
    planned.operation = operation;
    planned.list = list;
    planned.mode = mode;
    planned.offset = offset;
    planned.length = length;
    this.#order[(this.#first + this.#count++) % this.#order.length] = tag;
  }

  submit(): void {
    if (this.#count > 0) this.reactor.schedule(this.#task);
  }

  #run(): boolean {
    for (let left = MOST_BYTES; left > 0 && this.#count > 0;) left -= this.#next(left);
    return this.#count > 0;
  }

  /** Does the oldest; how much of a turn it took. */
  #next(most: number): number {
    const tag = this.#order[this.#first]!;
    this.#first = (this.#first + 1) % this.#order.length;
    this.#count--;
    const { operation, list, mode, offset, length } = this.#planned[tag]!;
    const { number } = this.file;
    let result: number;
    let taken = MOST_BYTES;
    if (list !== undefined) {
      taken = Math.min(list.length, most);
      result = this.#transfer(operation, list, offset, most);
    } else if (operation === Operation.FLUSH) result = libc.fdatasync(number);
    else result = libc.fallocate(number, mode, BigInt(offset), BigInt(length));
    this.done(tag, result < 0 ? -errno() : result);
    return taken;
  }

  #transfer(operation: number, list: IovecList, offset: number, most: number): number {
    let count = 0;
    for (let bytes = 0; count < list.count; count++) {
      bytes += list.lengthOf(count);
      if (bytes > most) break;
    }
    let { address } = list;
    if (count === 0) {
      count = 1;
      address = shortened.address;
      shortened.view.setBigUint64(0, BigInt(list.addressOf(0)), true);
      shortened.view.setBigUint64(8, BigInt(most), true);
    }
    const call = operation === Operation.READ ? libc.preadv : libc.pwritev;
    return call(this.file.number, address, count, BigInt(offset));
  }

  drain(): void {
    while (this.#count > 0) this.#next(MOST_BYTES);
  }

  [Symbol.dispose](): void {
    this.drain();
  }
}
