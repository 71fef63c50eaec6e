/**
 * The AMP layout (docs/wire.md 4.5) between two machines, each at its own ivshmem function: pings both ways, and what is left
 * when either side's process ends, is killed, or its machine is reset.
 *
 * Two boots and several starts take minutes where others work, so this runs with VMSG_GUEST_FULL=1 (deno task test:amp); a
 * machine under a process of this host is one of the forms of ivshmem_forms_test.ts.
 */

import { assertEquals } from "@std/assert";
import { deviceScript, driverScript } from "../../scripts/lab/pair.ts";
import { type ControlledMachine, PAIR_KIND, withPair } from "./pair_support.ts";
import { machineTest } from "./machine_support.ts";

const BUS = "bind,layout=amp1,dialect=rfc";
const [A, B] = ["10.0.2.2", "10.0.2.15"];
/** Runs what the machine did from its start on once more. */
const AGAIN = "rm -f /tmp/driver.log; sh /tmp/start.sh >/dev/console 2>&1 &";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";

machineTest(
  "ivshmem, layout amp1: two machines, and either side starts anew",
  PAIR_KIND,
  (test) =>
    withPair(test, {}, async ({ startA, startB, kind }) => {
      const starting = startA({
        script: deviceScript({ kind, net: "tap", bus: BUS }),
        reboots: true,
      });
      // One piece of memory: nothing tells the device side of several in this dialect.
      const memory = "hugepages=2M";
      const script = driverScript({ address: `${B}/24`, bus: BUS, memory, then: "" });
      const b = await startB({ script, hugePages: 4, reboots: true });
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      const reach = async () => {
        await b.runUntilDone(`ping -c 1 -W 1 ${A}`);
        await a.runUntilDone(`ping -c 1 -W 1 ${B}`);
      };
      const pidIn = async (machine: ControlledMachine) => (await machine.run("pidof vmsg")).trim();
      await reach();
      for (const signal of ["TERM", "KILL"]) {
        for (const [machine, other] of [[b, a], [a, b]] as const) {
          const [pid, kept] = [await pidIn(machine), await pidIn(other)];
          await machine.run(`kill -${signal} ${pid}`);
          await machine.runUntilDone("! pidof vmsg >/dev/null");
          await machine.run(AGAIN);
          await reach();
          assertEquals(await pidIn(other), kept, `${signal} in ${machine.name}`);
          console.log(`${signal} in ${machine.name}: both reach each other again`);
        }
      }
      for (const machine of [a, b]) {
        await machine.reset();
        await reach();
        console.log(`reset of ${machine.name}: both reach each other again`);
      }
    }),
  FULL ? [] : [{ what: "it runs with VMSG_GUEST_FULL=1" }],
);
