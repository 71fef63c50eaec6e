/** Opens the network ports that options describe. */

import { Hub } from "../../network/hub.ts";
import { PacketPort } from "../../network/packet.ts";
import { PasstPort } from "../../network/passt.ts";
import { CapturingPort } from "../../network/pcap.ts";
import type { NetworkPort } from "../../network/port.ts";
import { ResponderPort } from "../../network/responder_port.ts";
import { TapPort } from "../../network/tap.ts";
import type { HubSettings, NetSettings, PortSettings } from "../net_option.ts";
import type { PlaneContext } from "../worker.ts";

const DEFAULT_MTU = 1500;

/** A port, and the MTU of the network behind it. */
export interface OpenPort {
  readonly port: NetworkPort;
  readonly mtu: number;
}

/** Opens one port. */
export function openPort(settings: PortSettings, context: PlaneContext): OpenPort {
  const { reactor, log } = context;
  switch (settings.kind) {
    case "responder":
      return { port: new ResponderPort(settings.options, reactor), mtu: DEFAULT_MTU };
    case "tap": {
      const port = new TapPort(settings.options, reactor);
      return { port, mtu: port.mtu };
    }
    case "packet": {
      const port = new PacketPort(settings.options, reactor, log);
      return { port, mtu: port.mtu };
    }
    case "passt":
      // passt's own default of 65520 does not fit the device's.
      return {
        port: new PasstPort(
          { args: ["--mtu", String(DEFAULT_MTU)], ...settings.options },
          reactor,
          log,
        ),
        mtu: DEFAULT_MTU,
      };
  }
}

/** The hubs of one process, by name; each is made when it is first named. */
export class Hubs {
  readonly #hubs = new Map<string, Hub>();

  constructor(readonly settings: readonly HubSettings[], readonly context: PlaneContext) {}

  connect(name: string): OpenPort {
    let hub = this.#hubs.get(name);
    if (hub === undefined) {
      const uplink = this.settings.find((hub) => hub.name === name)?.uplink;
      const options = uplink === undefined ? {} : { uplink: openPort(uplink, this.context).port };
      hub = this.context.stack.use(new Hub(this.context.reactor, options));
      this.#hubs.set(name, hub);
    }
    return { port: hub.connect(), mtu: hub.mtu };
  }
}

/** Opens the port of one network card, with its capture. */
export function openNet(net: NetSettings, hubs: Hubs, context: PlaneContext): OpenPort {
  const { port, mtu } = net.port.kind === "hub"
    ? hubs.connect(net.port.name)
    : openPort(net.port, context);
  if (net.capture === undefined) return { port, mtu: net.mtu ?? mtu };
  const { reactor, log } = context;
  const capture = new CapturingPort(port, { path: net.capture }, reactor, log);
  return { port: capture, mtu: net.mtu ?? mtu };
}
