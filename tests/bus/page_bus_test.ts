/** Buses in shared memory: where the queues are, byte for byte, who is rung, and what is refused. */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import type { BusListener, Side } from "../../src/bus/bus.ts";
import { IvshmemBus, type IvshmemBusOptions } from "../../src/bus/ivshmem.ts";
import type { EndListener, IvshmemEnd, LentVector } from "../../src/ivshmem/end.ts";
import type { Fd } from "../../src/linux/fd.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { cleanTest } from "../support/leaks.ts";
import { pageBus, pageLink } from "../support/page_link.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const PAGE = 4096;
/** floor((4096 - 128) / 64), docs/wire.md 4.3. */
const CAPACITY = 62;
const SLOT = 64;
const SLOTS_AT = 128;

/** A listener that keeps what comes. */
class Listener implements BusListener {
  readonly slots: number[][] = [];
  readonly events: string[] = [];

  attached(): void {
    this.events.push("attached");
  }

  detached(reason: string): void {
    this.events.push(`detached: ${reason}`);
  }

  received(slot: DataView): void {
    this.slots.push([...new Uint8Array(slot.buffer, slot.byteOffset, SLOT)]);
  }
}

/** A message that is different in every byte. */
function pattern(seed: number): number[] {
  return Array.from({ length: SLOT }, (_, i) => (seed + i * 3) & 0xff);
}

function put(bus: { claim(): number; send(): void; view: DataView }, bytes: number[]): boolean {
  const offset = bus.claim();
  if (offset < 0) return false;
  bytes.forEach((byte, i) => bus.view.setUint8(offset + i, byte));
  bus.send();
  return true;
}

function page(memory: Mapping, at: number): Uint8Array {
  return new Uint8Array(memory.buffer, at, PAGE);
}

/** A queue page as docs/wire.md 4.1 draws it. */
function expectedPage(head: number, tail: number, slots: number[][], producer = 0): Uint8Array {
  const bytes = new Uint8Array(PAGE);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, head, true);
  view.setUint32(4, producer, true);
  view.setUint32(64, tail, true);
  slots.forEach((slot, i) => bytes.set(slot, SLOTS_AT + i * SLOT));
  return bytes;
}

for (const isDeviceMemory of [false, true]) {
  const kind = isDeviceMemory ? "a device's memory" : "ordinary memory";
  cleanTest(`page bus: the driver's queue at 0, the device's at 4096, in ${kind}`, async () => {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor, { isDeviceMemory });
    const { memory, driver, device } = link;
    const [atDriver, atDevice] = [new Listener(), new Listener()];
    driver.open(atDriver);
    device.open(atDevice);
    assertEquals([driver.isAttached, driver.noticesPeers, driver.carriesFds], [true, false, false]);
    assertEquals(driver.segment.start, 2 * PAGE);
    // A claimed slot shows nothing before it is sent; in a device's memory nothing is written there.
    const offset = driver.claim();
    driver.view.setUint8(offset, 0xaa);
    assertEquals(page(memory, 0)[SLOTS_AT], isDeviceMemory ? 0 : 0xaa);
    assertEquals(page(memory, 0)[0], 0);
    assert(put(driver, pattern(1)) && put(driver, pattern(2)));
    assert(put(device, pattern(3)));
    assertEquals(page(memory, 0), expectedPage(2, 0, [pattern(1), pattern(2)]));
    assertEquals(page(memory, PAGE), expectedPage(1, 0, [pattern(3)]));
    await reactor.until(reactor.sleep(1));
    assertEquals(atDevice.slots, [pattern(1), pattern(2)]);
    assertEquals(atDriver.slots, [pattern(3)]);
    assertEquals(page(memory, 0), expectedPage(2, 2, [pattern(1), pattern(2)]));
    assertEquals(page(memory, PAGE), expectedPage(1, 1, [pattern(3)]));
    // Nothing lies behind the queues.
    assert(new Uint8Array(memory.buffer, 2 * PAGE).every((byte) => byte === 0));
    // Once per turn, however many were sent.
    assertEquals([driver.rings, device.rings], [1, 1]);
    assertEquals([atDriver.events, atDevice.events], [["attached"], ["attached"]]);
  });

  cleanTest(
    `page bus: the queue wraps after 62 slots, and one stays free, in ${kind}`,
    async () => {
      using reactor = new Reactor(new VirtualClock());
      using link = pageLink(reactor, { isDeviceMemory });
      const { memory, driver, device } = link;
      const atDevice = new Listener();
      driver.open(new Listener());
      device.open(atDevice);
      let sent = 0;
      while (put(driver, pattern(sent))) sent++;
      assertEquals(sent, CAPACITY - 1);
      await reactor.until(reactor.sleep(1));
      for (let i = 0; i < 10; i++) assert(put(driver, pattern(sent++)));
      await reactor.until(reactor.sleep(1));
      assertEquals(atDevice.slots, Array.from({ length: sent }, (_, i) => pattern(i)));
      const view = new DataView(memory.buffer);
      assertEquals([view.getUint32(0, true), view.getUint32(64, true)], [9, 9]);
    },
  );
}

