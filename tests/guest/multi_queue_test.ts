/**
 * Several queue pairs, as stock kernels use them: on which pair what is sent, and where what is answered comes.
 *
 * A program on one of a microvm's two processors sends by the pair that is that processor's, and what is answered has to
 * come by the same one. User-Mode Linux has one processor, and spreads connections over its pairs. It speaks the control
 * queue to the device; QEMU keeps commands to itself.
 *
 * The guest fetches a file before and after, and when it is asked for the counts of the TAP's queues are noted.
 */

import { assert, assertEquals } from "@std/assert";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { COUNTED } from "../../scripts/lab/scripts.ts";
import { Namespace } from "../network/support.ts";
import { VMSG_COMMAND } from "../support/processes.ts";
import { readCounters } from "../../src/observe/read_counters.ts";
import { confinedMode, DIRECT, type Mode } from "./modes.ts";
import { configure } from "./network_cases.ts";
import { programFiles } from "./program_files.ts";
import { GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const NET = "tap=tap0,address=10.0.2.2/24,queues=2";
const PROGRAMS = { ethtool: "ethtool", ldd: "libc-bin", ping: "iputils-ping" };
const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
const PINGS = 20;
const FETCHES = 16;

/** Sent and received by the first pair, and by the second, as the guest sees it. */
type Counts = readonly [number, number, number, number];

/** Shell: `use LABEL` is traffic, with a mark before and one behind it. */
const USE: Readonly<Record<"microvm" | "uml", string>> = {
  microvm: `
on() {
  taskset $2 wget -q -O /dev/null $server/$1-before
  patience=20 counted PINGS taskset $2 ping -q -c ${PINGS} -i 0.02 10.0.2.2
  taskset $2 wget -q -O /dev/null $server/$1-after
}
use() { on $1-first 1; on $1-second 2; }`,
  uml: `
use() {
  wget -q -O /dev/null $server/$1-before
  fetches=0
  while [ $fetches -lt ${FETCHES} ]; do wget -q -O /dev/null $server/none; fetches=$((fetches + 1)); done
  wget -q -O /dev/null $server/$1-after
}`,
};

const script = (kind: "microvm" | "uml", port: number) =>
  `${configure("10.0.2.15/24")}${COUNTED}
server=http://10.0.2.2:${port}
combined() { ethtool -L eth0 combined $1 && echo "COMBINED $1"; }
answered() { ping -c 1 -W 3 10.0.2.2 >/dev/null; }
received() { cat /sys/class/net/eth0/statistics/rx_packets; }
${USE[kind]}
until answered; do :; done
combined 2
if [ "$(wget -q -O - $server/boots)" = 2 ]; then use rebooted; echo END; sleep 1000; fi
use booted
flooded=$(($(received) + 500))
echo FLOOD
until [ $(received) -gt $flooded ]; do sleep 0.1; done
for time in 1 2 3; do
  for number in 1 2; do combined $number; until answered; do :; done; done
done
echo QUIET
before=
until [ "$(received)" = "$before" ]; do before=$(received); sleep 0.5; done
use flooded
combined 1
use one
combined 2
echo KILL
while answered; do :; done
echo KILLED
until answered; do :; done
use killed
echo OVER
reboot -f
`;

/** Starts a device whose counters are in the test's directory. */
function startDevice({ vmsg }: GuestTest, mode: Mode) {
  const device = ["device", ...BUS, "--net", NET, ...mode.device];
  return vmsg.startProgram("env", `XDG_RUNTIME_DIR=${vmsg.directory}`, ...VMSG_COMMAND, ...device);
}

/** The counts of the TAP that the latest device has. */
function countsOf(directory: string): Counts {
  const files = [...Deno.readDirSync(`${directory}/vmsg`)].map(({ name }) =>
    readCounters(`${directory}/vmsg/${name}`)
  ).filter(({ subcommand }) => subcommand === "device").sort((a, b) => a.startMs - b.startMs);
  const count = (queue: number, name: string) =>
    files.at(-1)!.groups.find((group) => group.name === `tap tap0 queue ${queue}`)!
      .counters.find((counter) => counter.name === name)!.value;
  return [count(0, "sent"), count(0, "received"), count(1, "sent"), count(1, "received")];
}

/** What the test says of a guest's traffic, with the label it has; so many pairs are sent by, and received by. */
function assertUse(
  kind: "microvm" | "uml",
  label: string,
  grew: (label: string) => Counts,
  pairs = 2,
  receiving = pairs,
) {
  if (kind === "uml") {
    const counts = grew(label);
    const [first, other] = [counts.slice(0, 2), counts.slice(2)];
    // Of 16 connections none by one of two pairs: once in 30 000 times.
    assert(first.every((count) => count > 3), `${label}: ${counts}`);
    const used = other.map((count) => count > 3);
    assertEquals(used, [pairs > 1, receiving > 1], `${label}: ${counts}`);
    return;
  }
  for (const [pair, which] of ["first", "second"].entries()) {
    const counts = grew(`${label}-${which}`);
    const mine = pairs === 1 ? 0 : pair;
    const [sent, received] = counts.slice(2 * mine);
    const others = counts.filter((_, i) => i >> 1 !== mine);
    // Where ARP goes is the kernel's affair, and the answers to a connection's first frames.
    const good = sent! >= PINGS && received! >= PINGS - 1 &&
      others.every((count) => count < PINGS / 2);
    assert(good, `${label}, ${which} pair: ${counts}`);
  }
}

function multiQueueTest(kind: "microvm" | "uml", mode: Mode, isShort: boolean): void {
  const name =
    `${mode.prefix}${kind}, two queue pairs: each is used, under a flood, by another device, after a reboot`;
  const lacks = isShort || FULL ? [] : [{ what: "it runs with VMSG_GUEST_FULL=1" }];
  guestTest(
    name,
    { guest: kind satisfies GuestKind, programs: PROGRAMS, root: true, lacks },
    async (test) => {
      const { vmsg } = test;
      using _namespace = new Namespace();
      const device = await startDevice(test, mode);
      await device.waitFor(/waiting for the driver side/);
      const args = ["--vhost-user", "socket=vu.sock", ...mode.driverSide];
      const proxy = await vmsg.start("proxy", ...BUS, ...args);
      await proxy.waitFor(/waiting for a front end/);
      const marks = new Map<string, Counts>();
      let boots = 0;
      const { promise: listening, resolve: listens } = Promise.withResolvers<number>();
      const onListen = ({ port }: { port: number }) => listens(port);
      await using _server = Deno.serve({ hostname: "0.0.0.0", port: 0, onListen }, (request) => {
        const label = new URL(request.url).pathname.slice(1);
        if (label === "boots") boots++;
        else marks.set(label, countsOf(vmsg.directory));
        return new Response(`${boots}`);
      });
      const guest = await test.boot({
        socket: `${vmsg.directory}/vu.sock`,
        queues: 2,
        reboots: true,
        files: await programFiles("ethtool"),
        script: script(kind, await listening),
      });
      const says = (pattern: RegExp) => guest.waitFor(pattern, GUEST_TIMEOUT_MS[kind]);
      await says(/^FLOOD/);
      const flood = await vmsg.startProgram("ping", "-q", "-f", "10.0.2.15");
      await says(/^QUIET/);
      await flood.end("SIGINT");
      await says(/^KILL$/);
      await device.end("SIGKILL");
      await says(/^KILLED/);
      const next = await startDevice(test, mode);
      await says(/^END/);
      const grew = (label: string): Counts => {
        const [from, to] = ["before", "after"].map((when) => marks.get(`${label}-${when}`)!);
        return to!.map((count, i) => count - from![i]!) as unknown as Counts;
      };
      for (const label of ["booted", "flooded", "rebooted"]) assertUse(kind, label, grew);
      // The shadow rings of confined mode are new ones: from them a device cannot tell what was commanded before.
      const knows = kind === "microvm" || !mode.isConfined;
      assertUse(kind, "killed", grew, 2, knows ? 2 : 1);
      assertUse(kind, "one", grew, 1);
      // What waits in the queue of a pair that is given up is lost, which may be one.
      const answered = [...guest.console().matchAll(/^PINGS \d+ sent, (\d+)/gm)].map(([, count]) =>
        Number(count)
      );
      assertEquals(answered.filter((count) => count < PINGS - 1), []);
      const wrong = [proxy, device, next].flatMap(({ stderr }) => stderr)
        .filter((line) => /error|needs a reset|given up/i.test(line));
      assertEquals(wrong, []);
    },
  );
}

multiQueueTest("microvm", DIRECT, true);
multiQueueTest("uml", DIRECT, false);
multiQueueTest("microvm", confinedMode("16M"), false);
multiQueueTest("uml", confinedMode("16M"), false);
