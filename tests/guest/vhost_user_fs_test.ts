/**
 * A directory of this machine in a guest: Debian's virtiofsd, unpatched, behind `vmsg device --device vhost-user`. Files go both
 * ways, large ones and ten thousand small ones; then virtiofsd is killed while the guest writes.
 *
 * virtiofsd forgets its guests when it is killed: the next one knows no open file, and answers with an error until the guest
 * mounts anew. Attached to QEMU directly there is no next one: QEMU 7.2 gives the back end up, and whoever
 * touches the file system hangs until the machine is reset.
 *
 * User-Mode Linux is in CI; with VMSG_GUEST_FULL=1 QEMU's vhost-user-fs on PCI and virtio-mmio.
 */

import { assertEquals } from "@std/assert";
import { openKeeper } from "../../src/cli/keeper.ts";
import { TAG, VIRTIOFSD } from "../../scripts/lab/back_ends.ts";
import { delay } from "../support/processes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";
import { frontEnd, startDevice, startProxy, startVirtiofsd } from "./vhost_user_support.ts";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
const FILES = 10_000;
/** So many write and read at once: what others wait for does not keep one from going on. */
const WRITERS = 4;
const BIG_BYTES = 8 << 20;
const MISSING_MS = 300;

const SCRIPT = `
mkdir /fs
mount -t virtiofs ${TAG} /fs; echo "MOUNT rc=$?"
cd /fs
sha256sum -c sums >/dev/null; echo "READ rc=$?"
dd if=/dev/urandom of=from-guest bs=64k count=128 2>/dev/null
echo "WROTE $(sha256sum <from-guest)"
mkdir small
for writer in $(seq ${WRITERS}); do
  (i=$writer; while [ $i -le ${FILES} ]; do echo "file $i" >small/$i; i=$((i + ${WRITERS})); done) &
done
wait
echo 3 >/proc/sys/vm/drop_caches
ls small >/tmp/names
cd small
for reader in $(seq ${WRITERS}); do
  awk "NR % ${WRITERS} == $reader - 1" /tmp/names | xargs cat >/tmp/read$reader &
done
wait
cd ..
echo "SMALL $(wc -l </tmp/names) $(cat /tmp/read* | sort | sha256sum)"
for writer in $(seq ${WRITERS}); do
  (n=0; while echo $n 2>/dev/null >live$writer; do n=$((n + 1)); echo "LIVE $n"; done) &
done
wait
echo "ERROR"
cd /
umount /fs || umount -l /fs
until mount -t virtiofs ${TAG} /fs; do sleep 0.1; done
echo "REMOUNT $(cat /fs/small/777)"
echo again >/fs/again; echo "AGAIN rc=$?"
umount /fs; echo "UMOUNT rc=$?"
`;

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Random bytes, of which no two blocks are the same. */
function randomBytes(size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
  return bytes;
}

for (const kind of FULL ? ["uml", "microvm", "q35"] as const : ["uml"] as const) {
  guestTest(
    `${kind}: virtiofsd, files read and written, and it is killed and comes back`,
    { guest: kind, programs: { [VIRTIOFSD]: "qemu-system-common" }, root: true },
    async (test) => {
      const { vmsg } = test;
      // Ten thousand files take a disk half a minute to make, and as much to remove.
      await using memory = await openKeeper("/dev/shm");
      const shared = memory.directory;
      const big = randomBytes(BIG_BYTES);
      await Deno.writeFile(`${shared}/from-host`, big);
      await Deno.writeTextFile(`${shared}/sums`, `${await sha256(big)}  from-host\n`);

      const virtiofsd = await startVirtiofsd(vmsg, shared);
      await startDevice(vmsg, "fs", `,tag=${TAG}`);
      await startProxy(vmsg);
      const guest = await test.boot({
        script: SCRIPT,
        ...(kind === "uml" ? { modules: ["virtiofs"] } : {}),
        ...frontEnd(vmsg, kind, "fs"),
      });
      const timeoutMs = 2 * GUEST_TIMEOUT_MS[kind];
      assertEquals(await guest.waitFor(/^MOUNT /, timeoutMs), "MOUNT rc=0");
      assertEquals(await guest.waitFor(/^READ /, timeoutMs), "READ rc=0");
      const wrote = await guest.waitFor(/^WROTE /, timeoutMs);
      assertEquals(wrote, `WROTE ${await sha256(await Deno.readFile(`${shared}/from-guest`))}  -`);
      const startMs = performance.now();
      const lines = Array.from({ length: FILES }, (_, i) => `file ${i + 1}\n`).sort();
      const sum = await sha256(new TextEncoder().encode(lines.join("")));
      assertEquals(await guest.waitFor(/^SMALL /, timeoutMs), `SMALL ${FILES} ${sum}  -`);
      console.log(
        `${kind}: ${FILES} files in ${((performance.now() - startMs) / 1000).toFixed(1)} s`,
      );
      assertEquals(await Deno.readTextFile(`${shared}/small/4711`), "file 4711\n");

      await guest.waitFor(/^LIVE 50$/, timeoutMs);
      await virtiofsd.end("SIGKILL");
      await delay(MISSING_MS);
      const again = await startVirtiofsd(vmsg, shared);
      await guest.waitFor(/^ERROR/, timeoutMs);
      assertEquals(await guest.waitFor(/^REMOUNT /, timeoutMs), "REMOUNT file 777");
      assertEquals(await guest.waitFor(/^AGAIN /, timeoutMs), "AGAIN rc=0");
      assertEquals(await Deno.readTextFile(`${shared}/again`), "again\n");
      assertEquals(await guest.waitFor(/^UMOUNT /, timeoutMs), "UMOUNT rc=0");
      await guest.waitFor(/^GUEST-DONE/, timeoutMs);
      await again.end("SIGTERM");
    },
  );
}
