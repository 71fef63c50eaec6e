/**
 * Two machines that share an ivshmem device, and what each does there.
 *
 *     machine A                                        machine B
 *       vmsg device -> A's own network card              B's own kernel <- TAP <- vmsg driver
 *          |  ivshmem-doorbell: messages, interrupts        |
 *          |  ivshmem-plain: B's memory                     |
 *
 * The ivshmem server is vmsg's. Files that both sides map lie in /dev/shm. Everything belongs to the
 * pair: dispose ends the machines and the server and removes the files.
 */

import { VmsgError } from "../../src/linux/errors.ts";
import { eachLine, selfCommand } from "../../src/cli/self.ts";
import { type Keeper, openKeeper } from "../../src/cli/keeper.ts";
import {
  DOORBELL_ADDRESS,
  type Machine,
  machineArchitecture,
  type MachineKind,
  type MachineOptions,
  OTHER_MEMORY_ADDRESS,
  startMachine,
} from "./machine.ts";
import { untilListening } from "./listening.ts";
import { buildMachineImage, type MachineImageOptions } from "./machine_image.ts";
import type { QemuInstallation } from "./qemu.ts";
import { DHCP_ONCE } from "./scripts.ts";

/** How long a process of ours takes to listen. */
const SERVER_TIMEOUT_MS = 180_000;

/** The network interface that `vmsg driver` makes in machine B. */
export const DRIVER_INTERFACE = "vm0";

/** Where a machine's memory begins. */
export const MEMORY_BASE: Readonly<Record<MachineKind, string>> = { q35: "0", arm64: "0x40000000" };

/** From so many MiB on a q35 has a hole in its RAM. */
const Q35_HOLE_FROM_MIB = 2816;

/** What `--memory pci=...` says of where a machine's memory is: `at=`, and the hole of a large PC. */
export function memoryLayout(kind: MachineKind, memoryMiB: number): string {
  const hole = kind === "q35" && memoryMiB >= Q35_HOLE_FROM_MIB ? ",low=2G,hole=2G" : "";
  return `at=${MEMORY_BASE[kind]}${hole}`;
}

/** What a pair is made of. */
export interface PairOptions {
  readonly installation: QemuInstallation & { readonly kind: MachineKind };
  /** vmsg for the machines. */
  readonly executable: string;
  /** Bytes of the shared memory as `vmsg ivshmem-server --size` takes them; 1M unless given. */
  readonly size?: string;
  /** Of each machine's doorbell; 2 unless given. */
  readonly vectors?: number;
  /** MiB of machine B, a power of two. */
  readonly memoryMiB?: number;
  /** Confined mode: machine A does not see B's memory. */
  readonly confined?: boolean;
  /** More files for the machines. */
  readonly files?: MachineImageOptions["files"];
  /** Called with what the server says. */
  readonly onServerLine?: (line: string) => void;
}

/** What one machine of a pair can be told; its memory, disk and links are the pair's. */
export type PairMachineOptions = Omit<
  MachineOptions,
  "image" | "memoryFile" | "otherMemory" | "doorbell"
>;

/** See the head of this file. */
export interface Pair extends AsyncDisposable {
  /** A directory of its own, in memory. */
  readonly directory: string;
  /** The server's socket. */
  readonly socket: string;
  /** Holds machine B's memory. */
  readonly memoryFile: string;
  /** Starts machine A, which sees B's memory. */
  startA(options: PairMachineOptions): Promise<Machine>;
  /** Starts machine B, whose memory A sees. */
  startB(options: PairMachineOptions): Promise<Machine>;
  /** Starts vmsg on this host, in {@link directory}, until the pair ends. */
  startHere(args: readonly string[], onLine: (line: string) => void): Promise<void>;
}

