/**
 * A device side that is no vmsg, or speaks no `v1`, is killed under a guest and started again.
 *
 * It cannot be told where a ring goes on. So a ring of the guest's own stands still, with one line, until the guest's
 * driver has reset the device; the front end's connection stays. In confined mode the device side has a ring of the
 * proxy's, which begins anew, and the guest notices nothing; there nobody tells that the device side was started anew,
 * but the proxy asks it now and then.
 */

import { assertEquals } from "@std/assert";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { delay, PATIENCE_MS, until } from "../support/processes.ts";
import { umlMemory } from "./dialects_support.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const MEMORY_MIB = 128;
const PING = pingScript({ address: "10.0.2.15/24", peer: "10.0.2.2", count: 3 });
const LOST = `
( ${PING} )
echo RUNNING
while ping -c 1 -W 3 10.0.2.2 >/dev/null; do sleep 0.1; done
echo LOST
`;
/** The device is lost, and some time later the guest's driver starts over. */
const START_OVER = `${LOST}
sleep 3
device=$(basename $(readlink /sys/class/net/eth0/device))
echo "$device" >/sys/bus/virtio/drivers/virtio_net/unbind
echo "$device" >/sys/bus/virtio/drivers/virtio_net/bind
( ${PING} ) | sed 's/^/AGAIN /'
`;
/** The device is lost, and comes back. */
const COME_BACK = `${LOST}
until ping -c 1 -W 5 10.0.2.2 >/dev/null; do sleep 0.1; done
echo BACK
`;

function inTheMiddle(kind: GuestKind): void {
  guestTest(
    `foreign device killed under ${kind}: it stands still, and goes on when its driver starts over`,
    kind,
    async ({ vmsg, boot }) => {
      const bus = ["--bus", "linux-user,socket=lu.sock,dialect=proto"];
      const socket = `${vmsg.directory}/vu.sock`;
      let memoryFile: string | undefined = `${vmsg.directory}/ram`;
      await Deno.writeFile(memoryFile, new Uint8Array());
      await Deno.truncate(memoryFile, MEMORY_MIB << 20);
      const proxy = await vmsg.start("proxy", ...bus, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const booting = boot({ socket, script: START_OVER, memoryMiB: MEMORY_MIB, memoryFile });
      if (kind === "uml") {
        await until(async () => (memoryFile = await umlMemory(socket)) !== undefined);
      }
      const start = () => vmsg.start("device", ...bus, "--memory", `file=${memoryFile},at=0`);
      const device = await start();
      const guest = await booting;
      await guest.waitFor(/^RUNNING/, GUEST_TIMEOUT_MS[kind]);
      await device.end("SIGKILL");
      await delay(300);
      await start();
      await proxy.waitFor(/restart the guest's driver/, PATIENCE_MS);
      assertEquals(
        await guest.waitFor(/^AGAIN PING rc=/, GUEST_TIMEOUT_MS[kind]),
        "AGAIN PING rc=0",
      );
      const told = proxy.stderr.filter((line) => line.includes("restart the guest's driver"));
      assertEquals(told.length, 1, told.join("\n"));
      const closed = proxy.stderr.filter((line) => /given up|turned away/.test(line));
      assertEquals(closed, []);
    },
  );
}

inTheMiddle("uml");
inTheMiddle("microvm");

guestTest("foreign device killed under uml, confined: it goes on", "uml", async (test) => {
  const { vmsg, boot } = test;
  await Deno.writeFile(`${vmsg.directory}/bus.shm`, new Uint8Array(2 << 20));
  const args = ["--bus", "shm,file=bus.shm,size=2M,dialect=proto", "--confined"];
  const proxy = await vmsg.start("proxy", ...args, "--vhost-user", "socket=vu.sock");
  await proxy.waitFor(/waiting for a front end/);
  const device = await vmsg.start("device", ...args);
  const guest = await boot({ socket: `${vmsg.directory}/vu.sock`, script: COME_BACK });
  await guest.waitFor(/^RUNNING/, GUEST_TIMEOUT_MS.uml);
  await device.end("SIGKILL");
  await guest.waitFor(/^LOST/, PATIENCE_MS);
  await vmsg.start("device", ...args);
  await proxy.waitFor(/was started anew|does not answer any more/, PATIENCE_MS);
  await guest.waitFor(/^BACK/, PATIENCE_MS);
  console.log(proxy.stderr.slice(-4).join("\n"));
});
