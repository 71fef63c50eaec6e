/**
 * The shm bus: any memory that two systems share, with no ivshmem around it. For a chip whose cores see
 * the same RAM, for a card's BAR, or for two processes and a file.
 *
 * Queues are those of page_bus.ts, at an offset of a file or of device memory (/dev/mem, a sysfs
 * resource, /dev/uioN, where map N begins at offset N pages). The peer is heard by polling, or by the
 * interrupts of a UIO device: reading it counts them, writing 1 enables the next (uio-howto). It is rung
 * by the store of one word at an offset of the same or another file, where there is such a register;
 * otherwise it has to poll.
 */

import { allocate } from "../linux/arena.ts";
import { LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, fileSize, isRegularFile, reserveFile, tryLockByte } from "../linux/fd.ts";
import { isSystemPath, openOwnFile } from "../linux/own_file.ts";
import { libc } from "../linux/libc.ts";
import { mapKept, type Mapping, PAGE_SIZE } from "../linux/mapping.ts";
import { lockHolder } from "../linux/process_files.ts";
import { EPOLLIN, type Reactor } from "../linux/reactor.ts";
import { readAttribute } from "../linux/sysfs.ts";
import { fullFence } from "../memory/mod.ts";
import type { BusListener, BusOptions, Side } from "./bus.ts";
import { PageBus, type PageLayout, QUEUE_PAGE } from "./page_bus.ts";
import { Poller } from "./poller.ts";

/** A register that rings the peer when it is written. */
export interface Doorbell {
  /** The file it is in. */
  readonly file: string;
  /** Of the 32-bit register, in the file. */
  readonly offset: number;
  /** What is written. */
  readonly value: number;
}

/** Options of `--bus shm,...`. */
export interface ShmBusOptions extends BusOptions {
  /** The file or device that holds the memory. */
  readonly file: string;
  /** The number of the user whose file it is, if it is not this one's. */
  readonly owner?: number | undefined;
  /** Of the bus in the file, in bytes. */
  readonly offset: number;
  /** Bytes of the memory; what lies behind the queues can hold buffers. */
  readonly size: number;
  /** A UIO device whose interrupts tell of messages; polled without. */
  readonly uio: string | undefined;
  /** How the peer is rung; it polls without. */
  readonly doorbell: Doorbell | undefined;
  /** Empty the queues first. */
  readonly reset: boolean;
  /** Both sides are vmsg and speak `v1`. */
  readonly named: boolean;
  /** See {@link PageLayout}. */
  readonly layout?: PageLayout | undefined;
  /** For people. */
  readonly log?: (line: string) => void;
}

/** The least memory: the two queues. */
export const SHM_MINIMUM: number = 2 * QUEUE_PAGE;

const word = allocate(8);
word.view.setUint32(0, 1, true);

function openPart(path: string, owner: number | undefined): Fd {
  return openOwnFile(path, { what: "bus shm: file", owner, mayBeDevice: true, make: "never" }).fd;
}

/** Maps a part of a file, from a page's start on. */
function mapPart(fd: Fd, file: string, offset: number, size: number): Mapping {
  // A device has no size; a file that is too short would be a SIGBUS at the first access.
  const length = isRegularFile(fd) ? fileSize(fd) : Infinity;
  if (offset + size > length) {
    const from = offset > 0 ? ` from ${offset} on` : "";
    throw new VmsgError("BUS_MEMORY", `bus shm: ${file} has ${length} bytes, not ${size}${from}`);
  }
  // One with holes, as ftruncate makes it, has no room for its pages yet.
  if (length < Infinity) reserveFile(fd, `bus shm: ${file}`, size, offset);
  try {
    // A device in another process may have to be shown it.
    return mapKept({ fd, offset }, size);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    const what = `${size} bytes from ${offset} on cannot be mapped`;
    throw new VmsgError("BUS_MEMORY", `bus shm: ${file}: ${what} (${error.code})`);
  }
}

/**
 * A queue has one producer, and a file's byte where it begins is locked by it. Processes of one host see that;
 * a device has no locks, nor have all file systems that hosts and machines share.
 */
