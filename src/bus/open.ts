/**
 * Buses as two vmsg processes that speak `v1` use them, for programs that do not come from our command
 * line: few options, the rest as `vmsg device` and `vmsg proxy` have it.
 */

import { openLastingEnd } from "../ivshmem/lasting_end.ts";
import { openVfioEnd } from "../ivshmem/vfio_end.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { Log } from "../observe/log.ts";
import type { Bus, Side } from "./bus.ts";
import { IvshmemBus } from "./ivshmem.ts";
import { LinuxUserBus } from "./linux_user.ts";

/** What `v1` between vmsg processes asks of any bus: what is left in the queues is of no use. */
const V1 = { discardOnAttach: true, ringPerMessage: false, named: true } as const;

/** Where a linux-user bus is. */
export interface LinuxUserPlace {
  /** The path of the Unix socket. */
  readonly socket: string;
  /** Listen on the socket, or connect to it; the device side listens unless told otherwise. */
  readonly listen?: boolean;
  /** Names the two queue files; "linux-user" unless given. */
  readonly name?: string;
  /** Their directory; the current one unless given. */
  readonly directory?: string;
}

/**
 * Two processes on one host: two queue files and a socket, as `--bus linux-user,socket=...`.
 *
 * @throws VmsgError BUS_IN_USE if another process has this side already
 */
export function openLinuxUserBus(
  side: Side,
  reactor: Reactor,
  place: LinuxUserPlace,
  log: Log,
): Bus {
  const { socket, listen = side === "device", name = "linux-user", directory = "." } = place;
  const files = { name, directory, socket, listen, wait: true, lock: true, reset: false };
  return new LinuxUserBus(side, reactor, { ...V1, ...files, log: log.info });
}

/** Where this process meets an ivshmem server's other peer. */
export type IvshmemPlace =
  /** The PCI function of an ivshmem-doorbell device, bound to vfio-pci: "0000:00:02.0". */
  | { readonly pci: string; readonly peer?: number }
  /** The socket of an ivshmem server. */
  | { readonly server: string; readonly peer?: number };

/**
 * Two machines, or a machine and a process, that are peers of one ivshmem server, as `--bus ivshmem,...`.
 *
 * @throws VmsgError if the function or the server cannot be used, or its memory is too small
 */
export function openIvshmemBus(
  side: Side,
  reactor: Reactor,
  place: IvshmemPlace,
  log: Log,
): Bus {
  const end = "pci" in place
    ? openVfioEnd(place.pci, { log })
    : openLastingEnd(place.server, { log, reactor, wait: false });
  try {
    const options = { ...V1, peer: place.peer, poll: false, reset: false, log: log.info };
    return new IvshmemBus(side, reactor, end, options);
  } catch (error) {
    end[Symbol.dispose]();
    throw error;
  }
}
