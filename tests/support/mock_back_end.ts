/**
 * A vhost-user back end, written from its document (qemu docs/interop/vhost-user.rst) without src/vhost_user, so that a misreading
 * there shows: it listens, answers, maps the memory it is shown, and takes buffers from rings and gives them back
 * in any order, when a test says so. What a test wants it to get wrong, it gets wrong.
 */

import { assert } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { createSealedMemory, type Fd } from "../../src/linux/fd.ts";
import { check, libc } from "../../src/linux/libc.ts";
import { type Mapping, mapShared } from "../../src/linux/mapping.ts";
import { EPOLLIN, type Reactor } from "../../src/linux/reactor.ts";
import { listenUnix, type UnixListener, UnixStream } from "../../src/linux/unix_socket.ts";

/** Requests, by the document's numbers. */
const NAMES: Readonly<Record<number, string>> = {
  1: "GET_FEATURES",
  2: "SET_FEATURES",
  3: "SET_OWNER",
  5: "SET_MEM_TABLE",
  8: "SET_VRING_NUM",
  9: "SET_VRING_ADDR",
  10: "SET_VRING_BASE",
  11: "GET_VRING_BASE",
  12: "SET_VRING_KICK",
  13: "SET_VRING_CALL",
  14: "SET_VRING_ERR",
  15: "GET_PROTOCOL_FEATURES",
  16: "SET_PROTOCOL_FEATURES",
  17: "GET_QUEUE_NUM",
  18: "SET_VRING_ENABLE",
  21: "SET_BACKEND_REQ_FD",
  24: "GET_CONFIG",
  25: "SET_CONFIG",
  31: "GET_INFLIGHT_FD",
  32: "SET_INFLIGHT_FD",
  34: "RESET_DEVICE",
  36: "GET_MAX_MEM_SLOTS",
  37: "ADD_MEM_REG",
  38: "REM_MEM_REG",
  39: "SET_STATUS",
  40: "GET_STATUS",
};

/** Bits of protocol features. */
export const MQ = 1 << 0, REPLY_ACK = 1 << 3, BACKEND_REQ = 1 << 5, CONFIG = 1 << 9;
export const INFLIGHT = 1 << 12, RESET_DEVICE = 1 << 13, SLOTS = 1 << 15, STATUS = 1 << 16;
/** VIRTIO_F_VERSION_1, EVENT_IDX, INDIRECT_DESC, and the bit of protocol features. */
export const VERSION_1 = 1n << 32n, EVENT_IDX = 1n << 29n, INDIRECT = 1n << 28n;
const PROTOCOL = 1n << 30n;

/** What it is. */
export interface MockBackEndOptions {
  features: bigint;
  protocol: number;
  queues: number;
  config: Uint8Array;
  slots: number;
  /** Requests that it never answers. */
  silentTo: readonly string[];
  /** Requests that it acknowledges with an error. */
  refuses: readonly string[];
  /** What it sends instead of its answer, if anything: whole bytes, with so many descriptors. */
  instead: (request: string, answer: Uint8Array) => { bytes: Uint8Array; fds?: number } | undefined;
}

export const USUAL: MockBackEndOptions = {
  features: VERSION_1 | EVENT_IDX | INDIRECT,
  protocol: MQ | REPLY_ACK | BACKEND_REQ | CONFIG | SLOTS | STATUS,
  queues: 2,
  config: Uint8Array.from({ length: 60 }, (_, i) => i),
  slots: 32,
  silentTo: [],
  refuses: [],
  instead: () => undefined,
};

interface Region {
  readonly guest: number;
  readonly size: number;
  readonly user: number;
  readonly offset: number;
  readonly mapping: Mapping;
}

/** A ring as it was given. */
export interface MockRing {
  size: number;
  base: number;
  /** Where it takes the next buffer. */
  next: number;
  descriptors: number;
  used: number;
  available: number;
  enabled: boolean;
  kick: Fd | undefined;
  call: Fd | undefined;
  error: Fd | undefined;
}

const outgoing = allocate(8192);
const incoming = allocate(8192);
const one = allocate(8);
one.view.setBigUint64(0, 1n, true);

/** A header of the protocol and what is behind it. */
export function messageOf(request: number, flags: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(12 + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, request, true);
  view.setUint32(4, flags, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, 12);
  return bytes;
}

