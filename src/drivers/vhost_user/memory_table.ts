/**
 * The front end's memory table: its regions, their files, and this process's own mapping of them.
 *
 * Ring addresses come as the front end's user addresses and leave as guest-physical ones, which is
 * what the guest's descriptors hold and so what the bus carries. The own mapping is for rings that are carried over,
 * and for reading a used index when the device side has died.
 *
 * A region that the front end shows once more, the same bytes of the same file at the same addresses, stays what
 * it is: its file is only looked at. A region that is not in the table any more is closed when the device side
 * does not need it either.
 *
 * QEMU 7.2 shows files that it has mapped for itself alone as well (`share=off`): what the guest writes is not in
 * them. Such a region is left out, so that nobody reads there what is not so.
 */

import { VmsgError } from "../../linux/errors.ts";
import { type Fd, fileIdentity, fileSize } from "../../linux/fd.ts";
import { assertMemoryFile, mapMemoryFile } from "../../linux/memory_file.ts";
import { AddressSpace, type MappedMemory, MemoryQuota } from "../../memory/mod.ts";
import type { SharedRegion } from "../../sharing/sharing.ts";
import type { Region } from "../../vhost_user/protocol.ts";

/** A region of the table: at its guest-physical address, with its file and mapping. */
export class TableRegion implements SharedRegion, Disposable {
  readonly at: number;
  readonly size: number;
  readonly memory: MappedMemory & Disposable;
  readonly offset: number;
  readonly fileOffset: number;
  /** Where the front end sees it. */
  readonly userAddress: number;

  /**
   * Takes the descriptor unless it throws: VmsgError or a range error in words.
   *
   * @param identity of the file
   */
  constructor(region: Region, readonly fd: Fd, readonly identity: string) {
    const { size, fileOffset, guestAddress, userAddress } = region;
    const numbers = [size, fileOffset + size, guestAddress + size, userAddress + size];
    if (!numbers.every(Number.isSafeInteger) || size === 0) throw new RangeError("bad region");
    this.at = guestAddress;
    this.size = size;
    this.fileOffset = fileOffset;
    this.userAddress = userAddress;
    ({ memory: this.memory, offset: this.offset } = mapMemoryFile(fd, fileOffset, size));
  }

  /** True if it shows the bytes that the front end describes, in the file of this identity, where it says. */
  shows(region: Region, identity: string): boolean {
    return this.isAt(region) && this.fileOffset === region.fileOffset && this.identity === identity;
  }

  /** True if this is the region that REM_MEM_REG describes; its offset there means nothing. */
  isAt({ guestAddress, size, userAddress }: Region): boolean {
    return this.at === guestAddress && this.size === size && this.userAddress === userAddress;
  }

  /** Unmaps it and closes its file. */
  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
    this.fd[Symbol.dispose]();
  }
}

/** Of a file of the front end's, which may be of a kind that never answers. */
function identityOf(fd: Fd): string {
  assertMemoryFile(fd);
  return fileIdentity(fd);
}

/** See the head of this file. */
export class MemoryTable implements Disposable {
  #regions: readonly TableRegion[] | undefined;
  /** Every region that is open: in the table, or still mapped by the device side. */
  readonly #open = new Set<TableRegion>();

  /**
   * @param isShared does the front end write into the file itself? One that does not is left out
   * @param quota how much front ends may show
   */
  constructor(
    readonly isShared: (region: Region, fd: Fd) => boolean = () => true,
    readonly quota: MemoryQuota = new MemoryQuota(),
  ) {}

  /** The regions of the table; none before there is one. */
  get regions(): readonly TableRegion[] {
    return this.#regions ?? [];
  }

  /**
   * SET_MEM_TABLE.
   *
   * @param fds one for each region; those that are taken are taken out
   * @throws RangeError in words, LinuxError
   */
  set(regions: readonly Region[], fds: Fd[]): void {
    // By what stands beside it, because descriptors that are taken leave the list.
    const pairs = regions.map((region, i) => {
      const identity = identityOf(fds[i]!);
      const old = this.regions.find((old) => old.shows(region, identity));
      return { region, fd: fds[i]!, identity, old };
    });
    this.#checkQuota(regions, pairs.flatMap(({ region, old }) => old ? [] : [region]));
    this.#replace(
      pairs.flatMap(({ region, fd, identity, old }) => old ?? this.#map(region, fd, identity, fds)),
    );
  }

