/**
 * Back ends of vhost-user that others have written, and what QEMU calls the front end of each. They serve a guest
 * directly, as QEMU's manual has it, or `vmsg device --device vhost-user,...`.
 */

import { cacheDirectory } from "./cache.ts";
import type { QemuKind } from "./guest.ts";

/** Debian 12's virtiofsd, of package qemu-system-common. It wants root, for namespaces of its own. */
export const VIRTIOFSD = "/usr/lib/qemu/virtiofsd";

/** Serves a directory. Its cache mode is the one that shares files with others. */
export function virtiofsdCommand(socket: string, directory: string): string[] {
  const options = ["-o", `source=${directory}`, "-o", "log_level=warn"];
  return [VIRTIOFSD, "-f", `--socket-path=${socket}`, ...options];
}

/** Serves a file as a disk, by Debian's qemu-storage-daemon (package qemu-system-common). */
export function storageDaemonCommand(socket: string, file: string): string[] {
  const exported = "type=vhost-user-blk,id=e,node-name=d,writable=on";
  return [
    "qemu-storage-daemon",
    ...["--blockdev", `driver=file,node-name=d,filename=${file}`],
    ...["--export", `${exported},addr.type=unix,addr.path=${socket}`],
  ];
}

/** virtio's number of each device type that is tried; QEMU 7.2 has a vhost-user front end for all but consoles. */
export const DEVICE_TYPES = {
  blk: 2,
  console: 3,
  rng: 4,
  vsock: 19,
  fs: 26,
  i2c: 34,
  gpio: 41,
} as const;

export type DeviceType = keyof typeof DEVICE_TYPES;

/** A file system's name, which QEMU knows and its back end does not. */
export const TAG = "shared";

const OPTIONS: Readonly<Partial<Record<DeviceType, string>>> = {
  blk: ",num-queues=1",
  fs: `,tag=${TAG}`,
};

/**
 * QEMU's arguments for a front end. On PCI `vectors=0`, see `qemu.ts`.
 *
 * @param socket where the back end, or a proxy, listens
 */
export function frontEndArguments(kind: QemuKind, type: DeviceType, socket: string): string[] {
  const options = `chardev=c0${OPTIONS[type] ?? ""}`;
  const device = kind === "q35"
    ? `vhost-user-${type}-pci,${options},vectors=0`
    // blk and rng have one name for all buses.
    : `vhost-user-${type}${type === "blk" || type === "rng" ? "" : "-device"},${options}`;
  return [
    ...["-chardev", `socket,id=c0,path=${socket}`],
    ...["-global", "virtio-mmio.force-legacy=false", "-device", device],
  ];
}

/** Back ends of the rust-vmm project on crates.io, and the versions that are tried. */
export const CRATES = {
  "vhost-device-rng": "0.1.0",
  "vhost-device-vsock": "0.3.0",
} as const;

/** Where scripts/fetch_back_ends.ts installs them; undefined without a cache directory. */
export function crateRoot(): string | undefined {
  const cache = cacheDirectory();
  return cache === undefined ? undefined : `${cache}/back-ends`;
}

/** The path of an installed one, whether it is there or not. */
export function crateProgram(name: keyof typeof CRATES): string {
  return `${crateRoot() ?? "/nonexistent"}/bin/${name}`;
}
