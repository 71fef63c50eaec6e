/** `vmsg bridge`: a bus with devices -> driver side of the transport -> device side -> another bus. */

import { DEVICE_TYPES } from "../devices/vhost_user/device_types.ts";
import { Carrier } from "../drivers/carried/carrier.ts";
import { Shares, type SharesOptions } from "../drivers/carried/shares.ts";
import { UsageError } from "../linux/errors.ts";
import { type MemoryLimits, MemoryQuota } from "../memory/mod.ts";
import { codecFor } from "../message/codecs.ts";
import { DeviceSide } from "../transport/device_side.ts";
import { DriverSide } from "../transport/driver_side.ts";
import {
  BUS_OPTION,
  BUS_SECTION,
  type BusSettings,
  detectable,
  isSameBus,
  lendsMemory,
  openBus,
  parseBus,
} from "./bus_option.ts";
import type { Options } from "./command.ts";
import { parseBytes, parseGroup } from "./groups.ts";
import {
  DEVICE_MEMORY_OPTION,
  type DeviceMemorySettings,
  type FileSettings,
  memoryLimitOption,
  openDeviceMemory,
  openFileMemory,
  parseDeviceMemory,
  parseFile,
  parseMemoryLimit,
  windowsOf,
} from "./memory_option.ts";
import { type PlaneCommand, planeCommand } from "./plane.ts";
import { rehearse } from "./rehearsal.ts";
import { WarmUp } from "./warm_up.ts";

const MAX_DEVICE = 65535;
const MAX_LIMIT = 256;

interface BridgeSettings {
  /** Where the devices are. */
  readonly from: BusSettings;
  /** Where the drivers are. */
  readonly to: BusSettings;
  readonly numbers: ReadonlyMap<number, number> | undefined;
  /** Undefined: as many as there is room for. */
  readonly limit: number | undefined;
  /** Copy rings and buffers, and where to. */
  readonly copied: { readonly size: number | undefined; readonly file?: FileSettings } | undefined;
  readonly memories: readonly DeviceMemorySettings[];
  readonly limits: MemoryLimits;
}

function parseDevice(text: string): readonly [number, number] {
  const [first = "", ...rest] = text.split(",");
  const group = parseGroup("--device", [`device=${first}`, ...rest].join(","), ["device", "as"]);
  const number = group.number("device", 0, MAX_DEVICE, 0);
  return [number, group.number("as", 0, MAX_DEVICE, number)];
}

function parseNumbers(texts: readonly string[]): ReadonlyMap<number, number> | undefined {
  const pairs = texts.map(parseDevice);
  const isTwice = (of: (pair: readonly [number, number]) => number) =>
    new Set(pairs.map(of)).size < pairs.length;
  if (isTwice(([number]) => number)) throw new UsageError("--device: a device is named twice");
  if (isTwice(([, as]) => as)) {
    throw new UsageError("--device: two devices would have the same number: give one another as=");
  }
  return pairs.length === 0 ? undefined : new Map(pairs);
}

function parseCopied(options: Options): BridgeSettings["copied"] {
  const text = options.text("segment");
  if (text?.startsWith("file=")) {
    const group = parseGroup("--segment", text, ["file", "owner", "reserve", "at", "size"]);
    const place = { at: group.bytes("at"), size: group.bytes("size", 0) };
    return { size: undefined, file: { ...parseFile(group), ...place } };
  }
  // On a bus without files rings and buffers are copied without a word.
  if (text !== undefined) return { size: parseBytes("--segment", text) };
  return options.flag("confined") ? { size: undefined } : undefined;
}

function openCopied(
  copied: BridgeSettings["copied"],
  stack: DisposableStack,
): SharesOptions["copied"] {
  if (copied?.file === undefined) return copied;
  const { file: settings } = copied;
  return { known: { memory: stack.use(openFileMemory(settings, settings.size)), at: settings.at } };
}

