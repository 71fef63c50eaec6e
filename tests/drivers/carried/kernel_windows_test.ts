/** A carried device on a kernel's own bus, whose memory comes and goes under its rings; the device it stands for answers late. */

import { assertEquals } from "@std/assert";
import { inProcessBus } from "../../../src/bus/in_process_bus.ts";
import { Carrier } from "../../../src/drivers/carried/carrier.ts";
import { Shares } from "../../../src/drivers/carried/shares.ts";
import { codecFor } from "../../../src/message/codecs.ts";
import { Kind } from "../../../src/message/message.ts";
import { createLog } from "../../../src/observe/log.ts";
import { DeviceSide } from "../../../src/transport/device_side.ts";
import { DriverSide } from "../../../src/transport/driver_side.ts";
import { LateDevice } from "../../support/late_device.ts";
import {
  add,
  del,
  DRIVER_OK,
  type MemoryBridgeRig,
  memoryBridgeTest,
  NEEDS_RESET,
  offline,
  PAGE,
} from "../../support/memory_bridge_rig.ts";

const CARRIED = 7;
const RINGS = 0x10_0000, BUFFERS = 0x20_0000;
const WRITE = 2;

/** Its queue 0 runs, in window 1. The device that it stands for is late from here on. */
function carriedTest(
  name: string,
  body: (rig: MemoryBridgeRig, late: LateDevice) => Promise<void>,
): void {
  memoryBridgeTest(`carried: ${name}`, async (rig) => {
    const { reactor, side } = rig;
    const log = createLog("carrier", "info", (line) => rig.lines.push(line));
    const codec = codecFor("v1");
    using a = inProcessBus(reactor);
    using devices = new DeviceSide({ reactor, bus: a.device, codec, log });
    const late = new LateDevice(reactor);
    devices.add(CARRIED, late);
    using from = new DriverSide({ reactor, bus: a.driver, codec, log });
    using shares = new Shares({
      ...{ reactor, log, from: a.driver, to: rig.bus, limit: undefined, canBeTold: true },
      copied: undefined,
    });
    using _carrier = new Carrier({
      ...{ reactor, from, to: side, log, numbers: undefined, windows: [], shares },
      configSizeOf: () => undefined,
    });
    devices.open();
    from.open();
    while (!rig.bus.isAttached) await reactor.sleep(1);
    rig.node.put(add(1, RINGS, 3 * PAGE), add(2, BUFFERS, PAGE), add(3, BUFFERS + PAGE, PAGE));
    await rig.said();
    await rig.bringUp(CARRIED);
    await rig.said();
    assertEquals(late.fake.takeCalls().includes("start 0"), true);
    late.isLate = true;
    await body(rig, late);
    // What ends it is asked, too.
    late.isLate = false;
    if (late.isAsked) late.answer();
    // Nothing of the kernel's is looked at any more, or the next round would stop the process.
    side[Symbol.dispose]();
  });
}

/** Has the kernel's driver offer a buffer, which the device takes. */
async function offer(rig: MemoryBridgeRig, at: number, flags: number): Promise<void> {
  const { node: { mappings: [rings] } } = rig;
  const view = new DataView(rings!.buffer);
  view.setBigUint64(0, BigInt(at), true);
  view.setUint32(8, 64, true);
  view.setUint16(12, flags, true);
  view.setUint16(PAGE + 2, 1, true);
  rig.ask(Kind.EVENT_AVAIL, CARRIED, { index: 0 });
  await rig.said();
}

const status = ({ side }: MemoryBridgeRig) => side.status(CARRIED);

carriedTest(
  "windows come and go under its ring, and the device is asked nothing",
  async (rig, late) => {
    rig.node.put(add(4, 0x30_0000, PAGE), del(3), add(5, 0x40_0000, PAGE), del(4), del(5));
    assertEquals(await rig.said(), [
      "ADDED 4 0",
      "DELETED 3 0",
      "ADDED 5 0",
      "DELETED 4 0",
      "DELETED 5 0",
    ]);
    assertEquals([late.asked, status(rig)], [[], DRIVER_OK]);
    // One that came while it ran is found.
    rig.node.put(add(6, 0x50_0000, PAGE));
    await rig.said();
    await offer(rig, 0x50_0000, 0);
    assertEquals([late.fake.takeCalls(), status(rig)], [["available 0"], DRIVER_OK]);
  },
);

carriedTest(
  "what the device reads is copied, and its window may go; what it writes keeps it",
  async (rig, late) => {
    await offer(rig, BUFFERS, 0);
    assertEquals(late.fake.takeCalls(), ["available 0"]);
    rig.node.put(del(2));
    assertEquals([await rig.said(), late.asked, status(rig)], [["DELETED 2 0"], [], DRIVER_OK]);
  },
);

carriedTest(
  "a window that the device is to write to goes when the ring has stopped",
  async (rig, late) => {
    await offer(rig, BUFFERS + PAGE - 64, WRITE);
    rig.node.put(del(3));
    assertEquals([await rig.said(), late.asked], [["DELETED 3 0"], []], "it is not this one");
    rig.node.put(del(2));
    assertEquals([await rig.said(), late.asked], [["EVENT_CONFIG"], ["stop 0"]]);
    assertEquals(rig.node.mappings[1]!.buffer.byteLength, PAGE, "as long as it has not answered");
    late.answer();
    assertEquals([await rig.said(), late.asked], [["DELETED 2 0"], ["stop 0"]]);
    assertEquals([status(rig), rig.node.mappings[1]!.buffer.byteLength], [
      DRIVER_OK | NEEDS_RESET,
      0,
    ]);
  },
);

carriedTest(
  "rings that go are stopped first; a device that does not answer is given up",
  async (rig, late) => {
    rig.node.put(del(1));
    assertEquals([await rig.said(), late.asked], [["EVENT_CONFIG"], ["stop 0"]]);
    assertEquals(await rig.said(3900), []);
    assertEquals(await rig.said(200), ["DELETED 1 0"]);
    assertEquals([status(rig), rig.node.mappings[0]!.buffer.byteLength], [
      DRIVER_OK | NEEDS_RESET,
      0,
    ]);
    // As for a ring that runs.
    rig.ask(Kind.EVENT_AVAIL, CARRIED, { index: 0 });
    assertEquals(await rig.said(10), []);
  },
);

carriedTest(
  "offline: all of its rings stop at once, and then the windows go",
  async (rig, late) => {
    await offer(rig, BUFFERS, WRITE);
    rig.node.put(offline(1));
    await rig.said();
    assertEquals(late.asked, ["stop 0"]);
    assertEquals(rig.node.mappings.map(({ buffer }) => buffer.byteLength > 0), [true, true, true]);
    late.isLate = false;
    late.answer();
    await rig.said(10);
    assertEquals(rig.node.mappings.map(({ buffer }) => buffer.byteLength > 0), [
      false,
      false,
      false,
    ]);
    const calls = late.fake.takeCalls().filter((call) => /start|stop/.test(call));
    assertEquals(calls, ["stop 0"], "and none is started meanwhile");
  },
);
