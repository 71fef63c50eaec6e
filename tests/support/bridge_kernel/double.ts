/**
 * The least process that can stand at the node: it attaches, publishes one entropy device that gives a byte
 * pattern, and answers. With it the kernel's side is tried before anything of vmsg is, also its strictness: the
 * double sends any frame it is told to.
 */

import {
  closeFd,
  connectTo,
  eventFd,
  mapFile,
  memoryFile,
  receiveBytes,
  sendBytes,
  type SharedMemory,
  signal,
  unsignal,
  waitReadable,
} from "./libc.ts";
import { decodeFrame, encodeFrame, type Fields, type Frame, numberOf, wideOf } from "./frames.ts";
import * as ioctl from "./requests.ts";
import { MAX_FRAME, RING_BYTES, RING_HEADER } from "./ring.ts";
import { PAGE } from "./windows.ts";

const RX_AT = 9 * PAGE;
const RING_FILE = 2 * RX_AT;
const QUEUE_SIZE = 8;
const MEMORY = 1 << 30;

interface Mapped {
  readonly address: number;
  readonly length: number;
  readonly offset: number;
}

export class DoubleProcess implements AsyncDisposable {
  readonly #socket: number;
  readonly #kick = eventFd();
  readonly #call = eventFd();
  readonly #stop = eventFd();
  readonly #file = memoryFile("bridge-double-rings", RING_FILE);
  readonly #rings: SharedMemory = mapFile(this.#file, RING_FILE);
  readonly #words = new Uint32Array(this.#rings.buffer);
  readonly #bytes = new Uint8Array(this.#rings.buffer);
  #memoryFd = -1;
  #memory: SharedMemory | undefined;
  #view = new DataView(new ArrayBuffer(0));
  readonly #mapped = new Map<bigint, Mapped>();
  #status = 0;
  #rings3: bigint[] = [];
  #size = 0;
  #seen = 0;
  #prod = 0;
  #cons = 0;
  epoch = 0n;
  polls = 0;
  #handle = new Uint8Array(4);
  #isOpen = true;
  #running: Promise<void> | undefined;
  /** May change or leave out what it would send. */
  alter: (frame: Frame) => Frame | undefined = (frame) => frame;

  constructor(path: string) {
    this.#socket = connectTo(path);
  }