/** Starts the server and makes the machines' disk. */
export async function openPair(options: PairOptions): Promise<Pair> {
  const { installation, executable, size = "1M", memoryMiB = 256, files = [] } = options;
  const { confined = false, vectors = 2 } = options;
  await using stack = new AsyncDisposableStack();
  const keeper = stack.use(await openKeeper("/dev/shm"));
  const { directory } = keeper;
  const memoryFile = `${directory}/memory-of-b`;
  const startHere = (args: readonly string[], onLine: (line: string) => void) =>
    startProcess(keeper, args, onLine);
  const socket = await startIvshmemServer(
    keeper,
    size,
    options.onServerLine ?? (() => {}),
    vectors,
  );
  const architecture = machineArchitecture(installation.kind);
  const image = await buildMachineImage({ directory, architecture, executable, files });
  const common = { image, doorbell: { socket, vectors } };
  const seen = confined ? {} : { otherMemory: { file: memoryFile, sizeMiB: memoryMiB } };
  const owner = stack.move();
  return {
    directory,
    socket,
    memoryFile,
    startA: async (machine) =>
      owner.use(await startMachine(installation, { ...machine, ...common, ...seen })),
    startB: async (machine) =>
      owner.use(await startMachine(installation, { ...machine, ...common, memoryMiB, memoryFile })),
    startHere,
    [Symbol.asyncDispose]: () => owner.disposeAsync(),
  };
}

/** Starts the server of the shared memory, in the keeper's directory; its socket. */
export async function startIvshmemServer(
  keeper: Keeper,
  size: string,
  onLine: (line: string) => void,
  vectors = 2,
): Promise<string> {
  const socket = `${keeper.directory}/iv.sock`;
  const args = ["--socket", socket, "--size", size, "--vectors", String(vectors)];
  await startProcess(keeper, ["ivshmem-server", ...args], onLine);
  if (!await untilListening(socket, SERVER_TIMEOUT_MS)) {
    throw new VmsgError("NO_SERVER", `vmsg ivshmem-server does not listen on ${socket}`);
  }
  return socket;
}

async function startProcess(
  keeper: Keeper,
  args: readonly string[],
  onLine: (line: string) => void,
): Promise<void> {
  const child = selfCommand(args, {
    cwd: keeper.directory,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    detached: true,
  }).spawn();
  await keeper.keep(child.pid);
  // Its end comes with the keeper's; a child that fails has said why.
  const done = [eachLine(child.stdout, onLine), eachLine(child.stderr, onLine), child.status];
  Promise.all(done).catch(() => {});
}

/** What machine A's script is told. */
export interface DeviceScriptOptions {
  readonly kind: MachineKind;
  /**
   * How frames leave the machine: its card in a bridge with a TAP, or its card by a raw socket. Or
   * where they stay: at the machine's own kernel, which is 10.0.2.2 (tap), or in `vmsg device`.
   */
  readonly net: "bridge" | "packet" | "tap" | "responder";
  /** Touch the shared memory only. */
  readonly confined?: boolean;
  /** MiB of machine B, if it may have a hole. */
  readonly memoryMiB?: number;
  /** More of `--bus ivshmem,...`, as in "peer=1"; `bind` unless given. */
  readonly bus?: string;
  /** More arguments for `vmsg device`. */
  readonly args?: string;
}

/** Shell: `vmsg device` next to the machine's network card, until the end. */
export function deviceScript(options: DeviceScriptOptions): string {
  const { kind, net, confined = false, memoryMiB = 0, bus = "bind", args = "" } = options;
  const memory = `--memory pci=${OTHER_MEMORY_ADDRESS},${memoryLayout(kind, memoryMiB)}`;
  const ports = {
    bridge: "tap=tap0,bridge=br0",
    packet: "packet=eth0",
    tap: "tap=tap0,address=10.0.2.2/24",
    responder: "responder",
  };
  const command = [
    `vmsg device --bus ivshmem,pci=${DOORBELL_ADDRESS},${bus}`,
    confined ? "--confined" : memory,
    `--net ${ports[net]} ${args}`,
  ].join(" ");
  const bridge = `
ip link add br0 type bridge
ip link set eth0 master br0
ip link set br0 up`;
  return `
${net === "bridge" || net === "packet" ? "ip link set eth0 up" : ""}
${net === "bridge" ? bridge : ""}
echo "$ ${command}"
${command}
echo "DEVICE rc=$?"
`;
}

