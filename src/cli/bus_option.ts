/** `--bus`: which bus, and which dialect is spoken on it. */

import type { Bus, Side } from "../bus/bus.ts";
import { IvshmemBus } from "../bus/ivshmem.ts";
import { LinuxUserBus } from "../bus/linux_user.ts";
import { type Doorbell, SHM_MINIMUM, ShmBus } from "../bus/shm.ts";
import type { IvshmemEnd } from "../ivshmem/end.ts";
import { openServerEnd } from "../ivshmem/server_end.ts";
import { openSysfsEnd } from "../ivshmem/sysfs_end.ts";
import { openVfioEnd } from "../ivshmem/vfio_end.ts";
import type { Reactor } from "../linux/reactor.ts";
import { pciAddress } from "../linux/sysfs.ts";
import type { Codec, Dialect } from "../message/codec.ts";
import { codecFor } from "../message/codecs.ts";
import type { Log } from "../observe/log.ts";
import type { Option } from "./command.ts";
import { type Group, parseGroup } from "./groups.ts";

const DIALECTS: readonly Dialect[] = ["v1", "v1-2025", "proto"];

/** `linux-user`: two queue files and a socket. */
export interface LinuxUserSettings {
  readonly kind: "linux-user";
  readonly name: string;
  readonly directory: string;
  readonly socket: string;
  readonly listen: boolean;
  readonly wait: boolean;
}

/** `ivshmem`: a PCI function of this machine, or a process at the server's socket. */
export interface IvshmemSettings {
  readonly kind: "ivshmem";
  readonly end:
    | { readonly kind: "server"; readonly socket: string }
    | {
      readonly kind: "pci";
      readonly address: string;
      readonly via: "vfio" | "sysfs";
      readonly bind: boolean;
    };
  readonly peer: number | undefined;
  readonly poll: boolean;
}

/** `shm`: any memory that both sides share. */
export interface ShmSettings {
  readonly kind: "shm";
  readonly file: string;
  readonly offset: number;
  readonly size: number;
  readonly uio: string | undefined;
  readonly doorbell: Doorbell | undefined;
}

/** A parsed `--bus`; plain data, so that it can be sent to a Worker. */
export interface BusSettings {
  readonly place: LinuxUserSettings | IvshmemSettings | ShmSettings;
  readonly reset: boolean;
  readonly dialect: Dialect;
  /** `dialect=auto`: the driver side's first message tells. */
  readonly auto: boolean;
}

/** The option's entry in a command's table. */
export const BUS_OPTION: Option = {
  name: "bus",
  value: "KIND,...[,reset][,dialect=D]",
  required: true,
  help: "the message bus, see Buses below; reset empties the queues first; " +
    "dialect is v1 (default), v1-2025, proto, or on the device side auto (v1 or proto)",
};

/** What the help of a command with {@link BUS_OPTION} says at its end. */
export const BUS_HELP: string = `Buses:
  linux-user,socket=PATH[,name=NAME][,dir=DIR][,listen[=off]][,wait=off]
      two queue files (queue-NAME-driver, queue-NAME-device in DIR, by default the current directory)
      and a socket on which the device side listens unless told otherwise; wait=off fails at once when
      nobody is there
  ivshmem,pci=ADDRESS[,via=vfio|sysfs][,bind][,peer=ID][,poll]
      an ivshmem PCI function of this machine. vfio (default) needs it bound to vfio-pci, which bind
      does until the end; sysfs needs it bound to nothing. peer is the other machine's id, found by
      itself in v1. Without interrupts, or with poll, the queue is polled
  ivshmem,server=PATH[,peer=ID][,poll]
      this process as a peer of an ivshmem server, such as vmsg ivshmem-server
  shm,file=PATH[,offset=N][,size=N][,notify=poll|uio][,uio=/dev/uioN]
     [,doorbell=OFFSET[,doorbell-file=PATH][,doorbell-value=N]]
      the same queues at an offset of any memory that both sides map: a file, /dev/mem, /dev/uioN. The
      other side is heard by polling, or by the interrupts of a UIO device (by default the file), and
      rung by writing a 32-bit register, if there is one`;

function parseDialect(group: Group, side: Side): { dialect: Dialect; auto: boolean } {
  if (group.text("dialect") !== "auto") {
    return { dialect: group.choice("dialect", DIALECTS, "v1"), auto: false };
  }
  if (side === "driver") {
    throw group.error("dialect=auto is for the device side: a driver side speaks first");
  }
  return { dialect: "v1", auto: true };
}

/** The dialects that a first message can tell apart from `v1`. */
export function detectable(settings: BusSettings): Codec[] {
  return settings.auto ? [codecFor("proto")] : [];
}

