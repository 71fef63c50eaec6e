/**
 * A device that is killed under a stock guest's traffic, and what `vmsg inspect` tells of it afterwards: the last message either
 * way, and each ring as the guest's kernel has left it: packed with User-Mode Linux, split with QEMU.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { ReadRing } from "../../src/virtio/queue/ring_reader.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { until, VMSG_COMMAND } from "../support/processes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** The header of virtio-net, and Ethernet, IPv4, ICMP and data of an echo request; or ARP, when nobody answers. */
const FRAMES = [12 + 14 + 20 + 8 + 56, 12 + 14 + 28];

for (const kind of ["uml", "microvm"] as const) {
  guestTest(
    `inspect, ${kind}: a device that was killed under traffic`,
    kind,
    async ({ vmsg, boot }) => {
      const start = (...args: string[]) =>
        vmsg.startProgram("env", `XDG_RUNTIME_DIR=${vmsg.directory}`, ...VMSG_COMMAND, ...args);
      const device = await start("device", ...BUS);
      await device.waitFor(/waiting for the driver side/);
      const proxy = await start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const script = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 }) +
        "\nping -i 0.1 -c 1000 10.0.2.2 | sed 's/^/LATER /'\n";
      const guest = await boot({ socket: `${vmsg.directory}/vu.sock`, script });
      await guest.waitFor(/^LATER .*seq=[1-9]\d /, GUEST_TIMEOUT_MS[kind]);
      await device.end("SIGKILL");

      const inspect = async (...args: string[]) => {
        await using process = await start("inspect", ...args, String(device.pid), ".");
        const { code, stdout, stderr } = await process.ended();
        assertEquals([code, stderr], [0, []]);
        return stdout.join("\n");
      };
      const look = async () => JSON.parse(await inspect("--json"));
      const ringsOf = ({ processes: [{ devices: [{ queues }] }] }: { processes: [Device] }) =>
        queues.slice(0, 2).map(({ ring }) => ring);
      const framesOf = ({ buffers }: ReadRing) =>
        buffers.map(({ descriptors }) =>
          descriptors.reduce((sum, { length, writable }) => sum + (writable ? NaN : length), 0)
        );
      // The guest goes on sending, to nobody.
      await until(async () =>
        framesOf(ringsOf(await look())[1]!).some((length) => FRAMES.includes(length))
      );
      const seen = await look();
      const [{ isRunning, devices: [{ statusNames, queues }] }] = seen.processes;
      assertEquals(isRunning, false);
      assert(statusNames.includes("DRIVER_OK"));
      const [received, sent] = ringsOf(seen) as [ReadRing, ReadRing];
      assert(framesOf(sent).every((length) => length > 0));
      const isPacked = kind === "uml";
      for (const ring of [received, sent]) {
        assertEquals(["device's slot" in ring.indices, "avail.idx" in ring.indices], [
          isPacked,
          !isPacked,
        ]);
        assertEquals([ring.problem, ring.isUpperBound], [undefined, false]);
        assert(ring.pending > 0 && ring.pending <= queues[0].size, String(ring.pending));
        for (const { descriptors, problem } of ring.buffers) {
          assertEquals([problem, descriptors.filter(({ outside }) => outside)], [undefined, []]);
        }
      }
      assert(received.buffers.every(({ descriptors }) => descriptors.every((one) => one.writable)));
      const text = await inspect("--last", "2");
      assertMatch(text, new RegExp(`^process ${device.pid}: device, ended$`, "m"));
      for (const queue of [0, 1]) {
        assertMatch(
          text,
          new RegExp(
            `^    queue ${queue}: size \\d+, enabled .*\n      \\S.*\n      \\d+ buf`,
            "m",
          ),
        );
      }
      const last = [...text.matchAll(/^ {2}last message: (.*)$/gm)].map(([, message]) => message!);
      assertEquals(last.length, 2);
      for (const message of last) assertMatch(message, /^(dev 0|bus) [A-Z_]+/);
    },
  );
}

interface Device {
  readonly devices: [{ queues: { ring: ReadRing }[] }];
}
