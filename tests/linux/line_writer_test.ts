/** Lines on a socket, as systemd's journal gives one; pipes are in tests/cli/unread_test.ts. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { libc } from "../../src/linux/libc.ts";
import { LineWriter } from "../../src/linux/line_writer.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { unixStreamPair } from "../../src/linux/unix_socket.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const F_SETFL = 4;

cleanTest("line writer: a socket that blocks and that nobody reads holds nobody up", async () => {
  using reactor = new Reactor(new VirtualClock());
  const [ours, theirs] = unixStreamPair();
  using _ours = ours;
  using _theirs = theirs;
  // Blocking, and small: it is full within a line.
  libc.fcntl(ours.fd.number, F_SETFL, 0n);
  ours.keepLittle();
  const block = allocate(4096);
  let text = "";
  const read = () => {
    for (let length; (length = theirs.receive(block.address, 4096)) > 0;) {
      text += new TextDecoder().decode(block.bytes.slice(0, length));
    }
  };
  {
    using writer = new LineWriter(reactor, ours.fd.number);
    for (let n = 0; n < 1000; n++) writer.write(`${n} `.padEnd(1000, "x"));
    const endMs = reactor.now() + 10_000;
    while (!text.includes("lines were dropped") && reactor.now() < endMs) {
      await reactor.until(reactor.sleep(20));
      read();
    }
    writer.write("the last one");
    read();
  }
  const lines = text.trimEnd().split("\n");
  const gap = lines.at(-2)!;
  assertMatch(gap, /^vmsg: \d+ lines were dropped here/);
  assertEquals(lines.length - 2 + Number(/\d+/.exec(gap)![0]), 1000);
  assert(lines.slice(0, -2).every((line, n) => line.startsWith(`${n} x`)));
});
