/**
 * A machine with Xen, under a stock QEMU: the hypervisor, a Dom0 with the tools and vmsg, and what a DomU is
 * made of. All of it comes from Debian's packages (scripts/fetch_xen.ts).
 *
 *     00:10.0  ivshmem-doorbell   memory and interrupts shared with another machine
 *     00:12.0  virtio-net-pci     a network card that QEMU serves
 *     00:14.0  virtio-blk-pci     the disk: vmsg, Xen's tools, libraries, /domu/kernel and /domu/initrd
 *     00:15.0  virtio-blk-pci     /dev/vdb, a file of the host's that Dom0 may write
 *
 * Dom0 does what the caller's script says, after xenstored and xenconsoled are up; `xl` and `vmsg` are on PATH.
 * DomUs are made by that script (xen_scripts.ts).
 *
 * Each domain has a processor of its own to run on, or two that wait for each other take minutes.
 */

import { VmsgError } from "../../src/linux/errors.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import type { XenInstallation } from "../fetch_xen.ts";
import { elfNeeded } from "./elf.ts";
import { type Guest, type QemuKind, startGuest } from "./guest.ts";
import { buildInitramfs } from "./initramfs.ts";
import { loadModules } from "./kernel_modules.ts";
import { findProgram, type PlacedFile } from "./libraries.ts";
import { DISK_ADDRESS, DOORBELL_ADDRESS, type MachineNic, NIC_ADDRESSES } from "./machine.ts";
import { buildMachineImage, type MachineArchitecture } from "./machine_image.ts";

/** Where the machine's other disk is. */
const SECOND_DISK_ADDRESS = "0000:00:15.0";

/** What Dom0 loads; erofs, as ext4, asks for a crc32c by name, which no dependency names. */
const DOM0_MODULES = [
  "crc32c_generic",
  ...["xenfs", "xen_privcmd", "xen_evtchn", "xen_gntdev", "virtio_pci", "virtio_blk", "erofs"],
  ...["tun", "bridge", "virtio_net", "af_packet"],
];
const DOMU_MODULES = [
  ...["virtio_mmio", "virtio_net", "virtio_rng", "virtio_blk", "af_packet"],
  ...["crc32c_generic", "ext4"],
];

/** Programs of Xen's that Dom0 runs. */
const TOOLS = ["xl", "xenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper"];
const STORE_TOOLS = ["xenstore-ls", "xenstore-read", "xenstore-write", "xenstore-rm"];

interface Type {
  readonly kind: QemuKind;
  readonly program: string;
  readonly arguments: (xen: XenInstallation, initrd: string, words: string) => string[];
  /** Debian's name for its libraries' directory, and where the loader lies. */
  readonly triplet: string;
  readonly loader: string;
  readonly memoryMiB: number;
}

/** For the hypervisor: Dom0 on one processor, and nothing that takes time. */
const HYPERVISOR =
  "bootscrub=0 dom0_max_vcpus=1 dom0_vcpus_pin loglvl=warning guest_loglvl=warning";