cleanTest("page bus: every message is rung for where the dialect wants it", () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor, { ringPerMessage: true });
  link.driver.open(new Listener());
  for (let i = 0; i < 3; i++) put(link.driver, pattern(i));
  assertEquals(link.driver.rings, 3);
});

cleanTest("page bus: both sides name themselves behind their heads, if they are vmsg", () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  using unnamed = pageBus("driver", reactor, memory, { id: 7 });
  unnamed.open(new Listener());
  assertEquals(page(memory, 0), expectedPage(0, 0, []));
  using device = pageBus("device", reactor, memory, { named: true, id: 0xfedc });
  assertEquals(device.named, -1);
  using driver = pageBus("driver", reactor, memory, { named: true, id: 7 });
  driver.open(new Listener());
  device.open(new Listener());
  assertEquals(page(memory, 0), expectedPage(0, 0, [], 0x0007_766d));
  assertEquals(page(memory, PAGE), expectedPage(0, 0, [], 0xfedc_766d));
  assertEquals([driver.named, device.named, unnamed.named], [0xfedc, 7, -1]);
});

cleanTest("page bus: the place of a producer that lives is not taken", async () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  using first = pageBus("driver", reactor, memory, { named: true, id: 7 });
  using second = pageBus("driver", reactor, memory, { named: true, id: 9 });
  first.open(new Listener());
  await reactor.until(reactor.sleep(1000));
  second.open(new Listener());
  await assertRejects(
    () => reactor.until(reactor.sleep(1000)),
    VmsgError,
    "driver end: peer 7 is its driver side, this is peer 9: end one of the two",
  );
  assertEquals([first.isAttached, second.isAttached], [true, false]);
});

cleanTest(
  "page bus: the place of one that is gone is taken in 0.4 s, or at once by its id",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    using memory = mapAnonymous(2 * PAGE);
    const start = async (id: number, ms: number) => {
      using bus = pageBus("driver", reactor, memory, { named: true, id });
      bus.open(new Listener());
      await reactor.until(reactor.sleep(ms));
      return bus.isAttached;
    };
    assert(await start(7, 1000));
    assertEquals([await start(9, 300), await start(7, 0), await start(9, 501)], [
      false,
      true,
      true,
    ]);
  },
);

cleanTest("page bus: who stood still and lost its place waits until it is free", async () => {
  using reactor = new Reactor(new VirtualClock());
  using paused = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  using first = pageBus("device", paused, memory, { named: true, id: 7 });
  const heard = new Listener();
  first.open(heard);
  const second = pageBus("device", reactor, memory, { named: true, id: 9 });
  second.open(new Listener());
  await reactor.until(reactor.sleep(501));
  assert(second.isAttached);
  // Both go on, in turns.
  for (let i = 0; i < 20; i++) {
    await paused.until(paused.sleep(100));
    await reactor.until(reactor.sleep(100));
  }
  assertEquals([first.isAttached, second.isAttached], [false, true]);
  second[Symbol.dispose]();
  await paused.until(paused.sleep(501));
  assert(first.isAttached);
  const lost = "peer 9 is its device side, this is peer 7: " +
    "this one waits until nobody is, end one of the two";
  assertEquals(heard.events, ["attached", `detached: ${lost}`, "attached"]);
});

cleanTest("page bus: names that a peer writes end nobody who was attached", async () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  using bus = pageBus("driver", reactor, memory, { named: true, id: 7 });
  const heard = new Listener();
  bus.open(heard);
  const words = new Uint32Array(memory.buffer, 0, 4);
  for (let i = 0; i < 100; i++) {
    words[1] = ((i << 16) | 0x766d) >>> 0;
    words[2] = i;
    await reactor.until(reactor.sleep(50));
    // A driver side that is reset attaches anew.
    if (i % 10 === 0) bus.drop("dropped");
  }
  assert(!bus.isAttached);
  // Left alone, the bus has its place back.
  await reactor.until(reactor.sleep(501));
  assert(bus.isAttached);
  assertEquals(words[1], 0x0007_766d);
  // Not more often than it looks.
  assert(heard.events.length < 50, `${heard.events.length} events`);
});

