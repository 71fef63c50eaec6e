/**
 * A machine that runs vmsg inside, under a stock QEMU: a stock kernel, an IOMMU, PCI functions at
 * addresses that are always the same, and a disk with the executable.
 *
 *     00:10.0  ivshmem-doorbell   memory and interrupts shared with another machine
 *     00:11.0  ivshmem-plain      the other machine's whole memory, as BAR 2
 *     00:12.0  virtio-net-pci     a network card that QEMU serves
 *     00:13.0  virtio-net-pci     a second one
 *     00:14.0  virtio-blk-pci     the disk, see `machine_image.ts`
 *
 * The guests of `qemu.ts` are what vmsg serves from outside, these are where vmsg itself runs; so
 * there are the two types of machine here that have PCI and an IOMMU, which vfio-pci needs:
 *
 *     q35     x86-64, intel-iommu with interrupt remapping; its kernel is told intel_iommu=on
 *     arm64   machine type virt, SMMUv3 and the interrupt translation of GICv3
 *
 * One machine sees another's memory if that lies in a file of the host (`memoryFile`,
 * `otherMemory`). The file should not lie on a disk, which makes the machine slower, but in the
 * directory of `openKeeper("/dev/shm")`.
 *
 * A machine lives from `startMachine` until its script ends, it is told `quit`, or it is disposed.
 * What QEMU makes is gone then, except a memory file, which is the caller's.
 *
 * Under TCG a q35 that resets takes 4 to 13 s to its script, where starting takes 4: QEMU 7.2 is
 * slow to write over code that it has translated. An arm64 machine takes 3 s.
 */

import { UsageError } from "../../src/linux/errors.ts";
import type { Guest, QemuKind } from "./guest.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import type { MachineArchitecture } from "./machine_image.ts";
import { guestInitramfs } from "./machines.ts";
import {
  type Accelerator,
  baseArguments,
  chooseAccelerator,
  type QemuInstallation,
  startQemuProcess,
} from "./qemu.ts";
import { type QmpArguments, qmpCommand } from "./qmp.ts";

/** Where a machine finds the memory and doorbell it shares with another. */
export const DOORBELL_ADDRESS = "0000:00:10.0";
/** Where a machine finds the other machine's memory. */
export const OTHER_MEMORY_ADDRESS = "0000:00:11.0";
/** Where a machine's network cards are, in the order of `nics`. */
export const NIC_ADDRESSES: readonly string[] = ["0000:00:12.0", "0000:00:13.0"];
/** Where a machine's disk is. */
export const DISK_ADDRESS = "0000:00:14.0";

/** The kinds of guest that can be such a machine. */
export const MACHINE_KINDS = ["q35", "arm64"] as const satisfies readonly QemuKind[];

/** One of {@link MACHINE_KINDS}. */
export type MachineKind = typeof MACHINE_KINDS[number];

/** A network card that QEMU serves. */
export interface MachineNic {
  /**
   * QEMU's -netdev without its id: "user" (DHCP, 10.0.2.2 is this host), "user,restrict=on",
   * "socket,listen=127.0.0.1:7000" and "socket,connect=127.0.0.1:7000" for a cable between two.
   */
  readonly netdev: string;
  /** 52:54:00:12:34:56 unless given, ...:57 for the second card; no network may have it twice. */
  readonly mac?: string;
}

/** What a machine can be told. */
export interface MachineOptions {
  /** Its disk, made by `buildMachineImage`. Several machines may share it. */
  readonly image: string;
  /**
   * What it does, for busybox's sh. `vmsg` is on PATH; what still runs when the script ends, ends
   * with the machine.
   */
  readonly script: string;
  /** 256 unless given; the system takes 70. For `otherMemory` it must be a power of two. */
  readonly memoryMiB?: number;
  /** The machine's memory is in this file, which is made if need be and stays. */
  readonly memoryFile?: string;
  /** An ivshmem server to connect to; it must listen. With 2 vectors unless told. */
  readonly doorbell?: { readonly socket: string; readonly vectors?: number };
  /** Another machine's memory: its `memoryFile` and `memoryMiB`. */
  readonly otherMemory?: { readonly file: string; readonly sizeMiB: number };
  /** Up to two network cards. */
  readonly nics?: readonly MachineNic[];
  /** Huge pages of 2 MiB, taken from its memory. */
  readonly hugePages?: number;
  /** More words for the kernel's command line. */
  readonly kernelArgs?: readonly string[];
  /** More kernel modules, loaded after {@link startMachine}'s own. */
  readonly modules?: readonly string[];
  /** A machine that reboots or is reset boots again; otherwise QEMU ends. */
  readonly reboots?: boolean;
  /** Instead of what `chooseAccelerator` finds. */
  readonly accelerator?: Accelerator;
  /** More arguments for QEMU. */
  readonly extraArgs?: readonly string[];
  /** Called with every line of the console as it comes. */
  readonly onLine?: (line: string) => void;
}

