/** The AMP layout on buses in shared memory: its bytes, what is refused, and how sides find each other again. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { BusListener } from "../../src/bus/bus.ts";
import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { cleanTest } from "../support/leaks.ts";
import { type LinkedPageBus, pageBus, pageLink } from "../support/page_link.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const SIZE = 8192;
const AMP = { layout: "amp1" } as const;
/** docs/wire.md 4.5: of 64 bytes in 8 KiB. */
const COUNT = 63;
const [INIT, READY, RUN, SHUTDOWN] = [0, 1, 2, 3];
const HEAD = 0x514f;
/** Offsets in a layout as our device side makes it. */
const AT = { device: 64, driver: 72, deviceElements: 80, driverElements: 80 + 64 * COUNT };

/** A listener that keeps what comes. */
class Listener implements BusListener {
  readonly events: string[] = [];
  readonly bytes: number[] = [];
  attached = () => void this.events.push("attached");
  detached = (reason: string) => void this.events.push(reason);
  received = (slot: DataView) => void this.bytes.push(slot.getUint8(0), slot.getUint8(63));
}

function put(bus: LinkedPageBus, byte: number): boolean {
  const offset = bus.claim();
  if (offset < 0) return false;
  for (let i = 0; i < 64; i++) bus.view.setUint8(offset + i, byte);
  bus.send();
  return true;
}

const viewOf = (memory: Mapping) => new DataView(memory.buffer);
const u16 = (memory: Mapping, at: number) => viewOf(memory).getUint16(at, true);
const set = (memory: Mapping, at: number, ...values: number[]) =>
  values.forEach((value, i) => viewOf(memory).setUint16(at + 2 * i, value, true));
const headAt = (memory: Mapping, at: number) => [0, 2, 4, 6].map((n) => u16(memory, at + n));
const pass = (reactor: Reactor, ms = 100) => reactor.until(reactor.sleep(ms));

/** The example of the document that docs/wire.md comes from: one message of the device side's waits. */
const EXAMPLE = [
  "4f 4c 40 00 01 00 00 00 00 00 3f 00 40 00 00 00",
  "00 00 00 00 00 00 00 00 40 00 00 00 00 00 00 00",
  "50 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
  "48 00 00 00 00 00 00 00 10 10 00 00 00 00 00 00",
  "4f 51 02 00 01 00 00 00 4f 51 02 00 00 00 00 00",
].join(" ").replaceAll(" ", "");

cleanTest(
  "amp1: the device side's first bytes are those of the document, a message behind them",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor, AMP, 2 * SIZE);
    const { memory, driver, device } = link;
    const [atDriver, atDevice] = [new Listener(), new Listener()];
    driver.open(atDriver);
    device.open(atDevice);
    assertEquals([driver.isAttached, device.isAttached], [false, false]);
    await pass(reactor);
    assertEquals([atDriver.events, atDevice.events], [["attached"], ["attached"]]);
    assertEquals([driver.segment.start, driver.slotSize, driver.grantAddress], [SIZE, 64, 0n]);
    driver.isPaused = true;
    assert(put(device, 0xd1));
    const bytes = new Uint8Array(memory.buffer);
    assertEquals(bytes.slice(0, AT.deviceElements).toHex(), EXAMPLE);
    assertEquals(bytes.slice(80, 144), new Uint8Array(64).fill(0xd1));
    assert(put(driver, 0xd2));
    assertEquals(bytes.slice(AT.driverElements, AT.driverElements + 64).at(-1), 0xd2);
    await pass(reactor, 20);
    driver.isPaused = false;
    await pass(reactor, 20);
    assertEquals([atDriver.bytes, atDevice.bytes], [[0xd1, 0xd1], [0xd2, 0xd2]]);
    assertEquals(headAt(memory, AT.device), [HEAD, RUN, 1, 1]);
    assertEquals(headAt(memory, AT.driver), [HEAD, RUN, 1, 1]);
    assertEquals(bytes.slice(SIZE), new Uint8Array(SIZE), "what is behind is not the bus's");
  },
);

