/**
 * A disk, by io_uring and by system calls: requests of any kind, about any sectors, in buffers cut to pieces. Each gets
 * the status that the specification has for it; what is read is what the file holds, and the file changes where it is
 * written and nowhere else.
 */

import { assert, assertEquals } from "@std/assert";
import {
  DISCARD,
  DiskRig,
  FLUSH,
  GET_ID,
  IN,
  IOERR,
  OK,
  OUT,
  SECTORS,
  UNSUPP,
  UNTOUCHED,
  WITHOUT_RING,
  WRITE_ZEROES,
} from "../devices/blk/support.ts";
import type { MockElement, Random } from "../support/mock_driver.ts";
import { BUFFERS } from "../support/queue_rig.ts";
import type { Fuzzer } from "./fuzzer.ts";

const HEADER = 16, MOST_DATA = 8192;
/** Where what is read lies, and what is written. */
const READ_AT = BUFFERS, WRITE_AT = BUFFERS + 0x8000;
const TYPES = [IN, IN, IN, OUT, OUT, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES];
const BYTES = SECTORS * 512;

/** One piece of memory as several descriptors. */
function pieces(random: Random, address: number, length: number): MockElement[] {
  const elements: MockElement[] = [];
  for (let at = 0; at < length;) {
    const isCut = elements.length < 12 && random.chance(0.5);
    const part = isCut ? 1 + random.below(length - at) : length - at;
    elements.push({ address: address + at, length: part });
    at += part;
  }
  return elements;
}

function anySector(random: Random): number {
  if (random.chance(0.7)) return random.below(SECTORS);
  if (random.chance(0.5)) return SECTORS - 8 + random.below(16);
  return random.pick([2 ** 32, 2 ** 41, 2 ** 52, 2 ** 63]) + random.below(2) * 2048;
}

function anyLength(random: Random): number {
  return random.chance(0.85) ? 512 * random.below(17) : random.below(MOST_DATA);
}

interface Expected {
  readonly status: number;
  /** What the file holds afterwards. */
  readonly file: Uint8Array;
  /** What the guest is given. */
  readonly given?: Uint8Array;
}

/** What a request comes to, by the specification (5.2.6). */
function expected(
  before: Uint8Array,
  type: number,
  sector: number,
  out: Uint8Array,
  room: number,
): Expected {
  const file = before.slice();
  const answer = (status: number, given?: Uint8Array) => ({ status, file, ...given && { given } });
  const isInside = (from: number, bytes: number) => from * 512 + bytes <= BYTES;
  const view = new DataView(out.buffer, out.byteOffset, out.length);
  switch (type) {
    case IN:
      if (out.length > 0 || room % 512 !== 0 || !isInside(sector, room)) return answer(IOERR);
      return answer(OK, before.slice(sector * 512, sector * 512 + room));
    case OUT:
      if (room > 0 || out.length % 512 !== 0 || !isInside(sector, out.length)) return answer(IOERR);
      file.set(out, sector * 512);
      return answer(OK);
    case FLUSH:
      return answer(OK);
    case GET_ID:
      return answer(OK, new TextEncoder().encode("serial 1".padEnd(20, "\0")).slice(0, room));
    case DISCARD:
    case WRITE_ZEROES: {
      if (out.length !== 16) return answer(IOERR);
      const from = Number(view.getBigUint64(0, true));
      const count = view.getUint32(8, true);
      const flags = view.getUint32(12, true);
      if (flags > (type === WRITE_ZEROES ? 1 : 0)) return answer(UNSUPP);
      if (!isInside(from, count * 512)) return answer(IOERR);
      file.fill(0, from * 512, (from + count) * 512);
      return answer(OK);
    }
    default:
      return answer(UNSUPP);
  }
}

function anySegment(random: Random): Uint8Array {
  const view = new DataView(new ArrayBuffer(16));
  view.setBigUint64(0, BigInt(anySector(random)), true);
  view.setUint32(8, random.chance(0.1) ? random.u32() : random.below(20), true);
  view.setUint32(12, random.chance(0.1) ? random.u32() : random.below(2), true);
  return new Uint8Array(view.buffer);
}

function ask(disk: DiskRig, random: Random): boolean {
  const { memory } = disk.rig;
  const type = random.chance(0.9) ? random.pick(TYPES) : random.u32();
  const sector = anySector(random);
  const isClearing = type === DISCARD || type === WRITE_ZEROES;
  const hasOut = random.chance(0.1) ? random.chance(0.5) : type === OUT;
  const hasRoom = random.chance(0.1) ? random.chance(0.5) : type === IN || type === GET_ID;
  const out = isClearing && random.chance(0.9)
    ? anySegment(random)
    : new Uint8Array(hasOut ? anyLength(random) : 0).fill(random.below(256));
  const room = hasRoom ? anyLength(random) : 0;
  memory.write32(READ_AT, type);
  memory.write64(READ_AT + 8, BigInt(sector));
  memory.bytes(READ_AT + HEADER, MOST_DATA).fill(0).set(out);
  memory.bytes(WRITE_AT, MOST_DATA + 64).fill(UNTOUCHED);
  const isWhole = random.chance(0.95);
  const readable = isWhole ? HEADER + out.length : random.below(HEADER);
  const before = disk.file;
  const given = disk.add(
    pieces(random, READ_AT, readable),
    pieces(random, WRITE_AT, room + 1),
  );
  const { head, length } = disk.used();
  assertEquals(head, given.head);
  const wanted = isWhole
    ? expected(before, type, sector, out, room)
    : { status: IOERR, file: before };
  assertEquals(memory.bytes(WRITE_AT + room, 1)[0], wanted.status, `type ${type}`);
  // assertEquals would look at each byte in words.
  const isSame = (a: Uint8Array, b: Uint8Array) => a.every((byte, i) => byte === b[i]);
  assert(isSame(disk.file, wanted.file), `the file after type ${type} at ${sector}`);
  const filled = wanted.given ?? new Uint8Array();
  assert(isSame(filled, memory.bytes(WRITE_AT, filled.length)), "what the guest was given");
  const behind = memory.bytes(WRITE_AT + room + 1, 63);
  const between = memory.bytes(WRITE_AT + filled.length, room - filled.length);
  assert(between.every((byte) => byte === UNTOUCHED), "what the guest was not to be given");
  assert(behind.every((byte) => byte === UNTOUCHED), "a byte behind the buffer");
  assertEquals(length, filled.length === room ? room + 1 : filled.length);
  memory.checkGuards();
  return wanted.status === OK;
}

const disk: Fuzzer["open"] = async (use) => {
  using byRing = new DiskRig();
  using byCalls = new DiskRig(WITHOUT_RING);
  let done = 0;
  await use({
    round(random) {
      if (ask(random.chance(0.5) ? byRing : byCalls, random)) done++;
    },
    finish: (rounds) => `${done} of ${rounds} requests were carried out`,
  });
};

export const DISK_FUZZERS: readonly Fuzzer[] = [
  {
    name: "disk",
    what: "requests of any kind to a disk, held against what they should come to",
    open: disk,
  },
];
