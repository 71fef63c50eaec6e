/** The life of virtqueues that every device has (devices/queue_device.ts), with the smallest devices there are. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type Batch, QueueDevice, take } from "../../src/devices/queue_device.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { EPOLLIN } from "../../src/linux/reactor.ts";
import { hasFeature, RingFeature } from "../../src/virtio/features.ts";
import { Chain, SEGMENT_BUDGET } from "../../src/virtio/queue/mod.ts";
import { BUFFERS, QueueRig } from "../support/queue_rig.ts";

const NOTHING = new Uint8Array();

/** Completes every buffer with as many bytes as it has, and counts. */
function answerAll(): { batches: number; batch: Batch } {
  const chain = new Chain();
  const result = {
    batches: 0,
    batch: (...[queue, budget]: Parameters<Batch>) => {
      result.batches++;
      for (let i = 0; i < budget; i++) {
        if (!take(queue, chain)) return false;
        queue.complete(chain.head, chain.writable.length);
      }
      return true;
    },
  };
  return result;
}

function rigOf(queues: readonly Batch[], features: readonly number[] = [], anyOrder = false) {
  return new QueueRig(
    (reactor) => new QueueDevice(reactor, { deviceId: 42, features: [3, 40], queues, anyOrder }),
    features,
  );
}

Deno.test("queue device: it says what it is; ring features are added to its own", () => {
  using rig = rigOf([() => false, () => false]);
  const { device } = rig;
  assertEquals([device.deviceId, device.queueCount, device.configSize], [42, 2, 0]);
  const { INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET, ACCESS_PLATFORM } = RingFeature;
  for (const bit of [3, 40, INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET, ACCESS_PLATFORM]) {
    assert(hasFeature(device.features, bit), `feature ${bit}`);
  }
  assert(!device.writeConfig(0, new Uint8Array(1)));
});

for (const features of [[], [RingFeature.EVENT_IDX]]) {
  const name = features.length > 0 ? "EVENT_IDX" : "flags";
  Deno.test(`queue device: a batch publishes once and notifies once: ${name}`, () => {
    const { batch } = answerAll();
    using rig = rigOf([batch], features);
    for (let i = 0; i < 10; i++) rig.offer(0, BUFFERS, NOTHING, 8);
    rig.settle();
    for (let i = 0; i < 10; i++) assertEquals(rig.queues[0].takeUsed()?.length, 8);
    assertEquals(rig.used, [0]);
    // It asked for a kick before it went to sleep.
    rig.queues[0].add([], [{ address: BUFFERS, length: 8 }]);
    assert(rig.queues[0].publish());
  });
}

Deno.test("queue device: notifications that the driver did not want are counted beside those it got", () => {
  for (const features of [[], [RingFeature.EVENT_IDX]]) {
    using rig = rigOf([answerAll().batch], features);
    const counts = () => [rig.device.counters.notified, rig.device.counters.suppressed];
    const queue = rig.queues[0];
    for (let i = 0; i < 3; i++) {
      // By the flag without EVENT_IDX, and with it by an index that is far.
      queue.maskCalls();
      queue.setUsedEvent(1000);
      rig.offer(0, BUFFERS, NOTHING, 8);
      rig.settle();
      assertEquals([counts(), queue.takeUsed()?.length], [[0, i + 1], 8]);
    }
    // A look that finds nothing saves nobody a notification.
    rig.device.available(0);
    rig.settle();
    assertEquals(counts(), [0, 3]);
    queue.wantCalls();
    rig.offer(0, BUFFERS, NOTHING, 8);
    rig.settle();
    assertEquals([counts(), rig.used], [[1, 3], [0]]);
  }
});

