/**
 * How a piece of memory is divided between the rings of one device.
 *
 * Rings that carry data get equal parts. A ring of short commands, which some device types have beside them, gets
 * a small one. A front end may describe and start its rings one after another, and what is divided once is divided
 * anew only while all rings stand still: so rings that are sure to come have their parts from the beginning.
 *
 * Which rings are which depends on the device type; that is said here and nowhere else.
 */

import type { DeviceInfo } from "../transport/remote_device.ts";
import { DEVICE_NET, hasFeature, NetFeature } from "../virtio/features.ts";
import type { Place } from "../virtio/place.ts";

/** Parts begin at, and are, multiples of a page. */
const PART_ALIGNMENT = 4096;

/** Whose rings they are. */
export interface DeviceTerms {
  /** What the device is. */
  readonly info: DeviceInfo;
  /** What the driver has accepted, in blocks of 32. */
  readonly features: Uint32Array;
}

/** A ring's part of the room. */
export interface RingPart extends Place {
  /** Which queue's it is. */
  readonly queue: number;
  /** Between how many the room is divided. */
  readonly count: number;
  /** Is it a queue of short commands? */
  readonly isCommand: boolean;
}

/** The queue of short commands, if the driver uses one: of a network card the control queue (VIRTIO 1.2, 5.1.2). */
export function commandQueue({ info, features }: DeviceTerms): number | undefined {
  if (info.deviceId !== DEVICE_NET || !hasFeature(features, NetFeature.CTRL_VQ)) return undefined;
  const hasPairs = hasFeature(features, NetFeature.MQ) || hasFeature(features, NetFeature.RSS);
  const queue = hasPairs ? info.maxQueues - 1 : 2;
  return queue >= 2 && queue < info.maxQueues ? queue : undefined;
}

/** The queues that want a part, ascending: those that are to run, and those that are sure to follow. */
export function queuesInUse(rings: readonly number[], terms: DeviceTerms): number[] {
  const queues = new Set(rings);
  if (terms.info.deviceId === DEVICE_NET) {
    const command = commandQueue(terms);
    for (const queue of [0, 1]) queues.add(queue);
    if (command !== undefined) queues.add(command);
  }
  return [...queues].sort((a, b) => a - b);
}

/** Rounds down to whole pages. */
export function alignPart(size: number): number {
  return Math.floor(size / PART_ALIGNMENT) * PART_ALIGNMENT;
}

/**
 * Divides a share: the queue of commands gets `control` bytes and lies behind the others, which get the rest in
 * equal parts.
 *
 * @param command which queue that is; undefined: all are treated alike
 * @param control bytes, whole pages
 */
export function divide(
  share: Place,
  queues: readonly number[],
  command: number | undefined,
  control: number,
): Map<number, RingPart> {
  const data = queues.filter((queue) => queue !== command);
  const hasCommand = data.length < queues.length;
  const room = share.size - (hasCommand ? control : 0);
  const each = data.length === 0 ? 0 : alignPart(room / data.length);
  const parts = new Map<number, RingPart>();
  let done = 0;
  for (const queue of hasCommand ? [...data, command!] : data) {
    const isCommand = queue === command;
    const size = isCommand ? control : each;
    const place = { memory: share.memory, offset: share.offset + done, at: share.at + done, size };
    parts.set(queue, { ...place, queue, count: queues.length, isCommand });
    done += size;
  }
  return parts;
}
