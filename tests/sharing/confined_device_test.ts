/**
 * Confined mode from the front end to the device: a proxy with a segment, a guest's rings in memory of its
 * own, and a device that sees the segment and nothing else.
 */

import { assert, assertEquals } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../../src/linux/fd.ts";
import { libc } from "../../src/linux/libc.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { Request } from "../../src/vhost_user/protocol.ts";
import type { QueueSetup } from "../../src/virtio/device.ts";
import { Chain, type DeviceQueue, openDeviceQueue, Pop } from "../../src/virtio/queue/mod.ts";
import { FakeDevice } from "../support/fake_device.ts";
import {
  MEMORY_SIZE,
  type ProxyRig,
  type RawFrontEnd,
  regionBytes,
  u32s,
  USER_ADDRESS,
  withProxy,
} from "../support/front_end.ts";
import { cleanTest } from "../support/leaks.ts";
import { MockDriver, MockMemory } from "../support/mock_driver.ts";

const SEGMENT_SIZE = 1 << 20;
/** EVENT_IDX and INDIRECT_DESC besides the usual. */
const FEATURES: readonly [number, number] = [0x7000_0000, 1];
const RING_SIZE = 64;
const LARGEST = 65_562;
/** Where the guest's buffers are, behind the rings of four queues. */
const DATA_AT = 0x20000;
const WRITTEN = 0x77;

const chain = new Chain();
const scratch = allocate(70_000);

/** A device that works on its queues when it is told to: reads what is there, writes all it may. */
class QueueDevice extends FakeDevice {
  readonly queues = new Map<number, DeviceQueue>();
  /** What it read, in order. */
  readonly read: Uint8Array[] = [];
  /** Whether it works at once. */
  isBusy = true;

  constructor(queueCount = 5, readonly block1 = 1) {
    super({ queueCount, features: [0x3000_0000, block1] });
  }

  override startQueue(index: number, setup: QueueSetup): string | undefined {
    super.startQueue(index, setup);
    const queue = openDeviceQueue(this.host.memory, { ...setup, eventIndex: true, indirect: true });
    if (typeof queue === "string") return queue;
    this.queues.set(index, queue);
    return this.startProblem;
  }

  override stopQueue(index: number): number {
    super.stopQueue(index);
    const queue = this.queues.get(index)!;
    this.queues.delete(index);
    if (queue.stop()) this.host.used(index);
    return queue.base;
  }

  override available(index: number): void {
    super.available(index);
    if (this.isBusy) this.work(index);
  }

  override resume(): void {
    super.resume();
    for (const index of this.queues.keys()) this.available(index);
  }

  /** Uses at most `count` buffers. */
  work(index: number, count = 1000): void {
    const queue = this.queues.get(index);
    if (queue === undefined || !this.host.mayTouchMemory()) return;
    for (;;) {
      const outcome = count-- > 0 ? queue.next(chain) : Pop.EMPTY;
      if (outcome === Pop.BROKEN) throw new Error(queue.broken);
      if (outcome === Pop.EMPTY && (count < 0 || !queue.wantKicks())) break;
      if (outcome === Pop.EMPTY) continue;
      const { head, readable, writable } = chain;
      readable.copyOut(0, scratch.address, readable.length);
      this.read.push(scratch.bytes.slice(0, readable.length));
      scratch.bytes.fill(WRITTEN);
      queue.complete(head, writable.copyIn(0, scratch.address, writable.length));
    }
    if (queue.publish()) this.host.used(index);
  }
}

/** A guest behind a front end, with queues whose rings lie where {@link RawFrontEnd.startRing} says. */
class Guest implements Disposable {
  readonly memory: MockMemory;
  readonly fd: Fd;
  readonly drivers: MockDriver[] = [];
  readonly kicks: Fd[] = [];
  readonly calls: Fd[] = [];
  readonly errors: Fd[] = [];
  readonly #stack = new DisposableStack();

