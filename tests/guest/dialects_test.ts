/**
 * The first ping of every kind of guest through `vmsg proxy` in every dialect, and its card's MAC address.
 *
 * Only `v1` can announce a guest's memory. In the others the device side is given it by its own command line: QEMU's
 * is in a file with a name, User-Mode Linux has unlinked its own, which can be opened by way of /proc as long as it
 * runs; its boot stands still until the device side is there. Confined mode needs none of that.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { GUEST_KINDS, type GuestKind } from "../../scripts/lab/machines.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { type Dialect, DIALECTS } from "../../src/message/message.ts";
import { until } from "../support/processes.ts";
import { umlMemory } from "./dialects_support.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const MAC = "52:54:00:12:34:56";
const MEMORY_MIB = 256;
const SCRIPT = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 }) +
  'echo "MAC $(cat /sys/class/net/eth0/address)"\n';
/** Where a guest's memory begins. */
const RAM: Readonly<Record<GuestKind, number>> = { uml: 0, microvm: 0, q35: 0, arm64: 0x4000_0000 };

function dialectTest(
  kind: GuestKind,
  dialect: Dialect,
  confined: boolean,
  layout = "spsc",
): void {
  const bus = confined ? `shm,file=bus.shm,size=2M,layout=${layout}` : "linux-user,socket=lu.sock";
  const args = ["--bus", `${bus},dialect=${dialect}`, ...confined ? ["--confined"] : []];
  const how = confined ? `${dialect}, confined, layout ${layout}` : dialect;
  guestTest(`first ping, ${kind}, ${how}`, kind, async ({ vmsg, boot }) => {
    const { directory } = vmsg;
    const socket = `${directory}/vu.sock`;
    const memoryFile = `${directory}/ram`;
    await Deno.writeFile(memoryFile, new Uint8Array());
    await Deno.truncate(memoryFile, MEMORY_MIB << 20);
    if (confined) {
      await Deno.writeFile(`${directory}/bus.shm`, new Uint8Array(2 << 20));
    }
    const proxy = await vmsg.start("proxy", ...args, "--vhost-user", "socket=vu.sock");
    await proxy.waitFor(/waiting for a front end/);
    const memoryMiB = MEMORY_MIB;
    const booting = boot({ socket, script: SCRIPT, memoryMiB, memoryFile, mac: MAC });
    let file: string | undefined = memoryFile;
    const isTold = dialect !== "v1" && !confined;
    if (kind === "uml" && isTold) {
      await until(async () => (file = await umlMemory(socket)) !== undefined);
    }
    const told = isTold ? ["--memory", `file=${file},at=${RAM[kind]}`] : [];
    await vmsg.start("device", ...args, "--net", `responder,mac=${MAC}`, ...told);
    const guest = await booting;
    assertEquals(await guest.waitFor(/^PING rc=/, GUEST_TIMEOUT_MS[kind]), "PING rc=0");
    assertEquals(await guest.waitFor(/^MAC /, GUEST_TIMEOUT_MS[kind]), `MAC ${MAC}`);
    assertMatch(guest.console(), / 3 packets received/);
  });
}

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
for (const kind of GUEST_KINDS) {
  // The rest takes minutes.
  if (kind !== "uml" && !FULL) continue;
  for (const dialect of FULL ? DIALECTS : ["v1", "v1-2025", "proto"] as const) {
    dialectTest(kind, dialect, false);
  }
}
dialectTest("uml", "v1-2025", true, "amp1");
dialectTest("uml", "proto", true);
if (!FULL) dialectTest("microvm", "proto", false);
