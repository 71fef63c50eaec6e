/**
 * Archives in the "new ASCII" cpio format, the one a Linux kernel unpacks as its initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst).
 *
 * The result depends on the entries only: every time stamp is 0, every owner is root, and inode
 * numbers count up from 1.
 */

/** One member of an archive. Paths are relative, as in "bin/busybox". */
export type CpioEntry =
  | { readonly kind: "directory"; readonly path: string; readonly mode?: number }
  | {
    readonly kind: "file";
    readonly path: string;
    readonly bytes: Uint8Array;
    /** Permission bits, 0o644 unless given. */
    readonly mode?: number;
  }
  | { readonly kind: "symlink"; readonly path: string; readonly target: string }
  | {
    readonly kind: "character-device";
    readonly path: string;
    readonly major: number;
    readonly minor: number;
    readonly mode?: number;
  };

const S_IFCHR = 0o020000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

const HEADER_SIZE = 110;
const TRAILER = "TRAILER!!!";
const EMPTY = new Uint8Array(0);

interface Member {
  readonly name: Uint8Array;
  readonly mode: number;
  readonly links: number;
  readonly major: number;
  readonly minor: number;
  readonly data: Uint8Array;
}

/**
 * Writes an archive.
 *
 * The kernel silently drops a member whose directory it has not seen, so every directory must come
 * before what lies in it; anything else is an error of the caller.
 */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array<ArrayBuffer> {
  const seen = new Set<string>();
  const directories = new Set<string>([""]);
  const members = entries.map((entry) => {
    const { path } = entry;
    const parent = path.slice(0, Math.max(path.lastIndexOf("/"), 0));
    if (!isPlainPath(path)) throw new Error(`not a path for an archive: ${path}`);
    if (seen.has(path)) throw new Error(`twice in the archive: ${path}`);
    if (!directories.has(parent)) throw new Error(`no directory before ${path}`);
    seen.add(path);
    if (entry.kind === "directory") directories.add(path);
    return toMember(entry);
  });
  members.push({ ...toMember({ kind: "file", path: TRAILER, bytes: EMPTY }), mode: 0 });

  const size = members.reduce((sum, member) => sum + memberSize(member), 0);
  const archive = new Uint8Array(roundUp(size, 512));
  let at = 0;
  members.forEach((member, index) => {
    const isTrailer = index === members.length - 1;
    writeMember(archive, at, member, isTrailer ? 0 : index + 1);
    at += memberSize(member);
  });
  return archive;
}

function isPlainPath(path: string): boolean {
  return path.split("/").every((part) => part !== "" && part !== "." && part !== "..") &&
    !path.includes("\0") && path !== TRAILER;
}

function toMember(entry: CpioEntry): Member {
  const name = new TextEncoder().encode(entry.path + "\0");
  const plain = { name, links: 1, major: 0, minor: 0, data: EMPTY };
  switch (entry.kind) {
    case "directory":
      return { ...plain, mode: S_IFDIR | (entry.mode ?? 0o755), links: 2 };
    case "file":
      return { ...plain, mode: S_IFREG | (entry.mode ?? 0o644), data: entry.bytes };
    case "symlink":
      return { ...plain, mode: S_IFLNK | 0o777, data: new TextEncoder().encode(entry.target) };
    case "character-device": {
      const { major, minor } = entry;
      return { ...plain, mode: S_IFCHR | (entry.mode ?? 0o666), major, minor };
    }
  }
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

/** The name and the data each end on a multiple of 4, counted from the header. */
function dataOffset(member: Member): number {
  return roundUp(HEADER_SIZE + member.name.length, 4);
}

function memberSize(member: Member): number {
  return roundUp(dataOffset(member) + member.data.length, 4);
}

function writeMember(archive: Uint8Array, at: number, member: Member, inode: number): void {
  const fields = [
    inode,
    member.mode,
    0, // user
    0, // group
    member.links,
    0, // time of modification
    member.data.length,
    0, // device of the inode, major and minor
    0,
    member.major,
    member.minor,
    member.name.length,
    0, // check sum, used by another format
  ];
  const header = "070701" + fields.map((field) => field.toString(16).padStart(8, "0")).join("");
  archive.set(new TextEncoder().encode(header), at);
  archive.set(member.name, at + HEADER_SIZE);
  archive.set(member.data, at + dataOffset(member));
}
