/**
 * The shm bus: any memory that two systems share, with no ivshmem around it. For a chip whose cores see
 * the same RAM, for a card's BAR, or for two processes and a file.
 *
 * Queues are those of page_bus.ts, at an offset of a file or of device memory (/dev/mem, a sysfs
 * resource, /dev/uioN, where map N begins at offset N pages). The peer is heard by polling, or by the
 * interrupts of a UIO device: reading it counts them, writing 1 enables the next (uio-howto). It is rung
 * by the store of one word at an offset of the same or another file, where there is such a register;
 * otherwise it has to poll. Cards want more (docs/wire.md 4.6): a doorbell that is a pulse of two stores, interrupts that are
 * acknowledged in a register, and a mailbox (card_registers.ts) by which the device side learns where in the memory the queues lie.
 */

import { allocate } from "../linux/arena.ts";
import { LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, fileSize, isRegularFile, reserveFile, tryLockByte } from "../linux/fd.ts";
import { isSystemPath, openOwnFile } from "../linux/own_file.ts";
import { libc } from "../linux/libc.ts";
import { mapAnonymous, mapKept, type Mapping, PAGE_SIZE, remapInside } from "../linux/mapping.ts";
import { lockHolder } from "../linux/process_files.ts";
import { EPOLLIN, type Reactor } from "../linux/reactor.ts";
import { readAttribute } from "../linux/sysfs.ts";
import type { BusListener, BusOptions, Side } from "./bus.ts";
import {
  acknowledge as takeBack,
  hearWhere,
  MAILBOX_WORDS,
  ringDoorbell,
  sayWhere,
} from "./card_registers.ts";
import { PageBus, type PageLayout, QUEUE_PAGE } from "./page_bus.ts";
import { Poller } from "./poller.ts";

/** A register that rings the peer when it is written. */
export interface Doorbell extends Registers {
  /** What is written. */
  readonly value: number;
  /** What is written right behind it, if it wants a pulse. */
  readonly pulse?: number | undefined;
}

