/**
 * pcapng, the file format of captures (draft-ietf-opsawg-pcapng), as far as vmsg writes it and reads it back.
 *
 * A file is a row of blocks: u32 type, u32 total length, body, padding to 4 bytes, u32 total length again. A section
 * header comes first, then a description of each interface before the first packet of it; packets name the
 * interface by its number in the section. Statistics of an interface say how many packets were dropped. What a reader
 * does not know it steps over. Numbers are little-endian; a section of the other kind is refused.
 */

import { VmsgError } from "../linux/errors.ts";

export const LINKTYPE_ETHERNET = 1;
/** LINKTYPE_USER0: whoever made the file says what it is; what capture.ts writes begins with a mark. */
export const LINKTYPE_USER0 = 147;

const SECTION_HEADER = 0x0a0d0d0a;
const INTERFACE_DESCRIPTION = 1;
const INTERFACE_STATISTICS = 5;
const ENHANCED_PACKET = 6;
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
const SHB_USERAPPL = 4;
const IF_NAME = 2;
const IF_DESCRIPTION = 3;
const IF_TSRESOL = 9;
const ISB_IFRECV = 4;
const ISB_IFDROP = 5;
/** Powers of ten in a second: nanoseconds, and what it is unless said. */
const RESOLUTION = 9;
const DEFAULT_RESOLUTION = 6;
/** A block's type and size, and what a section header has behind them; and its largest size, as Wireshark has it. */
const BLOCK_HEAD = 12;
const MAX_BLOCK = 16 << 20;
/** Bytes of an enhanced packet before its data. */
export const PACKET_HEAD = 28;
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

const padded = (size: number) => size + 3 & ~3;

