/**
 * The two sides with a relay in between: a network card with the responder behind it, the net driver and
 * its pinger in front, all messages on record. The relay may change what passes.
 */

import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
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
import { type Change, type From, relay } from "./relay.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const MEMORY = 16 << 20;
/** Where the driver's memory lies on the bus. */
export const AT = 0x4000_0000;
const SHOWN_DEVICE = 0;

/** One message as it passed the relay. */
export interface Passed {
  readonly from: From;
  /** The whole slot. */
  readonly bytes: Uint8Array;
}

/** Everything. */
export interface Whole {
  readonly reactor: Reactor;
  readonly side: DriverSide;
  readonly deviceSide: DeviceSide;
  readonly device: NetDevice;
  readonly driver: NetDriver;
  /** The driver's. */
  readonly memory: Mapping;
  /** What passed, in order, after the change. */
  readonly passed: Passed[];
  /** Bring-up, ARP and pings; how many were answered. */
  ping(): Promise<number>;
}

/** Runs a test's body. */
export async function withWhole(
  dialect: Dialect,
  body: (whole: Whole) => Promise<void>,
  change: Change = (_, bytes) => [bytes],
): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
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
  const recorded: Change = (from, bytes) => {
    const changed = change(from, bytes);
    for (const bytes of changed) passed.push({ from, bytes });
    return changed;
  };
  relay("device", back.driver, front.device, recorded);
  relay("driver", front.device, back.driver, recorded);
  side.open();
  await reactor.until(body({
    reactor,
    side,
    deviceSide,
    device,
    driver,
    memory,
    passed,
    ping: async () => (await pinger.run()).received,
  }));
}
