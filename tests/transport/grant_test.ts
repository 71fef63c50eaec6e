/**
 * Two machines with a clock each: one is paused, and its lease does not run out meanwhile. What it may still do to memory
 * that the other one has let go is decided by the grant (docs/wire.md 6).
 */

import { assert, assertEquals } from "@std/assert";
import { QueueDevice, take } from "../../src/devices/queue_device.ts";
import type { Clock } from "../../src/linux/clock.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { MEMORY_WINDOW } from "../../src/message/message.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import { PeerLost } from "../../src/transport/requests.ts";
import { Chain } from "../../src/virtio/queue/mod.ts";
import type { DeviceHost } from "../../src/virtio/device.ts";
import { Status } from "../../src/virtio/features.ts";
import { waitUntil } from "../support/front_end.ts";
import { MockDriver, MockMemory } from "../support/mock_driver.ts";
import { type LinkedPageBus, pageBus } from "../support/page_link.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const AT = 0x4000_0000;
const WRITTEN = 0x77;
const codec = codecFor("v1");
const log = createLog("test", "error", () => {});

/** The time of a machine that can be paused. */
class MachineClock implements Clock {
  #missedMs = 0;
  #pausedMs: number | undefined;
  constructor(readonly outside: Clock) {}
  now(): number {
    return (this.#pausedMs ?? this.outside.now()) - this.#missedMs;
  }
  /** Its loop waits for nothing. */
  skipTo(): void {}
  get isPaused(): boolean {
    return this.#pausedMs !== undefined;
  }
  pause(): void {
    this.#pausedMs = this.outside.now();
  }
  resume(): void {
    this.#missedMs += this.outside.now() - this.#pausedMs!;
    this.#pausedMs = undefined;
  }
}

/** Fills every buffer. */
function filler(reactor: Reactor): QueueDevice {
  const chain = new Chain();
  const source = mapAnonymous(4096);
  new Uint8Array(source.buffer).fill(WRITTEN);
  const fill = (queue: Parameters<typeof take>[0]) => {
    while (take(queue, chain)) {
      queue.complete(chain.head, chain.writable.copyIn(0, source.address, 16));
    }
    return false;
  };
  return new QueueDevice(reactor, { deviceId: 42, queues: [fill] });
}

interface Rig {
  readonly driverSide: DriverSide;
  readonly driverBus: LinkedPageBus;
  readonly device: RemoteDevice;
  readonly memory: MockMemory;
  readonly queue: MockDriver;
  /** The word behind the driver queue's head, its name and its count. */
  readonly word: () => number;
  readonly clock: MachineClock;
  readonly host: DeviceHost;
  /** What a device does by itself: a frame came from its network. */
  wake(): void;
  /** One turn of the device's machine, which has not heard of anything new. */
  turn(): void;
  wait(condition: () => boolean): Promise<void>;
  /** Offers a buffer; where it is. */
  offer(): number;
}

async function withMachines(body: (rig: Rig) => Promise<void>): Promise<void> {
  const reactor = new Reactor(new VirtualClock());
  const clock = new MachineClock(reactor.clock);
  const elsewhere = new Reactor(clock);
  const link = mapAnonymous(1 << 16);
  const memory = new MockMemory([{ at: AT, size: 1 << 20 }]);
  const driverBus = pageBus("driver", reactor, link);
  const deviceBus = pageBus("device", elsewhere, link);
  const driverSide = new DriverSide({ reactor, bus: driverBus, codec, log });
  const deviceSide = new DeviceSide({ reactor: elsewhere, bus: deviceBus, codec, log });
  const model = filler(elsewhere);
  const host = deviceSide.add(0, model, [{
    at: AT,
    size: 1 << 20,
    memory: memory.memory as never,
    offset: 4096,
  }]);
  deviceSide.open();
  driverSide.open();
  const device = driverSide.device(0);
  const queue = new MockDriver(memory, { size: 16 });
  // Both are polled, as where nobody can interrupt.
  const turn = () => elsewhere.turn();
  const poll = reactor.timer(() => {
    poll.arm(1);
    driverBus.look();
    if (clock.isPaused) return;
    deviceBus.look();
    turn();
  });
  poll.arm(1);
  let offered = 0;
  await reactor.until(body({
    driverSide,
    driverBus,
    device,
    memory,
    queue,
    clock,
    host,
    word: () => new Uint32Array(link.buffer)[3]!,
    wake: () => model.wake(0),
    turn,
    wait: (condition) => waitUntil(reactor, condition),
    offer: () => {
      const address = queue.end + 64 * offered++;
      queue.add([], [{ address, length: 16 }]);
      queue.publish();
      return address;
    },
  }));
  driverSide[Symbol.dispose]();
  deviceSide[Symbol.dispose]();
  for (const one of [driverBus, deviceBus, link, memory, reactor, elsewhere]) one[Symbol.dispose]();
}

/** Has the device work on the queue. */
async function start({ driverSide, device, memory, queue, wait, offer }: Rig): Promise<void> {
  await wait(() => driverSide.peer === "vmsg");
  await device.addSharedMemory(MEMORY_WINDOW, AT, 1 << 20, AT);
  await device.setFeatures(Uint32Array.of(0, 1));
  const { FEATURES_OK, DRIVER_OK } = Status;
  await device.setStatus(3 | FEATURES_OK);
  await device.startQueue(0, { ...queue.config, base: 0 });
  await device.start(3 | FEATURES_OK | DRIVER_OK);
  const address = offer();
  device.available(0);
  await wait(() => memory.bytes(address, 1)[0] === WRITTEN);
}

const left = {
  "did not answer in time": async ({ device }: Rig) => {
    await device.removeMemory(AT, 1 << 20).then(() => assert(false), (error) => {
      assert(error instanceof PeerLost, `${error}`);
    });
  },
  "is not the one that it was": ({ driverSide }: Rig) => {
    driverSide.replaced("for a test");
  },
  "is detached": ({ driverBus }: Rig) => {
    driverBus.drop("for a test");
  },
  "is left, because the driver side ends": ({ driverSide }: Rig) => {
    driverSide.revoke();
  },
};

for (const [how, leave] of Object.entries(left)) {
  Deno.test(`grant: a machine that was paused writes nothing to what was let go: it ${how}`, () =>
    withMachines(async (rig) => {
      await start(rig);
      const { clock, memory, queue, offer, host } = rig;
      // What other threads would look at.
      const { address: at, number } = host.terms!.grant!;
      const granted = () => new Deno.UnsafePointerView(Deno.UnsafePointer.create(at)!).getUint32();
      assertEquals(granted(), number);
      // A frame has come for a buffer that is there.
      const address = offer();
      rig.wake();
      clock.pause();
      await leave(rig);
      // From here on the memory is somebody else's.
      const before = memory.bytes(AT, 1 << 20).slice();
      clock.resume();
      assert(granted() !== number);
      for (let i = 0; i < 3; i++) rig.turn();
      assertEquals(memory.bytes(address, 16)[0], 0);
      assert(
        before.every((byte, i) => byte === memory.bytes(AT + i, 1)[0]),
        "something was written",
      );
      assertEquals(queue.usedIndex, 1);
    }));
}

Deno.test("grant: a machine that was paused for a moment goes on, and the word stays what it was", () =>
  withMachines(async (rig) => {
    await start(rig);
    const word = rig.word();
    assert(word !== 0);
    const address = rig.offer();
    rig.wake();
    rig.clock.pause();
    rig.clock.resume();
    rig.turn();
    assertEquals([rig.memory.bytes(address, 1)[0], rig.word()], [WRITTEN, word]);
  }));

Deno.test("grant: who empties the queues takes it away for a moment only", () =>
  withMachines(async (rig) => {
    await start(rig);
    const word = rig.word();
    rig.driverBus.grant(0);
    const address = rig.offer();
    rig.wake();
    rig.turn();
    assertEquals(rig.memory.bytes(address, 1)[0], 0);
    await rig.wait(() => rig.memory.bytes(address, 1)[0] === WRITTEN);
    assertEquals(rig.word(), word);
  }));

Deno.test("grant: a device side that is no vmsg sees a word that nobody writes", async () => {
  using reactor = new Reactor(new VirtualClock());
  using link = mapAnonymous(1 << 16);
  using bus = pageBus("driver", reactor, link);
  using other = pageBus("device", reactor, link);
  using side = new DriverSide({ reactor, bus, codec: codecFor("v1-2025"), log });
  using deviceSide = new DeviceSide({ reactor, bus: other, codec: codecFor("v1-2025"), log });
  bus.other = other;
  other.other = bus;
  deviceSide.add(0, filler(reactor));
  deviceSide.open();
  side.open();
  await reactor.until(waitUntil(reactor, () => side.peer === "foreign"));
  side.revoke();
  assertEquals([...new Uint32Array(link.buffer).subarray(1, 16)], Array(15).fill(0));
});