/** What every machine loads: disk, bridge, TAP, and both ways to drive PCI from user space. */
const MODULES: readonly string[] = [
  "virtio_blk",
  "erofs",
  "tun",
  "bridge",
  "vfio_iommu_type1",
  "vfio_pci",
  "uio_pci_generic",
];

interface MachineType {
  readonly architecture: MachineArchitecture;
  readonly type: string;
  readonly iommu: readonly string[];
  readonly words: readonly string[];
}

const TYPES: Readonly<Record<MachineKind, MachineType>> = {
  q35: {
    architecture: "x86_64",
    type: "q35",
    iommu: ["-device", "intel-iommu,intremap=on"],
    words: ["intel_iommu=on"],
  },
  arm64: {
    architecture: "aarch64",
    type: "virt,gic-version=3,iommu=smmuv3",
    iommu: [],
    words: [],
  },
};

/** The architecture of a machine's executable and libraries. */
export function machineArchitecture(kind: MachineKind): MachineArchitecture {
  return TYPES[kind].architecture;
}

/** A running machine. Dispose ends it and returns when all that belongs to it is gone. */
export class Machine implements AsyncDisposable {
  /**
   * Called by {@link startMachine}.
   *
   * @param guest its process and console
   * @param socket where QEMU takes commands
   */
  constructor(private readonly guest: Guest, private readonly socket: string) {}

  /** Which kind it is. */
  get kind(): MachineKind {
    return this.guest.kind as MachineKind;
  }

  /** Resolves when it has ended and its console is complete. */
  get status(): Promise<Deno.CommandStatus> {
    return this.guest.status;
  }

  /** How many lines it has said so far. */
  get lineCount(): number {
    return this.guest.lineCount;
  }

  /** All that it has said so far, QEMU's error messages included. */
  console(): string {
    return this.guest.console();
  }

  /**
   * The first line that matches, of those that came and those to come; see `Guest.waitFor`.
   *
   * @param after leaves out this many lines, as in `const { lineCount } = machine`
   */
  waitFor(pattern: RegExp, timeoutMs: number, after = 0): Promise<string> {
    return this.guest.waitFor(pattern, timeoutMs, after);
  }

  /**
   * Gives QEMU a command and returns its answer.
   *
   * @param command as in "system_reset", "stop", "cont", "query-status", "quit"
   */
  qmp(command: string, args?: QmpArguments): Promise<unknown> {
    return qmpCommand(this.socket, command, args);
  }

