/** `vmsg proxy`: vhost-user front ends -> driver side of the transport -> bus. */

import { codecFor } from "../../message/codecs.ts";
import { ShadowDevice } from "../../sharing/shadow_device.ts";
import { Segment } from "../../sharing/segment.ts";
import { RingPages } from "../../sharing/ring_pages.ts";
import { type VhostUserOptions, VhostUserServer } from "../../drivers/vhost_user/server.ts";
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
  const count = vhostUsers.length;
  // Between machines no descriptors travel: there the device side sees RAM by physical address.
  const pages = confined !== undefined || bus.carriesFds
    ? undefined
    : stack.use(new RingPages(bus, count, log));
  if (pages !== undefined) side.listen(pages);
  const place = confined === undefined ? pages : stack.use(new Segment(bus, confined.size, count));
  for (const [position, options] of vhostUsers.entries()) {
    const device = side.device(options.device);
    const shadows = place && new ShadowDevice({ reactor, device, place, position, log });
    stack.use(new VhostUserServer(reactor, side, options, log, shadows));
  }
  side.open();
  return {};
}
