/**
 * One session of the bridge: from ATTACH to DETACH, the end of the connection, or a fault.
 *
 *     offline <-> online (an epoch) -> faulted: nothing moves until the process attaches anew
 *
 * It judges all that the process puts into its ring. What the text does not allow is a violation (the node
 * keeps them, a test fails by them) even where a kernel is silent about it, and faults the session as a kernel does.
 */

import { closeFd, fileSize, mapFile, type SharedMemory, signal, unsignal } from "./libc.ts";
import { decodeFrame, encodeFrame, type Fields, type Frame, numberOf, wideOf } from "./frames.ts";
import type { AttachRequest } from "./requests.ts";
import { MAX_FRAME, Ring } from "./ring.ts";
import type { GuestMemory, Window, WindowShape } from "./windows.ts";

/** What a session needs of the node that it belongs to. */
export interface SessionOwner {
  readonly memory: GuestMemory;
  readonly busName: string;
  /** Something was not as the text has it. */
  violation(what: string): void;
  /** The session has faulted: poll() says so. */
  faulted(): void;
  /** Called with every frame that went into, or was taken from, a ring. */
  seen(direction: "K>D" | "D>K", frame: Frame): void;
  /** Waits until something is so that the process brings about. */
  until(condition: () => boolean, what: string): Promise<void>;
  /** Waits for a promise, until there is a violation. */
  settled<T>(promise: Promise<T>, what: string): Promise<T>;
}

/** The session is not there any more: offline, faulted, detached. */
export class SessionEnded extends Error {}

/** MAP_ADD was answered with a negative status. */
export class MapRefused extends Error {
  constructor(readonly status: number) {
    super(`MAP_ADD was answered with ${status}`);
  }
}

interface Open {
  readonly name: string;
  readonly dev: number;
  resolve(frame: Frame): void;
  reject(error: Error): void;
}

interface OpenMap extends Open {
  readonly window: Window;
}

/** A device of the committed set, and how far its driver has got. */
interface Device {
  infoAccepted: boolean;
  statusWritten: boolean;
}

/** A driver: who is told of a device's events. */
export interface EventListener {
  /** Returns what is wrong with it. */
  event(frame: Frame): string | undefined;
  /** The device is gone. */
  ended(error: SessionEnded): void;
}

const KEEP = 1;
const FIRST_TOKEN = 2;

export class Session {
  readonly tx: Ring;
  readonly rx: Ring;
  readonly #rings: SharedMemory;
  /** 0 before the first time online. */
  epoch = 0;
  isOnline = false;
  isFaulted = false;
  #isPaused = false;
  /** Headers are written back as a whole, with the other side's cursor as it was before, as the kernel does. */
  writesBack = false;
  /** Answers to nothing are dropped, as a kernel does, and all events: whoever sends anything may get them. */
  isLenient = false;
  /** The committed set. */
  readonly devices = new Map<number, Device>();
  readonly listeners = new Map<number, EventListener>();
  commits = 0;
  /** Frames taken from tx. */
  taken = 0;
  kicks = 0;
  #snapshot: Set<number> | undefined;
  readonly #requests = new Map<number, Open>();
  readonly #maps = new Map<number, OpenMap>();
  /** Windows that the process has mapped. */
  readonly live = new Set<Window>();
  readonly #unsent: Uint8Array[] = [];
  #nextToken = FIRST_TOKEN;
  #nextMapToken = 1;
  #nextMapSeq: () => number;
  /** The rx cursor behind ENDPOINT_OFFLINE, and where tx stood when the process had read it. */
  #offlineAt = 0;
  #quietAt: number | undefined;

