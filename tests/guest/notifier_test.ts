/** Notifications out of band, with a guest: the proxy sleeps while its frames flow, also behind a device that is killed and comes back. */

import { assert, assertEquals } from "@std/assert";
import type { Guest } from "../../scripts/lab/machines.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { type Processes, until, type VmsgProcess } from "../support/processes.ts";
import { assertEndsWell, GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const PINGS = 1000;

/** How often the threads of a process went to sleep by themselves. */
function sleepsOf({ pid }: VmsgProcess): number {
  let count = 0;
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    const status = Deno.readTextFileSync(`/proc/${pid}/task/${name}/status`);
    count += Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(status)![1]);
  }
  return count;
}

/** Lines of `--trace`: the ways of queues 0 and 1, and the notifications that were messages. */
function traced({ stderr }: VmsgProcess) {
  return {
    ways: stderr.flatMap((line) => /queue [01]: notifications .*/.exec(line) ?? []),
    events: stderr.filter((line) => /EVENT_(AVAIL|USED)/.test(line)).length,
  };
}

const OUT_OF_BAND = [0, 1].map((queue) => `queue ${queue}: notifications out of band`);
const IN_BAND = [0, 1].map((queue) => `queue ${queue}: notifications in band`);

async function startProxy(vmsg: Processes): Promise<VmsgProcess> {
  const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock", "--trace");
  await proxy.waitFor(/waiting for a front end/);
  return proxy;
}

const round = (n: number) => `
echo "ROUND ${n}"
ping -q -i 0.002 -c ${PINGS} 10.0.2.2 | grep received
echo "DONE ${n}"
`;

const script = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 }) + round(1) + `
ping -i 0.1 -c 30 10.0.2.2 | sed 's/^/LATER /'
` + round(2);

/** How often it sleeps in a second if nothing happens, at most. */
const IDLE_SLEEPS = 30;

/** Waits for a round of pings; how often the proxy slept meanwhile, but for what time alone brings about. */
async function sleepsIn(n: number, guest: Guest, proxy: VmsgProcess): Promise<number> {
  await guest.waitFor(new RegExp(`^ROUND ${n}`), GUEST_TIMEOUT_MS.uml);
  const [before, startMs] = [sleepsOf(proxy), performance.now()];
  await guest.waitFor(new RegExp(`^DONE ${n}`), GUEST_TIMEOUT_MS.uml);
  const idle = IDLE_SLEEPS * (performance.now() - startMs) / 1000;
  return sleepsOf(proxy) - before - Math.round(idle);
}

guestTest(
  "uml: the proxy sleeps while frames flow, also behind the next device",
  "uml",
  async (test) => {
    const { vmsg, boot, directory } = test;
    const proxy = await startProxy(vmsg);
    const device = await vmsg.start("device", ...BUS);
    const guest = await boot({ socket: `${directory}/vu.sock`, script });
    const sleeps = [await sleepsIn(1, guest, proxy)];
    assertEquals(traced(proxy).ways, OUT_OF_BAND);

    await guest.waitFor(/^LATER .*seq=([5-9]|\d\d) /, GUEST_TIMEOUT_MS.uml);
    await device.end("SIGKILL");
    await proxy.waitFor(/closed the connection/);
    await vmsg.start("device", ...BUS);
    sleeps.push(await sleepsIn(2, guest, proxy));
    assertEquals(await assertEndsWell(guest), undefined);
    await proxy.waitFor(/; waiting for a front end/);

    console.log(`the proxy slept ${sleeps} times in ${PINGS} pings each`);
    for (const count of sleeps) assert(count < PINGS / 4, `it slept ${count} times`);
    await until(() => traced(proxy).ways.length >= 8);
    const { ways, events } = traced(proxy);
    // In whichever order the guest stops its queues.
    assertEquals(ways.slice(0, 6), [...OUT_OF_BAND, ...IN_BAND, ...OUT_OF_BAND]);
    assertEquals(ways.slice(6).sort(), IN_BAND);
    // What was said before they changed over.
    assert(events < 40, `${events} notifications were messages`);
    // On a busy machine answers come in bursts, of which the guest's ping takes as many as its socket holds (once 967 in all). A
    // notification that is lost would end the round.
    for (const [, count] of guest.console().matchAll(/^1000 packets transmitted, (\d+)/gm)) {
      assert(Number(count) > 0.9 * PINGS, `${count} of ${PINGS} pings were answered`);
    }
  },
);
