/**
 * Frames through the network device, from ring to port and from port to ring, beside its C twin.
 *
 *     deno task bench:device [--quick]
 *
 * The device is the real one (src/device/net) in batches of 32; the guest's memory is the mock's, the port
 * is a sink and a source that either copies each frame (memory to memory) or leaves it alone. Copies are what
 * a frame costs without system calls; without them it is what the device itself costs. The reactor is left
 * out: tasks run at once, so neither side makes a system call.
 *
 * A frame has a virtio-net header of 12 bytes besides. Large ones lie in pages, as a guest's do: in an
 * indirect table, or in mergeable buffers of 4 KiB.
 */

import { NET_HEADER_SIZE } from "../src/virtio/net_header.ts";
import { NetDevice } from "../src/devices/net/net_device.ts";
import { allocate } from "../src/linux/arena.ts";
import { Reactor, type Task } from "../src/linux/reactor.ts";
import type { IovecList } from "../src/memory/mod.ts";
import { NetFeature, RingFeature } from "../src/virtio/features.ts";
import type { NetworkPort } from "../src/network/port.ts";
import type { DeviceHost } from "../src/virtio/device.ts";
import { measureCase, printHead, report, startTwin, type Twin } from "./harness.ts";
import { type OfferedRing, offeredRing } from "./offered_ring.ts";

const RECEIVE = 0;
const TRANSMIT = 1;
const BATCH = 32;
/** A guest's pages, and its buffers for small frames. */
const SEGMENT = 4096;
const SMALL = 2048;
const SIZES = [64, 1500, 65536];

type Direction = "transmit" | "single" | "mergeable";

/** Runs a device's tasks when told, without epoll. */
class DirectReactor extends Reactor {
  readonly #tasks: Task[] = [];

  override schedule(task: Task): void {
    if (!this.#tasks.includes(task)) this.#tasks.push(task);
  }

  runTasks(): void {
    for (let task = this.#tasks.pop(); task !== undefined; task = this.#tasks.pop()) {
      while (task.run());
    }
  }
}

const frame = allocate(NET_HEADER_SIZE + 65536);

/** A sink and a source of frames of one size. */
class BenchPort implements NetworkPort {
  readonly description = "bench";
  readonly features: readonly number[] = [];
  /** Frames that are there to receive. */
  waiting = 0;

  constructor(readonly length: number, readonly copies: boolean) {}

  setFeatures(): void {}

  open(): void {}

  send(sent: IovecList): boolean {
    if (this.copies) sent.copyOut(0, frame.address, sent.length);
    return true;
  }

  nextLength(): number {
    return this.waiting > 0 ? this.length : 0;
  }

  receive(into: IovecList, first: number): number {
    this.waiting--;
    return this.copies ? into.copyIn(0, frame.address, this.length, first) : this.length;
  }

  discard(): void {
    throw new Error("a buffer is too small");
  }

  [Symbol.dispose](): void {}
}

/** Cuts a buffer into segments of at most {@link SEGMENT} bytes. */
function cut(length: number): number[] {
  const lengths: number[] = [];
  for (let left = length; left > 0; left -= SEGMENT) lengths.push(Math.min(left, SEGMENT));
  return lengths;
}

/** The ring of one case; `buffers` of it make a frame. */
function ringFor(direction: Direction, length: number): { ring: OfferedRing; buffers: number } {
  const isLarge = length > SMALL;
  const negotiated = true;
  if (direction === "mergeable") {
    const bytes = isLarge ? SEGMENT : SMALL;
    const size = isLarge ? 1024 : 256;
    const options = { size, lengths: [bytes], stride: bytes, indirect: false, negotiated };
    return {
      ring: offeredRing({ ...options, writable: true }),
      buffers: Math.ceil(length / bytes),
    };
  }
  const lengths = cut(direction === "transmit" || isLarge ? length : SMALL);
  const ring = offeredRing({
    size: isLarge ? 64 : 256,
    lengths,
    stride: isLarge ? Math.ceil(length / 4096) * 4096 : SMALL,
    indirect: lengths.length > 1,
    negotiated,
    writable: direction === "single",
  });
  return { ring, buffers: 1 };
}

async function measure(
  direction: Direction,
  size: number,
  copies: boolean,
  twin: Twin | undefined,
): Promise<void> {
  const length = NET_HEADER_SIZE + size;
  using reactor = new DirectReactor();
  const port = new BenchPort(length, copies);
  const options = { mac: new Uint8Array([0x52, 0x54, 0, 0x12, 0x34, 0x56]), mtu: 1500 };
  using device = new NetDevice(reactor, port, options);
  const { ring: owned, buffers } = ringFor(direction, length);
  using ring = owned;
  const host: DeviceHost = {
    memory: ring.memory.space,
    regions: [],
    mayTouchMemory: () => true,
    used: () => {},
    configChanged: () => {},
    needsReset: (reason) => {
      throw new Error(reason);
    },
  };
  device.connect(host);
  const words = new Uint32Array(2);
  const bits: number[] = [RingFeature.VERSION_1, RingFeature.EVENT_IDX, RingFeature.INDIRECT_DESC];
  if (direction === "mergeable") bits.push(NetFeature.MRG_RXBUF);
  for (const bit of bits) words[bit >> 5] |= 1 << (bit & 31);
  device.acceptFeatures(words);
  const index = direction === "transmit" ? TRANSMIT : RECEIVE;
  const problem = device.startQueue(index, ring.config);
  if (problem !== undefined) throw new Error(problem);
  const { counters } = device;
  await measureCase({
    name: `${direction}, ${size} B, ${copies ? "copied" : "no copy"}`,
    granularity: BATCH,
    twin: `${direction} ${Number(copies)} ${size}`,
    run: (operations) => {
      const before = counters.transmitted + counters.received;
      for (let done = 0; done < operations; done += BATCH) {
        ring.offer(BATCH * buffers);
        port.waiting = BATCH;
        device.available(index);
        reactor.runTasks();
      }
      const frames = counters.transmitted + counters.received - before;
      if (frames !== operations) throw new Error(`${frames} frames of ${operations}`);
    },
  }, twin);
}

if (import.meta.main) {
  printHead("network device, per frame");
  await using twin = await startTwin("device");
  for (const copies of [false, true]) {
    for (const direction of ["transmit", "single", "mergeable"] as const) {
      for (const size of SIZES) await measure(direction, size, copies, twin);
    }
  }
  report.finish(false);
}
