/**
 * The registers of virtio-mmio, row by row of VIRTIO 1.2 section 4.2.2, with a device that answers at once, one that
 * takes its time, and a driver that means harm.
 */

import { assert, assertEquals } from "@std/assert";
import {
  freshState,
  type MmioDevice,
  Register as R,
  Registers,
  REGISTERS_SIZE,
  type RegisterState,
} from "../../../src/drivers/mmio/registers.ts";
import { RingFeature, Status } from "../../../src/virtio/features.ts";

const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, DEVICE_NEEDS_RESET, FAILED } = Status;
const AGREED = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const VERSION_1 = 1;
const RING_RESET = 1 << (RingFeature.RING_RESET - 32);

/** A device with 3 queues and 10 bytes of configuration; what is asked of it is written down. */
class Device implements MmioDevice {
  readonly asked: string[] = [];
  readonly config = Uint8Array.from({ length: 10 }, (_, i) => 0x10 + i);
  features = Uint32Array.of(0x8000_0020, VERSION_1 | RING_RESET);
  refuses = false;
  info = () => ({ deviceId: 1, vendorId: 0x1af4, configSize: 10, maxQueues: 3 });
  offered = () => this.features;
  maxQueueSize = (queue: number) => [256, 128, 64][queue]!;
  readConfig = (offset: number, length: number) => this.config.slice(offset, offset + length);
  writeConfig(offset: number, bytes: Uint8Array) {
    assert(offset >= 0 && offset + bytes.length <= 10);
    this.config.set(bytes, offset);
  }
  agree(features: Uint32Array) {
    this.asked.push(`agree ${[...features].map((word) => word.toString(16))}`);
    return !this.refuses;
  }
  changed(): void | Promise<void> {
    this.asked.push("changed");
  }
  reset(): void | Promise<void> {
    this.asked.push("reset");
  }
  notify = (queue: number) => void this.asked.push(`notify ${queue}`);
  interrupt = (asserted: boolean) => void this.asked.push(asserted ? "raise" : "lower");
  keep = () => {};
  complain = (line: string) => void this.asked.push(`complains: ${line}`);
}

function open(device = new Device(), state?: RegisterState) {
  const registers = new Registers(device, state);
  return {
    device,
    registers,
    read: (offset: number) => registers.read(offset, 4),
    write: (offset: number, value: number) => registers.write(offset, 4, value),
    /** What was asked of the device since the last time. */
    asked: () => device.asked.splice(0),
  };
}

/** As far as FEATURES_OK, with the first queue set up. */
function agreed(device = new Device()) {
  const rig = open(device);
  const { write } = rig;
  write(R.STATUS, ACKNOWLEDGE);
  write(R.STATUS, ACKNOWLEDGE | DRIVER);
  write(R.DRIVER_FEATURES_SEL, 1);
  write(R.DRIVER_FEATURES, VERSION_1 | RING_RESET);
  write(R.STATUS, AGREED);
  write(R.QUEUE_SEL, 0);
  write(R.QUEUE_NUM, 128);
  write(R.QUEUE_DESC_LOW, 0x1000);
  write(R.QUEUE_DRIVER_LOW, 0x2000);
  write(R.QUEUE_DEVICE_LOW, 0x3000);
  rig.asked();
  return rig;
}

/** At work. */
function running(device = new Device()) {
  const rig = agreed(device);
  rig.write(R.QUEUE_READY, 1);
  rig.write(R.STATUS, AGREED | DRIVER_OK);
  rig.asked();
  return rig;
}

Deno.test("MagicValue, Version, DeviceID, VendorID", () => {
  const { read } = open();
  const values = [R.MAGIC_VALUE, R.VERSION, R.DEVICE_ID, R.VENDOR_ID].map(read);
  assertEquals(values, [0x7472_6976, 2, 1, 0x1af4]);
});

