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

/**
 * The address of the host's end of a TAP for a network card: as libvirt makes it, the card's with another
 * first byte. It is the same each time, so peers find the host again when the device was restarted.
 */
function hostMac(card: Uint8Array): Uint8Array {
  const mac = card.slice();
  mac[0] = card[0] === 0xfe ? 0xfa : 0xfe;
  return mac;
}

/**
 * Opens one port.
 *
 * @param card the address of the network card that it is opened for
 */
export function openPort(
  settings: PortSettings,
  context: PlaneContext,
  card?: Uint8Array,
): OpenPort {
  const { reactor, log } = context;
  switch (settings.kind) {
    case "responder":
      return { port: new ResponderPort(settings.options, reactor), mtu: DEFAULT_MTU };
    case "tap": {
      const mac = card === undefined ? {} : { mac: hostMac(card) };
      const port = new TapPort({ ...mac, ...settings.options }, reactor);
      return { port, mtu: port.mtu };
    }
    case "packet": {
      const port = new PacketPort(settings.options, reactor, log);
      return { port, mtu: port.mtu };
    }
    case "passt":
      // passt's own default of 65520 does not fit the device's.
      // One that runs already has its arguments.
      return {
        port: new PasstPort(
          settings.options.socket === undefined
            ? { args: ["--mtu", String(DEFAULT_MTU)], ...settings.options }
            : settings.options,
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

  connect(name: string, card: Uint8Array): OpenPort {
    let hub = this.#hubs.get(name);
    if (hub === undefined) {
      const uplink = this.settings.find((hub) => hub.name === name)?.uplink;
      const options = uplink === undefined
        ? {}
        : { uplink: openPort(uplink, this.context, card).port };
      hub = this.context.stack.use(new Hub(this.context.reactor, options));
      this.#hubs.set(name, hub);
    }
    return { port: hub.connect(), mtu: hub.mtu };
  }
}

/** Opens the port of one network card, with its capture. */
export function openNet(net: NetSettings, hubs: Hubs, context: PlaneContext): OpenPort {
  const { port, mtu } = net.port.kind === "hub"
    ? hubs.connect(net.port.name, net.mac)
    : openPort(net.port, context, net.mac);
  if (net.capture === undefined) return { port, mtu: net.mtu ?? mtu };
  const { reactor, log } = context;
  const capture = new CapturingPort(port, { path: net.capture }, reactor, log);
  return { port: capture, mtu: net.mtu ?? mtu };
}
