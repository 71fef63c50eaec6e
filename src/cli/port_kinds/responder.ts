/** `--net responder`: a host of our own. */

import { Responder, type ResponderOptions } from "../../network/responder/responder.ts";
import { ResponderPort } from "../../network/responder_port.ts";
import { DEFAULT_MTU, type PortKind } from "./port_kind.ts";

export const responderKind: PortKind<ResponderOptions> = {
  name: "responder",
  usage: "responder[,address=A][,address6=A][,flood=N]",
  help:
    "a host of our own at 10.0.2.2 that answers ARP, ping, DHCP and IPv6 discovery, discards port " +
    "9 and generates from port 19; flood sends N broadcast frames a second",
  keys: ["address", "address6", "flood"],
  parse: (group) => {
    const options = {
      address: group.text("address"),
      address6: group.text("address6"),
      floodFramesPerSecond: group.number("flood", 0, 1_000_000, 0),
    };
    try {
      // It knows what is wrong with an address.
      new Responder(options, () => 0);
      return options;
    } catch (error) {
      throw group.error(error instanceof Error ? error.message : String(error));
    }
  },
  open: (options, { reactor }) => ({ port: new ResponderPort(options, reactor), mtu: DEFAULT_MTU }),
};
