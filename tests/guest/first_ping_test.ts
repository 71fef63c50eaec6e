/**
 * Stock guests, `vmsg proxy` and `vmsg device` on a linux-user bus: the first ping, many pings, a device that
 * comes late, and one that dies, of which a guest sees nothing but a longer round trip: its rings wait in
 * its memory until the next one comes. Who else may die under whom: restart_matrix_test.ts.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Guest, GuestKind } from "../../scripts/lab/machines.ts";
import { COUNTED, pingScript } from "../../scripts/lab/scripts.ts";
import { findProgram } from "../../src/linux/programs.ts";
import { dissectMessages } from "../support/capture.ts";
import { delay, PATIENCE_MS, type Processes } from "../support/processes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const KINDS: readonly GuestKind[] = ["uml", "microvm"];

const startDevice = (vmsg: Processes, ...options: string[]) =>
  vmsg.start("device", ...BUS, ...options);

/** A front end connects once and gives up, so the proxy's socket must be there first. */
async function startProxy(vmsg: Processes) {
  const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
  await proxy.waitFor(/waiting for a front end/);
  return proxy;
}

/** DHCP, three pings, then more. */
const script = (more: string) => pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 }) + more;

/** Pings with numbers that tell them from the first three. */
const running = (count: number) =>
  script(`${COUNTED}
echo RUNNING
later() { ping -i 0.1 -c ${count} 10.0.2.2 | sed 's/^/LATER /'; }
patience=20 counted ECHOES later
`);

interface PingFigures {
  readonly sent: number;
  readonly received: number;
  readonly longestMs: number;
}

/** What the guest's last ping came to. */
function lastPing(guest: Guest): PingFigures {
  const text = guest.console();
  const counts = [...text.matchAll(/(\d+) packets transmitted, (\d+) packets received/g)].at(-1);
  const times = [...text.matchAll(/round-trip min\/avg\/max = [\d.]+\/[\d.]+\/([\d.]+) ms/g)].at(
    -1,
  );
  if (counts === undefined) throw new Error("the guest's ping printed no summary");
  return {
    sent: Number(counts[1]),
    received: Number(counts[2]),
    longestMs: Number(times?.[1]),
  };
}

function describe(what: string, { sent, received, longestMs }: PingFigures): void {
  console.log(
    `${what}: ${sent - received} of ${sent} pings lost, the longest took ${longestMs} ms`,
  );
}

/** Echo requests and answers, by {@link COUNTED}. */
function echoes(guest: Guest): { readonly sent: number; readonly answered: number } {
  const [, sent, answered] = /^ECHOES (\d+) sent, (\d+) answered$/m.exec(guest.console())!;
  return { sent: Number(sent), answered: Number(answered) };
}

async function assertFirstPing(guest: Guest): Promise<void> {
  assertEquals(await guest.waitFor(/^PING rc=/, GUEST_TIMEOUT_MS[guest.kind]), "PING rc=0");
  assertMatch(guest.console(), /^LEASE 10\.0\.2\.\d+\/24 router=10\.0\.2\.2/m);
  assertEquals(lastPing(guest).received, 3);
}

for (const kind of KINDS) {
  guestTest(`first ping, ${kind}: the device first; 2,000 pings, none lost`, kind, async (test) => {
    const { vmsg } = test;
    // Of stock QEMU all that goes over the bus and the wire is kept, and tshark knows each message and frame of it.
    const isCaptured = kind === "microvm" && findProgram("tshark") !== undefined;
    if (kind === "microvm" && !isCaptured) console.log("NOT RUN: a capture in tshark: no tshark");
    const device = await startDevice(vmsg, ...isCaptured ? ["--capture", "c.pcapng"] : []);
    await device.waitFor(/waiting for the driver side/);
    const proxy = await startProxy(vmsg);
    await proxy.waitFor(/a vmsg device side is there/);
    const guest = await test.boot({
      socket: `${vmsg.directory}/vu.sock`,
      script: script(COUNTED + "counted ECHOES ping -q -i 0.002 -c 2000 10.0.2.2\n"),
    });
    await assertFirstPing(guest);
    await guest.waitFor(/^GUEST-DONE/, GUEST_TIMEOUT_MS[kind]);
    const figures = lastPing(guest);
    describe(kind, figures);
    assertEquals(figures.sent, 2000);
    assertEquals(echoes(guest), { sent: 2000, answered: 2000 });
    await guest.status;
    // The proxy is ready for the next guest, and both end as they should.
    await proxy.waitFor(/the front end hung up; waiting for a front end/);
    for (const process of [proxy, device]) {
      assertEquals((await process.end("SIGTERM")).code, 0);
    }
    const captures = isCaptured ? ["c.pcapng"] : [];
    assertEquals(vmsg.files(), [
      ...captures,
      ...["queue-linux-user-device", "queue-linux-user-driver"],
    ]);
    for (const name of captures) {
      const lines = await dissectMessages(`${vmsg.directory}/${name}`);
      assertEquals(lines.filter((line) => line.includes("Echo (ping)")).length, 2 * 2003);
      assert(lines.some((line) => /^virtio-msg dev 0 SET_VQUEUE\? index 0, /.test(line)));
    }
  });
}

guestTest(
  "first ping, uml: the proxy first; a killed device is not missed",
  "uml",
  async (test) => {
    const { vmsg } = test;
    const proxy = await startProxy(vmsg);
    const guest = await test.boot({ socket: `${vmsg.directory}/vu.sock`, script: running(50) });
    // The guest's boot stands still here, and the proxy says why.
    await proxy.waitFor(/the front end waits for the device side/);
    const first = await startDevice(vmsg);
    await assertFirstPing(guest);

    await guest.waitFor(/^LATER .*seq=[1-9]\d /, PATIENCE_MS);
    await first.end("SIGKILL");
    await proxy.waitFor(/closed the connection/);
    await delay(500);
    await startDevice(vmsg);
    await guest.waitFor(/^GUEST-DONE/, GUEST_TIMEOUT_MS.uml);
    const figures = lastPing(guest);
    describe("uml, device killed and started again 0.5 s later", figures);
    assertEquals(figures.sent, 50);
    // One answer may have been on its way. The standstill is seen in the round trips.
    const { sent, answered } = echoes(guest);
    assertEquals(sent, 50);
    assert(answered >= 49, `${answered} of 50 pings were answered`);
    assert(figures.longestMs > 400, `the longest ping took only ${figures.longestMs} ms`);
  },
);