function lockPlace(side: Side, fd: Fd, offset: number, where: string): void {
  if (!isRegularFile(fd)) return;
  const byte = offset + (side === "driver" ? 0 : QUEUE_PAGE);
  try {
    if (tryLockByte(fd, byte)) return;
  } catch (error) {
    if (error instanceof LinuxError) return;
    throw error;
  }
  const holder = lockHolder(fd, byte) ?? "of another user";
  throw new VmsgError("BUS_IN_USE", `${where}: process ${holder} is its ${side} side already`);
}

/** A PCI function that does not decode memory reads as ones and forgets what is written. */
function assertEnabled(file: string): void {
  const directory = /^(\/sys\/.*)\/resource\d(_wc)?$/.exec(file)?.[1];
  if (directory === undefined || readAttribute(`${directory}/enable`) !== "0") return;
  const advice = `echo 1 > ${directory}/enable`;
  throw new VmsgError("BUS_MEMORY", `bus shm: the function of ${file} is not enabled: ${advice}`);
}

/** See the head of this file. */
export class ShmBus extends PageBus {
  readonly #options: ShmBusOptions;
  readonly #stack: DisposableStack;
  readonly #doorbell: Uint32Array | undefined;
  #poller: Poller | undefined;

  /** Maps the memory; throws VmsgError if that cannot be done. */
  constructor(side: Side, reactor: Reactor, options: ShmBusOptions) {
    using stack = new DisposableStack();
    const { file, offset, size, doorbell } = options;
    const where = `bus shm,file=${file}`;
    if (doorbell !== undefined && doorbell.offset % 4 !== 0) {
      throw new VmsgError("BUS_MEMORY", `${where}: doorbell= must be a multiple of 4`);
    }
    for (const [name, at] of [["offset", offset], ["size", size]] as const) {
      if (at % PAGE_SIZE === 0) continue;
      throw new VmsgError("BUS_MEMORY", `${where}: ${name}= must be a multiple of ${PAGE_SIZE}`);
    }
    assertEnabled(file);
    const fd = stack.use(openPart(file, options.owner));
    const memory = stack.use(mapPart(fd, file, offset, size));
    lockPlace(side, fd, offset, where);
    super(side, reactor, {
      ...options,
      memory,
      offset: 0,
      where,
      id: () => 0,
      // Only a file's memory is sure to be ordinary memory.
      isDeviceMemory: isSystemPath(file) && !file.startsWith("/proc/"),
    });
    this.#options = options;
    this.#doorbell = doorbell === undefined
      ? undefined
      : registerOf(doorbell, options.owner, stack);
    this.#stack = stack.move();
  }

  /** For log lines. */
  get description(): string {
    return `bus shm ${this.#options.file}`;
  }

  /** Attaches, and begins to look or listen. */
  override open(listener: BusListener): void {
    super.open(listener);
    const { uio, owner } = this.#options;
    if (uio !== undefined) this.#watch(this.#stack.use(openPart(uio, owner)));
    this.attach();
    if (uio === undefined) this.#poller = new Poller(this.reactor, () => this.rung());
  }

  #watch(fd: Fd): void {
    const interrupted = () => {
      libc.read(fd.number, word.address + 4n, 4);
      // Enabled before the look: what comes after the look interrupts again.
      libc.write(fd.number, word.address, 4);
      this.rung();
    };
    try {
      this.reactor.watch(fd, EPOLLIN, interrupted);
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      const what = `bus shm: ${this.#options.uio} gives no interrupts (${error.code})`;
      throw new VmsgError("NO_UIO", `${what}: give a UIO device, or leave notify=uio out`);
    }
    this.#stack.defer(() => this.reactor.unwatch(fd));
    libc.write(fd.number, word.address, 4);
  }

  /** Writes the doorbell, if there is one. */
  protected override ring(): void {
    if (this.#doorbell !== undefined) {
      // The messages are there before the peer is told to look.
      fullFence();
      this.#doorbell[0] = this.#options.doorbell!.value;
    }
    this.#poller?.expect();
  }

  /** Unmaps the memory. */
  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#poller?.[Symbol.dispose]();
    this.#stack.dispose();
  }
}

function registerOf(
  { file, offset }: Doorbell,
  owner: number | undefined,
  stack: DisposableStack,
): Uint32Array {
  const page = Math.floor(offset / PAGE_SIZE) * PAGE_SIZE;
  using fd = openPart(file, owner);
  const { buffer } = stack.use(mapPart(fd, file, page, PAGE_SIZE));
  return new Uint32Array(buffer, offset - page, 1);
}
