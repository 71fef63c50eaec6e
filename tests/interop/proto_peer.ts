/**
 * A peer of the linux-user bus that shares nothing with src/: written from docs/wire.md alone
 * (sections 2, 3, 4.1, 4.2), with its own queues, encodings, split ring and frames. Memory is not mapped
 * but read and written through files, which show the same pages.
 *
 * It behaves as the prototype QEMU does (2.3, 2.4): a request is pushed and the byte 0xED is sent, then the
 * queue is polled 1024 times; what would make QEMU abort is collected in {@link ProtoPeer.aborts}.
 */

/** How the messages are written (1.2). */
export type Form = "proto" | "rfc" | "rfc-q" | "v1-2025" | "v1";

/** What is alike in some forms and differs in others. */
interface Shape {
  /** Bytes of the header, where the size is in it (0: nowhere), and bytes of every message (0: as many as said). */
  readonly header: number;
  readonly sizeAt: number;
  readonly fixed: number;
  readonly hasTokens: boolean;
  /** Where a queue's addresses begin in SET_VQUEUE and GET_VQUEUE. */
  readonly rings: number;
}

const REVISION_1: Shape = { header: 8, sizeAt: 6, fixed: 0, hasTokens: true, rings: 16 };
const RFC: Shape = { header: 6, sizeAt: 4, fixed: 0, hasTokens: false, rings: 12 };
const SHAPES: Readonly<Record<Form, Shape>> = {
  proto: { header: 4, sizeAt: 0, fixed: 40, hasTokens: false, rings: 8 },
  rfc: RFC,
  "rfc-q": { ...RFC, fixed: 44 },
  "v1-2025": REVISION_1,
  v1: REVISION_1,
};

/** What a message means; names as in docs/wire.md, ids differ between the forms (1.3). */
type Name =
  | "info"
  | "getFeatures"
  | "setFeatures"
  | "getConfig"
  | "setConfig"
  | "getStatus"
  | "setStatus"
  | "getQueue"
  | "setQueue"
  | "resetQueue"
  | "eventConfig"
  | "eventAvail"
  | "eventUsed"
  | "iommuEnable"
  | "translate";

const PROTO_IDS: Readonly<Record<Name, number>> = {
  info: 0x03,
  getFeatures: 0x04,
  setFeatures: 0x05,
  getConfig: 0x06,
  setConfig: 0x07,
  getStatus: 0x09,
  setStatus: 0x0a,
  getQueue: 0x0b,
  setQueue: 0x0c,
  resetQueue: 0x0d,
  eventConfig: 0x10,
  eventAvail: 0x11,
  eventUsed: 0x12,
  iommuEnable: 0x20,
  translate: 0x21,
};

const V1_IDS: Readonly<Record<Name, number>> = {
  info: 0x02,
  getFeatures: 0x03,
  setFeatures: 0x04,
  getConfig: 0x05,
  setConfig: 0x06,
  getStatus: 0x07,
  setStatus: 0x08,
  getQueue: 0x09,
  setQueue: 0x0a,
  resetQueue: 0x0b,
  eventConfig: 0x40,
  eventAvail: 0x41,
  eventUsed: 0x42,
  // There is none: ids that nobody uses.
  iommuEnable: 0x13e,
  translate: 0x13f,
};

const IDS: Readonly<Record<Form, Readonly<Record<Name, number>>>> = {
  proto: PROTO_IDS,
  rfc: V1_IDS,
  "rfc-q": { ...V1_IDS, iommuEnable: 0x80, translate: 0x81 },
  "v1-2025": V1_IDS,
  v1: V1_IDS,
};

const PROTO_SILENT: readonly Name[] = ["setStatus", "setQueue", "resetQueue", "iommuEnable"];
const EVENTS: readonly Name[] = ["eventConfig", "eventAvail", "eventUsed"];

/** Status bits (1.5). */
const ACKNOWLEDGE = 1;
const DRIVER = 2;
const DRIVER_OK = 4;
const FEATURES_OK = 8;
const NEEDS_RESET = 0x40;

const bit = (n: number) => 1n << BigInt(n);
const VERSION_1 = bit(32);
const ACCESS_PLATFORM = bit(33);
const EVENT_IDX = bit(29);
const MRG_RXBUF = bit(15);
const MAC = bit(5);
const STATUS = bit(16);

/** How often QEMU looks before it aborts (2.4). */
const POLLS = 1024;
const SLOT = 64;
/** 4.2: capacity 4096 slots. */
const CAPACITY = 4096;
const QUEUE_FILE_SIZE = 128 + SLOT * CAPACITY;
const QUEUE_SIZE = 256;
const PAGE = 4096;
const MAX_QUEUE_SIZE = 1024;
const QUEUES = 3;

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** How long anything of another process is waited for. */
const TIMEOUT_MS = 60_000;
/** The least pause between two late looks. QEMU has none; but a machine may have more to do than our tests. */
const PATIENCE_US = 2000;
/** By how much longer the last looks' are, in all most of a minute: a process may not be scheduled for long. */
const LAST_LOOKS = 512, LAST_TIMES = 50;

/** Stands still, as usleep does. */
function sleepUs(us: number): void {
  Atomics.wait(sleeper, 0, 0, us / 1000);
}

/** A file read and written at positions. */
export class MemoryFile implements Disposable {
  readonly #file: Deno.FsFile;

  /**
   * @param size it is given; undefined leaves it as it is
   * @param place where in the file a position of a page is; positions are those of the file unless given
   */
  constructor(path: string, size: number | undefined, readonly place?: (page: number) => number) {
    this.#file = Deno.openSync(path, { read: true, write: true, create: true });
    if (size !== undefined) this.#file.truncateSync(size);
  }

