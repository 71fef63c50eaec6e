/** File descriptors with an owner, and the files behind them. */

import { allocate } from "./arena.ts";
import { EAGAIN, linuxErrno, VmsgError } from "./errors.ts";
import { availableMemory, softLimit } from "./limits.ts";
import { check, cString, errno, lastError, libc, uninterrupted } from "./libc.ts";

export const O_RDWR = 0o2;
export const O_CREAT = 0o100;
export const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
const O_PATH = 0o10000000;

const F_SETFD = 2;
const FD_CLOEXEC = 1n;
const F_GETFL = 3;
const F_SETFL = 4;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const SEEK_END = 2;

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;

/** Seals of memfd_create(2): the file can neither shrink nor grow any more. */
export const F_SEAL_SHRINK = 0x0002;
export const F_SEAL_GROW = 0x0004;

/** An open file descriptor; dispose closes it, once. */
export class Fd implements Disposable {
  #number: number;

  /** Takes ownership of an open descriptor. */
  constructor(number: number) {
    if (!(number >= 0)) throw new Error(`not a file descriptor: ${number}`);
    this.#number = number;
  }

  /** The descriptor's number; throws once it is closed. */
  get number(): number {
    if (this.#number < 0) throw new Error("file descriptor used after it was closed");
    return this.#number;
  }

  /** Does the closing. */
  protected close(): void {
    libc.close(this.number);
  }

  /** Gives it to somebody else to close. */
  release(): number {
    const { number } = this;
    this.#number = -1;
    return number;
  }

  /** Closes it, if it is open. */
  [Symbol.dispose](): void {
    if (this.#number >= 0) this.close();
    this.#number = -1;
  }
}

/** A descriptor that somebody else closes, as one of another thread's. */
export class BorrowedFd extends Fd {
  protected override close(): void {}
}

/**
 * Opens a file for reading and writing.
 *
 * @param flags besides O_RDWR and O_CLOEXEC, e.g. {@link O_CREAT}
 * @param mode of a file that is created
 */
export function openFile(path: string, flags = 0, mode = 0o600): Fd {
  return new Fd(check(libc.open(cString(path), O_RDWR | O_CLOEXEC | flags, mode), `open ${path}`));
}

/** The size of an open file in bytes. */
export function fileSize(fd: Fd): number {
  const size = libc.lseek(fd.number, 0n, SEEK_END);
  return check(Number(size), `lseek fd ${fd.number}`);
}

const chunk = allocate(1 << 16);

/** Makes a text all that is in an open file. */
export function rewriteFile(fd: Fd, text: string, name: string): void {
  resizeFile(fd, 0, name);
  let rest = new TextEncoder().encode(text);
  while (rest.length > 0) {
    const piece = rest.subarray(0, chunk.bytes.length);
    chunk.bytes.set(piece);
    rest = rest.subarray(
      check(libc.write(fd.number, chunk.address, piece.length), `write ${name}`),
    );
  }
}

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** The parts of a file from `start` on that are not known to be zero, in bytes; reads none of them. */
export function* dataOf(fd: Fd, start: number): Generator<{ from: number; to: number }> {
  for (let to = start;;) {
    const from = Number(libc.lseek(fd.number, BigInt(to), SEEK_DATA));
    if (from < 0) return;
    to = Number(libc.lseek(fd.number, BigInt(from), SEEK_HOLE));
    yield { from, to };
  }
}

const SYS_FSTAT = Deno.build.arch === "x86_64" ? 5n : 80n;
// struct stat has 144 bytes on x86-64, 128 on arm64; both begin with u64 device, u64 inode
const stat = allocate(256);

/** Tells whether two descriptors show the same file: equal for equal files, whatever their name. */
export function fileIdentity(fd: { readonly number: number }): string {
  fillStat(fd);
  return `${stat.view.getBigUint64(0, true)}:${stat.view.getBigUint64(8, true)}`;
}

/** The number of a file in its file system. */
export function inodeNumber(fd: Fd): bigint {
  fillStat(fd);
  return stat.view.getBigUint64(8, true);
}

function fillStat(fd: { readonly number: number }): void {
  const result = libc.syscall(SYS_FSTAT, BigInt(fd.number), stat.address);
  check(result, `fstat fd ${fd.number}`);
}

// What follows device and inode. x86-64: u64 links, u32 mode, owner, group; arm64: u32 mode, links, owner, group
const [STAT_LINKS, STAT_MODE, STAT_OWNER, STAT_GROUP] = Deno.build.arch === "x86_64"
  ? [16, 24, 28, 32]
  : [20, 16, 24, 28];
/** struct timespec: s64 seconds, s64 nanoseconds. */
const STAT_MODIFIED = 88;
const S_IFMT = 0o170000;
/** By the type in the mode. */
const KINDS: Readonly<Record<number, FileStatus["kind"]>> = {
  0o010000: "pipe",
  0o040000: "directory",
  0o060000: "block device",
  0o100000: "file",
  0o140000: "socket",
};

/** What is at this path, to be looked at and not to be read; undefined if there is nothing. */
export function openPath(path: string, flags = 0): Fd | undefined {
  const number = libc.open(cString(path), O_PATH | O_CLOEXEC | flags, 0);
  return number < 0 ? undefined : new Fd(number);
}

/** Is there a socket at this path (and not another kind of file)? */
export function isSocketFile(path: string): boolean {
  using fd = openPath(path);
  return fd !== undefined && isSocket(fd);
}

/** Is this descriptor a socket? */
export function isSocket(fd: Fd): boolean {
  return fileStatus(fd).kind === "socket";
}

/** Is this descriptor a file that has a size (and not a device)? */
export function isRegularFile(fd: Fd): boolean {
  return fileStatus(fd).kind === "file";
}

/** Who may do what with a file. */
export interface FileStatus {
  readonly kind: "file" | "block device" | "directory" | "socket" | "pipe" | "other";
  /** The lower nine bits of its mode. */
  readonly mode: number;
  /** User and group, by number. */
  readonly owner: number;
  readonly group: number;
  /** How many names it has. */
  readonly links: number;
  /** The second of its last change. */
  readonly modified: number;
}

/** See {@link FileStatus}. */
export function fileStatus(fd: Fd): FileStatus {
  fillStat(fd);
  const { view } = stat;
  const mode = view.getUint32(STAT_MODE, true);
  return {
    kind: KINDS[mode & S_IFMT] ?? "other",
    mode: mode & 0o777,
    owner: view.getUint32(STAT_OWNER, true),
    group: view.getUint32(STAT_GROUP, true),
    links: view.getUint32(STAT_LINKS, true),
    modified: Number(view.getBigInt64(STAT_MODIFIED, true)),
  };
}

/** Sets the size of an open file in bytes; new bytes are zero, and have no room of their own yet. */
export function resizeFile(fd: Fd, size: number, name = `fd ${fd.number}`): void {
  assertMayGrow(name, size);
  check(libc.ftruncate(fd.number, BigInt(size)), `ftruncate ${name} to ${size} bytes`);
}

const NO_FALLOCATE = [linuxErrno("EOPNOTSUPP"), linuxErrno("ENOSYS")];

/** Where the kernel would not refuse, but end this process with SIGXFSZ. */
function assertMayGrow(name: string, size: number): void {
  const limit = softLimit("file size");
  if (size <= limit) return;
  throw new VmsgError(
    "EFBIG",
    `${name} needs ${size} bytes, files are limited to ${limit} (ulimit -f)`,
  );
}

/**
 * Makes sure that a part of a file has room in its file system, before it is mapped: an access to a mapped
 * page for which there is none ends the process with SIGBUS. A shorter file grows.
 *
 * @param name of the file, for messages
 * @param size of the part that begins at `offset`, both in bytes
 * @throws VmsgError ENOSPC and its kind, which names the file and says how much it needs
 */
export function reserveFile(fd: Fd, name: string, size: number, offset = 0): void {
  const before = fileSize(fd);
  const end = offset + size;
  if (end > before) assertMayGrow(name, end);
  const [from, length] = [BigInt(offset), BigInt(size)];
  if (uninterrupted(() => libc.fallocate(fd.number, 0, from, length)) >= 0) return;
  // A file system without it, which is none that is made for memory: what is new is written.
  if (NO_FALLOCATE.includes(errno()) && fillWithZeros(fd, before, end)) return;
  const { code } = lastError(name);
  throw new VmsgError(
    code,
    code === "ENOSPC" || code === "EDQUOT"
      ? `${name} needs ${size} bytes and its file system has no room (${code}): make room there`
      : `${name} has ${before} bytes and cannot be given ${end} (${code})`,
  );
}

const zeros = allocate(4096);

function fillWithZeros(fd: Fd, from: number, to: number): boolean {
  for (let at = from; at < to;) {
    const length = Math.min(zeros.bytes.length, to - at);
    const written = libc.pwrite(fd.number, zeros.address, length, BigInt(at));
    if (written <= 0) return false;
    at += written;
  }
  return true;
}

/** Removes a file; one that is not there is fine. */
export function unlinkFile(path: string): void {
  libc.unlink(cString(path));
}

/**
 * Makes an anonymous shared file of `size` bytes that can no longer change its size, so that a peer
 * who maps it cannot be killed by a truncation.
 *
 * @param name for /proc only
 */
export function createSealedMemory(name: string, size: number): Fd {
  const number = libc.memfd_create(cString(name), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  using stack = new DisposableStack();
  const fd = stack.use(new Fd(check(number, "memfd_create")));
  // Reserved now: a page that cannot be had at the first access ends this process, or a peer. Where memory
  // is short the kernel does not refuse, but ends some process.
  const available = availableMemory();
  if (size > available) {
    const problem = `needs ${size} bytes, and there are ${available} bytes left`;
    throw new VmsgError("ENOMEM", `memory ${name} ${problem}: give less`);
  }
  resizeFile(fd, size, `memory ${name}`);
  if (size > 0) reserveFile(fd, `memory ${name}`, size);
  const seals = BigInt(F_SEAL_SHRINK | F_SEAL_GROW);
  check(libc.fcntl(fd.number, F_ADD_SEALS, seals), "seal a memfd");
  stack.move();
  return fd;
}

/** The seals of a file, or undefined where its kind has none (a file in a file system). */
export function fileSeals(fd: Fd): number | undefined {
  const seals = libc.fcntl(fd.number, F_GET_SEALS, 0n);
  return seals < 0 ? undefined : seals;
}

/** Makes reads and writes of an open file description return EAGAIN instead of blocking. */
export function setNonBlocking(fd: Fd): void {
  const flags = check(libc.fcntl(fd.number, F_GETFL, 0n), "fcntl F_GETFL");
  check(libc.fcntl(fd.number, F_SETFL, BigInt(flags | O_NONBLOCK)), "fcntl F_SETFL");
}

/** Whether programs that this process starts get a descriptor; they do not unless told. */
export function setInherited(fd: Fd, inherited: boolean): void {
  check(libc.fcntl(fd.number, F_SETFD, inherited ? 0n : FD_CLOEXEC), "fcntl F_SETFD");
}

const pipeEnds = allocate(8);

/** Makes a pipe; neither end is inherited. */
export function openPipe(): { readonly read: Fd; readonly write: Fd } {
  check(libc.pipe2(pipeEnds.address, O_CLOEXEC), "pipe2");
  const [read, write] = [0, 4].map((at) => new Fd(pipeEnds.view.getInt32(at, true)));
  return { read, write };
}

// struct flock: s16 type, s16 whence, s64 start @8, s64 length @16, s32 pid @24
const flock = allocate(32);

function lockByte(fd: Fd, command: number, type: number, byte: number | bigint): boolean {
  flock.bytes.fill(0);
  flock.view.setInt16(0, type, true);
  flock.view.setBigInt64(8, BigInt(byte), true);
  flock.view.setBigInt64(16, 1n, true);
  const result = uninterrupted(() => libc.fcntl(fd.number, command, flock.address));
  if (result < 0 && errno() === EAGAIN) return false;
  check(result, `lock byte ${byte} of fd ${fd.number}`);
  return true;
}

/**
 * Takes an exclusive lock on one byte of a file for this open file description (F_OFD_SETLK). The
 * kernel drops it when the last descriptor is closed, also by SIGKILL.
 *
 * @returns false if somebody else holds it
 */
export function tryLockByte(fd: Fd, byte: number): boolean {
  return lockByte(fd, F_OFD_SETLK, F_WRLCK, byte);
}

/** Gives a lock of {@link tryLockByte} back. */
export function unlockByte(fd: Fd, byte: number): void {
  lockByte(fd, F_OFD_SETLK, F_UNLCK, byte);
}

/** Shares a byte of a file that may be open for reading only, as a directory: a lock that others see. */
export function shareByte(fd: Fd, byte: bigint): void {
  lockByte(fd, F_OFD_SETLK, F_RDLCK, byte);
}

/** Whether another open file description has locked or shared a byte. */
export function isByteTaken(fd: Fd, byte: bigint): boolean {
  lockByte(fd, F_OFD_GETLK, F_WRLCK, byte);
  return flock.view.getInt16(0, true) !== F_UNLCK;
}
