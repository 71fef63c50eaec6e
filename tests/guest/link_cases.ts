/**
 * What User-Mode Linux takes from the device and QEMU keeps for itself (its MAC address, MTU, link state),
 * and a proxy whose connection was made by somebody else.
 */

import { assertEquals } from "@std/assert";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { ip, Namespace } from "../network/support.ts";
import { VMSG_COMMAND } from "../support/processes.ts";
import type { Mode } from "./modes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=bus.sock"];

/** Shell: says what the card is, then each change of its carrier, numbered. */
const WATCH_CARRIER = `
while [ ! -e /sys/class/net/eth0 ]; do sleep 0.1; done
ip link set eth0 up
echo "MAC $(cat /sys/class/net/eth0/address) MTU $(cat /sys/class/net/eth0/mtu)"
number=0
last=
while [ "$number" -lt 3 ]; do
  now=$(cat /sys/class/net/eth0/carrier)
  if [ "$now" != "$last" ]; then
    number=$((number + 1))
    last=$now
    echo "CARRIER $number: $now"
  fi
  sleep 0.02
done
`;

/** Takes one connection and hands it to a program as descriptor 3. */
const PASS_CONNECTION = `
const [path, program, ...args] = process.argv.slice(1);
const server = require("net").createServer({ pauseOnConnect: true }, (socket) => {
  server.close();
  const stdio = ["ignore", "inherit", "inherit", socket];
  require("child_process").spawn(program, args, { stdio }).on("exit", (code) => {
    console.log("PROXY ENDED " + code);
    process.exit();
  });
});
server.listen(path, () => console.log("LISTENING"));
`;

/** Registers the tests. */
export function linkTests(mode: Mode): void {
  guestTest(
    `${mode.prefix}uml: the device's MAC, MTU and link state are the guest's`,
    { guest: "uml", programs: { ip: "iproute2" }, root: true },
    async ({ directory, vmsg, boot }) => {
      using _namespace = new Namespace();
      const mac = "52:54:00:ab:cd:ef";
      await vmsg.start("device", ...BUS, "--net", `tap=tap0,mac=${mac},mtu=1400`, ...mode.device);
      const proxy = await vmsg.start(
        "proxy",
        ...BUS,
        "--vhost-user",
        "socket=vu.sock",
        ...mode.driverSide,
      );
      await proxy.waitFor(/waiting for a front end/);
      const guest = await boot({ socket: `${directory}/vu.sock`, script: WATCH_CARRIER });
      const timeoutMs = GUEST_TIMEOUT_MS.uml;
      assertEquals(await guest.waitFor(/^MAC/, timeoutMs), `MAC ${mac} MTU 1400`);
      await guest.waitFor(/^CARRIER 1: 1$/, timeoutMs);
      ip("link set tap0 down");
      await guest.waitFor(/^CARRIER 2: 0$/, timeoutMs);
      ip("link set tap0 up");
      await guest.waitFor(/^CARRIER 3: 1$/, timeoutMs);
    },
  );

  guestTest(
    `${mode.prefix}uml: a proxy serves an inherited connection, and ends with it`,
    { guest: "uml", programs: { node: "nodejs" } },
    async ({ directory, vmsg, boot }) => {
      await vmsg.start("device", ...BUS, ...mode.device);
      const proxy = [
        ...VMSG_COMMAND,
        ...["proxy", ...BUS, "--vhost-user", "fd=3,device=0"],
        ...mode.driverSide,
      ];
      const passer = await vmsg.startProgram("node", "-e", PASS_CONNECTION, "vu.sock", ...proxy);
      await passer.waitFor(/^LISTENING$/);
      const script = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });
      const guest = await boot({ socket: `${directory}/vu.sock`, script });
      await guest.waitFor(/^PING rc=0$/, GUEST_TIMEOUT_MS.uml);
      await passer.waitFor(/^PROXY ENDED 0$/, GUEST_TIMEOUT_MS.uml);
    },
  );
}
