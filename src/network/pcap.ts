/**
 * A capture of a port's frames, in both directions, as a pcap file with nanoseconds
 * (draft-ietf-opsawg-pcap; magic number 0xa1b23c4d, LINKTYPE_ETHERNET).
 *
 * Theory of operation. The wrapped port works as before; what it sent or received is copied into a buffer
 * with the time. The buffer is written when it is full, 200 ms after its first frame, and at the end. The
 * file is written by one write(2) each time, which for a file is a copy into the page cache; a named pipe
 * is written without blocking.
 *
 * States: capturing, until the size limit or an error; then over. The end is told once, the traffic goes
 * on. A frame is captured as it crosses the port, without its virtio-net header: with offloads it may be
 * as large as 64 KiB, and its checksum not filled in yet.
 */

import { NET_HEADER_SIZE } from "../virtio/net_header.ts";
import { allocate, type Block } from "../linux/arena.ts";
import { linuxErrno, LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, fileStatus, resizeFile } from "../linux/fd.ts";
import { errno, libc, linuxError } from "../linux/libc.ts";
import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import { openOwnFile } from "../linux/own_file.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import type { IovecList } from "../memory/mod.ts";
import { counterShape } from "../observe/counters.ts";
import type { Log } from "../observe/log.ts";
import type { NetworkPort, PortListener, PortQueue } from "./port.ts";

export interface CaptureOptions {
  /** The file, which is replaced. */
  readonly path: string;
  /** Bytes of a frame that are kept; default 262144, all. */
  readonly snapLength?: number;
  /** The file's largest size in bytes; default 1 GiB. */
  readonly sizeLimit?: number;
}

const MAGIC_NANOSECONDS = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET = 1;
const FILE_HEADER_SIZE = 24;
const RECORD_HEADER_SIZE = 16;
/** tcpdump's "all of it". */
const MAX_SNAP_LENGTH = 262_144;
const DEFAULT_SIZE_LIMIT = 1 << 30;
/** Holds a record of the largest snap length; more would make a write to a slow disk long. */
const BUFFER_SIZE = 512 << 10;
const FLUSH_MS = 200;
const CLOCK_REALTIME = 0;
const EINTR = linuxErrno("EINTR");

const CaptureCounters = counterShape("captured");

/** See the head of this file. */
export class CapturingPort implements NetworkPort {
  readonly description: string;
  readonly features: readonly number[];
  readonly counters: InstanceType<typeof CaptureCounters>;
  readonly #path: string;
  readonly #snapLength: number;
  readonly #sizeLimit: number;
  readonly queues: readonly PortQueue[] | undefined;
  readonly #first: PortQueue;
  readonly #buffer: Mapping;
  readonly #view: DataView;
  // struct timespec: s64 seconds, s64 nanoseconds
  readonly #time: Block = allocate(16);
  readonly #timer: Timer;
  #fd: Fd | undefined;
  #used = 0;
  #written = 0;

  /**
   * Opens the file.
   *
   * @param port is disposed with this one
   * @throws VmsgError with a line for people
   */
  constructor(
    readonly port: NetworkPort,
    options: CaptureOptions,
    readonly reactor: Reactor,
    readonly log: Log,
  ) {
    this.description = `${port.description}, captured in ${options.path}`;
    this.counters = new CaptureCounters("capture", options.path);
    this.features = port.features;
    this.queues = port.queues?.map((queue) => this.#watched(queue));
    this.#first = this.queues?.[0] ?? this.#watched(port);
    this.#path = options.path;
    this.#snapLength = Math.min(options.snapLength ?? MAX_SNAP_LENGTH, MAX_SNAP_LENGTH);
    this.#sizeLimit = options.sizeLimit ?? DEFAULT_SIZE_LIMIT;
    this.#fd = open(options.path);
    this.#buffer = mapAnonymous(BUFFER_SIZE);
    this.#view = new DataView(this.#buffer.buffer);
    this.#timer = reactor.timer(() => this.#flush());
    this.#writeFileHeader();
  }

  #writeFileHeader(): void {
    const view = this.#view;
    view.setUint32(0, MAGIC_NANOSECONDS, true);
    view.setUint16(4, 2, true);
    view.setUint16(6, 4, true);
    view.setUint32(16, this.#snapLength, true);
    view.setUint32(20, LINKTYPE_ETHERNET, true);
    this.#used = FILE_HEADER_SIZE;
    this.#flush();
  }

  setFeatures(words: Uint32Array): void {
    this.port.setFeatures?.(words);
  }

  startOver(): void {
    this.port.startOver?.();
  }

  setMac(mac: Uint8Array): void {
    this.port.setMac?.(mac);
  }

  open(listener: PortListener): void {
    this.port.open(listener);
  }

  setQueues(count: number): void {
    this.port.setQueues?.(count);
  }

  #watched(queue: PortQueue): PortQueue {
    return {
      send: (frame) => {
        if (!queue.send(frame)) return false;
        this.#capture(frame, frame.length, 0);
        return true;
      },
      nextLength: () => queue.nextLength(),
      receive: (into, first) => {
        const length = queue.receive(into, first);
        if (length > 0) this.#capture(into, length, first);
        return length;
      },
      discard: () => queue.discard(),
    };
  }

