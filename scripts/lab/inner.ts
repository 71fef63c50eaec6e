/**
 * A guest inside a machine: what has to be on the machine's disk for it, and how the machine boots
 * it.
 *
 * Three kinds. User-Mode Linux is an ordinary process and boots in a small machine. Its memory is a
 * file in the machine's /dev/shm, and `setarch -R` keeps it where a vhost-user back end finds it
 * (uml.ts). QEMU with a microvm needs KVM in the machine, which an emulated one has with a
 * processor that knows SVM: its kernel then boots at the speed of the machine itself, not twice
 * emulated. In an arm64 machine, which must have a hypervisor's exception level, the same goes for
 * QEMU's virt.
 */

import { VmsgError } from "../../src/linux/errors.ts";
import { ARM64_QEMU, arm64QemuFiles } from "./arm64_qemu.ts";
import type { GuestFile } from "./initramfs.ts";
import { findProgram, type PlacedFile, withLibraries } from "./libraries.ts";
import type { MachineOptions } from "./machine.ts";
import { guestInitramfs, type Installation } from "./machines.ts";
import type { QemuInstallation } from "./qemu.ts";

/** See the head of this file. */
export interface InnerGuest {
  /** For the machine's disk. */
  readonly files: readonly (PlacedFile | GuestFile)[];
  /** What the machine needs to be able to boot it. */
  readonly machine: Pick<MachineOptions, "extraArgs" | "modules" | "memoryMiB" | "kernelArgs">;
  /** Shell: boots the guest on the console, until it has ended. */
  boot(socket: string): string;
  /** The same with its memory in huge pages of the machine's pool, where the kind knows them. */
  bootInHugePages?(socket: string): string;
  /** The same with a card that QEMU itself serves, at the other end of a TAP; not every kind can. */
  bootOnTap?(tap: string): string;
}

/** What an inner guest is told. */
export interface InnerGuestOptions {
  /** What it does, see `scripts.ts`. */
  readonly script: string;
  /** Files for it besides. */
  readonly files?: readonly GuestFile[];
  /** Modules besides those of a network card. */
  readonly modules?: readonly string[];
  /** virtio's number of what the socket serves; only User-Mode Linux can have another than a network card. */
  readonly deviceType?: number;
  /** MiB of memory; 64 or 128 unless given. */
  readonly memoryMiB?: number;
  /** A microvm's memory is one huge page of 1 GiB, so it is in one piece; not with {@link memoryMiB}. */
  readonly oneRange?: boolean;
}

/**
 * Shell: runs an emulator, and passes on what it writes by whole lines. It writes its guest's console character by character, so that
 * others' lines came in between. And QEMU marks the terminal it writes to as one not to wait for (O_NONBLOCK), which holds for
 * all who were started with the same one: what they write while it is busy was lost, line by line.
 */
const byLines = (command: string): string => `
lines() { while IFS= read -r line || [ -n "$line" ]; do echo "$line"; done; }
( set -o pipefail
{ ${command.trim()} </dev/null 2>&1 >&3 | lines >&2; } 3>&1 | lines )
`;

/** Of the huge page, of the machine with it, and where the page is taken from. */
const ONE_RANGE = { guestMiB: 1024, machineMiB: 4096, directory: "/dev/hugepages" };

async function setarch(): Promise<string> {
  const path = await findProgram("setarch");
  if (path !== undefined) return path;
  throw new VmsgError("NO_SETARCH", "the program setarch is missing: apt-get install util-linux");
}

/** The kernel and the initial file system of an inner User-Mode Linux. */
export async function innerUml(
  installation: Installation & { readonly kind: "uml" },
  options: InnerGuestOptions,
): Promise<InnerGuest> {
  const { script, files = [], modules = [], deviceType = 1, memoryMiB = 64 } = options;
  const initramfs = await guestInitramfs(installation, { script, files, modules });
  return {
    files: [
      ...await withLibraries(installation.kernel, "/bin/linux.uml"),
      // busybox has none.
      ...await withLibraries(await setarch(), "/bin/setarch"),
      { path: "inner/initramfs.cpio", bytes: initramfs, mode: 0o644 },
    ],
    machine: {},
    boot: (socket) => `
mkdir -p /tmp/uml
${
      byLines(`TMPDIR=/dev/shm HOME=/tmp setarch x86_64 -R linux.uml mem=${memoryMiB}M \\
  initrd=/mnt/inner/initramfs.cpio uml_dir=/tmp/uml/ con0=null,fd:1 con=null ssl=null quiet \\
  virtio_uml.device=${socket}:${deviceType}`)
    }`,
  };
}