Deno.test("DeviceFeatures by DeviceFeaturesSel, beyond the device's words 0", () => {
  const { read, write } = open();
  const words = [0, 1, 2, 63, 0xffff_ffff].map((word) => {
    write(R.DEVICE_FEATURES_SEL, word);
    return read(R.DEVICE_FEATURES);
  });
  assertEquals(words, [0x8000_0020, VERSION_1 | RING_RESET, 0, 0, 0]);
});

Deno.test("DriverFeatures by DriverFeaturesSel: what is agreed on, and what FEATURES_OK says", () => {
  const { read, write, asked, registers, device } = open();
  write(R.STATUS, ACKNOWLEDGE | DRIVER);
  write(R.DRIVER_FEATURES_SEL, 0);
  write(R.DRIVER_FEATURES, 0x8000_0000);
  write(R.DRIVER_FEATURES_SEL, 1);
  write(R.DRIVER_FEATURES, VERSION_1);
  assertEquals(registers.features, undefined);
  write(R.STATUS, AGREED);
  assertEquals(asked(), ["agree 80000000,1"]);
  assertEquals([read(R.STATUS), [...registers.features!]], [AGREED, [0x8000_0000, 1]]);
  // What was agreed on stays.
  write(R.DRIVER_FEATURES, 0);
  assertEquals([...registers.features!], [0x8000_0000, 1]);

  write(R.STATUS, 0);
  device.refuses = true;
  write(R.STATUS, AGREED);
  assertEquals(read(R.STATUS), ACKNOWLEDGE | DRIVER);
  assertEquals(registers.features, undefined);
});

Deno.test("features that were not offered: FEATURES_OK is refused, nobody is asked", () => {
  for (const [word, value] of [[0, 1], [1, 2], [2, 1], [63, 1]] as const) {
    const { read, write, asked } = open();
    write(R.DRIVER_FEATURES_SEL, word);
    write(R.DRIVER_FEATURES, value);
    write(R.STATUS, AGREED);
    assertEquals(read(R.STATUS), ACKNOWLEDGE | DRIVER);
    assertEquals(asked(), ["complains: the driver accepts features that it was not offered"]);
  }
  const { write, asked } = open();
  write(R.DRIVER_FEATURES_SEL, 0xffff_ffff);
  write(R.DRIVER_FEATURES, 1);
  assertEquals(asked(), ["complains: the driver accepts features that nobody has"]);
});

Deno.test("QueueNumMax by QueueSel, 0 where there is no queue", () => {
  const { read, write } = open();
  const sizes = [0, 1, 2, 3, 1024, 0xffff_ffff].map((queue) => {
    write(R.QUEUE_SEL, queue);
    return read(R.QUEUE_NUM_MAX);
  });
  assertEquals(sizes, [256, 128, 64, 0, 0, 0]);
});

Deno.test("QueueNum and the addresses, low and high, of the selected queue", () => {
  const { write, registers: { state } } = open();
  write(R.QUEUE_SEL, 1);
  write(R.QUEUE_NUM, 64);
  const areas = [
    [R.QUEUE_DESC_LOW, R.QUEUE_DESC_HIGH],
    [R.QUEUE_DRIVER_LOW, R.QUEUE_DRIVER_HIGH],
    [R.QUEUE_DEVICE_LOW, R.QUEUE_DEVICE_HIGH],
  ] as const;
  // High first, low first, twice.
  for (const [index, [low, high]] of areas.entries()) {
    write(high, 0x5 + index);
    write(low, 0xffff_f000);
    write(low, 0x8000_1000);
  }
  const at = (high: number) => high * 2 ** 32 + 0x8000_1000;
  const described = { size: 64, ready: false, descriptor: at(5), driver: at(6), device: at(7) };
  assertEquals(state.queues[1], described);
  assertEquals(state.queues[0], { size: 0, ready: false, descriptor: 0, driver: 0, device: 0 });
});

