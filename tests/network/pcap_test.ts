/** Captures: read by tshark and tcpdump where they are, by hand in any case. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { CapturingPort } from "../../src/network/pcap.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { bytes, GuestMemory, keepingLog, Listener, takeFrame } from "./support.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const ARP = bytes(`ffffffffffff 525400123456 0806 0001 0800 06 04 0001
  525400123456 0a00020f 000000000000 0a000202`);
const PING = bytes(`52550a000202 525400123456 0800
  4500 0054 1c46 4000 4001 0653 0a00020f 0a000202 0800 eeb7 1234 0001
  000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f
  202122232425262728292a2b2c2d2e2f 3031323334353637`);

interface CapturedFrame {
  readonly seconds: number;
  readonly nanoseconds: number;
  readonly length: number;
  readonly kept: Uint8Array;
}

function read(path: string): { snapLength: number; frames: CapturedFrame[] } {
  const data = Deno.readFileSync(path);
  const view = new DataView(data.buffer);
  assertEquals(view.getUint32(0, true), 0xa1b23c4d);
  assertEquals([view.getUint16(4, true), view.getUint16(6, true)], [2, 4]);
  assertEquals(view.getUint32(20, true), 1);
  const frames: CapturedFrame[] = [];
  for (let at = 24; at < data.length;) {
    const size = view.getUint32(at + 8, true);
    frames.push({
      seconds: view.getUint32(at, true),
      nanoseconds: view.getUint32(at + 4, true),
      length: view.getUint32(at + 12, true),
      kept: data.slice(at + 16, at + 16 + size),
    });
    at += 16 + size;
  }
  return { snapLength: view.getUint32(16, true), frames };
}

/** Runs `body` with a path that is removed afterwards. */
function withFile(body: (path: string) => void): void {
  const directory = Deno.makeTempDirSync();
  try {
    body(`${directory}/c.pcap`);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
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

Deno.test("pcap: both directions, as tshark and tcpdump see them", () => {
  withFile((path) => {
    using reactor = new Reactor(new VirtualClock());
    using memory = new GuestMemory();
    {
      const inner = new ResponderPort({}, reactor);
      using port = new CapturingPort(inner, { path }, reactor, keepingLog([]));
      assertEquals(port.description, `responder, captured in ${path}`);
      port.open(new Listener());
      for (const frame of [ARP, PING]) {
        assert(port.send(memory.frame(frame, [12, 20, 1])));
        assert(takeFrame(port, memory) !== undefined);
      }
      assertEquals(takeFrame(port, memory), undefined);
      assertEquals(port.counters.captured, 4);
    }
    const { frames } = read(path);
    assertEquals(frames.map((frame) => frame.length), [42, 42, 98, 98]);
    assertEquals([frames[0].kept, frames[2].kept], [ARP, PING]);
    assertEquals(frames[3].kept[34], 0, "an echo reply");
    for (const { seconds, nanoseconds } of frames) {
      assert(Math.abs(seconds - Date.now() / 1000) < 60 && nanoseconds < 1e9);
    }
    const tshark = run("tshark", ["-r", path, "-o", "ip.check_checksum:TRUE"]);
    if (tshark === undefined) console.log("NOT RUN: pcap in tshark: no tshark");
    else {
      assert(/ARP .*Who has 10\.0\.2\.2\?/.test(tshark), tshark);
      assert(/Echo \(ping\) reply/.test(tshark), tshark);
      assert(!/malformed|incorrect/i.test(tshark), tshark);
    }
    const tcpdump = run("tcpdump", ["-nvr", path]);
    if (tcpdump === undefined) console.log("NOT RUN: pcap in tcpdump: no tcpdump");
    else assert(/ICMP echo reply, id 4660, seq 1/.test(tcpdump), tcpdump);
  });
});

Deno.test("pcap: a snap length, and frames on disk before the end", () => {
  withFile((path) => {
    using reactor = new Reactor(new VirtualClock());
    using memory = new GuestMemory();
    const inner = new ResponderPort({}, reactor);
    using port = new CapturingPort(inner, { path, snapLength: 20 }, reactor, keepingLog([]));
    port.open(new Listener());
    port.send(memory.frame(PING));
    assertEquals(read(path).frames.length, 0);
    // The timer is the only thing that ends this turn.
    reactor.turn();
    const { snapLength, frames } = read(path);
    assertEquals(snapLength, 20);
    assertEquals(frames.map(({ length, kept }) => [length, kept]), [[98, PING.slice(0, 20)]]);
  });
});

Deno.test("pcap: the size limit ends the capture, not the traffic", () => {
  withFile((path) => {
    using reactor = new Reactor(new VirtualClock());
    using memory = new GuestMemory();
    const log: string[] = [];
    const inner = new ResponderPort({}, reactor);
    using port = new CapturingPort(inner, { path, sizeLimit: 400 }, reactor, keepingLog(log));
    port.open(new Listener());
    for (let i = 0; i < 10; i++) assert(port.send(memory.frame(PING)));
    assertEquals(read(path).frames.length, 3);
    assertEquals(log, [
      `capture ${path} ends, it has reached its limit of 400 bytes; the traffic goes on`,
    ]);
    assertEquals(inner.responder.counters.framesIn, 10);
  });
});

Deno.test("pcap: large captures, and a file that cannot be written", () => {
  withFile((path) => {
    using reactor = new Reactor(new VirtualClock());
    using memory = new GuestMemory();
    {
      const inner = new ResponderPort({}, reactor);
      using port = new CapturingPort(inner, { path }, reactor, keepingLog([]));
      port.open(new Listener());
      const frame = memory.frame(new Uint8Array(1514).fill(1));
      for (let i = 0; i < 2000; i++) port.send(frame);
    }
    assertEquals(Deno.statSync(path).size, 24 + 2000 * (16 + 1514));
    assertEquals(read(path).frames.length, 2000);
    const log: string[] = [];
    const inner = new ResponderPort({}, reactor);
    {
      using port = new CapturingPort(inner, { path: "/dev/full" }, reactor, keepingLog(log));
      port.open(new Listener());
      for (let i = 0; i < 3; i++) assert(port.send(memory.frame(PING)));
    }
    assertEquals(inner.responder.counters.framesIn, 3);
    assertEquals(log.length, 1);
    assert(/^capture \/dev\/full ends, it cannot be written: .*ENOSPC/.test(log[0]), log[0]);
    const error = assertThrows(
      () => new CapturingPort(inner, { path: "/nowhere/x" }, reactor, keepingLog([])),
      VmsgError,
    );
    assert(error.message.startsWith("cannot capture to /nowhere/x: open /nowhere/x: No such file"));
  });
});
