/**
 * Files of our own in directories that others may write: /dev/shm, /tmp, whatever an option names.
 *
 * Whoever may make files there can put one in our place: a link to a file that we are allowed to write and they are
 * not, a file of theirs that they cut off while we have it mapped (SIGBUS), a pipe, a device. So there is one way
 * to open such a file. What is not there is made, with O_EXCL and for nobody else. What is there is opened
 * without following a link and without waiting, and has to be ours: a file of the kind that was meant, with this
 * user as its owner, one name, and nobody else allowed to write it. It keeps its size, unless it is empty: then
 * somebody who starts at the same time as we do has just made it.
 *
 * Below /dev, /sys and /proc (another process's descriptors) only root makes names, so where a device is meant what
 * is there is the system's.
 *
 * Others get at it where options say so: `group=` and `mode=` of a socket hold for its files too, and
 * `owner=` names the user whose file it is. They can cut it off then; docs/security.md says so.
 */

import { allocate } from "./arena.ts";
import { linuxErrno, VmsgError } from "./errors.ts";
import {
  Fd,
  fileSize,
  type FileStatus,
  fileStatus,
  O_CLOEXEC,
  O_CREAT,
  O_RDWR,
  openFile,
  reserveFile,
  unlinkFile,
} from "./fd.ts";
import { check, cString, errno, lastError, libc } from "./libc.ts";

const O_EXCL = 0o200;
const O_NOCTTY = 0o400;
const O_NONBLOCK = 0o4000;
/** Of open: a link is not followed. */
export const O_NOFOLLOW: number = Deno.build.arch === "x86_64" ? 0o400000 : 0o100000;
const ENOENT = linuxErrno("ENOENT");
const EEXIST = linuxErrno("EEXIST");
const ELOOP = linuxErrno("ELOOP");
/** Of a file that somebody else makes and removes in between. */
const ATTEMPTS = 8;
const KEEP_OWNER = 0xffff_ffff;

/** Who besides this user may use a socket or a file. */
export interface Access {
  /** Permissions; 0600 unless given, 0660 with a group. */
  readonly mode?: number | undefined;
  /** The number of a group that it is given to. */
  readonly group?: number | undefined;
}

/** What may be at a path. */
export interface OwnFileOptions extends Access {
  /** For messages, as in "queue file". */
  readonly what: string;
  /** The number of the user whose file it is, if it is not this one's. */
  readonly owner?: number | undefined;
  /** A named pipe will do as well. */
  readonly mayBePipe?: boolean;
  /** Below /dev, /sys and /proc whatever is there will do. */
  readonly mayBeDevice?: boolean;
  /** "never": it has to be there; "always": it must not be, EEXIST if it is; otherwise it is made if need be. */
  readonly make?: "never" | "always";
}

/** A file that was opened. */
export interface OwnFile {
  /** For reading and writing, for the caller to own. */
  readonly fd: Fd;
  /** It was not there. */
  readonly isNew: boolean;
}

/** See {@link Access.mode}. */
export function modeOf({ mode, group }: Access): number {
  return mode ?? (group === undefined ? 0o600 : 0o660);
}

/** Gives an open file, also one of which only the path is open, its group and mode. */
export function giveAccess(fd: Fd, access: Access, mask: number, what: string): void {
  const { mode, group } = fileStatus(fd);
  const path = cString(`/proc/self/fd/${fd.number}`);
  if (access.group !== undefined && access.group !== group) {
    check(libc.chown(path, KEEP_OWNER, access.group), `give ${what} to group ${access.group}`);
  }
  const wanted = modeOf(access) & mask;
  if (wanted !== mode) check(libc.chmod(path, wanted), `set the mode of ${what}`);
}

/** Does it lead to a directory in which only root makes files? */
export function isSystemPath(path: string): boolean {
  return /^\/(dev\/(?!shm\/|hugepages\/|mqueue\/)|sys\/|proc\/)/.test(path);
}

/**
 * Opens a file, or makes it.
 *
 * @throws VmsgError FOREIGN_FILE if what is there is not to be used, or a LinuxError
 */
