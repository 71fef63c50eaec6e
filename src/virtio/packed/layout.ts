/**
 * The packed virtqueue's layout (VIRTIO 1.2, section 2.8): one ring that both sides write, and two words of wishes.
 *
 *     descriptor area (the descriptor ring, 2.8.13; both write)
 *         size times { le64 address; le32 length; le16 id; le16 flags }
 *     driver area (2.8.14; the driver writes: when it wants to be called)
 *         le16 offset and wrap counter; le16 flags
 *     device area (the same of the device: when it wants to be kicked)
 *
 * Both sides go round the ring. A descriptor is available where AVAIL is the wrap counter of this lap and USED is not,
 * and used where both are; the counter is 1 in the first lap, then 0 and 1 in turns.
 *
 * A position in the ring is kept here as a number modulo twice the size: the slot, and in the bit above it the parity of
 * the lap. Between queues and in what others are told it is 16 bits, as QueueSetup's base: the slot, and the parity in bit
 * 15. The parity is the wrap counter turned over, so that 0 is where a ring begins in either format.
 *
 * A descriptor is read as four 32-bit words, the last of which holds id (low half) and flags (high half).
 */

// Flags, VIRTQ_DESC_F_ in the specification, as they lie in a descriptor's last word.
export const DESCRIPTOR_NEXT: number = 1 << 16; // the buffer goes on in the next descriptor (2.8.6)
export const DESCRIPTOR_WRITE: number = 2 << 16; // the device writes, otherwise it reads (2.8.4)
export const DESCRIPTOR_INDIRECT: number = 4 << 16; // it names a table of descriptors (2.8.7)
export const DESCRIPTOR_AVAIL: number = 1 << 23; // 2.8.1
export const DESCRIPTOR_USED: number = 1 << 31; // 2.8.1

// What an event suppression word (2.8.10) asks for, in its high half.
export const EVENT_ENABLE: number = 0 << 16; // a notification each time
export const EVENT_DISABLE: number = 1 << 16; // none
export const EVENT_DESCRIPTOR: number = 2 << 16; // one, when the descriptor in the low half is passed
export const EVENT_FLAGS: number = 3 << 16;

/** The bit of a 16-bit position that has the lap's parity, or turned over the wrap counter. */
export const LAP = 0x8000;

const DESCRIPTOR_SIZE = 16;

/** The three areas: what an address must be a multiple of (2.8.10.1), and how many bytes there are. */
export const AREAS = {
  descriptor: { alignment: 16, sizeFor: (size: number): number => DESCRIPTOR_SIZE * size },
  driver: { alignment: 4, sizeFor: (): number => 4 },
  device: { alignment: 4, sizeFor: (): number => 4 },
} as const;

/** A position in a ring of `size` as 16 bits, of one modulo twice the size. */
export function toBase(position: number, size: number): number {
  return (position & (size - 1)) | ((position & size) !== 0 ? LAP : 0);
}

/** The reverse of {@link toBase}; undefined if there is no such slot. */
export function fromBase(base: number, size: number): number | undefined {
  if (!Number.isInteger(base) || base < 0 || base > 0xffff || (base & ~LAP) >= size) {
    return undefined;
  }
  return (base & ~LAP) + ((base & LAP) !== 0 ? size : 0);
}

/** Flags of a descriptor that is available in the lap of this position. */
export function availableFlags(position: number, size: number): number {
  return (position & size) === 0 ? DESCRIPTOR_AVAIL : DESCRIPTOR_USED;
}

/** Flags of a descriptor that is used in the lap of this position. */
export function usedFlags(position: number, size: number): number {
  return (position & size) === 0 ? DESCRIPTOR_AVAIL | DESCRIPTOR_USED : 0;
}

/** The event suppression word of who wants to hear of the descriptor at a position. */
export function eventAt(position: number, size: number): number {
  return EVENT_DESCRIPTOR | (toBase(position, size) ^ LAP);
}

/**
 * Whether the other side wants a notification when a position has moved on (2.8.10).
 *
 * @param word its event suppression word
 * @param position where it is now
 * @param moved by how many descriptors, at most the size
 */
export function needsEvent(word: number, position: number, moved: number, size: number): boolean {
  const flags = word & EVENT_FLAGS;
  if (flags !== EVENT_DESCRIPTOR) return flags === EVENT_ENABLE;
  const slot = word & (LAP - 1);
  const event = (word & LAP) !== 0 ? slot : slot + size;
  // How long ago it was passed. One that is in no ring is never passed, or now and then: that harms the other side alone.
  return ((position - event - 1) & (2 * size - 1)) < moved;
}
