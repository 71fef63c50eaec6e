/** `vmsg device`: bus -> device side of the transport -> network devices -> ports. */

import { codecFor } from "../../message/codecs.ts";
import { NetDevice } from "../../device/net/net_device.ts";
import { DeviceSide } from "../../transport/device_side.ts";
import { type BusSettings, openBus } from "../bus_option.ts";
import { addWindows, type MemorySettings, openMemory } from "../memory_option.ts";
import type { HubSettings, NetSettings } from "../net_option.ts";
import { Hubs, openNet } from "./ports.ts";
import type { PlaneContext, RunningPlane } from "../worker.ts";

/** Parsed options. */
export interface DeviceSettings {
  readonly bus: BusSettings;
  /** In order of their device numbers, from 0. */
  readonly nets: readonly NetSettings[];
  readonly hubs: readonly HubSettings[];
  readonly memories: readonly MemorySettings[];
}

/** Builds the parts. */
export function openDevicePlane(settings: DeviceSettings, context: PlaneContext): RunningPlane {
  const { reactor, log, tracer, stack } = context;
  const bus = stack.use(openBus(settings.bus, "device", reactor, log));
  const codec = codecFor(settings.bus.dialect);
  const side = stack.use(new DeviceSide({ reactor, bus, codec, log, tracer }));
  const memories = settings.memories.map((memory) => ({
    memory,
    open: stack.use(openMemory(memory)),
  }));
  const hubs = new Hubs(settings.hubs, context);
  const devices = settings.nets.map((net, number) => {
    const { port, mtu } = openNet(net, hubs, context);
    const device = new NetDevice(reactor, port, { mac: net.mac, mtu });
    const host = side.add(number, device);
    for (const { memory, open } of memories) addWindows(host.memory, memory, open);
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
