/** The subcommand `vmsg device`. */

import { UsageError } from "../linux/errors.ts";
import { BUS_HELP, BUS_OPTION, parseBus } from "./bus_option.ts";
import type { Command } from "./command.ts";
import { COMMON_OPTIONS, parseCommon, runDataPlane } from "./data_plane.ts";
import { DEVICE_MEMORY_OPTION, parseDeviceMemory } from "./memory_option.ts";
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
    DEVICE_MEMORY_OPTION,
    {
      name: "confined",
      help: "touch no memory of the other side but the bus's segment (proxy and driver --confined)",
    },
    ...COMMON_OPTIONS,
  ],
  details: [BUS_HELP],
  examples: [
    "vmsg device --bus linux-user,socket=lu.sock --net responder",
    "vmsg device --bus linux-user,socket=lu.sock --net tap=tap0,address=10.0.2.2/24",
    "vmsg device --bus linux-user,socket=lu.sock --net passt,pcap=frames.pcap",
    "vmsg device --bus ... --net hub=lan --net hub=lan --hub passt,name=lan",
    "vmsg device --bus linux-user,socket=lu.sock,dialect=proto --memory file=ram,at=0x40000000",
    "vmsg device --bus ivshmem,pci=00:10.0,bind --memory pci=00:11.0,at=0 --net packet=eth0",
  ],
  run: (options) => {
    const nets = options.list("net");
    if (nets.length > 64) throw new UsageError("at most 64 --net");
    const confined = options.flag("confined");
    if (confined && options.list("memory").length > 0) {
      throw new UsageError("--memory goes without --confined, which touches the segment only");
    }
    const settings = {
      confined,
      bus: parseBus(options.text("bus")!, "device"),
      memories: options.list("memory").map(parseDeviceMemory),
      hubs: options.list("hub").map(parseHub),
      nets: (nets.length > 0 ? nets : ["responder"]).map(parseNet),
    };
    return runDataPlane({ kind: "device", settings }, parseCommon(options));
  },
};
