/**
 * Confined mode with real guests on one host: all that guests do in direct mode (`*_cases.ts`), and what only a
 * segment can get wrong: a frame as large as they get while every queue is full.
 *
 * A segment of 1 MiB is the least that is promised, so everything is done with that, by User-Mode Linux. Larger ones
 * differ in where pieces lie; there a guest asks for an address, pings and fetches 4 MiB. With
 * VMSG_GUEST_FULL=1 everything is done by every kind of guest at every size.
 */

import { createHash } from "node:crypto";

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { Namespace } from "../network/support.ts";
import { delay, type VmsgProcess } from "../support/processes.ts";
import { linkTests } from "./link_cases.ts";
import { confinedMode, type Mode } from "./modes.ts";
import {
  configure,
  drops,
  fetchTest,
  fileContents,
  stockStreamsTest,
  streamsTest,
} from "./network_cases.ts";
import { programFiles } from "./program_files.ts";
import { rebootTest } from "./reboot_cases.ts";
import { driverRestartTests, restartTests } from "./restart_cases.ts";
import { assertEndsWell, GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";
import { unbindTest } from "./unbind_cases.ts";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
const BUS = ["--bus", "linux-user,socket=lu.sock"];
const SMALLEST = "1M";
const SIZES = [SMALLEST, "4M", "64M"];
const FILE_MIB = 64;
/** What a guest fetches at every size. */
const FETCH_MIB = 4;

/** The guest gets an address and pings; nothing of the guest's memory is announced. */
function pingTest(kind: GuestKind, mode: Mode): void {
  guestTest(`${mode.prefix}${kind}: DHCP and ping`, kind, async (test) => {
    const { vmsg } = test;
    const device = await vmsg.start("device", ...BUS, "--trace", ...mode.device);
    const args = ["--vhost-user", "socket=vu.sock", ...mode.driverSide];
    const proxy = await vmsg.start("proxy", ...BUS, ...args);
    await proxy.waitFor(/waiting for a front end/);
    const script = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });
    const guest = await test.boot({ socket: `${vmsg.directory}/vu.sock`, script });
    const { [kind]: timeoutMs } = GUEST_TIMEOUT_MS;
    await guest.waitFor(/^GUEST-DONE/, timeoutMs);
    assertMatch(guest.console(), /^LEASE 10\.0\.2\.\d+\/24 router=10\.0\.2\.2/m);
    assertMatch(guest.console(), / 3 packets received/);
    await assertEndsWell(guest);
    const announced = device.lines.filter(({ text }) => /ADD_MEMORY\? /.test(text));
    assertEquals(announced.length, 1, "there is more to see than one segment");
    for (const process of [proxy, device]) {
      assertEquals((await process.end("SIGTERM")).code, 0);
    }
  });
}

const HOST = "10.0.2.2";
/** A frame as large as Linux makes them is 65,226 bytes: 45 segments with one header. */
const LARGE_FRAME = 65_000;
const LARGE_FRAMES = 100;
const FLOOD_STREAMS = 8;
const FLOOD_FILE_MIB = 16;
/** How often the device process stands still under the flood, and how long; that is no reason to give it up. */
const STOPS = 5;
const STOP_MS = 150;

/** Floods both ways, and a transfer through them. */
const floodScript = (url: string) =>
  `${configure("10.0.2.15/24")}
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
iperf3 -c ${HOST} -t 100 -i 0 --bidir -P ${FLOOD_STREAMS} >/tmp/flood 2>&1 &
sleep 1
echo FLOOD
wget -q -O /tmp/file ${url}
echo "WGET rc=$?"
[ -d /proc/$! ] && echo FLOODING
echo "SUM $(sha256sum </tmp/file)"
kill $!
wait
# What is on its way arrives, and sent buffers come back.
cd /sys/class/net/eth0/statistics
before=
now=$(cat rx_packets tx_packets)
while [ "$before" != "$now" ]; do
  sleep 1
  before=$now
  now=$(cat rx_packets tx_packets)
done
echo "COUNTS rx=$(cat rx_packets) tx=$(cat tx_packets) lost=$(cat rx_dropped rx_errors tx_dropped tx_errors | tr '\\n' ' ')"
`;

/** Reads JSON behind some words. */
async function countersOf(process: VmsgProcess, pattern: RegExp): Promise<Record<string, number>> {
  const { text } = await process.waitFor(pattern);
  return JSON.parse(text.slice(text.indexOf("{")));
}

/** Looks for large frames of one direction on the TAP, so many that the queues have long been full. */
async function watchFrames(test: GuestTest, direction: "in" | "out"): Promise<VmsgProcess> {
  const count = `${LARGE_FRAMES}`;
  const args = [
    "-i",
    "tap0",
    "-c",
    count,
    "-w",
    "/dev/null",
    "-Q",
    direction,
    `greater ${LARGE_FRAME}`,
  ];
  const tcpdump = await test.vmsg.startProgram("tcpdump", ...args);
  await tcpdump.waitFor(/listening on tap0/);
  return tcpdump;
}

function fullQueuesTest(kind: GuestKind, mode: Mode): void {
  const needs = {
    guest: kind,
    programs: { iperf3: "iperf3", ip: "iproute2", ldd: "libc-bin", tcpdump: "tcpdump" },
    root: true,
  };
  guestTest(
    `${mode.prefix}${kind}: frames of 64 KiB while every queue is full`,
    needs,
    (test) => fullQueues(test, mode),
  );
}

