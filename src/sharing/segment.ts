/**
 * The segment of confined mode: the one piece of memory that both sides see, and who has which part.
 *
 * It is the shared memory of the bus behind its queues (ivshmem, shm), or a sealed memfd that is sent to
 * the device side (linux-user). Addresses on the bus are offsets in it, counted from the first byte of
 * the shared memory, queues included. All that lies in it:
 *
 *     start        the header, one page: u32 magic "vmsg", u32 version 1, u32 number of parts,
 *                  u32 reserved, then per part u32 device number, u32 queue index, u64 offset, u64 length
 *     start + 4K   the parts, one per device number and queue: the queue's rings, then its buffers
 *
 * It may as well be a file that the device side has been given by its command line (`--memory`), where there is nothing else to
 * share: addresses are those there.
 *
 * The header is for people and programs that look; a device side needs no more than the ring addresses
 * that SET_VQUEUE carries, and follows descriptors to offsets of the segment and nowhere else.
 *
 * Each device number has an equal share, and of that each queue that is used (division.ts): one of short commands
 * gets {@link CONTROL_SHARE} of it, the others the same. Every queue has a pool of its own, so one that is full of
 * buffers that wait never takes room from another. A pool that cannot hold the largest buffer would stand still
 * for good when one comes, so there is none.
 */

import type { Bus } from "../bus/bus.ts";
import { VmsgError } from "../linux/errors.ts";
import { createSealedMemory, type Fd } from "../linux/fd.ts";
import { mapShared, PAGE_SIZE } from "../linux/mapping.ts";
import { type MappedMemory, storeRelease32 } from "../memory/mod.ts";
import { MEMORY_SEGMENT, MEMORY_WINDOW } from "../message/message.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import type { Place } from "../virtio/place.ts";
import type { DeviceQueue } from "../virtio/queue/mod.ts";
import { CopiedQueue, copiedRingsSize } from "./copied_queue.ts";
import { alignPart, commandQueue, type DeviceTerms, divide, type RingPart } from "./division.ts";
import { tellRegion } from "./descriptors.ts";
import type { ForwardingPlace, OpenTerms } from "./forwarding.ts";
import type { SharedRegion } from "./sharing.ts";

/** "vmsg" */
const MAGIC = 0x6773_6d76;
const VERSION = 1;
const HEADER_SIZE = PAGE_SIZE;
const ENTRY_OFFSET = 16;
const ENTRY_SIZE = 24;
const MAX_ENTRIES = Math.floor((HEADER_SIZE - ENTRY_OFFSET) / ENTRY_SIZE);
/** A control queue's part of a device's share. */
const CONTROL_SHARE = 1 / 32;
/**
 * The least pool: the largest buffer that a device type has is a frame of a network card with all its headers
 * (66,048 bytes), in mergeable buffers of up to a page, of which one may not fit at the pool's end and each be
 * rounded up.
 */
const MIN_POOL = 72 << 10;
/** The least pool of a control queue, whose commands are short. */
const MIN_CONTROL_POOL = 1 << 10;
/** The least part of a control queue: rings of 64 entries and a little room. */
const MIN_CONTROL_PART = 2 * PAGE_SIZE;
/** The least share: two queues with rings of 256 entries, and control. */
const MIN_SHARE = 192 << 10;

/** Memory that the device side knows by its own means. */
export interface KnownMemory {
  readonly memory: MappedMemory;
  /** Bus address of its first byte, a multiple of a page. */
  readonly at: number;
}

/** See the head of this file. */
export class Segment implements ForwardingPlace, Disposable {
  /** Bytes that parts are made of. */
  readonly size: number;
  readonly #stack: DisposableStack;
  readonly #memory: MappedMemory;
  readonly #start: number;
  /** Of the memory's first byte on the bus. */
  readonly #at: number;
  readonly #known: KnownMemory | undefined;
  /** Of a memfd, which the device side does not have yet. */
  readonly #fd: Fd | undefined;
  readonly #header: Uint32Array;
  /** Who has a part, by device number. */
  readonly #parts = new Map<number, readonly RingPart[]>();

