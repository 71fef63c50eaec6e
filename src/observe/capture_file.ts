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
 * no end: when a file has half of the limit it is renamed to PATH.old, in place of the former one, and a new one is
 * begun; the two hold what came last.
 */

import { allocate, type Block } from "../linux/arena.ts";
import { BackgroundWrite } from "../linux/background_write.ts";
import { EAGAIN, EINTR, LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, fileStatus, resizeFile } from "../linux/fd.ts";
import { cString, errno, libc, linuxError } from "../linux/libc.ts";
import { softLimit } from "../linux/limits.ts";
import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import { openOwnFile } from "../linux/own_file.ts";
import { pause } from "../linux/clock.ts";
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
const MAX_SNAP_LENGTH = 262_144;
const DEFAULT_LIMIT = 1 << 30;
/** A limit must leave room for some packets. */
export const MIN_LIMIT = 4096;
/** And that of a ring for large ones. */
export const MIN_RING_LIMIT: number = 4 << 20;
/** Of each of two: holds what a fast link brings while the other one is written. Only what is used takes memory. */
const BUFFER_SIZE = 4 << 20;
/** So much is given to be written at once. */
const EAGER_SIZE = 256 << 10;
/** Soon enough that what led to a crash is there. */
const FLUSH_MS = 10;
/** How often a write is looked at. */
const LOOK_MS = 5;
/** How long the last bytes are waited for, at the end. */
const LAST_WAIT_MS = 1000;
const APPLICATION = "vmsg";
const CLOCK_REALTIME = 0;
const TWO_32 = 4294967296;
const BILLION = 1e9;

const CaptureCounters = counterShape("captured", "dropped");

