/** `vmsg proxy`: vhost-user front ends -> driver side of the transport -> bus. */

import { codecFor } from "../../message/codecs.ts";
import { ConfinedDevice } from "../../proxy/confined/confined_device.ts";
import { Segment } from "../../proxy/confined/segment.ts";
import { type VhostUserOptions, VhostUserServer } from "../../proxy/vhost_user/server.ts";
import { DriverSide } from "../../transport/driver_side.ts";
import { type BusSettings, openBus } from "../bus_option.ts";
import type { PlaneContext, RunningPlane } from "../worker.ts";

/** Parsed options. */
export interface ProxySettings {
  readonly bus: BusSettings;
  readonly vhostUsers: readonly VhostUserOptions[];
  /** Confined mode: bytes of the segment, undefined for all that the bus has. */
  readonly confined: { readonly size: number | undefined } | undefined;
}

/** Builds the parts. */
export function openProxyPlane(settings: ProxySettings, context: PlaneContext): RunningPlane {
  const { reactor, log, tracer, stack } = context;
  const bus = stack.use(openBus(settings.bus, "driver", reactor, log));
  const codec = codecFor(settings.bus.dialect);
  const side = stack.use(new DriverSide({ reactor, bus, codec, log, tracer }));
  const { confined, vhostUsers } = settings;
  const segment = confined && stack.use(new Segment(bus, confined.size, vhostUsers.length));
  for (const [position, options] of vhostUsers.entries()) {
    const device = side.device(options.device);
    const shadows = segment && new ConfinedDevice({ reactor, device, segment, position, log });
    stack.use(new VhostUserServer(reactor, side, options, log, shadows));
  }
  side.open();
  return {};
}