Deno.test("queue device: of a queue that gives room a driver is told behind what the next look brings", () => {
  const [receive, transmit] = [answerAll(), answerAll()];
  using bell = createEventFd();
  let answers = 0, most = 64;
  using rig = new QueueRig((reactor) => {
    const device = new QueueDevice(reactor, {
      deviceId: 42,
      queues: [receive.batch, (queue, budget) => {
        // The answer is there as soon as something was sent, and is found with the descriptors.
        if (answers-- > 0) signalEventFd(bell);
        return transmit.batch(queue, Math.min(budget, most));
      }],
      givesRoom: (index) => index === 1,
    });
    reactor.watch(bell, EPOLLIN, () => {
      clearEventFd(bell);
      device.wake(0);
    });
    return device;
  });
  rig.queues[0].add([], [{ address: BUFFERS, length: 8 }]);
  rig.queues[0].publish();
  answers = 1;
  rig.offer(1, BUFFERS, new Uint8Array(8));
  rig.settle();
  assertEquals(rig.used.splice(0), [0, 1], "the answer's buffer first");
  rig.offer(1, BUFFERS, new Uint8Array(8));
  rig.settle();
  assertEquals(rig.used.splice(0), [1], "told also where no answer comes");
  // While there is more to do, as much as a batch did is room that may be lacked.
  most = 1;
  for (let i = 0; i < 3; i++) rig.queues[1].add([{ address: BUFFERS, length: 8 }], []);
  rig.queues[1].publish();
  rig.device.available(1);
  rig.settle();
  assertEquals(rig.used.splice(0), [1, 1, 1]);
  // A queue that stops owes nothing afterwards.
  most = 64;
  rig.offer(1, BUFFERS, new Uint8Array(8));
  rig.reactor.turn();
  assertEquals(rig.used, []);
  rig.device.stopQueue(1);
  assertEquals(rig.used, [1]);
  rig.settle();
  assertEquals(rig.used, [1]);
  rig.reactor.unwatch(bell);
});

Deno.test("queue device: a full budget means another batch, in a turn of its own", () => {
  const { batch } = answerAll();
  const budgets: number[] = [];
  using rig = rigOf([(queue, budget) => {
    budgets.push(budget);
    return batch(queue, Math.min(budget, 16));
  }]);
  for (let i = 0; i < 40; i++) rig.offer(0, BUFFERS, NOTHING, 8);
  rig.settle();
  assertEquals([budgets.length, budgets[0], rig.queues[0].usedIndex], [3, 64, 40]);
});

Deno.test("queue device: buffers of many segments make a batch shorter, and none is left lying", () => {
  // In one table, one after another, 8 bytes each.
  const elements = Array.from({ length: 50 }, (_, i) => ({ address: BUFFERS + 16 * i, length: 8 }));
  const chain = new Chain();
  const segments: number[] = [];
  using rig = rigOf([(queue, budget) => {
    segments.push(0);
    for (let i = 0; i < budget; i++) {
      if (!take(queue, chain)) return false;
      segments[segments.length - 1] += chain.writable.count;
      queue.complete(chain.head, 400);
    }
    return true;
  }], [RingFeature.INDIRECT_DESC]);
  const [driver] = rig.queues;
  for (let i = 0; i < 64; i++) driver.add([], elements, BUFFERS + 0x1000);
  driver.publish();
  rig.device.available(0);
  rig.settle();
  assertEquals(driver.usedIndex, 64);
  assert(Math.max(...segments) < SEGMENT_BUDGET + 50, `${segments}`);
  // Awake no longer than it had something to do, and asleep with a kick asked for.
  assertEquals(segments.length, Math.ceil(64 / Math.ceil(SEGMENT_BUDGET / 50)));
  while (driver.takeUsed() !== undefined);
  driver.add([], elements, BUFFERS + 0x1000);
  assert(driver.publish());
});

Deno.test("queue device: queues are independent, each with its own batch function", () => {
  const [first, second] = [answerAll(), answerAll()];
  using rig = rigOf([first.batch, second.batch]);
  rig.offer(1, BUFFERS, NOTHING, 8);
  rig.settle();
  assertEquals([first.batches, second.batches, rig.used], [0, 1, [1]]);
  rig.device.resume();
  rig.settle();
  assertEquals([first.batches, second.batches], [1, 2], "resume looks at every queue");
});

