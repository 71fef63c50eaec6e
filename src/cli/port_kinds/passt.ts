/** `--net passt`: user-mode networking through the program passt. */

import { type PasstOptions, PasstPort } from "../../network/passt.ts";
import { DEFAULT_MTU, type PortKind } from "./port_kind.ts";

export const passtKind: PortKind<PasstOptions> = {
  name: "passt",
  usage: "passt[,loopback=on][,socket=PATH]",
  help:
    "the host's network without root, through the program passt; with loopback the guest reaches what " +
    "listens on the host's loopback, at its gateway's address; socket is that of one that runs, with " +
    "its own arguments",
  keys: ["loopback", "socket"],
  parse: (group) => {
    const socket = group.text("socket");
    const loopback = group.flag("loopback", false);
    return socket === undefined ? { loopback } : { loopback, socket };
  },
  open: (options, { reactor, log }) => {
    // passt's own default of 65520 does not fit the device's. One that runs already has its arguments.
    const args = options.socket === undefined ? { args: ["--mtu", String(DEFAULT_MTU)] } : {};
    return { port: new PasstPort({ ...args, ...options }, reactor, log), mtu: DEFAULT_MTU };
  },
};
