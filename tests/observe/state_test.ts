import { assertEquals } from "@std/assert";
import { MONOTONIC } from "../../src/linux/clock.ts";
import { CounterMemory, countIn } from "../../src/observe/counters.ts";
import { DeviceState, readState, RequestState } from "../../src/observe/state.ts";
import { readCounters } from "../../src/observe/read_counters.ts";
import { withDirectory } from "../support/leaks.ts";

/** Where a queue lies, high and low words of all kinds. */
const SETUP = {
  size: 256,
  descriptorAddress: 0x1_4000_0000,
  driverAddress: 0xffff_ffff,
  deviceAddress: 2 ** 52,
};

/** What a file says after each step. */
async function states(
  steps: (look: () => ReturnType<typeof readState>) => void,
): Promise<void> {
  await withDirectory((directory) => {
    const memory = new CounterMemory(new ArrayBuffer(16384), "device", 1, 0);
    countIn(memory);
    try {
      steps(() => {
        Deno.writeFileSync(`${directory}/device.1`, new Uint8Array(memory.buffer));
        return readState(readCounters(`${directory}/device.1`).groups);
      });
    } finally {
      countIn(undefined);
    }
  });
}

Deno.test("state: status, features and queues as they are, also where they became less", async () => {
  await states((look) => {
    const clock = { now: () => 7.5 };
    using state = new DeviceState(10, 1, 2, clock);
    // Its name begins as that of the other one does.
    using _other = new DeviceState(1, 2, 1, MONOTONIC);
    state.device(15, new Uint32Array([0xffff_ffff, 1]));
    state.queue(1, true, SETUP);
    for (let n = 0; n < 2; n++) state.kicked(1);
    state.called(1);
    const [other, device] = look().devices;
    assertEquals(
      [device!.number, device!.deviceId, device!.status, device!.features, device!.queueCount],
      [10, 1, 15, [0xffff_ffff, 1], 2],
    );
    const more = { sinceMs: 7, kicks: 2, calls: 1 };
    assertEquals(device!.queues[1], { index: 1, isEnabled: true, ...more, ...SETUP });
    assertEquals([other!.number, other!.status, other!.queues.length], [1, 0, 1]);
    state.unseen(1);
    assertEquals(look().devices[1]!.queues[1]!.kicks, undefined);
    const low = { size: 2, descriptorAddress: 16, driverAddress: 32, deviceAddress: 48 };
    state.queue(1, false, low);
    state.device(0, new Uint32Array(2));
    const [, after] = look().devices;
    const none = { sinceMs: 7, kicks: 0, calls: 0 };
    assertEquals(after!.queues[1], { index: 1, isEnabled: false, ...none, ...low });
    assertEquals([after!.status, after!.features], [0, [0, 0]]);
  });
});

Deno.test("state: a device that is gone has no state, and writes none of another's", async () => {
  await states((look) => {
    const gone = new DeviceState(0, 1, 1, MONOTONIC);
    gone[Symbol.dispose]();
    gone[Symbol.dispose]();
    assertEquals(look().devices, []);
    using _next = new DeviceState(3, 4, 1, MONOTONIC);
    gone.device(15, new Uint32Array(2));
    gone.queue(0, true, SETUP);
    const [device, ...more] = look().devices;
    assertEquals(more, []);
    assertEquals([device!.number, device!.status, device!.queues[0]!.size], [3, 0, 0]);
  });
});

Deno.test("state: a process tells of 32 queues, again and again", async () => {
  await states((look) => {
    for (let round = 0; round < 3; round++) {
      using _large = new DeviceState(0, 1, 100, MONOTONIC);
      using small = new DeviceState(1, 1, 2, MONOTONIC);
      small.queue(0, true, SETUP);
      const devices = look().devices;
      assertEquals(devices.map(({ queues }) => queues.length), [32, 0]);
      assertEquals(devices.map(({ queueCount }) => queueCount), [100, 2]);
    }
  });
});

Deno.test("state: the request that has waited longest", async () => {
  await states((look) => {
    const requests = new RequestState();
    assertEquals(look().requests[0]!.open, 0);
    requests.open(2, { kind: 5, device: 3, sentMs: 2 ** 33 + 0.5 });
    assertEquals(look().requests, [{ open: 2, kind: 5, device: 3, sinceMs: 2 ** 33 }]);
    requests.open(0);
    assertEquals(look().requests[0]!.open, 0);
  });
});
