/** Back ends that others have written, behind `vmsg device --device vhost-user,...`, and guests in front of it. */

import {
  DEVICE_TYPES,
  type DeviceType,
  frontEndArguments,
  storageDaemonCommand,
  virtiofsdCommand,
} from "../../scripts/lab/back_ends.ts";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { type Processes, until, type VmsgProcess } from "../support/processes.ts";
import type { BootOptions } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** In the test's directory. */
export const BACK_END_SOCKET = "back.sock";
const FRONT_END_SOCKET = "vu.sock";

/** Starts a back end, and waits until it listens at a socket of this name. */
export async function startBackEnd(
  vmsg: Processes,
  [program, ...args]: readonly string[],
  name = BACK_END_SOCKET,
): Promise<VmsgProcess> {
  const socket = `${vmsg.directory}/${name}`;
  // Of one that was killed; only the new one's says that it is there.
  await Deno.remove(socket).catch(() => {});
  const backEnd = await vmsg.startProgram(program!, ...args);
  await until(() => Deno.stat(socket).then(() => true, () => false));
  return backEnd;
}

/** Debian's virtiofsd for a directory. It locks a file named after its socket, so no two may have one name. */
export function startVirtiofsd(vmsg: Processes, directory: string): Promise<VmsgProcess> {
  return startBackEnd(vmsg, virtiofsdCommand(`${vmsg.directory}/${BACK_END_SOCKET}`, directory));
}

/** Debian's qemu-storage-daemon for a file. */
export function startStorageDaemon(vmsg: Processes, file: string): Promise<VmsgProcess> {
  return startBackEnd(vmsg, storageDaemonCommand(BACK_END_SOCKET, file));
}

/**
 * Starts `vmsg device` for a back end.
 *
 * @param more of its option
 * @param name of the back end's socket
 */
export function startDevice(
  vmsg: Processes,
  type: DeviceType,
  more = "",
  name = BACK_END_SOCKET,
): Promise<VmsgProcess> {
  const kind = `vhost-user,socket=${name},id=${DEVICE_TYPES[type]}${more}`;
  return vmsg.start("device", ...BUS, "--device", kind);
}

/** Starts `vmsg proxy`, and waits until a guest can be booted. */
export async function startProxy(
  vmsg: Processes,
  args: readonly string[] = [],
): Promise<VmsgProcess> {
  const proxy = await vmsg.start(
    "proxy",
    ...BUS,
    ...args,
    "--vhost-user",
    `socket=${FRONT_END_SOCKET}`,
  );
  await proxy.waitFor(/waiting for a front end/);
  return proxy;
}

/** The front end as each kind of guest has it. */
export function frontEnd(
  vmsg: Processes,
  kind: GuestKind,
  type: DeviceType,
): Partial<BootOptions> {
  const socket = `${vmsg.directory}/${FRONT_END_SOCKET}`;
  if (kind !== "uml") return { extraArgs: frontEndArguments(kind, type, socket) };
  return { kernelArgs: [`virtio_uml.device=${socket}:${DEVICE_TYPES[type]}`] };
}
