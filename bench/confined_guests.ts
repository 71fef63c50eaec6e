/**
 * Two guests without machines, for bench:confined: front ends of `vmsg proxy` in this process, each with a
 * network card's two rings in memory of its own. The cards' TAPs are on one bridge, so what one guest
 * sends the other receives, large segmentation-offload frames in one piece.
 *
 * The modes are measured in turns; everything they are made of is started anew each time.
 */

import { isListening } from "../scripts/lab/listening.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../src/linux/fd.ts";
import { type Mapping, mapShared } from "../src/linux/mapping.ts";
import { EPOLLIN, Reactor } from "../src/linux/reactor.ts";
import { NetFeature, RingFeature } from "../src/virtio/features.ts";
import { FEATURE_PROTOCOL_FEATURES, Request } from "../src/vhost_user/protocol.ts";
import { DriverQueue } from "../src/virtio/split/driver_queue.ts";
import { RawFrontEnd, regionBytes, u32s, USER_ADDRESS } from "../tests/support/front_end.ts";
import { isQuick, rounds } from "./options.ts";
import { Bench, THERE } from "./processes.ts";
import type { Report } from "./report.ts";

const RECEIVE = 0, TRANSMIT = 1;
const RING_SIZE = 256;
const BUFFER_SIZE = 4096;
const HEADER = 12;
const NUM_BUFFERS_AT = 10;
/** A frame in pages, at most as many as an indirect table has. */
const FRAME_STRIDE = 16 * BUFFER_SIZE;
const RINGS_SIZE = Math.ceil(2 * DriverQueue.bytesNeeded(RING_SIZE, true) / 4096) * 4096;
const MEMORY_SIZE = RINGS_SIZE + RING_SIZE * (BUFFER_SIZE + FRAME_STRIDE);
const GUEST_AT = 0x4000_0000;
/** An EtherType for experiments (IEEE Std 802), and IPv4. */
const EXPERIMENT = 0x88b5, IPV4 = 0x0800;
const SOURCE = [0x52, 0x54, 0, 0, 0, 1], TARGET = [0x52, 0x54, 0, 0, 0, 2];
const ROUND_TRIPS = isQuick ? 200 : 3000;
const WARM_UP_TRIPS = isQuick ? 50 : 500;
const FLOOD_MS = isQuick ? 200 : 1500;
const WARM_UP_MS = isQuick ? 100 : 500;
const PATIENCE_MS = 120_000;
/** Frames on the way at once. */
const WINDOW = 64;
const GSO_SIZE = 65_226;
const FEATURES = [
  NetFeature.CSUM,
  NetFeature.GUEST_CSUM,
  NetFeature.GUEST_TSO4,
  NetFeature.HOST_TSO4,
  NetFeature.MRG_RXBUF,
  RingFeature.INDIRECT_DESC,
  RingFeature.EVENT_IDX,
  RingFeature.VERSION_1,
];

/** One guest. Dispose closes all it has. */
class Guest implements Disposable {
  readonly front: RawFrontEnd;
  /** Frames of ours that came, and what is done with each. */
  received = 0;
  onFrame: () => void = () => {};
  /** Called after a batch of frames. */
  onBatch: () => void = () => {};
  /** Frame length to send as long as there are buffers and credits; 0: none. */
  #flood = 0;
  /** Frames that may be sent. */
  credits = 0;
  readonly #memory: Mapping;
  readonly #fd: Fd;
  readonly #view: DataView;
  readonly #queues: readonly DriverQueue[];
  readonly #kicks: readonly Fd[];
  readonly #calls: readonly Fd[];
  readonly #free: number[] = [];
  readonly #addresses = new Float64Array(16);
  readonly #lengths = new Uint32Array(16);
  readonly #stack: DisposableStack;

