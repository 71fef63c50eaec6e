/**
 * Devices that are no network cards between two machines: machine A has the disk, a guest inside machine B its ext4 file
 * system, and vmsg in A is killed under it.
 *
 *     machine A                                             machine B
 *       [back end -- vhost-user --] vmsg device --confined     vmsg proxy --confined <- User-Mode Linux
 *
 * Two boots inside of one another take a minute or two: the form with a back end runs with VMSG_GUEST_FULL=1.
 */

import { storageDaemonCommand } from "../../scripts/lab/back_ends.ts";
import { innerUml } from "../../scripts/lab/inner.ts";
import { findProgram, withLibraries } from "../../scripts/lab/libraries.ts";
import { DOORBELL_ADDRESS } from "../../scripts/lab/machine.ts";
import { findGuests } from "../../scripts/lab/machines.ts";
import { innerScript } from "../../scripts/lab/pair.ts";
import { has } from "../network/support.ts";
import type { Lack } from "../support/needs.ts";
import { delay } from "../support/processes.ts";
import {
  assertWhole,
  DISK_PROGRAMS,
  DISK_SCRIPT,
  makeDisk,
  MISSING_MS,
  untilWritten,
} from "./disk_support.ts";
import { machineTest } from "./machine_support.ts";
import { PAIR_KIND, withPair } from "./pair_support.ts";

const DISK_BYTES = 48 << 20;
const DEVICE_BLOCK = 2;
const FILES_BEFORE = 2;
const TIMEOUT_MS = 450_000;

const { uml, missing } = await findGuests();

function lacks(programs: Readonly<Record<string, string>>, isLong: boolean): Lack[] {
  const what = [...missing.uml];
  for (const [program, debianPackage] of Object.entries(programs)) {
    if (!has(program)) what.push(`${program} is missing: apt-get install ${debianPackage}`);
  }
  const isFull = Deno.env.get("VMSG_GUEST_FULL") === "1";
  return [
    ...isFull || !isLong ? [] : [{ what: "it runs with VMSG_GUEST_FULL=1" }],
    ...what.map((what): Lack => ({ what, requiredBy: "VMSG_GUEST_TESTS" })),
  ];
}

/** A program of this machine's for A, in /bin. */
async function program(name: string) {
  return await withLibraries((await findProgram(name))!, `/bin/${name}`);
}

/**
 * @param programs what A has besides vmsg, with their packages
 * @param before shell: starts a back end
 * @param device what vmsg device is told
 */
function diskTest(
  name: string,
  programs: Readonly<Record<string, string>>,
  before: string,
  device: string,
): void {
  machineTest(`ivshmem devices: ${name}`, PAIR_KIND, async (test) => {
    await makeDisk(test.directory, "disk.img", DISK_BYTES);
    const guest = await innerUml(uml as typeof uml & { kind: "uml" }, {
      script: DISK_SCRIPT,
      modules: ["virtio_blk"],
      deviceType: DEVICE_BLOCK,
    });
    const files = [
      ...guest.files,
      ...(await Promise.all(["e2fsck", ...Object.keys(programs)].map(program))).flat(),
      { from: `${test.directory}/disk.img`, to: "/disk.img" },
    ];
    const bus = `--bus ivshmem,pci=${DOORBELL_ADDRESS},bind`;
    const script = `
[ -e /tmp/disk.img ] || cp /mnt/disk.img /tmp
${before}
vmsg device ${bus} --confined --device ${device}
`;
    await withPair(test, { confined: true, size: "4M", files }, async ({ startA, startB }) => {
      const starting = startA({ script });
      const b = await startB({ script: innerScript({ guest: guest.boot }) });
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      await b.machine.waitFor(/^DISK size=98304 /, TIMEOUT_MS);
      await untilWritten(b.machine, FILES_BEFORE);
      await a.kill("vmsg");
      await delay(MISSING_MS);
      await a.run("sh /tmp/start.sh >/dev/console 2>&1 &");
      await assertWhole(b.machine, TIMEOUT_MS);
      await a.run("e2fsck -f -n /tmp/disk.img");
    });
  }, lacks({ ...DISK_PROGRAMS, ...programs }, before !== ""));
}

diskTest("a disk built in is whole when vmsg was killed", {}, "", "blk,file=/tmp/disk.img");
diskTest(
  "a disk of qemu-storage-daemon's is whole when vmsg was killed",
  { "qemu-storage-daemon": "qemu-system-common" },
  `[ -S /tmp/back.sock ] || ${storageDaemonCommand("/tmp/back.sock", "/tmp/disk.img").join(" ")} &
until [ -S /tmp/back.sock ]; do sleep 0.1; done`,
  "vhost-user,socket=/tmp/back.sock,id=blk",
);