cleanTest("amp1: as many messages as there is room for, and round and round", async () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor, AMP, SIZE);
  const { driver, device } = link;
  const atDevice = new Listener();
  driver.open(new Listener());
  device.open(atDevice);
  await pass(reactor);
  for (let round = 0; round < 5; round++) {
    device.isPaused = true;
    let sent = 0;
    while (put(driver, sent + 1)) sent++;
    assertEquals(sent, COUNT - 1);
    device.isPaused = false;
    await pass(reactor, 10);
    assertEquals(atDevice.bytes.splice(0).length, 2 * sent);
  }
  // Withheld ones come with the next.
  driver.claim();
  driver.view.setUint8(0, 7);
  driver.sendWithNext();
  await pass(reactor, 10);
  assertEquals(atDevice.bytes, []);
  put(driver, 8);
  await pass(reactor, 10);
  assertEquals(atDevice.bytes.filter((_, i) => i % 2 === 0), [7, 8]);
});

/** A layout of somebody else's, with everything where ours has it not; the magic is the caller's to write. */
function layOut(memory: Mapping, change: (view: DataView) => void = () => {}): void {
  const view = viewOf(memory);
  new Uint8Array(memory.buffer, 0, 64).fill(0);
  [0, 64, 1, 1, 0, 5, 68, 0].forEach((value, i) => view.setUint16(2 * i, value, true));
  view.setUint8(8, 2);
  view.setUint8(9, 4);
  // Notifications of 3 x 2 words, heads, elements of 68 bytes, not aligned.
  [64, 202, 1001, 112, 160, 2003].forEach((at, i) => view.setUint32(16 + 8 * i, at, true));
  change(view);
  set(memory, 0, 0x4c4f);
}

cleanTest("amp1: a driver side takes up any layout that is sound", async () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(SIZE);
  const lines: string[] = [];
  const listener = new Listener();
  using driver = pageBus("driver", reactor, memory, { ...AMP, log: (line) => lines.push(line) });
  driver.open(listener);
  await pass(reactor);
  assertEquals(lines, ["bus test: waiting for the device side to lay out the memory"]);
  assertEquals(new Uint8Array(memory.buffer), new Uint8Array(SIZE), "nothing is written before");
  layOut(memory);
  await pass(reactor);
  assertEquals(headAt(memory, 160), [HEAD, INIT, 0, 0]);
  // The device side, step by step, with the flag of a debugger.
  set(memory, 202, HEAD, 0x8000 | INIT, 9, 9);
  const notifications = new Uint8Array(memory.buffer, 64, 96).fill(0xee);
  new Uint8Array(memory.buffer, 2003, 5 * 68).fill(0xee);
  await pass(reactor);
  assertEquals(headAt(memory, 160), [HEAD, READY, 0, 0]);
  assertEquals(new Uint8Array(memory.buffer, 2003, 5 * 68).every((byte) => byte === 0), true);
  assertEquals(listener.events, []);
  set(memory, 202, HEAD, 0x8000 | READY, 0, 0);
  await pass(reactor);
  assertEquals([headAt(memory, 160), listener.events], [[HEAD, RUN, 0, 0], ["attached"]]);
  set(memory, 204, RUN);
  await pass(reactor);
  // Two messages, and one back, each in its place.
  for (const byte of [1, 2]) put(driver, byte);
  assertEquals(memory.size, SIZE);
  const elements = new Uint8Array(memory.buffer, 2003, 2 * 68);
  assertEquals([elements[0], elements[63], elements[64], elements[68], elements[131]], [
    1,
    1,
    0,
    2,
    2,
  ]);
  new Uint8Array(memory.buffer, 1001, 64).set([0xfe, ...new Array(62).fill(0), 0xff]);
  set(memory, 206, 1, 2);
  driver.look();
  assertEquals(listener.bytes, [0xfe, 0xff]);
  assertEquals([headAt(memory, 160), lines.length], [[HEAD, RUN, 2, 1], 2]);
  // Of the words for notifications of single queues this side begins with zeros, and uses none.
  assertEquals(notifications, Uint8Array.from(notifications, (_, i) => i < 48 ? 0xee : 0));
});

