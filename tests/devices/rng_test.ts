/** The entropy device against the mock driver. */

import { assert, assertEquals } from "@std/assert";
import { rngDevice } from "../../src/devices/rng.ts";
import { RingFeature } from "../../src/virtio/features.ts";
import { BUFFERS, QueueRig } from "../support/queue_rig.ts";

const NOTHING = new Uint8Array();

/** Chance alone leaves so many zeros among random bytes once in 10^20 runs. */
function assertRandom(bytes: Uint8Array): void {
  const zeros = bytes.filter((byte) => byte === 0).length;
  assert(zeros <= 10 + bytes.length / 32, `${zeros} zeros in ${bytes.length} bytes`);
}

Deno.test("rng: one queue, no configuration, device id 4", () => {
  using rig = new QueueRig(rngDevice);
  const { deviceId, queueCount, configSize } = rig.device;
  assertEquals([deviceId, queueCount, configSize], [4, 1, 0]);
});

Deno.test("rng: buffers are filled to their end, and nothing beside them", () => {
  using rig = new QueueRig(rngDevice, [RingFeature.EVENT_IDX]);
  for (let i = 0; i < 4; i++) rig.offer(0, BUFFERS + 256 * i, NOTHING, 64);
  rig.settle();
  const seen = new Set<string>();
  for (let i = 0; i < 4; i++) {
    assertEquals(rig.queues[0].takeUsed()?.length, 64);
    const bytes = rig.memory.bytes(BUFFERS + 256 * i, 256);
    assertRandom(bytes.subarray(0, 64));
    assertEquals(bytes.subarray(64), new Uint8Array(192));
    seen.add(bytes.toString());
  }
  assertEquals([seen.size, rig.used, rig.resets], [4, [0], []]);
});

Deno.test("rng: a buffer in pieces is filled piece by piece; what is to be read is left alone", () => {
  using rig = new QueueRig(rngDevice, [RingFeature.INDIRECT_DESC]);
  const pieces = [0, 1, 2].map((i) => ({ address: BUFFERS + 0x1000 * i, length: 100 + i }));
  rig.queues[0].add([{ address: BUFFERS + 0x8000, length: 16 }], pieces, BUFFERS + 0x9000);
  rig.queues[0].publish();
  rig.device.available(0);
  rig.settle();
  assertEquals(rig.queues[0].takeUsed()?.length, 303);
  for (const { address, length } of pieces) {
    assertRandom(rig.memory.bytes(address, length));
    assertEquals(rig.memory.bytes(address + length, 8), new Uint8Array(8));
  }
  assertEquals(rig.memory.bytes(BUFFERS + 0x8000, 16), new Uint8Array(16));
});

Deno.test("rng: a large buffer gets 4096 bytes, one without room none", () => {
  using rig = new QueueRig(rngDevice);
  rig.offer(0, BUFFERS, NOTHING, 0x1_0000);
  rig.offer(0, BUFFERS + 0x2_0000, new Uint8Array(8));
  rig.settle();
  assertEquals(rig.queues[0].takeUsed()?.length, 4096);
  assertRandom(rig.memory.bytes(BUFFERS, 4096));
  assertEquals(rig.memory.bytes(BUFFERS + 4096, 64), new Uint8Array(64));
  assertEquals(rig.queues[0].takeUsed()?.length, 0);
});
