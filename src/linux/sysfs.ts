/**
 * sysfs: attributes, links and directories, and what it says about PCI functions.
 *
 * Files are opened through libc, not through Deno: Deno lets nobody with less than all permissions at
 * /sys. An attribute is one short text, read and written whole. The parameter `sysfs` is for tests,
 * which give a directory that looks like it.
 *
 * Source: Documentation/ABI/testing/sysfs-bus-pci, Documentation/PCI/sysfs-pci.rst.
 */

import { allocate } from "./arena.ts";
import { linuxErrno, UsageError } from "./errors.ts";
import { Fd, O_CLOEXEC } from "./fd.ts";
import { check, cString, errno, lastError, libc } from "./libc.ts";

const O_RDONLY = 0;
const O_WRONLY = 1;
/** Nothing to sysfs, but to what looks like it. */
const O_TRUNC = 0o1000;
const ENOENT = linuxErrno("ENOENT");
const ENOTDIR = linuxErrno("ENOTDIR");
const EINVAL = linuxErrno("EINVAL");

/** struct dirent: u64 inode, s64 offset, u16 length, u8 type, then the name */
const DIRENT_NAME = 19;

/** An attribute is at most a page. */
const buffer = allocate(4096);

/** Where the kernel mounts it. */
export const SYSFS = "/sys";

function bufferText(length: number): string {
  return new TextDecoder().decode(buffer.bytes.slice(0, length));
}

/** An attribute's text without white space around it, or undefined where there is none. */
export function readAttribute(path: string): string | undefined {
  const number = libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0);
  if (number < 0 && (errno() === ENOENT || errno() === ENOTDIR)) return undefined;
  using fd = new Fd(check(number, `open ${path}`));
  const length = libc.read(fd.number, buffer.address, buffer.bytes.length);
  return bufferText(check(length, `read ${path}`)).trim();
}

/** Larger than the memory map of any process here. */
const MAX_TEXT = 4 << 20;

/** The text of a file as the kernel makes them, some more than `most` of it; undefined for one that cannot be read. */
export function readText(path: string, most = MAX_TEXT): string | undefined {
  const number = libc.open(cString(path), O_RDONLY | O_CLOEXEC, 0);
  if (number < 0) return undefined;
  using fd = new Fd(number);
  const decoder = new TextDecoder();
  let text = "";
  while (text.length < most) {
    const length = libc.read(fd.number, buffer.address, buffer.bytes.length);
    if (length < 0) return undefined;
    if (length === 0) break;
    text += decoder.decode(buffer.bytes.slice(0, length), { stream: true });
  }
  return text;
}

/** Writes an attribute; it must be there. */
export function writeAttribute(path: string, text: string): void {
  const flags = O_WRONLY | O_TRUNC | O_CLOEXEC;
  using fd = new Fd(check(libc.open(cString(path), flags, 0), `open ${path}`));
  const { written } = new TextEncoder().encodeInto(text, buffer.bytes);
  check(libc.write(fd.number, buffer.address, written), `write "${text.trim()}" to ${path}`);
}

/** The last part of what a symbolic link points to, or undefined where there is no link. */
export function linkName(path: string): string | undefined {
  const length = libc.readlink(cString(path), buffer.address, buffer.bytes.length);
  if (length < 0 && [ENOENT, ENOTDIR, EINVAL].includes(errno())) return undefined;
  return bufferText(check(length, `readlink ${path}`)).split("/").at(-1);
}

/** The names in a directory, sorted; none where there is no such directory. */
export function directoryNames(path: string): string[] {
  const directory = libc.opendir(cString(path));
  if (directory === 0n) {
    if (errno() === ENOENT || errno() === ENOTDIR) return [];
    throw lastError(`open ${path}`);
  }
  const names: string[] = [];
  for (;;) {
    const entry = libc.readdir(directory);
    if (entry === null) break;
    const name = new Deno.UnsafePointerView(entry).getCString(DIRENT_NAME);
    if (name !== "." && name !== "..") names.push(name);
  }
  libc.closedir(directory);
  return names.sort();
}

/** A base address register of a PCI function. */
export interface PciBar {
  /** The bus address; 0 while nobody has assigned one. */
  readonly start: number;
  /** In bytes; 0 if the function does not have it. */
  readonly size: number;
}

/** The six base address registers in the text of an attribute `resource`, one a line. */
export function parseResources(text: string): PciBar[] {
  return text.split("\n").slice(0, 6).map((line) => {
    const [start = 0, end = 0, flags = 0] = line.trim().split(/\s+/).map(Number);
    return flags === 0 ? { start: 0, size: 0 } : { start, size: end - start + 1 };
  });
}

/**
 * A PCI address in full, as in "0000:00:10.0"; the domain may be left out.
 *
 * @throws UsageError for what is none
 */
export function pciAddress(text: string): string {
  const match = /^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7])$/.exec(text.toLowerCase());
  if (match !== null) return `${match[1] ?? "0000"}:${match[2]}`;
  throw new UsageError(
    `PCI address ${text}: give DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal (0000:00:10.0)`,
  );
}

/** A PCI function of this machine, as sysfs shows it. Everything is read when it is asked for. */
export class PciFunction {
  /** Its directory, as in "/sys/bus/pci/devices/0000:00:10.0". */
  readonly path: string;

  /**
   * A function that may be there, see {@link exists}.
   *
   * @param address in full, see {@link pciAddress}
   * @param sysfs where sysfs is
   */
  constructor(readonly address: string, readonly sysfs: string = SYSFS) {
    this.path = `${sysfs}/bus/pci/devices/${address}`;
  }

  /** Is there such a function? */
  get exists(): boolean {
    return this.attribute("vendor") !== undefined;
  }

  /** An attribute's text, or undefined where this function or kernel does not have it. */
  attribute(name: string): string | undefined {
    return readAttribute(`${this.path}/${name}`);
  }

  #number(name: string): number {
    return Number(this.attribute(name) ?? 0);
  }

  /** The vendor id. */
  get vendor(): number {
    return this.#number("vendor");
  }

  /** The device id. */
  get device(): number {
    return this.#number("device");
  }

  /** Base address registers 0 to 5. */
  get bars(): PciBar[] {
    return parseResources(this.attribute("resource") ?? "");
  }

  /** The driver's name, or undefined while none is bound. */
  get driver(): string | undefined {
    return linkName(`${this.path}/driver`);
  }

  /** The number of its IOMMU group, or undefined where it has none. */
  get iommuGroup(): string | undefined {
    return linkName(`${this.path}/iommu_group`);
  }
}

/** The functions of an IOMMU group. */
export function groupFunctions(group: string, sysfs: string = SYSFS): PciFunction[] {
  return directoryNames(`${sysfs}/kernel/iommu_groups/${group}/devices`)
    .map((address) => new PciFunction(address, sysfs));
}

/** The functions of this machine that have certain ids. */
export function findPciFunctions(
  vendor: number,
  device: number,
  sysfs: string = SYSFS,
): PciFunction[] {
  return directoryNames(`${sysfs}/bus/pci/devices`)
    .map((address) => new PciFunction(address, sysfs))
    .filter((pci) => pci.vendor === vendor && pci.device === device);
}