const UNSOUND: Readonly<Record<string, (view: DataView) => void>> = {
  "a block of 60 bytes": (v) => v.setUint16(2, 60, true),
  "version 2": (v) => v.setUint16(4, 2, true),
  "features 0x3": (v) => v.setUint16(6, 3, true),
  "a reserved field": (v) => v.setUint16(14, 1, true),
  "65 words of notifications": (v) => v.setUint8(8, 65),
  "3 notifications of a device": (v) => v.setUint8(9, 3),
  "1 elements": (v) => v.setUint16(10, 1, true),
  "elements of 63 bytes": (v) => v.setUint16(12, 63, true),
  "device head at 0": (v) => v.setUint32(24, 0, true),
  "driver head at 161": (v) => v.setUint32(48, 161, true),
  "device notifications at 68": (v) => v.setUint32(16, 68, true),
  "driver elements up to 8193": (v) => v.setUint32(56, 8193 - 5 * 68, true),
  "device elements up to \\d{10,}": (v) => v.setUint32(36, 1, true),
  "driver head in device head": (v) => v.setUint32(48, 206, true),
  "device head in device elements": (v) => v.setUint32(24, 1338, true),
  "driver elements in device elements": (v) => v.setUint32(56, 1340, true),
  "device head in block": (v) => v.setUint32(24, 62, true),
};

for (const [problem, change] of Object.entries(UNSOUND)) {
  cleanTest(`amp1: ${problem} is refused, and only said`, async () => {
    using reactor = new Reactor(new VirtualClock());
    using memory = mapAnonymous(SIZE);
    const lines: string[] = [];
    layOut(memory, change);
    set(memory, 202, HEAD, READY, 0, 0);
    const before = new Uint8Array(memory.buffer).slice();
    using driver = pageBus("driver", reactor, memory, { ...AMP, log: (line) => lines.push(line) });
    driver.open(new Listener());
    await pass(reactor);
    assertEquals([lines.length, driver.isAttached], [1, false]);
    assertMatch(lines[0]!, new RegExp(`layout cannot be: ${problem}`));
    assertEquals(new Uint8Array(memory.buffer), before);
    // It may be written anew.
    set(memory, 0, 0);
    layOut(memory);
    await pass(reactor);
    assertEquals(driver.isAttached, true);
  });
}

cleanTest("amp1: without notifications their places and number say nothing", async () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = mapAnonymous(SIZE);
  layOut(memory, (view) => {
    view.setUint16(8, 0x0300, true);
    for (const at of [16, 40]) view.setUint32(at, 1, true);
  });
  set(memory, 202, HEAD, READY, 0, 0);
  using driver = pageBus("driver", reactor, memory, AMP);
  driver.open(new Listener());
  await pass(reactor);
  assertEquals(driver.isAttached, true);
});

/** Both sides run, and have said something. */
async function inUse(reactor: Reactor, driver: LinkedPageBus, device: LinkedPageBus) {
  const [atDriver, atDevice] = [new Listener(), new Listener()];
  driver.open(atDriver);
  device.open(atDevice);
  await pass(reactor);
  for (let i = 1; i <= 5; i++) assert(put(driver, i) && put(device, i));
  await pass(reactor);
  assertEquals([atDriver.bytes.length, atDevice.bytes.length], [10, 10]);
  return { atDriver, atDevice };
}

