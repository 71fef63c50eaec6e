/**
 * DPDK's virtio-user driver as the front end: a second implementation of both vhost-user and the driver's
 * side of the rings, which polls them and never waits.
 *
 * Both sides' counts must agree exactly: testpmd's statistics, and the capture that `vmsg device` makes.
 */

import { assertEquals } from "@std/assert";
import { readFrames } from "../support/capture.ts";
import { delay, PATIENCE_MS, until } from "../support/processes.ts";
import { guestlessTest } from "./support.ts";
import { startTestpmd, TESTPMD_PROGRAMS } from "./testpmd_support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** Frames a second that the device side makes. */
const FLOOD = 20_000;
/** How many frames go in each direction at least, and by each queue. */
const FRAMES = 1000, BY_QUEUE = 100;
const RESPONDER = "52:55:0a:00:02:02";

interface Captured {
  /** Frames by their source address, in hexadecimal. */
  readonly bySource: Map<string, number>;
  /** Frames to the responder that are not as testpmd makes them. */
  readonly strange: number;
}

/** Reads a capture as far as it is written. */
function readCapture(path: string): Captured {
  const bySource = new Map<string, number>();
  let strange = 0;
  for (const frame of readFrames(path)) {
    const hex = (at: number, length: number) => frame.subarray(at, at + length).toHex();
    const source = hex(6, 6);
    bySource.set(source, (bySource.get(source) ?? 0) + 1);
    if (hex(0, 6) !== RESPONDER.replaceAll(":", "")) continue;
    // IPv4 from 10.0.2.15 to 10.0.2.2, UDP to the discard port.
    const isGood = frame.length === 64 && hex(12, 2) === "0800" &&
      hex(26, 8) === "0a00020f0a000202" && hex(36, 2) === "0009";
    if (!isGood) strange++;
  }
  return { bySource, strange };
}

for (const [queues, packed] of [[1, 0], [2, 0], [2, 1]] as const) {
  const format = packed === 1 ? "packed" : "split";
  guestlessTest(
    `DPDK's testpmd with ${queues} queue pairs, ${format} rings: both sides count the same frames, out and in`,
    { programs: TESTPMD_PROGRAMS },
    async ({ vmsg, keeper, directory }) => {
      const net = `responder,queues=${queues},flood=${FLOOD},pcap=frames.pcapng`;
      const device = await vmsg.start("device", ...BUS, "--net", net);
      await device.waitFor(/waiting for the driver side/);
      const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock", "--trace");
      await proxy.waitFor(/waiting for a front end/);

      const testpmd = startTestpmd(
        directory,
        `net_virtio_user0,path=vu.sock,queues=${queues},packed_vq=${packed}`,
        ...["-m", "256", "--"],
        ...["--total-num-mbufs=4096", `--rxq=${queues}`, `--txq=${queues}`],
        ...["--tx-ip=10.0.2.15,10.0.2.2", "--tx-udp=9,9", `--eth-peer=0,${RESPONDER}`],
      );
      try {
        await keeper.keep(testpmd.child.pid);
        const banner = await testpmd.waitFor(/Port 0: [0-9A-F:]{17}/);
        const mac = banner.match(/Port 0: ([0-9A-F:]{17})/)![1]!.replaceAll(":", "").toLowerCase();
        await testpmd.waitFor(/testpmd> /);

        const split = /SET_DRIVER_FEATURES\? (?!.*RING_PACKED).*IN_ORDER/;
        await proxy.waitFor(packed === 1 ? /SET_DRIVER_FEATURES\? .*RING_PACKED IN_ORDER/ : split);

        await testpmd.say("set fwd txonly", /Set txonly/);
        await testpmd.say("start", /txonly packet forwarding -/);
        await until(async () => (await testpmd.packets()).sent > FRAMES);
        await until(async () => (await testpmd.sentByQueue()).every((sent) => sent > BY_QUEUE));
        await testpmd.say("stop", /Done\./);
        const { sent } = await testpmd.packets();
        assertEquals((await testpmd.sentByQueue()).length, queues);
        // What is in the ring is still to be taken, and the capture is written every 200 ms.
        const capture = `${directory}/frames.pcapng`;
        const deadlineMs = performance.now() + PATIENCE_MS;
        let captured = readCapture(capture);
        while ((captured.bySource.get(mac) ?? 0) < sent && performance.now() < deadlineMs) {
          await delay(200);
          captured = readCapture(capture);
        }
        console.log(`out: testpmd sent ${sent} frames`);
        assertEquals(captured.bySource.get(mac), sent);
        assertEquals(captured.strange, 0);

        await testpmd.say("set fwd rxonly", /Set rxonly/);
        await testpmd.say("start", /rxonly packet forwarding -/);
        await until(async () => (await testpmd.packets()).received > FRAMES);
        // Nobody else sends to it, and all that was put into its ring is taken soon.
        assertEquals((await device.end("SIGTERM")).code, 0);
        const sentIn = readCapture(capture).bySource.get(RESPONDER.replaceAll(":", ""))!;
        await until(async () => (await testpmd.packets()).received >= sentIn).catch(() => {});
        await testpmd.say("stop", /Done\./);
        const { received } = await testpmd.packets();
        console.log(`in: testpmd received ${received} frames of a flood of ${FLOOD} a second`);
        assertEquals(received, sentIn);

        assertEquals((await testpmd.quit()).code, 0);
        assertEquals((await proxy.end("SIGTERM")).code, 0);
      } catch (error) {
        console.error(`--- testpmd\n${testpmd.text}${testpmd.errors}`);
        throw error;
      } finally {
        await keeper.end(testpmd.child.pid);
        await testpmd.ended;
      }
    },
  );
}
