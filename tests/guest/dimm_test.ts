/**
 * Memory that is plugged into a running q35 guest. Its kernel takes buffers there at once; a back end sees them only
 * if that memory is shared as well. Where it is not, the proxy's line says which address, and how to share it.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { qmpCommand } from "../../scripts/lab/qmp.ts";
import { COUNTED, pingScript } from "../../scripts/lab/scripts.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const DIMM_MIB = 256;

/**
 * Waits for the memory; then more frames than the receive queue has buffers, so that some lie in it: a kernel takes
 * them from there first.
 */
const script = (share: boolean) =>
  pingScript({ address: "dhcp", peer: "10.0.2.2", count: 2 }) + COUNTED + `
total() { grep MemTotal /proc/meminfo | tr -cd 0-9; }
before=$(total)
echo "READY"
while [ $(total) -lt $((before + ${DIMM_MIB * 1024})) ]; do sleep 0.1; done
echo "PLUGGED"
patience=${share ? 240 : 0} counted ECHOES ping -q -c 500 -i 0.01 -W 1 -s 1400 10.0.2.2
echo "ALIVE"
`;
const HOW_TO_SHARE = /share=on/;

for (const [kind, share] of [["ram", false], ["memfd", false], ["memfd", true]] as const) {
  guestTest(
    `D: a DIMM that is plugged in, memory-backend-${kind},share=${share ? "on" : "off"}`,
    "q35",
    async ({ vmsg, directory, boot }) => {
      const device = await vmsg.start("device", ...BUS);
      const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const qmp = `${directory}/qmp.sock`;
      const guest = await boot({
        socket: `${directory}/vu.sock`,
        script: script(share),
        extraArgs: ["-m", "256,slots=2,maxmem=1G", "-qmp", `unix:${qmp},server=on,wait=off`],
      });
      await guest.waitFor(/^READY/, GUEST_TIMEOUT_MS.q35);
      const dimm = {
        "qom-type": `memory-backend-${kind}`,
        id: "dimm",
        size: DIMM_MIB << 20,
        share,
      };
      await qmpCommand(qmp, "object-add", dimm);
      await qmpCommand(qmp, "device_add", { driver: "pc-dimm", id: "d0", memdev: "dimm" });
      await guest.waitFor(/^PLUGGED/, GUEST_TIMEOUT_MS.q35);
      // Whatever becomes of the card.
      await guest.waitFor(/^ALIVE/, GUEST_TIMEOUT_MS.q35);
      await guest.waitFor(/^GUEST-DONE/, GUEST_TIMEOUT_MS.q35);
      const said = [proxy, device].map(({ stderr }) =>
        stderr.filter((line) => HOW_TO_SHARE.test(line))
      );
      if (share) {
        assertMatch(guest.console(), /^ECHOES 500 sent, 500 answered$/m);
        return assertEquals(said, [[], []]);
      }
      const [[atProxy, ...more], [atDevice, ...others]] = said as [string[], string[]];
      assertEquals([more, others], [[], []]);
      assertMatch(
        atDevice!,
        /needs a reset: .*: 0x1[\da-f]{8} \(\d+ bytes\) is outside of memory: .*share=on/,
      );
      // QEMU says nothing of memory without a file; a file that is not shared it shows.
      if (kind === "ram") assertEquals(atProxy, undefined);
      else assertMatch(atProxy!, /memory at 0x100000000 \(256 MiB\) is not shared, .*share=on/);
    },
  );
}
