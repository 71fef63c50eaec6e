/**
 * Reads the file that a process's counters are in, of one that runs or of one that is gone.
 *
 * What is read is believed no more than a peer is: the kind of file, its owner and size are looked at, it is
 * copied (a mapping could be cut short under us), and every count and offset in it is checked.
 */

import { allocate } from "../linux/arena.ts";
import { linuxErrno, VmsgError } from "../linux/errors.ts";
import { Fd, fileStatus, O_CLOEXEC } from "../linux/fd.ts";
import { check, cString, errno, libc } from "../linux/libc.ts";
import { O_NOFOLLOW } from "../linux/own_file.ts";
import { openToRead } from "../linux/process_files.ts";
import { FILE_SIZE } from "./counter_file.ts";
import { COUNTER_SIZE, HEADER_SIZE, MAGIC, VERSION } from "./counters.ts";

/** Neither a pipe nor a device is waited for. */
const O_NOCTTY = 0o400, O_NONBLOCK = 0o4000;
const ELOOP = linuxErrno("ELOOP");

/** How often a file is read until it is the same twice. */
const MAX_READS = 4;

/** The counters of one process as they were read. */
export interface ReadCounters {
  readonly subcommand: string;
  readonly pid: number;
  /** When it began to count, in milliseconds since 1970. */
  readonly startMs: number;
  /** Changes with the set of groups. */
  readonly generation: number;
  readonly groups: readonly ReadGroup[];
}

/** One group as it was read; its counters are in the order of their shape. Texts are printable ASCII. */
export interface ReadGroup {
  readonly kind: string;
  readonly name: string;
  readonly counters: readonly { readonly name: string; readonly value: number }[];
}

/**
 * Reads a process's counters, of one that runs or of one that is gone.
 *
 * @throws VmsgError COUNTERS with what is wrong with the file, or that it cannot be opened
 */
export function readCounters(path: string): ReadCounters {
  let before = parse(path, readFile(path));
  for (let reads = 1; reads < MAX_READS; reads++) {
    const after = parse(path, readFile(path));
    if (isSteady(before, after)) return after;
    before = after;
  }
  // A process that changes its groups as fast as we read: what was read last is whole, group by group.
  return before;
}

/** Whether nothing moved between two reads but values, and those forward and by less than a carry. */
function isSteady(before: ReadCounters, after: ReadCounters): boolean {
  if (before.generation !== after.generation) return false;
  return after.groups.every(({ counters }, g) =>
    counters.every(({ value }, n) => {
      const grown = value - (before.groups[g]?.counters[n]?.value ?? Infinity);
      return grown >= 0 && grown < 2 ** 31;
    })
  );
}

function refuse(path: string, what: string): never {
  throw new VmsgError("COUNTERS", `${path}: ${what}`);
}

const block = allocate(FILE_SIZE);

/** A copy of the file, as far as one of ours can be long. */
function readFile(path: string): Uint8Array {
  const flags = O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK;
  const number = libc.open(cString(path), flags, 0);
  if (number < 0 && errno() === ELOOP) refuse(path, "not a file of counters but a link");
  using fd = new Fd(check(number, `open ${path}`));
  const { kind, owner } = fileStatus(fd);
  if (kind !== "file") refuse(path, "not a file of counters");
  const self = libc.geteuid();
  if (owner !== self && self !== 0) refuse(path, `belongs to user ${owner}`);
  const size = check(libc.pread(fd.number, block.address, FILE_SIZE, 0n), `read ${path}`);
  return block.bytes.slice(0, size);
}

/** Does a file begin as one of ours does? */
export function isCounterFile(path: string): boolean {
  using fd = openToRead(path);
  if (fd === undefined) return false;
  const size = libc.pread(fd.number, block.address, MAGIC.length, 0n);
  return size === MAGIC.length && textAt(block.bytes, 0, size) === MAGIC;
}

function parse(path: string, bytes: Uint8Array): ReadCounters {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < HEADER_SIZE || textAt(bytes, 0, 8) !== MAGIC) {
    refuse(path, "not a file of counters");
  }
  const version = view.getUint32(8, true);
  if (version !== VERSION) {
    refuse(path, `counters of version ${version}, this vmsg reads ${VERSION}`);
  }
  const end = Math.min(view.getUint32(28, true), bytes.length);
  const groups: ReadGroup[] = [];
  for (let at = HEADER_SIZE; at + HEADER_SIZE <= end;) {
    const count = view.getUint32(at, true);
    const next = at + HEADER_SIZE + COUNTER_SIZE * count;
    // Where a file was cut off, or somebody else wrote it, what came before is still shown.
    if (next > end) break;
    if (view.getUint32(at + 4, true) === 1) groups.push(groupAt(view, bytes, at, count));
    at = next;
  }
  return {
    subcommand: textAt(bytes, 32, 32),
    pid: view.getUint32(12, true),
    startMs: u64At(view, 16),
    generation: view.getUint32(24, true),
    groups,
  };
}

function groupAt(view: DataView, bytes: Uint8Array, at: number, count: number): ReadGroup {
  const counters = Array.from({ length: count }, (_, n) => {
    const from = at + HEADER_SIZE + COUNTER_SIZE * n;
    return { name: textAt(bytes, from + 8, 24), value: u64At(view, from) };
  });
  return { kind: textAt(bytes, at + 8, 16), name: textAt(bytes, at + 24, 40), counters };
}

function u64At(view: DataView, at: number): number {
  return view.getUint32(at, true) + 2 ** 32 * view.getUint32(at + 4, true);
}

/** A text up to its first zero; what a terminal would obey is shown as "?". */
function textAt(bytes: Uint8Array, at: number, size: number): string {
  const all = bytes.subarray(at, at + size);
  const end = all.indexOf(0);
  const text = String.fromCharCode(...(end < 0 ? all : all.subarray(0, end)));
  return text.replace(/[^ -~]/g, "?");
}