  /** @throws RingFault */
  constructor(
    readonly owner: SessionOwner,
    readonly attached: AttachRequest,
    readonly fds: { readonly ring: number; readonly kick: number; readonly call: number },
    nextMapSeq: () => number,
  ) {
    this.#rings = mapFile(fds.ring, fileSize(fds.ring));
    this.tx = new Ring(this.#rings.buffer, attached.txOffset, false);
    this.rx = new Ring(this.#rings.buffer, attached.rxOffset, true);
    this.#nextMapSeq = nextMapSeq;
  }

  /** Gives the descriptors back; the mapping stays until the node goes, as tests still look at it. */
  close(): void {
    this.#drop("the session has ended");
    this.isOnline = false;
    for (const fd of Object.values(this.fds)) closeFd(fd);
  }

  unmap(): void {
    this.#rings.unmap();
  }

  // To the process.

  /** Puts a frame into the rx ring, or behind those that wait for room. */
  send(name: string, dev = 0, token = 0, fields: Fields = {}): void {
    const frame = { name, dev, token, fields };
    this.#put(encodeFrame(frame));
    // Who looks may put more behind it, which is there when the process is told.
    this.owner.seen("K>D", frame);
    this.ring();
  }

  /** Sends anything. */
  sendBytes(bytes: Uint8Array): void {
    this.#put(bytes);
    this.ring();
  }

  #put(bytes: Uint8Array): void {
    if (this.isFaulted) throw new SessionEnded("faulted");
    this.#unsent.push(bytes);
    this.#fill();
  }

  /** Frames that wait for room. */
  get unsent(): number {
    return this.#unsent.length;
  }

  /** Signals call_fd. */
  ring(): void {
    signal(this.fds.call);
  }

  /** Puts what waits for room into the ring; whether any went. */
  #fill(): boolean {
    const before = this.#unsent.length;
    while (this.#unsent.length > 0) {
      const cons = this.rx.other();
      if (!this.rx.put(this.#unsent[0]!)) break;
      if (this.writesBack) this.rx.writeBack(cons);
      this.#unsent.shift();
    }
    return this.#unsent.length < before;
  }

  /** Asks a device; resolves with its answer. */
  request(dev: number, name: string, fields: Fields = {}): Promise<Frame> {
    const token = this.#nextToken;
    this.#nextToken = token === 0xffff ? FIRST_TOKEN : token + 1;
    if (!this.isOnline) return Promise.reject(new SessionEnded("offline"));
    if (name === "SET_DEVICE_STATUS") this.devices.get(dev)!.statusWritten = true;
    const { promise, resolve, reject } = Promise.withResolvers<Frame>();
    this.#requests.set(token, { name, dev, resolve, reject });
    this.send(name, dev, token, fields);
    return promise;
  }

  /** Makes a window and announces it; resolves when it is mapped. */
  async add(shape: WindowShape): Promise<Window> {
    const window = this.owner.memory.make(shape);
    await this.announce(window);
    return window;
  }

  /** Announces a window, also one that was announced in an earlier epoch. */
  async announce(window: Window): Promise<void> {
    if (!this.isOnline) throw new SessionEnded("offline");
    this.owner.memory.revive(window);
    window.mapSeq = this.#nextMapSeq();
    const { busAddr, length, offset, keep } = window;
    const answer = await this.#map("MAP_ADD", window, {
      bus_addr: BigInt(busAddr),
      length: BigInt(length),
      mmap_offset: BigInt(offset),
      mmap_length: BigInt(length),
      flags: keep ? KEEP : 0,
    });
    const status = numberOf(answer, "status");
    if (status === 0) return;
    this.owner.memory.windows.delete(window);
    throw new MapRefused(status);
  }

  /** Takes a window away; resolves when the process has unmapped it. */
  async del(window: Window): Promise<void> {
    this.live.delete(window);
    const { busAddr, length } = window;
    await this.#map("MAP_DEL", window, { bus_addr: BigInt(busAddr), length: BigInt(length) });
    this.owner.memory.forget(window);
  }

