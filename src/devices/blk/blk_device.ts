/**
 * A virtio block device (VIRTIO 1.3, section 5.2): a disk that is a file or block device of this machine.
 *
 * Theory of operation. A batch takes requests out of a queue, judges each, and begins those that need the disk
 * (engine.ts); all are handed over in one go. What is done at once is told in the same batch; for the rest the engine
 * wakes the queue. Data goes between the disk and the guest's pages without a stop in between.
 *
 *     popped -> refused ------------------------------------------.
 *           '-> begun -> done -> in part: begun again              '-> the oldest is done: status, used ring
 *                            '--> written through: a flush begun --'
 *
 * Requests are told of in the order they came (request_line.ts), so a disk that is killed goes on where it was: what is
 * done twice is the same both times. A queue stops when nothing of it is under way; the transport waits for that
 * before it answers its driver, and counts a disk that takes longer than a few seconds as broken until then.
 *
 * Each request ends with a status in its last byte. What the disk refuses (EIO, ENOSPC) is IOERR there, and a line in
 * the log for each kind of failure. A buffer without room for a status is beyond an answer: the device needs a reset.
 */

import { allocate } from "../../linux/arena.ts";
import { errnoName, linuxErrno } from "../../linux/errors.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { IovecList, MemoryRegion } from "../../memory/mod.ts";
import { counterShape } from "../../observe/counters.ts";
import type { Log } from "../../observe/log.ts";
import { BlkConfig, BlkRequest, BlkStatus, SECTOR } from "../../virtio/blk.ts";
import type { Answer } from "../../virtio/device.ts";
import { BlkFeature, DEVICE_BLK } from "../../virtio/features.ts";
import type { DeviceQueue } from "../../virtio/queue/mod.ts";
import { BATCH_COUNTERS, QueueDevice, take } from "../queue_device.ts";
import { type Disk, PUNCH_HOLE } from "./disk.ts";
import { type Engine, type MakeEngine, Operation } from "./engine.ts";
import { openIoUring } from "./io_uring.ts";
import { PlainIo } from "./plain_io.ts";
import { Request, RequestLine } from "./request_line.ts";

/** Requests under way, of all queues. */
const TAGS = 64;
/** Data segments of a request: with header and status they fill a queue of 128, QEMU's for disks. */
const SEGMENTS = 126;
/** The same where a segment may be in several windows of the guest's memory. */
const MOST_SEGMENTS = 160;
/**
 * In confined mode a request has to fit into its queue's part of the segment, in direct mode it is so many pages that
 * may lie anywhere; or the queue breaks. 120 KiB do in a segment of 256 KiB, and in 4 MiB for each of 16 queues.
 */
const FORWARDED_SEGMENTS = 30;
const FORWARDED_SEGMENT_BYTES = 4096;
/** Of one DISCARD or WRITE_ZEROES: 1 GiB, which a file system does in one go. */
const MOST_AT_ONCE = 1 << 21;
/** Alignment of discards, in bytes: blocks of file systems. */
const DISCARD_ALIGNMENT = 4096;

const EOPNOTSUPP = linuxErrno("EOPNOTSUPP");

/** What the device is. */
export interface BlkDeviceOptions {
  /** What GET_ID says; at most 20 bytes. */
  readonly serial: string;
  /** Is room given back to the disk's file system? */
  readonly discard: boolean;
  readonly queues: number;
  /** Do requests come through confined or direct mode? */
  readonly forwarded: boolean;
  /** What its counters are called. */
  readonly name: string;
  /** What reads and writes it, unless it is to be found out. */
  readonly engine?: MakeEngine;
}

const DiskCounters = counterShape(
  ...BATCH_COUNTERS,
  "reads",
  "writes",
  "flushes",
  "discards",
  "refused",
  "failed",
  "bytesRead",
  "bytesWritten",
);

