/**
 * A guest that boots and reboots, without a machine: what the first boot and the first reboot behind fresh `vmsg proxy`
 * and `vmsg device` cost beside those after them, when all code has run and is compiled.
 *
 *     deno task bench:reboot [--quick] [--rounds=N] [--json] [--compare] [--exe=compiled]
 *
 * This process is the front end and the guest's driver: it does what QEMU does when a guest reboots, the connection kept.
 * Each boot starts both rings of a card, asks the responder for its address every 2 ms, and stops the rings. Longest is the
 * longest of the asks of one boot: a stall would be there. Two processors are enough only when nothing else runs.
 */

import { untilListening } from "../scripts/lab/listening.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../src/linux/fd.ts";
import { type Mapping, mapShared } from "../src/linux/mapping.ts";
import { EPOLLIN, Reactor } from "../src/linux/reactor.ts";
import { FEATURE_PROTOCOL_FEATURES, Request } from "../src/vhost_user/protocol.ts";
import { RingFeature } from "../src/virtio/features.ts";
import { PackedDriverQueue } from "../src/virtio/packed/driver_queue.ts";
import { DriverQueue } from "../src/virtio/split/driver_queue.ts";
import { RawFrontEnd, regionBytes, u32s, USER_ADDRESS } from "../tests/support/front_end.ts";

import { isQuick, rounds } from "./options.ts";
import { Bench } from "./processes.ts";
import { Report } from "./report.ts";

const BOOTS = isQuick ? 3 : 8;
const ASKS = isQuick ? 20 : 150;
const INTERVAL_MS = 2;
const PATIENCE_MS = 60_000;
/** Processes are left alone so long before the first boot, as by a guest's firmware. */
const SETTLE_MS = isQuick ? 100 : 2000;
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const MEMORY_SIZE = 1 << 20;
const RINGS_SIZE = 1 << 16;
const GUEST_AT = 0x4000_0000;
const RING_SIZE = 64;
const BUFFER_SIZE = 2048;
const SENT_AT = RINGS_SIZE + RING_SIZE * BUFFER_SIZE;
const [RECEIVE, TRANSMIT] = [0, 1];
const NET_HEADER = 12;

// RFC 826: who has 10.0.2.2, asked by 02:00:00:00:00:0b.
const MAC = [2, 0, 0, 0, 0, 0x0b];
const ARP = [0, 1, 8, 0, 6, 4, 0, 1, ...MAC, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2];
const FRAME = [255, 255, 255, 255, 255, 255, ...MAC, 8, 6, ...ARP];

const LATER = "later reboots", FIRST = "the first boot", SECOND = "the first reboot";
const MS = { unit: "ms" };

/** What one boot took, in ms. */
interface Boot {
  readonly start: number;
  readonly stop: number;
  readonly asks: readonly number[];
}

/** The guest. Dispose closes all it has. */
class Guest implements Disposable {
  readonly front: RawFrontEnd;
  readonly #memory: Mapping;
  readonly #fd: Fd;
  readonly #kicks: readonly Fd[];
  readonly #calls: readonly Fd[];
  #queues: readonly (DriverQueue | PackedDriverQueue)[] = [];
  #answered: () => void = () => {};
  readonly #stack: DisposableStack;

  constructor(readonly reactor: Reactor, path: string, readonly isPacked: boolean) {
    using stack = new DisposableStack();
    this.#fd = stack.use(createSealedMemory("vmsg-bench-guest", MEMORY_SIZE));
    this.#memory = stack.use(mapShared(this.#fd.number, MEMORY_SIZE));
    const events = () => [RECEIVE, TRANSMIT].map(() => stack.use(createEventFd()));
    this.#kicks = events();
    this.#calls = events();
    this.front = stack.use(new RawFrontEnd(reactor, path, PATIENCE_MS));
    for (const [index, call] of this.#calls.entries()) {
      reactor.watch(call, EPOLLIN, () => {
        clearEventFd(call);
        this.#take(index);
      });
      stack.defer(() => reactor.unwatch(call));
    }
    this.#stack = stack.move();
  }

