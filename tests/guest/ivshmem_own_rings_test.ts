/**
 * A guest inside machine B on whose own rings machine A's device works: its memory is in huge pages, so it lies in few
 * pieces of B's RAM, and the device side is told where. Each ring is called by an interrupt of its own.
 *
 *     machine A                                       machine B
 *       httpd, TAP <- vmsg device == rings, pages of ==> guest (a microvm under QEMU with KVM) <- vmsg proxy
 *
 * The guest pings and fetches a file whose sum tells of each byte. It goes on when A's vmsg is killed and started anew, and
 * so does the next guest when both it and its proxy were. Guests in scattered memory are those of ivshmem_direct_test.ts.
 */

import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { innerMicrovm } from "../../scripts/lab/inner.ts";
import { findGuests } from "../../scripts/lab/machines.ts";
import { deviceScript, innerScript } from "../../scripts/lab/pair.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { until } from "../support/processes.ts";
import { machineTest } from "./machine_support.ts";
import { PAIR_KIND, withPair } from "./pair_support.ts";

const FILE_BYTES = 4 << 20;
/** The guest's 128 MiB, and one for rings that are carried over. */
const HUGE_PAGES = 65;
const STEP_TIMEOUT_MS = 300_000;
const OWN = /vmsg proxy: device 0: the device works on the guest's own rings/;
const BY_INTERRUPT = [0, 1].map((queue) =>
  new RegExp(`queue ${queue}: notifications in band, calls by an interrupt`)
);

const guests = await findGuests();

const O_NONBLOCK = 0o4000;

/** Calls that were messages although their ring's were by an interrupt then, by the proxy's trace. */
function messagesMeanwhile(console: string): string[] {
  const byInterrupt = new Map<string, boolean>();
  return console.split("\n").filter((line) => {
    const [, queue = "", way = ""] = /queue (\d+): notifications in band(.*)/.exec(line) ?? [];
    // A proxy that was started anew has handed nothing over.
    if (/^\$ vmsg proxy/.test(line)) byInterrupt.clear();
    else if (queue !== "") byInterrupt.set(queue, way !== "");
    return byInterrupt.get(/EVENT_USED queue (\d+)/.exec(line)?.[1] ?? "") === true;
  });
}

machineTest(
  "ivshmem, direct: the device works on a guest's own rings and calls it, after restarts as well",
  PAIR_KIND,
  async (test) => {
    const { microvm } = guests;
    if (microvm === undefined || microvm.kind === "uml") throw new Error("no microvm");
    const bytes = new Uint8Array(FILE_BYTES);
    for (let at = 0; at < FILE_BYTES; at += 65536) {
      crypto.getRandomValues(bytes.subarray(at, at + 65536));
    }
    const script = `
${pingScript({ address: "10.0.2.15/24", peer: "10.0.2.2", count: 3 })}
echo "SUM $(wget -q -O - http://10.0.2.2/file | sha256sum)"
ping -i 0.2 10.0.2.2 | while read -r line; do echo "LATER $line"; done`;
    const guest = await innerMicrovm(microvm, { script });
    const { memoryMiB = 512, ...machine } = guest.machine;
    const files = [...guest.files, { path: "www/file", bytes, mode: 0o644 }];
    await withPair(test, { files, memoryMiB, vectors: 3 }, async ({ startA, startB, kind }) => {
      const device = deviceScript({ kind, net: "tap" });
      const starting = startA({ script: `httpd -h /mnt/www\n${device}` });
      const mode = "--trace 2>&1 | grep -v -E 'EVENT_AVAIL|HELLO'";
      const b = await startB({
        ...machine,
        script: innerScript({ mode, guest: guest.bootInHugePages! }),
        hugePages: HUGE_PAGES,
      });
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      const sum = `SUM ${createHash("sha256").update(bytes).digest("hex")}  -`;
      const later = () => b.count(/^LATER \d+ bytes from/);
      const arrives = async (after: number) => {
        assertEquals(await b.machine.waitFor(/^PING rc=/, STEP_TIMEOUT_MS, after), "PING rc=0");
        assertEquals(await b.machine.waitFor(/^SUM /, STEP_TIMEOUT_MS, after), sum);
      };
      await arrives(0);
      await b.hasSaid(OWN, 1);
      for (const line of BY_INTERRUPT) await b.hasSaid(line, 1);
      // What the proxy says waits while the console is busy, and is not lost, whatever the guest's QEMU does to its own output.
      const output = await b.run("cat /proc/$(pidof grep)/fdinfo/1");
      const [, flags = ""] = /^flags:\s*(\d+)$/m.exec(output)!;
      assertEquals(parseInt(flags, 8) & O_NONBLOCK, 0);
      const used = b.count(/EVENT_USED/);
      const pieces = b.machine.console().match(/ lie in (\d+) piece/g);
      console.log(`the guest's memory: ${pieces}; ${used} calls were messages`);

      await a.kill("vmsg");
      await a.run("sh /tmp/start.sh >/dev/console 2>&1 &");
      for (const line of BY_INTERRUPT) await b.hasSaid(line, 2);
      const before = later();
      await until(() => later() > before + 5, STEP_TIMEOUT_MS);
      assertEquals(b.count(OWN), 1, "the way is the same");

      const { lineCount } = b.machine;
      await b.kill("vmsg", "qemu-system-x86_64");
      await b.run("rm -f /tmp/inner.sock; sh /tmp/start.sh >/dev/console 2>&1 &");
      await arrives(lineCount);
      await b.hasSaid(OWN, 2);
      assertEquals(b.count(OWN), 2);
      assertEquals(messagesMeanwhile(b.machine.console()), []);
      for (const machine of [a, b]) assertEquals(machine.count(/internal error|panic|BUG:/), 0);
      assertEquals(b.count(/carried over/), 0);
    });
  },
  guests.missing.microvm.map((what) => ({ what, requiredBy: "VMSG_GUEST_TESTS" })),
);