  /**
   * Takes the segment of a bus, or makes one.
   *
   * @param size in bytes; undefined: all that the bus has, or 4 MiB of a memfd
   * @param deviceCount how many device numbers share it
   * @param known memory to take instead, all of it
   * @throws VmsgError SEGMENT if there is too little
   */
  constructor(
    bus: Bus,
    size: number | undefined,
    readonly deviceCount: number,
    known?: KnownMemory,
  ) {
    using stack = new DisposableStack();
    const segment = known === undefined ? bus.segment : { memory: known.memory, start: 0 };
    this.#known = known;
    this.#at = known?.at ?? 0;
    if (segment === undefined) {
      const bytes = Math.floor((size ?? 4 << 20) / PAGE_SIZE) * PAGE_SIZE;
      this.#fd = stack.use(createSealedMemory("vmsg-segment", Math.max(bytes, PAGE_SIZE)));
      this.#memory = stack.use(mapShared(this.#fd.number, Math.max(bytes, PAGE_SIZE)));
      this.#start = 0;
    } else {
      this.#memory = segment.memory;
      this.#start = Math.ceil(segment.start / PAGE_SIZE) * PAGE_SIZE;
    }
    const room = this.#memory.size - this.#start;
    const taken = segment === undefined ? room : Math.min(size ?? room, room);
    if (size !== undefined && size > room) {
      throw new VmsgError(
        "SEGMENT",
        `${bus.description} has ${room} bytes of shared memory left, not ${size}`,
      );
    }
    this.size = taken - HEADER_SIZE;
    if (this.size < deviceCount * MIN_SHARE) {
      throw new VmsgError(
        "SEGMENT",
        `${bus.description}: a segment of ${taken} bytes is too small for ${deviceCount} ` +
          `devices; 256K each will do`,
      );
    }
    this.#header = new Uint32Array(this.#memory.buffer, this.#start, HEADER_SIZE / 4);
    this.#header.fill(0);
    this.#header[1] = VERSION;
    storeRelease32(this.#header, 0, MAGIC);
    this.#stack = stack.move();
  }

  /** All of it, from the queues on. Another implementation has been given the bus's memory by its own means. */
  get region(): SharedRegion {
    const start = this.#start;
    return {
      memory: this.#memory,
      offset: start,
      size: this.#memory.size - start,
      at: this.#at + start,
      from: this.#known === undefined ? MEMORY_SEGMENT : MEMORY_WINDOW,
      fileOffset: this.#at + start,
      ...this.#fd !== undefined && {
        fd: this.#fd,
        mustBeTold:
          "the device side is no vmsg that speaks v1 and cannot be given a segment on this bus",
      },
    };
  }

  announce(device: RemoteDevice): Promise<void> {
    return tellRegion(device, this.region);
  }

  /** All the parts of one device number in one, for a driver that needs no copies. */
  share(position: number): Place {
    const size = alignPart(this.size / this.deviceCount);
    const offset = this.#start + HEADER_SIZE + position * size;
    return { memory: this.#memory, offset, size, at: this.#at + offset };
  }

  divide(
    device: RemoteDevice,
    position: number,
    queues: readonly number[],
    terms: DeviceTerms,
  ): ReadonlyMap<number, RingPart> {
    const share = this.share(position);
    const control = Math.max(MIN_CONTROL_PART, alignPart(share.size * CONTROL_SHARE));
    const parts = divide(share, queues, commandQueue(terms), control);
    this.#parts.set(device.number, [...parts.values()]);
    this.#describe();
    return parts;
  }

  /** @throws VmsgError SEGMENT if buffers would not fit */
  open(queue: DeviceQueue, part: RingPart, { eventIndex, name }: OpenTerms): CopiedQueue {
    const least = copiedRingsSize(queue.size) + (part.isCommand ? MIN_CONTROL_POOL : MIN_POOL);
    if (part.size < least) {
      throw new VmsgError(
        "SEGMENT",
        `the segment has only ${part.size} bytes for queue ${part.queue} of ${part.count} with ` +
          `${queue.size} entries: give a larger one`,
      );
    }
    return new CopiedQueue(queue, part, eventIndex, name);
  }

  /** Says in the header who has a part, as far as there is room. */
  #describe(): void {
    const words = this.#header;
    let count = 0;
    for (const [device, parts] of this.#parts) {
      for (const { queue, offset, size } of parts) {
        if (count === MAX_ENTRIES) break;
        const at = (ENTRY_OFFSET + count++ * ENTRY_SIZE) / 4;
        words[at] = device;
        words[at + 1] = queue;
        writeUint64(words, at + 2, offset);
        writeUint64(words, at + 4, size);
      }
    }
    storeRelease32(words, 2, count);
  }

  /** Only this process looks at the driver's memory. */
  addRegion(): void {}

  /** See {@link addRegion}. */
  removeRegion(): void {}

  /** The device side touches the segment only, and the next one may have it. */
  doubt(): void {}

  /** A memfd is unmapped; the bus's memory stays. */
  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

function writeUint64(words: Uint32Array, index: number, value: number): void {
  words[index] = value >>> 0;
  words[index + 1] = value / 0x1_0000_0000;
}