  constructor(queues: number) {
    const size = MEMORY_SIZE + 3 * 4096;
    this.fd = this.#stack.use(createSealedMemory("vmsg-test-guest", size));
    const window = { at: 0, size: MEMORY_SIZE };
    this.memory = new MockMemory([window], 0, () => mapShared(this.fd.number, size));
    this.#stack.use(this.memory);
    for (let i = 0; i < queues; i++) {
      const at = 0x4000 * i + 0x1000;
      const options = { size: RING_SIZE, at, eventIndex: true, indirect: true };
      this.drivers.push(new MockDriver(this.memory, options));
      for (const list of [this.kicks, this.calls, this.errors]) {
        list.push(this.#stack.use(createEventFd()));
      }
    }
  }

  get fileOffset(): number {
    return this.memory.windows[0].offset;
  }

  async setUp(front: RawFrontEnd): Promise<void> {
    await front.setUp(this.fd, FEATURES, this.fileOffset);
  }

  start(front: RawFrontEnd, index: number, base = 0, size = RING_SIZE): void {
    front.send(Request.SET_VRING_CALL, u32s(index, 0), [this.calls[index]]);
    front.send(Request.SET_VRING_ERR, u32s(index, 0), [this.errors[index]]);
    front.startRing(index, this.kicks[index], base, size);
  }

  publish(index: number): void {
    if (this.drivers[index].publish()) signalEventFd(this.kicks[index]);
  }

  /** Takes used buffers as they come, each only after a call. */
  async take(rig: ProxyRig<QueueDevice>, index: number, count: number) {
    const driver = this.drivers[index];
    const used: { head: number; length: number }[] = [];
    for (;;) {
      for (let one; (one = driver.takeUsed()) !== undefined;) used.push(one);
      driver.setUsedEvent(driver.seen);
      if (used.length >= count) return used;
      await rig.wait(() => isSignalled(this.calls[index]));
      clearEventFd(this.calls[index]);
    }
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

const pollfd = allocate(8);

function isSignalled(fd: Fd): boolean {
  pollfd.view.setInt32(0, fd.number, true);
  pollfd.view.setInt16(4, 1, true);
  return libc.poll(pollfd.address, 1n, 0) === 1;
}

function confinedTest(
  name: string,
  body: (rig: ProxyRig<QueueDevice>, guest: Guest, front: RawFrontEnd) => Promise<void>,
  size = SEGMENT_SIZE,
): void {
  cleanTest(`confined: ${name}`, () =>
    withProxy(async (rig) => {
      await rig.wait(() => rig.driverSide.isReady);
      using guest = new Guest(4);
      using front = rig.connect();
      await guest.setUp(front);
      await body(rig, guest, front);
      front[Symbol.dispose]();
      await rig.wait(() => rig.device.queues.size === 0);
      guest.memory.checkGuards();
    }, { device: new QueueDevice(), confined: size }));
}

confinedTest(
  "two queue pairs, frames of 64 KiB, through 1 MiB; the device sees the segment only",
  async (rig, guest, front) => {
    for (let index = 0; index < 4; index++) guest.start(front, index);
    await rig.wait(() => rig.device.queues.size === 4);
    const [window, ...others] = rig.device.host.memory.windows;
    assertEquals([window.at, window.size, others.length], [0, SEGMENT_SIZE, 0]);
    const address = DATA_AT, readAt = DATA_AT + 0x20000;
    guest.memory.bytes(readAt, LARGEST).forEach((_, i, bytes) => bytes[i] = i * 31 >> 3);
    const expected = guest.memory.bytes(readAt, LARGEST).slice();
    for (let round = 0; round < 20; round++) {
      rig.device.read.length = 0;
      guest.memory.bytes(address, LARGEST).fill(0);
      for (const [index, driver] of guest.drivers.entries()) {
        const elements = Array.from({ length: 17 }, (_, i) => ({
          address: (index % 2 === 0 ? address : readAt) + 4096 * i,
          length: Math.min(4096, LARGEST - 4096 * i),
        }));
        driver.add(index % 2 === 0 ? [] : elements, index % 2 === 0 ? elements : []);
        guest.publish(index);
      }
      for (const [index] of guest.drivers.entries()) {
        const [{ length }] = await guest.take(rig, index, 1);
        assertEquals(length, index % 2 === 0 ? LARGEST : 0);
      }
      assert(guest.memory.bytes(address, LARGEST).every((byte) => byte === WRITTEN));
      const read = rig.device.read.filter(({ length }) => length > 0);
      assertEquals(read.length, 2);
      for (const bytes of read) assert(bytes.every((byte, i) => byte === expected[i]));
    }
  },
);

confinedTest(
  "every queue full: what waits in one holds up no other, and a large frame passes",
  async (rig, guest, front) => {
    for (let index = 0; index < 4; index++) guest.start(front, index);
    await rig.wait(() => rig.device.queues.size === 4);
    rig.device.isBusy = false;
    const frame = { address: DATA_AT, length: LARGEST };
    for (const index of [0, 1, 2, 3]) {
      for (let i = 0; i < RING_SIZE; i++) {
        guest.drivers[index].add(index % 2 === 0 ? [] : [frame], index % 2 === 0 ? [frame] : []);
      }
      guest.publish(index);
    }
    await rig.reactor.sleep(5);
    // One queue moves while the others stand.
    for (const index of [1, 0, 3, 2]) {
      let used = 0;
      while (used < RING_SIZE) {
        rig.device.work(index, 1);
        used += (await guest.take(rig, index, 1)).length;
      }
      assertEquals(guest.drivers[index].free, RING_SIZE);
    }
  },
);

confinedTest(
  "a memory table that changes under traffic loses nothing",
  async (rig, guest, front) => {
    guest.start(front, 1);
    await rig.wait(() => rig.device.queues.size === 1);
    const [driver] = guest.drivers.slice(1);
    using more = createSealedMemory("vmsg-test-more", 0x10000);
    const own = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, guest.fileOffset);
    const other = regionBytes(MEMORY_SIZE, 0x10000, 0x7e00_0000_0000, 0);
    let sent = 0;
    for (let round = 0; round < 20; round++) {
      rig.device.isBusy = round % 3 === 0;
      for (let i = 0; i < 8; i++) {
        const address = DATA_AT + 64 * (sent % 64);
        guest.memory.write32(address, sent++);
        driver.add([{ address, length: 4 }], []);
      }
      guest.publish(1);
      const fds = round % 2 === 0 ? [guest.fd, more] : [guest.fd];
      const regions = round % 2 === 0 ? [...own, ...other] : own;
      front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(fds.length, 0), ...regions]), fds);
      await front.barrier();
      rig.device.isBusy = true;
      rig.device.work(1);
      await guest.take(rig, 1, 8);
    }
    const numbers = rig.device.read.map((bytes) => new DataView(bytes.buffer).getUint32(0, true));
    assertEquals(numbers, [...Array(sent).keys()]);
  },
);

