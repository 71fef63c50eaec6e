/**
 * Devices and guests that break the rules around a shadow queue. Each row is one thing that must be noticed:
 * the shadow breaks with the reason named, nothing throws, no byte outside the guest's own buffers and the
 * segment changes, and no byte that the guest did not hand over is in the segment.
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { CopiedQueue } from "../../src/sharing/copied_queue.ts";
import { copiedRingsSize } from "../../src/sharing/copied_queue.ts";
import { MockDriver, MockMemory } from "../support/mock_driver.ts";
import {
  GUEST_AT,
  RawDevice,
  type SeenBuffer,
  SEGMENT_AT,
  segmentOf,
  segmentSize,
  shadowOf,
} from "../support/shadow_rig.ts";

const SIZE = 8;
const POOL = 4096;
const GUEST_SIZE = 0x40000;
const NEXT = 1, WRITE = 2, INDIRECT = 4;
/** What the guest keeps for itself, and what it lets the device read. */
const SECRET = 0x5e, SHOWN = 0x11;

interface Rig {
  readonly guest: MockMemory;
  readonly driver: MockDriver;
  readonly segment: MockMemory;
  readonly shadow: CopiedQueue;
  readonly device: RawDevice;
  /** The guest's memory behind its rings. */
  readonly data: number;
}

/** A guest of secrets, whose buffers are at `data` in steps of 4 KiB. */
function withRig(body: (rig: Rig) => void, size = SIZE, pool = POOL): void {
  using guest = new MockMemory([{ at: GUEST_AT, size: GUEST_SIZE }]);
  const { memory: segment, place } = segmentOf(segmentSize(size, pool));
  using _segment = segment;
  const driver = new MockDriver(guest, { size, eventIndex: true, indirect: true });
  const data = driver.end;
  guest.bytes(data, GUEST_AT + GUEST_SIZE - data).fill(SECRET);
  const shadow = shadowOf(driver, place);
  const device = new RawDevice(segment, shadow.setup, true);
  body({ guest, driver, segment, shadow, device, data });
  guest.checkGuards();
  segment.checkGuards();
}

/** Buffers 0 to 3 of the guest, one to read and one to write each, with the device. */
function offerFour({ guest, driver, shadow, data }: Rig): void {
  for (let i = 0; i < 4; i++) {
    const at = data + 4096 * i;
    guest.bytes(at, 100).fill(SHOWN);
    driver.add([{ address: at, length: 100 }], [{ address: at + 1024, length: 200 }]);
  }
  driver.publish();
  shadow.giveBack();
  shadow.forward();
  assertEquals(shadow.counters.forwarded, 4);
}

/** As ShadowDevice moves a shadow. */
function move(shadow: CopiedQueue): void {
  shadow.giveBack();
  shadow.forward();
}

interface DeviceRow {
  readonly name: string;
  readonly reason: string;
  /** How many buffers came back before. */
  readonly good: number;
  readonly act: (device: RawDevice, heads: readonly number[], rig: Rig) => void;
}

const deviceRows: DeviceRow[] = [
  {
    name: "uses a buffer that it was never given",
    reason: "which it does not have",
    good: 0,
    act: (device, heads) => {
      const other = [...Array(SIZE).keys()].find((head) => !heads.includes(head))!;
      device.use({ head: other }, 0);
      device.publish();
    },
  },
  {
    name: "uses a buffer of a number that no ring has",
    reason: "returns buffer 4294967295",
    good: 0,
    act: (device) => {
      device.use({ head: 0xffff_ffff }, 0);
      device.publish();
    },
  },
  {
    name: "uses a buffer twice",
    reason: "which it does not have",
    good: 1,
    act: (device, [head]) => {
      device.use({ head }, 0);
      device.use({ head }, 0);
      device.publish();
    },
  },
  {
    name: "uses a buffer again in a later batch",
    reason: "which it does not have",
    good: 2,
    act: (device, [first, second], { shadow }) => {
      for (const head of [first, second]) device.use({ head }, 200);
      device.publish();
      move(shadow);
      device.use({ head: first }, 0);
      device.publish();
    },
  },
  {
    name: "says that it wrote one byte more than there was room",
    reason: "wrote 201 bytes to 200",
    good: 1,
    act: (device, [first, second]) => {
      device.use({ head: first }, 200);
      device.use({ head: second }, 201);
      device.publish();
    },
  },
  {
    name: "says that it wrote 2^32 - 1 bytes",
    reason: "wrote 4294967295 bytes",
    good: 0,
    act: (device, [head]) => {
      device.use({ head }, 0xffff_ffff);
      device.publish();
    },
  },
  {
    name: "moves the used index one too far",
    reason: "has used 5 of 4 buffers",
    good: 0,
    act: (device) => device.publish(5),
  },
  {
    name: "moves the used index back",
    reason: "has used 65535 of 4 buffers",
    good: 0,
    act: (device) => device.publish(0xffff),
  },
];

