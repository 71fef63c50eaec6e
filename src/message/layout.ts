/**
 * How the table describes bytes.
 *
 * A {@link Layout} lists the fields of one payload with their offsets behind the header, as the
 * tables of docs/wire.md do (2.2, 3.2), little-endian and without gaps: bytes without meaning
 * are listed as "reserved", sent as 0 and ignored on receipt (rule G5). {@link layout} checks every one
 * that is made while the table loads, so a slip in a table stops the program at once instead of being
 * sent to a peer. {@link request} and {@link event} make the table's entries.
 */

import { type Dialect, type Field, FIELDS, Kind } from "./message.ts";

/** What a field's bytes are, and how many; a variable type counts 0, its minimum. */
const SIZES = {
  u8: 1, // a number, as the others
  u16: 2,
  u24: 3,
  u32: 4,
  u64: 8,
  s32: 4, // below 0: a negative errno
  "u32/32": 4, // 32 times the number, rounded up when read
  next: 4, // bits 0-30 `nextOffset`, bit 31 `nextWrap` (docs/wire.md 3.6)
  uuid: 16,
  "words[2]": 8, // two u32 feature blocks, `proto`'s u64
  "bytes[8]": 8, // that many bytes, of which `length` are meant
  "bytes[16]": 16,
  "words[count]": 0, // `count` u32 feature blocks
  "words[count]+": 0, // the same, and when read, all further blocks that arrived as well
  "bytes[length]": 0, // `length` bytes
  "bytes[length]?": 0, // `length` bytes or, with `omitData`, none
  "words[count]!": 0, // the same two, and when read, also behind a size that leaves them out
  "bytes[length]!": 0,
  "bits[count]": 0, // ceil(`count` / 8) bytes
  "bits[count]~": 0, // the same; when read, a `count` that is no multiple of 8 is all that arrived
} as const;

export type Type = keyof typeof SIZES;

/** Arrays, and what means nothing. */
const NOT_NUMBERS: readonly string[] = ["words", "bytes", "uuid", "reserved"];

export type LayoutField = readonly [
  offset: number,
  type: Type,
  name: Field | "words" | "bytes" | "uuid" | "reserved",
];

export interface Layout {
  readonly size: number;
  /** In ascending order; only the last may have a variable length. */
  readonly fields: readonly LayoutField[];
  /** A value that the dialect does not write because it is always the same. */
  readonly implied?: readonly [Field, number];
  /** {@link implied} holds only if none of these is 0; otherwise the field is 0. */
  readonly impliedIf?: readonly Field[];
  /** A payload of this size or more is another dialect's and refused. */
  readonly below?: number;
}

export interface Wire {
  /** The byte behind the type. */
  readonly id: number;
  readonly request: Layout;
  /** Payload of the answer; without it the message is never answered. */
  readonly response?: Layout;
}

/** One message of the table. */
export interface Definition {
  readonly kind: Kind;
  readonly name: string;
  /** A bus message; otherwise a transport message, about one device. */
  readonly bus: boolean;
  /** An event: never answered, exact in size. */
  readonly event: boolean;
  /** Who sends the request or event. */
  readonly sender: "driver" | "device" | "either";
  /** How each dialect that has the message writes it, as far as that is not as in another (table.ts). */
  readonly wire: Readonly<Partial<Record<Dialect, Wire | undefined>>>;
}

/**
 * Makes a layout.
 *
 * @param size bytes without a part of variable length
 * @param lists fields as in docs/wire.md, in pieces: "0 u32 index, 4 u32 count"
 * @throws if there is a gap, an overlap, another size, or a name or type that there is not or that do not fit
 */
export function layout(size: number, ...lists: readonly string[]): Layout {
  const made = { size, fields: lists.flatMap((list) => list.split(", ").map(parseField)) };
  checkLayout(made);
  return made;
}

function parseField(field: string): LayoutField {
  const [offset, type, name] = field.split(" ") as [string, Type, LayoutField[2]];
  const isName = NOT_NUMBERS.includes(name) || FIELDS.includes(name as Field);
  if (!(type in SIZES) || !isName) throw new Error(`"${field}" is no field`);
  return [Number(offset), type, name];
}

export const EMPTY: Layout = { size: 0, fields: [] };

/** What an entry of the table is unless it says otherwise: a transport message of the driver side. */
type Traits = Partial<Pick<Definition, "bus" | "sender">>;

export function request(
  name: keyof typeof Kind,
  wire: Definition["wire"],
  traits: Traits = {},
): Definition {
  return { kind: Kind[name], name, bus: false, sender: "driver", event: false, wire, ...traits };
}

/** An entry for an event, which nobody answers. */
export function event(
  name: keyof typeof Kind,
  sender: Definition["sender"],
  wire: Definition["wire"],
  traits: Traits = {},
): Definition {
  for (const form of Object.values(wire)) {
    if (form?.response !== undefined) throw new Error(`${name} is an event with an answer`);
  }
  return { kind: Kind[name], name, bus: false, sender, event: true, wire, ...traits };
}

/** Whether a field of this type has a length that another field gives. */
export function isVariable(type: Type): boolean {
  return SIZES[type] === 0;
}

/** The name a field of this type must have, undefined for one that takes a number. */
function arrayOf(type: Type): "words" | "bytes" | "uuid" | undefined {
  if (type === "uuid") return "uuid";
  if (type.startsWith("words")) return "words";
  return type.startsWith("bytes") || type.startsWith("bits") ? "bytes" : undefined;
}

function checkLayout({ size, fields }: Layout): void {
  const names = fields.map(([, , name]) => name);
  let end = 0;
  fields.forEach(([offset, type, name], position) => {
    const at = `${name} at ${offset}`;
    if (offset !== end) throw new Error(`${at} should be at ${end}`);
    end += SIZES[type];
    const array = arrayOf(type);
    const isArray = name !== "reserved" && NOT_NUMBERS.includes(name);
    if (array === undefined ? isArray : name !== array) throw new Error(`${at} cannot be ${type}`);
    if (names.indexOf(name) !== position && name !== "reserved") throw new Error(`${at}: twice`);
    if (type === "next" && name !== "nextOffset") throw new Error(`${at} cannot be ${type}`);
    if (!isVariable(type)) return;
    if (position !== fields.length - 1) throw new Error(`${at} must be last`);
    const counter = type.includes("[count]") ? "count" : "length";
    if (!names.includes(counter)) throw new Error(`${at} needs ${counter}`);
  });
  if (end !== size) throw new Error(`${names}: ${end} bytes listed, size ${size}`);
}
