/**
 * pcapng, the file format of captures (draft-ietf-opsawg-pcapng), as far as vmsg writes it and reads it back.
 *
 * A file is a row of blocks: u32 type, u32 total length, body, padding to 4 bytes, u32 total length again. A section
 * header comes first, then a description of each interface before the first packet of it; packets name the
 * interface by its number in the section. Statistics of an interface say how many packets were dropped. What a reader
 * does not know it steps over. Numbers are little-endian here; a section of the other kind is refused.
 */

import { VmsgError } from "../linux/errors.ts";

export const LINKTYPE_ETHERNET = 1;
/** LINKTYPE_USER0: whoever made the file says what it is; a message.ts of ours begins with a mark. */
export const LINKTYPE_USER0 = 147;

const SECTION_HEADER = 0x0a0d0d0a;
const INTERFACE_DESCRIPTION = 1;
const INTERFACE_STATISTICS = 5;
const ENHANCED_PACKET = 6;
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
const SWAPPED_MAGIC = 0x4d3c2b1a;

const OPT_END = 0;
const SHB_USERAPPL = 4;
const IF_NAME = 2;
const IF_DESCRIPTION = 3;
const IF_TSRESOL = 9;
const ISB_IFRECV = 4;
const ISB_IFDROP = 5;

/** Powers of ten in a second: nanoseconds. */
const RESOLUTION = 9;
const DEFAULT_RESOLUTION = 6;
const TWO_32 = 4294967296;

/** Bytes of an enhanced packet before its data, and behind the padding. */
export const PACKET_HEAD = 28;
export const PACKET_TAIL = 4;
/** Bytes of {@link interfaceStatistics}. */
export const STATISTICS_SIZE = 52;

/** What an interface is called, and what its packets are. */
export interface CapturedInterface {
  readonly linkType: number;
  readonly name: string;
  readonly description: string;
}

/** A time as pcapng has it: nanoseconds since 1970, in two halves. */
export interface Stamp {
  readonly high: number;
  readonly low: number;
}

type OptionValue = string | Uint8Array;

function block(type: number, body: readonly number[], options: [number, OptionValue][]) {
  const coded = options.map(([code, value]) =>
    [code, typeof value === "string" ? new TextEncoder().encode(value) : value] as const
  );
  const optionBytes = coded.reduce((sum, [, { length }]) => sum + 4 + (length + 3 & ~3), 4);
  const size = 12 + 4 * body.length + optionBytes;
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  [type, size, ...body].forEach((word, i) => view.setUint32(4 * i, word, true));
  let at = 8 + 4 * body.length;
  for (const [code, value] of coded) {
    view.setUint16(at, code, true);
    view.setUint16(at + 2, value.length, true);
    bytes.set(value, at + 4);
    at += 4 + (value.length + 3 & ~3);
  }
  view.setUint16(at, OPT_END, true);
  view.setUint32(size - 4, size, true);
  return bytes;
}

/** The first block of a file. @param application who writes it */
export function sectionHeader(application: string): Uint8Array {
  // Version 1.0, and a length that nobody knows yet: -1.
  const body = [BYTE_ORDER_MAGIC, 1, 0xffff_ffff, 0xffff_ffff];
  return block(SECTION_HEADER, body, [[SHB_USERAPPL, application]]);
}

/** @param snapLength bytes that are kept of a packet at most, 0 for all */
export function interfaceDescription(
  { linkType, name, description }: CapturedInterface,
  snapLength: number,
): Uint8Array {
  return block(INTERFACE_DESCRIPTION, [linkType, snapLength], [
    [IF_NAME, name],
    [IF_DESCRIPTION, description],
    [IF_TSRESOL, Uint8Array.of(RESOLUTION)],
  ]);
}

/** How many packets of an interface there were until then, and how many of them are not in the file. */
export function interfaceStatistics(
  index: number,
  { high, low }: Stamp,
  received: number,
  dropped: number,
): Uint8Array {
  const u64 = (value: number) =>
    new Uint8Array(Uint32Array.of(value % TWO_32, Math.floor(value / TWO_32)).buffer);
  return block(INTERFACE_STATISTICS, [index, high, low], [
    [ISB_IFRECV, u64(received)],
    [ISB_IFDROP, u64(dropped)],
  ]);
}

/** Bytes of a packet's block of which `kept` bytes are in the file. */
export function packetSize(kept: number): number {
  return PACKET_HEAD + (kept + 3 & ~3) + PACKET_TAIL;
}

/** Writes a packet's block at `at`, all but its data, which begins {@link PACKET_HEAD} behind it. */
export function writePacket(
  view: DataView,
  at: number,
  index: number,
  { high, low }: Stamp,
  kept: number,
  length: number,
): void {
  const size = packetSize(kept);
  view.setUint32(at, ENHANCED_PACKET, true);
  view.setUint32(at + 4, size, true);
  view.setUint32(at + 8, index, true);
  view.setUint32(at + 12, high, true);
  view.setUint32(at + 16, low, true);
  view.setUint32(at + 20, kept, true);
  view.setUint32(at + 24, length, true);
  // The padding, which lies in the last word of the data.
  if (kept % 4 !== 0) view.setUint32(at + size - 8, 0, true);
  view.setUint32(at + size - 4, size, true);
}

// --- reading ---------------------------------------------------------------------------------------

/** A packet of a file. */
export interface ReadPacket {
  readonly kind: "packet";
  /** One object for each interface of a section. */
  readonly interface: CapturedInterface;
  readonly nanoseconds: bigint;
  /** What is in the file of it; the next packet may be in the same place. */
  readonly data: Uint8Array;
  /** How long it was. */
  readonly length: number;
}

