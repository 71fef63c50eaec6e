/**
 * The recorded prototype device (tests/interop) behind `vmsg proxy`, with stock guests in front: they come to DRIVER_OK
 * with features that it offered, and the proxy says to it nothing that the prototype would have aborted on.
 */

import { assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { exchanges, hex, idOf, readRecording, withoutChoices } from "../interop/recording.ts";
import { until } from "../support/processes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const PROGRAM = fromFileUrl(new URL("../interop/recorded_device.ts", import.meta.url));
const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));
/** What the recorded device offers, as 32-bit words. */
const OFFERED = [0x39bf8064, 0x103];
/** What the recorded driver said. */
const KNOWN = new Set(
  exchanges(readRecording()).map(({ request }) => withoutChoices(request)),
);
const SCRIPT = 'ip link set eth0 up\necho "MAC $(cat /sys/class/net/eth0/address)"\nsleep 1\n';

for (const kind of ["uml", "microvm"] as const) {
  guestTest(
    `the recorded device under ${kind}: DRIVER_OK, nothing unknown`,
    kind,
    async ({ vmsg, boot }) => {
      const bus = ["--bus", "linux-user,socket=lu.sock,dialect=proto"];
      const proxy = await vmsg.start("proxy", ...bus, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const device = await vmsg.startProgram(
        Deno.execPath(),
        "run",
        "-A",
        "--config",
        CONFIG,
        PROGRAM,
      );
      const guest = await boot({ socket: `${vmsg.directory}/vu.sock`, script: SCRIPT });
      if (kind === "uml") {
        // It hands its control queue on, and waits for ever for a device that carries nothing out.
        await device.waitFor(/^QUEUE 2/);
      } else {
        await guest.waitFor(/^MAC 52:54:00:12:34:56/, GUEST_TIMEOUT_MS[kind]);
      }
      await device.waitFor(/^DRIVER_OK/);
      const said = (word: string) => device.stdout.filter((line) => line.startsWith(`${word} `));
      const saidRequests = () =>
        said("SAID").map((line) => Uint8Array.fromHex(line.split(" ")[1]!));
      // Each status is asked for once it was set.
      await until(() => idOf(saidRequests().at(-1)!) !== 0xa);
      assertEquals(said("ABORT"), []);
      for (const line of said("FEATURES")) {
        const words = line.split(" ").slice(1).map(Number);
        assertEquals(words.map((word, i) => (word & ~OFFERED[i]!) >>> 0), [0, 0]);
        assertEquals(words[1]! & 3, 3, "VERSION_1 and ACCESS_PLATFORM");
      }
      assertEquals(said("QUEUE").slice(0, 2), ["QUEUE 0", "QUEUE 1"]);
      // The driver's role: each request is one that the prototype's driver made, but for its own choices.
      const requests = saidRequests();
      assertEquals(requests.filter((bytes) => !KNOWN.has(withoutChoices(bytes))).map(hex), []);
      // QEMU answers its guest's reads of the configuration by itself.
      const ids = new Set(requests.map(idOf));
      assertEquals(ids.delete(6), kind === "uml");
      assertEquals(ids, new Set([3, 4, 5, 9, 0xa, 0xb, 0xc, 0x11]));
      assertEquals(idOf(requests[0]!), 3);
      requests.forEach((bytes, i) => {
        if (idOf(bytes) === 0xa) {
          assertEquals(idOf(requests[i + 1]!), 9, "a status is asked for (P6)");
        }
      });
    },
  );
}