  /** Ends it, however far it is. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.guest[Symbol.asyncDispose]();
  }
}

/** True of an installation that can be a machine. */
export function isMachineInstallation(
  installation: { readonly kind: string },
): installation is QemuInstallation & { kind: MachineKind } {
  return MACHINE_KINDS.some((kind) => kind === installation.kind);
}

/** Starts a machine. Whether it boots, its console tells. */
export async function startMachine(
  installation: QemuInstallation,
  options: MachineOptions,
): Promise<Machine> {
  if (!isMachineInstallation(installation)) {
    throw new UsageError(`a ${installation.kind} is no machine for vmsg: ${MACHINE_KINDS.join()}`);
  }
  const type = TYPES[installation.kind];
  const devices = [
    ...memoryArguments(type, options),
    ...doorbellArguments(options),
    ...otherMemoryArguments(options),
    ...nicArguments(options),
    ...["-drive", `if=none,id=disk,format=raw,readonly=on,file=${escaped(options.image)}`],
    ...["-device", `virtio-blk-pci,drive=disk,addr=${slot(DISK_ADDRESS)}`],
  ];
  const accelerator = options.accelerator ?? await chooseAccelerator(installation);
  const keeper = await openKeeper();
  const [initramfs, socket] = ["initramfs.cpio", "qmp.sock"].map((name) =>
    `${keeper.directory}/${name}`
  ) as [string, string];
  try {
    const parts = {
      script: options.script,
      modules: [...MODULES, ...options.modules ?? []],
      disk: "/dev/vda",
    };
    await Deno.writeFile(initramfs, await guestInitramfs(installation, parts));
  } catch (error) {
    await keeper[Symbol.asyncDispose]();
    throw error;
  }
  const { hugePages = 0, kernelArgs = [] } = options;
  const words = [
    "quiet",
    ...type.words,
    ...(hugePages > 0 ? [`hugepages=${hugePages}`] : []),
    ...kernelArgs,
  ];
  const args = [
    ...baseArguments(installation, accelerator, words),
    // KVM's own interrupt controller cannot have its interrupts remapped.
    ...(accelerator === "kvm" ? ["-M", "kernel-irqchip=split"] : []),
    ...(options.reboots ? [] : ["-no-reboot"]),
    ...["-initrd", initramfs],
    // The IOMMU must be there before the devices behind it.
    ...type.iommu,
    ...devices,
    ...["-chardev", `socket,id=qmp,server=on,wait=off,path=${escaped(socket)}`],
    ...["-mon", "chardev=qmp,mode=control"],
    ...options.extraArgs ?? [],
  ];
  return new Machine(
    await startQemuProcess(installation, args, keeper, options.onLine),
    socket,
  );
}

function memoryArguments({ type }: MachineType, options: MachineOptions): string[] {
  const { memoryMiB = 256, memoryFile } = options;
  const where = memoryFile === undefined
    ? "memory-backend-memfd"
    : `memory-backend-file,mem-path=${escaped(memoryFile)}`;
  return [
    ...["-object", `${where},id=mem,size=${memoryMiB}M,share=on`],
    ...["-M", `${type},memory-backend=mem`, "-m", `${memoryMiB}`],
  ];
}

function doorbellArguments({ doorbell }: MachineOptions): string[] {
  if (doorbell === undefined) return [];
  const { socket, vectors = 2 } = doorbell;
  const device = `ivshmem-doorbell,vectors=${vectors},chardev=iv,addr=${slot(DOORBELL_ADDRESS)}`;
  return ["-chardev", `socket,id=iv,path=${escaped(socket)}`, "-device", device];
}

function otherMemoryArguments({ otherMemory }: MachineOptions): string[] {
  if (otherMemory === undefined) return [];
  const { file, sizeMiB } = otherMemory;
  if (!Number.isInteger(Math.log2(sizeMiB))) {
    throw new UsageError(`the other machine's memory, ${sizeMiB} MiB, must be a power of two`);
  }
  const backend = `memory-backend-file,id=other,size=${sizeMiB}M,mem-path=${escaped(file)}`;
  const device = `ivshmem-plain,memdev=other,master=on,addr=${slot(OTHER_MEMORY_ADDRESS)}`;
  return ["-object", `${backend},share=on`, "-device", device];
}

function nicArguments({ nics = [] }: MachineOptions): string[] {
  if (nics.length > NIC_ADDRESSES.length) {
    throw new UsageError(`${nics.length} network cards: at most ${NIC_ADDRESSES.length}`);
  }
  return nics.flatMap(({ netdev, mac: given }, index) => {
    const mac = given ?? `52:54:00:12:34:${56 + index}`;
    const [type, ...rest] = netdev.split(",");
    // Its option ROM, for booting over the network, is in a package of its own.
    const card = `virtio-net-pci,romfile=,netdev=n${index},mac=${mac}`;
    return [
      ...["-netdev", [type, `id=n${index}`, ...rest].join(",")],
      ...["-device", `${card},addr=${slot(NIC_ADDRESSES[index]!)}`],
    ];
  });
}

/** In QEMU's options a comma is written twice. */
function escaped(path: string): string {
  return path.replaceAll(",", ",,");
}

/** The device number in an address, as QEMU wants it: "0000:00:10.0" is "0x10". */
function slot(address: string): string {
  return `0x${address.slice(8, 10)}`;
}
