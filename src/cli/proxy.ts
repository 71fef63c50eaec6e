/** `vmsg proxy`: vhost-user front ends, or domains of Xen -> driver side of the transport -> bus. */

import { type VhostUserOptions, VhostUserServer } from "../drivers/vhost_user/server.ts";
import { UsageError } from "../linux/errors.ts";
import { type MemoryLimits, MemoryQuota } from "../memory/mod.ts";
import { codecFor } from "../message/codecs.ts";
import { openSharing } from "../sharing/mode.ts";
import { DriverSide } from "../transport/driver_side.ts";
import { ACCESS_HELP, ACCESS_KEYS, ACCESS_USAGE, parseAccess } from "./access_option.ts";
import { BUS_OPTION, BUS_SECTION, type BusSettings, openBus, parseBus } from "./bus_option.ts";
import { DEFAULT_DEVICE } from "./device_kinds/device_kind.ts";
import { parseGroup } from "./groups.ts";
import {
  CONFINED_OPTIONS,
  memoryLimitOption,
  parseConfined,
  parseMemoryLimit,
} from "./memory_option.ts";
import { type PlaneCommand, planeCommand } from "./plane.ts";
import { WarmUp } from "./warm_up.ts";
import { openXen, parseXen, XEN_OPTION, type XenDomainSettings } from "./xen_option.ts";

interface ProxySettings {
  readonly bus: BusSettings;
  readonly vhostUsers: readonly VhostUserOptions[];
  readonly domains: readonly XenDomainSettings[];
  /** Confined mode: bytes of the segment, undefined for all that the bus has. */
  readonly confined: { readonly size: number | undefined } | undefined;
  readonly limits: MemoryLimits;
  readonly notifiesInBand: boolean;
}

function parseVhostUser(text: string, index: number): VhostUserOptions {
  const group = parseGroup("--vhost-user", text, [
    ...["socket", "connect", "fd", "device"],
    ...ACCESS_KEYS,
  ]);
  const device = group.number("device", 0, 65535, index);
  const kind = group.flag("connect", false) ? "connect" : "listen";
  const isOurs = kind === "listen" && group.text("fd") === undefined;
  for (const key of isOurs ? [] : ACCESS_KEYS) {
    if (group.text(key) === undefined) continue;
    throw group.error(`${key} goes with a socket to listen on, which connect and fd are not`);
  }
  if (group.text("fd") !== undefined) {
    if (group.text("socket") !== undefined) throw group.error("give either socket= or fd=");
    return { source: { kind: "fd", number: group.number("fd", 3, 1 << 20, 3) }, device };
  }
  const source = { kind, socket: group.required("socket") } as const;
  return { source, device, access: parseAccess(group) };
}

function parseNotify(text: string): boolean {
  if (text === "in-band" || text === "out-of-band") return text === "in-band";
  throw new UsageError(`--notify is in-band or out-of-band, not ${text}`);
}

/** See `vmsg proxy --help`. */
export const proxyCommand: PlaneCommand<ProxySettings> = planeCommand({
  name: "proxy",
  summary:
    "the driver side: lends a guest of a stock QEMU, User-Mode Linux or Xen a device elsewhere",
  description:
    "Offers vhost-user sockets to stock front ends, or in Dom0 virtio-mmio devices to domains of Xen, and " +
    "carries what their guests' drivers do over a virtio-msg bus to a device side. The memory of a front " +
    "end's guest must be shared. Runs until it is told to stop.",
  options: [
    BUS_OPTION,
    {
      name: "vhost-user",
      value: `socket=PATH[,connect][,device=N]${ACCESS_USAGE} or fd=N[,device=N]`,
      repeated: true,
      help: "listen on PATH, or connect to it, for the front end that shall have device number N " +
        "(default: 0, 1, ... in the order given); fd is a connection that the caller made. " +
        ACCESS_HELP,
    },
    XEN_OPTION,
    ...CONFINED_OPTIONS,
    memoryLimitOption("front ends", true),
    {
      name: "notify",
      value: "in-band|out-of-band",
      default: "out-of-band",
      help:
        "on one host a device side that is a vmsg hears a guest's kicks and calls it by itself, over ivshmem it calls " +
        "where it works on the guest's own rings (out-of-band); with in-band each is a message, which --trace shows",
    },
    {
      name: "print-capabilities",
      alone: true,
      help: "print what this back end is as JSON, and end",
    },
  ],
  details: [BUS_SECTION],
  examples: [
    "vmsg proxy --bus linux-user,socket=lu.sock --vhost-user socket=vu.sock",
    "vmsg proxy --bus ivshmem,pci=00:10.0,bind --vhost-user socket=vu.sock \\\n" +
    "      --confined",
    "linux.uml mem=128M initrd=initrd virtio_uml.device=vu.sock:1",
  ],
  inform: (options) => {
    if (!options.flag("print-capabilities")) return false;
    // The form of QEMU's back-end program conventions (docs/interop/vhost-user.rst). It wants one type.
    // A proxy lends whatever is at the other end of the bus, which nobody has asked yet.
    console.log(JSON.stringify({ type: DEFAULT_DEVICE }));
    return true;
  },
  parse: (options) => {
    const vhostUsers = options.list("vhost-user").map(parseVhostUser);
    const confined = parseConfined(options);
    const domains = parseXen(options, vhostUsers.length, confined !== undefined);
    const devices = [...vhostUsers, ...domains.flatMap(({ cards }) => cards)];
    if (devices.length === 0) {
      throw new UsageError("--vhost-user or --xen is missing; see: vmsg proxy --help");
    }
    if (new Set(devices.map(({ device }) => device)).size < devices.length) {
      throw new UsageError(
        "--vhost-user, --xen: a device number belongs to one guest, one is given twice",
      );
    }
    const limits = parseMemoryLimit(options, true);
    const bus = parseBus(options.text("bus")!, "driver");
    const notifiesInBand = parseNotify(options.text("notify")!);
    return { bus, vhostUsers, domains, confined, limits, notifiesInBand };
  },
  open: (settings, context) => {
    const { reactor, log, stack } = context;
    const bus = stack.use(openBus(settings.bus, "driver", reactor, log));
    const codec = codecFor(settings.bus.dialect, bus.slotSize);
    const { confined, vhostUsers, domains, notifiesInBand } = settings;
    const tracer = context.tracerFor(bus);
    const options = { reactor, bus, codec, log, tracer, notifiesInBand };
    const side = stack.use(new DriverSide(options));
    const deviceCount = vhostUsers.length + domains.flatMap(({ cards }) => cards).length;
    const quota = new MemoryQuota(settings.limits);
    const mode = stack.use(openSharing({ reactor, bus, side, confined, deviceCount, log, quota }));
    let position = 0;
    const lend = (device: number) => {
      const remote = side.device(device);
      return { remote, sharing: mode.forDevice(remote, position++) };
    };
    for (const options of vhostUsers) {
      const { sharing } = lend(options.device);
      stack.use(new VhostUserServer(reactor, side, options, log, sharing, quota));
    }
    openXen(domains, lend, context);
    // The first that is done at the end: then the front ends get their memory back.
    stack.defer(() => side.revoke());
    side.open();
    // Whoever is behind us takes longer to come up, and is looked at meanwhile.
    stack.use(new WarmUp(reactor, () => false));
    return {};
  },
});
