/** `vmsg driver`: drivers in user space; of a network card, with its pinger or its TAP, of a disk, of an entropy device. */

import { capturingPort } from "../network/capturing_port.ts";
import { mirrored, PortBridge } from "../drivers/net/port_bridge.ts";
import { NetDriver } from "../drivers/net/net_driver.ts";
import {
  describeResult,
  Pinger,
  type PingOptions,
  type PingResult,
} from "../drivers/net/pinger.ts";
import { giveUpMute } from "../drivers/mute_device.ts";
import type { RingFormat } from "../drivers/own_features.ts";
import { UsageError } from "../linux/errors.ts";
import { codecFor } from "../message/codecs.ts";
import { parseIpv4Address } from "../network/protocols/ipv4.ts";
import type { TapOptions } from "../network/tap.ts";
import { DriverSide } from "../transport/driver_side.ts";
import { BUS_OPTION, BUS_SECTION, type BusSettings, openBus, parseBus } from "./bus_option.ts";
import type { Options } from "./command.ts";
import { blkDriver } from "./driver_kinds/blk.ts";
import type { DriverKind, Outcome } from "./driver_kinds/driver_kind.ts";
import { rngDriver } from "./driver_kinds/rng.ts";
import { type Chosen, findKind, kindsSection, parseKind } from "./kinds.ts";
import {
  CONFINED_OPTIONS,
  DRIVER_MEMORY_OPTION,
  type DriverMemorySettings,
  openDriverMemory,
  parseConfined,
  parseDriverMemory,
} from "./memory_option.ts";
import { type PlaneCommand, planeCommand } from "./plane.ts";
import { WarmUp } from "./warm_up.ts";
import { parseQueues } from "./port_kinds/port_kind.ts";
import { tapKind } from "./port_kinds/tap.ts";

const MAX_DEVICE = 65535;
const DRIVER_KINDS: readonly DriverKind[] = [rngDriver, blkDriver] as readonly DriverKind[];

interface DriverSettings {
  readonly bus: BusSettings;
  /** On its bus. */
  readonly device: number;
  /** What it is if it is no network card. */
  readonly kind: Chosen | undefined;
  readonly memory: DriverMemorySettings | undefined;
  readonly ping: Omit<PingOptions, "print">;
  readonly tap: TapOptions | undefined;
  /** Queue pairs, of the device and of the TAP. */
  readonly queues: number;
  readonly rings: RingFormat;
  readonly json: boolean;
}

function addressOption(options: Options, name: string): string {
  const text = options.text(name)!;
  try {
    parseIpv4Address(text);
  } catch {
    throw new UsageError(`--${name} takes an IPv4 address, not ${text}`);
  }
  return text;
}

function deviceOption(options: Options): Pick<DriverSettings, "device" | "kind"> {
  const text = options.text("device")!;
  if (!/^[a-z]/.test(text)) {
    return { device: options.wholeNumber("device", 0, MAX_DEVICE)!, kind: undefined };
  }
  const { kind, group } = parseKind("--device", text, DRIVER_KINDS, ["number"]);
  const alone = ["tap", "count"].find((name) => options.text(name) !== undefined);
  if (alone !== undefined) throw group.error(`--${alone} is for network cards`);
  const device = group.number("number", 0, MAX_DEVICE, 0);
  return { device, kind: { kind: kind.name, settings: kind.parse(group) } };
}

function ringsOption(text: string): RingFormat {
  if (text !== "split" && text !== "packed") {
    throw new UsageError(`--rings is split or packed, not ${text}`);
  }
  return text;
}

