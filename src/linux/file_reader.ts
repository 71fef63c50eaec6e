/** Files that others made, read piece by piece: neither their size nor what they are is believed. */

import { allocate } from "./arena.ts";
import { VmsgError } from "./errors.ts";
import { type Fd, fileStatus } from "./fd.ts";
import { check, lastError, libc } from "./libc.ts";
import { openToRead } from "./process_files.ts";

const window = allocate(1 << 16);
/** Whose bytes are in it. */
let holder: FileReader | undefined;

/** A file that is read for the most part from the beginning to the end. */
export class FileReader implements Disposable {
  readonly #fd: Fd;
  /** What is in the window, as long as it is ours. */
  #from = 0;
  #length = 0;

  /** @throws VmsgError for what is there and no file, or a LinuxError */
  constructor(readonly path: string) {
    const fd = openToRead(path);
    if (fd === undefined) throw lastError(`open ${path}`);
    this.#fd = fd;
    const { kind } = fileStatus(fd);
    if (kind === "file") return;
    fd[Symbol.dispose]();
    const what = kind === "other" ? "device" : kind;
    throw new VmsgError("NO_FILE", `${path} is a ${what} and no file`);
  }

  /** A copy of the bytes from there on, fewer where the file ends. */
  read(at: number, size: number): Uint8Array {
    const bytes = new Uint8Array(size);
    for (let done = 0; done < size;) {
      const from = at + done - this.#from;
      if (holder !== this || from < 0 || from >= this.#length) {
        this.#fill(at + done);
        if (this.#length === 0) return bytes.subarray(0, done);
        continue;
      }
      const piece = window.bytes.subarray(from, Math.min(this.#length, from + size - done));
      bytes.set(piece, done);
      done += piece.length;
    }
    return bytes;
  }

  #fill(at: number): void {
    const { address, bytes } = window;
    const count = libc.pread(this.#fd.number, address, bytes.length, BigInt(at));
    this.#length = check(count, `read ${this.path}`);
    this.#from = at;
    holder = this;
  }

  [Symbol.dispose](): void {
    this.#fd[Symbol.dispose]();
  }
}