/** See the head of this file. */
export class BlkDevice extends QueueDevice {
  declare readonly counters: InstanceType<typeof DiskCounters>;
  readonly #engine: Engine;
  readonly #lines: readonly RequestLine[];
  /** Made when they are needed; those that are free. */
  readonly #requests: Request[] = [];
  readonly #free: Request[] = [];
  readonly #header = allocate(BlkRequest.HEADER_SIZE);
  readonly #id = allocate(BlkRequest.ID_SIZE);
  /** The line whose batch runs: it looks for itself what has ended. */
  #working: RequestLine | undefined;
  readonly #complained = new Set<number>();

  /** Makes a device of a disk, which it owns. */
  constructor(reactor: Reactor, readonly disk: Disk, options: BlkDeviceOptions, readonly log: Log) {
    const { discard, queues, serial, forwarded, name } = options;
    const { readonly } = disk.options;
    const discards = discard && disk.punches;
    super(reactor, {
      deviceId: DEVICE_BLK,
      features: [
        BlkFeature.SEG_MAX,
        ...(forwarded ? [BlkFeature.SIZE_MAX] : []),
        BlkFeature.BLK_SIZE,
        BlkFeature.TOPOLOGY,
        BlkFeature.FLUSH,
        BlkFeature.MQ,
        readonly ? BlkFeature.RO : BlkFeature.CONFIG_WCE,
        ...(discards ? [BlkFeature.DISCARD] : []),
        ...(disk.punches ? [BlkFeature.WRITE_ZEROES] : []),
      ],
      config: configOf(disk, options),
      queues: Array.from(
        { length: queues },
        (_, index) => (queue: DeviceQueue, budget: number) => this.#work(index, queue, budget),
      ),
      counters: new DiskCounters("device", name),
    });
    this.#lines = Array.from({ length: queues }, (_, index) => new RequestLine(index, TAGS));
    new TextEncoder().encodeInto(serial, this.#id.bytes);
    const done = (tag: number, result: number) => this.#ended(this.#requests[tag]!, result);
    this.#engine = options.engine?.(done) ??
      openIoUring(reactor, disk.fd, TAGS, done) ??
      new PlainIo(reactor, disk.fd, TAGS, done);
    log.info(`disk ${disk.options.path}: ${disk.sectors} sectors, by ${this.#engine.name}`);
  }

  /**
   * The file may have another size: looks, and tells the driver if it has (5.2.5.1). What lies beyond the end of one that
   * shrank is an error.
   */
  refresh(): void {
    const { disk } = this;
    if (!disk.refresh()) return;
    putCapacity(this.config, disk);
    this.log.info(`disk ${disk.options.path}: ${disk.sectors} sectors now`);
    // Nobody may have been shown the disk yet.
    this.host?.configChanged();
  }

  override acceptFeatures(words: Uint32Array): boolean {
    this.config[BlkConfig.WRITEBACK] = 1;
    return super.acceptFeatures(words);
  }

  /** Only whether writes are on the disk when the driver is told (5.2.5.2). */
  override writeConfig(offset: number, bytes: Uint8Array): boolean {
    const isMode = offset === BlkConfig.WRITEBACK && bytes.length === 1 && bytes[0] <= 1;
    if (!isMode || !this.has(BlkFeature.CONFIG_WCE)) return false;
    this.config[BlkConfig.WRITEBACK] = bytes[0];
    return true;
  }

  get #writesThrough(): boolean {
    if (this.has(BlkFeature.CONFIG_WCE)) return this.config[BlkConfig.WRITEBACK] === 0;
    return !this.has(BlkFeature.FLUSH);
  }

  /** See DeviceModel: requests are under way. */
  holdsIn(region: MemoryRegion): number {
    const isHeld = (request: Request) => !this.#free.includes(request);
    return this.#requests.find((request) => isHeld(request) && request.chain.isIn(region, 0))?.line
      .index ?? -1;
  }

  // --- a batch -----------------------------------------------------------------------------------

