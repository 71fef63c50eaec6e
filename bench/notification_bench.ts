/**
 * What a notification costs the device side, without its doorbell: EVENT_AVAIL from the slot to the device, which used buffers, and
 * EVENT_USED into the slot, with the counters in a file as in a process. Run: deno run -A bench/notification_bench.ts
 */

import { codecFor } from "../src/message/codecs.ts";
import { type Fields, Kind, Message, QUEUE_ENABLED } from "../src/message/message.ts";
import { openCounterFile } from "../src/observe/counter_file.ts";
import { createLog } from "../src/observe/log.ts";
import { Reactor, type Task } from "../src/linux/reactor.ts";
import { DeviceSide } from "../src/transport/device_side.ts";
import { FakeDevice } from "../tests/support/fake_device.ts";
import { SlotBus } from "../tests/support/slot_bus.ts";

const EVENTS = 200_000;
const ROUNDS = 60;

/** Runs tasks when told, without epoll. */
class DirectReactor extends Reactor {
  #task: Task | undefined;

  override schedule(task: Task): void {
    this.#task = task;
  }

  runTasks(): void {
    while (this.#task?.run());
  }
}

/** Whose events go nowhere. */
class Sink extends SlotBus {
  sent = 0;

  override send(): void {
    this.sent++;
  }
}

class UsingDevice extends FakeDevice {
  override available(index: number): void {
    this.host.used(index);
  }
}

const directory = Deno.makeTempDirSync({ prefix: "vmsg-test-" });
try {
  using _file = openCounterFile("device", [directory]);
  using reactor = new DirectReactor();
  const bus = new Sink("device", reactor, 64);
  const codec = codecFor("v1");
  const log = createLog("bench", "error", () => {});
  using side = new DeviceSide({ reactor, bus, codec, log, confined: false, quota: undefined });
  side.add(0, new UsingDevice());
  side.open();
  const message = new Message();
  const say = (kind: Kind, fields: Fields) => {
    message.reset(kind, false);
    message.say(fields);
    const slot = new DataView(new ArrayBuffer(64));
    codec.encode(message, slot, 0);
    side.received(slot);
    reactor.runTasks();
    return slot;
  };
  say(Kind.GET_DEVICE_INFO, {});
  for (const status of [1, 3]) say(Kind.SET_DEVICE_STATUS, { status });
  say(Kind.SET_DRIVER_FEATURES, { count: 2, words: [0, 1] });
  say(Kind.SET_DEVICE_STATUS, { status: 11 });
  say(Kind.SET_VQUEUE, { index: 1, flags: QUEUE_ENABLED, queueSize: 64, descriptorAddress: 4096 });
  say(Kind.SET_DEVICE_STATUS, { status: 15 });
  const event = say(Kind.EVENT_AVAIL, { index: 1 });
  const before = bus.sent;
  let best = Infinity;
  for (let round = 0; round < ROUNDS; round++) {
    const startMs = performance.now();
    for (let n = 0; n < EVENTS; n++) {
      side.received(event);
      reactor.runTasks();
    }
    best = Math.min(best, (performance.now() - startMs) / EVENTS);
  }
  const sent = bus.sent - before;
  if (sent !== EVENTS * ROUNDS) throw new Error(`${sent} EVENT_USED of ${EVENTS * ROUNDS}`);
  console.log(`${(best * 1e6).toFixed(1)} ns for an EVENT_AVAIL and an EVENT_USED`);
} finally {
  Deno.removeSync(directory, { recursive: true });
}
