/**
 * Two machines that measure networks between them: pings, and TCP by iperf3 both ways, from machine B or a
 * guest inside it to the kernel of machine A; through vmsg, and through stock QEMU's virtio-net and a socket
 * between the same two machines. All networks take turns, so that a busy moment of the host falls on each.
 *
 * What is measured comes out as machine B's console: between the lines `BEGIN n` and `END n` are ping's
 * lines of network n, and iperf3's behind `OUT` and `IN`. bench/ivshmem_bench.ts makes tables of it.
 */

import { chooseAccelerator, type QemuInstallation } from "./qemu.ts";
import { type InnerGuest, innerMicrovm } from "./inner.ts";
import { findProgram, withLibraries } from "./libraries.ts";
import {
  DOORBELL_ADDRESS,
  isMachineInstallation,
  type Machine,
  OTHER_MEMORY_ADDRESS,
} from "./machine.ts";
import { findGuests } from "./machines.ts";
import {
  DRIVER_HUGE_PAGES,
  DRIVER_INTERFACE,
  MEMORY_BASE,
  openPair,
  type PairMachineOptions,
  type PairOptions,
} from "./pair.ts";

/** How much is measured. */
export interface Measurement {
  /** vmsg for the machines. */
  readonly executable: string;
  /** Of the doorbell's memory, as in "4M". */
  readonly segmentSize: string;
  readonly rounds: number;
  /** Pings of one round, and before them. */
  readonly pings: number;
  readonly warmUpPings: number;
  /** Between two pings, longer than a round trip, so that pings do not wait for one another. */
  readonly intervalSeconds: number;
  /** How long each stream takes. */
  readonly streamSeconds: number;
}

/** What came of it. */
export interface Measured {
  /** Machines and kernel, for people. */
  readonly machines: string;
  /** The names of the networks, in the order of their numbers. */
  readonly names: readonly string[];
  /** Machine B's lines. */
  readonly lines: readonly string[];
}

const BOOT_TIMEOUT_MS = 300_000;

/** A network between the two machines: how B gets it, and where A is on it. */
interface Link {
  readonly name: string;
  /** `--memory` of `vmsg driver`; the stock card without. */
  readonly memory?: string;
  readonly address: string;
}

const LINKS = (segmentSize: string): readonly Link[] => [
  { name: "stock QEMU: virtio-net and a socket", address: "10.0.3.2" },
  { name: "vmsg, huge pages (A sees B's memory)", memory: "hugepages=10M", address: "10.0.2.2" },
  {
    name: `vmsg, segment (${segmentSize} of the doorbell)`,
    memory: "segment",
    address: "10.0.2.2",
  },
];

const SCRIPT_A = `
ip link set eth0 up
ip addr add 10.0.3.2/24 dev eth0
iperf3 -s >/dev/null 2>&1 &
vmsg device --bus ivshmem,pci=${DOORBELL_ADDRESS},bind \\
  --memory pci=${OTHER_MEMORY_ADDRESS},at=${MEMORY_BASE.q35} --net tap=tap0,address=10.0.2.2/24
echo "DEVICE rc=$?"
`;

/** Shell: one link's part of a round, between two lines that name it. */
function roundScript({ memory, address }: Link, index: number, plan: Measurement): string {
  const { warmUpPings, pings, intervalSeconds, streamSeconds } = plan;
  const start = `
vmsg driver --bus ivshmem,pci=${DOORBELL_ADDRESS},bind --memory ${memory} \\
  --tap ${DRIVER_INTERFACE},address=10.0.2.15/24 >/tmp/driver.log 2>&1 &
until grep -q "connected;" /tmp/driver.log; do sleep 0.1; done
ip link set ${DRIVER_INTERFACE} up
`;
  return `
${memory === undefined ? "" : start}
ping -c ${warmUpPings} -i ${intervalSeconds} -W 2 ${address} >/dev/null
iperf3 -c ${address} -t 1 -i 0 >/dev/null 2>&1
sleep 1
ping -c ${pings} -i ${intervalSeconds} -W 2 ${address} >/tmp/pings
iperf3 -c ${address} -t ${streamSeconds} -f m -i 0 >/tmp/out 2>&1
iperf3 -c ${address} -t ${streamSeconds} -f m -i 0 -R >/tmp/in 2>&1
${memory === undefined ? "" : "kill %1; wait"}
echo "BEGIN ${index}"
grep time= /tmp/pings
sed "s/^/OUT /" /tmp/out
sed "s/^/IN /" /tmp/in
echo "END ${index}"
`;
}

