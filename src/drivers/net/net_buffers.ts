/**
 * Where a network driver's rings and buffers lie in its memory, of which each queue pair has an equal share.
 *
 *     rings      of both queues
 *     receive    small buffers, which are mergeable (VIRTIO 1.2, 5.1.6.3.1): a large frame takes several
 *     transmit   buffers that hold the largest frame in one piece
 *
 * Where the memory is small there are fewer buffers.
 */

import { VmsgError } from "../../linux/errors.ts";
import { COMMANDS_SIZE } from "./driver_commands.ts";
import { PAGE_SIZE } from "../../linux/mapping.ts";
import { MemoryWindow } from "../../memory/mod.ts";
import { NET_HEADER_SIZE } from "../../virtio/net_header.ts";
import type { Place } from "../../virtio/place.ts";
import { driverRingSize } from "../../virtio/queue/mod.ts";

export const QUEUE_SIZE = 256;
export const RECEIVE_SIZE = 4096;
/** The largest frame with its header: 64 KiB of payload for segmentation offload, and the headers. */
export const TRANSMIT_SIZE = 66_048;
/** Buffers that one received frame may take. */
export const MAX_MERGED: number = Math.ceil(TRANSMIT_SIZE / RECEIVE_SIZE);

const TRANSMIT_BUFFERS = 128;
/** The fewest transmit buffers, and receive buffers that are two of the largest frames, to go on well. */
const MIN_TRANSMIT = 2;
const MIN_RECEIVE = 2 * MAX_MERGED;
const RING_SIZE = driverRingSize(QUEUE_SIZE);
const RINGS_SIZE = Math.ceil(2 * RING_SIZE / PAGE_SIZE) * PAGE_SIZE;
const MINIMUM = RINGS_SIZE + MIN_RECEIVE * RECEIVE_SIZE + MIN_TRANSMIT * TRANSMIT_SIZE;

/** All that a pair can use. */
const PAIR_SIZE = RINGS_SIZE + QUEUE_SIZE * RECEIVE_SIZE + TRANSMIT_BUFFERS * TRANSMIT_SIZE;

/** Memory for a driver with so many queue pairs. */
export function driverMemorySize(pairs: number): number {
  return pairs * PAIR_SIZE + (pairs === 1 ? 0 : COMMANDS_SIZE);
}

/** A pair's share of a driver's memory, of which the first bytes are for something else. */
export function shareOf(place: Place, reserved: number, index: number, pairs: number): Place {
  if (pairs === 1) return place;
  const size = Math.floor((place.size - reserved) / pairs / PAGE_SIZE) * PAGE_SIZE;
  const start = reserved + index * size;
  return { memory: place.memory, offset: place.offset + start, size, at: place.at + start };
}

/** See the head of this file. Offsets count in {@link window}. */
export class NetBuffers {
  readonly window: MemoryWindow;
  readonly receiveCount: number;
  readonly transmitCount: number;
  readonly transmitHeaders: readonly Uint8Array[];
  /** The frame behind it. */
  readonly transmitFrames: readonly Uint8Array[];
  readonly #transmitOffset: number;

  /** @throws VmsgError MEMORY if it is too small */
  constructor(readonly place: Place) {
    const { memory, offset, size, at } = place;
    if (size < MINIMUM) {
      const needs =
        `the driver needs at least ${MINIMUM} bytes of shared memory for each queue pair`;
      throw new VmsgError("MEMORY", `${needs}, not ${size}: 1M is enough`);
    }
    this.window = new MemoryWindow(at, size, memory, offset);
    // Where memory is short, half of it is for either direction.
    const half = Math.floor((size - RINGS_SIZE) / 2 / RECEIVE_SIZE);
    this.receiveCount = Math.min(QUEUE_SIZE, Math.max(MIN_RECEIVE, half));
    this.#transmitOffset = RINGS_SIZE + this.receiveCount * RECEIVE_SIZE;
    this.transmitCount = Math.min(
      TRANSMIT_BUFFERS,
      Math.floor((size - this.#transmitOffset) / TRANSMIT_SIZE),
    );
    const views = (start: number, end: number) =>
      Array.from({ length: this.transmitCount }, (_, i) => {
        const first = offset + this.transmitOffset(i);
        return new Uint8Array(memory.buffer, first + start, end - start);
      });
    this.transmitHeaders = views(0, NET_HEADER_SIZE);
    this.transmitFrames = views(NET_HEADER_SIZE, TRANSMIT_SIZE);
  }

  ring(queue: number): Place {
    const { memory, offset, at } = this.place;
    const start = queue * RING_SIZE;
    return { memory, offset: offset + start, size: RING_SIZE, at: at + start };
  }

  receiveOffset(buffer: number): number {
    return RINGS_SIZE + buffer * RECEIVE_SIZE;
  }

  transmitOffset(buffer: number): number {
    return this.#transmitOffset + buffer * TRANSMIT_SIZE;
  }
}