function u64(value: bigint): Uint8Array {
  return new Uint8Array(BigUint64Array.of(value).buffer);
}

function number(view: DataView, at: number): number {
  return Number(view.getBigUint64(at, true));
}

/** See the head of this file. */
export class MockBackEnd implements Disposable {
  /** What it was asked, by name and with the first two words of what came along. */
  readonly asked: string[] = [];
  readonly rings: MockRing[] = [];
  readonly regions: Region[] = [];
  /** SET_FEATURES, SET_STATUS and SET_PROTOCOL_FEATURES said so. */
  features = 0n;
  status = 0;
  protocol = 0;
  /** The file that it writes buffers in flight to, and how often it was asked for one or given one. */
  inflight: Fd | undefined;
  options: MockBackEndOptions;
  #listener: UnixListener | undefined;
  #stream: UnixStream | undefined;
  #channel: UnixStream | undefined;
  #received = new Uint8Array();
  #fds: Fd[] = [];

  constructor(
    readonly reactor: Reactor,
    readonly path: string,
    options: Partial<MockBackEndOptions> = {},
  ) {
    this.options = { ...USUAL, ...options };
    this.listen();
  }

  /** Is somebody connected? */
  get isConnected(): boolean {
    return this.#stream !== undefined;
  }

  /** Does it? */
  get isListening(): boolean {
    return this.#listener !== undefined;
  }

  /** Has it been given one for requests of its own? */
  get hasChannel(): boolean {
    return this.#channel !== undefined;
  }

