/**
 * Reads message queues from outside, for people: of linux-user's files, or of the pages that ivshmem and shm have in
 * shared memory, in either layout, of whichever implementation. Nothing is written, locked or mapped: the bytes are copied once, and what
 * is made of them is made of the copy.
 *
 * A slot keeps its message until the producer comes round again, so what was said last lies behind the tail. Who is
 * asked and has not answered is seen by tokens: an answer to a request that lies in one queue lies in the other.
 * That is said only where no answer can have been written over, see {@link unansweredIn}.
 */

import { allocate } from "../linux/arena.ts";
import { VmsgError } from "../linux/errors.ts";
import { fileSize, fileStatus } from "../linux/fd.ts";
import { check, lastError, libc } from "../linux/libc.ts";
import { openToRead } from "../linux/process_files.ts";
import { codecFor } from "../message/codecs.ts";
import { type Dialect, Kind, Message } from "../message/message.ts";
import { isBusMessage, MESSAGES } from "../message/table.ts";
import { describe } from "../message/text.ts";
import type { Side } from "./bus.ts";
import { isAmpLayout, readBlock } from "./amp_block.ts";
import { readHead } from "./amp_queue.ts";
import { type PageLayout, QUEUE_PAGE } from "./page_bus.ts";
import { SLOT_SIZE, SLOTS_OFFSET, spscCapacity, spscSize, TAIL_WORD } from "./spsc_queue.ts";

/** Bytes of a queue file of the linux-user bus. */
const QUEUE_FILE = spscSize(4096);
const block = allocate(QUEUE_FILE);
/** As messages are tried where no dialect is given: their sizes tell these from each other. `rfc-q` reads as `rfc`. */
const SIZED: readonly Dialect[] = ["v1", "v1-2025", "rfc"];
/** What the layouts call the index that is written next, and the one that is read next. */
export const NAMES: Readonly<Record<PageLayout, readonly ["head" | "tail", "head" | "tail"]>> = {
  spsc: ["head", "tail"],
  amp1: ["tail", "head"],
};
/** The shortest message has 6 bytes. */
const LEAST_ELEMENT = 6;
/** Bytes that are shown of a slot that is not understood. */
const SHOWN_BYTES = 16;

/** The message of one slot. */
export interface ReadMessage {
  readonly slot: number;
  /** The consumer has not read it. */
  readonly waits: boolean;
  readonly text: string;
  /** A request that has an answer. */
  readonly asks: boolean;
  /** Nothing came back in the other queue. */
  unanswered: boolean;
  /** What an answer and its request have in common; undefined of others. */
  readonly pair: string | undefined;
}

/** One queue as it was. */
export interface ReadQueue {
  readonly path: string;
  /** Its producer. */
  readonly from: Side;
  readonly layout: PageLayout;
  /** What its producer says of itself, in a layout that has a word for it. */
  readonly status: string | undefined;
  readonly dialect: Dialect;
  readonly capacity: number;
  /** Named as the layout does ({@link NAMES}): in one they are what in the other they are not. */
  readonly head: number;
  readonly tail: number;
  /** Messages that wait. */
  readonly waiting: number;
  /** What is wrong with an index. */
  readonly problem: string | undefined;
  /** Oldest first; slots that were never written are left out. */
  readonly messages: readonly ReadMessage[];
}

/** What to read, and how. */
export interface ReadOptions {
  /** Guessed unless given. */
  readonly dialect?: Dialect | undefined;
  /** Of two pages in their file. */
  readonly offset?: number;
}

/** One direction, wherever its layout has it. */
interface Area {
  readonly path: string;
  /** Its producer. */
  readonly from: Side;
  readonly layout: PageLayout;
  /** What its producer says of itself, in a layout that has a word for it. */
  readonly status?: string | undefined;
  readonly bytes: Uint8Array;
  /** Where slots begin, how many bytes each has, and how many there are. */
  readonly start: number;
  readonly stride: number;
  readonly capacity: number;
  /** The slot that is written next, and the one that is read next. */
  readonly next: number;
  readonly unread: number;
}

/**
 * The queues of one bus: its two files, or one of them, or the file or device that holds its pages.
 *
 * @throws VmsgError QUEUE with what is wrong, in one line
 */
