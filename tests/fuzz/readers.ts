/**
 * What `vmsg inspect` reads: rings, message queues, and a process's file of counters that says where the rings are. All of it
 * may be anybody's bytes, and changes while it is read. Nothing but VmsgError is thrown, no byte outside of the windows is
 * read, what is made of it has a limit and can be printed, and a file is as it was.
 */

import { assert, assertEquals } from "@std/assert";
import { readQueues } from "../../src/bus/queue_reader.ts";
import { SpscQueue } from "../../src/bus/spsc_queue.ts";
import { processLines, viewOf } from "../../src/cli/process_view.ts";
import { MONOTONIC } from "../../src/linux/clock.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { type Dialect, DIALECTS, Kind, Message } from "../../src/message/message.ts";
import { CounterMemory, countIn } from "../../src/observe/counters.ts";
import { readPath } from "../../src/observe/figures.ts";
import { DeviceState, MemoryState, PeerState, RequestState } from "../../src/observe/state.ts";
import { readRing } from "../../src/virtio/queue/ring_reader.ts";
import { MockDriver, MockMemory, type Random } from "../support/mock_driver.ts";
import { MockPackedDriver } from "../support/mock_packed_driver.ts";
import { readable } from "../support/readable_memory.ts";
import { mutate } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";

const AT = 0x4000_0000, SIZE = 0x10000;
/** As in the reader: behind so many descriptors it looks into no further buffer, of twice the queue's size. */
const MAX_DESCRIPTORS = 16384;

/** A ring with some buffers in it, half of them used. */
function ringIn(memory: MockMemory, random: Random, isPacked: boolean) {
  const size = random.pick([1, 2, 8, 64]);
  const start = { index: random.below(size), odd: random.chance(0.5) };
  const driver = isPacked
    ? new MockPackedDriver(memory, { size, start, eventIndex: random.chance(0.5) })
    : new MockDriver(memory, { size, start: random.u32() & 0xffff });
  const element = () => ({ address: driver.end + random.below(0x400), length: random.below(500) });
  while (random.chance(0.8)) {
    const elements = Array.from({ length: 1 + random.below(4) }, element);
    driver.add(elements, [element()], random.chance(0.4) ? driver.end : undefined);
  }
  driver.publish();
  return driver.config;
}

const ringReader: Fuzzer["open"] = async (use) => {
  using memory = new MockMemory([{ at: AT, size: SIZE }]);
  const bytes = memory.bytes(AT, SIZE);
  const view = new DataView(bytes.buffer, bytes.byteOffset, SIZE);
  /** The first descriptors. */
  const first = new DataView(bytes.buffer, bytes.byteOffset, 128);
  let buffers = 0, refused = 0, moving = 0;
  const round = (random: Random) => {
    const isPacked = random.chance(0.5);
    const setup = { ...ringIn(memory, random, isPacked) };
    const malice = random.pick([0, 1, 20, 2000]);
    const plausible = [AT, AT + 0x1000, AT + SIZE - 16, 16, 32, 0x8000_0000, 0x80, 0x8000];
    for (let n = 0; n < malice; n++) mutate(view, random, plausible);
    if (random.chance(0.1)) {
      random.pick([() => setup.size = random.below(70000), () => {
        setup.driverAddress = random.u32() * random.below(2 ** 21);
      }])();
    }
    const still = readable(memory);
    const changes = random.chance(0.3);
    const read = (address: number, length: number) => {
      if (changes) mutate(first, random, plausible);
      return still.read(address, length);
    };
    const terms = { isPacked, eventIndex: random.chance(0.5), isOurs: random.chance(0.5) };
    const most = random.pick([0, 1, 8, 4096]);
    const ring = readRing({ ...still, read }, setup, terms, most);
    if (typeof ring === "string") {
      refused++;
      return;
    }
    moving += Number(ring.isMoving);
    buffers += ring.buffers.length;
    assert(ring.pending <= setup.size && ring.buffers.length <= Math.min(ring.pending, most));
    const descriptors = ring.buffers.map((buffer) => buffer.descriptors.length);
    assert(descriptors.every((count) => count <= 2 * setup.size));
    assert(descriptors.reduce((sum, count) => sum + count, 0) < MAX_DESCRIPTORS + 2 * setup.size);
    JSON.stringify(ring);
  };
  const finish = (rounds: number) => {
    assert(rounds < 1000 || buffers > rounds / 4 && refused > 0 && moving > 0, "all is reached");
    return `${buffers} buffers, ${refused} refused, ${moving} in use`;
  };
  await use({ round, finish });
};

const QUEUE_PAGE = 4096;
const KINDS = Object.values(Kind).filter((kind) => typeof kind === "number");

