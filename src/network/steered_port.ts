/**
 * Several queues before a port that has one: receive steering for whatever does not do it by itself, as a TAP does
 * (VIRTIO 1.2, 5.1.6.5.5).
 *
 * Theory of operation. A frame from the guest leaves a note in the flow table: its flow belongs to this queue now. A
 * frame for the guest is taken from the port into a slot, and its slot waits in the queue of its flow. A flow that the
 * guest has never sent goes where its number says.
 *
 *     guest -> queue n -> flow table[flow] = n -> port
 *     port -> slot -> flow table -> queue n -> guest
 *
 * A queue is full with {@link WAITING} frames. The next one for it is held back, and the port with it, for as long as the
 * guest may take to empty a queue that it works on; then the frame is dropped, and so is what follows for that queue until
 * the guest takes something: it costs the others no more. As long as one queue is used, frames go through without a slot.
 *
 * When queues or features are given up the frames that wait are dropped: they may have been made for what was taken before.
 */

import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import type { Reactor, Task, Timer } from "../linux/reactor.ts";
import { IovecList, MemoryWindow } from "../memory/mod.ts";
import { counterShape } from "../observe/counters.ts";
import { flowOf, FLOWS, NO_FLOW } from "./flow.ts";
import { LARGE_FRAME_ROOM } from "./frame_size.ts";
import type { NetworkPort, PortListener, PortQueue } from "./port.ts";

/** Frames that may wait in a queue. */
const WAITING = 64;
/** Frames that are taken from the port in a turn. */
const BATCH = 64;
/** How long one that is full may hold back the others. */
const PATIENCE_MS = 20;
const SLOT_SIZE = LARGE_FRAME_ROOM + 6;

const SteeringCounters = counterShape("steered", "dropped");

/** Slots in the order they came. */
class SteeredQueue implements PortQueue {
  /** Has a frame that was refused. */
  isBlocked = false;
  /** It was full for too long. */
  isStalled = false;
  readonly #slots = new Uint16Array(WAITING);
  #first = 0;
  count = 0;

  constructor(readonly port: SteeredPort, readonly index: number) {}

  push(slot: number): void {
    this.#slots[(this.#first + this.count++) % WAITING] = slot;
  }

  /** Takes the oldest slot. */
  shift(): number {
    this.isStalled = false;
    const slot = this.#slots[this.#first]!;
    this.#first = (this.#first + 1) % WAITING;
    this.count--;
    return slot;
  }

  /** The oldest slot. */
  get front(): number {
    return this.#slots[this.#first]!;
  }

  send(frame: IovecList): boolean {
    this.isBlocked = !this.port.sendFrom(this.index, frame);
    return !this.isBlocked;
  }

  nextLength(): number {
    return this.port.nextLengthOf(this);
  }

  receive(into: IovecList, first: number): number {
    return this.port.receiveFrom(this, into, first);
  }

  discard(): void {
    this.port.discardOf(this);
  }
}

/** See the head of this file. It owns the port. */
export class SteeredPort implements NetworkPort {
  readonly description: string;
  readonly features: readonly number[];
  readonly queues: readonly SteeredQueue[];
  readonly counters: InstanceType<typeof SteeringCounters>;
  readonly #memory: Mapping;
  readonly #window: MemoryWindow;
  readonly #slot = new IovecList(1);
  readonly #lengths: Uint32Array;
  /** Slots without a frame. */
  readonly #free: number[];
  readonly #flows = new Uint8Array(FLOWS);
  readonly #task: Task = { run: () => this.#take() };
  /** Takes the slot that is held back, and the queue that it is for. */
  #held: SteeredQueue | undefined;
  #heldSlot = 0;
  readonly #patience: Timer;
  #used = 1;
  #listener!: PortListener;

  /** Makes `count` queues. */
  constructor(readonly port: NetworkPort, count: number, readonly reactor: Reactor) {
    this.description = port.description;
    this.features = port.features;
    this.counters = new SteeringCounters("steering", port.description);
    this.queues = Array.from({ length: count }, (_, i) => new SteeredQueue(this, i));
    // One more than can wait, for the frame that is looked at.
    const slots = count * WAITING + 1;
    this.#memory = mapAnonymous(slots * SLOT_SIZE);
    this.#window = new MemoryWindow(0, slots * SLOT_SIZE, this.#memory, 0);
    this.#lengths = new Uint32Array(slots);
    this.#free = Array.from({ length: slots }, (_, i) => i);
    this.#flows.fill(count);
    this.#patience = reactor.timer(() => this.#drop());
  }

  setFeatures(words: Uint32Array): void {
    this.#forget(0);
    this.port.setFeatures?.(words);
  }

  startOver(): void {
    this.#flows.fill(this.queues.length);
    this.port.startOver?.();
  }

  setMac(mac: Uint8Array): void {
    this.port.setMac?.(mac);
  }