  /** Listens, again. */
  listen(): void {
    const listener = listenUnix(this.path);
    this.#listener = listener;
    this.reactor.watch(listener.fd, EPOLLIN, () => {
      const stream = listener.accept();
      if (stream === undefined) return;
      if (this.#stream !== undefined) return stream[Symbol.dispose]();
      this.#stream = stream;
      this.reactor.watch(stream.fd, EPOLLIN, () => this.#ready(stream));
    });
  }

  /** The process dies: connection, memory, what it knew. It listens no more. */
  die(): void {
    this.hangUp();
    if (this.#listener !== undefined) {
      this.reactor.unwatch(this.#listener.fd);
      this.#listener[Symbol.dispose]();
    }
    this.#listener = undefined;
  }

  /** Ends the connection only. */
  hangUp(): void {
    if (this.#stream !== undefined) this.reactor.unwatch(this.#stream.fd);
    this.#stream?.[Symbol.dispose]();
    this.#stream = undefined;
    this.#channel?.[Symbol.dispose]();
    this.#channel = undefined;
    for (const fd of this.#fds.splice(0)) fd[Symbol.dispose]();
    for (const { mapping } of this.regions.splice(0)) mapping[Symbol.dispose]();
    // Some may never have been named.
    for (const ring of this.rings.splice(0)) {
      for (const fd of [ring?.kick, ring?.call, ring?.error]) fd?.[Symbol.dispose]();
    }
    this.inflight?.[Symbol.dispose]();
    this.inflight = undefined;
    this.#received = new Uint8Array();
    this.status = 0;
    this.features = 0n;
  }

  [Symbol.dispose](): void {
    this.die();
  }

  // --- messages ----------------------------------------------------------------------------------

  #ready(stream: UnixStream): void {
    for (;;) {
      const count = stream.receive(incoming.address, incoming.bytes.length);
      this.#fds.push(...stream.fds);
      if (count < 0) break;
      if (count === 0) return this.hangUp();
      this.#received = new Uint8Array([...this.#received, ...incoming.bytes.subarray(0, count)]);
    }
    while (this.#received.length >= 12 && this.#stream === stream) {
      const view = new DataView(this.#received.buffer);
      const size = 12 + view.getUint32(8, true);
      if (this.#received.length < size) return;
      const payload = this.#received.slice(12, size);
      const [request, flags] = [view.getUint32(0, true), view.getUint32(4, true)];
      this.#received = this.#received.slice(size);
      this.#handle(request, flags, payload);
    }
    // Those that no message took.
    for (const fd of this.#fds.splice(0)) fd[Symbol.dispose]();
  }

  #handle(request: number, flags: number, payload: Uint8Array): void {
    const name = NAMES[request];
    assert(name !== undefined && (flags & 3) === 1 && (flags & 4) === 0, `request ${request}`);
    const view = new DataView(payload.buffer);
    const words = [0, 4].filter((at) => at + 4 <= payload.length).map((at) =>
      view.getUint32(at, true)
    );
    this.asked.push([name, ...words].join(" "));
    const { silentTo, refuses, instead } = this.options;
    const answer = refuses.includes(name) ? undefined : this.#answer(name, view, payload);
    if (silentTo.includes(name)) return;
    let reply = answer;
    if (reply === undefined) {
      if ((flags & 8) === 0 || (this.protocol & REPLY_ACK) === 0) return;
      reply = u64(refuses.includes(name) ? 1n : 0n);
    }
    const bytes = messageOf(request, 5, reply);
    const fds = name === "GET_INFLIGHT_FD" ? [this.inflight!] : [];
    const wrong = instead(name, bytes);
    if (wrong === undefined) return this.#send(bytes, fds);
    const more = Array.from({ length: wrong.fds ?? 0 }, () => createSealedMemory("vmsg-mock", 16));
    this.#send(wrong.bytes, more);
    for (const fd of more) fd[Symbol.dispose]();
  }

  #send(bytes: Uint8Array, fds: readonly Fd[] = []): void {
    outgoing.bytes.set(bytes);
    this.#stream?.send(outgoing.address, bytes.length, fds);
  }

  /** Bytes that nobody asked for. */
  sendBytes(bytes: Uint8Array): void {
    this.#send(bytes);
  }

  /** A request of its own. */
  say(request: number, flags = 1, fds: readonly Fd[] = []): void {
    const bytes = messageOf(request, flags, new Uint8Array());
    outgoing.bytes.set(bytes);
    const channel = this.#channel;
    if (channel === undefined) throw new Error("there is no channel");
    channel.send(outgoing.address, bytes.length, fds);
  }

  /** What was answered to {@link say}, if anything is there. */
  heard(): Uint8Array | undefined {
    const count = this.#channel?.receive(incoming.address, 64) ?? -1;
    return count > 0 ? incoming.bytes.slice(0, count) : undefined;
  }

  #ring(index: number): MockRing {
    return this.rings[index] ??= {
      size: 0,
      base: 0,
      next: 0,
      descriptors: 0,
      used: 0,
      available: 0,
      enabled: false,
      kick: undefined,
      call: undefined,
      error: undefined,
    };
  }

  /** A reply of its own, or undefined. */
  #answer(name: string, view: DataView, payload: Uint8Array): Uint8Array | undefined {
    const { options } = this;
    switch (name) {
      case "GET_FEATURES":
        return u64(options.features | (options.protocol === 0 ? 0n : PROTOCOL));
      case "SET_FEATURES":
        this.features = view.getBigUint64(0, true);
        return undefined;
      case "GET_PROTOCOL_FEATURES":
        return u64(BigInt(options.protocol));
      case "SET_PROTOCOL_FEATURES":
        this.protocol = number(view, 0);
        return undefined;
      case "GET_QUEUE_NUM":
        return u64(BigInt(options.queues));
      case "GET_MAX_MEM_SLOTS":
        return u64(BigInt(options.slots));
      case "GET_CONFIG": {
        const size = view.getUint32(4, true);
        if (size > options.config.length) return new Uint8Array();
        payload.set(options.config.subarray(0, size), 12);
        return payload;
      }
      case "SET_CONFIG":
        options.config = options.config.slice();
        options.config.set(payload.subarray(12), view.getUint32(0, true));
        return undefined;
      case "SET_STATUS":
        this.status = view.getUint32(0, true);
        return undefined;
      case "GET_STATUS":
        return u64(BigInt(this.status));
      case "SET_BACKEND_REQ_FD":
        this.#channel = new UnixStream(this.#fds.shift()!);
        return undefined;
      case "SET_MEM_TABLE":
        for (const { mapping } of this.regions.splice(0)) mapping[Symbol.dispose]();
        for (let i = 0; i < view.getUint32(0, true); i++) this.#map(view, 8 + 32 * i);
        return undefined;
      case "ADD_MEM_REG":
        this.#map(view, 8);
        return undefined;
      case "REM_MEM_REG": {
        const at = this.regions.findIndex(({ guest }) => guest === number(view, 8));
        assert(at >= 0, "a region is removed that is not there");
        this.regions.splice(at, 1)[0]!.mapping[Symbol.dispose]();
        return undefined;
      }
      case "GET_INFLIGHT_FD": {
        this.inflight ??= createSealedMemory("vmsg-mock-inflight", 4096);
        const reply = payload.slice();
        new DataView(reply.buffer).setBigUint64(0, 4096n, true);
        return reply;
      }
      case "SET_INFLIGHT_FD":
        this.inflight?.[Symbol.dispose]();
        this.inflight = this.#fds.shift();
        return undefined;
    }
    return name.includes("VRING") ? this.#vring(name, view) : undefined;
  }

  #map(view: DataView, at: number): void {
    const [guest, size, user, offset] = [0, 8, 16, 24].map((field) => number(view, at + field));
    const fd = this.#fds.shift();
    if (fd === undefined) throw new Error("a region comes without a descriptor");
    const mapping = mapShared(fd.number, offset! + size!);
    fd[Symbol.dispose]();
    this.regions.push({ guest: guest!, size: size!, user: user!, offset: offset!, mapping });
  }

  #vring(name: string, view: DataView): Uint8Array | undefined {
    const ring = this.#ring(view.getUint32(0, true) & 0xff);
    const second = view.getUint32(4, true);
    switch (name) {
      case "SET_VRING_NUM":
        ring.size = second;
        return undefined;
      case "SET_VRING_BASE":
        ring.base = ring.next = second;
        return undefined;
      case "SET_VRING_ADDR":
        [ring.descriptors, ring.used, ring.available] = [8, 16, 24].map((at) =>
          number(view, at)
        ) as [number, number, number];
        return undefined;
      case "SET_VRING_KICK":
        ring.kick?.[Symbol.dispose]();
        ring.kick = this.#fds.shift();
        return undefined;
      case "SET_VRING_CALL":
        ring.call?.[Symbol.dispose]();
        ring.call = this.#fds.shift();
        return undefined;
      case "SET_VRING_ERR":
        ring.error?.[Symbol.dispose]();
        ring.error = this.#fds.shift();
        return undefined;
      case "SET_VRING_ENABLE":
        ring.enabled = second !== 0;
        return undefined;
      default: {
        const reply = new Uint8Array(8);
        const bytes = new DataView(reply.buffer);
        bytes.setUint32(0, view.getUint32(0, true), true);
        bytes.setUint32(4, ring.next, true);
        ring.enabled = false;
        return reply;
      }
    }
  }

  // --- rings -------------------------------------------------------------------------------------

  /** Memory behind one of the front end's addresses. */
  #view(user: number, length: number): DataView {
    const region = this.regions.find((region) =>
      user >= region.user && user + length <= region.user + region.size
    );
    if (region === undefined) throw new Error(`nothing is at 0x${user.toString(16)}`);
    return new DataView(region.mapping.buffer, region.offset + user - region.user, length);
  }

