/** The subcommand `vmsg driver`. */

import { UsageError } from "../linux/errors.ts";
import { parseIpv4Address } from "../network/protocols/ipv4.ts";
import { BUS_HELP, BUS_OPTION, parseBus } from "./bus_option.ts";
import type { Command, Options } from "./command.ts";
import { COMMON_OPTIONS, parseCommon, runDataPlane } from "./data_plane.ts";
import { parseTap } from "./net_option.ts";
import {
  CONFINED_OPTIONS,
  DRIVER_MEMORY_OPTION,
  parseConfined,
  parseDriverMemory,
} from "./memory_option.ts";

function addressOption(options: Options, name: string): string {
  const text = options.text(name)!;
  try {
    parseIpv4Address(text);
  } catch {
    throw new UsageError(`--${name} takes an IPv4 address, not ${text}`);
  }
  return text;
}

/** See `vmsg driver --help`. */
export const driverCommand: Command = {
  name: "driver",
  summary: "the driver side without a guest: a virtio-net driver in user space that pings",
  description:
    "Drives the network card of a device side from user space, and pings through it. It waits for the\n" +
    "device side, and takes it back when it was restarted. Exit code 0 if a ping was answered.",
  options: [
    BUS_OPTION,
    { name: "device", value: "N", default: "0", help: "device number on the bus" },
    {
      name: "tap",
      value: "NAME[,bridge=BR][,address=A/P][,persistent][,offloads=off]",
      help: "be a network card of this machine: join the device to a TAP instead of pinging",
    },
    { name: "ping", value: "ADDRESS", default: "10.0.2.2", help: "whom to ping" },
    { name: "address", value: "ADDRESS", default: "10.0.2.15", help: "our own address" },
    { name: "count", value: "N", help: "how many pings (until stopped)" },
    { name: "interval", value: "SECONDS", default: "1", help: "between two pings" },
    {
      name: "throughput",
      value: "SECONDS",
      default: "0",
      help: "after the pings, send frames as fast as they are taken for that long, then receive",
    },
    DRIVER_MEMORY_OPTION,
    ...CONFINED_OPTIONS,
    { name: "json", help: "print one JSON object at the end instead of lines" },
    ...COMMON_OPTIONS,
  ],
  details: [BUS_HELP],
  examples: [
    "vmsg driver --bus linux-user,socket=lu.sock --count 3",
    "vmsg driver --bus linux-user,socket=lu.sock --count 100 --interval 0.01 --throughput 2",
    "vmsg driver --bus linux-user,socket=lu.sock --tap eth1,address=10.0.2.15/24",
    "vmsg driver --bus ivshmem,pci=00:10.0,bind --memory hugepages=10M --tap eth1",
    "vmsg driver --bus ivshmem,server=iv.sock --memory segment --count 3",
  ],
  run: (options) => {
    const tap = options.text("tap");
    const memory = options.text("memory");
    const confined = parseConfined(options);
    if (confined !== undefined && memory !== undefined) {
      throw new UsageError("give either --memory or --confined");
    }
    const settings = {
      tap: tap === undefined ? undefined : parseTap(tap),
      memory: confined !== undefined
        ? { kind: "confined", ...confined } as const
        : memory === undefined
        ? undefined
        : parseDriverMemory(memory),
      bus: parseBus(options.text("bus")!, "driver"),
      device: options.wholeNumber("device", 0, 65535)!,
      json: options.flag("json"),
      ping: {
        target: addressOption(options, "ping"),
        address: addressOption(options, "address"),
        count: options.wholeNumber("count", 1, 1e9) ?? Infinity,
        intervalMs: options.number("interval", 0.0001, 3600)! * 1000,
        throughputMs: options.number("throughput", 0, 3600)! * 1000,
      },
    };
    return runDataPlane({ kind: "driver", settings }, parseCommon(options));
  },
};