  setQueues(count: number): void {
    this.#used = count;
    this.#forget(count);
    // What the port has was shown to the queues that were used before.
    this.#readable();
  }

  /** Empties the queues from the `first` on. */
  #forget(first: number): void {
    for (const queue of this.queues.slice(first)) {
      while (queue.count > 0) this.#free.push(this.#shift(queue));
    }
  }

  /** Takes the oldest slot of a queue, which makes room for the one that is held back. */
  #shift(queue: SteeredQueue): number {
    const slot = queue.shift();
    if (this.#held === queue) {
      queue.push(this.#heldSlot);
      this.#goOn();
    }
    return slot;
  }

  /** The guest does not work on the queue that is full. */
  #drop(): void {
    this.#held!.isStalled = true;
    this.#free.push(this.#heldSlot);
    this.counters.dropped++;
    this.#goOn();
  }

  #goOn(): void {
    this.#held = undefined;
    this.#patience.cancel();
    this.reactor.schedule(this.#task);
  }

  open(listener: PortListener): void {
    this.#listener = listener;
    this.port.open({
      readable: () => this.#readable(),
      writable: () => {
        for (const queue of this.queues) if (queue.isBlocked) listener.writable(queue.index);
      },
      link: (up) => listener.link(up),
    });
  }

  #readable(): void {
    if (this.#used === 1) this.#listener.readable(0);
    else this.reactor.schedule(this.#task);
  }

  /** Takes frames from the port and has each wait in the queue of its flow. */
  #take(): boolean {
    if (this.#used === 1 || this.#held !== undefined) return false;
    for (let i = 0; i < BATCH; i++) {
      const wanted = this.port.nextLength();
      if (wanted === 0) return false;
      if (wanted > SLOT_SIZE) {
        this.port.discard();
        continue;
      }
      const slot = this.#free.pop()!;
      this.#slot.clear();
      this.#slot.push(this.#window, slot * SLOT_SIZE, SLOT_SIZE);
      const length = this.port.receive(this.#slot, 0);
      if (length === 0) {
        this.#free.push(slot);
        return false;
      }
      this.#lengths[slot] = length;
      const queue = this.queues[this.#queueOf(this.#slot)]!;
      const isFull = queue.count === WAITING;
      if (isFull && !queue.isStalled) {
        this.#held = queue;
        this.#heldSlot = slot;
        this.#patience.arm(PATIENCE_MS);
        return false;
      }
      if (isFull) {
        this.#free.push(slot);
        this.counters.dropped++;
        continue;
      }
      queue.push(slot);
      this.counters.steered++;
      this.#listener.readable(queue.index);
    }
    return true;
  }

  #queueOf(frame: IovecList): number {
    const flow = flowOf(frame);
    if (flow === NO_FLOW) return 0;
    const queue = this.#flows[flow]!;
    return queue < this.#used ? queue : flow % this.#used;
  }

  /** {@link PortQueue.send}, of a queue. */
  sendFrom(queue: number, frame: IovecList): boolean {
    if (this.#used > 1) {
      const flow = flowOf(frame);
      if (flow !== NO_FLOW) this.#flows[flow] = queue;
    }
    return this.port.send(frame);
  }

  #isDirect(queue: SteeredQueue): boolean {
    return queue.count === 0 && queue.index === 0 && this.#used === 1;
  }

  /** {@link PortQueue.nextLength}, of a queue. */
  nextLengthOf(queue: SteeredQueue): number {
    if (this.#isDirect(queue)) return this.port.nextLength();
    return queue.count === 0 ? 0 : this.#lengths[queue.front]!;
  }

  /** {@link PortQueue.receive}, of a queue. */
  receiveFrom(queue: SteeredQueue, into: IovecList, first: number): number {
    if (this.#isDirect(queue)) return this.port.receive(into, first);
    if (queue.count === 0) return 0;
    const slot = this.#shift(queue);
    this.#free.push(slot);
    const source = this.#window.address + BigInt(slot * SLOT_SIZE);
    return into.copyIn(0, source, this.#lengths[slot]!, first);
  }

  /** {@link PortQueue.discard}, of a queue. */
  discardOf(queue: SteeredQueue): void {
    if (this.#isDirect(queue)) this.port.discard();
    else if (queue.count > 0) this.#free.push(this.#shift(queue));
  }

  send(frame: IovecList): boolean {
    return this.queues[0]!.send(frame);
  }

  nextLength(): number {
    return this.queues[0]!.nextLength();
  }

  receive(into: IovecList, first: number): number {
    return this.queues[0]!.receive(into, first);
  }

  discard(): void {
    this.queues[0]!.discard();
  }

  [Symbol.dispose](): void {
    this.reactor.dropTimer(this.#patience);
    this.port[Symbol.dispose]();
    this.#memory[Symbol.dispose]();
  }
}
