/**
 * The frames on the bridge's rings: messages of dialect `v1` and the bridge's own, as a codec written from the
 * wire document alone (5N.2, 5N.3, 8.12). It is strict: what has another size than the tables say, or
 * anything but 0 where they say 0, is no frame.
 */

/** One word of a payload; `b` are bytes, `w` 32-bit words, both to the end of the frame; `z` has to be 0. */
type Word =
  | "u8"
  | "u16"
  | "u32"
  | "s32"
  | "u64"
  | "z8"
  | "z16"
  | "z32"
  | "z48"
  | "z64"
  | "b16"
  | "b"
  | "w";

const SIZES: Readonly<Record<Word, number>> = {
  u8: 1,
  u16: 2,
  u32: 4,
  s32: 4,
  u64: 8,
  z8: 1,
  z16: 2,
  z32: 4,
  z48: 6,
  z64: 8,
  b16: 16,
  b: 0,
  w: 0,
};

interface Form {
  readonly type: number;
  readonly id: number;
  readonly words: readonly (readonly [Word, string])[];
}

const FORMS = new Map<string, Form>();

function form(name: string, type: number, id: number, payload: string): void {
  const words = payload.split(", ").filter((word) => word !== "").map((word) => {
    const [kind, field = ""] = word.split(" ");
    return [kind as Word, field] as const;
  });
  FORMS.set(name, { type, id, words });
}

function exchange(name: string, id: number, request: string, response: string, type = 0): void {
  form(name, type, id, request);
  form(`${name}.resp`, type | 1, id, response);
}

const QUEUE = "u64 desc, u64 driver, u64 device";
const DATA = "u32 generation, u32 offset, u32 length, b data";
const BLOCKS = "u32 first, u32 count, w blocks";
const WINDOW = "u64 epoch, u64 map_seq, u64 map_id";

exchange(
  "GET_DEVICE_INFO",
  0x02,
  "",
  "u32 device_id, u32 vendor_id, b16 uuid, u32 num_feature_blocks, u32 config_size, u32 max_virtqueues, u32 admin_vq_start, u32 admin_vq_count",
);
exchange("GET_DEVICE_FEATURES", 0x03, "u32 first, u32 count", BLOCKS);
exchange("SET_DRIVER_FEATURES", 0x04, BLOCKS, "");
exchange("GET_CONFIG", 0x05, "u32 offset, u32 length", DATA);
exchange("SET_CONFIG", 0x06, DATA, DATA);
exchange("GET_DEVICE_STATUS", 0x07, "", "u32 status");
exchange("SET_DEVICE_STATUS", 0x08, "u32 status", "u32 status");
exchange(
  "GET_VQUEUE",
  0x09,
  "u32 index",
  `u32 index, u32 max_size, u32 cur_size, u32 flags, ${QUEUE}`,
);
exchange("SET_VQUEUE", 0x0a, `u32 index, u32 flags, u32 size, z32, ${QUEUE}`, "");
exchange("RESET_VQUEUE", 0x0b, "u32 index", "");
exchange("GET_SHM", 0x0c, "u32 shmid", "u32 shmid, z32, u64 length, u64 address");
form("EVENT_CONFIG", 0, 0x40, "u32 status, u32 generation, u32 offset, u32 length, b data");
form("EVENT_AVAIL", 0, 0x41, "u32 index, u32 word");
form("EVENT_USED", 0, 0x42, "u32 index");

const LOCAL = 2;
form("BRIDGE_ERROR", LOCAL | 1, 0x88, "u16 dev_num, u8 msg_id, z8, s32 errno");
exchange(
  "MAP_ADD",
  0x89,
  `${WINDOW}, u64 bus_addr, u64 length, u64 mmap_offset, u64 mmap_length, u32 flags, z32`,
  `${WINDOW}, s32 status, z32`,
  LOCAL,
);
exchange(
  "MAP_DEL",
  0x8a,
  `${WINDOW}, u64 bus_addr, u64 length, z64`,
  `${WINDOW}, s32 status, z32`,
  LOCAL,
);
form("ENDPOINT_ONLINE", LOCAL, 0xc0, "u64 epoch, b16 name, u32 limit, z32");
form("ENDPOINT_OFFLINE", LOCAL, 0xc1, "u64 epoch, u32 reason, z32");
form("TOPOLOGY_RESET", LOCAL, 0xc2, "u64 epoch, z64");
form("TOPOLOGY_DEV_ADD", LOCAL, 0xc3, "u64 epoch, u16 dev_num, z48");
form("TOPOLOGY_COMMIT", LOCAL, 0xc4, "u64 epoch, u16 count, z48");
form("MAP_RELEASED", LOCAL, 0xc5, `${WINDOW}, u64 bus_addr, u64 length`);