const scriptB = (plan: Measurement) => `
ip link set eth0 up
ip addr add 10.0.3.15/24 dev eth0
until ping -c 1 -W 1 10.0.3.2 >/dev/null; do :; done
for round in $(seq ${plan.rounds}); do
${LINKS(plan.segmentSize).map((link, i) => roundScript(link, i, plan)).join("\n")}
done
echo MEASURED
`;

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** Waits for what B says after its last round, however often it is heard of. */
async function finished(
  machineA: Machine,
  machineB: Machine,
  links: number,
  { rounds, pings, streamSeconds }: Measurement,
): Promise<void> {
  const roundMs = 60_000 + streamSeconds * 4000 + pings * 200;
  const timeoutMs = BOOT_TIMEOUT_MS + rounds * links * roundMs;
  const deviceEnded = machineA.waitFor(/^DEVICE rc=/, timeoutMs);
  const done = machineB.waitFor(/^MEASURED/, timeoutMs);
  for (const promise of [deviceEnded, done]) promise.catch(() => {});
  await Promise.race([
    done,
    deviceEnded.then((line) => {
      throw new Error(line);
    }),
    machineB.status.then(() => done),
  ]);
}

type Q35 = QemuInstallation & { readonly kind: "q35" };

/** What can be booted here, or what is missing for it. */
async function findMachine(): Promise<Q35 | string> {
  const guests = await findGuests();
  const { q35 } = guests;
  if (q35 === undefined) return guests.missing.q35.join("; ");
  if (!isMachineInstallation(q35)) return "no machine";
  for (const program of ["iperf3", "mkfs.erofs"]) {
    if (await findProgram(program) === undefined) return `${program} is missing`;
  }
  return { ...q35, kind: "q35" };
}

/** Boots both machines, and returns machine B's lines when it has measured. */
async function run(
  plan: Measurement,
  links: number,
  pairOptions: Omit<PairOptions, "executable" | "size">,
  machineOptions: Omit<PairMachineOptions, "nics">,
): Promise<readonly string[]> {
  const { executable, segmentSize: size } = plan;
  await using pair = await openPair({ ...pairOptions, executable, size });
  const cable = `127.0.0.1:${freePort()}`;
  await using machineA = await pair.startA({
    script: SCRIPT_A,
    nics: [{ netdev: `socket,listen=${cable}` }],
  });
  await using machineB = await pair.startB({
    ...machineOptions,
    nics: [{ netdev: `socket,connect=${cable}`, mac: "52:54:00:12:34:66" }],
  });
  try {
    await finished(machineA, machineB, links, plan);
  } catch (error) {
    console.error(`--- machine A ---\n${machineA.console()}--- machine B ---`);
    console.error(machineB.console());
    throw error;
  }
  return machineB.console().split("\n");
}

/** Measures from machine B's own kernel; a text says what is missing here. */
export async function measureMachines(plan: Measurement): Promise<Measured | string> {
  const installation = await findMachine();
  if (typeof installation === "string") return installation;
  const files = await withLibraries(await findProgram("iperf3") ?? "", "/bin/iperf3");
  const names = LINKS(plan.segmentSize).map(({ name }) => name);
  const options = { script: scriptB(plan), hugePages: DRIVER_HUGE_PAGES };
  const lines = await run(plan, names.length, { installation, files }, options);
  const machines = await describe(installation, "one processor and 256 MiB each");
  return { machines, names, lines };
}