cleanTest("page bus: reset empties both queues and nothing else", () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(3 * PAGE);
  new Uint8Array(memory.buffer).fill(0xff);
  // What is left in indices that are out of range is not followed.
  using found = pageBus("driver", reactor, memory);
  assertEquals(page(memory, 0)[200], 0xff);
  found.open(new Listener());
  assertEquals(page(memory, 0).subarray(0, 4), new Uint8Array(4));
  using _device = pageBus("device", reactor, memory, { reset: true });
  assertEquals(page(memory, 0), new Uint8Array(PAGE));
  assertEquals(page(memory, PAGE), new Uint8Array(PAGE));
  assertEquals(page(memory, 2 * PAGE), new Uint8Array(PAGE).fill(0xff));
});

cleanTest("page bus: what is queued at the attach is used as found, or dropped", async () => {
  for (const discardOnAttach of [false, true]) {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor, { discardOnAttach });
    link.driver.open(new Listener());
    put(link.driver, pattern(1));
    const listener = new Listener();
    link.device.open(listener);
    await reactor.until(reactor.sleep(1));
    assertEquals(listener.slots, discardOnAttach ? [] : [pattern(1)]);
  }
});

cleanTest("page bus: a driver side goes on where emptied queues begin", async () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor);
  const { memory, driver } = link;
  const [listener, atDriver] = [new Listener(), new Listener()];
  driver.open(atDriver);
  for (let i = 0; i < 5; i++) put(driver, pattern(i));
  link.device.open(new Listener());
  for (let i = 0; i < 3; i++) put(link.device, pattern(i));
  await reactor.until(reactor.sleep(1));
  assertEquals(atDriver.slots.splice(0).length, 3);
  using device = pageBus("device", reactor, memory, { reset: true });
  driver.other = device;
  device.open(listener);
  driver.resume();
  put(driver, pattern(9));
  device.other = driver;
  put(device, pattern(8));
  await reactor.until(reactor.sleep(1));
  assertEquals(listener.slots, [pattern(9)]);
  assertEquals(atDriver.slots, [pattern(8)], "and reads on there, nothing of before");
  assertEquals(page(memory, 0), expectedPage(1, 1, [pattern(9)]));
});

cleanTest("page bus: memory that is too small is told with what is needed", () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  const fails = (options: { offset?: number }, small: Mapping) =>
    assertThrows(() => pageBus("device", reactor, small, options), VmsgError).message;
  using one = mapAnonymous(PAGE);
  assertMatch(fails({}, one), /^bus test: 4096 bytes .* too few, the bus needs 8192: share more$/);
  assertMatch(fails({ offset: PAGE }, memory), /8192 bytes .*, the bus needs 8192 from 4096 on/);
  pageBus("device", reactor, memory)[Symbol.dispose]();
});

// --- ivshmem: who is rung ------------------------------------------------------------------------

class FakeEnd implements IvshmemEnd {
  readonly description = "ivshmem fake";
  readonly isDeviceMemory = false;
  readonly rung: number[] = [];
  interrupts = true;
  listener: EndListener | undefined;
  isOpen = true;

  constructor(
    readonly memory: Mapping,
    readonly id: number,
    readonly peers: Set<number> | undefined = undefined,
  ) {}

  open(_reactor: Reactor, listener: EndListener): void {
    this.listener = listener;
  }

  ring(peer: number): void {
    this.rung.push(peer);
  }

  /** Only a function's end rings more vectors than one, and lends its own. */
  ringVector?(peer: number, vector: number): void;
  lendVector?(event: Fd): LentVector | undefined;

  readonly pinHandles = [];

  pin(): undefined {
    return undefined;
  }

  [Symbol.dispose](): void {
    this.isOpen = false;
  }
}

function ivshmemBus(
  side: Side,
  reactor: Reactor,
  end: FakeEnd,
  lines: string[],
  options: Partial<IvshmemBusOptions> = {},
): IvshmemBus {
  return new IvshmemBus(side, reactor, end, {
    peer: undefined,
    poll: false,
    reset: false,
    named: true,
    discardOnAttach: true,
    ringPerMessage: true,
    log: (line) => lines.push(line),
    ...options,
  });
}

cleanTest("ivshmem bus: at a function the peer is 0 or 1, or whom its queue names", () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  for (const [id, guess] of [[0, 1], [1, 0], [5, 0]]) {
    const end = new FakeEnd(memory, id!);
    using bus = ivshmemBus("driver", reactor, end, [], { named: false });
    bus.open(new Listener());
    put(bus, pattern(0));
    assertEquals(end.rung, [guess]);
    assertMatch(bus.silenceHint, new RegExp(`this side is peer ${id} and rings peer ${guess}$`));
  }
  const [lines, end, other] = [[] as string[], new FakeEnd(memory, 0), new FakeEnd(memory, 9)];
  using bus = ivshmemBus("driver", reactor, end, lines);
  using theirs = ivshmemBus("device", reactor, other, lines);
  bus.open(new Listener());
  theirs.open(new Listener());
  put(bus, pattern(0));
  put(theirs, pattern(0));
  assertEquals([end.rung, other.rung, lines], [[9], [0], []]);
});