for (const { name, reason, good, act } of deviceRows) {
  Deno.test(`shadow: a device that ${name}`, () =>
    withRig((rig) => {
      const { guest, driver, segment, shadow, device, data } = rig;
      offerFour(rig);
      const heads: number[] = [];
      for (let seen; (seen = device.pop()) !== undefined;) {
        heads.push(seen.head);
        for (const { address, length } of seen.writable) segment.bytes(address, length).fill(0x77);
      }
      act(device, heads, rig);
      shadow.giveBack();
      assertStringIncludes(shadow.broken ?? "not broken", reason);
      // What was used before is the guest's, the rest of its memory is as it was.
      assertEquals(shadow.counters.returned, good);
      assertEquals(driver.usedIndex, good);
      for (let i = 0; i < 4; i++) {
        const { length } = i < good ? driver.usedElement(i) : { length: 0 };
        const bytes = guest.bytes(data + 4096 * i, 4096);
        const expected = new Uint8Array(4096).fill(SECRET);
        expected.fill(SHOWN, 0, 100);
        expected.fill(0x77, 1024, 1024 + length);
        assertEquals(bytes, expected);
      }
      // Nothing moves any more, until a stop gives the rest to the next device.
      assertEquals([shadow.forward(), shadow.giveBack()], [false, false]);
      assertEquals(shadow.stop(), good);
      const { place } = segmentPlace(segment);
      const next = shadowOf(driver, place, good);
      move(next);
      assertEquals([next.counters.forwarded, next.broken], [4 - good, undefined]);
    }));
}

function segmentPlace(memory: MockMemory) {
  const offset = memory.offset(SEGMENT_AT);
  const { size } = memory.windows[0];
  return { place: { memory: memory.memory, offset, size, at: SEGMENT_AT } };
}

Deno.test("shadow: what a device writes to rings and descriptors that are not its own is not believed", () =>
  withRig((rig) => {
    const { guest, driver, segment, shadow, device, data } = rig;
    offerFour(rig);
    const heads = [device.pop()!, device.pop()!].map(({ head }) => head);
    // All of the descriptor table and of the available ring.
    const { descriptorAddress, deviceAddress } = shadow.setup;
    segment.bytes(descriptorAddress, deviceAddress - descriptorAddress).fill(0xff);
    for (const head of heads) device.use({ head }, 200);
    device.publish();
    move(shadow);
    assertEquals([shadow.broken, driver.usedIndex], [undefined, 2]);
    assertEquals(guest.bytes(data + 1024 + 200, 1000), new Uint8Array(1000).fill(SECRET));
    // The next buffers are written anew.
    driver.takeUsed();
    driver.takeUsed();
    driver.add([], [{ address: data + 0x8000, length: 300 }]);
    driver.publish();
    move(shadow);
    assertEquals([shadow.broken, shadow.counters.forwarded], [undefined, 5]);
  }));

interface GuestRow {
  readonly name: string;
  readonly reason: string;
  readonly act: (driver: MockDriver, data: number) => void;
}

