/** `vmsg device`: bus -> device side of the transport -> network devices -> ports. */

import { codecFor } from "../../message/codecs.ts";
import { NetDevice } from "../../devices/net/net_device.ts";
import { VmsgError } from "../../linux/errors.ts";
import { AddressSpace } from "../../memory/mod.ts";
import { DeviceSide, type FixedWindow } from "../../transport/device_side.ts";
import { type BusSettings, detectable, openBus } from "../bus_option.ts";
import { type DeviceMemorySettings, openDeviceMemory, windowsOf } from "../memory_option.ts";
import type { HubSettings, NetSettings } from "../net_option.ts";
import { Hubs, openNet } from "./ports.ts";
import type { PlaneContext, RunningPlane } from "../worker.ts";

/** Parsed options. */
export interface DeviceSettings {
  readonly bus: BusSettings;
  /** In order of their device numbers, from 0. */
  readonly nets: readonly NetSettings[];
  readonly hubs: readonly HubSettings[];
  /** Touch the bus's segment only. */
  readonly confined: boolean;
  readonly memories: readonly DeviceMemorySettings[];
}

/** Each device shows the windows only when a driver side needs them; what is wrong is said before. */
function assertDisjoint(windows: readonly FixedWindow[]): void {
  const space = new AddressSpace();
  for (const { at, size, memory, offset } of windows) {
    const problem = space.add(at, size, memory, offset);
    if (problem === undefined) continue;
    const where = `0x${at.toString(16)}`;
    throw new VmsgError(
      "MEMORY",
      problem === "overlap"
        ? `--memory at ${where} overlaps another --memory`
        : `--memory: ${size} bytes cannot lie at ${where}`,
    );
  }
}

/** Builds the parts. */
export function openDevicePlane(settings: DeviceSettings, context: PlaneContext): RunningPlane {
  const { reactor, log, tracer, stack } = context;
  const bus = stack.use(openBus(settings.bus, "device", reactor, log));
  const codec = codecFor(settings.bus.dialect);
  const detect = detectable(settings.bus);
  const { confined } = settings;
  const side = stack.use(new DeviceSide({ reactor, bus, codec, detect, log, tracer, confined }));
  const windows = settings.memories.flatMap((memory) =>
    windowsOf(memory, stack.use(openDeviceMemory(memory, log)))
  );
  assertDisjoint(windows);
  const hubs = new Hubs(settings.hubs, context);
  const devices = settings.nets.map((net, number) => {
    const { port, mtu } = openNet(net, hubs, context);
    const device = new NetDevice(reactor, port, { mac: net.mac, mtu });
    side.add(number, device, windows);
    return device;
  });
  side.open();
  return {
    finish: () => {
      devices.forEach(({ counters, port }, number) => {
        log.debug(`device ${number} (${port.description}): ${JSON.stringify(counters)}`);
      });
      log.debug(`transport: ${JSON.stringify(side.counters)}`);
    },
  };
}
