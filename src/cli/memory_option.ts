/**
 * `--memory`: memory of the other side that is not sent on the bus as a descriptor.
 *
 * The device side is told what it can see of the driver side's machine: a file that holds its RAM, or an
 * ivshmem function that shows it, and the bus address of the first byte, with the hole that a PC has below 4 GiB
 * (docs/wire.md, 4.2). A driver side that speaks `v1` says which part it uses; else its addresses are taken as
 * they are. A driver of our own is told where to put its rings and buffers.
 */

import type { Bus } from "../bus/bus.ts";
import { openSysfsMemory } from "../ivshmem/sysfs_end.ts";
import { openVfioMemory } from "../ivshmem/vfio_end.ts";
import { fileSize, reserveFile } from "../linux/fd.ts";
import { openOwnFile } from "../linux/own_file.ts";
import { UsageError, VmsgError } from "../linux/errors.ts";
import { mapKept } from "../linux/mapping.ts";
import { pciAddress } from "../linux/sysfs.ts";
import { type MappedMemory, MAX_WINDOWS, type MemoryLimits, memoryLimits } from "../memory/mod.ts";
import type { PlaneContext } from "./plane.ts";
import {
  confinedMemory,
  type DriverMemory,
  knownMemory,
  ownMemory,
  pageMemory,
  segmentMemory,
} from "../sharing/driver_memory.ts";
import { driverMemorySize } from "../drivers/net/net_buffers.ts";
import type { MemoryRegion } from "../memory/mod.ts";
import { parseOwner } from "./access_option.ts";
import type { Option, Options } from "./command.ts";
import { type Group, parseBytes, parseGroup } from "./groups.ts";

/** A file whose bytes are memory. */
interface FileSource {
  readonly kind: "file";
  readonly file: string;
  /** The number of the user whose file it is, if it is not this one's. */
  readonly owner?: number | undefined;
  /** It gets all its room at once, unless that is false. */
  readonly reserve?: boolean;
}

export interface FileSettings extends FileSource {
  /** Bus address of the file's first byte. */
  readonly at: number;
  /** Bytes; 0 is the whole file. */
  readonly size: number;
}

export interface DeviceMemorySettings {
  readonly source:
    | FileSource
    | { readonly kind: "pci"; readonly address: string; readonly via: "wc" | "uc" | "vfio" };
  /** Bus address of the first byte. */
  readonly at: number;
  /** Bytes; 0 is all there is. */
  readonly size: number;
  /** Bytes below the hole; meant only with a hole. */
  readonly low: number;
  /** Bus addresses that are left out behind `low` bytes. */
  readonly hole: number;
}

export type DriverMemorySettings =
  | FileSettings
  | { readonly kind: "segment"; readonly offset: number | undefined; readonly size: number }
  | { readonly kind: "hugepages"; readonly size: number }
  | { readonly kind: "confined"; readonly size: number | undefined };

export const DEVICE_MEMORY_OPTION: Option = {
  name: "memory",
  value: "file=PATH[,owner=USER][,reserve=off] | pci=ADDRESS[,via=wc|uc|vfio], " +
    "with at=ADDRESS[,size=N][,low=N,hole=N]",
  repeated: true,
  help: "memory of the other side by its addresses, needed where the bus carries no files or the " +
    "dialect cannot announce them: the shared file that holds it, or the ivshmem function whose BAR2 " +
    "shows it (by sysfs, write-combining or uncached, or by vfio), the address of its first byte, and " +
    "on a PC the bytes below the hole and the hole's size (numbers as 4096, 0x40000000 or 512M). " +
    "A file is this user's or owner's, and gets all its room at once, unless reserve is off",
};

export const DRIVER_MEMORY_OPTION: Option = {
  name: "memory",
  value: "segment[,offset=N][,size=N] | hugepages=SIZE | " +
    "file=PATH,at=ADDRESS[,size=N][,owner=USER][,reserve=off]",
  help:
    "where rings and buffers are: in the bus's own shared memory (default on ivshmem and shm), in " +
    "huge pages of this machine, whose RAM the device side's machine sees by its --memory, or in a " +
    "shared file that the device side knows by the same --memory; on linux-user in memory of its own",
};

export function parseDeviceMemory(text: string): DeviceMemorySettings {
  const keys = ["file", "owner", "reserve", "pci", "via", "at", "size", "low", "hole"];
  const group = parseGroup("--memory", text, keys);
  const settings = {
    source: parseSource(group),
    at: group.bytes("at"),
    size: group.bytes("size", 0),
    low: group.bytes("low", 0),
    hole: group.bytes("hole", 0),
  };
  if (settings.hole > 0 && settings.low === 0) throw group.error("hole= needs low=");
  return settings;
}

function parseSource(group: Group): DeviceMemorySettings["source"] {
  if (group.text("pci") === undefined) {
    if (group.text("file") === undefined) throw group.error("give either file= or pci=");
    if (group.text("via") !== undefined) throw group.error("via goes with pci=");
    return parseFile(group);
  }
  if (group.text("file") !== undefined) throw group.error("give either file= or pci=");
  const address = pciAddress(group.required("pci"));
  return { kind: "pci", address, via: group.choice("via", ["wc", "uc", "vfio"], "wc") };
}

export function parseFile(group: Group): FileSource {
  const file = group.required("file");
  return { kind: "file", file, owner: parseOwner(group), reserve: group.flag("reserve", true) };
}

