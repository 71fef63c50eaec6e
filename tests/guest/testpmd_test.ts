/**
 * DPDK's virtio-user driver as the front end: a second implementation of both vhost-user and the driver's
 * side of the rings, which polls them and never waits.
 *
 * testpmd runs without huge pages (`--no-huge`): its memory is then one memfd, which it can share. It is
 * told what to do on its standard input, and reads its figures as it prints them. Both sides' counts
 * must agree exactly: testpmd's statistics, and the capture that `vmsg device` makes.
 */

import { assert, assertEquals } from "@std/assert";
import { delay, PATIENCE_MS, until } from "../support/processes.ts";
import { guestlessTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** Frames a second that the device side makes. */
const FLOOD = 20_000;
/** How long each direction runs, in ms. */
const RUN_MS = 500;
const RESPONDER = "52:55:0a:00:02:02";

/** A conversation with testpmd. */
class Testpmd {
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly ended: Promise<Deno.CommandStatus>;
  text = "";

  constructor(readonly child: Deno.ChildProcess) {
    this.#writer = child.stdin.getWriter();
    const streams = [child.stdout, child.stderr].map(async (stream) => {
      for await (const text of stream.pipeThrough(new TextDecoderStream())) this.text += text;
    });
    this.ended = Promise.all(streams).then(() => child.status);
  }

  /** Says a line, and returns what it answers up to `until`. */
  async say(line: string, until: RegExp): Promise<string> {
    const { length } = this.text;
    await this.#writer.write(new TextEncoder().encode(`${line}\n`));
    return await this.waitFor(until, length);
  }

  async waitFor(pattern: RegExp, after = 0): Promise<string> {
    const deadlineMs = performance.now() + PATIENCE_MS;
    for (;;) {
      const text = this.text.slice(after);
      if (text.search(pattern) >= 0) return text;
      assert(performance.now() < deadlineMs, `testpmd said nothing like ${pattern}: ${this.text}`);
      await delay(10);
    }
  }

  /** The port's counts since testpmd started. */
  async packets(): Promise<{ received: number; sent: number }> {
    const text = await this.say("show port stats 0", /Tx-pps.*\n.*####/);
    const count = (name: string) =>
      Number(text.match(new RegExp(`${name}-packets:\\s+(\\d+)`))![1]);
    return { received: count("RX"), sent: count("TX") };
  }

  /** How many of them each queue sent. */
  async sentByQueue(): Promise<number[]> {
    const text = await this.say("show port xstats 0", /tx_q0_.*[^]*testpmd> /);
    return [...text.matchAll(/^tx_q\d+_good_packets: (\d+)/gm)].map(([, count]) => Number(count));
  }

  async quit(): Promise<Deno.CommandStatus> {
    await this.say("quit", /Bye/);
    await this.#writer.close().catch(() => {});
    return await this.ended;
  }
}

interface Captured {
  /** Frames by their source address, in hexadecimal. */
  readonly bySource: Map<string, number>;
  /** Frames to the responder that are not as testpmd makes them. */
  readonly strange: number;
}

/** Reads a capture as far as it is written. */
async function readCapture(path: string): Promise<Captured> {
  const bytes = await Deno.readFile(path);
  const view = new DataView(bytes.buffer);
  const hex = (at: number, length: number) => bytes.subarray(at, at + length).toHex();
  const bySource = new Map<string, number>();
  let strange = 0;
  for (let at = 24; at + 16 <= bytes.length;) {
    const length = view.getUint32(at + 8, true);
    const frame = at + 16;
    at = frame + length;
    if (at > bytes.length) break;
    const source = hex(frame + 6, 6);
    bySource.set(source, (bySource.get(source) ?? 0) + 1);
    if (hex(frame, 6) !== RESPONDER.replaceAll(":", "")) continue;
    // IPv4 from 10.0.2.15 to 10.0.2.2, UDP to the discard port.
    const good = length === 64 && hex(frame + 12, 2) === "0800" &&
      hex(frame + 26, 8) === "0a00020f0a000202" && view.getUint16(frame + 36) === 9;
    if (!good) strange++;
  }
  return { bySource, strange };
}

for (const [queues, packed] of [[1, 0], [2, 0], [2, 1]] as const) {
  const format = packed === 1 ? "packed" : "split";
  guestlessTest(
    `DPDK's testpmd with ${queues} queue pairs, ${format} rings: both sides count the same frames, out and in`,
    { programs: { "dpdk-testpmd": "dpdk-dev", stdbuf: "coreutils" } },
    async ({ vmsg, keeper, directory }) => {
      const net = `responder,queues=${queues},flood=${FLOOD},pcap=frames.pcap`;
      const device = await vmsg.start("device", ...BUS, "--net", net);
      await device.waitFor(/waiting for the driver side/);
      const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock", "--trace");
      await proxy.waitFor(/waiting for a front end/);

      const child = new Deno.Command("stdbuf", {
        args: [
          "-oL",
          "dpdk-testpmd",
          ...["--no-huge", "-m", "256", "--no-pci", "--no-telemetry"],
          // Both of its threads on one processor: the one that polls takes all it gets.
          ...["--lcores", "0@0,1@0"],
          ...["--vdev", `net_virtio_user0,path=vu.sock,queues=${queues},packed_vq=${packed}`],
          "--",
          "-i",
          "--total-num-mbufs=4096",
          ...[`--rxq=${queues}`, `--txq=${queues}`],
          "--tx-ip=10.0.2.15,10.0.2.2",
          "--tx-udp=9,9",
          `--eth-peer=0,${RESPONDER}`,
        ],
        cwd: directory,
        // It leaves files there.
        env: { RUNTIME_DIRECTORY: directory },
        stdin: "piped",
        stdout: "piped",
        stderr: "piped",
        detached: true,
      }).spawn();
      const testpmd = new Testpmd(child);
      try {
        await keeper.keep(child.pid);
        const banner = await testpmd.waitFor(/Port 0: [0-9A-F:]{17}/);
        const mac = banner.match(/Port 0: ([0-9A-F:]{17})/)![1]!.replaceAll(":", "").toLowerCase();
        await testpmd.waitFor(/testpmd> /);

        const split = /SET_DRIVER_FEATURES\? (?!.*RING_PACKED).*IN_ORDER/;
        await proxy.waitFor(packed === 1 ? /SET_DRIVER_FEATURES\? .*RING_PACKED IN_ORDER/ : split);

        await testpmd.say("set fwd txonly", /Set txonly/);
        await testpmd.say("start", /txonly packet forwarding -/);
        await delay(RUN_MS);
        await testpmd.say("stop", /Done\./);
        const { sent } = await testpmd.packets();
        const byQueue = await testpmd.sentByQueue();
        assert(byQueue.length === queues && byQueue.every((frames) => frames > 100), `${byQueue}`);
        // What is in the ring is still to be taken, and the capture is written every 200 ms.
        const capture = `${directory}/frames.pcap`;
        const deadlineMs = performance.now() + PATIENCE_MS;
        let captured = await readCapture(capture);
        while ((captured.bySource.get(mac) ?? 0) < sent && performance.now() < deadlineMs) {
          await delay(200);
          captured = await readCapture(capture);
        }
        console.log(`out: testpmd sent ${sent} frames in ${RUN_MS} ms`);
        assert(sent > 1000, `testpmd sent only ${sent} frames`);
        assertEquals(captured.bySource.get(mac), sent);
        assertEquals(captured.strange, 0);

        await testpmd.say("set fwd rxonly", /Set rxonly/);
        await testpmd.say("start", /rxonly packet forwarding -/);
        await delay(RUN_MS);
        // Nobody else sends to it, and all that was put into its ring is taken soon.
        assertEquals((await device.end("SIGTERM")).code, 0);
        const sentIn = (await readCapture(capture)).bySource.get(RESPONDER.replaceAll(":", ""))!;
        await until(async () => (await testpmd.packets()).received >= sentIn).catch(() => {});
        await testpmd.say("stop", /Done\./);
        const { received } = await testpmd.packets();
        console.log(`in: testpmd received ${received} frames of a flood of ${FLOOD} a second`);
        assert(received > FLOOD * RUN_MS / 1000 / 20, `testpmd received only ${received} frames`);
        assertEquals(received, sentIn);

        assertEquals((await testpmd.quit()).code, 0);
        assertEquals((await proxy.end("SIGTERM")).code, 0);
      } catch (error) {
        console.error(`--- testpmd\n${testpmd.text}`);
        throw error;
      } finally {
        await keeper.end(child.pid);
        await testpmd.ended;
      }
    },
  );
}
