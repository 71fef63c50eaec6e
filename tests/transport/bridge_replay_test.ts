/**
 * Slots larger than an SPSC queue's, as on the kernel's bridge; and the session that was recorded there, played to our
 * device side: it must answer as the recorded process did.
 */

import { assertEquals } from "@std/assert";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { BRIDGE_SLOT, type Frame, readFrames } from "../message/bridge_kernel.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";
import { slotBuses } from "../support/slot_bus.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const LOG = createLog("test", "error", () => {});

/** What the recorded process was. */
class RecordedDevice extends FakeDevice {
  override readonly vendorId: number = 0x67736d76;

  constructor(
    override readonly deviceId: number,
    lowFeatures: number,
    readonly maxQueueSizes: readonly number[],
    config: readonly number[],
  ) {
    super({
      features: [lowFeatures, 3],
      queueCount: maxQueueSizes.length,
      configSize: config.length,
    });
    this.config.set(config);
  }
}

const RNG = 3;
const NET = 5;
const BLOCK = 7;
const recordedDevices = () =>
  new Map([
    [RNG, new RecordedDevice(4, 0, [8], [])],
    [NET, new RecordedDevice(1, 0x10020, [32, 64], [0x52, 0x54, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0])],
    [BLOCK, new RecordedDevice(2, 0xa46, [16], blockConfig())],
  ]);

/** Capacity, largest segment, segments, block size, write-back. */
function blockConfig(): number[] {
  const view = new DataView(new ArrayBuffer(36));
  view.setUint32(0, 0x80, true);
  view.setUint32(8, 0x1000, true);
  view.setUint32(12, 4, true);
  view.setUint32(20, 512, true);
  view.setUint8(32, 1);
  return [...new Uint8Array(view.buffer)];
}

const Id = {
  GET_CONFIG: 5,
  SET_CONFIG: 6,
  EVENT_CONFIG: 0x40,
  EVENT_AVAIL: 0x41,
  EVENT_USED: 0x42,
};
const deviceOf = ({ bytes }: Frame) => bytes[2]!;
const tokenOf = ({ bytes }: Frame) => bytes[4]! | bytes[5]! << 8;
const word = (bytes: Uint8Array, at: number) => new DataView(bytes.buffer).getUint32(at, true);

cleanTest(
  "the kernel's bridge, recorded: the device side answers as the recorded one",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    const { driver: bus, device: end } = slotBuses(reactor, BRIDGE_SLOT);
    using side = new DeviceSide({
      reactor,
      bus: end,
      codec: codecFor("v1", BRIDGE_SLOT),
      log: LOG,
    });
    const devices = recordedDevices();
    for (const [number, device] of devices) side.add(number, device);
    const said: Uint8Array[] = [];
    bus.open({
      attached() {},
      detached() {},
      received: (slot) => said.push(new Uint8Array(slot.buffer.slice(0))),
    });
    side.open();
    const frames = readFrames();
    /** By device: writes of its configuration, each of which is a generation of ours (V59), and not the recorded one's. */
    const writes = new Map<number, number>();
    const answerTo = (request: Frame) =>
      frames.find((frame) => frame.from === "process" && tokenOf(frame) === tokenOf(request))!;
    const nextSaid = async (line: string) => {
      await reactor.sleep(0.1);
      assertEquals(said.length, 1, line);
      return said.pop()!;
    };
    await reactor.until((async () => {
      for (const frame of frames) {
        const { bytes, line } = frame;
        const number = deviceOf(frame);
        const device = devices.get(number)!;
        const id = bytes[1]!;
        const slot = new Uint8Array(BRIDGE_SLOT);
        slot.set(bytes);
        if (frame.from === "kernel") {
          end.take(slot);
          if (id === Id.EVENT_AVAIL) {
            device.takeCalls();
            await reactor.sleep(0.1);
            assertEquals(device.takeCalls(), [`available ${word(bytes, 8)}`], line);
            continue;
          }
          const expected = new Uint8Array(BRIDGE_SLOT);
          expected.set(answerTo(frame).bytes);
          if (id === Id.SET_CONFIG) writes.set(number, (writes.get(number) ?? 0) + 1);
          if (id === Id.GET_CONFIG || id === Id.SET_CONFIG) {
            const generation = word(expected, 8) + (writes.get(number) ?? 0);
            new DataView(expected.buffer).setUint32(8, generation, true);
          }
          assertEquals((await nextSaid(line)).toHex(), expected.toHex(), line);
        } else if (id === Id.EVENT_USED) {
          device.host.used(word(bytes, 8));
          assertEquals((await nextSaid(line)).toHex(), slot.toHex(), line);
        } else if (id === Id.EVENT_CONFIG) {
          // The link goes down and comes back. Of what changed ours says nothing, so that all is read again.
          device.config[6]! ^= 1;
          device.host.configChanged();
          const event = await nextSaid(line);
          const head = [...event.subarray(0, 6), ...event.subarray(8, 16)];
          assertEquals(head, [...bytes.subarray(0, 6), ...bytes.subarray(8, 16)], line);
          assertEquals([event[6], word(event, 16), word(event, 20)], [24, 0, 0], "rule V60");
        }
      }
    })());
  },
);

cleanTest("GET_CONFIG and SET_CONFIG are as large as the bus carries", async () => {
  using reactor = new Reactor(new VirtualClock());
  const buses = slotBuses(reactor, BRIDGE_SLOT);
  const codec = codecFor("v1", BRIDGE_SLOT);
  using deviceSide = new DeviceSide({ reactor, bus: buses.device, codec, log: LOG });
  using driverSide = new DriverSide({ reactor, bus: buses.driver, codec, log: LOG });
  const model = new FakeDevice({ configSize: 250 });
  deviceSide.add(0, model);
  deviceSide.open();
  const device = driverSide.device(0);
  driverSide.open();
  await reactor.until((async () => {
    while (!device.isReady) await reactor.sleep(1);
    await device.info();
    const before = driverSide.counters.received;
    const bytes = await device.config(0, 250);
    assertEquals(driverSide.counters.received - before, 3, "108 bytes in an answer of 128");
    assertEquals(bytes, model.config);
    assertEquals(await device.setConfig(100, new Uint8Array(108).fill(0xaa)), true);
    assertEquals(model.takeCalls(), ["config 100+108"]);
    assertEquals(model.config.subarray(100, 208), new Uint8Array(108).fill(0xaa));
  })());
});
