/** How a session stops one ring of a foreign device: RESET_VQUEUE where that was negotiated, else a reset. */

import { assertEquals } from "@std/assert";
import { Dialogue } from "../../src/check/dialogue.ts";
import { DeviceRole } from "../../src/check/roles.ts";
import { Session } from "../../src/drivers/session.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, type Message } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { Descriptors } from "../../src/sharing/descriptors.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const AT = 0x4000_0000;
const SIZE = 65536;

/** One ring runs with these features and is stopped; what was said from then on. */
async function stopRing(features: readonly number[]): Promise<Message[]> {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor);
  using memory = mapAnonymous(SIZE);
  const codec = codecFor("v1");
  const log = createLog("test", "error", () => {});
  using side = new DriverSide({ reactor, bus: pair.driver, codec, log });
  const talk = new Dialogue(reactor, pair.device, codec, 0, { at: AT, size: SIZE });
  const role = new DeviceRole("", talk);
  const setup = {
    size: 64,
    descriptorAddress: AT,
    driverAddress: AT + 0x1000,
    deviceAddress: AT + 0x2000,
    base: 0,
  };
  const ring = { index: 0, setup: () => setup, stopped() {}, call() {}, fail() {} };
  const owner = {
    features: Uint32Array.from(features),
    regions: [{ at: AT, size: SIZE, memory, offset: 0 }],
    rings: [ring],
    mayRun: true,
    configChanged() {},
  };
  const device = side.device(0);
  const sharing = new Descriptors(device);
  using session = new Session({ reactor, device, sharing, owner, whose: "our", log });
  talk.open();
  side.open();
  const during = async (act: () => Promise<unknown>) => {
    let isOver = false;
    const done = act().finally(() => isOver = true);
    await role.until(() => isOver, "it is not over");
    await done;
  };
  return await reactor.until((async () => {
    await role.until(() => side.isReady, "the device side was not found");
    assertEquals(side.peer, "foreign");
    await during(() => session.bringUp());
    assertEquals([session.runs(0), role.queues.size], [true, 1]);
    const from = role.said.length;
    owner.mayRun = false;
    await during(() => session.apply());
    assertEquals([session.runs(0), role.queues.size], [false, 0]);
    return role.said.slice(from).filter(({ kind }) => kind !== Kind.EVENT_AVAIL);
  })());
}

cleanTest(
  "R16 R25: with RING_RESET a ring is stopped by RESET_VQUEUE, and seen to be",
  async () => {
    const said = await stopRing([0, 0x0000_0101]);
    assertEquals(said.map(({ kind }) => kind), [Kind.RESET_VQUEUE, Kind.GET_VQUEUE]);
  },
);

cleanTest("R15 R16: without it a ring is stopped by status 0, with all others", async () => {
  const said = await stopRing([0, 0x0000_0001]);
  assertEquals(said.map(({ kind, status }) => [kind, status]), [[Kind.SET_DEVICE_STATUS, 0]]);
});