const guestRows: GuestRow[] = [
  {
    name: "reads from outside its memory",
    reason: "outside of memory",
    act: (driver) => driver.add([{ address: SEGMENT_AT, length: 64 }], []),
  },
  {
    name: "has the device write outside its memory",
    reason: "outside of memory",
    act: (driver, data) => {
      driver.add([{ address: data, length: 64 }], [{
        address: GUEST_AT + GUEST_SIZE - 63,
        length: 64,
      }]);
    },
  },
  {
    name: "names an indirect table outside its memory",
    reason: "outside of memory",
    act: (driver) => {
      driver.desc(0, SEGMENT_AT, 16, INDIRECT);
      driver.offer(0);
    },
  },
  {
    name: "offers a buffer of no bytes",
    reason: "a buffer of 0 bytes",
    act: (driver, data) => driver.add([{ address: data, length: 0 }], []),
  },
  {
    name: "offers a buffer that the pool never has room for",
    reason: `a buffer of ${POOL + 1} bytes`,
    act: (driver, data) =>
      driver.add([{ address: data, length: 4096 }], [{ address: data, length: 1 }]),
  },
  {
    name: "offers a buffer of nearly 2^32 bytes",
    reason: "outside of memory",
    act: (driver, data) => driver.add([{ address: data, length: 0xffff_ffff }], []),
  },
  {
    name: "loops its descriptors",
    reason: "more descriptors",
    act: (driver, data) => {
      driver.desc(0, data, 1, NEXT, 0);
      driver.offer(0);
    },
  },
  {
    name: "moves its available index too far",
    reason: "9 ahead",
    act: (driver) => driver.setAvailableIndex(9),
  },
];

for (const { name, reason, act } of guestRows) {
  Deno.test(`shadow: a guest that ${name}`, () =>
    withRig(({ driver, segment, shadow, device, data }) => {
      act(driver, data);
      if (driver.available !== driver.published) driver.publish();
      move(shadow);
      assertStringIncludes(shadow.broken ?? "not broken", reason);
      assertEquals(device.pop(), undefined);
      // Nothing of the guest's came into the segment.
      const rings = copiedRingsSize(SIZE);
      assert(segment.bytes(SEGMENT_AT + rings, POOL).every((byte) => byte === 0));
    }));
}

/** The buffer in flight has 200 writable bytes at `data`. */
const REWRITES: Readonly<Record<string, (driver: MockDriver, head: number, data: number) => void>> =
  {
    "to an address outside its memory": (driver, head) => driver.desc(head, SEGMENT_AT, 200, WRITE),
    "to a shorter one": (driver, head, data) => driver.desc(head, data, 50, WRITE),
    "to other memory of its own": (driver, head, data) =>
      driver.desc(head, data + 0x2000, 200, WRITE),
    "to one that the device may only read": (driver, head, data) => driver.desc(head, data, 200, 0),
    "to a table in the segment": (driver, head) => driver.desc(head, SEGMENT_AT, 16, INDIRECT),
  };

for (const [name, act] of Object.entries(REWRITES)) {
  Deno.test(`shadow: a guest that rewrites a buffer in flight ${name} changes nothing`, () =>
    withRig(({ guest, driver, segment, shadow, device, data }) => {
      const head = driver.add([], [{ address: data, length: 200 }])!;
      driver.publish();
      move(shadow);
      const seen = device.pop()!;
      segment.bytes(seen.writable[0].address, 200).fill(0x77);
      act(driver, head, data);
      device.use(seen, 200);
      device.publish();
      move(shadow);
      assertEquals(shadow.broken, undefined);
      assertEquals(driver.usedElement(0), { head, length: 200 });
      const expected = new Uint8Array(0x4000).fill(SECRET);
      expected.fill(0x77, 0, 200);
      assertEquals(guest.bytes(data, 0x4000), expected);
    }));
}