/** See `vmsg bridge --help`. */
export const bridgeCommand: PlaneCommand<BridgeSettings> = planeCommand({
  name: "bridge",
  summary: "joins two buses: the devices of one for the drivers of another",
  description:
    "Is the driver side of the first bus and the device side of the second, and offers there what devices it finds, " +
    "each in its own dialect: a device that speaks proto to a driver that speaks v1. Runs until it is told to stop.",
  options: [
    { ...BUS_OPTION, repeated: true },
    {
      name: "device",
      value: "N[,as=M]",
      repeated: true,
      help:
        "carry only device N of the first bus, as number M of the second (default: the same number). Without it all are " +
        "carried, also those that come later; of a proto device side, which cannot be asked, device 0",
    },
    {
      name: "limit",
      value: "N",
      help:
        "at most so many devices, which share the segment (default: those named, or as many as have 256K each, up to 8)",
    },
    {
      name: "confined",
      help:
        "copy every ring and buffer, also where the device side could be shown the drivers' memory; without it they are " +
        "copied where the first bus carries no files, unless both buses lie in one file, and always for a kernel (--bus bridge)",
    },
    {
      name: "segment",
      value: "SIZE | file=PATH,at=ADDRESS[,size=N][,owner=USER][,reserve=off]",
      help:
        "what they are copied into: by default all of the first bus's shared memory, or 4M on linux-user; with file= a " +
        "file that its device side knows by the same --memory",
    },
    DEVICE_MEMORY_OPTION,
    memoryLimitOption("the driver side", false),
  ],
  details: [BUS_SECTION],
  examples: [
    "vmsg bridge --bus shm,file=shm,size=1M,dialect=proto \\\n" +
    "      --bus linux-user,socket=lu.sock",
    "vmsg bridge --bus linux-user,socket=a.sock,name=a \\\n" +
    "      --bus shm,file=shm,size=1M --device 1,as=0",
  ],
  parse: (options) => {
    const buses = options.list("bus");
    if (buses.length !== 2) {
      throw new UsageError(
        "--bus is given twice: where the devices are, then where the drivers are",
      );
    }
    const from = parseBus(buses[0]!, "driver"), to = parseBus(buses[1]!, "device");
    if (isSameBus(buses[0]!, buses[1]!)) throw new UsageError("--bus: the two buses are one");
    if (lendsMemory(to) && options.list("memory").length > 0) {
      throw new UsageError(`--bus ${to.bus.kind} gives the memory: leave --memory out`);
    }
    const numbers = parseNumbers(options.list("device"));
    return {
      from,
      to,
      numbers,
      limit: options.wholeNumber("limit", 1, MAX_LIMIT) ?? numbers?.size,
      copied: parseCopied(options),
      memories: options.list("memory").map(parseDeviceMemory),
      limits: parseMemoryLimit(options, false),
    };
  },
  open: ({ from, to, numbers, limit, copied, memories, limits }, context) => {
    const { reactor, log, stack } = context;
    const detect = detectable(to);
    rehearse([codecFor(to.dialect), ...detect], context.isTraced);
    const fromBus = stack.use(openBus(from, "driver", reactor, log));
    const toBus = stack.use(openBus(to, "device", reactor, log));
    const codec = codecFor(to.dialect, toBus.slotSize);
    const driverSide = stack.use(
      new DriverSide({
        reactor,
        bus: fromBus,
        codec: codecFor(from.dialect, fromBus.slotSize),
        log,
        tracer: context.tracerFor(fromBus, "bus0"),
      }),
    );
    const windows = memories.flatMap((memory) =>
      windowsOf(memory, stack.use(openDeviceMemory(memory, context)))
    );
    const shares = stack.use(
      new Shares({
        ...{ reactor, log, from: fromBus, to: toBus, limit, canBeTold: from.dialect === "v1" },
        copied: openCopied(copied, stack),
      }),
    );
    const tracer = context.tracerFor(toBus, "bus1");
    const quota = new MemoryQuota(limits);
    // Before the segment goes, and after the devices of the other bus.
    stack.defer(() => driverSide.revoke());
    const side = stack.use(
      new DeviceSide({ reactor, bus: toBus, codec, detect, log, tracer, quota }),
    );
    stack.use(
      new Carrier({
        ...{ reactor, from: driverSide, to: side, log, numbers, windows, shares },
        configSizeOf: (id) => DEVICE_TYPES.find((type) => type.id === id)?.configSizes.concat(0)[0],
      }),
    );
    driverSide.open();
    stack.use(new WarmUp(reactor, () => side.counters.received > 0, true));
    return {
      mayEnd: () => toBus.kernel?.mayEnd() ?? true,
      finish: () => log.debug(`transport: ${JSON.stringify(side.counters)}`),
    };
  },
});