function block(type: number, body: readonly number[], options: [number, string | Uint8Array][]) {
  const coded = options.map(([code, value]) =>
    [code, typeof value === "string" ? new TextEncoder().encode(value) : value] as const
  );
  let at = 8 + 4 * body.length;
  // The end of the options is one of size 0 and code 0, which is there already.
  const size = coded.reduce((sum, [, { length }]) => sum + 4 + padded(length), at) + 8;
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  [type, size, ...body].forEach((word, i) => view.setUint32(4 * i, word, true));
  for (const [code, value] of coded) {
    view.setUint32(at, code | value.length << 16, true);
    bytes.set(value, at + 4);
    at += 4 + padded(value.length);
  }
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
export function interfaceDescription(about: CapturedInterface, snapLength: number): Uint8Array {
  return block(INTERFACE_DESCRIPTION, [about.linkType, snapLength], [
    [IF_NAME, about.name],
    [IF_DESCRIPTION, about.description],
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
  const u64 = (value: number) => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
  return block(INTERFACE_STATISTICS, [index, high, low], [
    [ISB_IFRECV, u64(received)],
    [ISB_IFDROP, u64(dropped)],
  ]);
}

/** Bytes of a packet's block of which `kept` bytes are in the file. */
export function packetSize(kept: number): number {
  return PACKET_HEAD + padded(kept) + 4;
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
  // The padding is in the last word of the data.
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
  /** What is in the file of it. */
  readonly data: Uint8Array;
  /** How long it was. */
  readonly length: number;
}

/** What a file has: a packet, how many of an interface were dropped so far, or the middle of a block at its end. */
export type ReadItem =
  | ReadPacket
  | { readonly kind: "statistics"; readonly interface: CapturedInterface; readonly dropped: number }
  | { readonly kind: "cut" };

interface Known extends CapturedInterface {
  /** Nanoseconds in a unit of its times. */
  readonly unit: bigint;
}

function broken(problem: string): VmsgError {
  return new VmsgError("CAPTURE", problem);
}

/**
 * Reads a file.
 *
 * @param read gives the bytes from there on, fewer where the file ends; they are given on and not copied
 * @throws VmsgError CAPTURE with what is wrong; the caller knows the name of the file
 */
export function* readPcapng(
  read: (at: number, size: number) => Uint8Array,
): Generator<ReadItem> {
  let interfaces: Known[] = [];
  for (let at = 0, size;; at += size) {
    const head = viewOf(read(at, BLOCK_HEAD));
    const isShort = head.byteLength < BLOCK_HEAD;
    const type = isShort ? 0 : head.getUint32(0, true);
    if (at === 0 && type !== SECTION_HEADER) throw broken("it is no pcapng file");
    if (isShort) return head.byteLength === 0 ? undefined : yield { kind: "cut" };
    // Before its size, which is in that order too.
    if (type === SECTION_HEADER && head.getUint32(8, true) !== BYTE_ORDER_MAGIC) {
      throw broken("a machine of the other byte order wrote it");
    }
    size = head.getUint32(4, true);
    if (size < BLOCK_HEAD || size % 4 !== 0 || size > MAX_BLOCK) {
      throw broken("it has a broken block");
    }
    const view = viewOf(read(at, size));
    if (view.byteLength < size) return yield { kind: "cut" };
    if (view.getUint32(size - 4, true) !== size) throw broken("it has a broken block");
    if (type === SECTION_HEADER) interfaces = [];
    else if (type === INTERFACE_DESCRIPTION) interfaces.push(interfaceOf(view));
    else if (type === ENHANCED_PACKET) yield packetOf(view, interfaces);
    else if (type === INTERFACE_STATISTICS && size >= 24) {
      const dropped = optionsOf(view, 20).get(ISB_IFDROP);
      const about = interfaces[view.getUint32(8, true)];
      if (dropped?.byteLength !== 8 || about === undefined) continue;
      const count = Number(dropped.getBigUint64(0, true));
      yield { kind: "statistics", interface: about, dropped: count };
    }
  }
}

const viewOf = ({ buffer, byteOffset, length }: Uint8Array) =>
  new DataView(buffer, byteOffset, length);

/** A text that somebody else wrote, for a terminal: without what it would obey, and in one line. */
export function printable(bytes: AllowSharedBufferSource | undefined): string {
  return new TextDecoder().decode(bytes).replace(/\p{C}/gu, "?");
}

function optionsOf(view: DataView, start: number): Map<number, DataView> {
  const options = new Map<number, DataView>();
  const end = view.byteLength - 4;
  for (let at = start; at + 4 <= end;) {
    const size = view.getUint16(at + 2, true);
    if (at + 4 + size > end) break;
    const value = new DataView(view.buffer, view.byteOffset + at + 4, size);
    options.set(view.getUint16(at, true), value);
    at += 4 + padded(size);
  }
  return options;
}

function interfaceOf(view: DataView): Known {
  if (view.byteLength < 20) throw broken("it has a broken block");
  const options = optionsOf(view, 16);
  const text = (code: number) => printable(options.get(code));
  const resolution = options.get(IF_TSRESOL);
  const power = resolution?.byteLength === 1 ? resolution.getUint8(0) : DEFAULT_RESOLUTION;
  if (power > RESOLUTION) throw broken("it counts time in units that are not known here");
  return {
    linkType: view.getUint16(8, true),
    name: text(IF_NAME),
    description: text(IF_DESCRIPTION),
    unit: 10n ** BigInt(RESOLUTION - power),
  };
}

function packetOf(view: DataView, interfaces: readonly Known[]): ReadPacket {
  const { byteLength: size } = view;
  const isHead = size >= packetSize(0);
  const about = isHead ? interfaces[view.getUint32(8, true)] : undefined;
  const kept = isHead ? view.getUint32(20, true) : 0;
  if (about === undefined || packetSize(0) + kept > size) throw broken("it has a broken packet");
  const units = BigInt(view.getUint32(12, true)) << 32n | BigInt(view.getUint32(16, true));
  return {
    kind: "packet",
    interface: about,
    nanoseconds: units * about.unit,
    data: new Uint8Array(view.buffer, view.byteOffset + PACKET_HEAD, kept),
    length: view.getUint32(24, true),
  };
}