export function parseDriverMemory(text: string): DriverMemorySettings {
  const keys = ["segment", "offset", "hugepages", "file", "owner", "reserve", "at", "size"];
  const group = parseGroup("--memory", text, keys);
  const kinds = ["segment", "hugepages", "file"] as const;
  const given = kinds.filter((kind) => group.text(kind) !== undefined);
  if (given.length !== 1) throw group.error("give one of segment, hugepages= and file=");
  const size = group.bytes("size", 0);
  if (given[0] === "segment") {
    const offset = group.text("offset") === undefined ? undefined : group.bytes("offset");
    return { kind: "segment", offset, size };
  }
  if (given[0] === "hugepages") {
    const wanted = group.bytes("hugepages");
    if (wanted === 0) throw group.error("hugepages=0 is no memory, hugepages=10M is plenty");
    return { kind: "hugepages", size: wanted };
  }
  return { ...parseFile(group), at: group.bytes("at"), size };
}

export const CONFINED_OPTIONS: readonly Option[] = [
  {
    name: "confined",
    help: "keep every virtqueue and buffer in one segment that both sides share: the device side " +
      "never sees the rest of this side's memory",
  },
  {
    name: "segment",
    value: "SIZE",
    help: "of the segment: by default all of the bus's shared memory, or 4M on linux-user",
  },
];

const LIMIT_KEYS = ["size", "regions", "total"] as const;

/**
 * How much memory others may show.
 *
 * @param whose memory it is, for people
 * @param pins does this side pin memory?
 */
export function memoryLimitOption(whose: string, pins: boolean): Option {
  return {
    name: "memory-limit",
    value: `[size=SIZE][,regions=N][,total=SIZE]${pins ? "[,pinned=SIZE]" : ""}`,
    help:
      `how much memory ${whose} may have mapped here: bytes (default: as much as this machine has, or 4G) and regions (64, ` +
      "at most 509) of one device number, bytes of all of them (four times that)" +
      (pins ? ", and what direct mode may pin (three quarters of it)" : ""),
  };
}

/** Parses {@link memoryLimitOption}. */
export function parseMemoryLimit(options: Options, pins: boolean): MemoryLimits {
  const keys = [...LIMIT_KEYS, ...pins ? ["pinned"] as const : []];
  const group = parseGroup("--memory-limit", options.text("memory-limit") ?? "", keys);
  const size = group.bytes("size", memoryLimits().size);
  const { regions, total, pinned } = memoryLimits({ size });
  return {
    size,
    regions: group.number("regions", 1, MAX_WINDOWS, regions),
    total: group.bytes("total", total),
    pinned: group.bytes("pinned", pinned),
  };
}

/** Parses {@link CONFINED_OPTIONS}; undefined without --confined. */
export function parseConfined(options: Options): { size: number | undefined } | undefined {
  const text = options.text("segment");
  if (!options.flag("confined")) {
    if (text !== undefined) throw new UsageError("--segment goes with --confined");
    return undefined;
  }
  if (text === undefined) return { size: undefined };
  return { size: parseBytes("--segment", text) };
}

/** Opens and maps a file, with room for all of it: whoever shares it may not have touched a page that we write. */
export function openFileMemory(
  { file, owner, reserve }: FileSource,
  wanted: number,
): MappedMemory & Disposable {
  using stack = new DisposableStack();
  const name = `memory file ${file}`;
  const fd = stack.use(
    openOwnFile(file, { what: "memory file", owner, make: "never", mayBeDevice: true }).fd,
  );
  const size = fileSize(fd);
  if (size === 0 || wanted > size) throw new VmsgError("MEMORY", `${name} has only ${size} bytes`);
  if (reserve !== false) reserveFile(fd, name, wanted || size);
  return mapKept({ fd, offset: 0 }, wanted || size, stack.move());
}

export function openDeviceMemory(
  settings: DeviceMemorySettings,
  { log, reactor }: Pick<PlaneContext, "log" | "reactor">,
): MappedMemory & Disposable {
  const { source, size } = settings;
  if (source.kind === "file") return openFileMemory(source, size);
  const { address, via } = source;
  const memory = via === "vfio"
    ? openVfioMemory(address, { log }, reactor)
    : openSysfsMemory(address, { writeCombining: via === "wc" });
  if (size <= memory.size) return memory;
  memory[Symbol.dispose]();
  throw new VmsgError("MEMORY", `PCI function ${address} has only ${memory.size} bytes in BAR2`);
}

/** The windows of the memory: one, or two around the hole. */
export function windowsOf(settings: DeviceMemorySettings, memory: MappedMemory): MemoryRegion[] {
  const { at, low, hole } = settings;
  const size = settings.size || memory.size;
  const split = hole > 0 ? Math.min(low, size) : size;
  const first = { at, size: split, memory, offset: 0 };
  if (split === size) return [first];
  return [first, { at: at + split + hole, size: size - split, memory, offset: split }];
}

/**
 * Makes the memory of a driver, for `stack` to own.
 *
 * @param settings undefined: what the bus has
 * @param pairs how many queue pairs it has
 */
export function openDriverMemory(
  settings: DriverMemorySettings | undefined,
  pairs: number,
  bus: Bus,
  stack: DisposableStack,
): DriverMemory {
  if (settings === undefined) {
    return bus.carriesFds
      ? stack.use(ownMemory(driverMemorySize(pairs)))
      : segmentMemory(bus, undefined, 0);
  }
  if (settings.kind === "segment") return segmentMemory(bus, settings.offset, settings.size);
  if (settings.kind === "confined") return stack.use(confinedMemory(bus, settings.size));
  if (settings.kind === "file") {
    const { size, at } = settings;
    return knownMemory(stack.use(openFileMemory(settings, size)), at);
  }
  return stack.use(pageMemory(settings.size, bus));
}
