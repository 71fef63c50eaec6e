/**
 * What the vhost-user protocol does not say of a device, because a front end knows it from the kind of device it is: how large
 * the configuration space is, how many queues there are where a back end does not count them, where the configuration
 * space says how many its driver may use, and which features are about its fields.
 */

import { NetFeature } from "../../virtio/features.ts";

/** A number of queues in a configuration space. */
export interface QueueCountField {
  readonly at: number;
  readonly bytes: 2 | 4;
  /** Queues that it does not count. */
  readonly others: number;
}

/** See the head of this file. */
export interface DeviceType {
  /** The virtio device id (VIRTIO 1.3, 5). */
  readonly id: number;
  readonly name: string;
  /** The most first: a back end may know fewer fields. */
  readonly configSizes: readonly number[];
  /** Unless the back end says, or is told otherwise. */
  readonly queues: number;
  /** The most entries of a queue that its known back ends take, where that is less than {@link QUEUE_SIZE}. */
  readonly queueSize?: number;
  readonly queueCount?: QueueCountField;
  /** Features that say that a field of the configuration space holds: the bit, and where the field ends. */
  readonly fields?: readonly (readonly [bit: number, end: number])[];
}

/** Of a file system (5.11.4): the bytes of its tag, which a number of queues follows. */
export const FS_TAG_SIZE = 36;

/** What back ends take as a rule; none says. */
export const QUEUE_SIZE = 1024;

/** Those that there are back ends for. */
export const DEVICE_TYPES: readonly DeviceType[] = [
  {
    id: 1,
    name: "net",
    configSizes: [24, 17, 12, 10, 8, 6],
    queues: 2,
    fields: [
      [NetFeature.MAC, 6],
      [NetFeature.STATUS, 8],
      [NetFeature.MTU, 12],
      [NetFeature.SPEED_DUPLEX, 17],
    ],
  },
  {
    id: 2,
    name: "blk",
    configSizes: [96, 72, 60],
    queues: 1,
    queueCount: { at: 34, bytes: 2, others: 0 },
  },
  { id: 3, name: "console", configSizes: [12], queues: 2, queueSize: 128 },
  { id: 4, name: "rng", configSizes: [], queues: 1 },
  { id: 8, name: "scsi", configSizes: [36], queues: 3, queueCount: { at: 0, bytes: 4, others: 2 } },
  { id: 16, name: "gpu", configSizes: [16], queues: 2 },
  { id: 18, name: "input", configSizes: [136], queues: 2 },
  { id: 19, name: "vsock", configSizes: [8], queues: 3 },
  { id: 20, name: "crypto", configSizes: [56], queues: 2 },
  { id: 25, name: "snd", configSizes: [16, 12], queues: 4, queueSize: 64 },
  {
    id: 26,
    name: "fs",
    configSizes: [44, 40],
    queues: 2,
    queueCount: { at: FS_TAG_SIZE, bytes: 4, others: 1 },
  },
  { id: 32, name: "scmi", configSizes: [], queues: 2 },
  { id: 34, name: "i2c", configSizes: [], queues: 1 },
  { id: 36, name: "can", configSizes: [], queues: 3, queueSize: 64 },
  { id: 41, name: "gpio", configSizes: [8], queues: 2, queueSize: 256 },
  { id: 45, name: "spi", configSizes: [32], queues: 1 },
];

/** Of any other device, everything has to be said. */
export function typeOf(id: number): DeviceType {
  return DEVICE_TYPES.find((type) => type.id === id) ??
    { id, name: `id ${id}`, configSizes: [], queues: 1 };
}
