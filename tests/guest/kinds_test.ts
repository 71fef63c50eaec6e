/**
 * Every kind of guest there is beyond User-Mode Linux and microvm, which first_ping_test.ts boots, finds
 * its network card: by PCI on an x86-64 q35, by device tree on an arm64 virt machine.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { assertEndsWell, GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];

/** What the card's driver sits on. */
const SCRIPT = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 }) +
  'echo "MACHINE $(uname -m) $(readlink -f /sys/class/net/eth0/device)"\n';

const MACHINES = {
  q35: /^MACHINE x86_64 .*\/pci0000:00\/\S+\/virtio\d+$/m,
  arm64: /^MACHINE aarch64 .*\.virtio_mmio\/virtio\d+$/m,
} as const;

for (const kind of ["q35", "arm64"] as const) {
  guestTest(`${kind}: DHCP and ping`, kind, async (test) => {
    const { vmsg } = test;
    const device = await vmsg.start("device", ...BUS);
    const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
    await proxy.waitFor(/waiting for a front end/);
    const startMs = performance.now();
    const guest = await test.boot({ socket: `${vmsg.directory}/vu.sock`, script: SCRIPT });
    assertEquals(await guest.waitFor(/^PING rc=/, GUEST_TIMEOUT_MS[kind]), "PING rc=0");
    console.log(
      `${kind}: ${((performance.now() - startMs) / 1000).toFixed(1)} s to the third ping`,
    );
    await guest.waitFor(/^GUEST-DONE/, GUEST_TIMEOUT_MS[kind]);
    const text = guest.console();
    assertMatch(text, /^LEASE 10\.0\.2\.\d+\/24 router=10\.0\.2\.2/m);
    assertMatch(text, / 3 packets received/);
    assertMatch(text, MACHINES[kind]);
    await assertEndsWell(guest);
    await proxy.waitFor(/the front end hung up; waiting for a front end/);
    for (const process of [proxy, device]) {
      assertEquals((await process.end("SIGTERM")).code, 0);
    }
  });
}
