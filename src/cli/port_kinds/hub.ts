/** `--net hub`: a link that several cards of one process share. */

import type { PortKind } from "./port_kind.ts";

export const hubKind: PortKind<{ readonly link: string }> = {
  name: "hub",
  usage: "hub[=NAME]",
  help: "a link that several cards share, joined to another port by --hub",
  keys: [],
  parse: (group) => {
    const link = group.text("hub") ?? "on";
    return { link: link === "on" ? "hub" : link };
  },
  open: ({ link }, { hubs, card }) => {
    if (hubs === undefined || card === undefined) throw new Error("a hub is for network cards");
    return hubs.connect(link, card);
  },
};