  async #ask(number: number, argument: Uint8Array, fds: readonly number[] = []) {
    const bytes = new Uint8Array(4 + argument.length);
    new DataView(bytes.buffer).setUint32(0, number, true);
    bytes.set(argument, 4);
    sendBytes(this.#socket, bytes, fds);
    await waitReadable([this.#socket], 180_000);
    const { bytes: answer, fds: came } = receiveBytes(this.#socket, 8 + argument.length);
    const view = new DataView(answer!.buffer);
    return { result: view.getInt32(4, true), argument: answer!.slice(8), fds: came };
  }

  /** RESOLVE and ATTACH; the result of the latter. @param alter what is asked of ATTACH */
  async attach(alter: (argument: DataView) => void = () => {}): Promise<number> {
    const resolve = new Uint8Array(88);
    resolve.set(new TextEncoder().encode("loopback"));
    this.#handle = (await this.#ask(ioctl.RESOLVE, resolve)).argument.slice(64, 68);
    for (const at of [0, RX_AT / 4]) this.#words.set([0, 0, 256, MAX_FRAME, 0, 0], at);
    const attach = new Uint8Array(168);
    const view = new DataView(attach.buffer);
    attach.set(this.#handle);
    view.setUint32(20, MAX_FRAME, true);
    for (const [at, offset] of [[24, 0], [56, RX_AT]] as const) {
      view.setBigUint64(at, BigInt(offset), true);
      view.setBigUint64(at + 8, BigInt(RING_BYTES), true);
      view.setUint32(at + 16, 256, true);
      view.setUint32(at + 20, MAX_FRAME, true);
    }
    alter(view);
    const fds = [this.#file, this.#kick, this.#call];
    const { result, argument, fds: came } = await this.#ask(ioctl.ATTACH, attach, fds);
    if (result < 0) return result;
    this.epoch = new DataView(argument.buffer).getBigUint64(120, true);
    this.#memoryFd = came[0]!;
    this.#memory = mapFile(this.#memoryFd, MEMORY);
    this.#view = new DataView(this.#memory.buffer);
    return result;
  }

  /** Puts any bytes into tx. */
  put(bytes: Uint8Array): void {
    this.#bytes.set(bytes, RING_HEADER + (this.#prod % 256) * MAX_FRAME);
    this.#prod = (this.#prod + 1) >>> 0;
    Atomics.store(this.#words, 0, this.#prod);
    signal(this.#kick);
  }

  /** Stores into a ring's header. */
  poke(word: number, value: number): void {
    Atomics.store(this.#words, word, value);
    signal(this.#kick);
  }

  send(name: string, dev: number, token: number, fields: Fields): void {
    const frame = this.alter({ name, dev, token, fields });
    if (frame !== undefined) this.put(encodeFrame(frame));
  }

  publish(numbers: readonly number[]): void {
    const { epoch } = this;
    this.send("TOPOLOGY_RESET", 0, 0, { epoch });
    for (const dev_num of numbers) this.send("TOPOLOGY_DEV_ADD", 0, 0, { epoch, dev_num });
    this.send("TOPOLOGY_COMMIT", 0, 0, { epoch, count: numbers.length });
  }

  /** Answers from now on. */
  serve(): void {
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    while (this.#isOpen) {
      const [stop, call, socket] = await waitReadable([this.#stop, this.#call, this.#socket], 500);
      if (stop) return;
      if (call) unsignal(this.#call);
      if (socket) this.polls += (receiveBytes(this.#socket, 8).bytes?.length ?? 0) / 8;
      this.#take();
    }
  }

  #take(): void {
    while (this.#cons !== Atomics.load(this.#words, RX_AT / 4)) {
      const at = RX_AT + RING_HEADER + (this.#cons % 256) * MAX_FRAME;
      const size = this.#bytes[at + 6]! + 256 * this.#bytes[at + 7]!;
      this.#handleFrame(decodeFrame(this.#bytes.slice(at, at + size)));
      this.#cons = (this.#cons + 1) >>> 0;
      Atomics.store(this.#words, RX_AT / 4 + 1, this.#cons);
      signal(this.#kick);
    }
  }

  #handleFrame(frame: Frame): void {
    const { name, dev, token, fields } = frame;
    const answer = (values: Fields) => this.send(`${name}.resp`, dev, token, values);
    const none = { desc: 0n, driver: 0n, device: 0n };
    if (name === "GET_DEVICE_INFO") {
      answer({
        device_id: 4,
        vendor_id: 1,
        uuid: new Uint8Array(16),
        num_feature_blocks: 2,
        config_size: 0,
        max_virtqueues: 1,
        admin_vq_start: 0,
        admin_vq_count: 0,
      });
    } else if (name === "SET_DEVICE_STATUS" || name === "GET_DEVICE_STATUS") {
      this.#status = name === "SET_DEVICE_STATUS" ? numberOf(frame, "status") : this.#status;
      if (this.#status === 0) [this.#size, this.#seen] = [0, 0];
      answer({ status: this.#status });
    } else if (name === "GET_DEVICE_FEATURES") answer({ first: 0, count: 2, blocks: [0, 3] });
    else if (name === "SET_DRIVER_FEATURES") answer({});
    else if (name === "SET_VQUEUE") {
      this.#size = numberOf(frame, "size");
      this.#rings3 = ["desc", "driver", "device"].map((field) => wideOf(frame, field));
      answer({});
    } else if (name === "GET_VQUEUE") {
      const [desc, driver, device] = this.#rings3;
      const set = this.#size === 0 ? none : { desc: desc!, driver: driver!, device: device! };
      const flags = this.#size === 0 ? 0 : 1;
      answer({ index: 0, max_size: QUEUE_SIZE, cur_size: this.#size, flags, ...set });
    } else if (name === "MAP_ADD" || name === "MAP_DEL") {
      this.#map(name, fields as { readonly [name: string]: bigint });
      const { epoch, map_seq, map_id } = fields;
      answer({ epoch, map_seq, map_id, status: 0 } as Fields);
    } else if (name === "EVENT_AVAIL") this.#fill(dev);
    else if (name === "ENDPOINT_OFFLINE") this.#mapped.clear();
    else if (name === "ENDPOINT_ONLINE") {
      this.epoch = wideOf(frame, "epoch");
      this.publish([0]);
    }
  }

  #map(
    name: string,
    { map_id, bus_addr, length, mmap_offset }: { readonly [name: string]: bigint },
  ) {
    if (name === "MAP_DEL") this.#mapped.delete(map_id!);
    else {
      const offset = Number(mmap_offset);
      this.#mapped.set(map_id!, { address: Number(bus_addr), length: Number(length), offset });
    }
  }

  #at(address: number): number {
    for (const { address: from, length, offset } of this.#mapped.values()) {
      if (address >= from && address < from + length) return offset + address - from;
    }
    throw new Error(`the double has no memory at ${address}`);
  }

  /** Fills what is offered: byte i is i. */
  #fill(dev: number): void {
    const [desc, driver, device] = this.#rings3.map((address) => this.#at(Number(address)));
    const view = this.#view;
    while (view.getUint16(driver! + 2, true) !== this.#seen) {
      const slot = this.#seen % this.#size;
      const head = view.getUint16(driver! + 4 + 2 * slot, true);
      const at = this.#at(Number(view.getBigUint64(desc! + 16 * head, true)));
      const length = view.getUint32(desc! + 16 * head + 8, true);
      for (let i = 0; i < length; i++) view.setUint8(at + i, i);
      view.setUint32(device! + 4 + 8 * slot, head, true);
      view.setUint32(device! + 8 + 8 * slot, length, true);
      this.#seen = (this.#seen + 1) & 0xffff;
      view.setUint16(device! + 2, this.#seen, true);
    }
    this.send("EVENT_USED", dev, 0, { index: 0 });
  }

  /** DETACH; the result. */
  async detach(): Promise<number> {
    return (await this.#ask(ioctl.DETACH, new Uint8Array(0))).result;
  }

  async release(): Promise<number> {
    const argument = new Uint8Array(16);
    argument.set(this.#handle);
    return (await this.#ask(ioctl.RELEASE, argument)).result;
  }

  async stopServing(): Promise<void> {
    this.#isOpen = false;
    signal(this.#stop);
    await this.#running;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stopServing();
    for (const fd of [this.#socket, this.#kick, this.#call, this.#stop, this.#file]) closeFd(fd);
    if (this.#memoryFd >= 0) closeFd(this.#memoryFd);
    this.#rings.unmap();
    this.#memory?.unmap();
  }
}
