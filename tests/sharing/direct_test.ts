/**
 * Direct mode's two ways: the device side works on the guest's own rings where it can find them, and else on rings that
 * are made for it. The guest's memory lies in a RAM that is made up, which the device side sees.
 */

import { assert, assertEquals } from "@std/assert";
import type { PhysicalRun } from "../../src/linux/page_map.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { RingFeature } from "../../src/virtio/features.ts";
import { FAKE_FEATURES, FakeDevice } from "../support/fake_device.ts";
import {
  FEATURES,
  MEMORY_SIZE,
  type ProxyRig,
  type ProxyRigOptions,
  withProxy,
} from "../support/front_end.ts";
import { cleanTest } from "../support/leaks.ts";
import { FakePins } from "../support/translated_rig.ts";

/** Above 4 GiB, so that an address cut to 32 bits shows. */
const RAM_AT = 0x1_4000_0000;
const OWN = "device 0: the device works on the guest's own rings";
/** Where the rig's huge page is. */
const HUGE_PAGE_AT = 0x4000_0000;
/** As the front end describes ring 0. */
const RING_0 = {
  size: 64,
  descriptorAddress: 0x1000,
  driverAddress: 0x2000,
  deviceAddress: 0x3000,
};

/** The guest's memory in so many pieces of equal length, the last one first, with gaps between them. */
function inPieces(count: number): PhysicalRun[] {
  const length = MEMORY_SIZE / count;
  return Array.from({ length: count }, (_, n) => ({
    offset: n * length,
    physical: RAM_AT + (count - n) * 2 * length,
    length,
  }));
}

function direct(
  runs: readonly PhysicalRun[],
  body: (rig: ProxyRig, pins: FakePins) => Promise<void>,
  more: ProxyRigOptions<FakeDevice> = {},
): Promise<void> {
  const pins = new FakePins();
  return withProxy((rig) => body(rig, pins), { ...more, runs, direct: pins });
}

/** What was said of the way. */
function ways({ lines }: ProxyRig): string[] {
  return lines.filter((line) => / rings(:|$)|carried over/.test(line)).map((line) => line.slice(6));
}

/** How often the device has begun to work on a queue. */
function starts({ device }: ProxyRig, queue: number): number {
  return device.calls.filter((call) => call === `start ${queue}`).length;
}

async function running(rig: ProxyRig, features = FEATURES) {
  const frontEnd = rig.connect();
  await frontEnd.setUp(rig.memory, features);
  const before = starts(rig, 0);
  frontEnd.startRing(0, rig.kick);
  await rig.wait(() => starts(rig, 0) > before);
  return frontEnd;
}

cleanTest(
  "direct: memory in few pieces is found where it is, with the guest's own rings",
  () =>
    direct(inPieces(4), async (rig, pins) => {
      const { device, memory, wait } = rig;
      const frontEnd = await running(rig);
      assertEquals(device.setups, [{ ...RING_0, base: 0 }]);
      assertEquals(ways(rig), [OWN]);
      using seen = mapShared(memory.number, MEMORY_SIZE);
      const bytes = new Uint8Array(seen.buffer);
      for (let at = 0; at < MEMORY_SIZE; at += MEMORY_SIZE / 8) {
        bytes[at] = 1 + at / (MEMORY_SIZE / 8);
        const window = device.host.memory.find(at, 1)!;
        assertEquals(window.view.getUint8(at - window.at), bytes[at]);
      }
      assertEquals(device.host.memory.find(MEMORY_SIZE, 1), undefined);
      assertEquals(device.host.memory.find(RAM_AT, 1), undefined, "nothing else of the RAM");
      assertEquals(device.host.regions.length, 4);
      // Pinned for as long as the device side may touch it.
      const pin = [...pins.pinned].find(([, size]) => size === MEMORY_SIZE)!;
      const letGo = pins.pinned.delete.bind(pins.pinned);
      let leftWhenLetGo = -1;
      pins.pinned.delete = (address) => {
        if (address === pin[0]) leftWhenLetGo = device.host.regions.length;
        return letGo(address);
      };
      frontEnd[Symbol.dispose]();
      await wait(() => !pins.pinned.has(pin[0]));
      assertEquals(leftWhenLetGo, 0);
      assert(device.calls.includes("stop 0"));
      // The next guest is served so again.
      await running(rig);
      assertEquals(device.setups.length, 2);
    }),
);