for (const side of ["driver", "device"] as const) {
  for (const how of ["killed", "ended"] as const) {
    cleanTest(
      `amp1: the ${side} side is ${how}, another one goes on with its cursors`,
      async () => {
        using reactor = new Reactor(new VirtualClock());
        using link = pageLink(reactor, AMP, SIZE);
        const { memory } = link;
        const { atDriver, atDevice } = await inUse(reactor, link.driver, link.device);
        const other = link[side === "driver" ? "device" : "driver"];
        const atOther = side === "driver" ? atDevice : atDriver;
        other.isPaused = true;
        put(link[side], 6);
        link[side][Symbol.dispose]();
        assertEquals(headAt(memory, AT[side]), [HEAD, SHUTDOWN, 6, 5]);
        if (how === "killed") set(memory, AT[side] + 2, RUN);
        other.isPaused = false;
        using next = pageBus(side, reactor, memory, AMP);
        next.other = other;
        other.other = next;
        const listener = new Listener();
        next.open(listener);
        assertEquals(listener.events, ["attached"], "at once");
        await pass(reactor);
        assert(put(next, 7) && put(other, 8));
        await pass(reactor);
        assertEquals(listener.bytes, [8, 8]);
        assertEquals(atOther.bytes.slice(10), [6, 6, 7, 7]);
        assertEquals(atOther.events, ["attached"]);
        assertEquals(headAt(memory, AT[side]), [HEAD, RUN, 7, 6]);
      },
    );
  }

  cleanTest(`amp1: the ${side} side ends, and comes again later`, async () => {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor, AMP, SIZE);
    const { memory } = link;
    const { atDriver, atDevice } = await inUse(reactor, link.driver, link.device);
    const other = link[side === "driver" ? "device" : "driver"];
    const atOther = side === "driver" ? atDevice : atDriver;
    link[side][Symbol.dispose]();
    await pass(reactor);
    assertEquals(atOther.events, ["attached", "the other side has ended"]);
    using next = pageBus(side, reactor, memory, AMP);
    next.other = other;
    other.other = next;
    const listener = new Listener();
    next.open(listener);
    await pass(reactor);
    assert(put(next, 7) && put(other, 8));
    await pass(reactor);
    assertEquals([listener.bytes, atOther.bytes.slice(10)], [[8, 8], [7, 7]]);
    assertEquals(headAt(memory, AT[side]), [HEAD, RUN, 1, 1], "cursors began anew");
  });
}

/** What another implementation may do to a device side that runs, and why that is no peer any more. */
const ANEW: Readonly<Record<string, [why: string, act: (memory: Mapping) => void]>> = {
  "INIT is seen": ["the other side begins anew", (m) => set(m, AT.driver + 2, INIT)],
  "READY is seen": ["the other side begins anew", (m) => set(m, AT.driver + 2, READY, 0, 0)],
  "only cursors tell": ["the other side began anew", (m) => set(m, AT.driver + 4, 0, 0)],
  "its head is gone": ["the other side has ended", (m) => set(m, AT.driver, 0)],
  "it is dead, as it says": ["the other side has ended", (m) => set(m, AT.driver + 2, 4)],
  "it empties the memory": [
    "the memory was laid out anew",
    (m) => new Uint8Array(m.buffer).fill(0),
  ],
};

for (const [what, [why, act]] of Object.entries(ANEW)) {
  cleanTest(`amp1: a driver side begins anew: ${what}`, async () => {
    using reactor = new Reactor(new VirtualClock());
    using link = pageLink(reactor, AMP, SIZE);
    const { memory, device } = link;
    const { atDevice } = await inUse(reactor, link.driver, device);
    link.driver[Symbol.dispose]();
    set(memory, AT.driver + 2, RUN);
    act(memory);
    await pass(reactor);
    assertEquals(atDevice.events.slice(0, 2), ["attached", why]);
    // What another implementation does then.
    set(memory, AT.driver, HEAD, INIT);
    await pass(reactor);
    set(memory, AT.driver, HEAD, READY, 0, 0);
    await pass(reactor);
    set(memory, AT.driver, HEAD, RUN, 0, 0);
    await pass(reactor);
    assertEquals([device.isAttached, atDevice.events.at(-1)], [true, "attached"]);
    assertEquals(headAt(memory, AT.device), [HEAD, RUN, 0, 0]);
    // A message of its own, in its first element.
    new Uint8Array(memory.buffer, AT.driverElements, 64).fill(0x77);
    set(memory, AT.driver + 4, 1);
    device.look();
    assertEquals(atDevice.bytes.slice(10), [0x77, 0x77]);
  });
}

