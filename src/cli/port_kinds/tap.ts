/** `--net tap`, and `--tap` of `vmsg driver`: the kernel's network. */

import { type TapOptions, TapPort } from "../../network/tap.ts";
import { parseMtu, type PortKind } from "./port_kind.ts";

/**
 * The address of the host's end of a TAP for a network card: as libvirt makes it, the card's with another
 * first byte. It is the same each time, so peers find the host again when the device was restarted.
 */
function hostMac(card: Uint8Array): Uint8Array {
  const mac = card.slice();
  mac[0] = card[0] === 0xfe ? 0xfa : 0xfe;
  return mac;
}

export const tapKind: PortKind<TapOptions> = {
  name: "tap",
  usage: "tap[=NAME][,bridge=BR][,address=A/P][,persistent][,offloads=off]",
  help: "the kernel's network, with all offloads unless they are off",
  keys: ["bridge", "address", "persistent", "offloads"],
  parse: (group) => {
    const name = group.text("tap");
    const isPersistenceGiven = group.text("persistent") !== undefined;
    return {
      name: name === "on" ? undefined : name,
      bridge: group.text("bridge"),
      address: group.text("address"),
      persistent: isPersistenceGiven ? group.flag("persistent", false) : undefined,
      mtu: parseMtu(group),
      offloads: group.flag("offloads", true),
    };
  },
  open: (options, { reactor, card, queues }) => {
    const mac = card === undefined ? {} : { mac: hostMac(card) };
    const port = new TapPort({ ...mac, ...options, queues }, reactor);
    return { port, mtu: port.mtu };
  },
};
