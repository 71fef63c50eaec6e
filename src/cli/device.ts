/** The subcommand `vmsg device`. */

import { UsageError } from "../linux/errors.ts";
import { parseMac } from "../network/responder/ethernet.ts";
import { Responder } from "../network/responder/responder.ts";
import { BUS_OPTION, parseBus } from "./bus_option.ts";
import type { Command } from "./command.ts";
import { COMMON_OPTIONS, parseCommon, runDataPlane } from "./data_plane.ts";
import { parseGroup } from "./groups.ts";
import { MEMORY_OPTION, parseMemory } from "./memory_option.ts";
import type { NetSettings } from "./planes/device.ts";

/** An address in QEMU's range, the last bytes by device number. */
function defaultMac(number: number): string {
  return `52:54:00:12:34:${(0x56 + number).toString(16)}`;
}

/** Parses one `--net`. */
export function parseNet(text: string, number: number): NetSettings {
  const group = parseGroup("net", text, {
    responder: ["mac", "mtu", "address", "flood"],
  });
  const mac = group.text("mac") ?? defaultMac(number);
  const flood = group.number("flood", 0, 1_000_000, 0);
  const responder = {
    address: group.text("address") ?? "10.0.2.2",
    ...(flood > 0 ? { floodFramesPerSecond: flood } : {}),
  };
  try {
    new Responder(responder);
    return { mac: parseMac(mac), mtu: group.number("mtu", 68, 65535, 1500), responder };
  } catch (error) {
    if (error instanceof TypeError) throw group.error(error.message);
    throw error;
  }
}

/** See `vmsg device --help`. */
export const deviceCommand: Command = {
  name: "device",
  summary: "the device side: virtio network cards for a driver side elsewhere",
  description:
    "Serves virtio-net devices over a virtio-msg bus. The driver side is `vmsg proxy`, `vmsg driver`\n" +
    "or any other speaker of the dialect. Runs until it is told to stop.",
  options: [
    BUS_OPTION,
    {
      name: "net",
      value: "responder[,mac=MAC][,mtu=N][,address=A][,flood=N]",
      repeated: true,
      help:
        "a network card, numbered from 0 in the order given, by default one. `responder` is a " +
        "host of our own at 10.0.2.2 that answers ARP, ping and DHCP, discards UDP port 9 and " +
        "generates UDP from port 19; flood sends N broadcast frames a second to the guest",
    },
    MEMORY_OPTION,
    ...COMMON_OPTIONS,
  ],
  examples: [
    "vmsg device --bus linux-user,socket=lu.sock --net responder",
    "vmsg device --bus linux-user,socket=lu.sock,dialect=proto --memory file=ram,at=0x40000000",
  ],
  run: (options) => {
    const nets = options.list("net");
    if (nets.length > 64) throw new UsageError("at most 64 --net");
    const settings = {
      bus: parseBus(options.text("bus")!, "device"),
      memories: options.list("memory").map(parseMemory),
      nets: (nets.length > 0 ? nets : ["responder"]).map(parseNet),
    };
    return runDataPlane({ kind: "device", settings }, parseCommon(options));
  },
};
