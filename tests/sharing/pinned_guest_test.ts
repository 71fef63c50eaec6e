/**
 * How long a guest's memory stays pinned: as long as the device side may write to it. A device side that has
 * stopped the queues does not; one that is silent or gone may, until there is another.
 */

import { assert, assertEquals } from "@std/assert";
import { Request } from "../../src/vhost_user/protocol.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import {
  MEMORY_SIZE,
  type ProxyRig,
  type ProxyRigOptions,
  regionBytes,
  u32s,
  USER_ADDRESS,
  withProxy,
} from "../support/front_end.ts";
import type { FakeDevice } from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";
import { FakePins } from "../support/translated_rig.ts";

/** A guest whose ring 0 runs. */
async function running({ connect, memory, kick, device, wait }: ProxyRig) {
  const frontEnd = connect();
  await frontEnd.setUp(memory);
  frontEnd.startRing(0, kick);
  await wait(() => device.calls.includes("start 0"));
  return frontEnd;
}

/** Sizes of what is pinned, the page of the rings left out. */
function pinnedOf({ pinned }: FakePins): number[] {
  return [...pinned.values()].filter((size) => size === MEMORY_SIZE);
}

/** What is pinned each time that a proxy at its end waits for the device side's silence. */
async function waitsOf(way: Way, prepare: (rig: ProxyRig) => Promise<void>): Promise<number[][]> {
  const pins = new FakePins();
  const waits: number[][] = [];
  const waitForSilence = () => void waits.push(pinnedOf(pins));
  await withProxy(prepare, { direct: pins, waitForSilence, ...way });
  assertEquals(pins.pinned.size, 0);
  return waits;
}

type Way = Pick<ProxyRigOptions<FakeDevice>, "runs">;

/** Of the same guest's memory: rings are carried over, since the device side does not see it; or are its own. */
const WAYS: Readonly<Record<string, Way>> = {
  "rings carried over": {},
  "its own rings": { runs: [{ offset: 0, physical: 0x1_4000_0000, length: MEMORY_SIZE }] },
};

for (const [name, way] of Object.entries(WAYS)) {
  cleanTest(
    `pinned guest, ${name}: pinned once, told of at info, and let go when the device has stopped`,
    async () => {
      const pins = new FakePins();
      await withProxy(async (rig) => {
        assertEquals(pins.pinned.size, 1);
        const frontEnd = await running(rig);
        assertEquals(pinnedOf(pins), [MEMORY_SIZE]);
        const line = rig.lines.find((text) => text.includes("of the guest's memory"));
        assertEquals(
          line,
          "test: 1048576 bytes of the guest's memory at 0x0 lie in 1 piece and are pinned (1048576 in all)",
        );
        frontEnd[Symbol.dispose]();
        await rig.wait(() => pinnedOf(pins).length === 0);
        assert(rig.device.calls.includes("stop 0"), "it was let go before the device stopped");
        // A next one is served.
        await running(rig);
        assertEquals(pinnedOf(pins), [MEMORY_SIZE]);
        assert(!rig.pages!.physical.inDoubt);
      }, { direct: pins, ...way });
      assertEquals(pins.pinned.size, 0);
    },
  );

  cleanTest(
    `pinned guest, ${name}: memory that takes another's place is pinned within the limit, more is refused`,
    async () => {
      const pins = new FakePins();
      await withProxy(async (rig) => {
        const frontEnd = await running(rig);
        using other = createSealedMemory("vmsg-test", MEMORY_SIZE);
        const table = (...regions: Uint8Array[]) =>
          new Uint8Array([...u32s(regions.length, 0), ...regions.flatMap((bytes) => [...bytes])]);
        const first = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 0);
        frontEnd.send(Request.SET_MEM_TABLE, table(first), [other]);
        await frontEnd.barrier();
        assertEquals([pinnedOf(pins), frontEnd.hungUp], [[MEMORY_SIZE], false]);
        const second = regionBytes(MEMORY_SIZE, MEMORY_SIZE, USER_ADDRESS + MEMORY_SIZE, 0);
        frontEnd.send(Request.SET_MEM_TABLE, table(first, second), [other, rig.memory]);
        await rig.wait(() => frontEnd.hungUp && pinnedOf(pins).length === 0);
        assert(rig.lines.some((line) => line.includes("direct mode would pin 1048576 bytes")));
        // Whoever keeps within it is served.
        await running(rig);
      }, { direct: pins, pinLimit: MEMORY_SIZE, ...way });
      assertEquals(pins.pinned.size, 0);
    },
  );

  cleanTest(
    `pinned guest, ${name}: a device side that does not answer keeps it pinned, until there is another`,
    async () => {
      const pins = new FakePins();
      await withProxy(async (rig) => {
        const frontEnd = await running(rig);
        rig.silence();
        frontEnd[Symbol.dispose]();
        await rig.wait(() => rig.driverSide.peer === "probing");
        // All that waits for something has had its turn.
        await rig.reactor.sleep(20);
        assertEquals([pinnedOf(pins), rig.pages!.physical.inDoubt], [[MEMORY_SIZE], true]);
        rig.pages!.ready();
        assertEquals([pinnedOf(pins), rig.pages!.physical.inDoubt], [[], false]);
      }, { direct: pins, requestTimeoutMs: 30, ...way });
      assertEquals(pins.pinned.size, 0);
    },
  );

  cleanTest(
    `pinned guest, ${name}: the guest's end after the device side's is no reason to let go`,
    async () => {
      const pins = new FakePins();
      await withProxy(async (rig) => {
        const frontEnd = await running(rig);
        rig.driverSide.options.bus.drop("test");
        await rig.wait(() => rig.driverSide.peer === "none");
        frontEnd[Symbol.dispose]();
        await rig.wait(() => rig.lines.at(-1)!.includes("waiting for a front end"));
        assertEquals([pinnedOf(pins), rig.pages!.physical.inDoubt], [[MEMORY_SIZE], true]);
        rig.pages!.ready();
        assertEquals(pinnedOf(pins), []);
      }, { direct: pins, ...way });
    },
  );

  cleanTest(
    `pinned guest, ${name}: a proxy that ends while the device works waits for the end of its lease`,
    async () => {
      const waits = await waitsOf(way, async (rig) => {
        await running(rig);
      });
      assertEquals(waits, [[MEMORY_SIZE]]);
    },
  );

  cleanTest(
    `pinned guest, ${name}: a proxy that ends when the device has stopped does not wait`,
    async () => {
      const waits = await waitsOf(way, async (rig) => {
        const frontEnd = await running(rig);
        frontEnd[Symbol.dispose]();
        await rig.wait(() => rig.lines.at(-1)!.includes("waiting for a front end"));
      });
      assertEquals(waits, []);
    },
  );
}
