/**
 * The file that a process's counters are in: made, removed, cleaned up after others, read.
 *
 * It is `SUBCOMMAND.PID` in `$XDG_RUNTIME_DIR/vmsg`, or else in `/run/vmsg`. A process that ends removes it,
 * one that crashes leaves it behind to be read. The next one that starts removes what dead processes
 * left, but for the newest {@link KEPT}. Where neither directory can be written there is no file, and counters
 * count in memory of their own.
 *
 * The directory has to be ours and nobody else's to write, so that no other user can put a symbolic link or a
 * file in our way; the file has mode 0600. It is written in full before it is mapped: a hole that a full
 * file system cannot fill would end the process at a `++`, with SIGBUS.
 *
 * What is read is believed no more than a peer is: the kind of file, its owner and size are looked at, it is
 * copied (a mapping could be cut short under us), and every count and offset in it is checked.
 */

import { dateMs } from "../linux/clock.ts";
import { VmsgError } from "../linux/errors.ts";
import { openFile, unlinkFile } from "../linux/fd.ts";
import { mapShared } from "../linux/mapping.ts";
import { COUNTER_SIZE, CounterMemory, countIn, HEADER_SIZE, MAGIC, VERSION } from "./counters.ts";

/** Bytes of a file: about 150 groups. */
const FILE_SIZE = 65536;
/** Files of dead processes that are left to be read. */
const KEPT = 8;
/** Entries of the directory that are looked at. */
const MAX_ENTRIES = 1024;
/** Workers of one process with the same subcommand. */
const MAX_SAME = 16;
/** How often a file is read until it is the same twice. */
const MAX_READS = 4;

/** A process's counters; dispose removes the file. */
export interface CounterFile extends Disposable {
  /** Undefined if the counters are in no file. */
  readonly path: string | undefined;
}

/** Where the files may be, the first that can be written is used. */
export function counterDirectories(): string[] {
  const runtime = Deno.env.get("XDG_RUNTIME_DIR") ?? "";
  return runtime.startsWith("/") ? [`${runtime}/vmsg`, "/run/vmsg"] : ["/run/vmsg"];
}

/**
 * Makes the file, and counts in it from now on. To be called by the thread that moves data, before it makes
 * anything that counts; what it counts stays readable until the file is disposed.
 *
 * @param subcommand small letters and "-"
 */
export function openCounterFile(
  subcommand: string,
  directories: readonly string[] = counterDirectories(),
): CounterFile {
  for (const directory of directories) {
    if (!isOurs(directory)) continue;
    cleanUp(directory);
    const made = create(directory, subcommand);
    if (made !== undefined) return made;
  }
  return { path: undefined, [Symbol.dispose]: () => {} };
}

/** Makes the directory if there is none; false if it is not ours alone. */
function isOurs(directory: string): boolean {
  try {
    Deno.mkdirSync(directory, { mode: 0o700 });
  } catch {
    // It is there, or it is not going to be: what is there counts.
  }
  try {
    const { isDirectory, uid, mode } = Deno.lstatSync(directory);
    return isDirectory && uid === Deno.uid() && (mode! & 0o022) === 0;
  } catch {
    return false;
  }
}

function create(directory: string, subcommand: string): CounterFile | undefined {
  for (let n = 1; n <= MAX_SAME; n++) {
    const path = `${directory}/${subcommand}.${Deno.pid}${n > 1 ? `.${n}` : ""}`;
    try {
      using file = Deno.openSync(path, { write: true, createNew: true, mode: 0o600 });
      const zeros = new Uint8Array(FILE_SIZE);
      for (let done = 0; done < zeros.length;) done += file.writeSync(zeros.subarray(done));
      using fd = openFile(path);
      const mapping = mapShared(fd.number, FILE_SIZE);
      countIn(new CounterMemory(mapping.buffer, subcommand, Deno.pid, dateMs()));
      const close = () => {
        countIn(undefined);
        mapping[Symbol.dispose]();
        unlinkFile(path);
      };
      return { path, [Symbol.dispose]: close };
    } catch (error) {
      if (error instanceof Deno.errors.AlreadyExists) continue;
      // A full file system, or no permission: nobody is to go without a network for want of counters.
      unlinkFile(path);
      return undefined;
    }
  }
  return undefined;
}

/** Removes what processes that are gone left behind, but for the newest. */
function cleanUp(directory: string): void {
  const dead: { path: string; at: number }[] = [];
  let entries = 0;
  try {
    for (const { name, isFile } of Deno.readDirSync(directory)) {
      if (++entries > MAX_ENTRIES) break;
      const pid = /^[a-z-]+\.(\d+)(\.\d+)?$/.exec(name)?.[1];
      if (!isFile || pid === undefined || isRunning(Number(pid))) continue;
      const path = `${directory}/${name}`;
      dead.push({ path, at: Deno.lstatSync(path).mtime?.getTime() ?? 0 });
    }
  } catch {
    // Another one cleans up at the same time, which is as good.
  }
  dead.sort((a, b) => b.at - a.at);
  for (const { path } of dead.slice(KEPT)) unlinkFile(path);
}

/** Whether there is a process of this number: it may be another one than that which wrote a file. */
export function isRunning(pid: number): boolean {
  try {
    Deno.statSync(`/proc/${pid}`);
    return true;
  } catch {
    return false;
  }
}

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
 * @throws VmsgError COUNTERS with what is wrong with the file
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

function readFile(path: string): Uint8Array {
  try {
    const { isFile, uid, ino, dev } = Deno.lstatSync(path);
    if (!isFile) refuse(path, "not a file of counters");
    if (uid !== Deno.uid() && Deno.uid() !== 0) refuse(path, `belongs to user ${uid}`);
    using file = Deno.openSync(path);
    const opened = file.statSync();
    // What a symbolic link that took the file's place leads to is another file.
    if (opened.ino !== ino || opened.dev !== dev) refuse(path, "was replaced");
    const bytes = new Uint8Array(Math.min(opened.size, FILE_SIZE));
    return bytes.subarray(0, file.readSync(bytes) ?? 0);
  } catch (error) {
    if (error instanceof VmsgError) throw error;
    return refuse(path, error instanceof Error ? error.message : String(error));
  }
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