  constructor(readonly reactor: Reactor, path: string) {
    using stack = new DisposableStack();
    this.#fd = stack.use(createSealedMemory("vmsg-bench-guest", MEMORY_SIZE));
    const memory = this.#memory = stack.use(mapShared(this.#fd.number, MEMORY_SIZE));
    // As a guest's that is up: every page is there.
    new Uint8Array(memory.buffer).fill(0);
    this.#view = new DataView(memory.buffer);
    const queue = (offset: number) =>
      new DriverQueue({
        place: { memory, offset, size: MEMORY_SIZE - offset, at: GUEST_AT + offset },
        size: RING_SIZE,
        eventIndex: true,
        indirect: true,
      });
    this.#queues = [queue(0), queue(DriverQueue.bytesNeeded(RING_SIZE, true))];
    const eventFds = () => [0, 1].map(() => stack.use(createEventFd()));
    this.#kicks = eventFds();
    this.#calls = eventFds();
    this.front = stack.use(new RawFrontEnd(reactor, path));
    this.#stack = stack.move();
  }

  /** Negotiates and starts both rings. */
  async start(): Promise<void> {
    const { front, reactor } = this;
    const offered = await front.ask(Request.GET_FEATURES);
    const words = [1 << FEATURE_PROTOCOL_FEATURES, 0];
    for (const bit of FEATURES) words[bit >> 5] |= 1 << (bit & 31);
    if (words.some((word, i) => (word & ~offered.getUint32(4 * i, true)) !== 0)) {
      throw new Error("the card lacks features: is the TAP one with offloads?");
    }
    front.send(Request.SET_PROTOCOL_FEATURES, u32s(0, 0));
    front.send(Request.SET_FEATURES, u32s(...words));
    const region = regionBytes(GUEST_AT, MEMORY_SIZE, USER_ADDRESS, 0);
    front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [this.#fd]);
    for (let slot = 0; slot < RING_SIZE; slot++) {
      this.#offer(slot);
      this.#free.push(slot);
    }
    this.#queues[RECEIVE].publish();
    for (const [index, queue] of this.#queues.entries()) {
      const addresses = new DataView(new ArrayBuffer(40));
      addresses.setUint32(0, index, true);
      [queue.descriptorAddress, queue.deviceAddress, queue.driverAddress].forEach((at, i) =>
        addresses.setBigUint64(8 + 8 * i, BigInt(USER_ADDRESS + at - GUEST_AT), true)
      );
      front.send(Request.SET_VRING_NUM, u32s(index, RING_SIZE));
      front.send(Request.SET_VRING_BASE, u32s(index, 0));
      front.send(Request.SET_VRING_ADDR, new Uint8Array(addresses.buffer));
      front.send(Request.SET_VRING_KICK, u32s(index, 0), [this.#kicks[index]]);
      front.send(Request.SET_VRING_CALL, u32s(index, 0), [this.#calls[index]]);
    }
    for (const index of [RECEIVE, TRANSMIT]) {
      front.send(Request.SET_VRING_ENABLE, u32s(index, 1));
      const call = this.#calls[index];
      reactor.watch(call, EPOLLIN, () => {
        clearEventFd(call);
        if (index === RECEIVE) this.#receive();
        else this.#reclaim();
      });
    }
    await front.barrier();
  }

  #offer(slot: number): void {
    const address = GUEST_AT + RINGS_SIZE + BUFFER_SIZE * slot;
    this.#queues[RECEIVE].addOne(address, BUFFER_SIZE, true, slot);
  }

  #publish(index: number): void {
    if (this.#queues[index].publish()) signalEventFd(this.#kicks[index]);
  }

  #receive(): void {
    const queue = this.#queues[RECEIVE];
    let more = 0;
    do {
      while (queue.nextUsed()) {
        const slot = queue.usedToken;
        const at = RINGS_SIZE + BUFFER_SIZE * slot;
        this.#offer(slot);
        if (more > 0) {
          more--;
          continue;
        }
        more = this.#view.getUint16(at + NUM_BUFFERS_AT, true) - 1;
        // The kernel's own frames do not count.
        if (this.#view.getUint8(at + HEADER) !== TARGET[0]) continue;
        if (this.#view.getUint8(at + HEADER + 1) !== TARGET[1]) continue;
        this.received++;
        this.onFrame();
      }
      this.#publish(RECEIVE);
    } while (queue.wantCalls());
    if (queue.broken !== undefined) throw new Error(queue.broken);
    this.onBatch();
  }

  #reclaim(): void {
    const queue = this.#queues[TRANSMIT];
    do {
      while (queue.nextUsed()) this.#free.push(queue.usedToken);
      this.fill();
    } while (queue.wantCalls());
    if (queue.broken !== undefined) throw new Error(queue.broken);
  }

  /** Sends what it may. */
  fill(): void {
    if (this.#flood === 0) return;
    while (this.credits > 0 && this.#add(this.#flood)) this.credits--;
    this.#publish(TRANSMIT);
  }

  /** Writes the heads of all transmit buffers for frames of this length. */
  prepare(length: number, source: readonly number[], target: readonly number[]): void {
    const isLarge = length > 1514;
    for (let slot = 0; slot < RING_SIZE; slot++) {
      const at = RINGS_SIZE + RING_SIZE * BUFFER_SIZE + FRAME_STRIDE * slot;
      const bytes = new Uint8Array(this.#memory.buffer, at, 128).fill(0);
      const view = new DataView(this.#memory.buffer, at, 128);
      const frame = HEADER;
      bytes.set([...target, ...source], frame);
      view.setUint16(frame + 12, isLarge ? IPV4 : EXPERIMENT);
      if (!isLarge) continue;
      // TCP that the kernel may cut: NEEDS_CSUM, GSO_TCPV4.
      bytes.set([1, 1], 0);
      view.setUint16(2, 54, true);
      view.setUint16(4, 1448, true);
      view.setUint16(6, 34, true);
      view.setUint16(8, 16, true);
      bytes.set([0x45, 0], frame + 14);
      view.setUint16(frame + 16, length - 14);
      bytes.set([64, 6], frame + 22);
      bytes.set([10, 9, 8, 1, 10, 9, 8, 2], frame + 26);
      let sum = 0;
      for (let i = 0; i < 20; i += 2) sum += view.getUint16(frame + 14 + i);
      sum = (sum & 0xffff) + (sum >>> 16);
      view.setUint16(frame + 24, ~(sum + (sum >>> 16)));
      view.setUint16(frame + 36, 9);
      bytes.set([0x50, 0x10], frame + 46);
    }
  }

  #add(length: number): boolean {
    const slot = this.#free.at(-1);
    if (slot === undefined) return false;
    const at = GUEST_AT + RINGS_SIZE + RING_SIZE * BUFFER_SIZE + FRAME_STRIDE * slot;
    let count = 0;
    for (let done = 0; done < HEADER + length; done += BUFFER_SIZE, count++) {
      this.#addresses[count] = at + done;
      this.#lengths[count] = Math.min(BUFFER_SIZE, HEADER + length - done);
    }
    if (!this.#queues[TRANSMIT].add(this.#addresses, this.#lengths, count, 0, slot)) return false;
    this.#free.pop();
    return true;
  }

  /** Sends one frame. */
  send(length: number): void {
    if (!this.#add(length)) throw new Error("no buffer is free");
    this.#publish(TRANSMIT);
  }

  /** Sends frames of this length from here on; 0 ends that. */
  flood(length: number): void {
    this.#flood = length;
    this.fill();
  }

  /** All buffers are back. */
  get isIdle(): boolean {
    return this.#free.length === RING_SIZE;
  }

  [Symbol.dispose](): void {
    for (const call of this.#calls) this.reactor.unwatch(call);
    this.#stack.dispose();
  }
}

/** Round trips of a 64-byte frame, in microseconds, ascending. */
async function roundTrips(reactor: Reactor, one: Guest, two: Guest): Promise<Float64Array> {
  const times = new Float64Array(ROUND_TRIPS);
  one.prepare(64, SOURCE, TARGET);
  two.prepare(64, TARGET, SOURCE);
  let trips = -WARM_UP_TRIPS, sentMs = 0;
  const done = reactor.defer<void>();
  const next = () => {
    sentMs = performance.now();
    one.send(64);
  };
  two.onFrame = () => two.send(64);
  one.onFrame = () => {
    if (trips >= 0) times[trips] = (performance.now() - sentMs) * 1000;
    if (++trips < ROUND_TRIPS) next();
    else done.resolve();
  };
  next();
  await done.promise;
  one.onFrame = two.onFrame = () => {};
  return times.sort();
}

/** Frames of this length that arrive, per second. */
async function throughput(
  reactor: Reactor,
  one: Guest,
  two: Guest,
  length: number,
): Promise<number> {
  one.prepare(length, SOURCE, TARGET);
  // A window, so that no queue between the two drops what it has no room for.
  one.credits = WINDOW;
  two.onFrame = () => one.credits++;
  two.onBatch = () => one.fill();
  one.flood(length);
  await reactor.sleep(WARM_UP_MS);
  const before = two.received, startMs = performance.now();
  await reactor.sleep(FLOOD_MS);
  const rate = (two.received - before) / (performance.now() - startMs) * 1000;
  one.flood(0);
  while (!one.isIdle || one.credits < WINDOW) await reactor.sleep(1);
  two.onFrame = two.onBatch = () => {};
  return rate;
}

/** In a network namespace of its own, with a bridge. */
const WITH_BRIDGE = 'ip link add bench type bridge && ip link set bench up && exec "$0" "$@"';

/** How much worse than direct mode it may be. */
const WORSE = 1.15;
const ROUND_TRIP = { unit: "us", target: WORSE };
const RATE = { unit: "1000/s", more: true, target: 1 / WORSE };
const LENGTHS = [64, 1500, GSO_SIZE];

/**
 * Everything started, measured once, ended.
 * @param extra options of the proxy @param segment undefined: direct
 */
async function measureMode(
  report: Report,
  name: string,
  extra: readonly string[],
  segment?: string,
): Promise<void> {
  await using bench = await Bench.open();
  const { directory } = bench;
  const bus = `linux-user,socket=${directory}/lu.sock,dir=${directory}`;
  const nets = ["bench0", "bench1"].flatMap((tap) => ["--net", `tap=${tap},bridge=bench`]);
  const confined = segment === undefined ? [] : ["--confined"];
  const device = [...bench.vmsgArgs, "device", "--bus", bus, ...nets, ...confined];
  await bench.start(["unshare", "-rn", "sh", "-c", WITH_BRIDGE, ...device], THERE);
  const sockets = [`${directory}/one.sock`, `${directory}/two.sock`];
  const users = sockets.flatMap((socket) => ["--vhost-user", `socket=${socket}`]);
  const size = segment === undefined ? [] : ["--confined", "--segment", segment];
  await bench.vmsg(["proxy", "--bus", bus, ...users, ...size, ...extra]);
  using stack = new DisposableStack();
  const reactor = stack.use(new Reactor());
  const patience = reactor.timer(() => reactor.fail(new Error(`${name}: nothing moves`)));
  patience.arm(PATIENCE_MS);
  await reactor.until((async () => {
    for (const socket of sockets) while (!isListening(socket)) await reactor.sleep(10);
    const [one, two] = sockets.map((socket) => stack.use(new Guest(reactor, socket)));
    for (const guest of [one, two]) await guest.start();
    // A port of a bridge that has just joined learns and forwards at once, its link may take a moment.
    await reactor.sleep(300);
    report.add("guest to guest, round trip", ROUND_TRIP, name, await roundTrips(reactor, one, two));
    for (const length of LENGTHS) {
      const rate = await throughput(reactor, one, two, length);
      report.add(`guest to guest, frames of ${length} B`, RATE, name, [rate / 1000]);
    }
  })());
  patience.cancel();
}

/**
 * Measures the modes in turns. Confined mode copies, so that a proxy has to wake for each kick and call: its twin is direct
 * mode whose proxies do so too. The last mode is direct as it is used, whose proxies sleep.
 */
export async function measureGuests(report: Report): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    await measureMode(report, "direct, --notify in-band", ["--notify", "in-band"]);
    for (const segment of ["1M", "4M", "64M"]) {
      await measureMode(report, `confined, ${segment}`, [], segment);
    }
    await measureMode(report, "direct", []);
  }
}
