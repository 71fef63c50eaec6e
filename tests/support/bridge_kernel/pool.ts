/**
 * The bounce pool of a device's driver: kept windows of 512 KiB, out of which buffers take whole pages, and ring
 * memory, a kept window each. A larger buffer is a window of its own that goes when its transfer is done.
 */

import type { Session } from "./session.ts";
import { PAGE, type Window } from "./windows.ts";

const CHUNK = 512 << 10;
const MAX_POOLED = 64 << 10;

/** Memory that a device may use. */
export interface Buffer {
  readonly address: number;
  readonly length: number;
}

export class Pool {
  readonly #free = new Map<number, number[]>();
  #rest = 0;
  #at = 0;
  readonly #own = new Map<number, Window>();
  /** Its chunks. */
  readonly windows: Window[] = [];

  constructor(readonly session: Session) {}

  /** The first chunk, which the device has to map before anything else. */
  async open(): Promise<void> {
    const window = await this.session.add({ length: CHUNK });
    this.windows.push(window);
    this.#at = window.busAddr;
    this.#rest = CHUNK;
  }

  async take(length: number): Promise<Buffer> {
    const size = Math.ceil(length / PAGE) * PAGE;
    if (size > MAX_POOLED) {
      const window = await this.session.add({ length: size, keep: false });
      this.#own.set(window.busAddr, window);
      return { address: window.busAddr, length };
    }
    const address = this.#free.get(size)?.pop() ?? await this.#carve(size);
    return { address, length };
  }

  async #carve(size: number): Promise<number> {
    if (this.#rest < size) await this.open();
    const address = this.#at;
    this.#at += size;
    this.#rest -= size;
    return address;
  }

  async give({ address, length }: Buffer): Promise<void> {
    const window = this.#own.get(address);
    if (window !== undefined) {
      this.#own.delete(address);
      await this.session.del(window);
      return;
    }
    const size = Math.ceil(length / PAGE) * PAGE;
    const free = this.#free.get(size) ?? [];
    this.#free.set(size, free);
    free.push(address);
  }
}
