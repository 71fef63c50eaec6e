/**
 * A machine that reboots, under a QEMU that goes on or as a User-Mode Linux that starts itself anew: its driver starts
 * anew, on the same rings' memory, with the same proxy and the same device, which must not touch what the next
 * boot unpacks there (a kernel or an initramfs that is written into does not come up, as a rule).
 */

import { assert, assertEquals } from "@std/assert";
import { pingScript } from "../../scripts/lab/scripts.ts";
import type { Mode } from "./modes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const BOOTS = 2;

/** How often a front end connects in all: QEMU stays, User-Mode Linux starts itself anew. */
const CONNECTIONS = { microvm: 1, uml: BOOTS } as const;

/** Registers the test for one kind of guest. */
export function rebootTest(kind: keyof typeof CONNECTIONS, mode: Mode): void {
  guestTest(
    `${mode.prefix}${kind}: ${BOOTS} boots of one machine under a flood, each pings`,
    kind,
    async (test) => {
      const { vmsg } = test;
      const device = await vmsg.start(
        "device",
        ...BUS,
        "--net",
        "responder,flood=500",
        ...mode.device,
      );
      const proxy = await vmsg.start(
        "proxy",
        ...BUS,
        "--vhost-user",
        "socket=vu.sock",
        ...mode.driverSide,
      );
      await proxy.waitFor(/waiting for a front end/);
      const pinged: string[] = [];
      const { promise: enough, resolve } = Promise.withResolvers<void>();
      const guest = await test.boot({
        socket: `${vmsg.directory}/vu.sock`,
        // The card is in use until the end: no shutdown unbinds it.
        script: `${pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 })}\nreboot -f\n`,
        reboots: true,
        onLine: (line) => {
          if (line.startsWith("PING rc=") && pinged.push(line) === BOOTS) resolve();
        },
      });
      const timeoutMs = BOOTS * GUEST_TIMEOUT_MS[kind];
      const late = Promise.withResolvers<never>();
      const timer = setTimeout(
        () => late.reject(new Error(`${pinged.length} boots within ${timeoutMs} ms`)),
        timeoutMs,
      );
      const ended = guest.status.then(() => {
        throw new Error(`QEMU ended after ${pinged.length} boots`);
      });
      ended.catch(() => {});
      try {
        await Promise.race([enough, ended, late.promise]);
      } finally {
        clearTimeout(timer);
      }
      assertEquals(pinged, Array(BOOTS).fill("PING rc=0"));
      const answered = guest.console().match(/ 3 packets received/g) ?? [];
      assertEquals(answered.length, BOOTS);
      await guest[Symbol.asyncDispose]();
      const connections = proxy.stderr.filter((line) => line.includes("a front end is there"));
      assertEquals(connections.length, CONNECTIONS[kind]);
      assert(
        !proxy.stderr.some((line) => /error|NEEDS_RESET/i.test(line)),
        proxy.stderr.join("\n"),
      );
      for (const process of [proxy, device]) {
        assertEquals((await process.end("SIGTERM")).code, 0);
      }
    },
  );
}