  #map(name: string, window: Window, fields: Fields): Promise<Frame> {
    if (!this.isOnline) return Promise.reject(new SessionEnded("offline"));
    const token = this.#nextMapToken;
    this.#nextMapToken = token === 0xffff ? 1 : token + 1;
    const { promise, resolve, reject } = Promise.withResolvers<Frame>();
    this.#maps.set(token, { name, dev: 0, window, resolve, reject });
    const { mapSeq, mapId } = window;
    const names = { epoch: BigInt(this.epoch), map_seq: BigInt(mapSeq), map_id: BigInt(mapId) };
    this.send(name, 0, token, { ...names, ...fields });
    return promise;
  }

  /** @param isAnnounced not with ATTACH, whose answer says so */
  goOnline(isAnnounced: boolean): void {
    // A kick from before is not one of this epoch.
    unsignal(this.fds.kick);
    this.isOnline = true;
    this.epoch++;
    this.#quietAt = undefined;
    if (!isAnnounced) return;
    const name = new Uint8Array(16);
    new TextEncoder().encodeInto(this.owner.busName, name);
    this.send("ENDPOINT_ONLINE", 0, 0, { epoch: BigInt(this.epoch), name, limit: MAX_FRAME });
  }

  goOffline(reason: 1 | 2 = 1): void {
    if (!this.isOnline) return;
    this.isOnline = false;
    this.send("ENDPOINT_OFFLINE", 0, 0, { epoch: BigInt(this.epoch), reason });
    this.#offlineAt = (this.rx.own + this.#unsent.length) >>> 0;
    this.#drop("offline");
  }

  /** The process has read ENDPOINT_OFFLINE. */
  get hasReadOffline(): boolean {
    return this.#unsent.length === 0 && ((this.rx.other() - this.#offlineAt) | 0) >= 0;
  }

  #drop(why: string): void {
    const listeners = [...this.listeners.values()];
    this.devices.clear();
    this.listeners.clear();
    for (const listener of listeners) listener.ended(new SessionEnded(why));
    this.#snapshot = undefined;
    this.owner.memory.forgetAll();
    this.live.clear();
    const open = [...this.#requests.values(), ...this.#maps.values()];
    this.#requests.clear();
    this.#maps.clear();
    for (const { reject } of open) reject(new SessionEnded(why));
  }

  /** Faults the session, as a kernel does by itself or with a reason. */
  fault(): void {
    if (this.isFaulted) return;
    this.isFaulted = true;
    this.#drop("faulted");
    signal(this.fds.call);
    this.owner.faulted();
  }

  // From the process.

  /** A kick has come. */
  kicked(): void {
    // It may have been seen before the endpoint came back, and taken then.
    if (!unsignal(this.fds.kick)) return;
    this.kicks++;
    if (this.isFaulted) return;
    if (this.#fill()) this.ring();
    if (!this.isOnline) {
      if (this.#quietAt !== undefined) this.owner.violation("a kick after ENDPOINT_OFFLINE");
      if (this.tx.used > 0) this.fault();
      return;
    }
    this.take();
  }

  /** To be called now and then while offline: from when it is known that the process knows. */
  lookWhileOffline(): void {
    if (this.isOnline || this.isFaulted || this.epoch === 0 || !this.hasReadOffline) return;
    if (this.#quietAt === undefined) {
      unsignal(this.fds.kick);
      this.#quietAt = this.tx.other();
    } else if (this.tx.other() !== this.#quietAt) {
      this.owner.violation("a frame after ENDPOINT_OFFLINE");
    }
  }

  /** No more frames are taken from tx until {@link resume}. */
  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    this.take();
  }

  /** Takes what is in tx. */
  take(): void {
    while (this.isOnline && !this.isFaulted && !this.#isPaused) {
      const prod = this.tx.other();
      const bytes = this.tx.peek();
      if (bytes === undefined) return;
      const wrong = this.#judge(bytes);
      if (wrong !== undefined) {
        this.owner.violation(`${wrong}: ${bytes.toHex()}`);
        this.fault();
        return;
      }
      this.tx.done();
      if (this.writesBack) this.tx.writeBack(prod);
      this.taken++;
    }
  }

  #judge(bytes: Uint8Array): string | undefined {
    let frame: Frame;
    try {
      frame = decodeFrame(bytes);
    } catch (error) {
      return (error as Error).message;
    }
    const wrong = this.#handle(frame);
    if (wrong === undefined) this.owner.seen("D>K", frame);
    return wrong;
  }

  #handle(frame: Frame): string | undefined {
    const { name, dev, token } = frame;
    if (name.startsWith("TOPOLOGY_")) return this.#topology(frame);
    if (name === "MAP_ADD.resp" || name === "MAP_DEL.resp") return this.#mapAnswer(frame);
    if (name.endsWith(".resp")) {
      const open = this.#requests.get(token);
      if (open === undefined || open.dev !== dev) {
        return this.isLenient ? undefined : "an answer to no request";
      }
      if (`${open.name}.resp` !== name) return `an answer to ${open.name}`;
      if (!this.devices.has(dev)) return "an answer of a device that is not there";
      this.#requests.delete(token);
      if (open.name === "GET_DEVICE_INFO") this.devices.get(dev)!.infoAccepted = true;
      open.resolve(frame);
      return undefined;
    }
    if (name !== "EVENT_USED" && name !== "EVENT_CONFIG") return `${name} is not for it to send`;
    if (token !== 0) return "an event with a token";
    // What was written in frames that were put here raw is not known.
    if (this.isLenient) return undefined;
    const device = this.devices.get(dev);
    if (device === undefined) return "an event of a device that is not there";
    if (!device.infoAccepted || !device.statusWritten) return "an event before the first status";
    return this.listeners.get(dev)?.event(frame);
  }

  #topology(frame: Frame): string | undefined {
    const { name, dev, token } = frame;
    if (dev !== 0 || token !== 0) return "a device or a token in a frame of the bridge";
    if (wideOf(frame, "epoch") !== BigInt(this.epoch)) return `this is epoch ${this.epoch}`;
    if (name === "TOPOLOGY_RESET") {
      this.#snapshot = new Set();
      return undefined;
    }
    const snapshot = this.#snapshot;
    if (snapshot === undefined) return "no TOPOLOGY_RESET was before it";
    if (name === "TOPOLOGY_DEV_ADD") {
      const number = numberOf(frame, "dev_num");
      if (snapshot.has(number)) return `device ${number} twice`;
      if (number >= 32) return "a device that the loopback ignores";
      snapshot.add(number);
      return undefined;
    }
    if (numberOf(frame, "count") !== snapshot.size) return `${snapshot.size} devices were added`;
    // Allowed, but a kernel stalls for five seconds for each window (section G, fact 4).
    const removed = [...this.devices.keys()].find((number) => !snapshot.has(number));
    if (removed !== undefined) return `device ${removed} removed from a live session`;
    for (const number of snapshot) {
      if (!this.devices.has(number)) {
        this.devices.set(number, { infoAccepted: false, statusWritten: false });
      }
    }
    this.#snapshot = undefined;
    // With a first set of devices all windows of before are unmapped.
    if (this.live.size === 0) this.owner.memory.watchForgotten();
    this.commits++;
    return undefined;
  }

  #mapAnswer(frame: Frame): string | undefined {
    const { name, dev, token } = frame;
    // Requests are answered in order: the oldest that is open is the one.
    const [oldest] = this.#maps;
    if (this.isLenient && oldest?.[0] !== token) return undefined;
    if (dev !== 0 || oldest === undefined || oldest[0] !== token) {
      return "not the oldest request of a window";
    }
    const [, { name: asked, window, resolve }] = oldest;
    if (`${asked}.resp` !== name) return `an answer to ${asked}`;
    if (wideOf(frame, "epoch") !== BigInt(this.epoch)) return `this is epoch ${this.epoch}`;
    if (wideOf(frame, "map_seq") !== BigInt(window.mapSeq)) return `map_seq is ${window.mapSeq}`;
    if (wideOf(frame, "map_id") !== BigInt(window.mapId)) return `map_id is ${window.mapId}`;
    const status = numberOf(frame, "status");
    if (status > 0 || (status < 0 && asked === "MAP_DEL")) return "not a status for it";
    this.#maps.delete(token);
    if (asked === "MAP_ADD" && status === 0) this.live.add(window);
    resolve(frame);
    return undefined;
  }
}
