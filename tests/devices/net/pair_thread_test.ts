/**
 * Queue pairs in threads of their own against the mock driver: real Workers, real descriptors (sockets that keep frames
 * apart, where a TAP would be). The test is the driver, the wire and the plane.
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { NetDevice } from "../../../src/devices/net/net_device.ts";
import { endPair, openPairLine, type PairLine } from "../../../src/devices/net/pair_line.ts";
import { allocate } from "../../../src/linux/arena.ts";
import { VmsgError } from "../../../src/linux/errors.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../../src/linux/eventfd.ts";
import { Fd, openPipe } from "../../../src/linux/fd.ts";
import { check, libc } from "../../../src/linux/libc.ts";
import { mapAnonymous } from "../../../src/linux/mapping.ts";
import { Reactor } from "../../../src/linux/reactor.ts";
import type { IovecList } from "../../../src/memory/mod.ts";
import type { NetworkPort, PortListener } from "../../../src/network/port.ts";
import { TapQueue } from "../../../src/network/tap_queue.ts";
import type { DeviceHost, MemoryRegion, Terms } from "../../../src/virtio/device.ts";
import { NetFeature, RingFeature } from "../../../src/virtio/features.ts";
import { NET_HEADER_SIZE } from "../../../src/virtio/net_header.ts";
import { MockDriver, MockMemory, type RingDriver } from "../../support/mock_driver.ts";
import { MockPackedDriver } from "../../support/mock_packed_driver.ts";

const AT = 0x4000_0000;
const BUFFERS = AT + 0x4_0000;
/** Memory that is added while queues run. */
const MORE = 0x8000_0000;
const QUEUE_SIZE = 64;
const BUFFER_SIZE = 256;
const MAC = new Uint8Array([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const { CTRL_VQ, CTRL_RX, CTRL_RX_EXTRA, MQ } = NetFeature;
const FRAME = NET_HEADER_SIZE + 60;
/** Receive and transmit queue of pair 1, and those of pair 2. */
const [RX, TX, RX2, TX2] = [2, 3, 4, 5];
/** Only a thread that hangs comes to it. */
const LIMIT_MS = 60_000;

const scratch = allocate(2 * FRAME);

/** The ends of a cable that keeps frames apart. */
function openCable(): [Fd, Fd] {
  const seqpacket = 5 | 0o4000 | 0o2000000;
  check(libc.socketpair(1, seqpacket, 0, scratch.address), "socketpair");
  return [0, 4].map((at) => new Fd(scratch.view.getInt32(at, true))) as [Fd, Fd];
}

class CablePort implements NetworkPort {
  readonly description = "cable";
  readonly features = [];
  readonly queues: TapQueue[] = [];
  readonly wires: Fd[] = [];

  constructor(count: number, reactor: Reactor) {
    for (let i = 0; i < count; i++) {
      const [ours, wire] = openCable();
      this.queues.push(new TapQueue(ours, reactor, `cable ${i}`));
      this.queues[i]!.room = FRAME;
      this.wires.push(wire);
    }
  }

  open(listener: PortListener): void {
    for (const [i, queue] of this.queues.entries()) {
      queue.open({
        readable: () => listener.readable(i),
        writable: () => listener.writable(i),
      });
    }
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
    for (const queue of this.queues) queue[Symbol.dispose]();
    for (const wire of this.wires) wire[Symbol.dispose]();
  }
}

/** A card of three pairs, of which the last two are in Workers. */
class Rig implements AsyncDisposable {
  readonly reactor = new Reactor();
  readonly memory = new MockMemory([{ at: AT, size: 1 << 20 }, { at: MORE, size: 4096 }]);
  readonly port = new CablePort(3, this.reactor);
  /** The driver's rings, and the same of who looks into split ones. */
  readonly rings: RingDriver[] = [];
  readonly queues: MockDriver[] = [];
  readonly used: number[] = [];
  readonly resets: string[] = [];
  /** Of the host; undefined: other threads cannot see the memory. */
  terms: Terms | undefined = { untilMs: Infinity };
  /** The second window is added later. */
  readonly regions: readonly MemoryRegion[] = this.memory.windows.map(({ at, size, offset }) => {
    return { at, size, offset, memory: this.memory.memory };
  });
  readonly device: NetDevice;
  readonly #bufferOf = new Map<number, number>();
  readonly #stack = new DisposableStack();
  readonly #lines: PairLine[] = [1, 2].map(() => openPairLine(this.#stack));
  readonly #started: Promise<void>[] = [];
  readonly #ended: Promise<void>[] = [];

  /** The threads are there: who connects a card blocks until they are, and from source they are checked and compiled first. */
  static async open(...of: ConstructorParameters<typeof Rig>): Promise<Rig> {
    const rig = new Rig(...of);
    await Promise.all(rig.#started);
    rig.#connect();
    return rig;
  }

  constructor(
    readonly features: readonly number[] = [],
    readonly format: "split" | "packed" = "split",
  ) {
    for (const line of this.#lines) {
      const worker = new Worker(new URL("./pair_thread_worker.ts", import.meta.url), {
        type: "module",
      });
      const [started, ended] = [0, 1].map(() => Promise.withResolvers<void>());
      worker.onmessage = ({ data }) => (data === "started" ? started : ended)!.resolve();
      worker.postMessage(line);
      this.#started.push(started!.promise);
      this.#ended.push(ended!.promise);
    }
    const options = { mac: MAC, mtu: 1500, pairs: 3, lines: this.#lines };
    this.device = new NetDevice(this.reactor, this.port, options);
  }

  #connect(): void {
    const { memory, used, resets, features, format } = this;
    const terms = () => this.terms;
    const host: DeviceHost = {
      memory: memory.space,
      regions: this.regions.slice(0, 1),
      get terms() {
        return terms();
      },
      mayTouchMemory: () => this.terms === undefined || this.terms.untilMs > this.reactor.now(),
      used: (queue) => void used.push(queue),
      configChanged: () => {},
      needsReset: (reason) => void resets.push(reason),
    };
    this.device.connect(host);
    const words = new Uint32Array(2);
    const rings = format === "packed" ? [RingFeature.RING_PACKED] : [];
    for (const bit of [RingFeature.VERSION_1, CTRL_VQ, MQ, ...rings, ...features]) {
      words[bit >> 5]! |= 1 << (bit & 31);
    }
    assert(this.device.acceptFeatures(words));
    for (let index = 0; index < this.device.queueCount; index++) {
      const options = { size: QUEUE_SIZE, at: AT + index * 0x3000 };
      if (format === "packed") this.rings.push(new MockPackedDriver(memory, options));
      else this.rings.push(this.queues[index] = new MockDriver(memory, options));
      assertEquals(this.start(index), undefined);
    }
    this.device.resume();
  }

  start(index: number, base = 0) {
    return this.device.startQueue(index, { ...this.rings[index]!.config, base });
  }

  setTerms(terms: Terms | undefined): void {
    this.terms = terms;
    this.device.termsChanged();
  }

  /** Where a queue's buffer of that number is. */
  at(queue: number, buffer: number): number {
    return BUFFERS + (QUEUE_SIZE * queue + buffer) * BUFFER_SIZE;
  }

  offer(queue: number, buffer: number, length = BUFFER_SIZE): void {
    const element = [{ address: this.at(queue, buffer), length }];
    const isReceive = queue % 2 === 0;
    const head = this.rings[queue]!.add(isReceive ? [] : element, isReceive ? element : []);
    this.#bufferOf.set(0x1_0000 * queue + head!, buffer);
    this.rings[queue]!.publish();
    this.device.available(queue);
  }

  /** The buffers that the device has used; {@link offer} gives one back. */
  *usedBuffers(queue: number): Generator<number> {
    for (;;) {
      const used = this.rings[queue]!.takeUsed();
      if (used === undefined) return;
      assertEquals(used.length, FRAME);
      yield this.#bufferOf.get(0x1_0000 * queue + used.head)!;
    }
  }

  /** Sends a frame to the card with this number in it; false if the wire is full. */
  deliver(pair: number, number: number): boolean {
    scratch.bytes.fill(0xff, 0, FRAME);
    scratch.view.setUint32(FRAME - 4, number);
    return libc.write(this.port.wires[pair]!.number, scratch.address, FRAME) === FRAME;
  }

  /** Sends one from the card. */
  transmit(queue: number, number: number): void {
    const bytes = this.memory.bytes(this.at(queue, 0), FRAME).fill(0);
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(FRAME - 4, number);
    this.offer(queue, 0, FRAME);
  }

  /** The number in the next frame that the card has sent; undefined if there is none. */
  sent(pair: number): number | undefined {
    const read = libc.read(this.port.wires[pair]!.number, scratch.address, FRAME);
    return read === FRAME ? scratch.view.getUint32(FRAME - 4) : undefined;
  }

  /** Turns the plane's loop until there is something. */
  until<T>(what: string, look: () => T | undefined): T {
    const endMs = this.reactor.now() + LIMIT_MS;
    const timer = this.reactor.timer(() => {});
    for (;;) {
      const found = look();
      if (found !== undefined) {
        this.reactor.dropTimer(timer);
        return found;
      }
      assert(this.reactor.now() < endMs, `waited in vain: ${what}`);
      timer.arm(1);
      this.reactor.turn();
    }
  }

  takeUsed(queue: number) {
    return this.until(`used, queue ${queue}`, () => this.rings[queue]!.takeUsed());
  }

  /** Until the threads have done what they were to do: two letters, since what comes with one is done behind it. */
  settle(): void {
    for (let i = 0; i < 2; i++) this.device.memoryAdded([]);
  }

  /** What is in the rings and the buffers of a queue. */
  seenOf(queue: number): Uint8Array {
    const rings = this.memory.bytes(AT + queue * 0x3000, 0x3000);
    const buffers = this.memory.bytes(this.at(queue, 0), QUEUE_SIZE * BUFFER_SIZE);
    return new Uint8Array([...rings, ...buffers]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.device[Symbol.dispose]();
    for (const line of this.#lines) endPair(line);
    await Promise.all(this.#ended);
    this.reactor[Symbol.dispose]();
    this.memory.checkGuards();
    this.memory[Symbol.dispose]();
    this.#stack.dispose();
  }
}

Deno.test("pair threads: frames go both ways on two of them, and the first pair stays", async () => {
  await using net = await Rig.open();
  for (const pair of [0, 1, 2]) {
    net.offer(2 * pair, 0);
    assert(net.deliver(pair, 100 + pair));
    assertEquals(net.takeUsed(2 * pair).length, FRAME);
    net.transmit(2 * pair + 1, 200 + pair);
    assertEquals(net.until("sent", () => net.sent(pair)), 200 + pair);
    net.takeUsed(2 * pair + 1);
    net.until("told", () => [0, 1].every((n) => net.used.includes(2 * pair + n)) || undefined);
  }
  assertEquals(net.resets, []);
  assertEquals(net.port.queues.slice(1).map(({ frames }) => frames.readable), [false, false]);
});

Deno.test("pair threads: a queue that stops under flood writes no byte more, and loses no frame", async () => {
  await using net = await Rig.open();
  let delivered = 0, seen = 0;
  for (let i = 0; i < QUEUE_SIZE; i++) net.offer(RX, i);
  const flood = () => {
    for (const buffer of net.usedBuffers(RX)) {
      const { buffer: bytes, byteOffset } = net.memory.bytes(net.at(RX, buffer), FRAME);
      assertEquals(new DataView(bytes, byteOffset).getUint32(FRAME - 4), seen++);
      net.offer(RX, buffer);
    }
    while (net.deliver(1, delivered)) delivered++;
  };
  for (let round = 0; round < 40; round++) {
    const target = seen + 20 + round;
    // Somewhere in the middle of it: the wire is full of frames, the ring of buffers.
    net.until("flood", () => {
      flood();
      return seen >= target || undefined;
    });
    const base = net.device.stopQueue(RX) as number;
    const before = net.seenOf(RX);
    assertEquals(base, net.queues[RX]!.usedIndex, "what was popped and not used is taken back");
    // The thread is there, and works on the pair's other queue.
    for (let i = 0; i < 3; i++) {
      net.device.available(RX);
      net.transmit(TX, round);
      assertEquals(net.until("sent", () => net.sent(1)), round);
      net.takeUsed(TX);
    }
    assertEquals(net.seenOf(RX), before);
    assertEquals(net.start(RX, base), undefined);
    net.device.available(RX);
  }
});

Deno.test("pair threads: packed rings, which stop and go on round after round", async () => {
  await using net = await Rig.open([], "packed");
  let delivered = 0, seen = 0;
  for (let i = 0; i < QUEUE_SIZE; i++) net.offer(RX, i);
  // More than two laps of either ring, and a stop in each part of one.
  for (let round = 0; round < 30; round++) {
    for (let n = 0; n < 7; n++) assert(net.deliver(1, delivered++));
    net.until("all of them", () => {
      for (const buffer of net.usedBuffers(RX)) {
        const { buffer: bytes, byteOffset } = net.memory.bytes(net.at(RX, buffer), FRAME);
        assertEquals(new DataView(bytes, byteOffset).getUint32(FRAME - 4), seen++);
        net.offer(RX, buffer);
      }
      return seen === delivered || undefined;
    });
    for (let n = 0; n < 5; n++) {
      net.transmit(TX, round);
      assertEquals(net.until("sent", () => net.sent(1)), round);
      net.takeUsed(TX);
    }
    for (const queue of [RX, TX]) {
      const base = net.device.stopQueue(queue) as number;
      assertEquals(net.start(queue, base), undefined);
      net.device.available(queue);
    }
  }
  assertEquals(net.resets, []);
});

Deno.test("pair threads: when the lease is over no thread writes, and all go on when it is renewed", async () => {
  await using net = await Rig.open();
  for (const queue of [RX, RX2]) for (let i = 0; i < QUEUE_SIZE; i++) net.offer(queue, i);
  net.setTerms({ untilMs: net.reactor.now() + 50 });
  const endMs = net.terms!.untilMs;
  const flood = () => {
    for (const pair of [1, 2]) {
      for (const buffer of net.usedBuffers(2 * pair)) net.offer(2 * pair, buffer);
      net.deliver(pair, 0);
    }
  };
  net.until("the lease's end", () => {
    flood();
    return net.reactor.now() > endMs || undefined;
  });
  net.settle();
  // They have buffers, frames and kicks.
  flood();
  const before = [RX, RX2].map((queue) => net.seenOf(queue));
  for (let i = 0; i < 20; i++) {
    for (const pair of [1, 2]) net.deliver(pair, 0);
    for (const queue of [RX, TX, RX2, TX2]) net.device.available(queue);
    net.settle();
  }
  assertEquals([RX, RX2].map((queue) => net.seenOf(queue)), before);
  const usedBefore = [RX, RX2].map((queue) => net.queues[queue]!.usedIndex);
  // Nothing but the renewal wakes them.
  net.setTerms({ untilMs: net.reactor.now() + LIMIT_MS });
  net.until(
    "going on",
    () => [RX, RX2].every((queue, i) => net.queues[queue]!.usedIndex > usedBefore[i]!) || undefined,
  );
});

Deno.test("pair threads: a grant that is taken back holds as a lease does", async () => {
  // Outlasts the threads, which look at it.
  using word = mapAnonymous(4096);
  await using net = await Rig.open();
  const words = new Uint32Array(word.buffer);
  words[3] = 7;
  const bases = [RX, TX].map((queue) => net.device.stopQueue(queue) as number);
  net.setTerms({ untilMs: Infinity, grant: { address: word.address + 12n, number: 7 } });
  for (const [i, queue] of [RX, TX].entries()) net.start(queue, bases[i]);
  net.offer(RX, 0);
  assert(net.deliver(1, 1));
  net.takeUsed(RX);
  words[3] = 8;
  net.offer(RX, 1);
  const before = net.seenOf(RX);
  assert(net.deliver(1, 2));
  net.settle();
  net.device.available(RX);
  net.settle();
  assertEquals(net.seenOf(RX), before);
  words[3] = 7;
  net.device.termsChanged();
  net.takeUsed(RX);
});

Deno.test("pair threads: kick and call are the thread's own until they are dropped", async () => {
  await using net = await Rig.open();
  const [kick, call] = [createEventFd(), createEventFd()];
  const kept = new Fd(check(libc.fcntl(call.number, 1030, 0n), "dup"));
  const kickKept = new Fd(check(libc.fcntl(kick.number, 1030, 0n), "dup"));
  const notifier = net.device.takeNotifier(TX, kick, call)!;
  const offer = (number: number) => {
    const bytes = net.memory.bytes(net.at(TX, 0), FRAME).fill(0);
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(FRAME - 4, number);
    net.queues[TX]!.add([{ address: net.at(TX, 0), length: FRAME }], []);
    net.queues[TX]!.publish();
    signalEventFd(kickKept);
  };
  net.settle();
  net.used.length = 0;
  offer(5);
  assertEquals(net.until("sent", () => net.sent(1)), 5);
  net.takeUsed(TX);
  net.until("called", () => libc.read(kept.number, scratch.address, 8) === 8 || undefined);
  assertEquals(net.used, []);
  notifier[Symbol.dispose]();
  clearEventFd(kickKept);
  offer(6);
  net.settle();
  assertEquals(net.sent(1), undefined);
  net.device.available(TX);
  assertEquals(net.until("sent", () => net.sent(1)), 6);
  net.until("told in band", () => net.used.includes(TX) || undefined);
  const { read, write } = openPipe();
  assertThrows(() => net.device.takeNotifier(TX, read, undefined), VmsgError, "no eventfd");
  for (const fd of [read, write, kept, kickKept]) fd[Symbol.dispose]();
});

Deno.test("pair threads: memory that comes while queues run is there for all of them", async () => {
  await using net = await Rig.open();
  net.device.memoryAdded(net.regions.slice(1));
  for (const queue of [RX, RX2]) {
    net.queues[queue]!.add([], [{ address: MORE + 128 * queue, length: FRAME }]);
    net.queues[queue]!.publish();
    net.device.available(queue);
    assert(net.deliver(queue / 2, queue));
    assertEquals(net.takeUsed(queue).length, FRAME);
    assertEquals(net.memory.bytes(MORE + 128 * queue + FRAME - 1, 1)[0], queue);
  }
  assertEquals(net.resets, []);
});

Deno.test("pair threads: a broken ring is the card's to tell, with why", async () => {
  await using net = await Rig.open();
  net.queues[TX]!.setAvailableIndex(1000);
  net.device.available(TX);
  net.until("told", () => net.resets.length > 0 || undefined);
  assert(/^queue pair 1: queue 1: /.test(net.resets[0]!), net.resets[0]);
  assertEquals(net.start(RX, 0x1_0000) !== undefined, true);
});

Deno.test("pair threads: what the control queue sets holds in all of them", async () => {
  await using net = await Rig.open([CTRL_RX, CTRL_RX_EXTRA]);
  for (const queue of [RX, RX2]) net.offer(queue, 0);
  // Class 0, command 0: promiscuous off. Frames are for ff:ff:ff:ff:ff:ff, so no broadcast (command 5) either.
  for (const [number, on] of [[0, 0], [5, 1]]) {
    const at = net.at(6, 0);
    net.memory.bytes(at, 4).set([0, number!, on!, 0xff]);
    net.queues[6]!.add([{ address: at, length: 3 }], [{ address: at + 3, length: 1 }]);
    net.queues[6]!.publish();
    net.device.available(6);
    net.takeUsed(6);
    assertEquals(net.memory.bytes(at + 3, 1)[0], 0);
  }
  for (const pair of [1, 2]) assert(net.deliver(pair, 1));
  net.settle();
  net.settle();
  assertEquals([RX, RX2].map((queue) => net.queues[queue]!.takeUsed()), [undefined, undefined]);
});

Deno.test("pair threads: where only the plane finds its way in the memory, all pairs are there", async () => {
  await using net = await Rig.open();
  for (const queue of [RX, TX]) net.device.stopQueue(queue);
  net.terms = undefined;
  for (const queue of [RX, TX]) assertEquals(net.start(queue), undefined);
  net.transmit(TX, 9);
  assertEquals(net.sent(1), undefined, "no thread did");
  assertEquals(net.until("sent", () => net.sent(1)), 9);
  net.offer(RX, 0);
  assert(net.deliver(1, 9));
  net.takeUsed(RX);
  for (const queue of [RX, TX]) net.device.stopQueue(queue);
  net.terms = { untilMs: Infinity };
  for (const queue of [RX, TX]) net.start(queue, 1);
  net.transmit(TX, 10);
  assertEquals(net.until("sent", () => net.sent(1)), 10);
});