async function describe(installation: Q35, more: string): Promise<string> {
  const { qemuVersion, release } = installation;
  const accelerator = await chooseAccelerator(installation);
  return `QEMU ${qemuVersion} q35, ${accelerator}, ${more}, kernel ${release}`;
}

const INNER_LINKS = [
  "stock QEMU: tap, bridge, virtio-net and a socket",
  "vmsg proxy --confined",
  "vmsg proxy, the guest's own pages, scattered",
  "vmsg proxy, the guest's own huge pages",
] as const;
const INNER_SOCKET = "/tmp/inner.sock";
const INNER_MIB = 192;
/** The inner guest's, once scattered and once in huge pages, besides the machine's own. */
const INNER_MACHINE_MIB = 1024;
/** Those, and one for rings. */
const INNER_HUGE_PAGES = INNER_MIB / 2 + 1;

/** What the inner guest does: whichever of the two networks it is in answers. */
const innerGuestScript = (plan: Measurement) => {
  const { warmUpPings, pings, intervalSeconds, streamSeconds } = plan;
  return `
until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
ip link set eth0 up
ip addr add 10.0.2.16/24 dev eth0
ip addr add 10.0.3.16/24 dev eth0
peer=
while [ -z "$peer" ]; do
  for address in 10.0.2.2 10.0.3.2; do
    ping -c 1 -W 1 $address >/dev/null && peer=$address && break
  done
done
ping -c ${warmUpPings} -i ${intervalSeconds} -W 2 $peer >/dev/null
ping -c ${pings} -i ${intervalSeconds} -W 2 $peer | grep time=
iperf3 -c $peer -t ${streamSeconds} -f m -i 0 | sed "s/^/OUT /"
iperf3 -c $peer -t ${streamSeconds} -f m -i 0 -R | sed "s/^/IN /"
`;
};

function innerScriptB(inner: InnerGuest, rounds: number): string {
  const vmsg = (index: number, mode: string, boot = inner.boot) => `
vmsg proxy --bus ivshmem,pci=${DOORBELL_ADDRESS},bind --vhost-user socket=${INNER_SOCKET} ${mode} &
until [ -S ${INNER_SOCKET} ]; do sleep 0.1; done
echo "BEGIN ${index}"
${boot(INNER_SOCKET)}
echo "END ${index}"
kill %1; wait
`;
  return `
tunctl -t tap1
ip link add br0 type bridge
for card in eth0 tap1; do ip link set $card master br0; ip link set $card up; done
ip link set br0 up
for round in $(seq ${rounds}); do
echo "BEGIN 0"
${inner.bootOnTap?.("tap1")}
echo "END 0"
${vmsg(1, "--confined")}
${vmsg(2, "")}
${vmsg(3, "", inner.bootInHugePages)}
done
echo MEASURED
`;
}

/** Measures from a guest inside machine B; a text says what is missing here. */
export async function measureInner(plan: Measurement): Promise<Measured | string> {
  const installation = await findMachine();
  if (typeof installation === "string") return installation;
  const placed = await withLibraries(await findProgram("iperf3") ?? "", "/bin/iperf3");
  const inside = await Promise.all(
    placed.map(async ({ from, to }) => ({ path: to.slice(1), bytes: await Deno.readFile(from) })),
  );
  const script = innerGuestScript(plan);
  const inner = await innerMicrovm(installation, { script, files: inside, memoryMiB: INNER_MIB });
  const { memoryMiB: _, ...machine } = inner.machine;
  const files = [...placed, ...inner.files];
  // One for messages, and one for each of the card's queues.
  const pair = { installation, memoryMiB: INNER_MACHINE_MIB, files, vectors: 3 };
  const options = {
    ...machine,
    script: innerScriptB(inner, plan.rounds),
    hugePages: INNER_HUGE_PAGES,
  };
  const lines = await run(plan, INNER_LINKS.length, pair, options);
  const machines = await describe(installation, "in B a microvm with KVM");
  return { machines, names: INNER_LINKS, lines };
}
