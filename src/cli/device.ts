/** `vmsg device`: bus -> device side of the transport -> devices. */

import { UsageError, VmsgError } from "../linux/errors.ts";
import { AddressSpace, type MemoryLimits, MemoryQuota, type MemoryRegion } from "../memory/mod.ts";
import type { Access } from "../linux/own_file.ts";
import { startProgramsLater } from "../linux/programs.ts";
import { codecFor } from "../message/codecs.ts";
import { DeviceSide } from "../transport/device_side.ts";
import { ACCESS_HELP, ACCESS_KEYS, ACCESS_USAGE, parseAccess } from "./access_option.ts";
import {
  BUS_OPTION,
  BUS_SECTION,
  type BusSettings,
  detectable,
  lendsMemory,
  openBus,
  parseBus,
} from "./bus_option.ts";
import { DEVICE_OPTIONS, DEVICE_SECTION, pairThreadsOf, parseDevices } from "./device_option.ts";
import { ControlSocket } from "./control/control_socket.ts";
import { DeviceSet } from "./control/device_set.ts";
import { parseLine } from "./control/request.ts";
import { parseGroup } from "./groups.ts";
import type { Chosen } from "./kinds.ts";
import {
  DEVICE_MEMORY_OPTION,
  type DeviceMemorySettings,
  memoryLimitOption,
  openDeviceMemory,
  parseDeviceMemory,
  parseMemoryLimit,
  windowsOf,
} from "./memory_option.ts";
import { type PlaneCommand, planeCommand } from "./plane.ts";
import { rehearse } from "./rehearsal.ts";
import { WarmUp } from "./warm_up.ts";
import { HUB_OPTION, Hubs, type HubSettings, parseHub, PORT_SECTION } from "./port_option.ts";

interface DeviceSettings {
  readonly bus: BusSettings;
  /** In order of their device numbers, from 0. */
  readonly devices: readonly Chosen[];
  readonly hubs: readonly HubSettings[];
  readonly confined: boolean;
  readonly memories: readonly DeviceMemorySettings[];
  readonly limits: MemoryLimits;
  readonly control: ControlSettings | undefined;
}

/** `--control`. */
interface ControlSettings {
  readonly path: string;
  readonly access: Access;
}

function parseControl(text: string): ControlSettings {
  const group = parseGroup("--control", `socket=${text}`, ["socket", ...ACCESS_KEYS]);
  return { path: group.required("socket"), access: parseAccess(group) };
}

/** Each device shows the windows only when a driver side needs them; what is wrong is said before. */
function assertDisjoint(windows: readonly MemoryRegion[]): void {
  const space = new AddressSpace();
  for (const { at, size, memory, offset } of windows) {
    const problem = space.add(at, size, memory, offset);
    if (problem === undefined) continue;
    const where = `0x${at.toString(16)}`;
    const overlaps = `--memory at ${where} overlaps another --memory`;
    const line = problem === "overlap"
      ? overlaps
      : `--memory: ${size} bytes cannot lie at ${where}`;
    throw new VmsgError("MEMORY", line);
  }
}