confinedTest(
  "a guest that breaks its ring is told by the error eventfd; other rings go on",
  async (rig, guest, front) => {
    for (const index of [0, 1]) guest.start(front, index);
    await rig.wait(() => rig.device.queues.size === 2);
    const [receive, transmit] = guest.drivers;
    transmit.add([{ address: MEMORY_SIZE, length: 64 }], []);
    guest.publish(1);
    await rig.wait(() => isSignalled(guest.errors[1]));
    assert(!isSignalled(guest.errors[0]));
    assert(rig.lines.some((line) => line.includes("ring 1 is broken") && line.includes("outside")));
    receive.add([], [{ address: DATA_AT, length: 100 }]);
    guest.publish(0);
    assertEquals((await guest.take(rig, 0, 1))[0].length, 100);
    assertEquals(rig.device.read.length, 1, "the device has seen nothing of it");
    // The driver starts the ring over.
    await front.ask(Request.GET_VRING_BASE, u32s(1, 0));
    guest.drivers[1] = new MockDriver(guest.memory, {
      size: RING_SIZE,
      at: 0x5000,
      eventIndex: true,
      indirect: true,
    });
    guest.start(front, 1);
    guest.drivers[1].add([{ address: DATA_AT, length: 64 }], []);
    guest.publish(1);
    await guest.take(rig, 1, 1);
  },
);

