/**
 * How a disk's file is read and written: by io_uring where the kernel has it and lets us, else by ordinary
 * system calls. Both take the guest's pages as they are.
 *
 * An operation has a tag, is told to the engine by `begin`, handed over by `submit` with all others that
 * were begun, and ends with `done(tag, result)`: bytes, 0, or a negative errno. A tag has one operation at a time.
 * From `begin` to `done` the kernel may touch the memory of its list, so whoever gives memory back waits for it.
 */

import type { IovecList } from "../../memory/mod.ts";

/** What can be done with a file; the numbers are those of io_uring. */
export const Operation = { READ: 1, WRITE: 2, FLUSH: 3, ALLOCATE: 17 } as const;

/** An operation has ended. */
export type Done = (tag: number, result: number) => void;

/** See the head of this file. */
export interface Engine extends Disposable {
  /** For people. */
  readonly name: string;
  /** Reads into the list, or writes from it, at `offset` of the file. */
  transfer(tag: number, operation: number, list: IovecList, offset: number): void;
  /** Has all that was written before it on the disk, as fdatasync(2). */
  flush(tag: number): void;
  /** As fallocate(2). */
  allocate(tag: number, mode: number, offset: number, length: number): void;
  /** Hands over what was begun; tells at once of what is done at once. */
  submit(): void;
  /** Waits, blocking, until nothing is under way. */
  drain(): void;
}

/** Makes one; `done` is called from within its methods, and by the reactor. */
export type MakeEngine = (done: Done) => Engine;