cleanTest("amp1: cursors that cannot be move nothing", async () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor, AMP, SIZE);
  const { memory, device } = link;
  const { atDevice } = await inUse(reactor, link.driver, device);
  link.driver[Symbol.dispose]();
  set(memory, AT.driver + 2, RUN);
  for (const tail of [COUNT, 0x7fff, 0xffff]) {
    set(memory, AT.driver + 4, tail);
    device.look();
  }
  set(memory, AT.driver + 4, 5, 9);
  device.look();
  assertEquals(atDevice.bytes.length, 10);
  assert(put(device, 1), "there is room by what was sound");
});

cleanTest("amp1: reset lays out anew, and a v1 side drops what it finds", async () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor, { ...AMP, discardOnAttach: true }, SIZE);
  const { memory } = link;
  await inUse(reactor, link.driver, link.device);
  link.device[Symbol.dispose]();
  set(memory, AT.device + 2, RUN);
  put(link.driver, 9);
  using next = pageBus("device", reactor, memory, { ...AMP, discardOnAttach: true });
  const listener = new Listener();
  next.open(listener);
  await pass(reactor);
  assertEquals([listener.events, listener.bytes], [["attached"], []]);
  next[Symbol.dispose]();
  link.driver[Symbol.dispose]();
  using emptied = pageBus("device", reactor, memory, { ...AMP, reset: true });
  emptied.open(listener);
  assertEquals(headAt(memory, AT.device), [HEAD, INIT, 0, 0]);
  assertEquals(headAt(memory, AT.driver), [0, 0, 0, 0]);
});

/** mulberry32. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = state + 0x6d2b79f5 | 0;
    let t = Math.imul(state ^ state >>> 15, 1 | state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return (t ^ t >>> 14) >>> 0;
  };
}

/** Where a hostile peer writes most: the block, both heads, as our device side has them. */
const TARGETS = [0, 2, 10, 12, 24, 32, 48, 56, 64, 66, 68, 70, 72, 74, 76, 78];

cleanTest(
  "amp1: whatever a peer writes at any time, a side lives, and finds a sound peer afterwards",
  async () => {
    const seed = Number(Deno.env.get("VMSG_SEED") ?? 1);
    const next = random(seed);
    using reactor = new Reactor(new VirtualClock());
    for (let round = 0; round < 40; round++) {
      using link = pageLink(reactor, AMP, SIZE);
      const { memory, driver, device } = link;
      const [atDriver, atDevice] = [new Listener(), new Listener()];
      driver.open(atDriver);
      device.open(atDevice);
      for (let step = 0; step < 100; step++) {
        const at = next() % 4 === 0 ? 2 * (next() % (SIZE / 2)) : TARGETS[next() % TARGETS.length]!;
        const values = [0, 1, 2, 3, HEAD, 0x4c4f, next() % 128, next() & 0xffff];
        set(memory, at, values[next() % values.length]!);
        if (next() % 3 === 0) await pass(reactor, next() % 80);
        put(driver, 1);
        put(device, 2);
        for (const side of [driver, device]) side.look();
      }
      // What they have written meanwhile is no more than theirs, and a device side lays out anew.
      new Uint8Array(memory.buffer).fill(0);
      await pass(reactor, 500);
      assertEquals(
        [driver.isAttached, device.isAttached],
        [true, true],
        `seed ${seed} round ${round}`,
      );
      for (const listener of [atDriver, atDevice]) listener.bytes.length = 0;
      assert(put(driver, 7) && put(device, 8));
      await pass(reactor);
      assertEquals(
        [atDriver.bytes, atDevice.bytes],
        [[8, 8], [7, 7]],
        `seed ${seed} round ${round}`,
      );
    }
  },
);