/** Two queues with messages, as pages of one file. */
function queuesIn(bytes: Uint8Array<ArrayBuffer>, random: Random, dialect: Dialect): void {
  const memory = { address: 0n, buffer: bytes.buffer, size: bytes.length };
  const message = new Message();
  for (const at of [0, QUEUE_PAGE]) {
    const queue = new SpscQueue(memory, at, QUEUE_PAGE);
    for (let n = random.below(40); n > 0; n--) {
      message.reset(random.pick(KINDS) as Kind, random.chance(0.5));
      message.token = random.below(8);
      try {
        codecFor(dialect).encode(message, queue.view, queue.claim());
        queue.publish();
      } catch {
        // A dialect does not have all messages.
      }
    }
  }
}

const queueReader: Fuzzer["open"] = async (use) => {
  const path = await Deno.makeTempFile({ prefix: "vmsg-fuzz-" });
  let messages = 0, refused = 0;
  const round = (random: Random) => {
    const bytes = new Uint8Array(2 * QUEUE_PAGE);
    queuesIn(bytes, random, random.pick(DIALECTS));
    for (let n = random.pick([0, 1, 30, 3000]); n > 0; n--) {
      mutate(new DataView(bytes.buffer), random, [61, 62]);
    }
    const length = random.chance(0.1) ? random.below(bytes.length) : bytes.length;
    Deno.writeFileSync(path, bytes.subarray(0, length));
    try {
      const dialect = random.chance(0.5) ? undefined : "v1";
      const queues = readQueues([path], { dialect });
      for (const queue of queues) {
        assert(queue.messages.length <= queue.capacity && queue.waiting < queue.capacity);
        assert(queue.messages.every(({ text }) => !/[^ -~]/.test(text)), "a terminal obeys");
        messages += queue.messages.length;
      }
      JSON.stringify(queues);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      refused++;
    }
    assertEquals(Deno.readFileSync(path), bytes.subarray(0, length));
  };
  const finish = (rounds: number) => {
    assert(rounds < 1000 || messages > rounds && refused > rounds / 50, "all is reached");
    return `${messages} messages, ${refused} refused`;
  };
  try {
    await use({ round, finish });
  } finally {
    await Deno.remove(path);
  }
};

const processReader: Fuzzer["open"] = async (use) => {
  const path = await Deno.makeTempFile({ prefix: "vmsg-fuzz-" });
  using file = createSealedMemory("vmsg-fuzz", SIZE + 2 * 4096);
  using memory = new MockMemory(
    [{ at: AT, size: SIZE }],
    0,
    (size) => mapShared(file.number, size),
  );
  const region = { at: AT, size: SIZE, memory: memory.memory, offset: memory.offset(AT) };
  let rings = 0, unread = 0, refused = 0;
  const round = (random: Random) => {
    const counters = new CounterMemory(new ArrayBuffer(16384), "device", Deno.pid, 0);
    countIn(counters);
    try {
      using device = new DeviceState(random.below(3), 1, 3, MONOTONIC);
      const regions = new MemoryState(0);
      const half = SIZE / 2;
      regions.show(
        random.chance(0.5) ? [region] : [
          { ...region, size: half },
          { ...region, at: AT + half, size: half, offset: region.offset + half },
        ],
      );
      const peer = new PeerState(MONOTONIC), requests = new RequestState();
      peer.is("vmsg");
      requests.open(1, { kind: random.below(300), device: 0, sentMs: random.u32() });
      const isPacked = random.chance(0.5);
      device.device(random.u32(), new Uint32Array([random.u32(), isPacked ? 5 : 1]));
      device.queue(0, true, ringIn(memory, random, isPacked));
      const bytes = new Uint8Array(counters.buffer);
      for (let n = random.pick([0, 0, 1, 30, 3000]); n > 0; n--) {
        mutate(new DataView(counters.buffer), random, [AT, SIZE, 1, 32, 64, 352]);
      }
      Deno.writeFileSync(path, bytes);
      regions.show([]);
    } finally {
      countIn(undefined);
    }
    try {
      const { instances: [instance] } = readPath(0, path);
      const view = viewOf(instance!, [], random.pick([1, 4096]));
      JSON.stringify(view);
      const lines = processLines(view);
      assert(lines.length < 5000 && lines.every((line) => !/[^ -~]/.test(line)), "few, printable");
      for (const { ring } of view.devices.flatMap(({ queues }) => queues)) {
        if (typeof ring === "string") unread++;
        else if (ring !== undefined) rings++;
      }
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      refused++;
    }
  };
  const finish = (rounds: number) => {
    assert(rounds < 1000 || Math.min(rings, unread, refused) > rounds / 100, "all is reached");
    return `${rings} rings, ${unread} not read, ${refused} refused`;
  };
  try {
    await use({ round, finish });
  } finally {
    await Deno.remove(path);
  }
};

/** See the head of this file. */
export const READER_FUZZERS: readonly Fuzzer[] = [
  { name: "ring-reader", what: "any words under who reads a ring from outside", open: ringReader },
  { name: "queue-reader", what: "any bytes for who reads message queues", open: queueReader },
  {
    name: "process-reader",
    what: "any file of counters that says where rings are",
    open: processReader,
  },
];
