/**
 * The file or block device behind a disk: what it is, and that nobody else writes to it.
 *
 * Locks are those of QEMU and its tools (block/file-posix.c), so that each refuses what the other has: a shared lock on byte
 * 100 + n for what one does, on byte 200 + n for what one does not let others do, n being 0 for reading, 1 for
 * writing, 3 for changing the size. A look at the others' bytes follows. The kernel drops the locks with the
 * last descriptor, so also when this process is killed; what it had asked of the disk is finished before, and
 * a successor waits a moment for that.
 */

import { allocate } from "../../linux/arena.ts";
import { errnoName, linuxErrno, LinuxError, VmsgError } from "../../linux/errors.ts";
import {
  Fd,
  fileSize,
  fileStatus,
  isByteTaken,
  O_CLOEXEC,
  O_RDWR,
  openPath,
  shareByte,
} from "../../linux/fd.ts";
import { cString, errno, libc } from "../../linux/libc.ts";
import { softLimit } from "../../linux/limits.ts";
import { SECTOR } from "../../virtio/blk.ts";

const [DOES, DENIES] = [100n, 200n];
const [READ, WRITE, RESIZE] = [0n, 1n, 3n];
/** How long what a predecessor had asked of the disk may take, and how often is looked. */
const PATIENCE_MS = 2000;
const LOOK_MS = 50;

/** fallocate(2), without changing the file's size: give room back, or have it and zeros there. */
const KEEP_SIZE = 1;
export const PUNCH_HOLE = 2 | KEEP_SIZE;
const ZERO_RANGE = 16 | KEEP_SIZE;
const PROBE_BYTES = 1 << 20;

/** linux/fs.h */
const BLKSSZGET = 0x1268n;
const BLKPBSZGET = 0x127bn;
const number = allocate(4);

/** What to open. */
export interface DiskOptions {
  readonly path: string;
  /** Is nothing ever written to it? */
  readonly readonly: boolean;
  /** How long to wait for a lock, {@link PATIENCE_MS} unless given. */
  readonly patienceMs?: number;
}

/** See the head of this file. */
export class Disk implements Disposable {
  readonly fd: Fd;
  /** Whole sectors of 512 bytes, as many as there were when the size was last looked at. */
  sectors: number;
  /** In bytes: what is written in one piece at least, and what the medium has. */
  readonly blockSize: number;
  readonly physicalBlockSize: number;
  /** Can room be given back? Then zeros can be made, too. A device says when it is asked. */
  readonly punches: boolean;
  /** The mode of fallocate(2) that makes zeros. */
  zeroMode = ZERO_RANGE;

  /** @throws VmsgError for a file that is none, cannot be opened, or is in use */
  constructor(readonly options: DiskOptions) {
    const { readonly } = options;
    using stack = new DisposableStack();
    this.fd = stack.use(open(options));
    lockOrWait(this.fd, options);
    this.sectors = this.#measure();
    const isDevice = fileStatus(this.fd).kind === "block device";
    this.blockSize = isDevice ? deviceNumber(this.fd, BLKSSZGET, SECTOR) : SECTOR;
    // Of a file, what file systems have: a part of a block is read before it is written.
    this.physicalBlockSize = isDevice ? deviceNumber(this.fd, BLKPBSZGET, SECTOR) : 4096;
    this.punches = !readonly && (isDevice || canPunch(this.fd));
    stack.move();
  }

  #measure(): number {
    const { path, readonly } = this.options;
    const sectors = Math.floor(fileSize(this.fd) / SECTOR);
    if (sectors === 0) {
      throw new VmsgError(
        "DISK",
        `${path} is empty: give it the size of the disk (truncate -s 1G)`,
      );
    }
    const limit = softLimit("file size");
    if (!readonly && sectors * SECTOR > limit) {
      // Not refused by the kernel: the signal would end this process.
      throw new VmsgError("DISK", `${path}: files are limited to ${limit} bytes (ulimit -f)`);
    }
    return sectors;
  }

  /**
   * Looks at the size again, which whoever has the file may have changed.
   *
   * @returns whether it is another one
   * @throws VmsgError for one that no disk has; then it stays as it was
   */
  refresh(): boolean {
    const before = this.sectors;
    this.sectors = this.#measure();
    return this.sectors !== before;
  }

  /**
   * What {@link zeroMode} was cannot be done: a file system that can punch holes (tmpfs) has zeros there as well, and
   * no room for what is written later. @returns false if that is known already
   */
  punchesForZeroes(): boolean {
    if (this.zeroMode === PUNCH_HOLE) return false;
    this.zeroMode = PUNCH_HOLE;
    return true;
  }

  [Symbol.dispose](): void {
    this.fd[Symbol.dispose]();
  }
}

/** Is tried behind the file's end, where nothing changes. */
function canPunch(fd: Fd): boolean {
  const end = Math.ceil(fileSize(fd) / PROBE_BYTES) * PROBE_BYTES;
  return libc.fallocate(fd.number, PUNCH_HOLE, BigInt(end), BigInt(PROBE_BYTES)) >= 0;
}

function open({ path, readonly }: DiskOptions): Fd {
  using found = openPath(path);
  const problem = (what: string) => new VmsgError("DISK", `disk ${path}: ${what}`);
  // Another kind might block whoever opens it.
  const kind = found && fileStatus(found).kind;
  if (kind !== undefined && kind !== "file" && kind !== "block device") {
    throw problem("it is neither a file nor a block device");
  }
  const opened = libc.open(cString(path), (readonly ? 0 : O_RDWR) | O_CLOEXEC, 0);
  if (opened >= 0) return new Fd(opened);
  const code = errnoName(errno());
  const mayRead = ["EACCES", "EPERM", "EROFS"].includes(code) && !readonly;
  throw problem(`cannot be opened (${code})${mayRead ? "; readonly needs less" : ""}`);
}

/** Where there are no locks (an old network file system) nobody else can have any. */
const NO_LOCKS = ["EINVAL", "ENOLCK", "EOPNOTSUPP", "ENOSYS"].map(linuxErrno);

function lockOrWait(fd: Fd, options: DiskOptions): void {
  try {
    const { readonly, patienceMs = PATIENCE_MS } = options;
    for (const act of readonly ? [READ] : [READ, WRITE]) shareByte(fd, DOES + act);
    for (const act of [WRITE, RESIZE]) shareByte(fd, DENIES + act);
    for (let waitedMs = 0; isTaken(fd, options); waitedMs += LOOK_MS) {
      if (waitedMs >= patienceMs) {
        throw new VmsgError(
          "DISK_IN_USE",
          `disk ${options.path} is in use by another process, which ` +
            (readonly ? "writes to it" : "reads or writes it") + ": end that one first",
        );
      }
      libc.poll(0n, 0n, LOOK_MS);
    }
  } catch (error) {
    if (!(error instanceof LinuxError && NO_LOCKS.includes(error.errno))) throw error;
  }
}

function isTaken(fd: Fd, { readonly }: DiskOptions): boolean {
  const bytes = [DOES + WRITE, DOES + RESIZE, DENIES + READ, ...readonly ? [] : [DENIES + WRITE]];
  return bytes.some((byte) => isByteTaken(fd, byte));
}

function deviceNumber(fd: Fd, request: bigint, otherwise: number): number {
  return libc.ioctl(fd.number, request, number.address) < 0
    ? otherwise
    : number.view.getUint32(0, true);
}
