/** The subcommand `vmsg proxy`. */

import { UsageError } from "../linux/errors.ts";
import { BUS_OPTION, parseBus } from "./bus_option.ts";
import type { Command } from "./command.ts";
import { COMMON_OPTIONS, parseCommon, runDataPlane } from "./data_plane.ts";
import { parseGroup } from "./groups.ts";

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
      value: "socket=PATH[,device=N]",
      repeated: true,
      required: true,
      help:
        "listen on PATH for the front end that shall have device number N (default: 0, 1, ... " +
        "in the order given)",
    },
    ...COMMON_OPTIONS,
  ],
  examples: [
    "vmsg proxy --bus linux-user,socket=lu.sock --vhost-user socket=vu.sock",
    "linux.uml mem=128M initrd=initrd virtio_uml.device=vu.sock:1",
  ],
  run: (options) => {
    const vhostUsers = options.list("vhost-user").map((text, index) => {
      const group = parseGroup("vhost-user", text, { "": ["socket", "device"] });
      return { socket: group.required("socket"), device: group.number("device", 0, 65535, index) };
    });
    const numbers = new Set(vhostUsers.map(({ device }) => device));
    if (numbers.size < vhostUsers.length) {
      throw new UsageError(
        "--vhost-user: a device number belongs to one guest, one is given twice",
      );
    }
    const settings = { bus: parseBus(options.text("bus")!, "driver"), vhostUsers };
    return runDataPlane({ kind: "proxy", settings }, parseCommon(options));
  },
};
