/**
 * A file that packets are captured in (pcapng.ts): messages of buses and frames of network cards, each an interface.
 *
 * Theory of operation. A packet is copied into a buffer, with the time, as a whole block. {@link FLUSH_MS} after its first
 * packet the buffer is given to a thread of the C library to be written, and the other one is filled. So nobody waits
 * for a disk, or for who reads a pipe; while both buffers are full, packets are dropped and counted, and statistics
 * of their interface say so in the file, where they are missing and at the end.
 *
 * Blocks are only ever appended, whole ones by one write: after a SIGKILL the file is what was written until then. (A
 * kernel that ends a process in the middle of a write may leave its last block cut off, which readers step over.)
 *
 * States: capturing, until the size limit or an error; then over. The end is told once, the traffic goes on. A *ring* has
 * no end: when a file has half of the limit it becomes PATH.old, in place of the former one, and a new one is begun; the two
 * hold what came last. The new one is made beside them (PATH.new) and changes places at once, so that at any moment, also when
 * the process is killed, there is a whole file under either name.
 */

import { allocate, type Block } from "../linux/arena.ts";
import { BackgroundWrite } from "../linux/background_write.ts";
import { pause } from "../linux/clock.ts";
import { EAGAIN, EINTR, LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, fileStatus, resizeFile } from "../linux/fd.ts";
import { check, cString, libc, linuxError } from "../linux/libc.ts";
import { softLimit } from "../linux/limits.ts";
import { mapAnonymous } from "../linux/mapping.ts";
import { openOwnFile } from "../linux/own_file.ts";
import { closeElsewhere } from "../linux/received_fd.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import { type Counters, counterShape } from "./counters.ts";
import type { Log } from "./log.ts";
import {
  type CapturedInterface,
  interfaceDescription,
  interfaceStatistics,
  PACKET_HEAD,
  packetSize,
  sectionHeader,
  type Stamp,
  STATISTICS_SIZE,
  writePacket,
} from "./pcapng.ts";

/** What is captured in, and how much. */
export interface CaptureOptions {
  /** The file, which is replaced. */
  readonly path: string;
  /** Bytes that are kept of a packet; all unless given. */
  readonly snapLength?: number | undefined;
  /** The largest size in bytes, of both files where it is a ring; 1 GiB unless given. */
  readonly limit?: number | undefined;
  /** Keep what comes last instead of what comes first. */
  readonly ring?: boolean | undefined;
}

/** tcpdump's "all of it"; no frame is larger. */
export const MAX_SNAP_LENGTH = 262_144;
export const DEFAULT_LIMIT: number = 1 << 30;
/** A limit must leave room for some packets, that of a ring for large ones. */
export const MIN_LIMIT = 4096;
export const MIN_RING_LIMIT: number = 4 << 20;
/** Of each of two: holds what a fast link brings while the other one is written. Only what is used takes memory. */
const BUFFER_SIZE = 4 << 20;
/** So much is given to be written at once. */
const EAGER_SIZE = 256 << 10;
/** Soon enough that what led to a crash is there. */
const FLUSH_MS = 10;
/** How often a write is looked at, and how long the last one is waited for at the end. */
const LOOK_MS = 5;
const LAST_WAIT_MS = 1000;
const APPLICATION = "vmsg";
const CLOCK_REALTIME = 0;
const AT_FDCWD = -100, RENAME_EXCHANGE = 2;
const TWO_32 = 4294967296;
const BILLION = 1e9;

const CaptureCounters = counterShape("captured", "dropped");

/** See the head of this file. */
export class CaptureFile implements Disposable {
  readonly path: string;
  readonly #snapLength: number;
  readonly #limit: number;
  readonly #isRing: boolean;
  readonly #buffers = [mapAnonymous(BUFFER_SIZE), mapAnonymous(BUFFER_SIZE)];
  readonly #views = this.#buffers.map(({ buffer }) => new DataView(buffer));
  /** How much of a buffer is used. */
  readonly #room: number;
  readonly #write = new BackgroundWrite();
  readonly #timer: Timer;
  readonly #interfaces: CaptureInterface[] = [];
  // struct timespec: s64 seconds, s64 nanoseconds
  readonly #time: Block = allocate(16);
  readonly #stamp = { high: 0, low: 0 };
  #fd: Fd | undefined;
  /** Nothing is captured any more, and why; what there is still has to be written. */
  #ending: string | undefined;
  /** Which buffer is filled, and how far. */
  #filled = 0;
  #used = 0;
  /** Bytes of the file, of the other buffer, and those of it that are in the file. */
  #size = 0;
  #writing = 0;
  #done = 0;

