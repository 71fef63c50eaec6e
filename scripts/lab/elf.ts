/**
 * The little of ELF that booting a guest needs: a section by its name, a file's machine, whether a
 * program needs an interpreter, and which libraries. 64-bit little-endian files only, which is every
 * machine a guest runs on here.
 */

const ELF_MAGIC = 0x464c457f;
const CLASS_64 = 2;
const LITTLE_ENDIAN = 1;
const PT_INTERP = 3;
const DT_NEEDED = 1;
const DYNAMIC_ENTRY_SIZE = 16;

/** A view of the file, or undefined where it is not a 64-bit little-endian ELF file. */
function elfView(bytes: Uint8Array): DataView | undefined {
  if (bytes.length < 64) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isElf = view.getUint32(0, true) === ELF_MAGIC && bytes[4] === CLASS_64 &&
    bytes[5] === LITTLE_ENDIAN;
  return isElf ? view : undefined;
}

/** An offset or a size; files that need more than 53 bits do not exist. */
function u64(view: DataView, at: number): number {
  return Number(view.getBigUint64(at, true));
}

/**
 * The contents of a section, or undefined where the file has none of that name or is no ELF file.
 *
 * @param name as in ".modinfo"
 */
export function elfSection(bytes: Uint8Array, name: string): Uint8Array | undefined {
  try {
    const view = elfView(bytes);
    if (view === undefined) return undefined;
    const table = u64(view, 40); // e_shoff
    const entrySize = view.getUint16(58, true); // e_shentsize
    const count = view.getUint16(60, true); // e_shnum
    const names = table + view.getUint16(62, true) * entrySize; // e_shstrndx
    const nameTable = u64(view, names + 24); // sh_offset
    const wanted = new TextEncoder().encode(name + "\0");
    for (let i = 0; i < count; i++) {
      const header = table + i * entrySize;
      const nameAt = nameTable + view.getUint32(header, true); // sh_name
      if (!wanted.every((byte, j) => bytes[nameAt + j] === byte)) continue;
      const offset = u64(view, header + 24);
      return bytes.subarray(offset, offset + u64(view, header + 32)); // sh_size
    }
    return undefined;
  } catch (error) {
    if (error instanceof RangeError) return undefined; // cut short
    throw error;
  }
}

/** The machine a file is for (e_machine: 62 x86-64, 183 arm64); undefined if it is no ELF file. */
export function elfMachine(bytes: Uint8Array): number | undefined {
  return elfView(bytes)?.getUint16(18, true);
}

/** The names of the libraries a program or library needs itself; none if it is no ELF file. */
export function elfNeeded(bytes: Uint8Array): string[] {
  const [dynamic, strings] = [elfSection(bytes, ".dynamic"), elfSection(bytes, ".dynstr")];
  if (dynamic === undefined || strings === undefined) return [];
  const view = new DataView(dynamic.buffer, dynamic.byteOffset, dynamic.byteLength);
  const names: string[] = [];
  for (let at = 0; at + DYNAMIC_ENTRY_SIZE <= dynamic.length; at += DYNAMIC_ENTRY_SIZE) {
    if (u64(view, at) !== DT_NEEDED) continue;
    const start = u64(view, at + 8);
    names.push(new TextDecoder().decode(strings.subarray(start, strings.indexOf(0, start))));
  }
  return names;
}

/** True if the file is an ELF program that runs without a dynamic loader. */
export function isStaticProgram(bytes: Uint8Array): boolean {
  try {
    const view = elfView(bytes);
    if (view === undefined) return false;
    const table = u64(view, 32); // e_phoff
    const entrySize = view.getUint16(54, true); // e_phentsize
    const count = view.getUint16(56, true); // e_phnum
    for (let i = 0; i < count; i++) {
      if (view.getUint32(table + i * entrySize, true) === PT_INTERP) return false;
    }
    return true;
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}