export function openOwnFile(path: string, options: OwnFileOptions): OwnFile {
  if (options.mayBeDevice && isSystemPath(path)) {
    return { fd: openFile(path, O_NONBLOCK), isNew: false };
  }
  const { make, what } = options;
  const name = `${what} ${path}`;
  for (let attempt = 1;; attempt++) {
    using stack = new DisposableStack();
    // Neither a pipe nor a device is waited for.
    const flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
    const number = make === "always" ? -1 : libc.open(cString(path), flags, 0);
    if (number >= 0) {
      const fd = stack.use(new Fd(number));
      const status = fileStatus(fd);
      const problem = problemOf(status, options);
      if (problem !== undefined) throw foreign(name, problem);
      // One that was made before others were to have it.
      const isGiven = options.mode !== undefined || options.group !== undefined;
      if (isGiven && status.owner === libc.geteuid()) giveAccess(fd, options, 0o666, name);
      stack.move();
      return { fd, isNew: false };
    }
    const reason = make === "always" ? ENOENT : errno();
    if (reason === ELOOP) throw foreign(name, "is a symbolic link: name the file itself");
    if (reason !== ENOENT || make === "never") throw lastError(`open ${path}`);
    const made = libc.open(cString(path), O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0o600);
    if (made >= 0) {
      const fd = stack.use(new Fd(made));
      giveAccess(fd, options, 0o666, name);
      stack.move();
      return { fd, isNew: true };
    }
    if (errno() !== EEXIST || attempt === ATTEMPTS || make === "always") {
      throw lastError(`open ${path}`);
    }
  }
}

/**
 * The same of a file that has `size` bytes, with room for all of them (see {@link reserveFile}).
 *
 * @throws VmsgError FOREIGN_FILE, FILE_SIZE, or ENOSPC and its kind
 */
export function openOwnFileOf(size: number, path: string, options: OwnFileOptions): Fd {
  const { fd, isNew } = openOwnFile(path, options);
  const name = `${options.what} ${path}`;
  using stack = new DisposableStack();
  stack.use(fd);
  const before = fileSize(fd);
  if (before !== size && before !== 0) throw wrongSize(name, before, size);
  try {
    reserveFile(fd, name, size);
  } catch (error) {
    if (isNew) unlinkFile(path);
    throw error;
  }
  // Some file systems, as that of huge pages, round it.
  const after = fileSize(fd);
  if (after !== size) throw wrongSize(name, after, size);
  stack.move();
  return fd;
}

function wrongSize(name: string, is: number, wanted: number): VmsgError {
  const advice = "give its size, remove it or name another file";
  return new VmsgError("FILE_SIZE", `${name} has ${is} bytes, not ${wanted}: ${advice}`);
}

function foreign(name: string, problem: string): VmsgError {
  return new VmsgError("FOREIGN_FILE", `${name} ${problem}`);
}

function problemOf(status: FileStatus, options: OwnFileOptions): string | undefined {
  const { kind, owner, group, links, mode } = status;
  if (kind !== "file" && !(kind === "pipe" && options.mayBePipe)) {
    return `is no file${options.mayBePipe ? " and no pipe" : ""}: remove it or name another`;
  }
  const self = libc.geteuid();
  const isOurs = owner === (options.owner ?? self) ||
    (options.group !== undefined && group === options.group);
  if (!isOurs) {
    return `belongs to user ${owner}, not to ${options.owner ?? self}: remove it or name another`;
  }
  if (links !== 1) return `has ${links} names (hard links): remove it or name another`;
  const others = mode & 0o022 & ~modeOf(options);
  if (others === 0) return undefined;
  const who = (others & 0o002) !== 0 ? "everybody" : "its group";
  return `can be written by ${who}: chmod go-w it, if that is not meant`;
}

const chunk = allocate(4096);

/** Replaces a file as a whole: whoever reads it finds the former text or this one, also after a SIGKILL. */
export function replaceFile(path: string, text: string): void {
  const unfinished = `${path}.new`;
  unlinkFile(unfinished);
  using fd = openOwnFile(unfinished, { what: "file", make: "always" }).fd;
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) {
    const part = bytes.subarray(at, at + chunk.bytes.length);
    chunk.bytes.set(part);
    at += check(libc.write(fd.number, chunk.address, part.length), `write ${unfinished}`);
  }
  check(libc.rename(cString(unfinished), cString(path)), `rename ${unfinished} to ${path}`);
}
