/**
 * `--memory`: memory of the other side that is not announced on the bus.
 *
 * The prototype's dialect has no message for memory: both sides know a file that holds the guest's RAM
 * and the bus address of its first byte, with the hole that a PC has below 4 GiB (wire document 8.2).
 */

import { type Fd, fileSize, openFile } from "../linux/fd.ts";
import { VmsgError } from "../linux/errors.ts";
import { type Mapping, mapShared } from "../linux/mapping.ts";
import type { FixedWindow } from "../transport/device_side.ts";
import type { Option } from "./command.ts";
import { parseGroup } from "./groups.ts";

/** A parsed `--memory`. */
export interface MemorySettings {
  readonly file: string;
  /** Bus address of the file's first byte. */
  readonly at: number;
  /** Bytes; 0 is the whole file. */
  readonly size: number;
  /** Bytes below the hole; meant only with a hole. */
  readonly low: number;
  /** Bus addresses that are left out behind `low` bytes. */
  readonly hole: number;
}

/** The option's entry in a command's table. */
export const MEMORY_OPTION: Option = {
  name: "memory",
  value: "file=PATH,at=ADDRESS[,size=N][,low=N,hole=N]",
  repeated: true,
  help:
    "memory of the other side by bus address, needed where the dialect cannot announce it: the " +
    "shared file that holds it, the address of its first byte, and on a PC the bytes below the hole " +
    "and the hole's size (numbers as 4096, 0x40000000 or 512M)",
};

/** Parses one `--memory`. */
export function parseMemory(text: string): MemorySettings {
  const group = parseGroup("memory", text, { "": ["file", "at", "size", "low", "hole"] });
  const settings = {
    file: group.required("file"),
    at: group.bytes("at"),
    size: group.bytes("size", 0),
    low: group.bytes("low", 0),
    hole: group.bytes("hole", 0),
  };
  if (settings.hole > 0 && settings.low === 0) throw group.error("hole= needs low=");
  return settings;
}

/** Mapped memory of a file. */
export interface OpenMemory extends Disposable {
  readonly fd: Fd;
  readonly mapping: Mapping;
}

/** Opens and maps the file. */
export function openMemory(settings: MemorySettings): OpenMemory {
  using stack = new DisposableStack();
  const fd = stack.use(openFile(settings.file));
  const size = fileSize(fd);
  if (size === 0 || settings.size > size) {
    throw new VmsgError("MEMORY", `memory file ${settings.file} has only ${size} bytes`);
  }
  const mapping = stack.use(mapShared(fd.number, settings.size || size));
  const owner = stack.move();
  return { fd, mapping, [Symbol.dispose]: () => owner.dispose() };
}

/** The windows of the memory: one, or two around the hole. */
export function windowsOf(
  { at, low, hole }: MemorySettings,
  { mapping: memory }: OpenMemory,
): FixedWindow[] {
  const split = hole > 0 ? Math.min(low, memory.size) : memory.size;
  const first = { at, size: split, memory, offset: 0 };
  if (split === memory.size) return [first];
  return [first, { at: at + split + hole, size: memory.size - split, memory, offset: split }];
}
