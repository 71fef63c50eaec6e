/**
 * A guest on the host's network: files by HTTP through a TAP of the kernel's and through passt, and streams by
 * iperf3 next to a stock QEMU that serves the same kind of card with a TAP of its own.
 *
 * All of a test is in a network namespace without a name, that of the test's thread: what it starts is
 * born there. So there is nothing to remove; the namespace goes with the last process in it, and with it
 * every TAP.
 *
 * With VMSG_GUEST_FULL=1 iperf3 runs longer.
 */

import { createHash } from "node:crypto";

import { assert, assertEquals } from "@std/assert";
import type { Guest, GuestKind } from "../../scripts/lab/machines.ts";
import { ip, Namespace } from "../network/support.ts";
import type { Processes, VmsgProcess } from "../support/processes.ts";
import type { Mode } from "./modes.ts";
import { programFiles } from "./program_files.ts";
import { GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";

/** A network that a guest's card can be on. */
interface Network {
  /** For `--net`. */
  readonly option: string;
  /** The guest's address, and whom it reaches the server by. */
  readonly guestAddress: string;
  readonly server: string;
  /** What the test's server listens on. */
  readonly listen: string;
  /** Makes what the namespace needs before the device starts. */
  prepare(): void;
}

const NETWORKS: Readonly<Record<"tap" | "passt", Network>> = {
  tap: {
    option: "tap=tap0,address=10.0.2.2/24",
    guestAddress: "10.0.2.15/24",
    server: "10.0.2.2",
    listen: "10.0.2.2",
    prepare() {},
  },
  // passt gives the guest the address of the interface with the default route, and takes what the guest
  // sends to the gateway to the host's loopback.
  passt: {
    option: "passt,loopback=on",
    guestAddress: "192.0.2.2/24",
    server: "192.0.2.1",
    listen: "127.0.0.1",
    prepare() {
      ip("link add up0 type veth peer name up1");
      ip("link set up0 up");
      ip("link set up1 up");
      ip("addr add 192.0.2.2/24 dev up0");
      ip("route add default via 192.0.2.1");
    },
  },
};

/** Shell: the card up and with an address. */
export const configure = (address: string): string => `
tries=0
while [ ! -e /sys/class/net/eth0 ] && [ "$tries" -lt 1200 ]; do sleep 0.1; tries=$((tries + 1)); done
ip link set eth0 up
ip addr add ${address} dev eth0
`;

/** Starts device and proxy, and returns when the proxy's socket is there. */
async function startVmsg(
  vmsg: Processes,
  net: string,
  mode: Mode,
): Promise<{ readonly socket: string; readonly device: VmsgProcess }> {
  const device = await vmsg.start("device", ...BUS, "--net", net, ...mode.device);
  await device.waitFor(/waiting for the driver side/);
  const args = ["--vhost-user", "socket=vu.sock", ...mode.driverSide];
  const proxy = await vmsg.start("proxy", ...BUS, ...args);
  await proxy.waitFor(/waiting for a front end/);
  return { socket: `${vmsg.directory}/vu.sock`, device };
}

/** Bytes in which every page is another (xorshift32). */
export function fileContents(size: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(size / 4);
  let x = 2463534242;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return new Uint8Array(words.buffer);
}

const seconds = (fromMs: number, toMs: number) => (toMs - fromMs) / 1000;

/** The guest fetches a file and compares its checksum. */
async function fetchFile(
  test: GuestTest,
  network: Network,
  mode: Mode,
  mebibytes: number,
): Promise<void> {
  const { kind } = test.installation;
  using _namespace = new Namespace();
  network.prepare();
  const contents = fileContents(mebibytes << 20);
  const sum = createHash("sha256").update(contents).digest("hex");
  const { socket, device } = await startVmsg(test.vmsg, network.option, mode);
  const { promise: listening, resolve: listens } = Promise.withResolvers<number>();
  await using server = Deno.serve({
    hostname: network.listen,
    port: 0,
    onListen: ({ port }) => listens(port),
  }, () => new Response(contents));
  const url = `http://${network.server}:${await listening}/file`;
  const times = new Map<string, number>();
  const guest = await test.boot({
    socket,
    memoryMiB: 256,
    // The file lies in the guest's memory, of which a tmpfs may have half.
    script: `${configure(network.guestAddress)}
echo FETCH
wget -q -O /tmp/file ${url}
echo "WGET rc=$?"
echo "SUM $(sha256sum </tmp/file)"
`,
    onLine: (line) => void times.set(line.split(" ")[0] ?? "", performance.now()),
  });
  const { [kind]: timeoutMs } = GUEST_TIMEOUT_MS;
  assertEquals(await guest.waitFor(/^WGET/, timeoutMs + mebibytes * 500), "WGET rc=0");
  const took = seconds(times.get("FETCH")!, times.get("WGET")!);
  assertEquals(await guest.waitFor(/^SUM/, timeoutMs), `SUM ${sum}  -`);
  await guest.waitFor(/^GUEST-DONE/, timeoutMs);
  await guest.status;
  const rate = Math.round(contents.length * 8 / took / 1e6);
  console.log(
    `${mode.prefix}${kind}: ${mebibytes} MiB by ${network.option} in ${
      took.toFixed(1)
    } s, ${rate} Mbit/s`,
  );
  await server.shutdown();
  // Not killed: it takes a passt with it.
  assertEquals((await device.end("SIGTERM")).code, 0);
  await test.vmsg.end();
}

/** Registers a test that fetches a file over HTTP. */
export function fetchTest(
  kind: GuestKind,
  network: keyof typeof NETWORKS,
  mode: Mode,
  mebibytes: number,
): void {
  const programs: Record<string, string> = { ip: "iproute2" };
  if (network === "passt") programs["passt"] = "passt";
  guestTest(
    `${mode.prefix}${kind}: a file of ${mebibytes} MiB over HTTP through ${network}`,
    { guest: kind, programs, root: true },
    (test) => fetchFile(test, NETWORKS[network], mode, mebibytes),
  );
}

/**
 * What one iperf3 stream came to. Where no frame is lost TCP repeats some all the same, when a process was not scheduled in
 * time: 0 to 15 in 3 s on a busy machine, more on a slow one, also with the stock QEMU. So frames are counted.
 */
interface Stream {
  readonly megabitsPerSecond: number;
  readonly retransmits: number;
}

/** Frames that a TAP of this namespace has lost, in both directions. */
export function drops(tap: string): number {
  const [{ stats64: { rx, tx } }] = JSON.parse(ip(`-s -j link show dev ${tap}`));
  return rx.dropped + rx.errors + tx.dropped + tx.errors;
}

/** Seconds a stream. */
const STREAM_SECONDS = FULL ? 10 : 3;
const HOST = "10.0.2.2";
/** Frames that others put on the wire while it is looked at, as the host's own neighbour discovery. */
const STRAY_FRAMES = 8;

/** Shell: frames that the guest's card has sent and received so far, when none is under way any more. */
const FRAMES = `
cd /sys/class/net/eth0/statistics
before= frames=$(cat tx_packets rx_packets)
while [ "$before" != "$frames" ]; do sleep 1; before=$frames frames=$(cat tx_packets rx_packets); done
echo FRAMES $frames
`;

/**
 * Out of the guest, then into it; the start counts, it is when queues run over. The server is there when the TAP's
 * frames have been counted as well; it has one client at a time, and resets who comes while it takes leave
 * of the last one. So each is tried until it goes.
 */
const IPERF_SCRIPT = `${configure("10.0.2.15/24")}
${FRAMES}run() {
  rc=1
  while [ $rc -ne 0 ]; do
    sleep 0.5
    echo "STREAM $1"
    iperf3 -c ${HOST} -t ${STREAM_SECONDS} -f m -i 0 $2 2>&1
    rc=$?
    echo "ENDED $1 rc=$rc"
  done
}
run out
run in -R
${FRAMES}`;

function streamOf(guest: Guest, direction: string): Stream {
  const lines = guest.console().split("\n");
  const part = lines.slice(
    lines.lastIndexOf(`STREAM ${direction}`),
    lines.indexOf(`ENDED ${direction} rc=0`),
  );
  for (const line of part) {
    const [, rate, retransmits] = line.match(/([\d.]+) Mbits\/sec\s+(\d+)\s+sender/) ?? [];
    if (rate !== undefined) {
      return { megabitsPerSecond: Number(rate), retransmits: Number(retransmits) };
    }
  }
  throw new Error(`iperf3 printed no summary of its stream ${direction}`);
}

/** Frames out of the guest and into it. */
type Frames = readonly [sent: number, received: number];

function passed(tap: string): Frames {
  const [{ stats64: { rx, tx } }] = JSON.parse(ip(`-s -j link show dev ${tap}`));
  return [rx.packets, tx.packets];
}

/** Boots a guest that runs iperf3 both ways to a server in this namespace; no frame is lost between its card and the TAP. */
async function streams(
  test: GuestTest,
  tap: string,
  card: { readonly socket: string } | { readonly tap: string },
): Promise<Record<"out" | "in", Stream>> {
  const files = await programFiles("iperf3");
  await using guest = await test.boot({ ...card, script: IPERF_SCRIPT, files });
  const timeoutMs = GUEST_TIMEOUT_MS[test.installation.kind] + 4 * STREAM_SECONDS * 1000;
  const framesOf = (line: string) => line.split(" ").slice(1).map(Number) as unknown as Frames;
  const first = { guest: framesOf(await guest.waitFor(/^FRAMES /, timeoutMs)), tap: passed(tap) };
  const server = new Deno.Command("iperf3", {
    args: ["--server", "--bind", HOST],
    stdin: "null",
    stdout: "null",
    stderr: "null",
    detached: true,
  }).spawn();
  await test.keeper.keep(server.pid);
  await guest.waitFor(/^GUEST-DONE/, timeoutMs);
  await guest.status;
  const said = guest.console().split("\n").findLast((line) => line.startsWith("FRAMES "))!;
  const last = { guest: framesOf(said), tap: passed(tap) };
  await test.keeper.end(server.pid);
  await server.status;
  for (const way of [0, 1]) {
    const counted = (who: "guest" | "tap") => last[who][way]! - first[who][way]!;
    const [inGuest, atTap] = [counted("guest"), counted("tap")];
    const what = `${way === 0 ? "out" : "in"}: ${inGuest} frames in the guest, ${atTap} at ${tap}`;
    console.log(what);
    assert(inGuest > 100 && Math.abs(inGuest - atTap) <= STRAY_FRAMES, what);
  }
  return { out: streamOf(guest, "out"), in: streamOf(guest, "in") };
}

/** Registers the test that compares a microvm's card with that of a stock QEMU. */
export function stockStreamsTest(mode: Mode): void {
  guestTest(
    `${mode.prefix}microvm: iperf3 both ways through tap, next to a stock QEMU with its own TAP`,
    {
      guest: "microvm",
      programs: { iperf3: "iperf3", ip: "iproute2", ldd: "libc-bin" },
      root: true,
    },
    async (test) => {
      using _namespace = new Namespace();
      const { socket } = await startVmsg(test.vmsg, NETWORKS.tap.option, mode);
      const vmsg = await streams(test, "tap0", { socket });
      const lost = { vmsg: drops("tap0"), stock: 0 };
      await test.vmsg.end();

      ip("tuntap add dev tap1 mode tap");
      ip(`addr add ${HOST}/24 dev tap1`);
      ip("link set tap1 up");
      const stock = await streams(test, "tap1", { tap: "tap1" });
      lost.stock = drops("tap1");
      console.log(`frames that the TAPs lost: vmsg ${lost.vmsg}; stock ${lost.stock}`);

      assertEquals(lost.vmsg, 0);
      for (const direction of ["out", "in"] as const) {
        const describe = ({ megabitsPerSecond, retransmits }: Stream) =>
          `${megabitsPerSecond} Mbit/s, ${retransmits} retransmits`;
        console.log(
          `${direction}: vmsg ${describe(vmsg[direction])}; stock ${describe(stock[direction])}`,
        );
      }
    },
  );
}

/** Registers the test of a card alone. */
export function streamsTest(kind: GuestKind, mode: Mode): void {
  guestTest(
    `${mode.prefix}${kind}: iperf3 both ways through tap`,
    {
      guest: kind,
      programs: { iperf3: "iperf3", ip: "iproute2", ldd: "libc-bin" },
      root: true,
    },
    async (test) => {
      using _namespace = new Namespace();
      const { socket } = await startVmsg(test.vmsg, NETWORKS.tap.option, mode);
      const result = await streams(test, "tap0", { socket });
      assertEquals(drops("tap0"), 0);
      for (const direction of ["out", "in"] as const) {
        const { megabitsPerSecond, retransmits } = result[direction];
        console.log(
          `${mode.prefix}${direction}: ${megabitsPerSecond} Mbit/s, ${retransmits} retransmits`,
        );
      }
    },
  );
}