  #work(index: number, queue: DeviceQueue, budget: number): boolean {
    const line = this.#lines[index];
    line.queue = queue;
    line.waits = false;
    // Nothing is begun while it is waited for that all has ended.
    if (line.whenStill !== undefined) return false;
    this.#working = line;
    this.#tell(line, queue);
    const more = this.#begin(line, queue, budget);
    this.#engine.submit();
    this.#tell(line, queue);
    this.#working = undefined;
    return more;
  }

  #begin(line: RequestLine, queue: DeviceQueue, budget: number): boolean {
    for (let i = 0; i < budget; i++) {
      const request = this.#free.pop() ?? this.#makeRequest();
      line.waits = request === undefined;
      if (request === undefined) return false;
      if (!take(queue, request.chain)) {
        this.#free.push(request);
        return false;
      }
      line.push(request);
      this.#judge(request, queue);
    }
    return true;
  }

  #makeRequest(): Request | undefined {
    const tag = this.#requests.length;
    if (tag === TAGS) return undefined;
    const request = new Request(tag, MOST_SEGMENTS);
    this.#requests.push(request);
    return request;
  }

  /** Shows the driver what has ended, up to the first that has not. */
  #tell(line: RequestLine, queue: DeviceQueue): void {
    for (let request = line.oldest; request?.isDone; request = line.oldest) {
      const { chain, status, statusAt, filled, room } = request;
      if (statusAt >= 0) chain.array.setByteBehind(statusAt, status);
      // What is counted as written begins with the first byte, and the status is the last one.
      const written = filled === room && statusAt >= 0 ? filled + 1 : filled;
      queue.complete(chain.head, written);
      this.#release(line, request);
    }
  }

  #release(line: RequestLine, request: Request): void {
    line.shift();
    this.#free.push(request);
    for (const other of this.#lines) {
      if (other.waits) this.wake(other.index);
      other.waits = false;
    }
  }

  // --- a request ---------------------------------------------------------------------------------

  #judge(request: Request, queue: DeviceQueue): void {
    const { readable, writable, head } = request.chain;
    request.status = BlkStatus.OK;
    request.statusAt = -1;
    request.list = undefined;
    request.unsupported = BlkStatus.IOERR;
    request.flushes = false;
    request.filled = 0;
    request.room = 0;
    if (writable.length === 0) {
      queue.refuse(`request ${head} has no room for a status`);
      return request.line.finished(request);
    }
    request.statusAt = writable.cutByte();
    request.room = writable.length;
    const { address, view } = this.#header;
    const { HEADER_SIZE } = BlkRequest;
    if (readable.copyOut(0, address, HEADER_SIZE) < HEADER_SIZE) return this.#refuse(request);
    readable.skip(HEADER_SIZE);
    const sector = view.getUint32(8, true) + view.getUint32(12, true) * 0x1_0000_0000;
    const type = view.getUint32(0, true);
    switch (type) {
      case BlkRequest.IN:
        if (readable.length > 0) return this.#refuse(request);
        this.counters.reads++;
        return this.#transfer(request, Operation.READ, writable, sector);
      case BlkRequest.OUT:
        if (writable.length > 0 || this.disk.options.readonly) return this.#refuse(request);
        this.counters.writes++;
        request.flushes = this.#writesThrough;
        return this.#transfer(request, Operation.WRITE, readable, sector);
      case BlkRequest.FLUSH:
        this.counters.flushes++;
        return this.#engine.flush(request.tag);
      case BlkRequest.GET_ID:
        request.filled = writable.copyIn(0, this.#id.address, BlkRequest.ID_SIZE);
        return request.line.finished(request);
      case BlkRequest.DISCARD:
      case BlkRequest.WRITE_ZEROES:
        return this.#clear(request, type);
      default:
        return this.#refuse(request, BlkStatus.UNSUPP);
    }
  }

  #refuse(request: Request, status: number = BlkStatus.IOERR): void {
    this.counters.refused++;
    request.status = status;
    request.line.finished(request);
  }

  #isOutside(sector: number, sectors: number): boolean {
    return sector > this.disk.sectors - sectors;
  }

  #transfer(request: Request, operation: number, list: IovecList, sector: number): void {
    const sectors = list.length / SECTOR;
    if (list.length % SECTOR !== 0 || this.#isOutside(sector, sectors)) {
      return this.#refuse(request);
    }
    if (sectors === 0) return request.line.finished(request);
    request.list = list;
    request.operation = operation;
    request.offset = sector * SECTOR;
    this.#engine.transfer(request.tag, operation, list, request.offset);
  }

  /** DISCARD, WRITE_ZEROES: one segment, as the configuration says. */
  #clear(request: Request, type: number): void {
    const zeroes = type === BlkRequest.WRITE_ZEROES;
    const { readable } = request.chain;
    const feature = zeroes ? BlkFeature.WRITE_ZEROES : BlkFeature.DISCARD;
    if (!this.has(feature)) return this.#refuse(request, BlkStatus.UNSUPP);
    const { address, view } = this.#header;
    if (readable.length !== BlkRequest.SEGMENT_SIZE) return this.#refuse(request);
    readable.copyOut(0, address, BlkRequest.SEGMENT_SIZE);
    const sector = view.getUint32(0, true) + view.getUint32(4, true) * 0x1_0000_0000;
    const sectors = view.getUint32(8, true);
    const flags = view.getUint32(12, true);
    if ((flags & ~(zeroes ? BlkRequest.UNMAP : 0)) !== 0) {
      return this.#refuse(request, BlkStatus.UNSUPP);
    }
    if (sectors > MOST_AT_ONCE || this.#isOutside(sector, sectors)) return this.#refuse(request);
    if (sectors === 0) return request.line.finished(request);
    this.counters.discards++;
    const unmaps = !zeroes || flags !== 0 && this.config[BlkConfig.WRITE_ZEROES_MAY_UNMAP] === 1;
    // That room can be given back is a hint: who cannot has done all there is.
    request.unsupported = zeroes ? BlkStatus.UNSUPP : BlkStatus.OK;
    request.flushes = this.#writesThrough;
    request.offset = sector * SECTOR;
    request.length = sectors * SECTOR;
    const mode = unmaps ? PUNCH_HOLE : this.disk.zeroMode;
    this.#engine.allocate(request.tag, mode, request.offset, request.length);
  }

  /** An operation has ended; perhaps another one is needed. */
  #ended(request: Request, result: number): void {
    const { list, line, tag, offset, length } = request;
    if (result < 0) {
      const zeroes = request.unsupported === BlkStatus.UNSUPP && result === -EOPNOTSUPP;
      if (zeroes && this.disk.punchesForZeroes()) {
        return this.#engine.allocate(tag, PUNCH_HOLE, offset, length);
      }
      this.#failed(request, -result);
    } else if (list !== undefined && list.length > 0) {
      // Shorter than it was when the device began.
      if (result === 0) this.#failed(request, 0);
      else return this.#transferred(request, list, result);
    } else if (request.flushes) {
      request.flushes = false;
      return this.#engine.flush(tag);
    }
    line.finished(request);
    // Those in front of it are not told of yet.
    if (line !== this.#working && line.oldest!.isDone) this.wake(line.index);
  }

  #transferred(request: Request, list: IovecList, bytes: number): void {
    const { counters } = this;
    const reads = request.operation === Operation.READ;
    if (reads) {
      counters.bytesRead += bytes;
      request.filled += bytes;
    } else counters.bytesWritten += bytes;
    request.offset += bytes;
    list.skip(bytes);
    if (list.length > 0) {
      return this.#engine.transfer(request.tag, request.operation, list, request.offset);
    }
    this.#ended(request, 0);
  }

  #failed(request: Request, error: number): void {
    request.flushes = false;
    request.status = error === EOPNOTSUPP ? request.unsupported : BlkStatus.IOERR;
    if (request.status !== BlkStatus.IOERR) return;
    this.counters.failed++;
    if (this.#complained.has(error)) return;
    this.#complained.add(error);
    const what = error === 0 ? "it is shorter than it was" : errnoName(error);
    this.log.warn(`disk ${this.disk.options.path}: ${what}; the guest sees an error`);
  }

  // --- the end of a queue ------------------------------------------------------------------------

  /** Waits until nothing of the queue is under way: the memory is the driver's again. */
  override stopQueue(index: number): Answer<number> {
    const line = this.#lines[index];
    return line.isStill ? this.#stopStill(line) : this.#stopLater(line);
  }

  async #stopLater(line: RequestLine): Promise<number> {
    const { promise, resolve } = this.reactor.defer<void>();
    line.whenStill = resolve;
    await promise;
    line.whenStill = undefined;
    return this.#stopStill(line);
  }

  #stopStill(line: RequestLine): Answer<number> {
    const { queue } = line;
    line.queue = undefined;
    // Where its memory may not be touched they are taken back, and whoever comes next does them again.
    if (queue !== undefined && this.host.mayTouchMemory()) this.#tell(line, queue);
    for (let request = line.oldest; request !== undefined; request = line.oldest) {
      this.#release(line, request);
    }
    return super.stopQueue(line.index);
  }

  /** Waits for what is under way, then lets go of the disk. */
  override [Symbol.dispose](): void {
    this.#engine.drain();
    super[Symbol.dispose]();
    this.#engine[Symbol.dispose]();
    this.disk[Symbol.dispose]();
  }
}