  /** Seeks to a position; how many of `size` bytes lie there in one piece. */
  #seek(at: number, size: number): number {
    const inPage = at % PAGE;
    const start = this.place === undefined ? at : this.place(at - inPage) + inPage;
    this.#file.seekSync(start, Deno.SeekMode.Start);
    return this.place === undefined ? size : Math.min(size, PAGE - inPage);
  }

  read(at: number, size: number): DataView<ArrayBuffer> {
    const bytes = new Uint8Array(size);
    for (let done = 0; done < size;) {
      const part = this.#seek(at + done, size - done);
      const count = this.#file.readSync(bytes.subarray(done, done + part));
      if (count !== part) throw new Error(`no ${size} bytes at ${at}`);
      done += part;
    }
    return new DataView(bytes.buffer);
  }

  write(at: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length;) {
      const part = this.#seek(at + done, bytes.length - done);
      const count = this.#file.writeSync(bytes.subarray(done, done + part));
      if (count !== part) throw new Error("short write");
      done += part;
    }
  }

  u16(at: number): number {
    return this.read(at, 2).getUint16(0, true);
  }

  u32(at: number): number {
    return this.read(at, 4).getUint32(0, true);
  }

  setU16(at: number, value: number): void {
    this.write(at, Uint8Array.of(value & 0xff, (value >> 8) & 0xff));
  }

  setU32(at: number, value: number): void {
    const bytes = new DataView(new ArrayBuffer(4));
    bytes.setUint32(0, value, true);
    this.write(at, new Uint8Array(bytes.buffer));
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

/** 4.1, one direction, from byte `at` of a file on. */
export class Queue {
  constructor(readonly file: MemoryFile, readonly at = 0, readonly capacity = CAPACITY) {}

  #next(index: number): number {
    return index + 1 === this.capacity ? 0 : index + 1;
  }

  push(message: Uint8Array): void {
    const head = this.file.u32(this.at);
    const next = this.#next(head);
    // QEMU spins here; nobody leaves as many messages in these tests.
    if (next === this.file.u32(this.at + 64)) throw new Error("the queue is full");
    this.file.write(this.at + 128 + SLOT * head, message);
    this.file.setU32(this.at, next);
  }

  /** Messages that were not taken yet. */
  get length(): number {
    const [head, tail] = [0, 64].map((at) => this.file.u32(this.at + at)) as [number, number];
    return (head - tail + this.capacity) % this.capacity;
  }

  pop(): Uint8Array | undefined {
    const tail = this.file.u32(this.at + 64);
    if (tail === this.file.u32(this.at)) return undefined;
    const slot = new Uint8Array(this.file.read(this.at + 128 + SLOT * tail, SLOT).buffer);
    this.file.setU32(this.at + 64, this.#next(tail));
    return slot;
  }
}

/** A bus: two queues and a doorbell. */
export interface Wire extends Disposable {
  readonly driver: Pick<Queue, "push" | "pop" | "length">;
  readonly device: Pick<Queue, "push" | "pop" | "length">;
  /** Rings the other side. */
  ring(): Promise<void>;
}

/** 4.2. */
export function linuxUserWire(directory: string, socket: Deno.UnixConn): Wire {
  const path = (which: string) => `${directory}/queue-linux-user-${which}`;
  const [driver, device] = ["driver", "device"].map((which) =>
    new MemoryFile(path(which), QUEUE_FILE_SIZE)
  );
  return {
    driver: new Queue(driver!),
    device: new Queue(device!),
    async ring() {
      try {
        await socket.write(Uint8Array.of(0xed));
      } catch {
        // Nobody is there any more; the poll will find that out.
      }
    },
    [Symbol.dispose]() {
      socket.close();
      driver![Symbol.dispose]();
      device![Symbol.dispose]();
    },
  };
}

/** A decoded message. */
interface Received {
  readonly name: Name | undefined;
  readonly response: boolean;
  readonly device: number;
  readonly token: number;
  readonly payload: DataView;
  readonly size: number;
}

/** Where the shared memory is. */
export interface PeerMemory {
  readonly path: string;
  readonly size: number;
  /** Bus address of its first byte. */
  readonly at: number;
  /** 4.4: the guest's pages are scattered over the file, and only the driver side knows where. */
  readonly scatter?: Scatter;
}

/** What a driver side with a software IOMMU does (4.4). */
export interface Scatter {
  /** Where the file begins in the driver side's machine. */
  readonly machineAt: number;
  /** Where a page of the guest lies in the file, both as offsets. */
  readonly place: (page: number) => number;
  /**
   * What is answered for a page, by its offset. "late": only when the next question has come; "wrong": first the
   * answer to another page; "ones", "zeros": refused, in both ways; "never".
   */
  readonly mode?: (page: number) => "right" | "late" | "wrong" | "ones" | "zeros" | "never";
}

/** What both roles share. */
class ProtoPeer implements Disposable {
  /** Reasons for which QEMU would have aborted, or asserted. */
  readonly aborts: string[] = [];
  /** Messages that came, by id, answers as id + 0x100. */
  readonly counts = new Map<number, number>();
  protected readonly memory: MemoryFile;
  protected features = 0n;
  readonly #out: Wire["driver"];
  protected readonly in: Wire["driver"];
  readonly #ids: Readonly<Record<Name, number>>;
  protected readonly shape: Shape;
  protected token = 0;
  #isClosed = false;

  constructor(
    readonly role: "driver" | "device",
    readonly form: Form,
    readonly wire: Wire,
    readonly shared: PeerMemory,
  ) {
    const { driver, device } = wire;
    [this.#out, this.in] = role === "driver" ? [driver, device] : [device, driver];
    this.memory = new MemoryFile(shared.path, shared.size, shared.scatter?.place);
    this.#ids = IDS[form];
    this.shape = SHAPES[form];
  }

  protected abort(reason: string): void {
    this.aborts.push(reason);
  }

  protected isAnswered(name: Name): boolean {
    if (this.form === "rfc-q" && (name === "iommuEnable" || EVENTS.includes(name))) return false;
    return !EVENTS.includes(name) && (this.form !== "proto" || !PROTO_SILENT.includes(name));
  }

  /** Writes and pushes one message, then rings. */
  async push(
    name: Name,
    response: boolean,
    size: number,
    fill: (payload: DataView) => void,
    token = 0,
  ): Promise<void> {
    const { header, sizeAt, fixed, hasTokens } = this.shape;
    // P7: zeros first. Who has one size writes that, the others zero the slot (B16).
    const bytes = new Uint8Array(fixed === 0 ? SLOT : fixed);
    const view = new DataView(bytes.buffer);
    view.setUint8(0, response ? 1 : 0);
    view.setUint8(1, this.#ids[name]);
    if (hasTokens) view.setUint16(4, token, true);
    if (sizeAt !== 0) view.setUint16(sizeAt, header + size, true);
    fill(new DataView(bytes.buffer, header));
    this.#out.push(bytes);
    await this.wire.ring();
  }

  protected decode(slot: Uint8Array): Received {
    const view = new DataView(slot.buffer);
    const { header, sizeAt, fixed, hasTokens } = this.shape;
    const size = fixed === 0 ? view.getUint16(sizeAt, true) : fixed;
    const response = (slot[0]! & 1) !== 0;
    const id = slot[1]!;
    if (slot[0]! > 1) this.foreignType(slot);
    const found = (slot[0]! & 2) === 0
      ? (Object.keys(this.#ids) as Name[]).find((name) => this.#ids[name] === id)
      : undefined;
    const key = id + (response ? 0x100 : 0);
    if (found !== undefined) this.counts.set(key, (this.counts.get(key) ?? 0) + 1);
    if (fixed === 0) {
      if (size < header || size > SLOT) this.abort(`msg_size ${size}`);
      if (slot.subarray(size).some((byte) => byte !== 0)) this.abort("padding is not zero (B16)");
      if (found === undefined && !response && (slot[0]! & 2) === 0) this.abort(`unknown id ${id}`);
    } else if (found === undefined) this.abort(`unknown id ${id}`);
    if (this.form === "rfc-q") this.#checkNamedSize(found, response, view.getUint16(4, true));
    const token = hasTokens ? view.getUint16(4, true) : 0;
    if (found !== undefined && EVENTS.includes(found) && token !== 0) {
      this.abort("an event with a token (G9)");
    }
    return {
      name: found,
      response,
      device: view.getUint16(2, true),
      token,
      payload: new DataView(slot.buffer, header),
      size,
    };
  }

  /** `rfc-q` (3.8): the size of the structure, which nobody reads. */
  #checkNamedSize(name: Name | undefined, response: boolean, size: number): void {
    const sizes: Readonly<Partial<Record<Name, readonly [request: number, answer: number]>>> = {
      ...{ info: [6, 30], getFeatures: [14, 22], setFeatures: [22, 22], getConfig: [14, 26] },
      ...{ getStatus: [6, 10], setStatus: [10, 10], getQueue: [10, 42], setQueue: [42, 42] },
      ...{ setConfig: [26, 26], resetQueue: [10, 6], eventConfig: [38, 0], eventAvail: [14, 0] },
      ...{ eventUsed: [10, 0], iommuEnable: [7, 0], translate: [15, 23] },
    };
    const wanted = name && sizes[name]?.[response ? 1 : 0];
    if (wanted !== undefined && size !== wanted) this.abort(`${name} names ${size} bytes`);
  }

  /** The type byte has other bits than the response bit. */
  protected foreignType(slot: Uint8Array): void {
    // HELLO of a vmsg driver side is a bus message with an id left to implementations (G17).
    const isPrivate = this.form === "v1" && slot[0] === 2 && slot[1]! >= 0x80;
    if (!isPrivate) this.abort(`type ${slot[0]}`);
  }

  /** The file offset of a bus address, checked. */
  protected offset(address: number, size: number): number {
    const offset = address - this.shared.at;
    if (offset < 0 || offset + size > this.shared.size) {
      this.abort(`address 0x${address.toString(16)} is outside the memory`);
      throw new Error(this.aborts.at(-1));
    }
    return offset;
  }

  [Symbol.dispose](): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.wire[Symbol.dispose]();
    this.memory[Symbol.dispose]();
  }
}

/** The offsets of a split ring in the memory file. */
interface Ring {
  readonly size: number;
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
}

// --- the peer as the driver --------------------------------------------------------------------------

/** What the device said. */
export interface FoundDevice {
  readonly deviceId: number;
  readonly vendorId: number;
  readonly offered: bigint;
  readonly maxSizes: readonly number[];
  readonly status: number;
  readonly mac: Uint8Array;
}

/** The driver side of the prototype, with a tiny guest of its own. */
export class DriverPeer extends ProtoPeer {
  readonly #side: Received[] = [];
  #deviceInfoSize = 0;
  readonly #rings: Ring[] = [];
  readonly #availableIndex = [0, 0];
  readonly #usedIndex = [0, 0];
  #nextTransmit = 0;
  /** Notifications that came, per queue. */
  readonly used = [0, 0, 0];
  /** How long each answer took. */
  readonly latenciesMs: number[] = [];
  /** The least pause between two late looks for an answer. */
  patienceUs = PATIENCE_US;

  /** Connects to a device side that listens. */
  static async connect(form: Form, directory: string, socket: string, memory: PeerMemory) {
    const connection = await Deno.connect({ transport: "unix", path: socket });
    return DriverPeer.on(form, linuxUserWire(directory, connection), memory);
  }

  /** The same over any bus. */
  static on(form: Form, wire: Wire, memory: PeerMemory): DriverPeer {
    return new DriverPeer("driver", form, wire, memory);
  }

  /** Pages that the device asked for, in order, as offsets. */
  readonly translated: number[] = [];
  /** How many of them while an answer was waited for. */
  translatedWhileAsking = 0;
  /** Where in the guest's memory rings and buffers begin. */
  ramAt = 0;
  /** Where buffers begin: off a page's start where pages are scattered. */
  get #receiveAt(): number {
    return this.ramAt + 0x1_0000 + (this.shared.scatter === undefined ? 0 : 0x7c0);
  }
  #late: number | undefined;

  /** 4.4: answers a question for a page, at any time. */
  async #translate(message: Received): Promise<void> {
    const { scatter, at } = this.shared;
    const va = message.payload.getBigUint64(0, true);
    const access = message.payload.getUint8(8);
    const page = Number(va) - at;
    if (scatter === undefined) return this.abort("IOMMU_TRANSLATE without IOMMU_ENABLE (P9)");
    if (message.response) return this.abort("an answer to IOMMU_TRANSLATE");
    if (page % PAGE !== 0) this.abort(`IOMMU_TRANSLATE of 0x${va.toString(16)}: no page`);
    if (access === 0 || access > 3) this.abort(`IOMMU_TRANSLATE for access ${access}`);
    this.translated.push(page);
    const mode = page < 0 || page >= this.shared.size ? "zeros" : scatter.mode?.(page) ?? "right";
    if (mode === "never") return;
    if (mode === "late" && this.#late === undefined) {
      this.#late = page;
      return;
    }
    if (mode === "wrong") await this.#answerPage(page + (1 << 30), 0x1234_5000, access);
    if (mode === "zeros") await this.#answerPage(-at, 0, 0);
    else if (mode === "ones") await this.#answerPage(page, -1, access);
    else await this.#answerPage(page, scatter.machineAt + scatter.place(page), access);
    await this.answerLate();
  }

  /** Answers what was held back. */
  async answerLate(): Promise<void> {
    const page = this.#late;
    if (page === undefined) return;
    this.#late = undefined;
    const { machineAt, place } = this.shared.scatter!;
    await this.#answerPage(page, machineAt + place(page), 3);
  }

  async #answerPage(page: number, physical: number, access: number): Promise<void> {
    await this.push("translate", true, 17, (p) => {
      p.setBigUint64(0, BigInt(this.shared.at + page), true);
      p.setBigInt64(8, BigInt(physical), true);
      p.setUint8(16, access);
    });
  }

  /** Sends a request and polls for its answer as 2.4 has it. */
  async ask(name: Name, size: number, fill: (payload: DataView) => void): Promise<Received> {
    const token = this.shape.hasTokens ? ++this.token : 0;
    const startMs = performance.now();
    await this.push(name, false, size, fill, token);
    for (let poll = 0; poll < POLLS; poll++) {
      const times = poll < LAST_LOOKS ? 1 : LAST_TIMES;
      if (poll > 128) sleepUs(Math.max(times * this.patienceUs, poll / 128));
      const slot = this.in.pop();
      if (slot === undefined) continue;
      const message = this.decode(slot);
      if (message.response && message.name === name && message.token === token) {
        this.latenciesMs.push(performance.now() - startMs);
        return message;
      }
      if (message.name === "translate") {
        this.translatedWhileAsking++;
        await this.#translate(message);
      } else if (message.response) this.abort(`unexpected answer ${message.name}`);
      else this.#side.push(message);
    }
    this.abort(`no answer to ${name} after ${POLLS} polls`);
    throw new Error(this.aborts.at(-1));
  }

  /** Keeps an event for {@link drain}. */
  protected keep(message: Received): void {
    this.#side.push(message);
  }

  /** The status that an EVENT_CONFIG brought last. */
  eventStatus = 0;

  /** Sends a request whose answer is not taken; it is there then. */
  async tell(name: Name): Promise<void> {
    await this.drain();
    await this.push(name, false, 0, () => {});
    const endMs = performance.now() + TIMEOUT_MS;
    while (this.in.length === 0) {
      if (performance.now() > endMs) throw new Error(`no answer to ${name}`);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Puts a request into the queue, and does not ring. */
  slip(name: Name): void {
    const bytes = new Uint8Array(SLOT);
    bytes[1] = IDS[this.form][name];
    this.wire.driver.push(bytes);
  }

  /** Drains the queue outside of a request: only events may be there, and questions for pages. */
  async drain(): Promise<void> {
    for (let slot = this.in.pop(); slot !== undefined; slot = this.in.pop()) {
      const message = this.decode(slot);
      if (message.name === "translate") await this.#translate(message);
      else if (message.response) this.abort(`late answer ${message.name}`);
      else this.#side.push(message);
    }
    await this.answerLate();
    for (const { name, payload } of this.#side.splice(0)) {
      if (name === "eventUsed") this.used[payload.getUint32(0, true)]!++;
      else if (name !== "eventConfig") this.abort(`unexpected ${name}`);
      else if (((this.eventStatus = payload.getUint32(0, true)) & NEEDS_RESET) !== 0) {
        this.abort("NEEDS_RESET");
      }
    }
  }

  /** 2.4: a status write containing FEATURES_OK probes the queues first; then SET, then GET. */
  async setStatus(status: number): Promise<number> {
    if ((status & FEATURES_OK) !== 0) await this.probe();
    if (this.form !== "proto") {
      const answer = await this.ask("setStatus", 4, (p) => p.setUint32(0, status, true));
      return answer.payload.getUint32(0, true);
    }
    await this.push("setStatus", false, 4, (p) => p.setUint32(0, status, true));
    return (await this.ask("getStatus", 0, () => {})).payload.getUint32(0, true);
  }

  /** GET_VQUEUE from 0 until there is none. */
  async probe(): Promise<number[]> {
    const sizes: number[] = [];
    for (let index = 0; index < 1024; index++) {
      const { payload } = await this.ask("getQueue", 4, (p) => p.setUint32(0, index, true));
      if (payload.getUint32(0, true) !== index) this.abort("GET_VQUEUE of another queue");
      const size = payload.getUint32(4, true);
      // 2.5: Linux reads the maximum as 64 bits.
      if (this.form === "proto" && payload.getUint32(8, true) !== 0) this.abort("no zeros (P7)");
      if (size === 0) break;
      sizes.push(size);
    }
    return sizes;
  }

  protected async getFeatures(): Promise<bigint> {
    const isProto = this.form === "proto";
    const { payload } = await this.ask("getFeatures", 8, (p) => {
      if (!isProto) p.setUint32(4, 2, true);
    });
    return payload.getBigUint64(isProto ? 4 : 8, true);
  }

  protected async setFeatures(features: bigint): Promise<void> {
    const isProto = this.form === "proto";
    // Linux leaves the blocks out of the size (3.8).
    const size = isProto ? 12 : this.form === "rfc" ? 8 : 16;
    const { payload } = await this.ask("setFeatures", size, (p) => {
      if (!isProto) p.setUint32(4, 2, true);
      p.setBigUint64(isProto ? 4 : 8, features, true);
    });
    const at = { proto: 4, "rfc-q": 8 }[this.form as string];
    if (at !== undefined && payload.getBigUint64(at, true) !== features) {
      this.abort("features not stored");
    }
  }

  protected async getConfig(offset: number, length: number): Promise<Uint8Array> {
    const isProto = this.form === "proto";
    const { payload } = await this.ask("getConfig", 8, (p) => {
      if (isProto) {
        p.setUint16(0, offset, true);
        p.setUint8(3, length);
      } else {
        p.setUint32(0, offset, true);
        p.setUint32(4, length, true);
      }
    });
    const at = payload.byteOffset + (isProto ? 4 : 12);
    return new Uint8Array(payload.buffer, at, length).slice() as Uint8Array;
  }

  /** Everything from the proxy's reset to DRIVER_OK, as the recording shows it. */
  async bringUp(wanted = MAC | STATUS | MRG_RXBUF | EVENT_IDX): Promise<FoundDevice> {
    const info = await this.ask("info", 0, () => {});
    this.#deviceInfoSize = info.size;
    const at = this.form === "proto" ? 4 : 0;
    const [deviceId, vendorId] = [0, 4].map((offset) => info.payload.getUint32(at + offset, true));
    const offered = await this.getFeatures();
    // 2.4: before the queues are asked for.
    if (this.shared.scatter !== undefined) {
      await this.push("iommuEnable", false, 1, (p) => p.setUint8(0, 1));
    }
    const maxSizes = await this.probe();
    await this.setFeatures(0n);
    for (const status of [0, 0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER]) await this.setStatus(status);
    const features = offered & (wanted | VERSION_1 | ACCESS_PLATFORM);
    // Each 32-bit half of the guest's register is written by itself (2.4).
    await this.setFeatures(features & 0xffffffffn);
    await this.setFeatures(features);
    this.features = features;
    let status = await this.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if ((status & FEATURES_OK) === 0) this.abort("FEATURES_OK refused");
    const mac = new Uint8Array(6);
    for (let i = 0; i < 6; i++) mac.set(await this.getConfig(i, 1), i);
    if (!this.shape.hasTokens && this.form !== "proto") await this.#readGeneration();
    for (let index = 0; index < 2; index++) await this.startRing(index);
    status = await this.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for (let i = 0; i < 16; i++) this.offerReceive(i);
    await this.kick(0);
    return { deviceId: deviceId!, vendorId: vendorId!, offered, maxSizes, status, mac };
  }

  /** 3.8: a read of no bytes; and a write of the card's configuration, which nobody may, is refused. */
  async #readGeneration(): Promise<void> {
    const { payload, size } = await this.ask("getConfig", 8, () => {});
    const generation = payload.getUint32(0, true);
    if (payload.getUint32(8, true) !== 0) {
      this.abort("bytes of configuration that nobody asked for");
    }
    if (this.form === "rfc" && size !== 18) this.abort(`a generation of ${size} bytes`);
    const written = await this.ask("setConfig", this.form === "rfc" ? 12 : 20, (p) => {
      [generation, 0, 1, 0x99].forEach((value, i) => p.setUint32(4 * i, value, true));
    });
    const values = [4, 8].map((at) => written.payload.getUint32(at, true));
    // QEMU's flavour echoes whatever becomes of it.
    if (`${values}` !== (this.form === "rfc" ? "0,0" : "0,1")) this.abort(`written: ${values}`);
  }

  /** 3.8: what Linux does with each queue before the end. */
  async resetQueues(): Promise<void> {
    for (let index = 0; index < 2; index++) {
      await this.ask("resetQueue", 4, (p) => p.setUint32(0, index, true));
      const { payload } = await this.ask("getQueue", 4, (p) => p.setUint32(0, index, true));
      if (payload.getUint32(8, true) !== 0) this.abort(`queue ${index} was not reset`);
    }
  }

  /** Bytes of the GET_DEVICE_INFO answer. */
  get deviceInfoSize(): number {
    return this.#deviceInfoSize;
  }

  protected async startRing(index: number): Promise<void> {
    const base = this.ramAt + index * 0x4000;
    // Scattered, each lies in two pages.
    const [descriptors, available, used] = this.shared.scatter === undefined
      ? [base, base + 0x2000, base + 0x3000]
      : [base + 0x7c0, base + 0x1f00, base + 0x2c00];
    const ring = { size: QUEUE_SIZE, descriptors, available, used };
    this.memory.write(base, new Uint8Array(0x4000));
    this.#rings[index] = ring;
    this.#availableIndex[index] = this.#usedIndex[index] = 0;
    const fill = (p: DataView, at: number) => {
      const areas = [ring.descriptors, ring.available, ring.used];
      areas.forEach((area, i) => p.setBigUint64(at + 8 * i, BigInt(this.shared.at + area), true));
    };
    if (this.form === "proto") {
      await this.push("setQueue", false, 32, (p) => {
        p.setUint32(0, index, true);
        p.setUint32(4, QUEUE_SIZE, true);
        fill(p, 8);
      });
      return;
    }
    const { rings } = this.shape;
    const write = (p: DataView) => {
      p.setUint32(0, index, true);
      // 3.2: state operation 1; in 3.4 the word must be zero.
      p.setUint32(4, this.form === "v1" ? 1 : 0, true);
      p.setUint32(8, QUEUE_SIZE, true);
      fill(p, rings);
    };
    const { payload: echo } = await this.ask("setQueue", rings + 24, write);
    if (this.form === "rfc-q") {
      const said = new DataView(new ArrayBuffer(rings + 24));
      write(said);
      for (let at = 0; at < said.byteLength; at++) {
        if (echo.getUint8(at) !== said.getUint8(at)) this.abort("SET_VQUEUE was not echoed (3.8)");
      }
    }
    const { payload } = await this.ask("getQueue", 4, (p) => p.setUint32(0, index, true));
    if (payload.getUint32(8, true) !== QUEUE_SIZE) this.abort("GET_VQUEUE shows another size");
    const flags = rings === 12 ? 0 : payload.getUint32(12, true);
    if (flags !== (this.form === "v1" ? 1 : 0)) this.abort(`GET_VQUEUE flags ${flags}`);
    if (payload.getBigUint64(rings + 16, true) !== BigInt(this.shared.at + ring.used)) {
      this.abort("GET_VQUEUE shows another used ring");
    }
  }

  #offer(index: number, at: number, length: number, flags: number): void {
    const ring = this.#rings[index]!;
    const slot = this.#availableIndex[index]! % ring.size;
    const descriptor = new DataView(new ArrayBuffer(16));
    descriptor.setBigUint64(0, BigInt(this.shared.at + at), true);
    descriptor.setUint32(8, length, true);
    descriptor.setUint16(12, flags, true);
    this.memory.write(ring.descriptors + 16 * slot, new Uint8Array(descriptor.buffer));
    this.memory.setU16(ring.available + 4 + 2 * slot, slot);
    // used_event: tell us of the next one.
    this.memory.setU16(ring.available + 4 + 2 * ring.size, this.#usedIndex[index]!);
    this.#availableIndex[index] = (this.#availableIndex[index]! + 1) & 0xffff;
    this.memory.setU16(ring.available + 2, this.#availableIndex[index]!);
  }

  protected offerReceive(buffer: number): void {
    this.#offer(0, this.#receiveAt + 0x800 * buffer, 0x800, 2);
  }

  /** EVENT_AVAIL, always: too many are harmless. */
  protected async kick(index: number): Promise<void> {
    await this.push("eventAvail", false, this.form === "proto" ? 20 : 8, (p) => {
      p.setUint32(0, index, true);
    });
  }

  /** Sends one frame. */
  async send(frame: Uint8Array): Promise<void> {
    const at = this.#receiveAt + 0x1_0000 + 0x800 * (this.#nextTransmit++ % 16);
    const withHeader = new Uint8Array(12 + frame.length);
    withHeader.set(frame, 12);
    this.memory.write(at, withHeader);
    this.#offer(1, at, withHeader.length, 0);
    await this.kick(1);
  }

  /** The next frame that `wanted` accepts; others are dropped. */
  async receive(wanted: (frame: Uint8Array) => boolean): Promise<Uint8Array> {
    const endMs = performance.now() + TIMEOUT_MS;
    const ring = this.#rings[0]!;
    while (performance.now() < endMs) {
      await this.drain();
      while (this.#usedIndex[0] !== this.memory.u16(ring.used + 2)) {
        const slot = this.#usedIndex[0]! % ring.size;
        const id = this.memory.u32(ring.used + 4 + 8 * slot);
        const length = this.memory.u32(ring.used + 8 + 8 * slot);
        this.#usedIndex[0] = (this.#usedIndex[0]! + 1) & 0xffff;
        const descriptor = this.memory.read(ring.descriptors + 16 * id, 16);
        const at = Number(descriptor.getBigUint64(0, true)) - this.shared.at;
        const bytes = new Uint8Array(this.memory.read(at, length).buffer);
        // num_buffers is 1 with and without MRG_RXBUF (VIRTIO 1.2, 5.1.6.4.1).
        if (bytes[10] !== 1 || bytes[11] !== 0) this.abort(`num_buffers ${bytes[10]}`);
        this.offerReceive((at - this.#receiveAt) / 0x800);
        await this.kick(0);
        if (wanted(bytes.subarray(12))) return bytes.slice(12);
      }
      // The loop runs on: the socket is not read, its bytes pile up (4.2).
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    throw new Error("no such frame came");
  }

  /** Waits for so many notifications of a queue in all. It does not look into the ring: who did may be told nothing. */
  async notified(index: number, count: number): Promise<void> {
    const endMs = performance.now() + TIMEOUT_MS;
    for (;;) {
      await this.drain();
      if (this.used[index]! >= count) return;
      if (performance.now() > endMs) {
        throw new Error(`queue ${index}: ${this.used[index]} notifications of ${count}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Waits until the device has used everything that was sent. */
  async sent(): Promise<void> {
    const ring = this.#rings[1]!;
    for (let i = 0; i < TIMEOUT_MS; i++) {
      await this.drain();
      if (this.memory.u16(ring.used + 2) === this.#availableIndex[1]) return;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    throw new Error("the device uses nothing");
  }
}

// --- the peer as the device --------------------------------------------------------------------------

/** The device side of the prototype: a network card whose other end is a host that answers pings. */
export class DevicePeer extends ProtoPeer {
  /** Frames that came. */
  frames = 0;
  /** Notification bytes and messages that came (P11: in `proto` one each). */
  doorbells = 0;
  messages = 0;
  /** Echo requests that were answered. */
  pings = 0;
  /** Every status that was written. */
  readonly statuses: number[] = [];
  #status = 0;
  #expectGetStatus = false;
  readonly #rings: (Ring | undefined)[] = [];
  readonly #next = [0, 0, 0];
  readonly #waiting: Uint8Array[] = [];
  readonly offered: bigint;

  constructor(
    form: Form,
    directory: string,
    memory: PeerMemory,
    readonly socket: Deno.UnixConn,
    options: { readonly offered?: bigint } = {},
  ) {
    super("device", form, linuxUserWire(directory, socket), memory);
    this.offered = options.offered ??
      VERSION_1 | ACCESS_PLATFORM | MAC | STATUS | MRG_RXBUF | EVENT_IDX;
  }

  /** Works until the driver side goes. */
  async serve(): Promise<void> {
    const bytes = new Uint8Array(128);
    for (;;) {
      await this.#drain();
      let count: number | null;
      try {
        count = await this.socket.read(bytes);
      } catch {
        return;
      }
      if (count === null) return;
      this.doorbells += count;
      if (bytes.subarray(0, count).some((byte) => byte !== 0xed)) {
        this.abort("a byte that is not 0xED");
      }
    }
  }

  async #drain(): Promise<void> {
    for (let slot = this.in.pop(); slot !== undefined; slot = this.in.pop()) {
      const message = this.decode(slot);
      this.messages++;
      if (message.response) this.abort(`an answer to nothing: ${message.name}`);
      else if (message.name !== undefined) await this.#take(message);
    }
  }

  async #answer(message: Received, size: number, fill: (payload: DataView) => void): Promise<void> {
    const { name, token } = message;
    if (!this.isAnswered(name!)) return;
    if (this.shape.hasTokens && token === 0) this.abort("a request without a token (G8)");
    await this.push(name!, true, size, fill, token);
  }

  async #take(message: Received): Promise<void> {
    const { name, payload, device } = message;
    const isProto = this.form === "proto";
    if (device !== 0) this.abort(`device number ${device}`);
    if (this.#expectGetStatus && name !== "getStatus") this.abort(`${name} after a status (P6)`);
    this.#expectGetStatus = isProto && name === "setStatus";
    const word = payload.getUint32(0, true);
    switch (name) {
      case "info":
        return await this.#answer(message, this.form === "v1" ? 44 : 24, (p) => this.#info(p));
      case "getFeatures":
        return await this.#answer(message, 16, (p) => {
          if (!isProto) p.setUint32(4, 2, true);
          p.setBigUint64(isProto ? 4 : 8, this.offered, true);
        });
      case "setFeatures":
        this.features = payload.getBigUint64(isProto ? 4 : 8, true);
        return await this.#answer(message, this.form === "rfc-q" ? 16 : 0, (p) => {
          if (isProto) p.setBigUint64(4, this.features, true);
          if (this.form !== "rfc-q") return;
          p.setUint32(4, 2, true);
          p.setBigUint64(8, this.features, true);
        });
      case "getConfig":
        return await this.#config(message);
      case "getStatus":
        return await this.#answer(message, 4, (p) => p.setUint32(0, this.#status, true));
      case "setStatus":
        this.#setStatus(word);
        await this.#answer(message, 4, (p) => p.setUint32(0, this.#status, true));
        return;
      case "getQueue":
        return await this.#answer(message, this.shape.rings + 24, (p) => this.#queue(p, word));
      case "setQueue":
        this.#setQueue(payload);
        if (this.form !== "rfc-q") return await this.#answer(message, 0, () => {});
        return await this.#answer(message, 36, (p) => {
          for (let at = 0; at < 36; at++) p.setUint8(at, payload.getUint8(at));
        });
      case "eventAvail":
        return await this.#available(word);
      default:
        this.abort(`a driver side sends no ${name}`);
    }
  }

  #info(p: DataView): void {
    const values = this.form === "proto" ? [1, 1] : [1, 0x554d4551];
    values.forEach((value, i) => p.setUint32(4 * i, value, true));
    if (this.form === "proto") p.setUint32(8, 0x554d4551, true);
    // The blocks, or the bits; configuration; queues.
    if (this.form === "v1") [2, 12, QUEUES].forEach((v, i) => p.setUint32(24 + 4 * i, v, true));
    if (this.form !== "v1" && this.form !== "proto") {
      // The first version of QEMU's structure ended before the number of queues (3.8).
      [64, 12, this.form === "rfc-q" ? 0 : QUEUES].forEach((v, i) =>
        p.setUint32(8 + 4 * i, v, true)
      );
    }
  }

  async #config(message: Received): Promise<void> {
    const { payload } = message;
    const isProto = this.form === "proto";
    const config = [0x52, 0x54, 0, 0x12, 0x34, 0x99, 1, 0, 1, 0, 0xdc, 5];
    const [offset, length] = isProto
      ? [payload.getUint16(0, true), payload.getUint8(3)]
      : [payload.getUint32(0, true), payload.getUint32(4, true)];
    const sizes = { proto: [1, 2, 4], "rfc-q": [0, 1, 2, 4] }[this.form as string];
    if (sizes?.includes(length) === false) this.abort(`GET_CONFIG of ${length} bytes (P4)`);
    if (offset + length > config.length) this.abort("GET_CONFIG out of range (R7)");
    await this.#answer(message, 12 + (this.form === "rfc-q" ? 8 : length), (p) => {
      if (isProto) {
        p.setUint16(0, offset, true);
        p.setUint8(3, length);
      } else [7, offset, length].forEach((value, i) => p.setUint32(4 * i, value, true));
      for (let i = 0; i < length; i++) p.setUint8((isProto ? 4 : 12) + i, config[offset + i] ?? 0);
    });
  }

  #setStatus(status: number): void {
    this.statuses.push(status);
    const gains = status & ~this.#status;
    if ((gains & FEATURES_OK) !== 0) {
      // P5: QEMU asserts that the status is stored as it was written.
      const needed = VERSION_1 | (this.offered & ACCESS_PLATFORM);
      if ((this.features & ~this.offered) !== 0n) this.abort("features that were not offered (P5)");
      if ((this.features & needed) !== needed) {
        this.abort("VERSION_1 or ACCESS_PLATFORM lacks (P5)");
      }
    }
    if ((gains & DRIVER_OK) !== 0 && (status & FEATURES_OK) === 0) {
      this.abort("DRIVER_OK first (R6)");
    }
    this.#status = status;
    if (status !== 0) return;
    this.features = 0n;
    this.#rings.length = 0;
    this.#next.fill(0);
  }

  #queue(p: DataView, index: number): void {
    p.setUint32(0, index, true);
    if (index >= QUEUES) return;
    p.setUint32(4, MAX_QUEUE_SIZE, true);
    const ring = this.#rings[index];
    if (this.form === "proto" || ring === undefined) return;
    p.setUint32(8, ring.size, true);
    if (this.form === "v1") p.setUint32(12, 1, true);
    const areas = [ring.descriptors, ring.available, ring.used];
    const { rings } = this.shape;
    areas.forEach((at, i) => p.setBigUint64(rings + 8 * i, BigInt(at + this.shared.at), true));
  }

  #setQueue(p: DataView): void {
    const isProto = this.form === "proto";
    const index = p.getUint32(0, true);
    if (this.form === "v1" && p.getUint32(4, true) !== 1) this.abort("SET_VQUEUE flags (V33)");
    if (this.form !== "v1" && !isProto && p.getUint32(4, true) !== 0) {
      this.abort("SET_VQUEUE MBZ (G5)");
    }
    const size = p.getUint32(isProto ? 4 : 8, true);
    if (size === 0 || size > MAX_QUEUE_SIZE) this.abort(`a queue of ${size} entries (R4)`);
    if (index >= QUEUES) this.abort(`queue ${index} (R5)`);
    if ((this.#status & FEATURES_OK) === 0) this.abort("SET_VQUEUE before FEATURES_OK");
    if (isProto && (this.#status & DRIVER_OK) !== 0) this.abort("SET_VQUEUE after DRIVER_OK (P13)");
    const at = this.shape.rings;
    const [descriptors, available, used] = [0, 8, 16].map((i) =>
      Number(p.getBigUint64(at + i, true))
    );
    this.#rings[index] = {
      size,
      descriptors: this.offset(descriptors!, 16 * size),
      available: this.offset(available!, 6 + 2 * size),
      used: this.offset(used!, 6 + 8 * size),
    };
  }

  async #available(index: number): Promise<void> {
    if ((this.#status & DRIVER_OK) === 0) {
      return this.abort("EVENT_AVAIL before DRIVER_OK (P8, R6)");
    }
    if (this.#rings[index] === undefined) return this.abort(`EVENT_AVAIL of queue ${index} (R10)`);
    if (index === 1) {
      for (let chain = this.#pop(1); chain !== undefined; chain = this.#pop(1)) {
        this.frames++;
        const frame = new Uint8Array(this.memory.read(chain.at, chain.length).buffer).slice(12);
        await this.#use(1, chain.head, 0);
        const answer = this.#reply(frame);
        if (answer !== undefined) this.#waiting.push(answer);
      }
    }
    while (this.#waiting.length > 0) {
      const chain = this.#pop(0);
      if (chain === undefined) return;
      const bytes = new Uint8Array(12 + this.#waiting[0]!.length);
      bytes[10] = 1;
      bytes.set(this.#waiting.shift()!, 12);
      if (bytes.length > chain.length) this.abort("a receive buffer is too small");
      this.memory.write(chain.at, bytes);
      await this.#use(0, chain.head, bytes.length);
    }
  }

  #pop(index: number): { head: number; at: number; length: number } | undefined {
    const ring = this.#rings[index]!;
    const next = this.#next[index]!;
    if (next === this.memory.u16(ring.available + 2)) return undefined;
    const head = this.memory.u16(ring.available + 4 + 2 * (next % ring.size));
    const descriptor = this.memory.read(ring.descriptors + 16 * head, 16);
    const flags = descriptor.getUint16(12, true);
    if (flags !== (index === 0 ? 2 : 0)) this.abort(`descriptor flags ${flags}`);
    const length = descriptor.getUint32(8, true);
    const at = this.offset(Number(descriptor.getBigUint64(0, true)), length);
    this.#next[index] = (next + 1) & 0xffff;
    // avail_event: kick for the very next one (EVENT_IDX).
    this.memory.setU16(ring.used + 4 + 8 * ring.size, this.#next[index]!);
    return { head, at, length };
  }

  async #use(index: number, head: number, length: number): Promise<void> {
    const ring = this.#rings[index]!;
    const before = this.memory.u16(ring.used + 2);
    const slot = before % ring.size;
    this.memory.setU32(ring.used + 4 + 8 * slot, head);
    this.memory.setU32(ring.used + 8 + 8 * slot, length);
    this.memory.setU16(ring.used + 2, (before + 1) & 0xffff);
    const wants = (this.features & EVENT_IDX) !== 0n
      ? this.memory.u16(ring.available + 4 + 2 * ring.size) === before
      : (this.memory.u16(ring.available) & 1) === 0;
    if (!wants) return;
    await this.push("eventUsed", false, 4, (p) => p.setUint32(0, index, true));
    // The prototype's config bit sticks (section 12, row 51).
    if (this.form !== "proto") return;
    await this.push("eventConfig", false, 24, (p) => p.setUint32(0, this.#status, true));
  }

  #reply(frame: Uint8Array): Uint8Array | undefined {
    const answer = answerFrame(frame);
    if (answer !== undefined && frame[12] === 8 && frame[13] === 0) this.pings++;
    return answer;
  }
}

// --- frames ------------------------------------------------------------------------------------------

const PEER_MAC = [0x02, 0, 0, 0, 0, 0x01];

/** RFC 1071. */
export function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i]! << 8) + (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** Who has `target`? */
export function arpRequest(mac: Uint8Array, address: number[], target: number[]): Uint8Array {
  const frame = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ...mac, 8, 6];
  frame.push(0, 1, 8, 0, 6, 4, 0, 1, ...mac, ...address, 0, 0, 0, 0, 0, 0, ...target);
  return Uint8Array.from([...frame, ...new Array(60 - frame.length).fill(0)]);
}

/** An ICMP echo request with 32 bytes of data. */
export function echoRequest(
  from: { mac: Uint8Array; address: number[] },
  to: { mac: Uint8Array; address: number[] },
  sequence: number,
): Uint8Array {
  const icmp = Uint8Array.of(8, 0, 0, 0, 0x12, 0x34, sequence >> 8, sequence & 0xff, ...pattern());
  new DataView(icmp.buffer).setUint16(2, checksum(icmp));
  const total = 20 + icmp.length;
  const ip = Uint8Array.of(0x45, 0, total >> 8, total & 0xff, 0, sequence, 0, 0, 64, 1, 0, 0);
  const header = Uint8Array.of(...ip, ...from.address, ...to.address);
  new DataView(header.buffer).setUint16(10, checksum(header));
  return Uint8Array.of(...to.mac, ...from.mac, 8, 0, ...header, ...icmp);
}

/** The data of an echo. */
export function pattern(): number[] {
  return Array.from({ length: 32 }, (_, i) => 0xa0 + i);
}

/** What a host with any address says to a frame: ARP and ICMP echo. */
export function answerFrame(frame: Uint8Array): Uint8Array | undefined {
  const answer = frame.slice();
  answer.set(frame.subarray(6, 12), 0);
  answer.set(PEER_MAC, 6);
  if (frame[12] === 8 && frame[13] === 6 && frame[21] === 1) {
    answer[21] = 2;
    answer.set(PEER_MAC, 22);
    answer.set(frame.subarray(38, 42), 28);
    answer.set(frame.subarray(22, 32), 32);
    return answer;
  }
  if (frame[12] !== 8 || frame[13] !== 0 || frame[23] !== 1 || frame[34] !== 8) return undefined;
  const size = (frame[16]! << 8) + frame[17]!;
  if (checksum(frame.subarray(14, 34)) !== 0) return undefined;
  if (checksum(frame.subarray(34, 14 + size)) !== 0) return undefined;
  answer.set(frame.subarray(30, 34), 26);
  answer.set(frame.subarray(26, 30), 30);
  answer[34] = 0;
  answer.set([0, 0], 36);
  new DataView(answer.buffer).setUint16(36, checksum(answer.subarray(34, 14 + size)));
  return answer;
}
