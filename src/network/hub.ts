/**
 * Several devices on one link: a learning switch in this process, with at most one uplink.
 *
 * Theory of operation. Each device gets a {@link HubPort}. A frame that a port sends is copied into the
 * queue of the port its destination was last seen behind (mac_table.ts), or, as a broadcast or for a
 * station not known, into all other queues. The uplink, any other port (a TAP, passt, the responder), is one
 * more station on the link, whose queue and frames are worked on by two tasks, a batch at a time.
 *
 * A full queue drops what comes for it, so a guest that takes nothing slows nobody down; a sender never
 * waits. There are no offloads: a frame that suits every port is a plain one. There is no spanning tree: two hubs
 * with two links between them are a loop. A port's link is up as long as the hub is there.
 */

import { NET_HEADER_SIZE } from "../virtio/net_header.ts";
import { allocate } from "../linux/arena.ts";
import { VmsgError } from "../linux/errors.ts";
import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import type { Reactor, Task } from "../linux/reactor.ts";
import { counterShape } from "../observe/counters.ts";
import { IovecList, MemoryWindow } from "../memory/mod.ts";
import { FrameQueue } from "./frame_queue.ts";
import { MacTable } from "./mac_table.ts";
import { frameRoom } from "./frame_size.ts";
import type { NetworkPort, PortListener } from "./port.ts";
import {
  ETHERNET_DESTINATION,
  ETHERNET_HEADER_SIZE,
  ETHERNET_SOURCE,
  isGroupMac,
} from "./protocols/ethernet.ts";

export const MAX_PORTS = 64;
export const QUEUE_FRAMES = 256;

const BATCH = 64;
const UPLINK = 0;

interface HubOptions {
  readonly name?: string;
  /** The port to the rest of the world; the hub disposes it. */
  readonly uplink?: NetworkPort | undefined;
  /** The largest payload of a frame, in bytes; default 1500. Longer ones are dropped. */
  readonly mtu?: number;
  /** The last port of its own was disposed of. */
  readonly deserted?: () => void;
}

const HubCounters = counterShape("forwarded", "flooded", "dropped", "malformed");

/** See the head of this file. */
export class Hub implements Disposable {
  readonly counters: InstanceType<typeof HubCounters>;
  readonly mtu: number;
  readonly #slotSize: number;
  readonly #table = new MacTable();
  readonly #ports: (HubPort | undefined)[] = [undefined];
  readonly #header = allocate(ETHERNET_HEADER_SIZE);
  #uplink: Uplink | undefined;