cleanTest(
  "ivshmem bus: the driver side lends vectors, the device side rings the peer's, if their ends can",
  () => {
    using reactor = new Reactor(new VirtualClock());
    using memory = mapAnonymous(2 * PAGE);
    const plain = new FakeEnd(memory, 0);
    for (const side of ["driver", "device"] as const) {
      using bus = ivshmemBus(side, reactor, plain, []);
      assertEquals([bus.lendVector, bus.ringVector], [undefined, undefined]);
    }
    const rung: number[][] = [];
    const able = (id: number) =>
      Object.assign(new FakeEnd(memory, id), {
        ringVector: (peer: number, vector: number) => void rung.push([peer, vector]),
        lendVector: () => undefined,
      });
    using driver = ivshmemBus("driver", reactor, able(5), []);
    using device = ivshmemBus("device", reactor, able(0), []);
    assertEquals([driver.ringVector, device.lendVector], [undefined, undefined]);
    assert(driver.lendVector !== undefined);
    driver.open(new Listener());
    device.open(new Listener());
    device.ringVector!(3);
    assertEquals(rung, [[5, 3]]);
  },
);

cleanTest("ivshmem bus: peer= is obeyed, and said once if the peer has another name", () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  const [lines, end] = [[] as string[], new FakeEnd(memory, 0)];
  using bus = ivshmemBus("driver", reactor, end, lines, { peer: 7 });
  bus.open(new Listener());
  put(bus, pattern(0));
  assertEquals(lines, []);
  using theirs = ivshmemBus("device", reactor, new FakeEnd(memory, 3), []);
  theirs.open(new Listener());
  put(bus, pattern(0));
  put(bus, pattern(0));
  assertEquals(end.rung, [7, 7, 7]);
  assertEquals(lines.length, 1);
  assertMatch(lines[0]!, /peer=7 was given, but the other side is peer 3: give peer=3, or leave/);
  assertMatch(bus.silenceHint, /this side is peer 0 and rings peer 7 \(peer=\), is that right\?/);
});

cleanTest("ivshmem bus: at a server it is attached while there is a peer", () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(2 * PAGE);
  const lines: string[] = [];
  const peers = new Set<number>();
  const end = new FakeEnd(memory, 2, peers);
  const bus = ivshmemBus("driver", reactor, end, lines, { named: false });
  const listener = new Listener();
  bus.open(listener);
  assertEquals([bus.isAttached, lines], [false, ["bus ivshmem fake: waiting for a peer"]]);
  assertEquals(bus.claim(), -1);
  const join = (peer: number) => {
    peers.add(peer);
    end.listener!.joined(peer);
  };
  const leave = (peer: number) => {
    peers.delete(peer);
    end.listener!.left(peer);
  };
  join(4);
  put(bus, pattern(0));
  join(6);
  assertEquals(end.rung, [4]);
  leave(6);
  assert(bus.isAttached, "that was not whom we rang");
  join(8);
  leave(4);
  // What was said to it may have been meant for who stays.
  assertEquals(end.rung, [4, 8]);
  put(bus, pattern(0));
  assertEquals(end.rung, [4, 8, 8]);
  assertEquals(listener.events, ["attached", "detached: peer 4 has left", "attached"]);
  leave(8);
  // One that leaves before it was rung is noticed as well.
  join(5);
  leave(5);
  assertEquals(bus.isAttached, false);
  assertEquals(listener.events.slice(3), [
    "detached: peer 8 has left",
    "attached",
    "detached: peer 5 has left",
  ]);
  bus[Symbol.dispose]();
  assertEquals(end.isOpen, false);
});

cleanTest("ivshmem bus: it looks by itself with poll, and where nothing interrupts", async () => {
  for (const way of ["interrupts", "poll", "none"] as const) {
    using reactor = new Reactor(new VirtualClock());
    using memory = mapAnonymous(2 * PAGE);
    const end = new FakeEnd(memory, 0);
    end.interrupts = way !== "none";
    using bus = ivshmemBus("device", reactor, end, [], { poll: way === "poll" });
    const listener = new Listener();
    bus.open(listener);
    using theirs = ivshmemBus("driver", reactor, new FakeEnd(memory, 1), []);
    theirs.open(new Listener());
    await reactor.until(reactor.sleep(20));
    put(theirs, pattern(5));
    await reactor.until(reactor.sleep(30));
    assertEquals(listener.slots, way === "interrupts" ? [] : [pattern(5)], way);
    end.listener!.rung();
    assertEquals(listener.slots, [pattern(5)]);
  }
});
