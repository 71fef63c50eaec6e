/**
 * Feature bits and device status bits by name.
 *
 * The constants are bit numbers, not masks, since feature bits do not fit in 32 bits: bit n is bit
 * n % 32 of block n / 32. Names are those of the virtio specification 1.3 (6 "Reserved Feature Bits",
 * 5.1.3 net, 5.2.3 block, 5.3.3 console, 5.10.3 socket, 2.1 device status) without VIRTIO_F_, VIRTIO_NET_F_ and their kind. Status values are masks.
 */

/** Bits of the transport and the rings, the same for every device. */
export const RingFeature = {
  NOTIFY_ON_EMPTY: 24,
  ANY_LAYOUT: 27,
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  IN_ORDER: 35,
  ORDER_PLATFORM: 36,
  SR_IOV: 37,
  NOTIFICATION_DATA: 38,
  NOTIF_CONFIG_DATA: 39,
  RING_RESET: 40,
  ADMIN_VQ: 41,
} as const;

/** Bits of the net device. */
export const NetFeature = {
  CSUM: 0,
  GUEST_CSUM: 1,
  CTRL_GUEST_OFFLOADS: 2,
  MTU: 3,
  MAC: 5,
  /** Legacy; the prototype QEMU still offers it. */
  GSO: 6,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  GUEST_ECN: 9,
  GUEST_UFO: 10,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  HOST_ECN: 13,
  HOST_UFO: 14,
  MRG_RXBUF: 15,
  STATUS: 16,
  CTRL_VQ: 17,
  CTRL_RX: 18,
  CTRL_VLAN: 19,
  CTRL_RX_EXTRA: 20,
  GUEST_ANNOUNCE: 21,
  MQ: 22,
  CTRL_MAC_ADDR: 23,
  HASH_TUNNEL: 51,
  VQ_NOTF_COAL: 52,
  NOTF_COAL: 53,
  GUEST_USO4: 54,
  GUEST_USO6: 55,
  HOST_USO: 56,
  HASH_REPORT: 57,
  GUEST_HDRLEN: 59,
  RSS: 60,
  RSC_EXT: 61,
  STANDBY: 62,
  SPEED_DUPLEX: 63,
} as const;

/** Bits of the block device (5.2.3). */
export const BlkFeature = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  GEOMETRY: 4,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
  LIFETIME: 15,
  SECURE_ERASE: 16,
  ZONED: 17,
} as const;

/** Bits of the console (5.3.3). */
export const ConsoleFeature = { SIZE: 0, MULTIPORT: 1, EMERG_WRITE: 2 } as const;

/** Bits of the socket device (5.10.3). */
export const VsockFeature = { STREAM: 0, SEQPACKET: 1, NO_IMPLIED_STREAM: 2 } as const;

/** Device status, as masks. */
export const Status = {
  ACKNOWLEDGE: 0x01,
  DRIVER: 0x02,
  DRIVER_OK: 0x04,
  FEATURES_OK: 0x08,
  DEVICE_NEEDS_RESET: 0x40,
  FAILED: 0x80,
} as const;

/** The device id of a net device. */
export const DEVICE_NET = 1;
/** The device id of a block device. */
export const DEVICE_BLK = 2;
/** The device id of a console. */
export const DEVICE_CONSOLE = 3;
/** The device id of an entropy device. */
export const DEVICE_RNG = 4;
/** The device id of a socket device. */
export const DEVICE_VSOCK = 19;

const RING_NAMES = byNumber(RingFeature);
const DEVICE_NAMES: ReadonlyMap<number, ReadonlyMap<number, string>> = new Map([
  [DEVICE_NET, byNumber(NetFeature)],
  [DEVICE_BLK, byNumber(BlkFeature)],
  [DEVICE_CONSOLE, byNumber(ConsoleFeature)],
  [DEVICE_VSOCK, byNumber(VsockFeature)],
]);
const STATUS_NAMES = byNumber(Status);

function byNumber(names: Readonly<Record<string, number>>): ReadonlyMap<number, string> {
  return new Map(Object.entries(names).map(([name, number]) => [number, name]));
}

/**
 * Names of the bits that are set, in ascending order; "bit 60" for one without a name.
 *
 * @param words 32-bit blocks, low bits first
 * @param deviceId whose feature bits they are, 1 = net
 * @param firstBlock which block words[0] is
 */
export function featureNames(words: ArrayLike<number>, deviceId: number, firstBlock = 0): string[] {
  const device = DEVICE_NAMES.get(deviceId);
  return Array.from(words).flatMap((word, n) =>
    bitsOf(word).map((bit) => {
      const number = 32 * (firstBlock + n) + bit;
      return RING_NAMES.get(number) ?? device?.get(number) ?? `bit ${number}`;
    })
  );
}

/** The bits of a word that are set, in ascending order. */
function bitsOf(word: number): number[] {
  return Array.from({ length: 32 }, (_, bit) => bit).filter((bit) => (word >>> bit & 1) !== 0);
}

/** Is a feature bit set in blocks of 32? */
export function hasFeature(words: Uint32Array, bit: number): boolean {
  return (words[bit >> 5] & (1 << (bit & 31))) !== 0;
}

/** Names of the status bits that are set, in ascending order; none for status 0. */
export function statusNames(status: number): string[] {
  return bitsOf(status).map((bit) => STATUS_NAMES.get(2 ** bit) ?? `bit ${bit}`);
}

/** Is what a driver chose among the offered bits, with VERSION_1, which it must have? Both in blocks of 32. */
export function areOffered(chosen: Uint32Array, offered: Uint32Array): boolean {
  return hasFeature(chosen, RingFeature.VERSION_1) &&
    chosen.every((word, i) => (word & ~(offered[i] ?? 0)) === 0);
}
