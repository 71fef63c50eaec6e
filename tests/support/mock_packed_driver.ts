/**
 * The mock driver's packed virtqueue, written word by word from VIRTIO 1.2, section 2.8; see mock_driver.ts.
 */

import type { MockElement, MockMemory, RingDriver } from "./mock_driver.ts";

const NEXT = 1, WRITE = 2, INDIRECT = 4, AVAIL = 1 << 7, USED = 1 << 15;

/** A place in the ring, as the specification has it. */
interface Place {
  index: number;
  wrap: boolean;
}

interface Out {
  readonly id: number;
  readonly count: number;
  /** Where it was made available. */
  readonly at: Place;
}

/** How a packed mock queue is made. */
export interface MockPackedOptions {
  readonly size: number;
  /** Bus address of the descriptor ring; the two words follow it, each on a new 4 KiB page. */
  readonly at?: number;
  readonly eventIndex?: boolean;
  readonly indirect?: boolean;
  readonly inOrder?: boolean;
  /** Where both sides begin: the slot, and whether the lap is an odd one. */
  readonly start?: { readonly index: number; readonly odd: boolean };
}

export class MockPackedDriver implements RingDriver {
  readonly size: number;
  readonly eventIndex: boolean;
  readonly indirect: boolean;
  readonly inOrder: boolean;
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  readonly end: number;
  /** Where the next descriptor is made available, and where the next used one will be. */
  readonly available: Place;
  readonly used: Place;
  free: number;
  readonly #base: number;
  /** Buffers that are out, in order. */
  readonly #out: Out[] = [];
  /** Of those the ones that no used descriptor was shown for. */
  #nextId = 40_000;
  /** Flags of first descriptors that {@link publish} writes, and all slots that are shown with them. */
  #unpublished: { readonly address: number; readonly flags: number }[] = [];
  #slots: Place[] = [];
  /** Taken back, by the used descriptor that stands for them. */
  readonly #returned: { head: number; length: number }[] = [];
  /** Buffers shown by the device, for {@link mustCall}: where they were made available, and how many descriptors. */
  readonly #unshown: Out[] = [];

  constructor(readonly memory: MockMemory, options: MockPackedOptions) {
    const { size, at = memory.windows[0].at, start = { index: 0, odd: false } } = options;
    const page = (address: number) => Math.ceil(address / 4096) * 4096;
    this.size = this.free = size;
    this.eventIndex = options.eventIndex ?? false;
    this.indirect = options.indirect ?? false;
    this.inOrder = options.inOrder ?? false;
    this.descriptorAddress = at;
    this.driverAddress = page(at + 16 * size);
    this.deviceAddress = this.driverAddress + 4096;
    this.end = this.deviceAddress + 4096;
    this.available = { index: start.index, wrap: !start.odd };
    this.used = { ...this.available };
    this.#base = start.index + (start.odd ? 0x8000 : 0);
    // As all laps before left it: used descriptors, of this lap before the start and of the last one behind it.
    for (let i = 0; i < size; i++) {
      const wrap = i < start.index ? !start.odd : start.odd;
      this.memory.write16(at + 16 * i + 14, wrap ? AVAIL | USED : 0);
    }
  }

