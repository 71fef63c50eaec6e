/**
 * The kernel takes an ivshmem function away while `vmsg driver` uses it through vfio: by an unbind, and as
 * hot-unplug does it, by removing the function. Either blocks until vmsg lets go, and the link is there again
 * when the function is.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { openKeeper } from "../../src/cli/keeper.ts";
import { DOORBELL_ADDRESS, OTHER_MEMORY_ADDRESS } from "../../scripts/lab/machine.ts";
import { PING_WAIT_S } from "../../scripts/lab/scripts.ts";
import { linkScript, said, startHost, STEP_TIMEOUT_MS } from "./link_support.ts";
import { machineTest } from "./machine_support.ts";

const PCI = "/sys/bus/pci";

/** Shell: one line when the file has been written, which takes as long as vmsg has the function. */
const takeAway = (what: string, file: string, text: string) => `
( echo ${text} >${file}; echo "TAKEN ${what}" )
`;

/** Shell: waits until the driver has said a line so often, then pings. */
const againBy = (what: string, count: number) => `
until [ $(grep -c "a vmsg device side is there" /tmp/taken) -ge ${count} ]; do sleep 0.1; done
ping -c 5 -i 0.1 -W ${PING_WAIT_S} 10.0.2.2
echo "AGAIN ${what} rc=$?"
`;

const DURING = [
  takeAway("unbound", `${PCI}/drivers/vfio-pci/unbind`, DOORBELL_ADDRESS),
  `echo ${DOORBELL_ADDRESS} >${PCI}/drivers_probe`,
  againBy("unbound", 2),
  takeAway("removed", `${PCI}/devices/${DOORBELL_ADDRESS}/remove`, "1"),
  `echo 1 >${PCI}/rescan`,
  againBy("removed", 3),
].join("\n");

/** Shell: a device side with memory of the other function, bound by hand. */
const PLAIN_SCRIPT = `
echo vfio-pci >${PCI}/devices/${OTHER_MEMORY_ADDRESS}/driver_override
echo ${OTHER_MEMORY_ADDRESS} >${PCI}/drivers_probe
cd /tmp
{ vmsg device --bus linux-user,socket=p --memory pci=${OTHER_MEMORY_ADDRESS},via=vfio,at=0 2>&1
  echo "ENDED plain rc=$?" >/tmp/ended
} >/tmp/plain &
until grep -q -e waiting -e vmsg: /tmp/plain; do sleep 0.1; done
${takeAway("plain", `${PCI}/drivers/vfio-pci/unbind`, OTHER_MEMORY_ADDRESS)}
wait
sed 's/^/plain: /' /tmp/plain; cat /tmp/ended
`;

machineTest("ivshmem: a function is let go when the kernel wants it back", "q35", async (test) => {
  await using keeper = await openKeeper("/dev/shm");
  const host = await startHost(test, keeper);
  const bus = `--bus ivshmem,pci=${DOORBELL_ADDRESS},bind`;
  const script = [
    linkScript({ name: "taken", driver: `${bus} --memory segment`, during: DURING }),
    linkScript({
      name: "pinned",
      driver: `${bus} --memory hugepages=2M`,
      during: takeAway("pinned", `${PCI}/drivers/vfio-pci/unbind`, DOORBELL_ADDRESS),
    }),
    PLAIN_SCRIPT,
  ];
  const otherMemory = { file: `${keeper.directory}/other`, sizeMiB: 1 };
  const machine = await host.start({ script: script.join("\n"), hugePages: 2, otherMemory });
  const device = await host.device(
    `ivshmem,server=${host.socket}`,
    ...["--memory", `file=${host.memory},at=0`],
  );
  const tells = (pattern: RegExp) => machine.waitFor(pattern, STEP_TIMEOUT_MS);
  assertMatch(await tells(/^PING taken /), /rc=0/);
  for (const what of ["unbound", "removed"]) {
    await tells(new RegExp(`^TAKEN ${what}`));
    assertMatch(await tells(new RegExp(`^AGAIN ${what} `)), /rc=0/);
  }
  await tells(/^UNLINKED taken$/);
  const lines = said(machine, "taken");
  assertEquals(lines.at(-1), "DRIVER taken rc=0");
  const letGo =
    /bus ivshmem .*: the function was asked for by the kernel .* was let go; waiting for it$/;
  assertEquals(lines.filter((line) => letGo.test(line)).length, 2, lines.join("\n"));

  assertMatch(await tells(/^PING pinned /), /rc=0/);
  await tells(/^TAKEN pinned/);
  await tells(/^UNLINKED pinned$/);
  const last = said(machine, "pinned");
  assertEquals(last.at(-1), "DRIVER pinned rc=1", last.join("\n"));
  assertMatch(last.at(-2)!, /asked for by the kernel .* with memory pinned by it: ended/);

  await tells(/^TAKEN plain/);
  await tells(/^ENDED plain rc=1$/);
  const plain = said(machine, "plain").at(-1);
  assertMatch(plain!, /^vmsg: ivshmem 0000:00:11.0 was asked for by the kernel .*: ended/);
  assertEquals((await machine.status).code, 0);
  assertEquals((await device.end("SIGTERM")).code, 0);
});
