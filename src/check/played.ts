/** The devices that are played to a driver side: what each says of itself. Its queues do nothing. */

import { DEVICE_BLK, DEVICE_NET, DEVICE_RNG } from "../virtio/features.ts";

export interface Played {
  readonly deviceId: number;
  /** Blocks 0 and 1. */
  readonly features: readonly number[];
  /** The largest size of each queue. */
  readonly maxSizes: readonly number[];
  readonly config: readonly number[];
}

/** VERSION_1, ACCESS_PLATFORM, RING_RESET; EVENT_IDX. */
const [HIGH, LOW] = [0x0000_0103, 0x2000_0000];

const TABLE = {
  // MAC, STATUS, MRG_RXBUF; a MAC address, link up, one queue pair, an MTU of 1500.
  net: {
    deviceId: DEVICE_NET,
    features: [LOW | 0x1_8020, HIGH],
    maxSizes: [1024, 1024, 64],
    config: [...[0x52, 0x54, 0, 0x12, 0x34, 0x56], ...[1, 0, 1, 0, 0xdc, 5]],
  },
  // BLK_SIZE, FLUSH; 2048 sectors of 512 bytes.
  blk: {
    deviceId: DEVICE_BLK,
    features: [LOW | 0x240, HIGH],
    maxSizes: [256],
    config: [...[0, 8, 0, 0, 0, 0, 0, 0], ...new Array<number>(12).fill(0), ...[0, 2, 0, 0]],
  },
  rng: { deviceId: DEVICE_RNG, features: [LOW, HIGH], maxSizes: [256], config: [] },
} as const satisfies Readonly<Record<string, Played>>;

export type PlayedKind = keyof typeof TABLE;
export const PLAYED: Readonly<Record<PlayedKind, Played>> = TABLE;
export const PLAYED_KINDS = Object.keys(TABLE) as PlayedKind[];
