/**
 * Bus addresses that only the driver side can translate, page by page (docs/wire.md 4.4).
 *
 * Who reads rings and buffers sees an {@link AddressSpace} as always, whose windows are single pages. Of a page
 * that is not known the owner is told, who asks for it; until the answer is there
 *
 * - buffers: `translate` fails and counts the page as missed. The queue then walks the chain again with `collects`
 *   set: all pages that it lacks are asked for together, and it parks (queue/device_queue.ts);
 * - rings: {@link TranslatedSpace.prepare} says that they have to wait. Their pages, scattered as they may be, are
 *   mapped behind one another where they are not neighbours already, since rings are viewed in one piece;
 * - indirect tables that cross a page: they are copied, which is rare, because allocators align them.
 *
 * What the driver side answers is an address of its machine, of which the memory's regions show a part. A
 * page that is refused, or that they do not show, stays known as such: who uses it is broken.
 *
 * Limits: {@link MAX_PAGES} pages are remembered, the oldest go first. Nothing ever says that a page has moved; all
 * are forgotten with a reset.
 */

import { mapPages, type Mapping, type OpenFile, PAGE_SIZE } from "../linux/mapping.ts";
import { AddressSpace, MAX_COPIED_TABLE } from "./address_space.ts";
import type { IovecList } from "./iovec_list.ts";
import type { MemoryRegion } from "./region.ts";
import { MemoryWindow } from "./window.ts";

/** Pages that are remembered: 64 MiB, far more than the buffers of a network card. */
export const MAX_PAGES = 16384;
/** Pages of one chain that are asked for together; a chain that lacks more parks again. */
export const MAX_MISSED = 32;

const TWO_TO_32 = 0x1_0000_0000;

/** A range of bus addresses that is viewed in one piece. */
export interface Area {
  /** Bus address of the first byte. */
  readonly at: number;
  /** In bytes. */
  readonly size: number;
}

/** A queue's areas as they are mapped. */
interface PreparedArea {
  readonly window: MemoryWindow;
  /** Where the pages had to be mapped behind one another. */
  readonly mapping: Mapping | undefined;
}

/** A page as the driver side translated it: the region that shows it, or why there is none. */
type Page = { readonly window: MemoryWindow; readonly region: MemoryRegion } | string;

/** See the head of this file. */
export class TranslatedSpace extends AddressSpace implements Disposable {
  /** By bus address, the oldest first. */
  readonly #pages = new Map<number, Page>();
  /** By queue. */
  readonly #prepared = new Map<number, readonly PreparedArea[]>();

  /**
   * @param regions what is seen of the driver side's machine
   * @param ask is told of each page that has to be translated, perhaps again and again
   */
  constructor(
    readonly regions: readonly MemoryRegion[],
    readonly ask: (page: number) => void,
  ) {
    super();
  }

  /**
   * A page was translated.
   *
   * @param physical an address of the driver side's machine; undefined: the page was refused
   */
  learn(page: number, physical: number | undefined): void {
    if (this.#pages.size >= MAX_PAGES) this.#pages.delete(this.#pages.keys().next().value!);
    this.#pages.set(page, physical === undefined ? refusal : this.#pageAt(page, physical));
  }

  #pageAt(page: number, physical: number): Page {
    const end = physical + PAGE_SIZE;
    const region = this.regions.find(({ at, size }) => physical >= at && end <= at + size);
    if (region === undefined || physical % PAGE_SIZE !== 0) {
      return `is 0x${physical.toString(16)} in the driver side's machine, which no --memory covers`;
    }
    const offset = region.offset + (physical - region.at);
    return { window: new MemoryWindow(page, PAGE_SIZE, region.memory, offset), region };
  }

  /** Forgets all pages. Areas stay until {@link release}, because queues may be about to publish. */
  forget(): void {
    this.#pages.clear();
    this.last = undefined;
    this.missed = 0;
  }