  /** Takes the buffers that are there; their heads. */
  take(index: number): number[] {
    const ring = this.rings[index]!;
    if (!ring.enabled) return [];
    const view = this.#view(ring.available, 6 + 2 * ring.size);
    const heads: number[] = [];
    while (ring.next !== view.getUint16(2, true)) {
      heads.push(view.getUint16(4 + 2 * (ring.next % ring.size), true));
      ring.next = (ring.next + 1) & 0xffff;
    }
    return heads;
  }

  /** Gives a buffer back. */
  use(index: number, head: number, calls = true): void {
    const ring = this.rings[index]!;
    const view = this.#view(ring.used, 6 + 8 * ring.size);
    const at = view.getUint16(2, true);
    view.setUint32(4 + 8 * (at % ring.size), head, true);
    view.setUint32(8 + 8 * (at % ring.size), 0, true);
    view.setUint16(2, at + 1, true);
    if (calls) this.signal(ring.call!);
  }

  /** Signals one of the eventfds it was given. */
  signal(fd: Fd): void {
    check(Number(libc.write(fd.number, one.address, 8)), "write");
  }

  /** Has a ring been kicked since the last time? */
  wasKicked(index: number): boolean {
    const { kick } = this.rings[index]!;
    return Number(libc.read(kick!.number, incoming.address, 8)) === 8;
  }
}
