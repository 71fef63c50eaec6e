/**
 * Linux's transport (docs/wire.md, section 3.5) as the driver of our devices: a whole bring-up, events, a tear-down,
 * and all over again; and that the checks are as strict as they should be.
 */

import { assert, assertEquals } from "@std/assert";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { createLog } from "../../src/observe/log.ts";
import type { DeviceModel } from "../../src/virtio/device.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { FakeDevice, type FakeDeviceOptions } from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";
import { LinuxTransport } from "./linux_transport.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const NUMBER = 4;
const MEMORY = 1 << 20;

/** How a rig differs from the usual one. */
interface Options {
  readonly ringReset?: boolean;
  readonly change?: (bytes: Uint8Array) => void;
}

/** A device under Linux. */
async function withLinux<M extends DeviceModel>(
  make: (reactor: Reactor) => M,
  body: (linux: LinuxTransport, model: M) => Promise<void>,
  options: Options = {},
): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor);
  using memory = mapAnonymous(MEMORY);
  const log = createLog("test", "error", () => {});
  using side = new DeviceSide({ reactor, bus: pair.device, codec: codecFor("v1"), log });
  const model = make(reactor);
  side.add(NUMBER, model, [{ at: 0x4000_0000, size: MEMORY, memory, offset: 0 }]);
  const { ringReset, change } = options;
  const linux = new LinuxTransport(reactor, pair.driver, NUMBER, ringReset, change);
  side.open();
  linux.open();
  await reactor.until(body(linux, model));
  assertEquals(linux.dropped, [], "Linux dropped events");
}

const netDevice = (reactor: Reactor) =>
  new NetDevice(reactor, new ResponderPort({}, reactor), {
    mac: Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56),
    mtu: 1500,
  });

/** VERSION_1, ACCESS_PLATFORM and RING_RESET are offered. */
const fakeDevice = (options: FakeDeviceOptions = {}) => () =>
  new FakeDevice({ features: [0x3000_0021, 0x0000_0103], ...options });

