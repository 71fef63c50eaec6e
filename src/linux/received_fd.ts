/**
 * A descriptor that a peer sent. It may be of any file, and most calls on a file of the peer's own making wait for
 * the peer: on FUSE reading, fstat, epoll_ctl and even close(2) do; on a socket with SO_LINGER, close. So its kind is
 * found out by what no file system is asked for: the name and mount in /proc, the seals, the options of a socket.
 * One that is none of the kinds we use is closed by a thread of Deno's pool; {@link mayReceive} bounds how
 * many can be stuck there.
 *
 * Nor are a description's flags ours: the peer shares them, and clears O_NONBLOCK when it likes (peer_event.ts).
 */

import { allocate } from "./arena.ts";
import { Fd, fileSeals, isRegularFile } from "./fd.ts";
import { cString, libc } from "./libc.ts";
import { readText } from "./sysfs.ts";

/** What a descriptor is; "other" is nothing we work with. */
export type FdKind =
  | "eventfd"
  /** A memfd, or a file on tmpfs, hugetlbfs or a disk of this machine. */
  | "memory"
  | "unix stream socket"
  | "other";

const MAX_NAME = 256;
const name = allocate(MAX_NAME);

/** What /proc calls it: a path, or as in "anon_inode:[eventfd]", which no path looks like. */
export function nameOf(number: number): string {
  const length = libc.readlink(cString(`/proc/self/fd/${number}`), name.address, MAX_NAME);
  return new TextDecoder().decode(name.bytes.slice(0, Math.max(0, length)));
}

const F_GETFL = 3;
const O_PATH = 0o10000000;
const SOL_SOCKET = 1;
const SO_TYPE = 3;
const SO_DOMAIN = 39;
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const option = allocate(8);

function socketOption(number: number, which: number): number {
  option.view.setInt32(4, 4, true);
  const length = option.address + 4n;
  const result = libc.getsockopt(number, SOL_SOCKET, which, option.address, length);
  return result < 0 ? -1 : option.view.getInt32(0, true);
}

/** File systems that ask no process and no other machine for a page. */
const LOCAL = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "overlay"];

/** User-Mode Linux's memory is one where TMPDIR is no tmpfs. A mount that we do not see may stand on anything. */
function isLocalFile(fd: Fd): boolean {
  const information = readText(`/proc/self/fdinfo/${fd.number}`) ?? "";
  const mount = /^mnt_id:\s*(\d+)$/m.exec(information)?.[1];
  const mounts = (readText("/proc/self/mountinfo") ?? "").split("\n");
  const type = / - (\S+) /.exec(mounts.find((line) => line.startsWith(`${mount} `)) ?? "")?.[1];
  return type !== undefined && LOCAL.includes(type) && isRegularFile(fd);
}

/** See the head of this file; never waits for anybody. */
export function kindOf(fd: Fd): FdKind {
  const { number } = fd;
  // Such a descriptor names a file and does not open it.
  if ((libc.fcntl(number, F_GETFL, 0n) & O_PATH) !== 0) return "other";
  if (fileSeals(fd) !== undefined) return "memory";
  const link = nameOf(number);
  if (link === "anon_inode:[eventfd]") return "eventfd";
  if (link.startsWith("/") && isLocalFile(fd)) return "memory";
  const isUnix = socketOption(number, SO_DOMAIN) === AF_UNIX;
  return isUnix && socketOption(number, SO_TYPE) === SOCK_STREAM ? "unix stream socket" : "other";
}

/** For people: its kind, or the name of what is no kind of ours. */
export function describeFd(fd: Fd): string {
  const kind = kindOf(fd);
  return kind === "other" ? nameOf(fd.number) || "of no known kind" : kind;
}

/** Closes that may wait for ever, each in a thread; the next ones wait for those. */
const MAX_CLOSING = 8;
/** Descriptors that are not closed yet, when no more are received. */
const MAX_STUCK = 64;
let closing = 0;
const waiting: number[] = [];
const pending = new Set<Promise<void>>();

/** False while so many descriptors cannot be closed that a message must bring no more. */
export function mayReceive(): boolean {
  return closing + waiting.length < MAX_STUCK;
}

/** Closes a descriptor that was released, in another thread. */
export function closeElsewhere(number: number): void {
  if (closing === MAX_CLOSING) return void waiting.push(number);
  closing++;
  const closed: Promise<void> = libc.close_elsewhere(number).then(() => {
    closing--;
    pending.delete(closed);
    const next = waiting.shift();
    if (next !== undefined) closeElsewhere(next);
  });
  pending.add(closed);
}

/** Resolves when none is being closed any more, in Deno's own loop and not in a reactor's. */
export async function allClosed(): Promise<void> {
  while (pending.size > 0) await Promise.all(pending);
}

/** Owns a descriptor that a peer sent. */
export class ReceivedFd extends Fd {
  protected override close(): void {
    if (kindOf(this) === "other") closeElsewhere(this.number);
    else super.close();
  }
}