cleanTest(
  "direct: as many pieces as a device side is told of; with more, rings are carried over",
  () =>
    direct(inPieces(128), async (rig) => {
      await running(rig);
      assertEquals(ways(rig), [OWN]);
      assertEquals(rig.device.host.regions.length, 128);
    }).then(() =>
      direct(inPieces(256), async (rig) => {
        await running(rig);
        assertEquals(ways(rig), [
          "device 0: the guest's rings are carried over: its memory lies in 256 pieces, more than 128",
        ]);
        assertEquals(rig.device.setups[0]!.descriptorAddress, HUGE_PAGE_AT);
      })
    ),
);

cleanTest(
  "direct: a ring across pieces has those that run carried over, and later ones find their own again",
  () =>
    direct(inPieces(4), async (rig, pins) => {
      const { device, lines, kick, wait } = rig;
      const frontEnd = await running(rig);
      device.base = 7;
      // The table of ring 1 begins 2 KiB before the second piece.
      frontEnd.startRing(1, kick, 0, 256, MEMORY_SIZE / 4 - 0x1800);
      await wait(() => starts(rig, 1) > 0);
      const started = device.calls.filter((call) => /^(start|stop)/.test(call));
      assertEquals(started, ["start 0", "stop 0", "start 0", "start 1"]);
      assertEquals(ways(rig), [
        OWN,
        "device 0: the guest's rings are carried over: ring 1 does not lie in one piece",
      ]);
      // Made for the device, and empty; the guest's goes on where the device left it.
      assertEquals(device.setups[1], {
        ...device.setups[1]!,
        descriptorAddress: HUGE_PAGE_AT,
        base: 0,
      });
      assertEquals(device.host.regions.length, 4);
      assert(device.host.memory.find(RAM_AT + MEMORY_SIZE, 1), "addresses are physical");
      frontEnd[Symbol.dispose]();
      await wait(() => lines.at(-1)!.includes("waiting for a front end"));
      assertEquals([...pins.pinned.values()].filter((size) => size === MEMORY_SIZE), []);
      await running(rig);
      assertEquals(ways(rig).at(-1), OWN);
      assertEquals(device.setups.at(-1), { ...RING_0, base: 0 });
      assertEquals(device.host.memory.find(RAM_AT + MEMORY_SIZE, 1), undefined);
    }),
);

cleanTest(
  "direct: a format that the proxy has and the device has not is carried over",
  async () => {
    const packed = RingFeature.RING_PACKED & 31;
    const features = [FEATURES[0], FEATURES[1] | 1 << packed] as const;
    await direct(inPieces(4), async (rig) => {
      await running(rig, features);
      assertEquals(ways(rig), [
        "device 0: the guest's rings are carried over: the device does not have their format",
      ]);
      assertEquals(rig.device.accepted[1]! >> packed & 1, 0);
    });
    const [low, high] = FAKE_FEATURES as [number, number];
    const device = new FakeDevice({ features: [low, high | 1 << packed] });
    await direct(inPieces(4), async (rig) => {
      await running(rig, features);
      assertEquals(ways(rig), [OWN]);
      assertEquals(device.accepted[1]! >> packed & 1, 1, "the device serves it itself");
    }, { device });
  },
);

cleanTest(
  "direct: a device side that is lost is told of everything anew",
  () =>
    direct(inPieces(4), async (rig, pins) => {
      await running(rig);
      rig.driverSide.replaced("test");
      await rig.wait(() => starts(rig, 0) === 2);
      assertEquals(rig.device.setups, [{ ...RING_0, base: 0 }, { ...RING_0, base: 0 }]);
      assertEquals(rig.device.host.regions.length, 4);
      assertEquals([...pins.pinned.values()].filter((size) => size === MEMORY_SIZE).length, 1);
      assertEquals(rig.pages!.physical.inDoubt, false);
    }),
);

cleanTest(
  "direct: memory that the device side does not see is refused, and rings are carried over",
  () => {
    const pins = new FakePins();
    return withProxy(async (rig) => {
      await running(rig);
      const [way] = ways(rig);
      assert(way?.startsWith("device 0: the guest's rings are carried over: "), way);
      assertEquals(ways(rig).length, 1);
      assertEquals(rig.device.setups[0]!.descriptorAddress, HUGE_PAGE_AT);
    }, { direct: pins });
  },
);
