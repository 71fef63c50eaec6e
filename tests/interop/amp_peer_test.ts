/** vmsg as the device side of an AMP layout in a file, under a driver side that shares no code with it. */

import { assertEquals } from "@std/assert";
import { processTest } from "../support/processes.ts";
import { ampWire } from "./amp_wire.ts";
import { ping } from "./pings.ts";
import { DriverPeer } from "./proto_peer.ts";

const SIZE = 16 << 20;
const AT = 0x4000_0000;

for (const form of ["v1", "v1-2025", "rfc"] as const) {
  processTest(
    `vmsg device, layout amp1, ${form}: a driver side comes, and comes again`,
    async (vmsg) => {
      const path = (name: string) => `${vmsg.directory}/${name}`;
      for (const [name, size] of [["ram", SIZE], ["amp", 8192]] as const) {
        await Deno.writeFile(path(name), new Uint8Array(size), { mode: 0o600 });
      }
      const bus = `shm,file=amp,layout=amp1,dialect=${form}`;
      const memory = `file=ram,at=0x${AT.toString(16)}`;
      const device = await vmsg.start("device", "--bus", bus, "--memory", memory);
      const join = async (ends: boolean) =>
        DriverPeer.on(form, await ampWire(path("amp"), ends), {
          path: path("ram"),
          size: SIZE,
          at: AT,
        });
      for (const ends of [true, false, false]) {
        const { length } = device.lines;
        using peer = await join(ends);
        await ping(peer, (await peer.bringUp()).mac);
        assertEquals(peer.aborts, []);
        peer[Symbol.dispose]();
        if (ends) await device.waitFor(/the other side has ended/, undefined, length);
      }
      // A device side that is killed: the next one goes on, and the driver side finds it as new.
      using peer = await join(false);
      await ping(peer, (await peer.bringUp()).mac);
      await device.end("SIGKILL");
      const next = await vmsg.start("device", "--bus", bus, "--memory", memory);
      await next.waitFor(/waiting for a driver side/);
      await ping(peer, (await peer.bringUp()).mac);
      assertEquals(peer.aborts, []);
    },
  );
}
