/** Captures: read by tshark and tcpdump where they are, by hand in any case. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { allClosed } from "../../src/linux/received_fd.ts";
import { capturingPort } from "../../src/network/capturing_port.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { bytes, GuestMemory, keepingLog, Listener, takeFrame } from "./support.ts";
import { CaptureFile, type CaptureOptions } from "../../src/observe/capture_file.ts";
import { readAll, readPackets } from "../support/capture.ts";
import type { NetworkPort } from "../../src/network/port.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const ARP = bytes(`ffffffffffff 525400123456 0806 0001 0800 06 04 0001
  525400123456 0a00020f 000000000000 0a000202`);
const PING = bytes(`52550a000202 525400123456 0800
  4500 0054 1c46 4000 4001 0653 0a00020f 0a000202 0800 eeb7 1234 0001
  000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f
  202122232425262728292a2b2c2d2e2f 3031323334353637`);

/** Runs `body` with a path that is removed afterwards: in memory, since a capture's end does not wait for a slow disk. */
async function withFile(body: (path: string) => Promise<void> | void): Promise<void> {
  const directory = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "vmsg-test-" });
  try {
    await body(`${directory}/c.pcapng`);
  } finally {
    // Another thread closes files that have reached their limit.
    await allClosed();
    Deno.removeSync(directory, { recursive: true });
  }
}

/** Packets of a capture that is being written; it may not have begun. */
function countIn(path: string): number {
  return Deno.statSync(path).size === 0 ? 0 : readPackets(path).length;
}

function run(program: string, args: string[]): string | undefined {
  try {
    const { stdout, stderr } = new Deno.Command(program, { args }).outputSync();
    return new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** A responder whose frames are captured, and what it takes to use it. */
class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly reactor = this.#stack.use(new Reactor(new VirtualClock()));
  readonly memory = this.#stack.use(new GuestMemory());
  readonly log: string[] = [];
  readonly inner = new ResponderPort({}, this.reactor);
  readonly file: CaptureFile;
  readonly port: NetworkPort;

  constructor(options: CaptureOptions) {
    this.file = this.#stack.use(new CaptureFile(options, this.reactor, keepingLog(this.log)));
    this.port = this.#stack.use(capturingPort(this.inner, this.file, "net0", false));
    this.port.open(new Listener());
  }

  /** Lets the reactor's timers fire until that is so; another thread writes. */
  async until(condition: () => boolean): Promise<void> {
    const deadlineMs = performance.now() + 60_000;
    while (!condition()) {
      assert(performance.now() < deadlineMs, "it does not come");
      await this.reactor.until(this.reactor.sleep(20));
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

Deno.test("capturing port: both directions, as tshark and tcpdump see them", () => {
  return withFile(async (path) => {
    {
      using rig = new Rig({ path });
      const { port, memory } = rig;
      assertEquals(port.description, `responder, captured in ${path}`);
      for (const frame of [ARP, PING]) {
        assert(port.send(memory.frame(frame, [12, 20, 1])));
        assert(takeFrame(port, memory) !== undefined);
      }
      assertEquals(takeFrame(port, memory), undefined);
      await rig.until(() => countIn(path) === 4);
    }
    const packets = readPackets(path);
    assertEquals(packets.map(({ length }) => length), [42, 42, 98, 98]);
    assertEquals([packets[0]!.data, packets[2]!.data], [ARP, PING]);
    assertEquals(packets[3]!.data[34], 0, "an echo reply");
    for (const { nanoseconds, interface: { name, description } } of packets) {
      assert(Math.abs(Number(nanoseconds / 1_000_000n) - Date.now()) < 60_000);
      assertEquals([name, description], ["net0", "responder"]);
    }
    const tshark = run("tshark", ["-r", path, "-o", "ip.check_checksum:TRUE"]);
    if (tshark === undefined) console.log("NOT RUN: capture in tshark: no tshark");
    else {
      assert(/ARP .*Who has 10\.0\.2\.2\?/.test(tshark), tshark);
      assert(/Echo \(ping\) reply/.test(tshark), tshark);
      assert(!/malformed|incorrect/i.test(tshark), tshark);
    }
    const tcpdump = run("tcpdump", ["-nvr", path]);
    if (tcpdump === undefined) console.log("NOT RUN: capture in tcpdump: no tcpdump");
    else assert(/ICMP echo reply, id 4660, seq 1/.test(tcpdump), tcpdump);
  });
});

Deno.test("capturing port: a snap length, and frames on disk before the end", async () => {
  await withFile(async (path) => {
    using rig = new Rig({ path, snapLength: 20 });
    rig.port.send(rig.memory.frame(PING));
    await rig.until(() => countIn(path) === 1);
    const { length, data } = readPackets(path)[0]!;
    assertEquals([length, data], [98, PING.slice(0, 20)]);
  });
});

Deno.test("capturing port: the size limit ends the capture, not the traffic", async () => {
  await withFile(async (path) => {
    using rig = new Rig({ path, limit: 4096 });
    // While the thread that writes is not done with what came first, frames are dropped: until the limit is reached.
    let sent = 0;
    await rig.until(() => {
      for (let i = 0; i < 10; i++, sent++) assert(rig.port.send(rig.memory.frame(PING)));
      return rig.log.length > 0;
    });
    assertEquals(rig.log, [
      `capture ${path} ends, it has reached its limit of 4096 bytes; the traffic goes on`,
    ]);
    const { length } = readPackets(path);
    assert(length > 10 && length < 100, `${length} frames`);
    const { size } = Deno.statSync(path);
    assert(size > 3900 && size <= 4096, `${size} bytes`);
    assertEquals(rig.inner.responder.counters.framesIn, sent);
  });
});

Deno.test("capturing port: more than a disk takes is counted, also in the file", () => {
  return withFile(async (path) => {
    {
      using rig = new Rig({ path });
      const frame = rig.memory.frame(new Uint8Array(1514).fill(1));
      // Some 30 MB at once; whatever is written meanwhile, all of them are accounted for.
      for (let i = 0; i < 20_000; i++) rig.port.send(frame);
      // The end waits for a moment only, and that is for what the end says.
      const { counters } = rig.file.add({ name: "net0", description: "", linkType: 1 });
      await rig.until(() => countIn(path) === counters.captured);
    }
    const items = readAll(path);
    const packets = items.filter(({ kind }) => kind === "packet").length;
    const last = items.findLast((item) => item.kind === "statistics");
    assertEquals(packets + last!.dropped, 20_000);
    assert(packets >= 4000, `${packets} frames`);
  });
});

Deno.test("capturing port: a file that cannot be written", async () => {
  using rig = new Rig({ path: "/dev/full" });
  for (let i = 0; i < 3; i++) assert(rig.port.send(rig.memory.frame(PING)));
  await rig.until(() => rig.log.length > 0);
  assertEquals(rig.inner.responder.counters.framesIn, 3);
  assertEquals(rig.log.length, 1);
  assert(/^capture \/dev\/full ends, it cannot be written: .*ENOSPC/.test(rig.log[0]!), rig.log[0]);
  const error = assertThrows(() => new Rig({ path: "/nowhere/x" }), VmsgError);
  assert(error.message.startsWith("cannot capture to /nowhere/x: open /nowhere/x: No such file"));
});