  /** Unmaps all queues' areas; none of these queues is open any more. */
  release(): void {
    for (const queue of [...this.#prepared.keys()]) this.#release(queue);
  }

  #release(queue: number): void {
    for (const { mapping } of this.#prepared.get(queue) ?? []) mapping?.[Symbol.dispose]();
    this.#prepared.delete(queue);
  }

  /** The same as {@link forget} and {@link release}. */
  [Symbol.dispose](): void {
    this.forget();
    this.release();
  }

  // --- rings -------------------------------------------------------------------------------------

  /**
   * Makes the areas of a queue, which is not open, appear in one piece each.
   *
   * @returns true if they do, false if pages have to be asked for first, or in one line why they cannot
   */
  prepare(queue: number, areas: readonly Area[]): boolean | string {
    this.#release(queue);
    const pages: Page[][] = [];
    let isComplete = true;
    for (const { at, size } of areas) {
      const found = this.#pagesOf(at, size);
      if (typeof found === "string") return `ring at 0x${at.toString(16)} ${found}`;
      if (found === undefined) isComplete = false;
      else pages.push(found);
    }
    if (!isComplete) return false;
    const prepared: PreparedArea[] = [];
    this.#prepared.set(queue, prepared);
    for (const [n, { at }] of areas.entries()) {
      const area = stitch(at - at % PAGE_SIZE, pages[n] as Exclude<Page, string>[]);
      if (typeof area === "string") return `ring at 0x${at.toString(16)} ${area}`;
      prepared.push(area);
    }
    return true;
  }

  /** The pages of a range, undefined if some have to be asked for first, or why there is none. */
  #pagesOf(at: number, size: number): Page[] | string | undefined {
    if (!(at + size <= Number.MAX_SAFE_INTEGER)) return "is no address";
    const pages: Page[] = [];
    let isComplete = true;
    for (let page = at - at % PAGE_SIZE; page < at + size; page += PAGE_SIZE) {
      const known = this.#pages.get(page);
      if (typeof known === "string") return known;
      if (known !== undefined) pages.push(known);
      else {
        isComplete = false;
        this.ask(page);
      }
    }
    return isComplete ? pages : undefined;
  }

  /** Finds rings, among the areas that were prepared. */
  override find(address: number, length: number): MemoryWindow | undefined {
    for (const areas of this.#prepared.values()) {
      for (const { window } of areas) {
        if (address >= window.at && address + length <= window.end) return window;
      }
    }
    return undefined;
  }

  // --- buffers -----------------------------------------------------------------------------------

  protected override containing(address: number): MemoryWindow | undefined {
    const page = this.#pages.get(address - address % PAGE_SIZE);
    if (page === undefined || typeof page === "string") return undefined;
    this.last = page.window;
    return page.window;
  }

  protected override translateAny(address: number, length: number, into: IovecList): boolean {
    if (!(address + length <= Number.MAX_SAFE_INTEGER)) return false;
    while (length > 0 && this.missed < MAX_MISSED) {
      const part = Math.min(length, PAGE_SIZE - address % PAGE_SIZE);
      const window = this.containing(address);
      if (window !== undefined) {
        if (!into.push(window, address - window.at, part)) return false;
      } else if (!this.#passesOver(address - address % PAGE_SIZE)) return false;
      address += part;
      length -= part;
    }
    return true;
  }

  /** A page that is not there; may a walk pass over it? */
  #passesOver(page: number): boolean {
    if (this.#pages.has(page)) return false;
    this.missed++;
    if (this.collects) this.ask(page);
    return this.collects;
  }

  /** Finds an indirect table: in its page, or as a copy where it crosses pages. */
  override findHalves(high: number, low: number, length: number): MemoryWindow | undefined {
    const at = high * TWO_TO_32 + low;
    const inPage = at % PAGE_SIZE + length <= PAGE_SIZE;
    if (!(at + length <= Number.MAX_SAFE_INTEGER) || length > MAX_COPIED_TABLE) return undefined;
    let isComplete = true;
    for (let page = at - at % PAGE_SIZE; page < at + length; page += PAGE_SIZE) {
      if (this.containing(page) !== undefined) continue;
      if (!this.#passesOver(page)) return undefined;
      isComplete = false;
    }
    if (!isComplete) return undefined;
    return inPage ? this.containing(at) : this.copyOf(at, length);
  }

  override explain(address: number, length: number): string {
    for (let page = address - address % PAGE_SIZE; page < address + length;) {
      const known = this.#pages.get(page);
      if (typeof known === "string") return known;
      if (known === undefined) break;
      page += PAGE_SIZE;
    }
    return super.explain(address, length);
  }
}

const refusal = "is in a page that the driver side refuses to translate";

/** Pages as one window: where they lie if they are neighbours, else mapped behind one another. */
function stitch(at: number, pages: readonly Exclude<Page, string>[]): PreparedArea | string {
  const size = pages.length * PAGE_SIZE;
  const first = pages[0].window;
  const areNeighbours = pages.every(({ window, region }, n) =>
    region.memory === pages[0].region.memory &&
    window.byteOffset === first.byteOffset + n * PAGE_SIZE
  );
  if (areNeighbours) {
    const { memory } = pages[0].region;
    return { window: new MemoryWindow(at, size, memory, first.byteOffset), mapping: undefined };
  }
  const files: OpenFile[] = [];
  for (const { window, region: { memory: { file } } } of pages) {
    if (file === undefined) return "is scattered over memory that cannot be mapped again";
    files.push({ fd: file.fd, offset: file.offset + window.byteOffset });
  }
  try {
    const mapping = mapPages(files);
    return { window: new MemoryWindow(at, size, mapping, 0), mapping };
  } catch (error) {
    return `cannot be mapped in one piece: ${error}`;
  }
}