export function readQueues(paths: readonly string[], options: ReadOptions = {}): ReadQueue[] {
  const areas = paths.flatMap((path) => areasOf(path, options.offset ?? 0));
  const dialect = options.dialect ?? guess(areas);
  const queues = areas.map((area) => queueOf(area, dialect));
  if (queues.every(({ problem }) => problem !== undefined)) {
    const [{ path, problem }] = queues as [ReadQueue];
    throw new VmsgError("QUEUE", `${path}: no queues are there: ${problem}`);
  }
  const [one, other] = queues;
  if (one !== undefined && other !== undefined) {
    markUnanswered(one, other);
    markUnanswered(other, one);
  }
  return queues;
}

function areasOf(path: string, offset: number): Area[] {
  using fd = openToRead(path);
  if (fd === undefined) throw lastError(`open ${path}`);
  const { kind } = fileStatus(fd);
  if (kind !== "file" && kind !== "other") {
    throw new VmsgError("QUEUE", `${path}: a ${kind}, and no memory with queues`);
  }
  const read = (at: number, size: number) => {
    const length = libc.pread(fd.number, block.address, size, BigInt(at));
    return block.bytes.slice(0, check(length, `read ${path}`));
  };
  if (kind === "file" && fileSize(fd) === QUEUE_FILE && offset === 0) {
    const bytes = read(0, QUEUE_FILE);
    if (bytes.length === QUEUE_FILE && !isAmpLayout(bytes)) {
      return [spscArea(path, path.endsWith("-device") ? "device" : "driver", bytes)];
    }
  }
  const bytes = read(offset, 2 * QUEUE_PAGE);
  if (isAmpLayout(bytes)) return ampAreas(path, read(offset, QUEUE_FILE));
  if (bytes.length < 2 * QUEUE_PAGE) {
    const what = `${bytes.length} bytes from ${offset} on`;
    throw new VmsgError("QUEUE", `${path}: ${what}, two queues have ${2 * QUEUE_PAGE}`);
  }
  return [
    spscArea(path, "driver", bytes.slice(0, QUEUE_PAGE)),
    spscArea(path, "device", bytes.slice(QUEUE_PAGE)),
  ];
}

function spscArea(path: string, from: Side, bytes: Uint8Array): Area {
  const view = viewOf(bytes);
  return {
    ...{ path, from, layout: "spsc", bytes, start: SLOTS_OFFSET, stride: SLOT_SIZE },
    capacity: spscCapacity(bytes.length),
    next: view.getUint32(0, true),
    unread: view.getUint32(4 * TAIL_WORD, true),
  };
}