/** See `vmsg driver --help`. */
export const driverCommand: PlaneCommand<DriverSettings> = planeCommand({
  name: "driver",
  summary: "the driver side without a guest: it pings, or reads a disk",
  description:
    "Drives the network card of a device side from user space, and pings through it; or a device of another kind. " +
    "It waits for the device side, and takes it back when it was restarted. Exit code 0 if a ping was answered, or " +
    "all was done.",
  options: [
    BUS_OPTION,
    {
      name: "device",
      value: "N | KIND[,number=N][,...]",
      default: "0",
      help:
        "device number on the bus, of a network card; or another kind of device, see below, which is driven once",
    },
    {
      name: "tap",
      value: "NAME[,bridge=BR][,address=A/P][,queues=N][,persistent][,offloads=off]",
      help:
        "be a network card of this machine: join the device to a TAP instead of pinging, with as many queue pairs",
    },
    {
      name: "rings",
      value: "split|packed",
      default: "split",
      help: "the format of the rings; packed ones have to be offered by the device",
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
  ],
  details: [kindsSection("Devices other than network cards", DRIVER_KINDS), BUS_SECTION],
  examples: [
    "vmsg driver --bus linux-user,socket=lu.sock --count 3",
    "vmsg driver --bus linux-user,socket=lu.sock --count 100 --interval 0.01 \\\n" +
    "      --throughput 2",
    "vmsg driver --bus linux-user,socket=lu.sock --tap eth1,address=10.0.2.15/24",
    "vmsg driver --bus ivshmem,pci=00:10.0,bind --memory hugepages=10M --tap eth1",
    "vmsg driver --bus ivshmem,server=iv.sock --memory segment --count 3",
    "vmsg driver --bus linux-user,socket=lu.sock --device blk,read=disk.img",
  ],
  parse: (options) => {
    const tap = options.text("tap");
    const group = tap === undefined
      ? undefined
      : parseKind("--tap", `tap=${tap}`, [tapKind], ["mtu", "queues"]).group;
    const memory = options.text("memory");
    const confined = parseConfined(options);
    if (confined !== undefined && memory !== undefined) {
      throw new UsageError("give either --memory or --confined");
    }
    return {
      tap: group && tapKind.parse(group),
      queues: group === undefined ? 1 : parseQueues(group),
      memory: confined !== undefined
        ? { kind: "confined", ...confined } as const
        : memory === undefined
        ? undefined
        : parseDriverMemory(memory),
      bus: parseBus(options.text("bus")!, "driver"),
      ...deviceOption(options),
      rings: ringsOption(options.text("rings")!),
      json: options.flag("json"),
      ping: {
        target: addressOption(options, "ping"),
        address: addressOption(options, "address"),
        count: options.wholeNumber("count", 1, 1e9) ?? Infinity,
        intervalMs: options.number("interval", 0.0001, 3600)! * 1000,
        throughputMs: options.number("throughput", 0, 3600)! * 1000,
      },
    };
  },
  open: (settings, context) => {
    const { reactor, log, stack } = context;
    const bus = stack.use(openBus(settings.bus, "driver", reactor, log));
    const codec = codecFor(settings.bus.dialect, bus.slotSize);
    const tracer = context.tracerFor(bus);
    const side = stack.use(new DriverSide({ reactor, bus, codec, log, tracer }));
    const { rings } = settings;
    const memory = openDriverMemory(settings.memory, settings.queues, bus, stack);
    // Before the memory goes.
    stack.defer(() => side.revoke());
    const start = () => {
      side.open();
      stack.use(new WarmUp(reactor, () => false));
    };
    if (settings.tap !== undefined) {
      const { queues } = settings;
      const tap = tapKind.open(settings.tap, { ...context, queues }).port;
      const { frameCapture } = context;
      const port = frameCapture === undefined
        ? tap
        : capturingPort(tap, frameCapture, "tap", false);
      const bridge = stack.use(new PortBridge(reactor, port, log.info));
      const options = { memory, offloads: mirrored(port.features), pairs: queues, rings };
      bridge.use(stack.use(new NetDriver(reactor, side, settings.device, bridge, log, options)));
      start();
      return {};
    }
    const print = settings.json ? () => {} : context.print;
    if (settings.kind !== undefined) {
      const { kind, settings: chosen } = settings.kind;
      const options = { memory, number: settings.device, rings };
      const driver = findKind(DRIVER_KINDS, "--device", kind)
        .open(chosen, { reactor, log, side, options, stack, print });
      let outcome: Outcome | undefined;
      reactor.spawn(() => giveUpMute(side, settings.device, driver.isKnown));
      reactor.spawn(async () => {
        outcome = await driver.run();
        reactor.stop();
      });
      start();
      return {
        finish: () => {
          if (settings.json && outcome !== undefined) context.print(JSON.stringify(outcome));
        },
        exitCode: () => outcome === undefined ? 1 : 0,
      };
    }
    const pinger = new Pinger(reactor, { ...settings.ping, print });
    pinger.use(
      stack.use(new NetDriver(reactor, side, settings.device, pinger, log, { memory, rings })),
    );
    let result: PingResult | undefined;
    reactor.spawn(async () => {
      result = await pinger.run();
      reactor.stop();
    });
    start();
    return {
      finish: () => {
        result ??= pinger.result();
        if (settings.json) context.print(JSON.stringify(result));
        else for (const line of describeResult(result)) print(line);
      },
      // As ping(8): success means that somebody answered.
      exitCode: () => result !== undefined && result.received > 0 ? 0 : 1,
    };
  },
});