Deno.test("QueueReady: before DRIVER_OK nobody is asked, after it the device is brought there", () => {
  const { read, write, asked, registers } = agreed();
  assertEquals(read(R.QUEUE_READY), 0);
  write(R.QUEUE_READY, 1);
  assertEquals([read(R.QUEUE_READY), asked(), registers.mayRun], [1, [], false]);
  // What is ready keeps its place.
  write(R.QUEUE_NUM, 2);
  write(R.QUEUE_DESC_LOW, 0xdead_0000);
  assertEquals([registers.state.queues[0]!.size, registers.state.queues[0]!.descriptor], [
    128,
    0x1000,
  ]);
  write(R.STATUS, AGREED | DRIVER_OK);
  assertEquals([asked(), registers.mayRun], [["changed"], true]);
  write(R.QUEUE_READY, 0);
  assertEquals([read(R.QUEUE_READY), asked()], [0, ["changed"]]);
  write(R.QUEUE_READY, 0);
  write(R.QUEUE_READY, 2);
  assertEquals([read(R.QUEUE_READY), asked()], [0, []]);
});

Deno.test("QueueReady: sizes that the queue has not", () => {
  for (const size of [0, 257, 0xffff_ffff]) {
    const { read, write, asked } = agreed();
    write(R.QUEUE_NUM, size);
    write(R.QUEUE_READY, 1);
    assertEquals(read(R.QUEUE_READY), 0);
    assertEquals(asked(), [`complains: queue 0 has 1 to 256 entries, the driver wants ${size}`]);
  }
  const { read, write } = agreed();
  write(R.QUEUE_SEL, 3);
  write(R.QUEUE_NUM, 1);
  write(R.QUEUE_READY, 1);
  assertEquals(read(R.QUEUE_READY), 0, "a queue that is not there");
});

Deno.test("QueueNotify", () => {
  const { write, asked } = running();
  write(R.QUEUE_NOTIFY, 1);
  write(R.QUEUE_NOTIFY, 0xffff_ffff);
  assertEquals(asked(), ["notify 1", `notify ${0xffff_ffff}`]);
});

Deno.test("InterruptStatus and InterruptACK: an edge for what is new, and for what is left", () => {
  const { read, write, asked, registers } = running();
  registers.used();
  registers.used();
  assertEquals([read(R.INTERRUPT_STATUS), asked()], [1, ["raise"]]);
  registers.configChanged();
  assertEquals([read(R.INTERRUPT_STATUS), asked()], [3, []]);
  write(R.INTERRUPT_ACK, 1);
  assertEquals([read(R.INTERRUPT_STATUS), asked()], [2, ["lower", "raise"]]);
  write(R.INTERRUPT_ACK, 0xffff_fffe);
  assertEquals([read(R.INTERRUPT_STATUS), asked()], [0, ["lower"]]);
  write(R.INTERRUPT_ACK, 3);
  assertEquals(asked(), [], "there was none");
});

Deno.test("Status: bits are set and not cleared, NEEDS_RESET is the device's", () => {
  const { read, write, registers } = running();
  write(R.STATUS, ACKNOWLEDGE);
  assertEquals(read(R.STATUS), AGREED | DRIVER_OK);
  write(R.STATUS, AGREED | DRIVER_OK | DEVICE_NEEDS_RESET | 0xffff_ff00);
  assertEquals(read(R.STATUS), AGREED | DRIVER_OK);
  registers.needsReset();
  assertEquals(read(R.STATUS), AGREED | DRIVER_OK | DEVICE_NEEDS_RESET);
  assertEquals([read(R.INTERRUPT_STATUS), registers.mayRun], [2, false]);
  const failed = running();
  failed.write(R.STATUS, AGREED | DRIVER_OK | FAILED);
  assertEquals(failed.registers.mayRun, false);
});