async function fullQueues(test: GuestTest, mode: Mode): Promise<void> {
  const { vmsg, installation: { kind } } = test;
  using _namespace = new Namespace();
  // Nobody speaks unless asked, so counts on both sides can be compared.
  Deno.writeTextFileSync("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
  const debug = ["--log-level", "debug"];
  const net = ["--net", `tap=tap0,address=${HOST}/24`];
  const device = await vmsg.start("device", ...BUS, ...net, ...debug, ...mode.device);
  await device.waitFor(/waiting for the driver side/);
  const vhostUser = ["--vhost-user", "socket=vu.sock"];
  const proxy = await vmsg.start("proxy", ...BUS, ...vhostUser, ...debug, ...mode.driverSide);
  await proxy.waitFor(/waiting for a front end/);
  const iperf = await vmsg.startProgram("iperf3", "--server", "--bind", HOST, "--forceflush");
  await iperf.waitFor(/Server listening/);
  const watched = [await watchFrames(test, "in"), await watchFrames(test, "out")];
  const contents = fileContents(FLOOD_FILE_MIB << 20);
  const sum = createHash("sha256").update(contents).digest("hex");
  await using server = Deno.serve(
    { hostname: HOST, port: 0, onListen: () => {} },
    () => new Response(contents),
  );
  const guest = await test.boot({
    socket: `${vmsg.directory}/vu.sock`,
    memoryMiB: 256,
    script: floodScript(`http://${HOST}:${server.addr.port}/file`),
    files: await programFiles("iperf3"),
  });
  const timeoutMs = 2 * GUEST_TIMEOUT_MS[kind] + FLOOD_FILE_MIB * 500;
  await guest.waitFor(/^FLOOD$/, timeoutMs);
  // A slow guest sends no faster than the device takes it: queues fill while that stands still.
  for (let stop = 0; stop < STOPS; stop++) {
    device.kill("SIGSTOP");
    await delay(STOP_MS);
    device.kill("SIGCONT");
    await delay(STOP_MS);
  }
  assertEquals(await guest.waitFor(/^WGET /, timeoutMs), "WGET rc=0");
  await guest.waitFor(/^FLOODING$/, timeoutMs);
  for (const tcpdump of watched) {
    await tcpdump.waitFor(new RegExp(`^${LARGE_FRAMES} packets captured`));
  }
  assertEquals(await guest.waitFor(/^SUM /, timeoutMs), `SUM ${sum}  -`);
  const counts = await guest.waitFor(/^COUNTS /, timeoutMs);
  const dropped = drops("tap0");
  await guest.waitFor(/^GUEST-DONE/, timeoutMs);
  await guest.status;
  await proxy.waitFor(/the front end hung up; waiting for a front end/);
  const receive = await countersOf(proxy, /ring 0 had a shadow: /);
  const transmit = await countersOf(proxy, /ring 1 had a shadow: /);
  await device.end("SIGTERM");
  const card = await countersOf(device, /device 0 \(.*\): \{/);

  console.log(
    `${mode.prefix}${kind}: ${counts}; full: receive ${receive["full"]}, ` +
      `transmit ${transmit["full"]} times`,
  );
  for (const { full } of [receive, transmit] as { full: number }[]) {
    assert(full > 0, "a queue was never full");
  }
  assertEquals(transmit["forwarded"], transmit["returned"], "what the guest sent is used");
  assertEquals(card["transmitted"], transmit["returned"], "and was sent");
  assertEquals(card["tooLong"], 0);
  const [, received, sent, lost] = /rx=(\d+) tx=(\d+) lost=([\d ]+)$/.exec(counts)!;
  assertEquals(Number(received), card["received"], "frames that came for the guest");
  assertEquals(Number(sent), card["transmitted"], "frames that came from the guest");
  assertEquals(lost!.trim(), "0 0 0 0");
  assertEquals(dropped, 0);
  await server.shutdown();
  await vmsg.end();
}

/** iperf3 is this host's, which is no arm64. */
const RUNS_IPERF: Readonly<Record<GuestKind, boolean>> = {
  uml: true,
  microvm: true,
  q35: true,
  arm64: false,
};

/** All that guests also do in direct mode, by one kind of guest. */
function everyTest(kind: GuestKind, mode: Mode): void {
  fetchTest(kind, "tap", mode, FILE_MIB);
  if (kind === "microvm") stockStreamsTest(mode);
  else if (RUNS_IPERF[kind]) streamsTest(kind, mode);
  if (kind === "uml") {
    unbindTest(mode);
    linkTests(mode);
  }
  if (kind === "uml" || kind === "microvm") {
    rebootTest(kind, mode);
    restartTests(kind, mode);
  }
}

const KINDS: readonly GuestKind[] = FULL ? ["uml", "microvm", "q35", "arm64"] : ["uml"];
for (const size of SIZES) {
  const mode = confinedMode(size);
  for (const kind of KINDS) {
    pingTest(kind, mode);
    fetchTest(kind, "passt", mode, FETCH_MIB);
    if (FULL || size === SMALLEST) everyTest(kind, mode);
    // Larger pools hold more than a ring's worth of what Linux gives the card.
    if (size === SMALLEST && RUNS_IPERF[kind]) fullQueuesTest(kind, mode);
  }
  if (FULL || size === SMALLEST) driverRestartTests(mode);
}