/** What a frame says: its numbers, those of 64 bits as bigint, and its bytes. */
export interface Fields {
  readonly [name: string]: number | bigint | Uint8Array | readonly number[];
}

export interface Frame {
  readonly name: string;
  readonly dev: number;
  readonly token: number;
  readonly fields: Fields;
}

/** The number of a field. */
export function numberOf(frame: Frame, field: string): number {
  const value = frame.fields[field];
  if (typeof value !== "number") throw new Error(`${frame.name} has no number ${field}`);
  return value;
}

/** A field of 64 bits. */
export function wideOf(frame: Frame, field: string): bigint {
  const value = frame.fields[field];
  if (typeof value !== "bigint") throw new Error(`${frame.name} has no ${field} of 64 bits`);
  return value;
}

/** A field of bytes. */
export function bytesOf(frame: Frame, field: string): Uint8Array {
  const value = frame.fields[field];
  if (!(value instanceof Uint8Array)) throw new Error(`${frame.name} has no bytes ${field}`);
  return value;
}

/** 32-bit words of a field. */
export function wordsOf(frame: Frame, field: string): readonly number[] {
  const value = frame.fields[field];
  if (!Array.isArray(value)) throw new Error(`${frame.name} has no words ${field}`);
  return value as readonly number[];
}

const HEADER = 8;

export function encodeFrame({ name, dev, token, fields }: Frame): Uint8Array<ArrayBuffer> {
  const { type, id, words } = FORMS.get(name)!;
  const bytes: number[] = [];
  const put = (value: number | bigint, size: number) => {
    for (let i = 0; i < size; i++) {
      bytes.push(Number((BigInt.asUintN(64, BigInt(value)) >> BigInt(8 * i)) & 0xffn));
    }
  };
  for (const [kind, field] of words) {
    const value = fields[field];
    if (kind.startsWith("z")) put(0, SIZES[kind]);
    else if (kind === "w") { for (const word of value as readonly number[]) put(word, 4); }
    else if (kind.startsWith("b")) bytes.push(...value as Uint8Array);
    else put(value as number | bigint, SIZES[kind]);
  }
  const frame = new Uint8Array(HEADER + bytes.length);
  const view = new DataView(frame.buffer);
  view.setUint8(0, type);
  view.setUint8(1, id);
  view.setUint16(2, dev, true);
  view.setUint16(4, token, true);
  view.setUint16(6, frame.length, true);
  frame.set(bytes, HEADER);
  return frame;
}

/** How many bytes the last field of a frame must have by what the others say. */
function restOf(name: string, fields: Fields, there: number): number {
  if ("count" in fields && /FEATURES/.test(name)) return 4 * Number(fields.count);
  if (!("length" in fields) || !/CONFIG/.test(name)) return 0;
  // What was written need not be repeated.
  if (name === "SET_CONFIG.resp" && there === 0) return 0;
  return Number(fields.length);
}

/** @throws with what is wrong of it */
export function decodeFrame(bytes: Uint8Array): Frame {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < HEADER) throw new Error("shorter than a header");
  const type = view.getUint8(0), id = view.getUint8(1);
  if (view.getUint16(6, true) !== bytes.length) throw new Error("msg_size is not its size");
  const found = [...FORMS].find(([, form]) => form.type === type && form.id === id);
  if (found === undefined) throw new Error(`no frame has type ${type} and id ${id}`);
  const [name, { words }] = found;
  const fields: Record<string, number | bigint | Uint8Array | number[]> = {};
  let at = HEADER;
  for (const [kind, field] of words) {
    if (kind === "b" || kind === "w") {
      const size = restOf(name, fields, bytes.length - at);
      const rest = bytes.slice(at, at + size);
      if (rest.length !== size) throw new Error(`${name} has no ${size} bytes of ${field}`);
      fields[field] = kind === "b" ? rest : [...new Uint32Array(rest.buffer)];
      at += size;
      continue;
    }
    const size = SIZES[kind];
    if (at + size > bytes.length) throw new Error(`${name} ends before ${field || "its zeros"}`);
    const raw = bytes.slice(at, at + size);
    if (kind.startsWith("z")) {
      if (raw.some((byte) => byte !== 0)) throw new Error(`${name} has no zeros at ${at}`);
    } else if (kind === "b16") fields[field] = raw;
    else if (kind === "u64") fields[field] = view.getBigUint64(at, true);
    else if (kind === "s32") fields[field] = view.getInt32(at, true);
    else {fields[field] = size === 4
        ? view.getUint32(at, true)
        : size === 2
        ? view.getUint16(at, true)
        : view.getUint8(at);}
    at += size;
  }
  if (at !== bytes.length) throw new Error(`${name} has ${bytes.length - at} bytes too many`);
  return { name, dev: view.getUint16(2, true), token: view.getUint16(4, true), fields };
}