Deno.test("queue device: memory that may not be touched is not, until resume", () => {
  const { batch } = answerAll();
  using rig = rigOf([batch]);
  rig.touch = false;
  rig.offer(0, BUFFERS, NOTHING, 8);
  const before = rig.memory.bytes(0x4000_0000, 1 << 20).slice();
  rig.settle();
  assertEquals(rig.memory.bytes(0x4000_0000, 1 << 20), before);
  rig.touch = true;
  rig.device.resume();
  rig.settle();
  assertEquals(rig.queues[0].usedIndex, 1);
});

Deno.test("queue device: what breaks a ring is told to the host, and what was done before it is shown", () => {
  const { batch } = answerAll();
  using rig = rigOf([batch]);
  rig.offer(0, BUFFERS, NOTHING, 8);
  rig.queues[0].offer(999);
  rig.queues[0].publish();
  rig.settle();
  assertEquals(rig.queues[0].usedIndex, 1);
  assertStringIncludes(rig.resets.join(), "queue 0: head 999 is not in the descriptor table");
});

Deno.test("queue device: a stopped queue takes back, answers its base, and is not touched", async () => {
  const chain = new Chain();
  let held = 0;
  using rig = rigOf([(queue) => {
    // Answers one, keeps two.
    if (!take(queue, chain)) return false;
    queue.complete(chain.head, 0);
    for (held = 0; held < 2 && take(queue, chain); held++);
    return false;
  }]);
  for (let i = 0; i < 5; i++) rig.offer(0, BUFFERS, NOTHING, 8);
  rig.settle();
  assertEquals([held, await rig.device.stopQueue(0)], [2, 1]);
  const before = rig.memory.bytes(0x4000_0000, 1 << 20).slice();
  rig.device.available(0);
  rig.device.resume();
  rig.settle();
  assertEquals(rig.memory.bytes(0x4000_0000, 1 << 20), before);
  assertEquals(await rig.device.stopQueue(0), 0, "there is none");
  rig.device.startQueue(0, { ...rig.queues[0].config, base: 1 });
  rig.device.available(0);
  rig.settle();
  assertEquals(rig.queues[0].usedIndex, 2, "a successor goes on");
});

Deno.test("queue device: a queue that cannot be opened is refused with the reason", () => {
  using rig = rigOf([() => false]);
  const setup = { ...rig.queues[0].config, descriptorAddress: 0x10 };
  assertStringIncludes(String(rig.device.startQueue(0, setup)), "is not inside one memory window");
});

Deno.test("queue device: with anyOrder buffers are kept over batches and come back in any order", () => {
  const chain = new Chain();
  const kept: number[] = [];
  const done: number[] = [];
  const keep: Batch = (queue, budget) => {
    for (let head = done.shift(); head !== undefined; head = done.shift()) queue.complete(head, 8);
    for (; budget > 0 && take(queue, chain); budget--) kept.push(chain.head);
    return budget === 0;
  };
  using rig = rigOf([keep], [], true);
  const finish = (head: number) => {
    done.push(head);
    rig.device.wake(0);
  };
  assert(rig.device.outOfOrder);
  const heads = [0, 1, 2].map((i) => rig.offer(0, BUFFERS + 8 * i, NOTHING, 8)!);
  rig.settle();
  assertEquals([kept, rig.queues[0].usedIndex], [heads, 0]);
  finish(heads[2]);
  finish(heads[0]);
  rig.settle();
  assertEquals([rig.queues[0].takeUsed()?.head, rig.queues[0].takeUsed()?.head], [
    heads[2],
    heads[0],
  ]);
  assertEquals(rig.used, [0], "one notification for both");
});
