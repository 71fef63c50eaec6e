/**
 * The memory that a device's rings lie in, read from outside by the addresses of its bus, also when the device is gone.
 *
 * A process's state says which pieces there are (state.ts), and the files behind them. Such a file is read if it was given
 * by name, or if any process has it open: memory of a guest outlives the device that was killed. A piece without
 * a file, or with one that cannot be read, is read from the process that has it mapped, if that is the one that wrote the state.
 * Bytes are copied by read system calls; a file that was cut short gives less, and no signal.
 */

import { allocate } from "../linux/arena.ts";
import { type Fd, fileIdentity } from "../linux/fd.ts";
import { libc } from "../linux/libc.ts";
import { mappedFiles, openFileOf, openToRead } from "../linux/process_files.ts";
import type { ReadRegion } from "./state.ts";

const block = allocate(1 << 16);
/** No area of a ring is longer: 32768 descriptors, or elements of a used ring with what is around them. */
const MAX_LENGTH = 1 << 20;

/** The process that says what there is. */
export interface MemoryOwner {
  /** The file of its counters. */
  readonly path: string;
  readonly pid: number;
  readonly isRunning: boolean;
}

function copyAt(fd: Fd | undefined, at: number, most: number): number | undefined {
  if (fd === undefined || !Number.isSafeInteger(at)) return undefined;
  const count = libc.pread(fd.number, block.address, most, BigInt(at));
  return count > 0 ? count : undefined;
}

/** See the head of this file; dispose closes what it opened. */
export class MemoryReader implements Disposable {
  readonly #stack = new DisposableStack();
  readonly #files = new Map<string, Fd | undefined>();

  /** @param given files of memory, by name; some may be none of this device's */
  constructor(
    readonly regions: readonly ReadRegion[],
    readonly owner: MemoryOwner,
    readonly given: readonly string[] = [],
  ) {}

  /** See ReadableMemory of virtio/queue/ring_reader.ts. */
  contains(address: number, length: number): boolean {
    for (let done = 0; done < length;) {
      const region = this.#regionAt(address + done);
      if (region === undefined) return false;
      done = region.at + region.size - address;
    }
    return true;
  }

  /** The same. */
  read(address: number, length: number): DataView<ArrayBuffer> | undefined {
    if (length > MAX_LENGTH || !this.contains(address, length)) return undefined;
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const region = this.#regionAt(address + done)!;
      const from = address + done - region.at;
      const part = Math.min(length - done, region.size - from, block.bytes.length);
      const count = this.#copy(region, from, part);
      if (count === undefined) return undefined;
      bytes.set(block.bytes.subarray(0, count), done);
      done += count;
    }
    return new DataView(bytes.buffer);
  }

  #regionAt(address: number): ReadRegion | undefined {
    if (!Number.isSafeInteger(address)) return undefined;
    return this.regions.find(({ at, size }) => address >= at && address < at + size);
  }

  /** Copies some bytes into {@link block}; how many, or undefined if there are none to be had. */
  #copy({ file, offset, address }: ReadRegion, from: number, most: number): number | undefined {
    const behind = this.#open(file, () => this.#givenFile(file) ?? this.#openFile(file));
    const fromFile = copyAt(behind, offset + from, most);
    // Some files can only be mapped, as a BAR in sysfs; the process that has done so can still be read.
    return fromFile ?? copyAt(this.#open("memory", () => this.#ownMemory()), address + from, most);
  }

  #open(name: string, open: () => Fd | undefined): Fd | undefined {
    if (this.#files.has(name)) return this.#files.get(name);
    const fd = open();
    if (fd !== undefined) this.#stack.use(fd);
    this.#files.set(name, fd);
    return fd;
  }

  #givenFile(file: string): Fd | undefined {
    for (const path of this.given) {
      const fd = openToRead(path);
      if (fd === undefined) continue;
      if (fileIdentity(fd) === file) return fd;
      fd[Symbol.dispose]();
    }
    return undefined;
  }

  #openFile(file: string): Fd | undefined {
    return file === "0:0" ? undefined : openFileOf(file, this.owner.pid);
  }

  /** The memory of the process, and of none that has its number now. */
  #ownMemory(): Fd | undefined {
    const { pid, path, isRunning } = this.owner;
    if (!isRunning || !mappedFiles(pid).some((mapped) => mapped.path === path)) return undefined;
    return openToRead(`/proc/${pid}/mem`);
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}