confinedTest(
  "a device that breaks a shadow: the guest is told, and its memory is as it was",
  async (rig, guest, front) => {
    for (const index of [0, 1]) guest.start(front, index);
    await rig.wait(() => rig.device.queues.size === 2);
    rig.device.isBusy = false;
    guest.memory.bytes(DATA_AT, 0x10000).fill(0x5e);
    guest.drivers[0].add([], [{ address: DATA_AT, length: 100 }]);
    guest.publish(0);
    await rig.wait(() => rig.device.calls.includes("available 0"));
    await rig.reactor.sleep(2);
    const { deviceAddress } = rig.device.setups[0];
    const [{ view }] = rig.device.host.memory.windows;
    view.setUint32(deviceAddress + 4, 0, true);
    view.setUint32(deviceAddress + 8, 0xffff_ffff, true);
    view.setUint16(deviceAddress + 2, 1, true);
    rig.device.host.used(0);
    await rig.wait(() => isSignalled(guest.errors[0]));
    assert(guest.memory.bytes(DATA_AT, 0x10000).every((byte) => byte === 0x5e));
    assertEquals(guest.drivers[0].usedIndex, 0);
    rig.device.isBusy = true;
    guest.drivers[1].add([{ address: DATA_AT, length: 64 }], []);
    guest.publish(1);
    await guest.take(rig, 1, 1);
  },
);

confinedTest(
  "a guest that goes in mid-flight: used notifications after it touch nothing",
  async (rig, guest, front) => {
    guest.start(front, 0);
    await rig.wait(() => rig.device.queues.size === 1);
    rig.device.isBusy = false;
    for (let i = 0; i < 8; i++) guest.drivers[0].add([], [{ address: DATA_AT, length: 100 }]);
    guest.publish(0);
    await rig.reactor.sleep(2);
    rig.device.work(0, 4);
    front[Symbol.dispose]();
    await rig.wait(() => rig.device.queues.size === 0);
    for (let index = 0; index < 5; index++) rig.device.host.used(index);
    await rig.reactor.sleep(2);
    // The next one is served.
    using next = rig.connect();
    using other = new Guest(1);
    rig.device.isBusy = true;
    await other.setUp(next);
    other.start(next, 0);
    other.drivers[0].add([], [{ address: DATA_AT, length: 100 }]);
    await rig.wait(() => rig.device.queues.size === 1);
    other.publish(0);
    assertEquals((await other.take(rig, 0, 1))[0].length, 100);
  },
);

confinedTest(
  "a ring that the segment has no room for ends the connection in words",
  async (rig, guest, front) => {
    // Each that comes has the segment divided anew, until a part is too small.
    for (let index = 0; index < 4; index++) guest.start(front, index);
    await rig.wait(() => front.hungUp);
    const line =
      "the segment has only 61440 bytes for queue 0 of 4 with 64 entries: give a larger one";
    assert(rig.lines.some((text) => text.includes(line)), rig.lines.join("\n"));
  },
  256 << 10,
);

confinedTest(
  "a ring outside the guest's memory ends the connection in words",
  async (rig, guest, front) => {
    const region = regionBytes(0, 0x3000, USER_ADDRESS, guest.fileOffset);
    front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [guest.fd]);
    guest.start(front, 1);
    await rig.wait(() => front.hungUp);
    assert(rig.lines.some((line) => line.includes("ring 1")), rig.lines.join("\n"));
  },
);

// VERSION_1 1, RING_PACKED 4, IN_ORDER 8; and NOTIFICATION_DATA and RING_RESET, which no front end is offered
for (
  const [confined, has, shown] of [
    [undefined, 0x14d, 0x0d],
    [undefined, 0x141, 0x01],
    // The driver's ring is served by the proxy, which does both whatever the device does.
    [SEGMENT_SIZE, 0x141, 0x0d],
  ] as const
) {
  const name = `confined ${confined !== undefined}: of ring features 0x${has.toString(16)}`;
  cleanTest(`${name} a front end is offered 0x${shown.toString(16)}`, () => {
    const device = new QueueDevice(3, has);
    return withProxy(async (rig) => {
      using front = rig.connect();
      const offered = await front.ask(Request.GET_FEATURES);
      assertEquals(offered.getUint32(4, true), shown);
    }, { device, ...confined !== undefined && { confined } });
  });
}