/** What machine B's script is told. */
export interface DriverScriptOptions {
  /** More of `--bus ivshmem,...`; `bind` unless given. */
  readonly bus?: string;
  /** `--memory` of the driver; huge pages unless given. */
  readonly memory?: string;
  /** Instead: everything is in the shared memory. */
  readonly confined?: boolean;
  /** "dhcp", or an address with its prefix length. */
  readonly address?: string;
  /** A file of the machine for what is said and the card's frames, as `--capture` has it. */
  readonly capture?: string | undefined;
  /** Shell: what the machine does with its network card. */
  readonly then: string;
}

/** Huge pages that {@link driverScript} needs unless told otherwise. */
export const DRIVER_HUGE_PAGES = 6;

/** Shell: `vmsg driver` as the machine's network card, then something through it. */
export function driverScript(options: DriverScriptOptions): string {
  const { bus = "bind", memory = "hugepages=10M", address = "dhcp", then } = options;
  const command = [
    `vmsg driver --bus ivshmem,pci=${DOORBELL_ADDRESS},${bus}`,
    `${options.confined ? "--confined" : `--memory ${memory}`} --tap ${DRIVER_INTERFACE}`,
    ...(options.capture === undefined ? [] : [`--capture ${options.capture}`]),
  ].join(" ");
  const dhcp = `
cat >/tmp/lease.sh <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev ${DRIVER_INTERFACE}
ip route add default via "$router" dev ${DRIVER_INTERFACE}
echo "LEASE $ip/$mask router=$router"
END
chmod +x /tmp/lease.sh
udhcpc -i ${DRIVER_INTERFACE} -s /tmp/lease.sh ${DHCP_ONCE} || echo "LEASE none"
`;
  return `
echo "$ ${command}"
${command} 2>&1 | tee /tmp/driver.log &
until grep -q "connected;" /tmp/driver.log 2>/dev/null; do
  [ -n "$(jobs)" ] || { echo "DRIVER ended"; exit 1; }
  sleep 0.1
done
ip link set ${DRIVER_INTERFACE} up
${address === "dhcp" ? dhcp : `ip addr add ${address} dev ${DRIVER_INTERFACE}`}
${then}
`;
}

/** Where `vmsg proxy` listens for the inner guest in machine B. */
const INNER_SOCKET = "/tmp/inner.sock";

/** What machine B's script is told when it has a guest of its own. */
export interface InnerScriptOptions {
  /** More of `--bus ivshmem,...`; `bind` unless given. */
  readonly bus?: string;
  /** How the proxy serves the guest; "--confined" unless given. */
  readonly mode?: string;
  /** As {@link DriverScriptOptions.capture}; a proxy sees no frames. */
  readonly capture?: string | undefined;
  /** Shell: boots the guest, whose front end connects to the socket. */
  readonly guest: (socket: string) => string;
}

/** Shell: `vmsg proxy` for a guest inside the machine, and that guest. */
export function innerScript(options: InnerScriptOptions): string {
  const { bus = "bind", mode = "--confined", guest } = options;
  const command = [
    `vmsg proxy --bus ivshmem,pci=${DOORBELL_ADDRESS},${bus}`,
    `--vhost-user socket=${INNER_SOCKET} ${mode}`,
    ...(options.capture === undefined ? [] : [`--capture ${options.capture}`]),
  ].join(" ");
  return `
echo "$ ${command}"
${command} &
until [ -S ${INNER_SOCKET} ]; do
  [ -n "$(jobs)" ] || { echo "PROXY ended"; exit 1; }
  sleep 0.1
done
${guest(INNER_SOCKET)}
echo "INNER rc=$?"
`;
}