  /** @throws VmsgError with a line for people */
  constructor(options: CaptureOptions, readonly reactor: Reactor, readonly log: Log) {
    const { path, snapLength = MAX_SNAP_LENGTH, limit = DEFAULT_LIMIT, ring = false } = options;
    this.path = path;
    this.#snapLength = snapLength;
    this.#isRing = ring;
    this.#fd = this.#open(path);
    // Beyond what the process may write the kernel would end it.
    this.#limit = Math.min(ring ? limit / 2 : limit, softLimit("file size"));
    this.#room = Math.min(BUFFER_SIZE, this.#limit / 2);
    this.#timer = reactor.timer(() => this.#flush());
    const head = sectionHeader(APPLICATION);
    // At once, so that whoever is killed now leaves a file that is one; nobody waits for a pipe's reader.
    const isNow = fileStatus(this.#fd).kind === "file" && this.#limit >= MIN_LIMIT;
    if (isNow) this.#writeNow([head]);
    else this.#append(head);
  }

  #open(path: string): Fd {
    try {
      const isAny = !this.#isRing;
      const what = { what: "capture file", mayBePipe: isAny, mayBeDevice: isAny };
      const { fd } = openOwnFile(path, what);
      if (fileStatus(fd).kind === "file") resizeFile(fd, 0);
      return fd;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      throw new VmsgError("CAPTURE_FILE", `cannot capture to ${path}: ${error.message}`);
    }
  }