  constructor(readonly reactor: Reactor, readonly options: HubOptions = {}) {
    this.counters = new HubCounters("hub", options.name ?? "");
    this.mtu = options.mtu ?? 1500;
    this.#slotSize = (frameRoom(this.mtu) + 63) & ~63;
    if (options.uplink !== undefined) {
      const queue = new FrameQueue(QUEUE_FRAMES, this.#slotSize);
      const forward: Forward = (frame, length) => this.#forward(UPLINK, frame, length);
      this.#uplink = new Uplink(reactor, options.uplink, queue, forward);
    }
  }

  connect(): NetworkPort {
    const free = this.#ports.findIndex((port, number) => number !== UPLINK && port === undefined);
    const number = free < 0 ? this.#ports.length : free;
    if (number > MAX_PORTS) {
      throw new VmsgError("HUB_FULL", `a hub has at most ${MAX_PORTS} ports`);
    }
    const forward: Forward = (frame, length) => this.#forward(number, frame, length);
    const leave = () => {
      this.#ports[number] = undefined;
      this.#table.forgetPort(number);
      if (this.#ports.every((port) => port === undefined)) this.options.deserted?.();
    };
    const queue = new FrameQueue(QUEUE_FRAMES, this.#slotSize);
    return this.#ports[number] = new HubPort(`hub port ${number}`, queue, forward, leave);
  }

  #forward(source: number, frame: IovecList, length: number): void {
    const size = length - NET_HEADER_SIZE;
    const { address, bytes, view } = this.#header;
    if (size >= ETHERNET_HEADER_SIZE) frame.copyOut(NET_HEADER_SIZE, address, ETHERNET_HEADER_SIZE);
    // A group sends nothing itself.
    if (size < ETHERNET_HEADER_SIZE || isGroupMac(bytes, ETHERNET_SOURCE)) {
      this.counters.malformed++;
      return;
    }
    const nowSeconds = this.reactor.turnMs() / 1000;
    this.#table.learn(readMac(view, ETHERNET_SOURCE), source, nowSeconds);
    const isGroup = isGroupMac(bytes, ETHERNET_DESTINATION);
    const target = isGroup ? -1 : this.#table.find(readMac(view, ETHERNET_DESTINATION), nowSeconds);
    if (target >= 0) {
      this.counters.forwarded++;
      // Behind the port it came from there is a network of its own, which has delivered it.
      if (target !== source) this.#deliver(target, frame, length);
      return;
    }
    this.counters.flooded++;
    for (let number = 0; number < this.#ports.length; number++) {
      if (number !== source) this.#deliver(number, frame, length);
    }
  }

  #deliver(number: number, frame: IovecList, length: number): void {
    const port = number === UPLINK ? this.#uplink : this.#ports[number];
    if (port !== undefined && !port.deliver(frame, length)) this.counters.dropped++;
  }

  [Symbol.dispose](): void {
    for (const port of this.#ports) port?.[Symbol.dispose]();
    this.#uplink?.[Symbol.dispose]();
    this.#uplink = undefined;
  }
}

function readMac(view: DataView, at: number): number {
  return view.getUint16(at, false) * 0x1_0000_0000 + view.getUint32(at + 2, false);
}

type Forward = (frame: IovecList, length: number) => void;

class HubPort implements NetworkPort {
  readonly features: readonly number[] = [];
  #listener: PortListener | undefined;
  #open = true;

  constructor(
    readonly description: string,
    readonly queue: FrameQueue,
    readonly forward: Forward,
    readonly leave: () => void,
  ) {}

  open(listener: PortListener): void {
    this.#listener = listener;
    listener.link(true);
    if (this.queue.count > 0) listener.readable();
  }

  deliver(frame: IovecList, length: number): boolean {
    if (!this.queue.push(frame, length)) return false;
    this.#listener?.readable();
    return true;
  }

  send(frame: IovecList): boolean {
    if (this.#open) this.forward(frame, frame.length);
    return true;
  }

  nextLength(): number {
    return this.queue.frontLength;
  }

  receive(into: IovecList, first: number): number {
    const length = this.queue.copyFront(into, first);
    this.queue.shift();
    return length;
  }

  discard(): void {
    this.queue.shift();
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.#listener = undefined;
    this.leave();
    this.queue[Symbol.dispose]();
  }
}

/** The hub as the user of another port. */
class Uplink implements Disposable {
  readonly #out = new IovecList(1);
  readonly #in = new IovecList(1);
  readonly #memory: Mapping;
  readonly #window: MemoryWindow;
  readonly #sendTask: Task = { run: () => this.#send() };
  readonly #receiveTask: Task = { run: () => this.#receive() };
  #open = true;

  constructor(
    readonly reactor: Reactor,
    readonly port: NetworkPort,
    readonly queue: FrameQueue,
    readonly forward: Forward,
  ) {
    this.#memory = mapAnonymous(queue.slotSize);
    this.#window = new MemoryWindow(0, queue.slotSize, this.#memory, 0);
    port.setFeatures?.(new Uint32Array(2));
    port.open({
      readable: () => reactor.schedule(this.#receiveTask),
      writable: () => reactor.schedule(this.#sendTask),
      link: () => {},
    });
  }

  deliver(frame: IovecList, length: number): boolean {
    if (!this.queue.push(frame, length)) return false;
    this.reactor.schedule(this.#sendTask);
    return true;
  }

  #send(): boolean {
    const queue = this.queue;
    for (let i = 0; i < BATCH && this.#open; i++) {
      const length = queue.frontLength;
      if (length === 0) return false;
      this.#out.clear();
      this.#out.push(queue.window, queue.frontOffset, length);
      if (!this.port.send(this.#out)) return false;
      queue.shift();
    }
    return this.#open;
  }

  #receive(): boolean {
    for (let i = 0; i < BATCH && this.#open; i++) {
      const wanted = this.port.nextLength();
      if (wanted === 0) return false;
      if (wanted > this.#window.size) {
        this.port.discard();
        continue;
      }
      this.#in.clear();
      this.#in.push(this.#window, 0, this.#window.size);
      const length = this.port.receive(this.#in, 0);
      if (length === 0) return false;
      this.forward(this.#in, length);
    }
    return this.#open;
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.port[Symbol.dispose]();
    this.queue[Symbol.dispose]();
    this.#memory[Symbol.dispose]();
  }
}
