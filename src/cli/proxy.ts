/** The subcommand `vmsg proxy`. */

import { UsageError } from "../linux/errors.ts";
import type { VhostUserOptions } from "../drivers/vhost_user/server.ts";
import { BUS_HELP, BUS_OPTION, parseBus } from "./bus_option.ts";
import type { Command } from "./command.ts";
import { COMMON_OPTIONS, parseCommon, runDataPlane } from "./data_plane.ts";
import { parseGroup } from "./groups.ts";
import { CONFINED_OPTIONS, parseConfined } from "./memory_option.ts";

/** Parses one `--vhost-user`. */
export function parseVhostUser(text: string, index: number): VhostUserOptions {
  const group = parseGroup("vhost-user", text, { "": ["socket", "connect", "fd", "device"] });
  const device = group.number("device", 0, 65535, index);
  if (group.text("fd") !== undefined) {
    if (group.text("socket") !== undefined) throw group.error("give either socket= or fd=");
    return { source: { kind: "fd", number: group.number("fd", 3, 1 << 20, 3) }, device };
  }
  const kind = group.flag("connect", false) ? "connect" : "listen";
  return { source: { kind, socket: group.required("socket") }, device };
}

/** See `vmsg proxy --help`. */
export const proxyCommand: Command = {
  name: "proxy",
  summary: "the driver side: lends a stock QEMU or User-Mode Linux guest a device elsewhere",
  description:
    "Offers vhost-user sockets to stock front ends and carries what their guests' drivers do over a\n" +
    "virtio-msg bus to a device side. The guest's memory must be shared. Runs until it is told to stop.",
  options: [
    BUS_OPTION,
    {
      name: "vhost-user",
      value: "socket=PATH[,connect][,device=N] or fd=N[,device=N]",
      repeated: true,
      required: true,
      help: "listen on PATH, or connect to it, for the front end that shall have device number N " +
        "(default: 0, 1, ... in the order given); fd is a connection that the caller made",
    },
    ...CONFINED_OPTIONS,
    {
      name: "print-capabilities",
      alone: true,
      help: "print what this back end is as JSON, and end",
    },
    ...COMMON_OPTIONS,
  ],
  details: [BUS_HELP],
  examples: [
    "vmsg proxy --bus linux-user,socket=lu.sock --vhost-user socket=vu.sock",
    "vmsg proxy --bus ivshmem,pci=00:10.0,bind --vhost-user socket=vu.sock --confined",
    "linux.uml mem=128M initrd=initrd virtio_uml.device=vu.sock:1",
  ],
  run: (options) => {
    if (options.flag("print-capabilities")) {
      // The form of QEMU's back-end program conventions (docs/interop/vhost-user.rst).
      console.log(JSON.stringify({ type: "net" }));
      return Promise.resolve(0);
    }
    const vhostUsers = options.list("vhost-user").map(parseVhostUser);
    const numbers = new Set(vhostUsers.map(({ device }) => device));
    if (numbers.size < vhostUsers.length) {
      throw new UsageError(
        "--vhost-user: a device number belongs to one guest, one is given twice",
      );
    }
    const confined = parseConfined(options);
    const settings = { bus: parseBus(options.text("bus")!, "driver"), vhostUsers, confined };
    return runDataPlane({ kind: "proxy", settings }, parseCommon(options));
  },
};