  /** Adds an interface, or gives that of the same name: a device may come and go. */
  add(about: CapturedInterface): CaptureInterface {
    const known = this.#interfaces.find((each) => each.about.name === about.name);
    if (known !== undefined) return known;
    const added = new CaptureInterface(this, this.#interfaces.length, about);
    this.#interfaces.push(added);
    this.#append(interfaceDescription(about, this.#snapLength));
    return added;
  }

  /** Bytes that are kept of a packet of this length. */
  keptOf(length: number): number {
    return length < this.#snapLength ? length : this.#snapLength;
  }

  /** The buffer that {@link claim}'s offset belongs to, until the next call; and where that is. */
  get view(): DataView {
    return this.#views[this.#filled]!;
  }

  get address(): bigint {
    return this.#buffers[this.#filled]!.address;
  }

  /**
   * Makes room for a packet's data, to be written at once; called by interfaces.
   *
   * @param kept see {@link keptOf}
   * @param lost packets were dropped since the last one, which is told in front of it
   * @returns its offset in {@link view}, or -1 if there is no room or the capture is over
   */
  claim(about: CaptureInterface, kept: number, length: number, lost: boolean): number {
    if (this.#fd === undefined || this.#ending !== undefined) return -1;
    const needed = packetSize(kept) + (lost ? STATISTICS_SIZE : 0);
    if (this.#used > EAGER_SIZE) this.#flush();
    if (this.#used + needed > this.#room && (!this.#flush() || needed > this.#room)) return -1;
    if (!this.#isRing && this.#isBeyond(needed)) {
      this.#statistics().forEach((each) => this.#append(each));
      this.#ending = `has reached its limit of ${this.#limit} bytes`;
      return -1;
    }
    this.#readTime();
    if (lost) this.#append(about.statistics(this.#stamp));
    const at = this.#used;
    writePacket(this.view, at, about.index, this.#stamp, kept, length);
    this.#used = at + packetSize(kept);
    if (!this.#timer.armed) this.#timer.arm(FLUSH_MS);
    return at + PACKET_HEAD;
  }

  /** Would the file be too large, with what is to be said at its end? */
  #isBeyond(needed: number): boolean {
    const last = STATISTICS_SIZE * this.#interfaces.length;
    return this.#size + this.#writing + this.#used + needed + last > this.#limit;
  }

  #append(bytes: Uint8Array): void {
    if (this.#used + bytes.length > BUFFER_SIZE) return;
    new Uint8Array(this.view.buffer).set(bytes, this.#used);
    this.#used += bytes.length;
    if (!this.#timer.armed) this.#timer.arm(FLUSH_MS);
  }

  #readTime(): void {
    libc.clock_gettime(CLOCK_REALTIME, this.#time.address);
    const { view } = this.#time;
    const seconds = view.getUint32(0, true);
    // In two halves, since together they are beyond 2^53.
    const upper = (seconds >>> 16) * BILLION;
    const lower = (seconds & 0xffff) * BILLION + view.getUint32(8, true);
    const low = upper % 65536 * 65536 + lower;
    this.#stamp.high = Math.floor(upper / 65536) + Math.floor(low / TWO_32);
    this.#stamp.low = low % TWO_32;
  }

  /** How many packets of each interface there were. */
  #statistics(): Uint8Array[] {
    this.#readTime();
    return this.#interfaces.map((each) => each.statistics(this.#stamp));
  }

  /** Has what is in the buffer written, if the other one is; true if there is an empty buffer. */
  #flush(): boolean {
    this.#timer.cancel();
    this.#look();
    if (this.#fd === undefined) return false;
    if (this.#writing > 0) {
      this.#timer.arm(LOOK_MS);
      return false;
    }
    if (this.#used === 0 && this.#ending !== undefined) this.#over(this.#ending);
    if (this.#used === 0) return true;
    if (this.#isRing && this.#size > 0 && this.#isBeyond(0)) this.#turnOver();
    this.#filled = 1 - this.#filled;
    this.#writing = this.#used;
    this.#used = this.#done = 0;
    this.#look();
    if (this.#writing > 0) this.#timer.arm(LOOK_MS);
    return true;
  }

  /** Takes note of what was written, and has the rest written. */
  #look(): void {
    const count = this.#write.take() ?? 0;
    // Nobody reads the pipe: the next look tries again.
    if (count < 0 && count !== -EAGAIN && count !== -EINTR) {
      return this.#over(`cannot be written: ${linuxError(-count, "write").message}`);
    }
    this.#size += Math.max(0, count);
    this.#done += Math.max(0, count);
    if (this.#done === this.#writing) this.#writing = this.#done = 0;
    if (this.#fd === undefined || this.#writing === 0 || this.#write.isWriting) return;
    const address = this.#buffers[1 - this.#filled]!.address + BigInt(this.#done);
    this.#write.start(this.#fd, address, this.#writing - this.#done, this.#size);
  }

  /**
   * Begins a new file, with what is in the buffer. What it takes at the end of the former one is written at once, as the
   * beginning of this one is: some hundred bytes each.
   */
  #turnOver(): void {
    try {
      this.#writeNow(this.#statistics());
      this.#close();
      this.#fd = this.#open(`${this.path}.new`);
      this.#size = 0;
      const about = this.#interfaces.map((each) =>
        interfaceDescription(each.about, this.#snapLength)
      );
      this.#writeNow([sectionHeader(APPLICATION), ...about]);
      this.#takePlace();
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      this.#over(`cannot go on: ${error.message}`);
    }
  }

  /** The new file takes the place of the present one, and that of the old one: which is given up first. */
  #takePlace(): void {
    const [now, old, next] = ["", ".old", ".new"].map((suffix) => `${this.path}${suffix}`);
    rename(next!, old!);
    if (exchange(now!, old!)) return;
    // A file system that cannot: for a moment there is none of the name.
    rename(old!, next!);
    rename(now!, old!);
    rename(next!, now!);
  }

  /** Writes small blocks that do not go through the buffers; no write is under way. */
  #writeNow(blocks: readonly Uint8Array[]): void {
    const { buffer, address } = this.#buffers[1 - this.#filled]!;
    const bytes = blocks.flatMap((block) => [...block]);
    new Uint8Array(buffer).set(bytes);
    const offset = BigInt(this.#size);
    const written = libc.pwrite(this.#fd!.number, address, bytes.length, offset);
    this.#size += check(written, `write ${this.path}`);
  }

  #over(why: string): void {
    if (this.#fd !== undefined) {
      this.log.warn(`capture ${this.path} ends, it ${why}; the traffic goes on`);
    }
    this.#close();
  }

  /** On NFS that is when all is written: not for the data plane to wait for. */
  #close(): void {
    if (this.#fd !== undefined) closeElsewhere(this.#fd.release());
    this.#fd = undefined;
  }

  [Symbol.dispose](): void {
    if (this.#ending === undefined) this.#statistics().forEach((each) => this.#append(each));
    for (let waitedMs = 0; waitedMs < LAST_WAIT_MS; waitedMs += LOOK_MS) {
      const isEmpty = this.#flush() && this.#writing === 0 && this.#used === 0;
      if (isEmpty || this.#fd === undefined) break;
      pause(LOOK_MS);
    }
    this.reactor.dropTimer(this.#timer);
    // What a thread still works with stays as it is, and where it is.
    if (this.#write.isWriting) return;
    this.#fd?.[Symbol.dispose]();
    this.#fd = undefined;
    for (const buffer of this.#buffers) buffer[Symbol.dispose]();
  }
}

function rename(from: string, to: string): void {
  check(libc.rename(cString(from), cString(to)), `rename ${from}`);
}

/** Has two files change places at once, where the file system can. */
function exchange(one: string, other: string): boolean {
  const places = [AT_FDCWD, cString(one), AT_FDCWD, cString(other)] as const;
  return libc.renameat2?.(...places, RENAME_EXCHANGE) === 0;
}

/** One bus's direction, or one network card. */
export class CaptureInterface {
  /** Packets in the file, and those for which there was no room. */
  readonly counters: Counters<"captured" | "dropped">;
  #toldDropped = 0;

  /** Called by {@link CaptureFile.add}. */
  constructor(
    private readonly file: CaptureFile,
    readonly index: number,
    readonly about: CapturedInterface,
  ) {
    this.counters = new CaptureCounters("capture", about.name);
  }

  /** See {@link CaptureFile.claim}; what there is no room for is counted. */
  claim(kept: number, length: number): number {
    const { dropped } = this.counters;
    const at = this.file.claim(this, kept, length, dropped !== this.#toldDropped);
    if (at < 0) this.counters.dropped++;
    else this.counters.captured++;
    return at;
  }

  /** What is to be said of the interface at that time. */
  statistics(stamp: Stamp): Uint8Array {
    const { captured, dropped } = this.counters;
    this.#toldDropped = dropped;
    return interfaceStatistics(this.index, stamp, captured + dropped, dropped);
  }
}