/** Both directions of an AMP layout, of whose elements anybody's may be short or long. */
function ampAreas(path: string, bytes: Uint8Array): Area[] {
  const place = readBlock(new Uint16Array(bytes.buffer, 0, bytes.length >> 1), LEAST_ELEMENT);
  if (typeof place !== "object") {
    throw new VmsgError("QUEUE", `${path}: a layout amp1 that cannot be: ${place}`);
  }
  const { count, elementSize } = place;
  return (["driver", "device"] as const).map((from) => {
    const [own, other] = from === "driver"
      ? [place.driver, place.device]
      : [place.device, place.driver];
    const [said, heard] = [readHead(bytes, own.head), readHead(bytes, other.head)];
    return {
      ...{ path, from, layout: "amp1", bytes, start: own.elements, stride: elementSize },
      status: said?.status ?? "no head yet",
      capacity: count,
      // Who has no head yet has written nothing and read nothing.
      next: said?.tail ?? 0,
      unread: heard?.head ?? 0,
    };
  });
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** A copy of one slot, with zeros behind where its elements are short. */
function slotAt({ bytes, start, stride }: Area, slot: number): Uint8Array {
  const at = start + stride * slot;
  const copy = new Uint8Array(SLOT_SIZE);
  copy.set(bytes.subarray(at, at + Math.min(stride, SLOT_SIZE)));
  return copy;
}

function slotsOf(area: Area): number[] {
  return Array.from({ length: area.capacity }, (_, slot) => slot)
    .filter((slot) => slotAt(area, slot).some((byte) => byte !== 0));
}

/** The dialect in which most slots are understood; `proto` has no sizes, and takes much of the others for its own. */
function guess(areas: readonly Area[]): Dialect {
  const message = new Message();
  const slots = areas.flatMap((area) => slotsOf(area).map((slot) => viewOf(slotAt(area, slot))));
  const understood = (dialect: Dialect) => {
    const codec = codecFor(dialect);
    return slots.filter((view) => codec.decode(view, 0, message) === undefined).length;
  };
  const counts = SIZED.map(understood);
  const most = Math.max(...counts);
  return 2 * most >= understood("proto") ? SIZED[counts.indexOf(most)]! : "proto";
}

function queueOf(area: Area, dialect: Dialect): ReadQueue {
  const { path, from, layout, status, capacity, next, unread } = area;
  const [written, read] = NAMES[layout];
  const outside = (name: string, index: number) =>
    index < capacity ? undefined : `the ${name} is ${index}, and there are ${capacity} slots`;
  const problem = outside(written, next) ?? outside(read, unread);
  // As its consumer does, nothing is taken to wait behind an index that cannot be.
  const waiting = problem === undefined ? (next - unread + capacity) % capacity : 0;
  const end = next < capacity ? next : 0;
  const age = (slot: number) => (end - slot - 1 + capacity) % capacity;
  const message = new Message();
  // The slot that is written next is the producer's, who may be writing it, or died over it.
  const messages = slotsOf(area).filter((slot) => slot !== next).sort((a, b) => age(b) - age(a))
    .map((slot) => messageOf(area, slot, age(slot) < waiting, dialect, message));
  const [head, tail] = written === "head" ? [next, unread] : [unread, next];
  return { path, from, layout, status, dialect, capacity, head, tail, waiting, problem, messages };
}

function messageOf(
  area: Area,
  slot: number,
  waits: boolean,
  dialect: Dialect,
  message: Message,
): ReadMessage {
  const bytes = slotAt(area, slot);
  const codec = codecFor(dialect);
  const reason = codec.decode(viewOf(bytes), 0, message);
  if (reason !== undefined) {
    const shown = Array.from(
      bytes.subarray(0, SHOWN_BYTES),
      (b) => b.toString(16).padStart(2, "0"),
    );
    const text = `not understood (${reason}): ${shown.join(" ")} ...`;
    return { slot, waits, text, asks: false, unanswered: false, pair: undefined };
  }
  const { kind, device, token, response } = message;
  const text = `${isBusMessage(kind) ? "bus" : `dev ${device}`} ${describe(message)}`;
  const isPaired = codec.conduct.hasTokens && !MESSAGES[kind].event && codec.answered(kind);
  const pair = isPaired ? `${kind} ${device} ${token}` : undefined;
  return { slot, waits, text, asks: pair !== undefined && !response, unanswered: false, pair };
}

/**
 * Marks the requests that were not answered. The answers' queue must not have come round, or else an answer to an
 * earlier request must still be in it: then a later one would be as well.
 */
function markUnanswered(requests: ReadQueue, answers: ReadQueue): void {
  const answered = new Set(
    answers.messages.filter(({ asks }) => !asks).map(({ pair }) => pair),
  );
  const isAnswered = ({ asks, pair }: ReadMessage) => asks && answered.has(pair);
  const newest = requests.messages.findLastIndex(isAnswered);
  const hasComeRound = answers.messages.length >= answers.capacity - 1;
  if (newest < 0 && hasComeRound) return;
  for (const message of requests.messages.slice(newest + 1)) message.unanswered = message.asks;
}

/** The requests of the driver side that the device side has not answered, or the other way round. */
export function unansweredIn(queues: readonly ReadQueue[]): string[] {
  return queues.flatMap(({ from, messages }) =>
    messages.filter(({ unanswered }) => unanswered).map(({ text, waits }) =>
      `the ${from} side waits for an answer to ${text}${waits ? ", which was not read" : ""}`
    )
  );
}

/** The bus whose queue file this is, by its name; undefined if it is none. */
export function busOfQueueFile(path: string): string | undefined {
  return /^(.*\bqueue-[^/]*)-(driver|device)$/.exec(path)?.[1];
}

/** Does a message say no more than that a side is there? */
export function isHeartbeat({ text }: ReadMessage): boolean {
  return text.startsWith(`bus ${MESSAGES[Kind.HELLO].name}`);
}
