/**
 * ADD_MEMORY of a window 0, 0, 0: all that the device side was given by --memory, at its own addresses. It is
 * what a driver side says that names its machine's RAM by physical address.
 */

import { assert, assertEquals } from "@std/assert";
import { linuxErrno } from "../../src/linux/errors.ts";
import { Kind, MEMORY_WINDOW } from "../../src/message/message.ts";
import type { MemoryRegion } from "../../src/memory/mod.ts";
import { EPOCH, type Rig, withSide, withVmsg } from "../support/device_rig.ts";
import { MockMemory } from "../support/mock_driver.ts";

const EEXIST = linuxErrno("EEXIST");
const EFAULT = linuxErrno("EFAULT");
const EPERM = linuxErrno("EPERM");
const EBUSY = linuxErrno("EBUSY");
const ESTALE = linuxErrno("ESTALE");
const HIGH = 0x1_0000_0000;
const SIZE = 0x4000;

/** RAM in two pieces, as a PC has it. */
function withRam(
  body: (rig: Rig) => Promise<void>,
  run: typeof withVmsg = withVmsg,
): Promise<void> {
  const memory = new MockMemory([{ at: 0, size: SIZE }, { at: HIGH, size: SIZE }]);
  const fixed: MemoryRegion[] = memory.windows.map(({ at, size, offset }) => ({
    at,
    size,
    offset,
    memory: memory.memory,
  }));
  return run(body, { fixed }).finally(() => memory[Symbol.dispose]());
}

const add = ({ ask }: Rig, address = 0, length = 0, offset = 0) =>
  ask(Kind.ADD_MEMORY, (m) => {
    m.flags = MEMORY_WINDOW;
    Object.assign(m, { memoryDevice: 0, address, length, offset });
  }).then(({ result }) => result);

const remove = ({ ask }: Rig, address = 0, length = 0) =>
  ask(Kind.REMOVE_MEMORY, (m) => {
    Object.assign(m, { memoryDevice: 0, address, length });
  }).then(({ result }) => result);

/** The parts of RAM that the device sees, of those probed. */
const seen = ({ device: { host } }: Rig) =>
  [0, SIZE - 1, SIZE, HIGH - 1, HIGH, HIGH + SIZE - 1, HIGH + SIZE]
    .filter((at) => host.memory.find(at, 1) !== undefined);

const ALL = [0, SIZE - 1, HIGH, HIGH + SIZE - 1];

Deno.test("all of --memory: seen where it is, with the hole, until it is removed", () =>
  withRam(async (rig) => {
    assertEquals(seen(rig), []);
    assertEquals(await add(rig), 0);
    assertEquals(seen(rig), ALL);
    assertEquals(await remove(rig), 0);
    assertEquals(seen(rig), []);
    assertEquals(await add(rig), 0);
    assertEquals(seen(rig), ALL);
  }));

Deno.test("all of --memory: a second time is refused and takes nothing away", () =>
  withRam(async (rig) => {
    assertEquals([await add(rig), await add(rig)], [0, EEXIST]);
    assertEquals(seen(rig), ALL);
  }));

Deno.test("all of --memory: what overlaps with what is there is refused as a whole", () =>
  withRam(async (rig) => {
    // Something of it at an address of the second piece.
    assertEquals(await add(rig, HIGH + 0x1000, 0x1000, 0x1000), 0);
    assertEquals(await add(rig), EEXIST);
    assertEquals(seen(rig), []);
    assertEquals(await remove(rig, HIGH + 0x1000, 0x1000), 0);
    assertEquals(await add(rig), 0);
  }));

Deno.test("all of --memory: not removed under a running queue", () =>
  withRam(async (rig) => {
    assertEquals(await add(rig), 0);
    await rig.negotiate();
    await rig.setQueue(1);
    assertEquals(await remove(rig), EBUSY);
    assertEquals(seen(rig), ALL);
  }));

Deno.test("all of --memory: gone with a driver side of another epoch, and with one that is silent too long", () =>
  withRam(async (rig) => {
    assertEquals(await add(rig), 0);
    await rig.negotiate();
    await rig.setQueue(1);
    await rig.setStatus(0xf);
    assertEquals(rig.device.host.mayTouchMemory(), true);
    rig.clock.advance(1000);
    assertEquals(rig.device.host.mayTouchMemory(), false);
    await rig.greet(EPOCH + 1);
    assertEquals(seen(rig), []);
    // The one before has nothing to say any more.
    assertEquals([await add(rig), seen(rig)], [ESTALE, []]);
    assert(rig.device.calls.includes("stop 1"));
  }));

Deno.test("all of --memory: refused where nothing was given, and said once", () =>
  withVmsg(async (rig) => {
    assertEquals(await add(rig), EFAULT);
    assertEquals(seen(rig), []);
    assertEquals(
      rig.lines.filter((line) => line.includes("anywhere in RAM of its machine, give --memory"))
        .length,
      1,
      rig.lines.join("\n"),
    );
  }));

Deno.test("all of --memory: refused in confined mode", () =>
  withSide(async (rig) => {
    await rig.greet();
    assertEquals([await add(rig), seen(rig)], [EPERM, []]);
  }, { confined: true }));