cleanTest(
  "Linux: bring-up and tear-down of the network card, three times",
  () =>
    withLinux(netDevice, async (linux) => {
      for (let round = 0; round < 3; round++) {
        await linux.bringUp();
        assertEquals([linux.status, linux.featureBlocks, linux.maxQueues], [0xf, 2, 3]);
        for (const index of [0, 1, 2, 0, 1]) linux.kick(index);
        assertEquals(await linux.getStatus(), 0xf);
        assertEquals([...(await linux.readConfig(0, 6))], [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        await linux.readConfig(0, linux.configSize);
        await linux.tearDown();
        assertEquals(await linux.getStatus(), 0);
      }
    }),
);

cleanTest(
  "Linux: tear-down with RING_RESET, after status 0, and under way",
  () =>
    withLinux(fakeDevice(), async (linux, model) => {
      for (let round = 0; round < 2; round++) {
        await linux.bringUp();
        // Row 12's recovery, and a queue that is set up again.
        await linux.resetQueue(1);
        await linux.setUpQueue(1, [0x4000_0000n, 0x4000_4000n, 0x4000_8000n]);
        await linux.tearDown();
      }
      assertEquals(model.calls.filter((call) => call === "stop 1").length, 4);
    }, { ringReset: true }),
);

cleanTest(
  "Linux: reads in parts of one generation, again when it moves",
  () =>
    withLinux(fakeDevice({ configSize: 100 }), async (linux, model) => {
      await linux.bringUp();
      assertEquals(await linux.readConfig(0, 100), model.config);
      let changes = 3;
      const bytes = await linux.readConfig(0, 100, () => {
        if (changes-- <= 0) return;
        model.config.fill(changes);
        model.host.configChanged();
      });
      assertEquals(bytes, new Uint8Array(100).fill(0));
      assertEquals(linux.generation, 3);
    }),
);

cleanTest(
  "Linux: writes are applied in full, generation 0, in parts",
  () =>
    withLinux(fakeDevice({ configSize: 100 }), async (linux, model) => {
      await linux.bringUp();
      model.host.configChanged();
      const bytes = Uint8Array.from({ length: 90 }, (_, i) => 200 - i);
      await linux.writeConfig(5, bytes);
      assertEquals(model.config.subarray(5, 95), bytes);
    }),
);

cleanTest(
  "Linux: events are of exact size, about queues that exist, inside the space",
  () =>
    withLinux(fakeDevice(), async (linux, model) => {
      await linux.bringUp();
      for (let n = 0; n < 30; n++) {
        model.host.used(n % 3);
        if (n % 5 === 0) model.host.configChanged();
        await linux.reactor.sleep(0);
      }
      model.host.needsReset("test");
      await linux.reactor.sleep(2);
      assertEquals(linux.status, 0x4f);
      const used = linux.events.filter((event) => event !== "config");
      assertEquals(new Set(used), new Set([0, 1, 2]));
      assert(linux.events.length - used.length >= 7);
      const { length } = linux.events;
      await linux.tearDown();
      await linux.bringUp();
      await linux.reactor.sleep(2);
      assertEquals(linux.events.length, length, "none of the old ones, none for a status it wrote");
    }),
);

cleanTest(
  "Linux: a queue reads as unset before, and after every reset",
  () =>
    withLinux(fakeDevice(), async (linux) => {
      await linux.bringUp(1);
      const again = linux.setUpQueue(0, [1n, 2n, 3n]).catch((error) => error.message);
      assertEquals(await again, "configured already: EBUSY");
      await linux.reset();
      await linux.bringUp(3);
    }),
);

cleanTest(
  "Linux: without ACCESS_PLATFORM its own buses give up; we offer it",
  async () => {
    const lacking = fakeDevice({ features: [0x3000_0021, 1] });
    await withLinux(lacking, async (linux) => {
      const problem = await linux.bringUp().catch((error) => error.message);
      assertEquals(problem, "the bus demands bit 33: ENODEV");
    });
  },
);

/** A message of the device is spoilt: the n-th answer with this id. */
function spoil(id: number, nth: number, change: (view: DataView) => void) {
  let count = 0;
  return (bytes: Uint8Array) => {
    if (bytes[1] === id && count++ === nth) change(new DataView(bytes.buffer));
  };
}

/** What a device may get wrong; each must be found. */
const FAULTS: readonly (readonly [
  what: string,
  id: number,
  nth: number,
  change: (view: DataView) => void,
])[] = [
  ["an answer of v1-2025's size", 2, 0, (v) => v.setUint16(6, 32, true)],
  ["five feature blocks", 2, 0, (v) => v.setUint32(32, 5, true)],
  ["device id 0", 2, 0, (v) => v.setUint32(8, 0, true)],
  ["admin queues outside", 2, 0, (v) => v.setUint32(48, 9, true)],
  ["another device number", 7, 0, (v) => v.setUint16(2, 5, true)],
  ["another token", 7, 0, (v) => v.setUint16(4, 0, true)],
  ["another id", 7, 0, (v) => v.setUint8(1, 8)],
  ["a bus message", 7, 0, (v) => v.setUint8(0, 3)],
  ["longer than the bus", 7, 0, (v) => v.setUint16(6, 65, true)],
  ["features of block 1", 3, 0, (v) => v.setUint32(8, 1, true)],
  ["one feature block", 3, 0, (v) => v.setUint32(12, 1, true)],
  ["fewer bytes than blocks", 3, 0, (v) => v.setUint16(6, 20, true)],
  ["no VERSION_1", 3, 0, (v) => v.setUint32(20, 2, true)],
  ["FEATURES_OK not kept", 7, 3, (v) => v.setUint32(8, 3, true)],
  ["configuration from elsewhere", 5, 0, (v) => v.setUint32(12, 4, true)],
  ["less configuration", 5, 0, (v) => v.setUint32(16, 2, true)],
  ["configuration without its bytes", 5, 0, (v) => v.setUint16(6, 20, true)],
  ["another queue", 9, 0, (v) => v.setUint32(8, 1, true)],
  ["no queue 0", 9, 0, (v) => v.setUint32(12, 0, true)],
  ["a size before it was set", 9, 0, (v) => v.setUint32(16, 256, true)],
  ["an unknown flag", 9, 0, (v) => v.setUint32(20, 2, true)],
  ["enabled before it was set", 9, 0, (v) => v.setUint32(20, 1, true)],
  ["an address before it was set", 9, 0, (v) => v.setUint32(24, 4096, true)],
  ["another maximum afterwards", 9, 1, (v) => v.setUint32(12, 512, true)],
  ["another size afterwards", 9, 1, (v) => v.setUint32(16, 128, true)],
  ["not enabled afterwards", 9, 1, (v) => v.setUint32(20, 0, true)],
  ["another address afterwards", 9, 1, (v) => v.setUint32(40, 4096, true)],
  ["an address of 0 afterwards", 9, 1, (v) => v.setBigUint64(32, 0n, true)],
];

cleanTest("Linux: the checks find what a device can get wrong", async () => {
  for (const [what, id, nth, change] of FAULTS) {
    let problem: unknown;
    const find = withLinux(fakeDevice(), async (linux) => {
      problem = await linux.bringUp().catch((error) => error.message);
    }, { change: spoil(id, nth, change) });
    await find.catch(() => {});
    assertEquals(typeof problem, "string", `${what} was not found`);
  }
});
