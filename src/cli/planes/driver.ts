/** `vmsg driver`: a virtio-net driver in user space and its pinger. */

import { codecFor } from "../../message/codecs.ts";
import { mirrored, PortBridge } from "../../drivers/net/port_bridge.ts";
import { NetDriver } from "../../drivers/net/net_driver.ts";
import {
  describeResult,
  Pinger,
  type PingOptions,
  type PingResult,
} from "../../drivers/net/pinger.ts";
import { DriverSide } from "../../transport/driver_side.ts";
import { type BusSettings, openBus } from "../bus_option.ts";
import { type DriverMemorySettings, openDriverMemory } from "../memory_option.ts";
import type { PortSettings } from "../net_option.ts";
import { openPort } from "./ports.ts";
import type { PlaneContext, RunningPlane } from "../worker.ts";

/** Parsed options. */
export interface DriverSettings {
  readonly bus: BusSettings;
  readonly device: number;
  readonly memory: DriverMemorySettings | undefined;
  readonly ping: Omit<PingOptions, "print">;
  /** A port to join the driver to, instead of pinging. */
  readonly tap: PortSettings | undefined;
  /** Print one JSON object at the end instead of lines. */
  readonly json: boolean;
}

/** Builds the parts. */
export function openDriverPlane(settings: DriverSettings, context: PlaneContext): RunningPlane {
  const { reactor, log, tracer, stack } = context;
  const bus = stack.use(openBus(settings.bus, "driver", reactor, log));
  const codec = codecFor(settings.bus.dialect);
  const side = stack.use(new DriverSide({ reactor, bus, codec, log, tracer }));
  const memory = openDriverMemory(settings.memory, bus, stack);
  if (settings.tap !== undefined) {
    const bridge = stack.use(
      new PortBridge(reactor, openPort(settings.tap, context).port, log.info),
    );
    const offloads = mirrored(bridge.port.features);
    const options = { memory, offloads };
    bridge.use(stack.use(new NetDriver(reactor, side, settings.device, bridge, log, options)));
    side.open();
    return {};
  }
  const print = settings.json ? () => {} : context.print;
  const pinger = new Pinger(reactor, { ...settings.ping, print });
  const driver = stack.use(new NetDriver(reactor, side, settings.device, pinger, log, { memory }));
  pinger.use(driver);
  let result: PingResult | undefined;
  reactor.spawn(async () => {
    result = await pinger.run();
    reactor.stop();
  });
  side.open();
  return {
    finish: () => {
      result ??= pinger.result();
      if (settings.json) context.print(JSON.stringify(result));
      else for (const line of describeResult(result)) print(line);
    },
    // As ping(8): success means that somebody answered.
    exitCode: () => result !== undefined && result.received > 0 ? 0 : 1,
  };
}