  /** A kernel unpacks itself over all that was there. */
  #makeRings(): void {
    const memory = this.#memory;
    const bytes = new Uint8Array(memory.buffer).fill(0);
    bytes.set(FRAME, SENT_AT + NET_HEADER);
    const Queue = this.isPacked ? PackedDriverQueue : DriverQueue;
    const room = RINGS_SIZE / 2;
    this.#queues = [0, room].map((offset) =>
      new Queue({
        place: { memory, offset, size: room, at: GUEST_AT + offset },
        size: RING_SIZE,
        eventIndex: true,
        indirect: false,
      })
    );
    for (let slot = 0; slot < RING_SIZE; slot++) this.#offer(slot);
    this.#queues[RECEIVE]!.publish();
  }

  #offer(slot: number): void {
    const at = GUEST_AT + RINGS_SIZE + slot * BUFFER_SIZE;
    this.#queues[RECEIVE]!.addOne(at, BUFFER_SIZE, true, slot);
  }

  #take(index: number): void {
    const queue = this.#queues[index]!;
    do {
      while (queue.nextUsed()) {
        if (index !== RECEIVE) continue;
        this.#offer(queue.usedToken);
        this.#answered();
      }
      if (index === RECEIVE && queue.publish()) signalEventFd(this.#kicks[index]!);
    } while (queue.wantCalls());
    if (queue.broken !== undefined) throw new Error(queue.broken);
  }

  async #start(): Promise<void> {
    const { front } = this;
    const high = 1 << (RingFeature.VERSION_1 - 32) |
      (this.isPacked ? 1 << (RingFeature.RING_PACKED - 32) : 0);
    const low = 1 << FEATURE_PROTOCOL_FEATURES | 1 << RingFeature.EVENT_IDX;
    front.send(Request.SET_FEATURES, u32s(low, high));
    const region = regionBytes(GUEST_AT, MEMORY_SIZE, USER_ADDRESS, 0);
    front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [this.#fd]);
    for (const [index, queue] of this.#queues.entries()) {
      const addresses = new DataView(new ArrayBuffer(40));
      addresses.setUint32(0, index, true);
      [queue.descriptorAddress, queue.deviceAddress, queue.driverAddress].forEach((at, i) =>
        addresses.setBigUint64(8 + 8 * i, BigInt(USER_ADDRESS + at - GUEST_AT), true)
      );
      front.send(Request.SET_VRING_NUM, u32s(index, RING_SIZE));
      // Of a packed ring: slot 0 in the first lap, on either side.
      front.send(Request.SET_VRING_BASE, u32s(index, this.isPacked ? 0x8000_8000 : 0));
      front.send(Request.SET_VRING_ADDR, new Uint8Array(addresses.buffer));
      front.send(Request.SET_VRING_KICK, u32s(index, 0), [this.#kicks[index]!]);
      front.send(Request.SET_VRING_CALL, u32s(index, 0), [this.#calls[index]!]);
      front.send(Request.SET_VRING_ENABLE, u32s(index, 1));
    }
    await front.barrier();
  }

  async #ask(): Promise<number> {
    const { reactor } = this;
    const { promise, resolve } = reactor.defer<void>();
    this.#answered = resolve;
    const queue = this.#queues[TRANSMIT]!;
    const startMs = reactor.now();
    queue.addOne(GUEST_AT + SENT_AT, NET_HEADER + FRAME.length, false, 0);
    if (queue.publish()) signalEventFd(this.#kicks[TRANSMIT]!);
    await promise;
    return reactor.now() - startMs;
  }

  async #stop(): Promise<void> {
    for (const index of [RECEIVE, TRANSMIT]) {
      this.front.send(Request.SET_VRING_ENABLE, u32s(index, 0));
      await this.front.ask(Request.GET_VRING_BASE, u32s(index, 0));
    }
  }

  /** Starts, asks, stops. */
  async boot(): Promise<Boot> {
    const { reactor } = this;
    this.#makeRings();
    const startMs = reactor.now();
    await this.#start();
    const start = reactor.now() - startMs;
    const asks: number[] = [];
    for (let i = 0; i < ASKS; i++) {
      asks.push(await this.#ask());
      await reactor.sleep(INTERVAL_MS);
    }
    const stopMs = reactor.now();
    await this.#stop();
    return { start, stop: reactor.now() - stopMs, asks };
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/** Processes that are started anew, and their guest's boots. */
async function measure(isPacked: boolean): Promise<Boot[]> {
  await using bench = await Bench.open();
  const device = await bench.vmsg(["device", ...BUS, "--net", "responder"]);
  await device.waitFor(/waiting for the driver side/);
  const socket = `${bench.directory}/vu.sock`;
  const proxy = await bench.vmsg(["proxy", ...BUS, "--vhost-user", `socket=${socket}`]);
  if (!await untilListening(socket, PATIENCE_MS)) throw new Error(proxy.text);
  using reactor = new Reactor();
  const patience = reactor.timer(() => reactor.fail(new Error(`no answer: ${proxy.text}`)));
  patience.arm(PATIENCE_MS);
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  using guest = new Guest(reactor, socket, isPacked);
  const boots: Boot[] = [];
  await reactor.until((async () => {
    await guest.front.ask(Request.GET_FEATURES);
    guest.front.send(Request.SET_PROTOCOL_FEATURES, u32s(0, 0));
    while (boots.length < BOOTS) boots.push(await guest.boot());
  })());
  return boots;
}

if (import.meta.main) {
  const report = new Report("reboot");
  // The first set of rounds warms this process up.
  await measure(false);
  for (let round = 0; round < rounds; round++) {
    for (const isPacked of [false, true]) {
      const [first, second, ...later] = await measure(isPacked);
      const ring = isPacked ? "packed" : "split";
      const add = (row: string, figure: (boot: Boot) => number) => {
        report.add(`${row}, ${ring}`, MS, LATER, later.map(figure));
        report.add(`${row}, ${ring}`, MS, FIRST, [figure(first!)]);
        report.add(`${row}, ${ring}`, MS, SECOND, [figure(second!)]);
      };
      add("rings started", ({ start }) => start);
      add("the first ask", ({ asks }) => asks[0]!);
      add("the median ask", ({ asks }) => [...asks].sort((a, b) => a - b)[asks.length >> 1]!);
      add("the longest ask", ({ asks }) => Math.max(...asks));
      add("rings stopped", ({ stop }) => stop);
    }
  }
  report.finish();
}
