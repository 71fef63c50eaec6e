/**
 * A guest inside machine B on whose own rings machine A's device works: its memory is in huge pages, so it lies in few
 * pieces of B's RAM, and the device side is told where.
 *
 *     machine A                                       machine B
 *       httpd, TAP <- vmsg device == rings, pages of ==> guest (User-Mode Linux) <- vmsg proxy
 *
 * The guest pings and fetches a file whose sum tells of each byte. It goes on when A's vmsg is killed and started anew, and
 * so does the next guest when both it and its proxy were. Guests in scattered memory are those of ivshmem_direct_test.ts.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { createHash } from "node:crypto";
import { innerUml } from "../../scripts/lab/inner.ts";
import { findGuests } from "../../scripts/lab/machines.ts";
import { deviceScript, innerScript } from "../../scripts/lab/pair.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { until } from "../support/processes.ts";
import { machineTest } from "./machine_support.ts";
import { PAIR_KIND, withPair } from "./pair_support.ts";

const FILE_BYTES = 2 << 20;
const STEP_TIMEOUT_MS = 300_000;
const OWN = /vmsg proxy: device 0: the device works on the guest's own rings/;

const guests = await findGuests();

machineTest(
  "ivshmem, direct: the device works on the own rings of a guest inside B, after restarts as well",
  PAIR_KIND,
  async (test) => {
    if (guests.uml?.kind !== "uml") throw new Error("no User-Mode Linux");
    const bytes = new Uint8Array(FILE_BYTES);
    for (let at = 0; at < FILE_BYTES; at += 65536) {
      crypto.getRandomValues(bytes.subarray(at, at + 65536));
    }
    const script = `
${pingScript({ address: "10.0.2.15/24", peer: "10.0.2.2", count: 3 })}
echo "SUM $(wget -q -O - http://10.0.2.2/file | sha256sum)"
ping -i 0.2 10.0.2.2 | while read -r line; do echo "LATER $line"; done`;
    const guest = await innerUml(guests.uml, { script, fewPieces: true });
    const files = [...guest.files, { path: "www/file", bytes, mode: 0o644 }];
    await withPair(test, { files }, async ({ startA, startB, kind }) => {
      const device = deviceScript({ kind, net: "tap" });
      const starting = startA({ script: `httpd -h /mnt/www\n${device}` });
      const boot = (socket: string) => `
cat >/tmp/boot.sh <<'END-OF-BOOT'
${guest.boot(socket)}
END-OF-BOOT
sh /tmp/boot.sh`;
      const b = await startB({ script: innerScript({ mode: "", guest: boot }), hugePages: 1 });
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      const sum = `SUM ${createHash("sha256").update(bytes).digest("hex")}  -`;
      const later = () => b.count(/^LATER \d+ bytes from/);
      const arrives = async (after: number, what: string) => {
        assertEquals(await b.machine.waitFor(/^PING rc=/, STEP_TIMEOUT_MS, after), "PING rc=0");
        assertEquals(await b.machine.waitFor(/^SUM /, STEP_TIMEOUT_MS, after), sum, what);
      };
      await arrives(0, "the first guest");
      assertMatch(b.machine.console(), OWN);
      const pieces = / lie in (\d+) piece/.exec(b.machine.console())?.[1];
      console.log(`the guest's memory lies in ${pieces} pieces`);

      await a.run("kill -9 $(pidof vmsg)");
      const before = later();
      await a.run("sh /tmp/start.sh >/dev/console 2>&1 &");
      await until(() => later() > before + 5, STEP_TIMEOUT_MS);
      assertEquals(b.count(OWN), 1, "the way is the same");

      const { lineCount } = b.machine;
      await b.run("killall -9 vmsg linux.uml; rm -f /tmp/inner.sock; umount /tmp/huge");
      await b.run("sh /tmp/start.sh >/dev/console 2>&1 &");
      await arrives(lineCount, "the second guest");
      assertEquals(b.count(OWN), 2);
      for (const machine of [a, b]) assertEquals(machine.count(/internal error|panic|BUG:/), 0);
      assert(!/carried over/.test(b.machine.console()));
    });
  },
  guests.missing.uml.map((what) => ({ what, requiredBy: "VMSG_GUEST_TESTS" })),
);
