/** Two in-process buses with a carrier between them: devices on the one, a driver side on the other. */

import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { Carrier } from "../../src/drivers/carried/carrier.ts";
import { Shares } from "../../src/drivers/carried/shares.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { createLog, type Log } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { DeviceModel } from "../../src/virtio/device.ts";
import { VirtualClock } from "./virtual_clock.ts";

/** See the head of this file. */
export interface CarrierRig {
  readonly reactor: Reactor;
  /** Has the devices. */
  readonly devices: DeviceSide;
  /** Drives them, on the other bus. */
  readonly driver: DriverSide;
  readonly log: Log;
  readonly lines: string[];
  /** The devices' process is another one from here on, for all that the carrier knows. */
  restartDevices(): void;
  /** Waits until something is so. */
  wait(condition: () => boolean): Promise<void>;
}

/** How a rig differs from the usual one. */
export interface CarrierRigOptions {
  /** By number; device 0 is there unless it is undefined. */
  readonly models: (reactor: Reactor) => Readonly<Record<number, DeviceModel>>;
  readonly from?: Dialect;
  readonly numbers?: ReadonlyMap<number, number>;
  readonly limit?: number;
  /** Rings and buffers are copied. */
  readonly copied?: boolean;
}

/** Runs a test's body in the reactor of a fresh rig. */
export async function withCarrier(
  body: (rig: CarrierRig) => Promise<void>,
  options: CarrierRigOptions,
): Promise<void> {
  const { models, from = "v1", numbers, limit, copied = false } = options;
  using reactor = new Reactor(new VirtualClock());
  using a = inProcessBus(reactor);
  using b = inProcessBus(reactor);
  const lines: string[] = [];
  const log = createLog("test", "debug", (line) => lines.push(line));
  using devices = new DeviceSide({ reactor, bus: a.device, codec: codecFor(from), log });
  for (const [number, model] of Object.entries(models(reactor))) {
    devices.add(Number(number), model);
  }
  using shares = new Shares({
    ...{ reactor, log, from: a.driver, to: b.device, limit, canBeTold: from === "v1" },
    copied: copied ? {} : undefined,
  });
  using side = new DriverSide({ reactor, bus: a.driver, codec: codecFor(from), log });
  const codec = codecFor("v1");
  using offered = new DeviceSide({ reactor, bus: b.device, codec, log });
  using _carrier = new Carrier({
    ...{ reactor, from: side, to: offered, log, numbers, shares, windows: [] },
    configSizeOf: () => undefined,
  });
  using driver = new DriverSide({ reactor, bus: b.driver, codec, log });
  devices.open();
  side.open();
  driver.open();
  const rig: CarrierRig = {
    reactor,
    devices,
    driver,
    log,
    lines,
    restartDevices: () => a.attachAgain(),
    async wait(condition) {
      const endMs = reactor.now() + 20_000;
      while (!condition()) {
        if (reactor.now() > endMs) throw new Error(`never so: ${condition}\n${lines.join("\n")}`);
        await reactor.sleep(1);
      }
    },
  };
  await reactor.until(body(rig));
}
