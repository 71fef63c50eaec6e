/**
 * The root file system of a guest: busybox, the kernel modules it needs, and a script.
 *
 * /init mounts what every guest needs, inserts the modules in order, runs the script /run.sh on the
 * console, prints GUEST-DONE and powers the guest off. What still runs then ends with the guest.
 *
 * A guest with a disk (`machine_image.ts`) has it on /mnt, and each of its directories and files
 * has a link in the root, so that programs and libraries are found where they would be: /lib64
 * leads to /mnt/lib64, /bin/vmsg to /mnt/vmsg. /mnt/bin is on PATH.
 */

import { type CpioEntry, writeCpio } from "./cpio.ts";
import { DONE_LINE } from "./guest.ts";
import type { ModuleFile } from "./kernel_modules.ts";

/** One more file for a guest. */
export interface GuestFile {
  /** Where it lies, as in "bin/tool"; its directories are made. */
  readonly path: string;
  /** Its contents. */
  readonly bytes: Uint8Array;
  /** Permission bits, 0o755 unless given. */
  readonly mode?: number;
}

/** The parts of an initramfs. */
export interface InitramfsParts {
  /** The program busybox; it must be a static one. */
  readonly busybox: Uint8Array;
  /** In the order in which they are inserted. */
  readonly modules: readonly ModuleFile[];
  /** What the guest does, for busybox's sh. */
  readonly script: string;
  /** Files besides these. */
  readonly files?: readonly GuestFile[];
  /** The device of an erofs disk with vmsg, as in "/dev/vda"; none unless given. */
  readonly disk?: string;
}

// The applets are linked by busybox itself, which knows which it has (it wants /proc to name
// itself). A microvm has no ACPI power button: with reboot=t a reboot is a triple fault, which
// ends QEMU (-no-reboot). Changing a terminal's settings waits for its output to be out; without
// that the last lines are lost when the host is slow. A neighbour may be slow as well: who asks for its address gives up
// after three seconds, and drops what waits for it.
const init = (disk: string | undefined) =>
  `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
exec </dev/console >/dev/console 2>&1
for kind in mcast ucast; do echo 100 >/proc/sys/net/ipv4/neigh/default/\${kind}_solicit; done
for module in $(cat /modules/order); do
  insmod "/modules/$module.ko" || echo "insmod $module failed"
done
${disk === undefined ? "" : mountDisk(disk)}ip link set lo up
cd /root
sh /run.sh
echo ${DONE_LINE}
stty min 1
case " $(cat /proc/cmdline) " in
  *" reboot=t "*) reboot -f ;;
  *) poweroff -f ;;
esac
`;

const mountDisk = (device: string) =>
  `mkdir -p /mnt /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t erofs -o ro ${device} /mnt || echo "mount ${device} failed"
for path in /mnt/*; do
  [ -e "/\${path##*/}" ] || ln -s "$path" "/\${path##*/}"
done
ln -s /mnt/vmsg /bin/vmsg
export PATH=/bin:/mnt/bin
`;

const DIRECTORIES = ["bin", "dev", "etc", "modules", "proc", "root", "sys", "tmp"];

/** Builds an initramfs (an uncompressed cpio archive). */
export function buildInitramfs(parts: InitramfsParts): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder();
  const order = parts.modules.map(({ name }) => name + "\n").join("");
  const entries: CpioEntry[] = [
    ...DIRECTORIES.map((path): CpioEntry => ({ kind: "directory", path })),
    // The kernel opens the console before anything is mounted.
    { kind: "character-device", path: "dev/console", major: 5, minor: 1, mode: 0o600 },
    { kind: "character-device", path: "dev/null", major: 1, minor: 3 },
    { kind: "file", path: "bin/busybox", bytes: parts.busybox, mode: 0o755 },
    { kind: "symlink", path: "bin/sh", target: "busybox" },
    { kind: "file", path: "init", bytes: encoder.encode(init(parts.disk)), mode: 0o755 },
    { kind: "file", path: "run.sh", bytes: encoder.encode(parts.script) },
    { kind: "file", path: "modules/order", bytes: encoder.encode(order) },
    ...parts.modules.map(({ name, bytes }): CpioEntry => (
      { kind: "file", path: `modules/${name}.ko`, bytes }
    )),
  ];
  const directories = new Set(DIRECTORIES);
  for (const { path, bytes, mode = 0o755 } of parts.files ?? []) {
    for (let slash = path.indexOf("/"); slash >= 0; slash = path.indexOf("/", slash + 1)) {
      const directory = path.slice(0, slash);
      if (directories.has(directory)) continue;
      directories.add(directory);
      entries.push({ kind: "directory", path: directory });
    }
    entries.push({ kind: "file", path, bytes, mode });
  }
  return writeCpio(entries);
}
