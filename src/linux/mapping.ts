/**
 * Mapped memory as an ArrayBuffer with an owner.
 *
 * The buffer's views are plain typed arrays over foreign memory. After `munmap` a view would read
 * freed addresses (SIGSEGV), so dispose first detaches every view with `transfer()` and then unmaps.
 * A mapping cannot be sent to another Worker (postMessage would copy it): send the file descriptor.
 */

import { lastError, libc } from "./libc.ts";

/** PROT_READ and PROT_WRITE. */
const READ_WRITE = 3;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MREMAP_MAYMOVE = 1;
const MREMAP_FIXED = 2;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

/** The page size of x86-64, and of arm64 kernels as Debian builds them. */
export const PAGE_SIZE = 4096;

/** A region of this process's address space, unmapped by its owner. */
export interface Mapping extends Disposable {
  /** The virtual address of byte 0. */
  readonly address: bigint;
  /** The whole region, in bytes `size`. */
  readonly buffer: ArrayBuffer;
  /** In bytes. */
  readonly size: number;
  /** What is mapped, where that is kept open to have pieces mapped again. */
  readonly file?: OpenFile;
}

/** A file or device that stays open, from a byte on. */
export interface OpenFile {
  /** Its descriptor. */
  readonly fd: { readonly number: number };
  /** In bytes, a multiple of the page size. */
  readonly offset: number;
}

/**
 * Maps `size` bytes of a file, shared and writable.
 *
 * @param fd an open file, memfd or device; it may be closed afterwards
 * @param offset in bytes, a multiple of the page size
 */
export function mapShared(fd: number, size: number, offset = 0): Mapping {
  return map(size, MAP_SHARED, fd, BigInt(offset), `mmap ${size} bytes of fd ${fd}`);
}

/**
 * The same, and keeps the file open.
 *
 * @param owner closes it, with the mapping, or at once if there is none
 */
export function mapKept(file: OpenFile, size: number, owner?: Disposable): Mapping {
  using stack = new DisposableStack();
  if (owner !== undefined) stack.use(owner);
  const mapping = stack.use(mapShared(file.fd.number, size, file.offset));
  const owned = stack.move();
  return {
    address: mapping.address,
    get buffer() {
      return mapping.buffer;
    },
    size,
    file,
    [Symbol.dispose]: () => owned.dispose(),
  };
}

/** Maps single pages of files behind one another, shared and writable, so that they look like one piece. */
export function mapPages(pages: readonly OpenFile[]): Mapping {
  const whole = mapAnonymous(pages.length * PAGE_SIZE);
  let { address } = whole;
  for (const { fd, offset } of pages) {
    const flags = MAP_SHARED | MAP_FIXED;
    const size = BigInt(PAGE_SIZE);
    if (libc.mmap(address, size, READ_WRITE, flags, fd.number, BigInt(offset)) === MAP_FAILED) {
      const error = lastError(`mmap a page of fd ${fd.number} at a fixed place`);
      whole[Symbol.dispose]();
      throw error;
    }
    address += size;
  }
  return whole;
}

/** Maps `size` bytes of fresh zeroed memory, private to this process. */
export function mapAnonymous(size: number): Mapping {
  return map(size, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0n, `mmap ${size} bytes`);
}

/** What another thread of this process has mapped, for as long as that thread keeps it: dispose takes away the views alone. */
export function borrowMapping(address: bigint, size: number): Mapping {
  let buffer = Deno.UnsafePointerView.getArrayBuffer(Deno.UnsafePointer.create(address)!, size);
  return {
    address,
    get buffer() {
      return buffer;
    },
    size,
    [Symbol.dispose]: () => void (buffer = buffer.transfer(0)),
  };
}

/**
 * Has a mapping show a file's bytes from `offset` on instead, or without a file zeroed memory of this process:
 * whoever has views of it keeps them. The file must be as long as the mapping.
 */
export function remap({ address, size }: Mapping, fd: number | undefined, offset = 0): void {
  const flags = MAP_FIXED | (fd === undefined ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
  const at = libc.mmap(address, BigInt(size), READ_WRITE, flags, fd ?? -1, BigInt(offset));
  if (at === MAP_FAILED) throw lastError(`mmap ${size} bytes at their place`);
}

/**
 * The same for what can only be mapped from its start on, as what a UIO device shows: `inside` of it is what is wanted,
 * a multiple of the page size.
 */
export function remapInside({ address, size }: Mapping, file: OpenFile, inside: number): void {
  const whole = BigInt(inside + size);
  const { fd: { number: fd }, offset } = file;
  const from = libc.mmap(0n, whole, READ_WRITE, MAP_SHARED, fd, BigInt(offset));
  if (from === MAP_FAILED) throw lastError(`mmap ${whole} bytes of fd ${fd}`);
  const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
  const at = libc.mremap(from + BigInt(inside), BigInt(size), BigInt(size), flags, address);
  const error = at === MAP_FAILED ? lastError(`mremap ${size} bytes`) : undefined;
  // What was moved away is not there any more, which munmap does not mind.
  libc.munmap(from, whole);
  if (error !== undefined) throw error;
}

function map(size: number, flags: number, fd: number, offset: bigint, what: string): Mapping {
  const address = libc.mmap(0n, BigInt(size), READ_WRITE, flags, fd, offset);
  if (address === MAP_FAILED) throw lastError(what);
  let buffer = Deno.UnsafePointerView.getArrayBuffer(Deno.UnsafePointer.create(address)!, size);
  let mapped = true;
  return {
    address,
    get buffer() {
      return buffer;
    },
    size,
    [Symbol.dispose]() {
      if (!mapped) return;
      mapped = false;
      buffer = buffer.transfer(0);
      // What cannot be unmapped stays: whose memory it is may be a peer, and nobody else is to end with it.
      libc.munmap(address, BigInt(size));
    },
  };
}