const KEYS = {
  "linux-user": ["name", "dir", "socket", "listen", "wait"],
  ivshmem: ["pci", "server", "via", "bind", "peer", "poll"],
  shm: [
    ...["file", "offset", "size", "notify", "uio"],
    ...["doorbell", "doorbell-file", "doorbell-value"],
  ],
} as const;

/** Parses `--bus`. */
export function parseBus(text: string, side: Side): BusSettings {
  const common = ["reset", "dialect"];
  const keys = Object.entries(KEYS).map(([kind, own]) => [kind, [...own, ...common]]);
  const group = parseGroup("bus", text, Object.fromEntries(keys));
  return {
    place: parsePlace(group, side),
    reset: group.flag("reset", false),
    ...parseDialect(group, side),
  };
}

function parsePlace(group: Group, side: Side): BusSettings["place"] {
  if (group.kind === "ivshmem") return parseIvshmem(group);
  if (group.kind === "shm") return parseShm(group);
  return {
    kind: "linux-user",
    name: group.text("name") ?? "linux-user",
    directory: group.text("dir") ?? ".",
    socket: group.required("socket"),
    listen: group.flag("listen", side === "device"),
    wait: group.flag("wait", true),
  };
}

function parseIvshmem(group: Group): IvshmemSettings {
  const given = ["pci", "server"].filter((key) => group.text(key) !== undefined);
  if (given.length !== 1) throw group.error("give either pci=ADDRESS or server=PATH");
  const peer = group.number("peer", 0, 65535, -1);
  const common = {
    kind: "ivshmem",
    peer: peer < 0 ? undefined : peer,
    poll: group.flag("poll", false),
  } as const;
  if (given[0] === "server") {
    for (const key of ["via", "bind"]) {
      if (group.text(key) !== undefined) throw group.error(`${key} goes with pci=, not server=`);
    }
    return { ...common, end: { kind: "server", socket: group.required("server") } };
  }
  const address = pciAddress(group.required("pci"));
  const via = group.choice("via", ["vfio", "sysfs"], "vfio");
  const bind = group.flag("bind", false);
  if (bind && via === "sysfs") throw group.error("bind goes with via=vfio");
  return { ...common, end: { kind: "pci", address, via, bind } };
}

function parseShm(group: Group): ShmSettings {
  const file = group.required("file");
  const notify = group.choice("notify", ["poll", "uio"], "poll");
  const offset = group.text("doorbell");
  if (notify === "poll" && group.text("uio") !== undefined) {
    throw group.error("uio needs notify=uio");
  }
  return {
    kind: "shm",
    file,
    offset: group.bytes("offset", 0),
    size: group.bytes("size", SHM_MINIMUM),
    uio: notify === "uio" ? group.text("uio") ?? file : undefined,
    doorbell: offset === undefined ? undefined : {
      file: group.text("doorbell-file") ?? file,
      offset: group.bytes("doorbell"),
      value: group.number("doorbell-value", 0, 0xffff_ffff, 1),
    },
  };
}

/** Makes the bus. */
export function openBus(settings: BusSettings, side: Side, reactor: Reactor, log: Log): Bus {
  // Only vmsg processes lock and name themselves, and only among them what is left in a queue is known
  // to be stale.
  const isV1 = settings.dialect === "v1";
  const { place } = settings;
  const common = {
    discardOnAttach: settings.auto ? "from vmsg" as const : isV1,
    // The prototype polls its queue and wants a wake-up for every message (rule P11).
    ringPerMessage: settings.dialect === "proto",
    // Between vmsg processes each writes its own indices only, and nothing needs to be emptied.
    reset: settings.reset && !(isV1 && !settings.auto && place.kind !== "linux-user"),
    named: isV1,
    log: log.info,
  };
  if (place.kind === "linux-user") {
    return new LinuxUserBus(side, reactor, { ...common, ...place, lock: isV1 });
  }
  // Whoever is there cannot be seen, so what `auto` finds in the queues is used.
  const discardOnAttach = isV1 && !settings.auto;
  if (place.kind === "shm") {
    return new ShmBus(side, reactor, { ...common, ...place, discardOnAttach });
  }
  const end = openEnd(place.end, log);
  try {
    return new IvshmemBus(side, reactor, end, { ...common, ...place, discardOnAttach });
  } catch (error) {
    end[Symbol.dispose]();
    throw error;
  }
}

function openEnd(end: IvshmemSettings["end"], log: Log): IvshmemEnd {
  if (end.kind === "server") return openServerEnd(end.socket, { log });
  const { address, via, bind } = end;
  return via === "vfio" ? openVfioEnd(address, { log, bind }) : openSysfsEnd(address, { log });
}