Deno.test("shadow: a guest whose buffer has more segments than a chain takes", () =>
  withRig(({ driver, shadow, data }) => {
    for (let i = 0; i < 300; i++) {
      driver.tableDesc(data + 0x4000, i, data, 1, (i < 299 ? NEXT : 0) | WRITE, i + 1);
    }
    driver.desc(0, data + 0x4000, 300 * 16, INDIRECT);
    driver.offer(0);
    driver.publish();
    move(shadow);
    assertStringIncludes(shadow.broken ?? "not broken", "more segments");
  }, 512));

Deno.test("shadow: a guest with more segments out than are remembered waits, and loses nothing", () =>
  withRig(
    ({ guest, driver, segment, shadow, device, data }) => {
      // Buffers of 200 segments of one byte; 4096 segments are remembered.
      const buffers = 24, fit = 20;
      for (let buffer = 0; buffer < buffers; buffer++) {
        const elements = Array.from({ length: 200 }, (_, i) => ({
          address: data + 1024 * buffer + 2 * i,
          length: 1,
        }));
        driver.add([], elements, data + 0x8000 + 4096 * buffer);
      }
      driver.publish();
      do move(shadow); while (shadow.more);
      assertEquals(shadow.counters.forwarded, fit);
      for (let buffer = 0; buffer < buffers; buffer++) {
        const seen = device.pop()!;
        segment.bytes(seen.writable[0].address, 200).fill(0x77);
        device.use(seen, 200);
        assert(device.publish(), "the proxy is called");
        move(shadow);
      }
      assertEquals([driver.usedIndex, shadow.broken], [buffers, undefined]);
      for (let i = 0; i < 1024 * buffers; i++) {
        const expected = i % 2 === 0 && i % 1024 < 400 ? 0x77 : SECRET;
        assertEquals(guest.bytes(data + i, 1)[0], expected);
      }
    },
    256,
    0x4000,
  ));

Deno.test("shadow: what a guest did not hand over is nowhere in the segment", () =>
  withRig((rig) => {
    const { driver, segment, shadow, device, data } = rig;
    offerFour(rig);
    // What the device may write is not for it to read: nothing of it is copied.
    driver.add([], [{ address: data + 0x8000, length: 1000 }]);
    driver.publish();
    move(shadow);
    for (let seen; (seen = device.pop()) !== undefined;) {
      for (const { address, length } of seen.readable) {
        assertEquals(segment.bytes(address, length), new Uint8Array(length).fill(SHOWN));
      }
    }
    assert(!segment.bytes(SEGMENT_AT, segment.windows[0].size).includes(SECRET));
  }));

Deno.test("shadow: a mergeable frame of the largest size comes through the smallest pool, again and again", () => {
  const size = 128, frame = 66_048, frames = 100;
  for (const length of [1536, 2000, 4096]) {
    using guest = new MockMemory([{ at: GUEST_AT, size: 0x100000 }]);
    const { memory: segment, place } = segmentOf(segmentSize(size, 72 << 10));
    using _segment = segment;
    const driver = new MockDriver(guest, { size, eventIndex: true });
    const shadow = shadowOf(driver, place);
    const device = new RawDevice(segment, shadow.setup, true);
    const offer = (slot: number) => driver.add([], [{ address: driver.end + 4096 * slot, length }]);
    for (let slot = 0; slot < size; slot++) offer(slot);
    driver.publish();
    let held: SeenBuffer[] = [];
    for (let received = 0; received < frames;) {
      move(shadow);
      // A device that takes no buffer before the whole frame has room.
      for (let seen; (seen = device.pop()) !== undefined;) held.push(seen);
      const needed = Math.ceil(frame / length);
      assert(held.length >= needed, `stands still after ${received} frames of ${length} bytes`);
      for (const seen of held.slice(0, needed)) device.use(seen, length);
      held = held.slice(needed);
      device.publish();
      received++;
      shadow.giveBack();
      for (let used; (used = driver.takeUsed()) !== undefined;) {
        assertEquals(used.length, length);
        offer(used.head);
      }
      driver.publish();
    }
    assert(shadow.counters.full > frames / 2, "the pool was full");
  }
});
