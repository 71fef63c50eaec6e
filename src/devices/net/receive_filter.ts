/**
 * Which frames a network card receives (VIRTIO 1.2, 5.1.6.5.1 to 5.1.6.5.3): receive modes, the MAC
 * table, the VLAN filter, as the driver sets them on the control queue.
 *
 * A driver that never speaks of filtering gets everything, as a card without a filter gives it. The
 * decision needs the first bytes of a frame only; they are given as two numbers, so that nothing is
 * copied or allocated: the destination's first two bytes, and its last four. What is kept is plain data, which
 * threads of pairs get too (pair_line.ts).
 */

/** Addresses in each half of the MAC table; a driver that sends more gets all frames of that kind. */
const MAX_ADDRESSES = 64;

/** A MAC address as one Number: the first two bytes times 2^32, plus the last four. */
export function macKey(high: number, low: number): number {
  return high * 0x1_0000_0000 + low;
}

/** One half of the MAC table; null: all addresses. */
type AddressSet = readonly number[] | null;

/** Half a table of these addresses, or of all where they are too many. */
export function addressSet(keys: readonly number[]): AddressSet {
  return keys.length > MAX_ADDRESSES ? null : keys;
}

/** See the head of this file. */
export class ReceiveFilter {
  promiscuous = true;
  allMulticast = false;
  allUnicast = false;
  noMulticast = false;
  noUnicast = false;
  noBroadcast = false;
  unicast: AddressSet = [];
  multicast: AddressSet = [];
  /** A bit by identifier. */
  readonly vlans: number[] = new Array(128).fill(0);

  /**
   * That of a card that was reset.
   *
   * @param ownKey the card's own address
   * @param filtersVlans is the VLAN filter negotiated? Then tagged frames need their identifier
   */
  constructor(public ownKey: number = 0, public filtersVlans: boolean = false) {}

  setVlan(identifier: number, accepted: boolean): void {
    const bit = 1 << (identifier & 31);
    if (accepted) this.vlans[(identifier & 0xfff) >> 5] |= bit;
    else this.vlans[(identifier & 0xfff) >> 5] &= ~bit;
  }

  /** True if no frame can be refused, so that looking at them is not needed. */
  get acceptsAll(): boolean {
    return this.promiscuous && !this.filtersVlans;
  }

  /**
   * Is a frame for this card?
   *
   * @param high the destination's first two bytes, big-endian
   * @param low its last four
   * @param vlan the VLAN identifier of a tagged frame, -1 of an untagged one
   */
  accepts(high: number, low: number, vlan: number): boolean {
    if (this.filtersVlans && vlan >= 0 && !this.#hasVlan(vlan)) return false;
    if (this.promiscuous) return true;
    if (high === 0xffff && low === 0xffff_ffff) return !this.noBroadcast;
    const key = macKey(high, low);
    if ((high & 0x100) !== 0) {
      return !this.noMulticast && (this.allMulticast || isIn(this.multicast, key));
    }
    if (this.noUnicast) return false;
    return this.allUnicast || key === this.ownKey || isIn(this.unicast, key);
  }

  #hasVlan(identifier: number): boolean {
    return (this.vlans[identifier >> 5] & (1 << (identifier & 31))) !== 0;
  }
}

function isIn(addresses: AddressSet, key: number): boolean {
  return addresses === null || addresses.includes(key);
}