Deno.test("Status 0: InterruptStatus, QueueReady, features are cleared, the generation goes on", () => {
  const { read, write, asked, registers } = running();
  registers.configChanged();
  registers.used();
  const generation = read(R.CONFIG_GENERATION);
  asked();
  write(R.STATUS, 0);
  assertEquals(asked(), ["lower", "reset"]);
  const shown = [R.STATUS, R.INTERRUPT_STATUS, R.QUEUE_READY].map(read);
  assertEquals(shown, [0, 0, 0]);
  assertEquals([registers.features, registers.mayRun], [undefined, false]);
  assertEquals(registers.state, { ...freshState(), generation: generation as number });
  registers.needsReset();
  assertEquals(read(R.STATUS), 0, "there is nothing to reset");
});

Deno.test("DRIVER_OK without FEATURES_OK runs nothing", () => {
  const { write, asked, registers } = open();
  write(R.STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
  assertEquals([registers.mayRun, asked()], [false, []]);
});

Deno.test("shared memory regions: none, so -1 long and at -1", () => {
  const { read, write } = open();
  for (const region of [0, 1, 0xffff_ffff]) {
    write(R.SHM_SEL, region);
    const words = [R.SHM_LEN_LOW, R.SHM_LEN_HIGH, R.SHM_BASE_LOW, R.SHM_BASE_HIGH].map(read);
    assertEquals(words, Array(4).fill(0xffff_ffff));
  }
});

Deno.test("QueueReset: over when its write is answered, and only if it was agreed on", () => {
  const { read, write, asked } = running();
  assertEquals(read(R.QUEUE_RESET), 0);
  write(R.QUEUE_RESET, 1);
  assertEquals([read(R.QUEUE_RESET), read(R.QUEUE_READY), asked()], [0, 0, ["changed"]]);
  write(R.QUEUE_NUM, 64);
  write(R.QUEUE_READY, 1);
  assertEquals([read(R.QUEUE_READY), asked()], [1, ["changed"]], "enabled again");

  const device = new Device();
  device.features = Uint32Array.of(0, VERSION_1);
  const without = open(device);
  without.write(R.STATUS, AGREED);
  without.write(R.QUEUE_NUM, 64);
  without.write(R.QUEUE_READY, 1);
  without.write(R.QUEUE_RESET, 1);
  assertEquals(without.read(R.QUEUE_READY), 1);
});

Deno.test("ConfigGeneration changes with the configuration", () => {
  const { read, registers, asked } = open();
  const before = read(R.CONFIG_GENERATION);
  registers.configChanged();
  assert(read(R.CONFIG_GENERATION) !== before);
  assertEquals(asked(), [], "no interrupt before DRIVER_OK");
});

Deno.test("Config: 1, 2 and 4 bytes at any place, 0 behind the end", () => {
  const { registers, device } = open();
  assertEquals(registers.read(0x100, 1), 0x10);
  assertEquals(registers.read(0x101, 2), 0x1211);
  assertEquals(registers.read(0x103, 4), 0x1615_1413);
  assertEquals(registers.read(0x108, 4), 0x1918, "half of it is there");
  assertEquals([registers.read(0x10a, 4), registers.read(0x1ff, 1), registers.read(0x100, 8)], [
    0,
    0,
    0,
  ]);
  registers.write(0x100, 4, 0x8765_4321);
  registers.write(0x104, 1, 0xff);
  registers.write(0x106, 2, 0xaabb);
  assertEquals([...device.config], [0x21, 0x43, 0x65, 0x87, 0xff, 0x15, 0xbb, 0xaa, 0x18, 0x19]);
  const before = [...device.config];
  // Not half of it.
  registers.write(0x108, 4, 0);
  registers.write(0x100, 8, 0);
  assertEquals([...device.config], before);
});

Deno.test("control registers have 32 bits: other accesses, other places, other directions do nothing", () => {
  const { registers, asked } = running();
  const before = JSON.stringify(registers.state);
  for (const size of [1, 2, 8]) {
    for (let offset = 0; offset < R.CONFIG; offset++) {
      assertEquals(registers.read(offset, size), 0);
      registers.write(offset, size, 0);
    }
  }
  const known: number[] = Object.values(R);
  for (let offset = 0; offset < R.CONFIG; offset++) {
    if (known.includes(offset)) continue;
    assertEquals(registers.read(offset, 4), 0, `0x${offset.toString(16)}`);
    registers.write(offset, 4, 0);
  }
  const readOnly = [
    ...[R.MAGIC_VALUE, R.VERSION, R.DEVICE_ID, R.VENDOR_ID, R.DEVICE_FEATURES, R.QUEUE_NUM_MAX],
    ...[R.INTERRUPT_STATUS, R.CONFIG_GENERATION, R.SHM_LEN_LOW, R.SHM_BASE_HIGH],
  ];
  for (const offset of readOnly) registers.write(offset, 4, 0xffff_ffff);
  const writeOnly = [
    ...[R.DEVICE_FEATURES_SEL, R.DRIVER_FEATURES, R.DRIVER_FEATURES_SEL, R.QUEUE_SEL, R.QUEUE_NUM],
    ...[R.QUEUE_NOTIFY, R.INTERRUPT_ACK, R.QUEUE_DESC_LOW, R.QUEUE_DEVICE_HIGH, R.SHM_SEL],
  ];
  for (const offset of writeOnly) assertEquals(registers.read(offset, 4), 0);
  assertEquals([JSON.stringify(registers.state), asked()], [before, []]);
});

Deno.test("every register with every width and value: numbers are answered, and little is kept", () => {
  const values = [0, 1, 2, 3, 0x3ff, 0x400, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
  const { registers, asked } = open();
  for (const first of values) {
    for (let offset = 0; offset < REGISTERS_SIZE; offset++) {
      for (const size of [1, 2, 4, 8]) {
        for (const value of values) registers.write(offset, size, value);
        registers.write(R.QUEUE_SEL, 4, first);
        const value = registers.read(offset, size);
        assert(Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 32);
      }
    }
    asked();
  }
  assert(registers.state.queues.length <= 1024);
  assert(JSON.stringify(registers.state).length < 200_000);
});

Deno.test("a device that takes its time: accesses are answered one after another", async () => {
  const device = new Device();
  const waiting: (() => void)[] = [];
  device.reset = () => new Promise((resolve) => waiting.push(resolve));
  const rig = running(device);
  const done: string[] = [];
  const reset = follow(rig.write(R.STATUS, 0), "reset", done);
  const read = follow(rig.read(R.STATUS), "read", done);
  await Promise.resolve();
  assertEquals(done, []);
  waiting.shift()!();
  await Promise.all([reset, read]);
  assertEquals(done, ["reset", "read"]);
  assertEquals(rig.read(R.MAGIC_VALUE), 0x7472_6976, "nothing is waited for any more");
});

function follow(answer: unknown, name: string, done: string[]): Promise<void> {
  if (!(answer instanceof Promise)) throw new Error(`${name} was answered at once`);
  return answer.then(() => void done.push(name));
}

Deno.test("a device whose answer never comes: what is behind it is not answered either", async () => {
  const device = new Device();
  device.changed = () => Promise.reject(new Error("over"));
  const rig = agreed(device);
  rig.write(R.QUEUE_READY, 1);
  const results = await Promise.allSettled([
    rig.write(R.STATUS, AGREED | DRIVER_OK),
    rig.read(R.STATUS),
  ]);
  assertEquals(results.map(({ status }) => status), ["rejected", "rejected"]);
});

Deno.test("registers that another process has left go on", () => {
  const first = running();
  const left: RegisterState = JSON.parse(JSON.stringify(first.registers.state));
  const { registers, read, write, asked } = open(new Device(), left);
  assertEquals([registers.mayRun, read(R.STATUS), read(R.QUEUE_READY)], [
    true,
    AGREED | DRIVER_OK,
    1,
  ]);
  assertEquals([...registers.features!], [0, VERSION_1 | RING_RESET]);
  registers.used();
  assertEquals(asked(), ["raise"]);
  write(R.STATUS, 0);
  assertEquals(read(R.STATUS), 0);
});
