/**
 * The split virtqueue's layout (VIRTIO 1.2, section 2.7): three areas, each written by one side only.
 *
 *     descriptor area (the descriptor table, 2.7.5; the driver writes)
 *         size times { le64 address; le32 length; le16 flags; le16 next }
 *     driver area (the available ring, 2.7.6; the driver writes)
 *         le16 flags; le16 index; le16 heads[size]; le16 used_event
 *     device area (the used ring, 2.7.8; the device writes)
 *         le16 flags; le16 index; { le32 head; le32 length }[size]; le16 avail_event
 *
 * Indices count from 0 to 65535 and wrap; the entry is the index modulo the queue size. A descriptor is
 * read as four 32-bit words, the last of which holds flags (low half) and next (high half).
 */

/** The size of one descriptor, in bytes. */
export const DESCRIPTOR_SIZE = 16;

// Flags, VIRTQ_DESC_F_, VIRTQ_AVAIL_F_ and VIRTQ_USED_F_ in the specification.
export const DESCRIPTOR_NEXT = 1; // the buffer goes on at `next` (2.7.5)
export const DESCRIPTOR_WRITE = 2; // the device writes, otherwise it reads (2.7.5)
export const DESCRIPTOR_INDIRECT = 4; // it names a table of descriptors (2.7.5.3)
export const AVAIL_NO_INTERRUPT = 1; // no used buffer notifications (2.7.7)
export const USED_NO_NOTIFY = 1; // no available buffer notifications (2.7.10)

// Where things lie in the rings, as indices of 16-bit words; elements, of two words each, of 32-bit ones.
export const RING_FLAGS = 0;
export const RING_INDEX = 1;
export const AVAIL_HEADS = 2;
export const USED_ELEMENTS = 1;

/** The bytes of the descriptor area of a queue of `size` entries. */
export function descriptorAreaSize(size: number): number {
  return DESCRIPTOR_SIZE * size;
}

/** The bytes of the driver area, with used_event, whether or not it is in use. */
export function driverAreaSize(size: number): number {
  return 6 + 2 * size;
}

/** The bytes of the device area, with avail_event, whether or not it is in use. */
export function deviceAreaSize(size: number): number {
  return 6 + 8 * size;
}

/** The three areas: what an address must be a multiple of (2.7), and how many bytes there are. */
export const AREAS = {
  descriptor: { alignment: 16, sizeFor: descriptorAreaSize },
  driver: { alignment: 2, sizeFor: driverAreaSize },
  device: { alignment: 4, sizeFor: deviceAreaSize },
} as const;

/** Where used_event lies in the driver area, as an index of 16-bit words. */
export function usedEventIndex(size: number): number {
  return 2 + size;
}

/** Where avail_event lies in the device area, as an index of 16-bit words. */
export function availEventIndex(size: number): number {
  return 2 + 4 * size;
}

/**
 * Whether moving an index from `oldIndex` to `newIndex` fills the entry the other side waits for
 * (2.7.7, 2.7.10: "equal to used_event"), right also where the indices wrap.
 *
 * @param eventIndex what the other side wrote: the entry after which it wants to be notified
 */
export function needsEvent(eventIndex: number, newIndex: number, oldIndex: number): boolean {
  return ((newIndex - eventIndex - 1) & 0xffff) < ((newIndex - oldIndex) & 0xffff);
}