function putCapacity({ buffer }: Uint8Array, { sectors }: Disk): void {
  new DataView(buffer).setBigUint64(BlkConfig.CAPACITY, BigInt(sectors), true);
}

function configOf(disk: Disk, options: BlkDeviceOptions): Uint8Array {
  const { forwarded, queues } = options;
  const discards = options.discard && disk.punches;
  const config = new DataView(new ArrayBuffer(BlkConfig.SIZE));
  const { blockSize, physicalBlockSize } = disk;
  config.setUint32(BlkConfig.SIZE_MAX, forwarded ? FORWARDED_SEGMENT_BYTES : 0, true);
  config.setUint32(BlkConfig.SEG_MAX, forwarded ? FORWARDED_SEGMENTS : SEGMENTS, true);
  config.setUint32(BlkConfig.BLK_SIZE, blockSize, true);
  const blocks = Math.max(1, physicalBlockSize / blockSize);
  config.setUint8(BlkConfig.PHYSICAL_BLOCK_EXP, Math.floor(Math.log2(blocks)));
  config.setUint16(BlkConfig.MIN_IO_SIZE, blocks, true);
  config.setUint8(BlkConfig.WRITEBACK, 1);
  config.setUint16(BlkConfig.NUM_QUEUES, queues, true);
  if (discards) {
    config.setUint32(BlkConfig.MAX_DISCARD_SECTORS, MOST_AT_ONCE, true);
    config.setUint32(BlkConfig.MAX_DISCARD_SEG, 1, true);
    config.setUint32(BlkConfig.DISCARD_SECTOR_ALIGNMENT, DISCARD_ALIGNMENT / SECTOR, true);
  }
  if (disk.punches) {
    config.setUint32(BlkConfig.MAX_WRITE_ZEROES_SECTORS, MOST_AT_ONCE, true);
    config.setUint32(BlkConfig.MAX_WRITE_ZEROES_SEG, 1, true);
    config.setUint8(BlkConfig.WRITE_ZEROES_MAY_UNMAP, discards ? 1 : 0);
  }
  const bytes = new Uint8Array(config.buffer);
  putCapacity(bytes, disk);
  return bytes;
}