/** What a microvm's QEMU reads besides its libraries. */
const FIRMWARE: readonly string[] = ["qboot.rom", "linuxboot_dma.bin", "pvh.bin"];
const FIRMWARE_DIRECTORY = "/usr/share/qemu";

/** An inner QEMU with a microvm, its kernel and initial file system. */
export async function innerMicrovm(
  installation: QemuInstallation,
  options: InnerGuestOptions,
): Promise<InnerGuest> {
  const { script, files = [], oneRange = false } = options;
  const { memoryMiB = oneRange ? ONE_RANGE.guestMiB : 128 } = options;
  const initramfs = await guestInitramfs({ ...installation, kind: "microvm" }, { script, files });
  const backend = oneRange
    ? `memory-backend-file,mem-path=${ONE_RANGE.directory},prealloc=on`
    : MEMFD;
  const directory = `
mkdir -p ${ONE_RANGE.directory}
mount -t hugetlbfs -o pagesize=1G hugetlbfs ${ONE_RANGE.directory}`;
  const boot = (netdev: string, memory = backend) =>
    `${oneRange ? directory : ""}
${
      byLines(`qemu-system-x86_64 -L /mnt/inner -M microvm,rtc=on,memory-backend=ram \\
  -append "console=ttyS0 reboot=t panic=-1 quiet" ${qemuArguments(netdev, memoryMiB, memory)}`)
    }`;
  return {
    files: [
      ...await withLibraries(installation.qemu, "/bin/qemu-system-x86_64"),
      ...FIRMWARE.map((name) => ({
        from: `${FIRMWARE_DIRECTORY}/${name}`,
        // QEMU asks for the microvm's by another name.
        to: `/inner/${name === "qboot.rom" ? "bios-microvm.bin" : name}`,
      })),
      { from: installation.kernel, to: "/inner/vmlinuz" },
      { path: "inner/initramfs.cpio", bytes: initramfs, mode: 0o644 },
    ],
    machine: {
      // Of the emulated processors with SVM this one has pages of 1 GiB.
      extraArgs: ["-cpu", oneRange ? "EPYC" : "qemu64,+svm,+npt"],
      modules: ["kvm_amd"],
      memoryMiB: oneRange ? ONE_RANGE.machineMiB : 512,
      kernelArgs: oneRange ? ["hugepagesz=1G", "hugepages=1"] : [],
    },
    boot: (socket) => boot(vhostUser(socket)),
    bootInHugePages: (socket) => boot(vhostUser(socket), `${MEMFD},hugetlb=on,hugetlbsize=2M`),
    bootOnTap: (tap) => boot(`-netdev tap,id=net0,ifname=${tap},script=no,downscript=no`),
  };
}

/** An inner QEMU with a virt machine, in an arm64 machine. */
export async function innerVirt(
  installation: QemuInstallation & { readonly kind: "arm64" },
  options: InnerGuestOptions,
): Promise<InnerGuest> {
  const { script, files = [], memoryMiB = 128 } = options;
  const initramfs = await guestInitramfs(installation, { script, files });
  return {
    files: [
      ...await arm64QemuFiles(),
      { from: installation.kernel, to: "/inner/vmlinuz" },
      { path: "inner/initramfs.cpio", bytes: initramfs, mode: 0o644 },
    ],
    // KVM is built in. A machine that another one sees has a power of two of memory.
    machine: { extraArgs: ["-M", "virtualization=on"], memoryMiB: 1024 },
    boot: (socket) =>
      byLines(`${ARM64_QEMU.split("/").at(-1)} -M virt,gic-version=host,memory-backend=ram \\
  -append "console=ttyAMA0 panic=-1 quiet cma=0" ${qemuArguments(vhostUser(socket), memoryMiB)}`),
  };
}

function vhostUser(socket: string): string {
  return `-chardev socket,id=vu,path=${socket} -netdev vhost-user,id=net0,chardev=vu`;
}

/** Memory that the back end can map. */
const MEMFD = "memory-backend-memfd";

/** What either QEMU is told: KVM, its kernel, shared memory and the network card. */
function qemuArguments(netdev: string, memoryMiB: number, backend = MEMFD): string {
  return [
    "-display none -nodefaults -no-reboot -serial stdio -monitor none -accel kvm -cpu host",
    `-m ${memoryMiB} -object ${backend},id=ram,size=${memoryMiB}M,share=on`,
    "-kernel /mnt/inner/vmlinuz -initrd /mnt/inner/initramfs.cpio",
    netdev,
    "-global virtio-mmio.force-legacy=false",
    "-device virtio-net-device,netdev=net0,mac=52:54:00:76:6d:01",
  ].join(" \\\n  ");
}
