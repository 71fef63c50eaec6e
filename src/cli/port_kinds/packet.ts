/** `--net packet`: a raw socket. */

import { type PacketOptions, PacketPort } from "../../network/packet.ts";
import type { PortKind } from "./port_kind.ts";

export const packetKind: PortKind<PacketOptions> = {
  name: "packet",
  usage: "packet=INTERFACE[,offloads=off]",
  help: "a raw socket on a real interface",
  keys: ["offloads"],
  parse: (group) => {
    const name = group.text("packet");
    if (name === undefined || name === "on") throw group.error("packet=INTERFACE names none");
    return { name, offloads: group.flag("offloads", true) };
  },
  open: (options, { reactor, log }) => {
    const port = new PacketPort(options, reactor, log);
    return { port, mtu: port.mtu };
  },
};