/** How many packets of an interface are not in the file. */
export interface ReadStatistics {
  readonly kind: "statistics";
  readonly interface: CapturedInterface;
  readonly dropped: number;
}

/** The file ends in the middle of a block. */
export interface CutOff {
  readonly kind: "cut";
}

/** No block that anybody writes is longer. */
const MAX_BLOCK = 16 << 20;
const FIRST_BUFFER = 1 << 20;

function broken(problem: string): VmsgError {
  return new VmsgError("CAPTURE", problem);
}

/** Gives whole blocks, one after the other, from what `read` gives in pieces. */
class Blocks {
  #bytes = new Uint8Array(FIRST_BUFFER);
  #start = 0;
  #end = 0;

  constructor(private readonly read: (into: Uint8Array) => number) {}

  /** The view of a block; undefined at the end, "cut" in the middle of one. */
  next(): DataView | "cut" | undefined {
    if (!this.#fill(8)) return this.#start === this.#end ? undefined : "cut";
    const size = this.#view(8).getUint32(4, true);
    if (size % 4 !== 0 || size < 12 || size > MAX_BLOCK) throw broken("it has a broken block");
    if (!this.#fill(size)) return "cut";
    const view = this.#view(size);
    this.#start += size;
    if (view.getUint32(size - 4, true) !== size) throw broken("it has a broken block");
    return view;
  }

  #view(size: number): DataView {
    return new DataView(this.#bytes.buffer, this.#start, size);
  }

  #fill(size: number): boolean {
    if (this.#end - this.#start >= size) return true;
    const rest = this.#bytes.subarray(this.#start, this.#end);
    const room = size <= this.#bytes.length ? this.#bytes : new Uint8Array(2 * size);
    room.set(rest);
    this.#bytes = room;
    this.#start = 0;
    this.#end = rest.length;
    while (this.#end < size) {
      const count = this.read(room.subarray(this.#end));
      if (count === 0) return false;
      this.#end += count;
    }
    return true;
  }
}

interface Known extends CapturedInterface {
  /** Nanoseconds in a unit of its times. */
  readonly unit: bigint;
}

/**
 * Reads a file.
 *
 * @param read fills what it is given with the next bytes and says how many; 0 at the end
 * @throws VmsgError CAPTURE with what is wrong; the caller knows the name of the file
 */
export function* readPcapng(
  read: (into: Uint8Array) => number,
): Generator<ReadPacket | ReadStatistics | CutOff> {
  const blocks = new Blocks(read);
  let interfaces: Known[] = [];
  let isFirst = true;
  for (let view; (view = blocks.next()) !== undefined; isFirst = false) {
    if (view === "cut") {
      if (isFirst) throw broken("it is no pcapng file");
      yield { kind: "cut" };
      return;
    }
    const type = view.getUint32(0, true);
    if (isFirst && type !== SECTION_HEADER) throw broken("it is no pcapng file");
    if (type === SECTION_HEADER) {
      assertByteOrder(view);
      interfaces = [];
    } else if (type === INTERFACE_DESCRIPTION) interfaces.push(interfaceOf(view));
    else if (type === ENHANCED_PACKET) yield packetOf(view, interfaces);
    else if (type === INTERFACE_STATISTICS) {
      const dropped = optionsOf(view, 20).get(ISB_IFDROP);
      const about = interfaces[view.getUint32(8, true)];
      if (dropped?.byteLength !== 8 || about === undefined) continue;
      yield {
        kind: "statistics",
        interface: about,
        dropped: dropped.getUint32(0, true) + TWO_32 * dropped.getUint32(4, true),
      };
    }
  }
}

function assertByteOrder(view: DataView): void {
  const magic = view.byteLength >= 28 ? view.getUint32(8, true) : 0;
  if (magic === SWAPPED_MAGIC) throw broken("it was written on a big-endian machine");
  if (magic !== BYTE_ORDER_MAGIC) throw broken("it is no pcapng file");
}

function optionsOf(view: DataView, start: number): Map<number, DataView> {
  const options = new Map<number, DataView>();
  for (let at = start; at + 4 <= view.byteLength - 4;) {
    const code = view.getUint16(at, true);
    const size = view.getUint16(at + 2, true);
    if (code === OPT_END || at + 4 + size > view.byteLength - 4) break;
    options.set(code, new DataView(view.buffer, view.byteOffset + at + 4, size));
    at += 4 + (size + 3 & ~3);
  }
  return options;
}

function interfaceOf(view: DataView): Known {
  if (view.byteLength < 20) throw broken("it has a broken block");
  const options = optionsOf(view, 16);
  const text = (code: number) => new TextDecoder().decode(options.get(code));
  const resolution = options.get(IF_TSRESOL)?.getUint8(0) ?? DEFAULT_RESOLUTION;
  if (resolution > RESOLUTION) throw broken("it counts time in units that are not known here");
  return {
    linkType: view.getUint16(8, true),
    name: text(IF_NAME),
    description: text(IF_DESCRIPTION),
    unit: 10n ** BigInt(RESOLUTION - resolution),
  };
}

function packetOf(view: DataView, interfaces: readonly Known[]): ReadPacket {
  const size = view.byteLength;
  const kept = size >= packetSize(0) ? view.getUint32(20, true) : Infinity;
  const about = size >= packetSize(0) ? interfaces[view.getUint32(8, true)] : undefined;
  if (about === undefined || packetSize(kept) > size) throw broken("it has a broken packet");
  const units = BigInt(view.getUint32(12, true)) << 32n | BigInt(view.getUint32(16, true));
  return {
    kind: "packet",
    interface: about,
    nanoseconds: units * about.unit,
    data: new Uint8Array(view.buffer, view.byteOffset + PACKET_HEAD, kept),
    length: view.getUint32(24, true),
  };
}
