/**
 * What files processes of this host use, as far as this user may look: for lines that say who is in the
 * way. Whatever cannot be read is left out.
 *
 * Source: proc_pid_maps(5), proc_pid_fdinfo(5).
 */

import { Fd, fileIdentity, fileStatus, inodeNumber, O_CLOEXEC } from "./fd.ts";
import { cString, libc } from "./libc.ts";
import { directoryNames, readText } from "./sysfs.ts";

const textOf = (path: string) => readText(path) ?? "";

/** A file that a process has mapped. */
export interface MappedFile {
  /** Equal for equal files, whatever their name. */
  readonly identity: string;
  readonly path: string;
}

/** The files that a process has mapped; 0 is nobody, "self" this one. */
export function mappedFiles(pid: number | "self"): MappedFile[] {
  // address permissions offset device inode path
  const line = /^\S+ \S+ \S+ (\S+ [1-9]\d*) +(\/.*)$/gm;
  const found = textOf(`/proc/${pid}/maps`).matchAll(line);
  return [...found].map(([, identity, path]) => ({ identity: identity!, path: path! }));
}

/** 3000 mappings, several times as many as QEMU has. A peer may have 65530, and have us look again and again. */
const MAX_MAPS = 1 << 18;

/**
 * Does a process have a file mapped at this address for itself alone, so that nobody else sees what it writes there?
 * False where we may not look, and for one with more than {@link MAX_MAPS} of text in front of that.
 */
export function mapsPrivately(pid: number, fd: Fd, address: number): boolean {
  const inode = inodeNumber(fd).toString();
  const line = /^([\da-f]+)-([\da-f]+) ...(.) \S+ \S+ (\d+)/gm;
  const maps = readText(`/proc/${pid}/maps`, MAX_MAPS) ?? "";
  return [...maps.matchAll(line)].some(([, from, to, share, of]) =>
    share === "p" && of === inode && parseInt(from!, 16) <= address && address < parseInt(to!, 16)
  );
}

/** The file that this process has mapped at an address, by its fileIdentity, and where in it that is; undefined where there is none. */
export function fileAt(address: number): { identity: string; offset: number } | undefined {
  // address permissions offset device inode path
  const line = /^([\da-f]+)-([\da-f]+) \S+ ([\da-f]+) ([\da-f]+):([\da-f]+) ([1-9]\d*) /gm;
  for (const [, ...fields] of textOf("/proc/self/maps").matchAll(line)) {
    const [from, to, offset, major, minor] = fields.map((field) => parseInt(field, 16));
    if (address < from! || address >= to!) continue;
    // As makedev has them.
    const device = BigInt(major!) << 8n | BigInt(minor! & 0xff) | BigInt(minor! >> 8) << 20n;
    return { identity: `${device}:${fields[5]}`, offset: offset! + address - from! };
  }
  return undefined;
}

/** The process that has a lock on this byte of a file, or undefined. */
export function lockHolder(fd: Fd, byte: number): number | undefined {
  const inode = fileIdentity(fd).split(":")[1];
  const lock = new RegExp(`^lock:.* OFDLCK .*:${inode} ${byte} ${byte}$`, "m");
  const ids = directoryNames("/proc").filter((name) => /^\d+$/.test(name));
  const holds = (id: string) => {
    try {
      const directory = `/proc/${id}/fdinfo`;
      return directoryNames(directory).some((name) => lock.test(textOf(`${directory}/${name}`)));
    } catch {
      // Another user's, or it has just ended.
      return false;
    }
  };
  const id = ids.find(holds);
  return id === undefined ? undefined : Number(id);
}

const O_NOCTTY = 0o400, O_NONBLOCK = 0o4000;

/** Opens a file to be read from, whatever it is: neither a pipe nor a terminal is waited for. */
export function openToRead(path: string): Fd | undefined {
  const number = libc.open(cString(path), O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);
  return number < 0 ? undefined : new Fd(number);
}

/**
 * Opens a file that a process has open, though it may have no name any more: by its fileIdentity. Which it is is told by
 * texts of the kernel's, of 5.14 and later: a look at other files could wait for a server of theirs.
 *
 * @param first where to look first, a process's number
 */
export function openFileOf(identity: string, first: number): Fd | undefined {
  const ino = new RegExp(`^ino:\\t${identity.split(":")[1]}$`, "m");
  const others = directoryNames("/proc").filter((name) => /^\d+$/.test(name));
  for (const id of [String(first), ...others]) {
    let names: string[] = [];
    try {
      names = directoryNames(`/proc/${id}/fdinfo`);
    } catch {
      // Another user's, or it has just ended.
    }
    for (const name of names) {
      if (!ino.test(textOf(`/proc/${id}/fdinfo/${name}`))) continue;
      const fd = openToRead(`/proc/${id}/fd/${name}`);
      if (fd === undefined) continue;
      if (fileIdentity(fd) === identity && fileStatus(fd).kind === "file") return fd;
      fd[Symbol.dispose]();
    }
  }
  return undefined;
}

const SYS_GETTID = Deno.build.arch === "x86_64" ? 186n : 178n;

/** The number of the calling thread, as its directory below /proc/self/task is called. */
export function threadId(): number {
  return libc.syscall(SYS_GETTID, 0n, 0n);
}
