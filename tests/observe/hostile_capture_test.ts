/** Captures that are none, that are broken, that want to speak to the terminal, and that end early. */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { readCaptures } from "../../src/cli/trace.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { Flag, HEAD_SIZE, MARK } from "../../src/observe/capture.ts";
import { CaptureFile } from "../../src/observe/capture_file.ts";
import { createLog } from "../../src/observe/log.ts";
import {
  interfaceDescription,
  interfaceStatistics,
  LINKTYPE_USER0,
  PACKET_HEAD,
  packetSize,
  sectionHeader,
  writePacket,
} from "../../src/observe/pcapng.ts";
import { recordedSession } from "../message/recorded_session.ts";
import { readAll } from "../support/capture.ts";
import { writeCapture } from "../support/capture_of_messages.ts";
import { processTest } from "../support/processes.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** Runs with a directory that is gone afterwards. */
function inDirectory(work: (directory: string) => void): void {
  const directory = Deno.makeTempDirSync();
  try {
    work(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

/** The session's capture, changed. */
function changed(path: string, change: (bytes: Uint8Array, view: DataView) => Uint8Array | void) {
  writeCapture(path, recordedSession());
  const bytes = Deno.readFileSync(path);
  Deno.writeFileSync(path, change(bytes, new DataView(bytes.buffer)) ?? bytes);
}

/** Where the block with this number begins. */
function blockAt(view: DataView, number: number): number {
  let at = 0;
  for (let n = 0; n < number; n++) at += view.getUint32(at + 4, true);
  return at;
}

function problemOf(path: string): string {
  const error = assertThrows(() => [...readCaptures([path], "", false)]);
  // Any other would be shown as an error of ours.
  assert(error instanceof VmsgError, `${error}`);
  assert(!error.message.includes("\n"));
  return error.message;
}

const BROKEN: [what: string, change: Parameters<typeof changed>[1], problem: RegExp][] = [
  ["is empty", () => new Uint8Array(), /is no pcapng file$/],
  ["has half a header", (bytes) => bytes.subarray(0, 9), /is no pcapng file$/],
  ["is something else", (bytes) => bytes.fill(7), /is no pcapng file$/],
  [
    "has a block of 4 GiB",
    (_, view) => view.setUint32(blockAt(view, 9) + 4, 0xffff_fffc, true),
    /has a broken block$/,
  ],
  [
    "has a block of no size",
    (_, view) => view.setUint32(blockAt(view, 9) + 4, 0, true),
    /has a broken block$/,
  ],
  [
    "has a packet longer than its block",
    (_, view) => view.setUint32(blockAt(view, 9) + 20, 0xffff_ffff, true),
    /has a broken packet$/,
  ],
  [
    "comes from a machine of the other byte order",
    (bytes, view) => {
      bytes.subarray(4, 8).reverse();
      view.setUint32(8, 0x1a2b3c4d, false);
    },
    /other byte order/,
  ],
];

Deno.test("a capture that is none, or is broken, is refused in one line", () =>
  inDirectory((directory) => {
    for (const [what, change, problem] of BROKEN) {
      const path = `${directory}/c.pcapng`;
      changed(path, change);
      assertMatch(problemOf(path), problem, what);
    }
    assertMatch(problemOf(directory), /is a directory and no file$/);
    assertMatch(problemOf("/dev/zero"), /is a device and no file$/);
    assertMatch(problemOf(`${directory}/none`), /ENOENT/);
  }));

processTest("trace: a pipe is refused, and nobody waits for who writes it", async (vmsg) => {
  const { code } = await new Deno.Command("mkfifo", { args: [`${vmsg.directory}/pipe`] }).output();
  assertEquals(code, 0);
  for (const command of [["trace"], ["doctor"], ["trace", "--html", "x.html"]]) {
    const { code, stderr } = await vmsg.run(...command, "pipe");
    assertEquals([code, stderr], [1, ["vmsg: pipe is a pipe and no file"]]);
  }
});

Deno.test("a capture that was cut off anywhere is read up to there", () =>
  inDirectory((directory) => {
    const path = `${directory}/c.pcapng`;
    writeCapture(path, recordedSession().slice(0, 8));
    const whole = Deno.readFileSync(path);
    const lines = [...readCaptures([path], "", false)];
    for (let size = 12; size < whole.length; size += 4) {
      Deno.writeFileSync(path, whole.subarray(0, size));
      const read = [...readCaptures([path], "", false)].filter((line) => line.startsWith("+"));
      const seen = read.filter((line) => !line.includes("not answered"));
      assertEquals(seen, lines.slice(0, seen.length));
    }
  }));

Deno.test("a capture says nothing to the terminal, and no line that is not there", () =>
  inDirectory((directory) => {
    const path = `${directory}/c.pcapng`;
    const evil = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202e\n+0.000000 -> forged";
    const text = new TextEncoder().encode(evil);
    const size = HEAD_SIZE + text.length;
    const packet = new Uint8Array(packetSize(size));
    writePacket(new DataView(packet.buffer), 0, 0, { high: 0, low: 0 }, size, size);
    new DataView(packet.buffer).setUint32(PACKET_HEAD, MARK, true);
    packet.set([1, 0, 0, Flag.SENT | Flag.NOTE], PACKET_HEAD + 4);
    packet.set(text, PACKET_HEAD + HEAD_SIZE);
    const about = { linkType: LINKTYPE_USER0, name: evil, description: "" };
    const statistics = interfaceStatistics(0, { high: 0, low: 0 }, 9, 3);
    const blocks = [sectionHeader("test"), interfaceDescription(about, 0), packet, statistics];
    Deno.writeFileSync(path, new Uint8Array(blocks.flatMap((block) => [...block])));
    for (const isJson of [false, true]) {
      const lines = [...readCaptures([path], "", isJson)];
      assertEquals(lines.length, 2);
      for (const line of lines) assert(!/\p{C}/u.test(line), JSON.stringify(line));
      assertMatch(lines[0]!, /forged/);
      assertMatch(lines[1]!, /3 packets of .*forged were dropped/);
    }
  }));

Deno.test("capture: a process that is killed at once leaves a file that is one", () =>
  inDirectory((directory) => {
    using reactor = new Reactor(new VirtualClock());
    const path = `${directory}/c.pcapng`;
    const log = createLog("test", "error", () => {});
    for (const ring of [false, true]) {
      using _file = new CaptureFile({ path, ring }, reactor, log);
      assertEquals(readAll(path), []);
    }
  }));