/** See the head of this file. */
export class CaptureFile implements Disposable {
  readonly path: string;
  readonly #snapLength: number;
  readonly #limit: number;
  readonly #isRing: boolean;
  readonly #buffers: readonly [Mapping, Mapping] = [
    mapAnonymous(BUFFER_SIZE),
    mapAnonymous(BUFFER_SIZE),
  ];
  readonly #views = this.#buffers.map(({ buffer }) => new DataView(buffer));
  readonly #write = new BackgroundWrite();
  readonly #timer: Timer;
  readonly #interfaces: CaptureInterface[] = [];
  // struct timespec: s64 seconds, s64 nanoseconds
  readonly #time: Block = allocate(16);
  readonly #stamp = { high: 0, low: 0 };
  #fd: Fd | undefined;
  /** Which buffer is filled, and how far. */
  #filled = 0;
  #used = 0;
  /** How much of a buffer is used. */
  readonly #room: number;
  /** Nothing is captured any more, and why; what there is still has to be written. */
  #ending: string | undefined;
  /** Bytes of the file, of the other buffer, and those of it that are in the file. */
  #size = 0;
  #writing = 0;
  #done = 0;

  /**
   * Opens the file.
   *
   * @throws VmsgError with a line for people
   */
  constructor(options: CaptureOptions, readonly reactor: Reactor, readonly log: Log) {
    const { path, snapLength = MAX_SNAP_LENGTH, limit = DEFAULT_LIMIT, ring = false } = options;
    this.path = path;
    this.#snapLength = Math.min(snapLength, MAX_SNAP_LENGTH);
    this.#isRing = ring;
    this.#fd = this.#open();
    // Beyond what the process may write the kernel would end it.
    this.#limit = Math.min(ring ? limit / 2 : limit, softLimit("file size"));
    this.#room = Math.min(BUFFER_SIZE, this.#limit / 2);
    this.#timer = reactor.timer(() => this.#flush());
    this.#append(sectionHeader(APPLICATION));
    this.#flush();
  }

  #open(): Fd {
    const { path } = this;
    try {
      const what = { what: "capture file", mayBePipe: !this.#isRing, mayBeDevice: !this.#isRing };
      const { fd } = openOwnFile(path, what);
      if (fileStatus(fd).kind === "file") resizeFile(fd, 0);
      return fd;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      throw new VmsgError("CAPTURE_FILE", `cannot capture to ${path}: ${error.message}`);
    }
  }

  /** Adds an interface. */
  add(about: CapturedInterface): CaptureInterface {
    const added = new CaptureInterface(this, this.#interfaces.length, about);
    this.#interfaces.push(added);
    if (!this.#append(this.#describe(about))) {
      throw new VmsgError("CAPTURE_FILE", `capture ${this.path}: no room for its beginning`);
    }
    return added;
  }

  /** Bytes that are kept of a packet of this length. */
  keptOf(length: number): number {
    return length < this.#snapLength ? length : this.#snapLength;
  }

  /** The buffer that {@link claim}'s offset belongs to, until the next call. */
  get view(): DataView {
    return this.#views[this.#filled]!;
  }

  /** Where that is. */
  get address(): bigint {
    return this.#buffers[this.#filled]!.address;
  }

  /**
   * Makes room for a packet's data, to be written at once; called by interfaces.
   *
   * @param kept see {@link keptOf}
   * @param lost how many packets were dropped since the last one, which is told in front of it
   * @returns its offset in {@link view}, or -1 if there is no room or the capture is over
   */
  claim(about: CaptureInterface, kept: number, length: number, lost: boolean): number {
    if (this.#fd === undefined || this.#ending !== undefined) return -1;
    const needed = packetSize(kept) + (lost ? STATISTICS_SIZE : 0);
    if (this.#used > EAGER_SIZE) this.#flush();
    if (this.#used + needed > this.#room && (!this.#flush() || needed > this.#room)) return -1;
    if (!this.#isRing && this.#isBeyond(needed)) {
      this.#lastWords();
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

  #append(bytes: Uint8Array): boolean {
    if (this.#used + bytes.length > BUFFER_SIZE) return false;
    new Uint8Array(this.view.buffer).set(bytes, this.#used);
    this.#used += bytes.length;
    if (!this.#timer.armed) this.#timer.arm(FLUSH_MS);
    return true;
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

  /** Has what is in the buffer written, if the other one is; true if there is an empty buffer. */
  #flush(): boolean {
    this.#timer.cancel();
    this.#look();
    if (this.#fd === undefined) return false;
    if (this.#writing > 0) {
      this.#timer.arm(LOOK_MS);
      return false;
    }
    if (this.#used === 0) {
      if (this.#ending !== undefined) this.#over(this.#ending);
      return true;
    }
    if (this.#isRing && this.#size > 0 && this.#isBeyond(0)) this.#turnOver();
    if (this.#fd === undefined) return false;
    this.#filled = 1 - this.#filled;
    this.#writing = this.#used;
    this.#used = this.#done = 0;
    this.#startWrite(this.#fd);
    this.#look();
    if (this.#writing > 0) this.#timer.arm(LOOK_MS);
    return true;
  }

  #startWrite(fd: Fd): void {
    const address = this.#buffers[1 - this.#filled]!.address + BigInt(this.#done);
    this.#write.start(fd, address, this.#writing - this.#done, this.#size);
  }

  /** Takes note of what was written. */
  #look(): void {
    const fd = this.#fd;
    if (fd === undefined) return;
    if (this.#writing > 0 && !this.#write.isWriting) this.#startWrite(fd);
    const written = this.#write.take();
    if (written === undefined) return;
    if ("errno" in written) {
      // Nobody reads the pipe; the next look tries again.
      if (written.errno === EAGAIN || written.errno === EINTR) return;
      this.#over(`cannot be written: ${linuxError(written.errno, "write").message}`);
      return;
    }
    this.#size += written.count;
    this.#done += written.count;
    if (this.#done === this.#writing) this.#writing = 0;
    else this.#startWrite(fd);
  }

  /**
   * Begins a new file, with what is in the buffer. What it takes at the end of the former one is written at once, as the
   * beginning of this one is: some hundred bytes each.
   */
  #turnOver(): void {
    try {
      this.#writeNow(this.#statistics());
      if (libc.rename(cString(this.path), cString(`${this.path}.old`)) < 0) {
        throw linuxError(errno(), `rename ${this.path}`);
      }
      this.#close();
      this.#fd = this.#open();
      this.#size = 0;
      const descriptions = this.#interfaces.map(({ about }) => this.#describe(about));
      this.#writeNow([sectionHeader(APPLICATION), ...descriptions]);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      this.#over(`cannot go on: ${error.message}`);
    }
  }

  #describe(about: CapturedInterface): Uint8Array {
    return interfaceDescription(about, this.#snapLength);
  }

  #statistics(): Uint8Array[] {
    this.#readTime();
    return this.#interfaces.map((each) => each.statistics(this.#stamp));
  }

  /** How many packets of each interface there were, at the end of a file. */
  #lastWords(): void {
    for (const bytes of this.#statistics()) this.#append(bytes);
  }

  /** Writes small blocks that do not go through the buffers; no write is under way. */
  #writeNow(blocks: readonly Uint8Array[]): void {
    const { buffer, address } = this.#buffers[1 - this.#filled]!;
    let size = 0;
    for (const block of blocks) {
      new Uint8Array(buffer).set(block, size);
      size += block.length;
    }
    const written = libc.pwrite(this.#fd!.number, address, size, BigInt(this.#size));
    if (written < 0) throw linuxError(errno(), `write ${this.path}`);
    this.#size += written;
  }

  /** Writes what there is, if that is possible soon. */
  #drain(): void {
    for (let waitedMs = 0; waitedMs < LAST_WAIT_MS; waitedMs += LOOK_MS) {
      if (this.#flush() && this.#writing === 0 && this.#used === 0) return;
      if (this.#fd === undefined) return;
      pause(LOOK_MS);
    }
  }

  #over(why: string): void {
    if (this.#fd === undefined) return;
    this.#close();
    this.log.warn(`capture ${this.path} ends, it ${why}; the traffic goes on`);
  }

  #close(): void {
    this.#fd?.[Symbol.dispose]();
    this.#fd = undefined;
  }

  [Symbol.dispose](): void {
    this.#drain();
    if (this.#ending === undefined && this.#fd !== undefined) {
      this.#lastWords();
      this.#drain();
    }
    this.#close();
    this.reactor.dropTimer(this.#timer);
    // What a thread still reads stays where it is.
    if (this.#write.isWriting) return;
    for (const buffer of this.#buffers) buffer[Symbol.dispose]();
  }
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
  statistics(stamp: { readonly high: number; readonly low: number }): Uint8Array {
    const { captured, dropped } = this.counters;
    this.#toldDropped = dropped;
    return interfaceStatistics(this.index, stamp, captured + dropped, dropped);
  }
}