/** See `vmsg device --help`. */
export const deviceCommand: PlaneCommand<DeviceSettings> = planeCommand({
  name: "device",
  summary: "the device side: virtio devices for a driver side elsewhere",
  description:
    "Serves virtio devices, such as network cards, over a virtio-msg bus. The driver side is `vmsg " +
    "proxy`, `vmsg driver` or any other speaker of the dialect. Runs until it is told to stop.",
  options: [
    BUS_OPTION,
    ...DEVICE_OPTIONS,
    HUB_OPTION,
    DEVICE_MEMORY_OPTION,
    memoryLimitOption("the driver side", false),
    {
      name: "control",
      value: `PATH${ACCESS_USAGE}`,
      help:
        "listen on PATH for vmsg ctl, which adds and removes devices; all that it can do is done as this " +
        `user. ${ACCESS_HELP}`,
    },
    {
      name: "confined",
      help: "touch no memory of the other side but the bus's segment (proxy and driver --confined)",
    },
  ],
  details: [DEVICE_SECTION, PORT_SECTION, BUS_SECTION],
  examples: [
    "vmsg device --bus linux-user,socket=lu.sock --net responder",
    "vmsg device --bus linux-user,socket=lu.sock --net tap=tap0,address=10.0.2.2/24",
    "vmsg device --bus linux-user,socket=lu.sock --net passt,pcap=frames.pcap",
    "vmsg device --bus ... --net hub=lan --net hub=lan --hub passt,name=lan",
    "vmsg device --bus linux-user,socket=lu.sock,dialect=proto \\\n" +
    "      --memory file=ram,at=0x40000000",
    "vmsg device --bus ivshmem,pci=00:10.0,bind --memory pci=00:11.0,at=0 \\\n" +
    "      --net packet=eth0",
    "vmsg device --bus bridge --device rng",
  ],
  parse: (options) => {
    const devices = parseDevices(options);
    const confined = options.flag("confined");
    if (confined && options.list("memory").length > 0) {
      throw new UsageError("--memory goes without --confined, which touches the segment only");
    }
    const bus = parseBus(options.text("bus")!, "device");
    if (lendsMemory(bus) && (confined || options.list("memory").length > 0)) {
      throw new UsageError(
        `--bus ${bus.bus.kind} gives the memory: leave --memory and --confined out`,
      );
    }
    return {
      confined,
      bus,
      memories: options.list("memory").map(parseDeviceMemory),
      limits: parseMemoryLimit(options, false),
      hubs: options.list("hub").map(parseHub),
      devices,
      control: options.text("control") === undefined
        ? undefined
        : parseControl(options.text("control")!),
    };
  },
  // Windows come and go under queues that run, which other threads do not follow.
  pairThreads: ({ bus, devices }) => lendsMemory(bus) ? 0 : pairThreadsOf(devices),
  open: (settings, context) => {
    const { reactor, log, stack } = context;
    const { dialect } = settings.bus;
    const detect = detectable(settings.bus);
    rehearse([codecFor(dialect), ...detect], context.isTraced);
    const bus = stack.use(openBus(settings.bus, "device", reactor, log));
    const codec = codecFor(dialect, bus.slotSize);
    const tracer = context.tracerFor(bus);
    const { confined, control } = settings;
    const quota = new MemoryQuota(settings.limits);
    const side = stack.use(
      new DeviceSide({ reactor, bus, codec, detect, log, tracer, confined, quota }),
    );
    const windows = settings.memories.flatMap((memory) =>
      windowsOf(memory, stack.use(openDeviceMemory(memory, context)))
    );
    assertDisjoint(windows);
    const hubs = new Hubs(settings.hubs, context);
    // With memory of its own to look at it may serve direct mode.
    const forwarded = confined || windows.length > 0;
    const pairLines = [...context.pairLines];
    const devices = stack.use(
      new DeviceSet(
        side,
        { reactor, log, hubs, forwarded, pairLines, frameCapture: context.frameCapture },
        windows,
      ),
    );
    settings.devices.forEach((wanted, number) => devices.open(number, wanted, true));
    if (control !== undefined) {
      const answer = (line: string) => devices.ask(parseLine(line));
      stack.use(new ControlSocket(reactor, control.path, control.access, answer, log.warn));
      // A device that needs one may be added.
      startProgramsLater();
    }
    devices.begin(() => side.open());
    stack.use(new WarmUp(reactor, () => side.counters.received > 0, true));
    return {
      mayEnd: () => bus.kernel?.mayEnd() ?? true,
      finish: () => {
        for (const { number, description, counters } of devices.list()) {
          log.debug(`device ${number} (${description}): ${JSON.stringify(counters)}`);
        }
        log.debug(`transport: ${JSON.stringify(side.counters)}`);
      },
    };
  },
});
