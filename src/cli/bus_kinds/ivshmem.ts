/** `--bus ivshmem`: shared memory of machines under QEMU, and of processes of their host. */

import { IvshmemBus } from "../../bus/ivshmem.ts";
import type { IvshmemEnd } from "../../ivshmem/end.ts";
import { openLastingEnd } from "../../ivshmem/lasting_end.ts";
import { openSysfsEnd } from "../../ivshmem/sysfs_end.ts";
import { openVfioEnd } from "../../ivshmem/vfio_end.ts";
import { pciAddress } from "../../linux/sysfs.ts";
import type { Group } from "../groups.ts";
import type { PageLayout } from "../../bus/page_bus.ts";
import {
  type BusContext,
  type BusKind,
  LAYOUT_HELP,
  LAYOUT_USAGE,
  parseLayout,
  unseenPeerOptions,
} from "./bus_kind.ts";

type EndSettings =
  | { readonly kind: "server"; readonly socket: string }
  | {
    readonly kind: "pci";
    readonly address: string;
    readonly via: "vfio" | "sysfs";
    readonly bind: boolean;
  };

interface IvshmemSettings {
  readonly end: EndSettings;
  readonly peer: number | undefined;
  readonly poll: boolean;
  readonly layout: PageLayout;
}

function parseEnd(group: Group): EndSettings {
  const given = ["pci", "server"].filter((key) => group.text(key) !== undefined);
  if (given.length !== 1) throw group.error("give either pci=ADDRESS or server=PATH");
  if (given[0] === "server") {
    for (const key of ["via", "bind"]) {
      if (group.text(key) !== undefined) throw group.error(`${key} goes with pci=, not server=`);
    }
    return { kind: "server", socket: group.required("server") };
  }
  const address = pciAddress(group.required("pci"));
  const via = group.choice("via", ["vfio", "sysfs"], "vfio");
  const bind = group.flag("bind", false);
  if (bind && via === "sysfs") throw group.error("bind goes with via=vfio");
  return { kind: "pci", address, via, bind };
}

function openEnd(end: EndSettings, { log, reactor }: BusContext): IvshmemEnd {
  if (end.kind === "server") return openLastingEnd(end.socket, { log, reactor, wait: true });
  const { address, via, bind } = end;
  return via === "vfio" ? openVfioEnd(address, { log, bind }) : openSysfsEnd(address, { log });
}

export const ivshmemKind: BusKind<IvshmemSettings> = {
  name: "ivshmem",
  usage: "ivshmem,pci=ADDRESS[,via=vfio|sysfs][,bind][,peer=ID][,poll] or " +
    `ivshmem,server=PATH[,peer=ID][,poll], both ${LAYOUT_USAGE}`,
  help:
    "with pci= an ivshmem PCI function of this machine: vfio (default) needs it bound to vfio-pci, " +
    "which bind does until the end; sysfs needs it bound to nothing. With server= this process is a " +
    "peer of an ivshmem server itself, such as vmsg ivshmem-server. peer is the other machine's id, " +
    "found by itself in v1. Without interrupts, or with poll, the queue is polled. " +
    LAYOUT_HELP,
  keys: ["pci", "server", "via", "bind", "peer", "poll", "layout"],
  parse: (group) => {
    const end = parseEnd(group);
    const peer = group.number("peer", 0, 65535, -1);
    return {
      end,
      peer: peer < 0 ? undefined : peer,
      poll: group.flag("poll", false),
      layout: parseLayout(group),
    };
  },
  open: ({ end: wanted, peer, poll, layout }, context) => {
    const { side, reactor, common } = context;
    const end = openEnd(wanted, context);
    try {
      const options = { ...common, ...unseenPeerOptions(context), peer, poll, layout };
      return new IvshmemBus(side, reactor, end, options);
    } catch (error) {
      end[Symbol.dispose]();
      throw error;
    }
  },
};