const TYPES: Readonly<Record<MachineArchitecture, Type>> = {
  x86_64: {
    kind: "q35",
    program: "qemu-system-x86_64",
    arguments: ({ hypervisor, kernel }, initrd, words) => [
      ...["-M", "q35", "-cpu", "qemu64,+svm,+npt"],
      ...["-kernel", hypervisor],
      ...["-append", `console=com1 com1=115200,8n1 dom0_mem=384M ${HYPERVISOR}`],
      ...["-initrd", `${kernel} ${words},${initrd}`],
    ],
    triplet: "x86_64-linux-gnu",
    loader: "lib64/ld-linux-x86-64.so.2",
    memoryMiB: 768,
  },
  aarch64: {
    kind: "arm64",
    program: "qemu-system-aarch64",
    arguments: ({ hypervisor, kernel }, initrd, words) => [
      ...["-M", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57"],
      ...["-kernel", hypervisor],
      // Dom0's memory is where it says it is, in large pieces: not every size can be had.
      ...["-append", `console=dtuart dom0_mem=512M ${HYPERVISOR}`],
      "-device",
      `guest-loader,addr=0x44000000,kernel=${kernel},bootargs=${words}`,
      ...["-device", `guest-loader,addr=0x50000000,initrd=${initrd}`],
    ],
    triplet: "aarch64-linux-gnu",
    loader: "lib/ld-linux-aarch64.so.1",
    memoryMiB: 1280,
  },
};

/** What is put onto a machine's disk. */
export interface XenImageOptions {
  /** A directory to make it in. */
  readonly directory: string;
  /** vmsg for Dom0. */
  readonly executable: string;
  /** What the DomU does, for busybox's sh. */
  readonly domu: string;
}

/** Builds the disk; machines may share it. */
export async function buildXenImage(
  xen: XenInstallation,
  { directory, executable, domu }: XenImageOptions,
): Promise<string> {
  const programs = [
    ...TOOLS.map((name) => `usr/lib/xen-${xen.version}/bin/${name}`),
    ...STORE_TOOLS.map((name) => `usr/bin/${name}`),
  ].map((path) => `${xen.root}/${path}`);
  return await buildMachineImage({
    directory,
    architecture: xen.architecture,
    executable,
    libraries: await libraries(xen, [executable, ...programs]),
    files: [
      // Where they look for each other, and where PATH finds them.
      ...programs.map((from) => ({ from, to: from.slice(xen.root.length) })),
      { from: xen.kernel, to: "/domu/kernel" },
      { path: "domu/initrd", bytes: await initrd(xen, DOMU_MODULES, domu) },
    ],
  });
}

async function initrd(
  { busybox, modules }: XenInstallation,
  names: readonly string[],
  script: string,
  disk?: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const parts = {
    busybox: await Deno.readFile(busybox),
    modules: await loadModules(modules, names, { optional: names }),
    script,
  };
  return buildInitramfs(disk === undefined ? parts : { ...parts, disk });
}

/** All that the programs name as needed, and what that needs, from Xen's packages. */
async function libraries(
  { root, architecture }: XenInstallation,
  programs: readonly string[],
): Promise<PlacedFile[]> {
  const { triplet, loader } = TYPES[architecture];
  const find = async (places: readonly string[]) => {
    for (const place of places) {
      if (await Deno.stat(`${root}/${place}`).then(() => true, () => false)) return place;
    }
    throw new VmsgError("LIBRARY", `Xen's packages have no ${places[0]}`);
  };
  const needed = new Set<string>();
  for (const path of programs) {
    for (const name of elfNeeded(await Deno.readFile(path))) needed.add(name);
  }
  const loaderName = loader.slice(loader.lastIndexOf("/") + 1);
  const files = [{ from: `${root}/${await find([`usr/${loader}`, loader])}`, to: `/${loader}` }];
  // A set takes what is added while it is walked.
  for (const name of needed) {
    if (name === loaderName) continue;
    const place = await find([`usr/lib/${triplet}/${name}`, `lib/${triplet}/${name}`]);
    const from = `${root}/${place}`;
    for (const next of elfNeeded(await Deno.readFile(from))) needed.add(next);
    files.push({ from, to: `/lib/${triplet}/${name}` });
  }
  return files;
}

/** What a machine can be told. */
export interface XenMachineOptions {
  /** Made by {@link buildXenImage}. */
  readonly image: string;
  /** What Dom0 does, for busybox's sh. */
  readonly script: string;
  /** A file that is /dev/vdb of Dom0. */
  readonly disk?: string;
  /** The socket of an ivshmem server. */
  readonly doorbell?: string;
  /** Up to one network card. */
  readonly nics?: readonly MachineNic[];
  readonly memoryMiB?: number;
  readonly onLine?: (line: string) => void;
}

/** Shell: Dom0 as xl wants it. */
function dom0Script({ version }: XenInstallation, script: string): string {
  return `
export PATH=/usr/lib/xen-${version}/bin:/mnt/usr/bin:$PATH
mount -t xenfs xenfs /proc/xen
mkdir -p /dev/pts /var/lib/xen/dump /var/log/xen /run/xen /run/xenstored /run/lock /etc/xen
ln -sf /run /var/run; ln -sf /run/lock /var/lock; : >/etc/xen/xl.conf
ln -sf /proc/self/fd /dev/fd
mount -t devpts devpts /dev/pts
xenstored --pid-file=/run/xenstored.pid || echo "xenstored failed"
xen-init-dom0 >/dev/null || echo "xen-init-dom0 failed"
xenconsoled --pid-file=/run/xenconsoled.pid --log=guest --log-dir=/tmp
echo "XEN up=$(cut -d' ' -f1 /proc/uptime)"
${script}
`;
}

/** Starts a machine. Whether it boots, its console tells. */
export async function startXenMachine(
  xen: XenInstallation,
  options: XenMachineOptions,
): Promise<Guest> {
  const type = TYPES[xen.architecture];
  const program = await findProgram(type.program);
  if (program === undefined) throw new VmsgError("NO_GUEST", `${type.program} is missing`);
  const { image, disk, script, doorbell, nics = [], memoryMiB = type.memoryMiB, onLine } = options;
  const keeper = await openKeeper();
  const initramfs = `${keeper.directory}/dom0.cpio`;
  try {
    const bytes = await initrd(xen, DOM0_MODULES, dom0Script(xen, script), "/dev/vda");
    await Deno.writeFile(initramfs, bytes);
  } catch (error) {
    await keeper[Symbol.asyncDispose]();
    throw error;
  }
  const slot = (address: string) => `addr=0x${address.slice(8, 10)}`;
  const args = [
    ...["-accel", "tcg", "-smp", "2", "-m", `${memoryMiB}`, "-display", "none", "-nodefaults"],
    ...["-no-reboot", "-serial", "stdio", "-monitor", "none"],
    ...type.arguments(xen, initramfs, "console=hvc0 panic=-1 quiet"),
    ...["-drive", `if=none,id=disk,format=raw,readonly=on,file=${image}`],
    ...["-device", `virtio-blk-pci,drive=disk,romfile=,${slot(DISK_ADDRESS)}`],
    ...(disk === undefined ? [] : [
      ...["-drive", `if=none,id=second,format=raw,file=${disk}`],
      ...["-device", `virtio-blk-pci,drive=second,romfile=,${slot(SECOND_DISK_ADDRESS)}`],
    ]),
    ...(doorbell === undefined ? [] : [
      ...["-chardev", `socket,id=iv,path=${doorbell}`],
      ...["-device", `ivshmem-doorbell,vectors=2,chardev=iv,${slot(DOORBELL_ADDRESS)}`],
    ]),
    ...nics.flatMap(({ netdev, mac }, index) => {
      const [kind, ...rest] = netdev.split(",");
      return [
        ...["-netdev", [kind, `id=n${index}`, ...rest].join(",")],
        "-device",
        `virtio-net-pci,romfile=,netdev=n${index},mac=${mac ?? `52:54:00:12:35:5${index}`},${
          slot(NIC_ADDRESSES[index]!)
        }`,
      ];
    }),
  ];
  const env = { TMPDIR: keeper.directory };
  return await startGuest({ kind: type.kind, program, args, env }, keeper, onLine);
}