  /** ADD_MEM_REG. Arguments and errors as {@link set}. */
  add(region: Region, fds: Fd[]): void {
    const identity = identityOf(fds[0]!);
    // QEMU 7.2 adds, and removes, each once for every queue pair of a card.
    if (this.regions.some((old) => old.shows(region, identity))) return;
    this.#checkQuota([...this.regions, region], [region]);
    const added = this.#map(region, fds[0]!, identity, fds);
    this.#replace([...this.regions, ...added]);
  }

  /** REM_MEM_REG. */
  remove(region: Region): void {
    this.#replace(this.regions.filter((other) => !other.isAt(region)));
  }

  /** Before anything is mapped. */
  #checkQuota(table: readonly { size: number }[], fresh: readonly { size: number }[]): void {
    const sizes = (regions: readonly { size: number }[]) => regions.map(({ size }) => size);
    const refusal = this.quota.refusal(sizes(table), sizes(fresh));
    if (refusal !== undefined) {
      throw new RangeError(`the front end shows ${refusal} (--memory-limit)`);
    }
  }

  /** In a list of its own, or none. */
  #map(region: Region, fd: Fd, identity: string, fds: Fd[]): TableRegion[] {
    if (!this.isShared(region, fd)) return [];
    const mapped = new TableRegion(region, fd, identity);
    fds.splice(fds.indexOf(fd), 1);
    this.#open.add(mapped);
    this.quota.mapped(mapped.size);
    return [mapped];
  }

  #replace(regions: readonly TableRegion[]): void {
    const space = new AddressSpace();
    for (const { at, size, memory, offset } of regions) {
      const refusal = space.add(at, size, memory, offset);
      if (refusal !== undefined) throw new RangeError(`memory table: ${refusal}`);
    }
    this.#regions = regions;
  }

  /**
   * Has memory of a region been cut off? Of several that were at once, the guard knows one address.
   *
   * @param address where the guard found it last
   */
  isCut(address: bigint): boolean {
    return [...this.#open].some(({ memory, fd, fileOffset, size }) =>
      address >= memory.address && address < memory.address + BigInt(memory.size) ||
      fileSize(fd) < fileOffset + size
    );
  }

  /** The front end is gone. */
  clear(): void {
    this.#regions = undefined;
  }

  /**
   * The guest address behind a front end's user address.
   *
   * @throws VmsgError NO_SHARED_MEMORY if there is none
   */
  busAddress(ring: number, userAddress: number): number {
    for (const { at, size, userAddress: start } of this.regions) {
      const offset = userAddress - start;
      if (offset >= 0 && offset < size) return at + offset;
    }
    // QEMU 7.2 sends no memory request at all for memory that is not shared, and starts its rings.
    const what = this.#regions === undefined
      ? "the front end shares no memory"
      : `ring ${ring} lies outside the memory that the front end shares`;
    throw new VmsgError(
      "NO_SHARED_MEMORY",
      `${what}: the guest's memory must be shared (QEMU: -object memory-backend-memfd,...,share=on)`,
    );
  }

  /** Closes the regions that nobody needs. @param letGo false while the device side needs one */
  closeUnused(letGo: (region: TableRegion) => boolean): void {
    for (const region of this.#open) {
      if (this.regions.includes(region) || !letGo(region)) continue;
      this.#close(region);
    }
  }

  /** Closes all that is open, when the device side is gone or knows of nothing. */
  [Symbol.dispose](): void {
    this.clear();
    for (const region of this.#open) this.#close(region);
  }

  #close(region: TableRegion): void {
    this.#open.delete(region);
    this.quota.unmapped(region.size);
    region[Symbol.dispose]();
  }
}
