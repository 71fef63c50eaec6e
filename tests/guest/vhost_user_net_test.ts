/**
 * A network card of DPDK's vhost library, unpatched, behind `vmsg device --device vhost-user`: testpmd answers pings by itself, is
 * killed under them and started again. It has neither a configuration space nor a record of buffers in flight.
 *
 * The driver is `vmsg driver`, and a kernel's under User-Mode Linux.
 */

import { assert, assertEquals } from "@std/assert";
import { type Answer, answersIn, assertNoneLostSince, sinceReturn } from "../support/pings.ts";
import { delay, type Processes, until, type VmsgProcess } from "../support/processes.ts";
import { COUNTED } from "../../scripts/lab/scripts.ts";
import { configure } from "./network_cases.ts";
import { GUEST_TIMEOUT_MS, guestlessTest, type GuestTest, guestTest } from "./support.ts";
import { startTestpmd, type Testpmd, TESTPMD_PROGRAMS } from "./testpmd_support.ts";
import { BACK_END_SOCKET, startProxy } from "./vhost_user_support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const MISSING_MS = 300;
/** Answers before testpmd is killed, and when it is back. */
const BEFORE = 10, AFTER = 15;
/** For so long the kernel pings, in tenths of a second: until testpmd is back. */
const PINGS = 150;

/** Starts testpmd, which answers pings of any address, and waits until it listens. */
async function startEcho({ directory, keeper }: Pick<GuestTest, "directory" | "keeper">) {
  const socket = `${directory}/${BACK_END_SOCKET}`;
  // Of one that was killed.
  await Deno.remove(socket).catch(() => {});
  const testpmd = startTestpmd(
    directory,
    `net_vhost0,iface=${BACK_END_SOCKET}`,
    ...["-m", "128", "--", "--total-num-mbufs=2048", "--forward-mode=icmpecho", "--auto-start"],
  );
  await keeper.keep(testpmd.child.pid);
  await testpmd.waitFor(/testpmd> /);
  return testpmd;
}

function startDevice(vmsg: Processes): Promise<VmsgProcess> {
  const kind = `vhost-user,socket=${BACK_END_SOCKET},id=net`;
  return vmsg.start("device", ...BUS, "--device", kind);
}

/** Kills testpmd under pings, and starts it anew; nothing is lost once it is back. */
async function killed(
  test: Pick<GuestTest, "directory" | "keeper">,
  testpmd: Testpmd,
  answers: () => Answer[],
): Promise<Testpmd> {
  await until(() => answers().length >= BEFORE);
  await testpmd[Symbol.asyncDispose]();
  await delay(MISSING_MS);
  const next = await startEcho(test);
  try {
    const sinceMs = performance.now();
    await until(() => sinceReturn(answers(), sinceMs).length >= AFTER);
    const { gapMs, lost } = assertNoneLostSince(answers(), sinceMs);
    console.log(`testpmd killed: gap ${gapMs} ms, ${lost} pings of 100 ms lost in it`);
    return next;
  } catch (error) {
    console.error(`--- testpmd\n${next.text}${next.errors}`);
    throw error;
  }
}

guestlessTest(
  "DPDK's vhost network card as the back end: vmsg driver pings, testpmd is killed and comes back",
  { programs: TESTPMD_PROGRAMS },
  async (test) => {
    const { vmsg } = test;
    await using testpmd = await startEcho(test);
    const device = await startDevice(vmsg);
    const driver = await vmsg.start("driver", ...BUS, "--interval", "0.1");
    await using next = await killed(test, testpmd, () => answersIn(driver.lines));
    assertEquals((await driver.end("SIGTERM")).code, 0);
    assertEquals((await device.end("SIGTERM")).code, 0);
    assertEquals((await next.quit()).code, 0);
  },
);

guestTest(
  "uml: DPDK's vhost network card as the back end, testpmd is killed under pings and comes back",
  { guest: "uml", programs: TESTPMD_PROGRAMS },
  async (test) => {
    const { vmsg } = test;
    await using testpmd = await startEcho(test);
    await startDevice(vmsg);
    await startProxy(vmsg);
    const answers: Answer[] = [];
    const guest = await test.boot({
      script: `${configure("10.0.2.15/24")}
cat /sys/class/net/eth0/mtu | sed 's/^/MTU /'
${COUNTED}
pinging() { ping -c ${PINGS} -i 0.1 10.0.2.2 2>&1 | while read -r line; do echo "$line"; done; }
patience=20 counted ECHOES pinging
`,
      kernelArgs: [`virtio_uml.device=${test.directory}/vu.sock:1`],
      onLine: (text) => answers.push(...answersIn([{ text, atMs: performance.now() }])),
    });
    assertEquals(await guest.waitFor(/^MTU /, GUEST_TIMEOUT_MS.uml), "MTU 1500");
    await using _next = await killed(test, testpmd, () => answers);
    const echoes = await guest.waitFor(/^ECHOES /, GUEST_TIMEOUT_MS.uml);
    const [sent, answered] = echoes.match(/\d+/g)!.map(Number);
    assertEquals(sent, PINGS);
    // testpmd may have been killed with one in its hands.
    assert(answered === PINGS || answered === PINGS - 1, `${answered} of ${PINGS} were answered`);
  },
);
