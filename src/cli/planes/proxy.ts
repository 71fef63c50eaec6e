/** `vmsg proxy`: vhost-user front ends -> driver side of the transport -> bus. */

import { codecFor } from "../../message/codecs.ts";
import { type VhostUserOptions, VhostUserServer } from "../../proxy/vhost_user/server.ts";
import { DriverSide } from "../../transport/driver_side.ts";
import { type BusSettings, openBus } from "../bus_option.ts";
import type { PlaneContext, RunningPlane } from "../worker.ts";

/** Parsed options. */
export interface ProxySettings {
  readonly bus: BusSettings;
  readonly vhostUsers: readonly VhostUserOptions[];
}

/** Builds the parts. */
export function openProxyPlane(settings: ProxySettings, context: PlaneContext): RunningPlane {
  const { reactor, log, tracer, stack } = context;
  const bus = stack.use(openBus(settings.bus, "driver", reactor, log));
  const codec = codecFor(settings.bus.dialect);
  const side = stack.use(new DriverSide({ reactor, bus, codec, log, tracer }));
  for (const options of settings.vhostUsers) {
    stack.use(new VhostUserServer(reactor, side, options, log));
  }
  side.open();
  return {};
}