  get config() {
    const { size, descriptorAddress, driverAddress, deviceAddress, eventIndex, indirect, inOrder } =
      this;
    const areas = { size, descriptorAddress, driverAddress, deviceAddress };
    return { ...areas, base: this.#base, packed: true, eventIndex, indirect, inOrder };
  }

  /** Writes a descriptor anywhere. */
  desc(at: number, address: number | bigint, length: number, id: number, flags: number): void {
    this.memory.write64(at, BigInt(address));
    this.memory.write32(at + 8, length);
    this.memory.write16(at + 12, id);
    this.memory.write16(at + 14, flags);
  }

  slot(index: number): number {
    return this.descriptorAddress + 16 * index;
  }

  flagsAt(index: number): number {
    return this.memory.read16(this.slot(index) + 14);
  }

  /** The flags that make a descriptor available at a place. */
  availableFlags({ wrap }: Place): number {
    return wrap ? AVAIL : USED;
  }

  step(place: Place, count = 1): void {
    for (; count > 0; count--) {
      place.index++;
      if (place.index < this.size) continue;
      place.index = 0;
      place.wrap = !place.wrap;
    }
  }

  table(at: number, readable: readonly MockElement[], writable: readonly MockElement[]): void {
    [...readable, ...writable].forEach(({ address, length }, i) => {
      this.desc(at + 16 * i, address, length, 0x5555, i < readable.length ? 0 : WRITE);
    });
  }

  add(
    readable: readonly MockElement[],
    writable: readonly MockElement[],
    tableAddress?: number,
  ): number | undefined {
    const all = [...readable, ...writable];
    const count = tableAddress === undefined ? all.length : 1;
    if (count > this.free) return undefined;
    // Any number that is not out: ids are the driver's own affair.
    const id = this.#nextId;
    this.#nextId = (this.#nextId + 7919) & 0xffff;
    const at = { ...this.available };
    if (tableAddress !== undefined) this.table(tableAddress, readable, writable);
    const elements = tableAddress === undefined
      ? all
      : [{ address: tableAddress, length: 16 * all.length }];
    elements.forEach(({ address, length }, i) => {
      let flags = this.availableFlags(this.available);
      if (tableAddress !== undefined) flags |= INDIRECT;
      else if (i >= readable.length) flags |= WRITE;
      if (i < elements.length - 1) flags |= NEXT;
      const to = this.slot(this.available.index);
      this.desc(
        to,
        address,
        length,
        i === elements.length - 1 ? id : 0x7777,
        i === 0 ? this.memory.read16(to + 14) : flags,
      );
      if (i === 0) this.#unpublished.push({ address: to + 14, flags });
      this.#slots.push({ ...this.available });
      this.step(this.available);
    });
    this.free -= count;
    this.#out.push({ id, count, at });
    this.#unshown.push({ id, count, at });
    return id;
  }

  publish(): boolean {
    for (const { address, flags } of this.#unpublished.reverse()) {
      this.memory.write16(address, flags);
    }
    const event = this.memory.read16(this.deviceAddress);
    const kind = this.memory.read16(this.deviceAddress + 2);
    const isWanted = this.#slots.length > 0 &&
      (kind === 0 || kind === 2 && this.#slots.some((slot) => isEvent(event, slot)));
    this.#unpublished = [];
    this.#slots = [];
    return isWanted;
  }

  takeUsed(): { head: number; length: number } | undefined {
    if (this.#returned.length === 0 && !this.#look()) return undefined;
    return this.#returned.shift();
  }

  #look(): boolean {
    const { index, wrap } = this.used;
    const flags = this.flagsAt(index);
    if (((flags & USED) !== 0) !== wrap || ((flags & AVAIL) !== 0) !== wrap) return false;
    const id = this.memory.read16(this.slot(index) + 12);
    const length = this.memory.read32(this.slot(index) + 8);
    const position = this.#out.findIndex((out) => out.id === id);
    if (position < 0) throw new Error(`used id ${id} was not offered`);
    if (position > 0 && !this.inOrder) throw new Error(`id ${id} overtook others`);
    if ((flags & WRITE) === 0 && length !== 0) throw new Error(`${length} bytes, but no WRITE`);
    for (const [i, { id, count }] of this.#out.splice(0, position + 1).entries()) {
      this.step(this.used, count);
      this.free += count;
      this.#returned.push({ head: id, length: i === position ? length : 0 });
    }
    return true;
  }

  /** How many used descriptors the device may have written for the buffers that are out: for tests of IN_ORDER. */
  get isOut(): number {
    return this.#out.length;
  }

  /** By the letter of 2.8.10: a descriptor counts as used with the chain it belongs to. */
  mustCall(heads: readonly number[]): boolean {
    let wanted = false;
    const event = this.memory.read16(this.driverAddress);
    const kind = this.memory.read16(this.driverAddress + 2);
    for (const { at, count } of this.#unshown.splice(0, heads.length)) {
      const slot = { ...at };
      for (let i = 0; i < count; i++, this.step(slot)) {
        if (kind === 0 || kind === 2 && isEvent(event, slot)) wanted = true;
      }
    }
    return wanted;
  }

  wantCalls(): void {
    const { index, wrap } = this.used;
    this.memory.write16(this.driverAddress, index | (wrap ? 0x8000 : 0));
    this.memory.write16(this.driverAddress + 2, this.eventIndex ? 2 : 0);
  }

  maskCalls(): void {
    if (!this.eventIndex) this.memory.write16(this.driverAddress + 2, 1);
  }
}

function isEvent(event: number, { index, wrap }: Place): boolean {
  return (event & 0x7fff) === index && ((event & 0x8000) !== 0) === wrap;
}
