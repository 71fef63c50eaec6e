/** The subcommand `vmsg device`. */

import { UsageError } from "../linux/errors.ts";
import { BUS_OPTION, parseBus } from "./bus_option.ts";
import type { Command } from "./command.ts";
import { COMMON_OPTIONS, parseCommon, runDataPlane } from "./data_plane.ts";
import { MEMORY_OPTION, parseMemory } from "./memory_option.ts";
import { NET_OPTIONS, parseHub, parseNet } from "./net_option.ts";

/** See `vmsg device --help`. */
export const deviceCommand: Command = {
  name: "device",
  summary: "the device side: virtio network cards for a driver side elsewhere",
  description:
    "Serves virtio-net devices over a virtio-msg bus. The driver side is `vmsg proxy`, `vmsg driver`\n" +
    "or any other speaker of the dialect. Runs until it is told to stop.",
  options: [
    BUS_OPTION,
    ...NET_OPTIONS,
    MEMORY_OPTION,
    ...COMMON_OPTIONS,
  ],
  examples: [
    "vmsg device --bus linux-user,socket=lu.sock --net responder",
    "vmsg device --bus linux-user,socket=lu.sock --net tap=tap0,address=10.0.2.2/24",
    "vmsg device --bus linux-user,socket=lu.sock --net passt,pcap=frames.pcap",
    "vmsg device --bus ... --net hub=lan --net hub=lan --hub passt,name=lan",
    "vmsg device --bus linux-user,socket=lu.sock,dialect=proto --memory file=ram,at=0x40000000",
  ],
  run: (options) => {
    const nets = options.list("net");
    if (nets.length > 64) throw new UsageError("at most 64 --net");
    const settings = {
      bus: parseBus(options.text("bus")!, "device"),
      memories: options.list("memory").map(parseMemory),
      hubs: options.list("hub").map(parseHub),
      nets: (nets.length > 0 ? nets : ["responder"]).map(parseNet),
    };
    return runDataPlane({ kind: "device", settings }, parseCommon(options));
  },
};
