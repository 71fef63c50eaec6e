/**
 * Property tests of a shadow queue between a guest (the mock driver) and a device: random traffic, and each
 * of the three acts only when it was notified, so that a lost notification ends the run early. What every
 * buffer holds is compared both ways with a model that is a list, also across stops. The seed is
 * printed; SEED=... repeats a run.
 */

import { assert, assertEquals } from "@std/assert";
import { MockDriver, MockMemory, Random } from "../support/mock_driver.ts";
import {
  bytesAt,
  GUEST_AT,
  InOrderDevice,
  RawDevice,
  segmentOf,
  segmentSize,
  shadowOf,
  write,
} from "../support/shadow_rig.ts";
import { LARGEST, type Setting, SLOT_SIZE, Traffic } from "../support/shadow_traffic.ts";

for (const eventIndex of [false, true]) {
  for (const inOrder of [false, true]) {
    const name = `${eventIndex ? "EVENT_IDX" : "flags"}, device ${inOrder ? "in" : "out of"} order`;
    Deno.test(`shadow: random traffic arrives whole, both ways: ${name}`, () => {
      const seed = Random.seed();
      console.log(`SEED=${seed}`);
      const random = new Random(seed);
      let full = 0, stops = 0, notifications = 0;
      // More of them where a seed has it that something hardly happens.
      for (let round = 0; round < 10 || (round < 100 && (full <= 100 || stops <= 3)); round++) {
        // By turns, so that no seed leaves a case out.
        const size = [4, 16, 256][Math.floor(round / 3) % 3]!;
        const largest = random.pick([1600, LARGEST]);
        const setting: Setting = {
          eventIndex,
          inOrder,
          indirect: random.chance(0.5),
          size,
          largest,
          start: random.pick([0, 65530, 32760]),
          stops: round % 2 === 1,
        };
        using memory = new MockMemory([
          { at: GUEST_AT, size: 0x4000 },
          { at: GUEST_AT + 0x4000, size: SLOT_SIZE * size },
        ]);
        // As small as can be, so that the pool is full nearly always; or never.
        const pool = [largest + 64, 2 * largest, 0x100000][round % 3]! & ~63;
        const segment = segmentOf(segmentSize(size, pool));
        using _memory = segment.memory;
        const traffic = new Traffic(memory, setting, random, {
          open: (driver, base) => {
            const shadow = shadowOf(driver, segment.place, base);
            const Device = inOrder ? InOrderDevice : RawDevice;
            return { shadow, device: new Device(segment.memory, shadow.setup, eventIndex) };
          },
          read: (elements) => bytesAt(segment.memory, elements),
          write: (elements, bytes) => write(segment.memory, elements, bytes),
        });
        traffic.run(600);
        memory.checkGuards();
        segment.memory.checkGuards();
        full += traffic.full;
        stops += traffic.stops;
        notifications += traffic.notifications;
      }
      assert(full > 100 && stops > 3, `the test tests something: ${full} full, ${stops} stops`);
      assert(notifications > 0);
    });
  }
}

Deno.test("shadow: a full ring is forwarded whole, in batches, with one kick and one call", () => {
  const size = 256;
  using memory = new MockMemory([{ at: GUEST_AT, size: 0x100000 }]);
  const { memory: segment, place } = segmentOf(segmentSize(size, 0x100000));
  using _segment = segment;
  const driver = new MockDriver(memory, { size, eventIndex: true });
  const shadow = shadowOf(driver, place);
  const device = new RawDevice(segment, shadow.setup, true);
  for (let i = 0; i < size; i++) driver.add([{ address: driver.end + 64 * i, length: 64 }], []);
  let kicks = Number(driver.publish()), calls = 0, batches = 0;
  do {
    if (shadow.giveBack()) calls++;
    // The device is awake since the first kick and says nothing while it works.
    if (shadow.forward()) kicks++;
    batches++;
  } while (shadow.more);
  assertEquals([shadow.counters.forwarded, kicks, calls], [size, 2, 0]);
  assert(batches > 2, `${batches} batches`);
  for (let seen; (seen = device.pop()) !== undefined;) {
    device.use(seen, 0);
    if (device.publish()) calls++;
  }
  assertEquals(calls, 1);
  assert(shadow.giveBack(), "the guest is called");
  assertEquals(driver.usedIndex, size);
});
