/**
 * The front end's memory table: its regions, their files, and this process's own mapping of them.
 *
 * Ring addresses come as the front end's user addresses and leave as guest-physical ones, which is
 * what the guest's descriptors hold and so what the bus carries. The own mapping serves one purpose:
 * reading a used index when the device side has died. Regions are shared between the table that is
 * wanted and what the device side has, so each is closed when neither needs it.
 */

import { type Fd, fileIdentity, fileSize } from "../linux/fd.ts";
import { type Mapping, mapShared, PAGE_SIZE } from "../linux/mapping.ts";
import { AddressSpace, type WindowRefusal } from "../memory/mod.ts";

/** A region of SET_MEM_TABLE: guest memory, where the front end sees it, where it lies in its file. */
export interface Region {
  /** Guest-physical address, and so the address on the bus. */
  readonly guestAddress: number;
  /** In bytes. */
  readonly size: number;
  /** The address in the front end's own address space, which ring addresses use. */
  readonly userAddress: number;
  /** Bytes into the file that came along. */
  readonly fileOffset: number;
}

/** A region with its file and mapping. */
export class MappedRegion implements Disposable {
  readonly #identity: string;
  /** This process's own mapping, whole pages. */
  readonly mapping: Mapping;
  readonly #slack: number;

  /** Takes the descriptor unless it throws: a LinuxError or a range error in words. */
  constructor(readonly region: Region, readonly fd: Fd) {
    const { size, fileOffset, guestAddress, userAddress } = region;
    const numbers = [size, fileOffset + size, guestAddress + size, userAddress + size];
    if (!numbers.every(Number.isSafeInteger) || size === 0) throw new RangeError("bad region");
    if (fileOffset + size > fileSize(fd)) throw new RangeError("region larger than its file");
    this.#identity = `${fileIdentity(fd)} ${fileOffset} ${size} ${guestAddress} ${userAddress}`;
    this.#slack = fileOffset % PAGE_SIZE;
    this.mapping = mapShared(fd.number, size + this.#slack, fileOffset - this.#slack);
  }

  /** True if the other region shows the same bytes at the same addresses. */
  shows(other: MappedRegion): boolean {
    return this.#identity === other.#identity;
  }

  /** True if this is the region that REM_MEM_REG describes; its offset there means nothing. */
  isAt({ guestAddress, size, userAddress }: Region): boolean {
    const { region } = this;
    return region.guestAddress === guestAddress && region.size === size &&
      region.userAddress === userAddress;
  }

  /** Shows the region in an address space, as {@link AddressSpace.add}. */
  addTo(space: AddressSpace): WindowRefusal | undefined {
    return space.add(this.region.guestAddress, this.region.size, this.mapping, this.#slack);
  }

  /** Unmaps it and closes its file. */
  [Symbol.dispose](): void {
    this.mapping[Symbol.dispose]();
    this.fd[Symbol.dispose]();
  }
}

/** One memory table. */
export class MemoryTable {
  /** The regions at their guest addresses. */
  readonly space: AddressSpace = new AddressSpace();

  /** A table of regions; a RangeError in words if two overlap. */
  constructor(readonly regions: readonly MappedRegion[]) {
    for (const region of regions) {
      const problem = region.addTo(this.space);
      if (problem !== undefined) throw new RangeError(`memory table: ${problem}`);
    }
  }

  /** The guest address behind a front end's user address, or undefined. */
  guestAddress(userAddress: number): number | undefined {
    for (const { region } of this.regions) {
      const offset = userAddress - region.userAddress;
      if (offset >= 0 && offset < region.size) return region.guestAddress + offset;
    }
    return undefined;
  }

  /** The 16-bit value at a guest address, or undefined outside the table. */
  readUint16(guestAddress: number): number | undefined {
    const window = this.space.find(guestAddress, 2);
    return window?.view.getUint16(guestAddress - window.at, true);
  }
}
