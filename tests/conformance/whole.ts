/**
 * The two sides with a relay in between: a network card with the responder behind it, the net driver and
 * its pinger in front, all messages on record. The relay may change what passes.
 */

import type { Bus } from "../../src/bus/bus.ts";
import { inProcessBus } from "../support/in_process_bus.ts";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { createLog } from "../../src/observe/log.ts";
import { knownMemory } from "../../src/sharing/driver_memory.ts";
import { NetDriver } from "../../src/drivers/net/net_driver.ts";
import { Pinger } from "../../src/drivers/net/pinger.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";

const MEMORY = 16 << 20;
const AT = 0x4000_0000;
const SLOT = 64;
const SHOWN_DEVICE = 0;

/** One message as it passed the relay. */
export interface Passed {
  readonly from: "driver" | "device";
  /** The whole slot. */
  readonly bytes: Uint8Array;
}

/** Changes a slot; undefined drops it. */
export type Change = (from: Passed["from"], bytes: Uint8Array) => Uint8Array | undefined;

/** HELLO and its kin: two vmsg processes that are not to know each other. */
const isPrivate = (bytes: Uint8Array) => (bytes[0]! & 2) !== 0 && (bytes[1]! & 0x80) !== 0;

/** Everything. */
export interface Whole {
  readonly reactor: Reactor;
  readonly side: DriverSide;
  readonly deviceSide: DeviceSide;
  readonly device: NetDevice;
  readonly driver: NetDriver;
  /** What passed, in order, after the change. */
  readonly passed: Passed[];
  /** Bring-up, ARP and pings; how many were answered. */
  ping(): Promise<number>;
}

function relay(from: Passed["from"], source: Bus, target: Bus, passed: Passed[], change: Change) {
  source.open({
    attached: () => {},
    detached: () => {},
    received: (slot) => {
      const bytes = Uint8Array.from({ length: SLOT }, (_, i) => slot.getUint8(i));
      if (isPrivate(bytes)) return;
      const changed = change(from, bytes);
      if (changed === undefined) return;
      passed.push({ from, bytes: changed });
      const offset = target.claim();
      if (offset < 0) throw new Error("the relay's queue is full");
      changed.forEach((byte, i) => target.view.setUint8(offset + i, byte));
      target.send();
    },
  });
}

/** Runs a test's body. */
export async function withWhole(
  dialect: Dialect,
  body: (whole: Whole) => Promise<void>,
  change: Change = (_, bytes) => bytes,
): Promise<void> {
  using reactor = new Reactor();
  using stack = new DisposableStack();
  const memory = stack.use(mapAnonymous(MEMORY));
  const [front, back] = [stack.use(inProcessBus(reactor)), stack.use(inProcessBus(reactor))];
  const codec = codecFor(dialect);
  const log = createLog("test", "error", () => {});
  const deviceSide = stack.use(new DeviceSide({ reactor, bus: back.device, codec, log }));
  const device = new NetDevice(reactor, new ResponderPort({}, reactor), {
    mac: Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56),
    mtu: 1500,
  });
  deviceSide.add(SHOWN_DEVICE, device, [{ at: AT, size: MEMORY, memory, offset: 0 }]);
  const side = stack.use(new DriverSide({ reactor, bus: front.driver, codec, log }));
  const pinger = new Pinger(reactor, {
    target: "10.0.2.2",
    address: "10.0.2.15",
    count: 3,
    intervalMs: 1,
    throughputMs: 0,
    print: () => {},
  });
  const shared = knownMemory(memory, AT);
  const driver = stack.use(
    new NetDriver(reactor, side, SHOWN_DEVICE, pinger, log, { memory: shared }),
  );
  pinger.use(driver);
  const passed: Passed[] = [];
  deviceSide.open();
  relay("device", back.driver, front.device, passed, change);
  relay("driver", front.device, back.driver, passed, change);
  side.open();
  await reactor.until(body({
    reactor,
    side,
    deviceSide,
    device,
    driver,
    passed,
    ping: async () => (await pinger.run()).received,
  }));
}