/** Registers of a card's. */
export interface Registers {
  /** The file they are in. */
  readonly file: string;
  /** Of the first one, in the file. */
  readonly offset: number;
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
  /** Where an interrupt is taken back, before the next is enabled. */
  readonly acknowledge?: Registers | undefined;
  /** By which the device side learns where in the memory the queues are; they are at its start without. */
  readonly mailbox?: Registers | undefined;
  /** Driver side: what the mailbox is told. */
  readonly mailboxBase?: number;
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
 * A queue has one producer, and a file's byte where it begins is locked by it, or with a mailbox one of the mailbox's. Processes of
 * one host see that; a device has no locks, nor have all file systems that hosts and machines share.
 */
function lockPlace(side: Side, fd: Fd, byte: number, where: string): void {
  if (!isRegularFile(fd)) return;
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

/** Memory for the queues, and how it comes to show them. */
interface Place {
  readonly memory: Mapping;
  readonly fd: Fd;
}

/** Without a mailbox, or as driver side, they are where they are said to be; otherwise no memory shows them yet. */
function openPlace(side: Side, options: ShmBusOptions, stack: DisposableStack): Place {
  const { file, offset, size, mailbox } = options;
  const fd = stack.use(openPart(file, options.owner));
  const isTold = mailbox !== undefined && side === "device";
  const whole = isTold ? undefined : stack.use(mapPart(fd, file, offset, size));
  return { fd, memory: whole ?? stack.use(mapAnonymous(SHM_MINIMUM)) };
}

/** See the head of this file. */
export class ShmBus extends PageBus {
  readonly #options: ShmBusOptions;
  readonly #stack: DisposableStack;
  readonly #doorbell: Uint32Array | undefined;
  readonly #acknowledge: Uint32Array | undefined;
  readonly #mailbox: Uint32Array | undefined;
  readonly #place: Place;
  #base: number | undefined;
  #poller: Poller | undefined;

  /** Maps the memory; throws VmsgError if that cannot be done. */
  constructor(side: Side, reactor: Reactor, options: ShmBusOptions) {
    using stack = new DisposableStack();
    const { file, offset, size, doorbell, acknowledge, mailbox } = options;
    const where = `bus shm,file=${file}`;
    for (const [name, registers] of Object.entries({ doorbell, acknowledge, mailbox })) {
      if ((registers?.offset ?? 0) % 4 === 0) continue;
      throw new VmsgError("BUS_MEMORY", `${where}: ${name}= must be a multiple of 4`);
    }
    for (const [name, at] of [["offset", offset], ["size", size]] as const) {
      if (at % PAGE_SIZE === 0) continue;
      throw new VmsgError("BUS_MEMORY", `${where}: ${name}= must be a multiple of ${PAGE_SIZE}`);
    }
    assertEnabled(file);
    const place = openPlace(side, options, stack);
    if (mailbox === undefined) {
      lockPlace(side, place.fd, offset + (side === "driver" ? 0 : QUEUE_PAGE), where);
    } else {
      const registers = stack.use(openPart(mailbox.file, options.owner));
      lockPlace(side, registers, mailbox.offset + (side === "driver" ? 0 : 4), where);
    }
    super(side, reactor, {
      ...options,
      memory: place.memory,
      offset: 0,
      where,
      id: () => 0,
      // Only a file's memory is sure to be ordinary memory.
      isDeviceMemory: isSystemPath(file) && !file.startsWith("/proc/"),
    });
    this.#options = options;
    this.#place = place;
    const registers = (of: Registers | undefined, count: number) =>
      of && registersOf(of, count, options.owner, stack);
    this.#doorbell = registers(doorbell, 1);
    this.#acknowledge = registers(acknowledge, 1);
    this.#mailbox = registers(mailbox, MAILBOX_WORDS);
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
    this.#find();
    if (uio === undefined) this.#poller = new Poller(this.reactor, () => this.rung());
  }

  /** Attaches, where it is known where the queues are; otherwise when it is told. */
  #find(): void {
    const words = this.#mailbox;
    if (words === undefined) return this.attach();
    if (this.side === "driver") {
      const { offset, mailboxBase = offset } = this.#options;
      this.attach();
      return void this.#stack.use(sayWhere(this.reactor, words, mailboxBase));
    }
    this.#tell("waiting for the driver side to say in the mailbox where its queues are");
    this.#stack.use(hearWhere(this.reactor, words, (base) => this.#move(base)));
  }

  #tell(line: string): void {
    this.#options.log?.(`${this.description}: ${line}`);
  }

  /** The queues are there, as the mailbox says. */
  #move(base: number): void {
    const { file, offset, size } = this.#options;
    const { memory, fd } = this.#place;
    // Said again, perhaps by one that began anew.
    if (base === this.#base) return this.resume();
    const isThere = base % PAGE_SIZE === 0 && base <= size - memory.size &&
      (!isRegularFile(fd) || offset + base + memory.size <= fileSize(fd));
    if (!isThere) {
      const where = `0x${base.toString(16)}`;
      return this.#tell(`the mailbox says ${where}, which is no place in ${size} bytes of ${file}`);
    }
    this.#base = undefined;
    this.detach("the driver side has its queues elsewhere now");
    try {
      remapInside(memory, { fd, offset }, base);
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      return this.#tell(`${file}: what the mailbox says cannot be mapped (${error.code})`);
    }
    this.#base = base;
    this.attach();
  }

  #watch(fd: Fd): void {
    const interrupted = () => {
      libc.read(fd.number, word.address + 4n, 4);
      if (this.#acknowledge !== undefined) takeBack(this.#acknowledge);
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
    if (this.#doorbell !== undefined) ringDoorbell(this.#doorbell, this.#options.doorbell!);
    this.#poller?.expect();
  }

  /** Unmaps the memory. */
  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#poller?.[Symbol.dispose]();
    this.#stack.dispose();
  }
}

/** Some registers, `count` words of 32 bits. */
function registersOf(
  { file, offset }: Registers,
  count: number,
  owner: number | undefined,
  stack: DisposableStack,
): Uint32Array {
  const page = Math.floor(offset / PAGE_SIZE) * PAGE_SIZE;
  const size = Math.ceil((offset + 4 * count - page) / PAGE_SIZE) * PAGE_SIZE;
  using fd = openPart(file, owner);
  const { buffer } = stack.use(mapPart(fd, file, page, size));
  return new Uint32Array(buffer, offset - page, count);
}
