/**
 * A guest whose memory is not shared, the commonest mistake with vhost-user. QEMU 7.2 says nothing: it
 * sends no memory region (no ADD_MEM_REG at all), sets the rings up and starts them. So the proxy says
 * it, ends the connection, and is there for the next guest.
 */

import { assertEquals } from "@std/assert";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { PATIENCE_MS } from "../support/processes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];

guestTest(
  "no shared memory: the proxy says what is wrong, and serves the next",
  "microvm",
  async (test) => {
    const { vmsg } = test;
    await vmsg.start("device", ...BUS);
    const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
    await proxy.waitFor(/waiting for a front end/);
    const boot = (sharedMemory: boolean, ...extraArgs: string[]) =>
      test.boot({
        socket: `${vmsg.directory}/vu.sock`,
        script: pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 }),
        sharedMemory,
        extraArgs,
      });
    const wrong = await boot(false);
    await proxy.waitFor(/shared/, GUEST_TIMEOUT_MS.microvm);
    await proxy.waitFor(/given up; waiting for a front end/, PATIENCE_MS);
    assertEquals(proxy.stderr.filter((line) => line.includes("share")), [
      "vmsg proxy: the front end shares no memory: the guest's memory must be shared " +
      "(QEMU: -object memory-backend-memfd,...,share=on)",
    ]);
    await wrong[Symbol.asyncDispose]();

    // The default of memory-backend-file, too.
    const backend = "memory-backend-memfd,id=own,size=256M,share=off";
    const own = await boot(false, "-object", backend, "-machine", "memory-backend=own");
    await proxy.waitFor(
      /memory at 0x0 \(\d+ MiB\) is not shared, .*share=on/,
      GUEST_TIMEOUT_MS.microvm,
    );
    await proxy.waitFor(/ring \d lies outside the memory that the front end shares: .*share=on/);
    await own[Symbol.asyncDispose]();

    const right = await boot(true);
    assertEquals(await right.waitFor(/^PING rc=/, GUEST_TIMEOUT_MS.microvm), "PING rc=0");
  },
);