  send(frame: IovecList): boolean {
    return this.#first.send(frame);
  }

  nextLength(): number {
    return this.#first.nextLength();
  }

  receive(into: IovecList, first: number): number {
    return this.#first.receive(into, first);
  }

  discard(): void {
    this.#first.discard();
  }

  #capture(frame: IovecList, length: number, first: number): void {
    if (this.#fd === undefined || length <= NET_HEADER_SIZE) return;
    const size = length - NET_HEADER_SIZE;
    const kept = size < this.#snapLength ? size : this.#snapLength;
    const needed = RECORD_HEADER_SIZE + kept;
    if (this.#used + needed > BUFFER_SIZE) this.#flush();
    if (this.#written + this.#used + needed > this.#sizeLimit) {
      this.#flush();
      this.#end(`has reached its limit of ${this.#sizeLimit} bytes`);
      return;
    }
    libc.clock_gettime(CLOCK_REALTIME, this.#time.address);
    const view = this.#view;
    const at = this.#used;
    view.setUint32(at, this.#time.view.getUint32(0, true), true);
    view.setUint32(at + 4, this.#time.view.getUint32(8, true), true);
    view.setUint32(at + 8, kept, true);
    view.setUint32(at + 12, size, true);
    const target = this.#buffer.address + BigInt(at + RECORD_HEADER_SIZE);
    frame.copyOut(NET_HEADER_SIZE, target, kept, first);
    this.#used = at + needed;
    this.counters.captured++;
    if (!this.#timer.armed) this.#timer.arm(FLUSH_MS);
  }

  #flush(): void {
    this.#timer.cancel();
    for (let done = 0; done < this.#used && this.#fd !== undefined;) {
      const address = this.#buffer.address + BigInt(done);
      const written = libc.write(this.#fd.number, address, this.#used - done);
      if (written >= 0) done += written;
      else if (errno() !== EINTR) {
        this.#end(`cannot be written: ${linuxError(errno(), "write").message}`);
      }
    }
    this.#written += this.#used;
    this.#used = 0;
  }

  #end(why: string): void {
    if (this.#fd === undefined) return;
    this.#fd[Symbol.dispose]();
    this.#fd = undefined;
    this.log.warn(`capture ${this.#path} ends, it ${why}; the traffic goes on`);
  }

  [Symbol.dispose](): void {
    this.#flush();
    this.#fd?.[Symbol.dispose]();
    this.#fd = undefined;
    this.reactor.dropTimer(this.#timer);
    this.port[Symbol.dispose]();
    this.#buffer[Symbol.dispose]();
  }
}

function open(path: string): Fd {
  try {
    const { fd } = openOwnFile(path, { what: "capture file", mayBePipe: true, mayBeDevice: true });
    if (fileStatus(fd).kind === "file") resizeFile(fd, 0);
    return fd;
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    throw new VmsgError("CAPTURE_FILE", `cannot capture to ${path}: ${error.message}`);
  }
}
