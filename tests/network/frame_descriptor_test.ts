/** The data path of TAP and packet ports, on a pair of sockets that keep frames apart. */

import { assert, assertEquals } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { Fd } from "../../src/linux/fd.ts";
import { check, libc } from "../../src/linux/libc.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { FrameDescriptor } from "../../src/network/frame_descriptor.ts";
import { PrefixedSegments } from "../../src/network/prefixed_segments.ts";
import { ethernet, GuestMemory, Listener, turnUntil } from "./support.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

function pair(): [Fd, Fd] {
  const block = allocate(8);
  const type = 5 | 0o4000 | 0o2000000; // SOCK_SEQPACKET, non-blocking
  check(libc.socketpair(1, type, 0, block.address), "socketpair");
  return [new Fd(block.view.getInt32(0, true)), new Fd(block.view.getInt32(4, true))];
}

Deno.test("frame descriptor: no room now, then there is", async () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = new GuestMemory();
  const [a, b] = pair();
  using _a = a;
  using _b = b;
  using left = new FrameDescriptor(a, reactor);
  using right = new FrameDescriptor(b, reactor);
  const [leftListener, rightListener] = [new Listener(), new Listener()];
  left.open(leftListener);
  right.open(rightListener);
  const out = memory.frame(ethernet("020000000002", "020000000001", 2000), [12, 700]);
  let sent = 0;
  while (left.write(out.address, out.count)) sent++;
  assert(sent > 10, `${sent}`);
  assertEquals(left.write(out.address, out.count), false);
  await turnUntil(reactor, () => right.readable, "frames");
  assertEquals(leftListener.writes, 0);
  const into = memory.buffer(65536, 4096, [1000]);
  for (let i = 0; i < sent; i++) assertEquals(right.read(into.address, into.count), 2012);
  // Asked for more, it says no; only then another edge is due.
  assertEquals(right.readable, true);
  assertEquals(right.read(into.address, into.count), 0);
  assertEquals(right.readable, false);
  await turnUntil(reactor, () => leftListener.writes === 1, "room");
  assertEquals(left.write(memory.frame(new Uint8Array(50)).address, 2), true);
  await turnUntil(reactor, () => right.readable, "another frame");
  right.discard();
  assertEquals(right.readable, true);
  right.discard();
  assertEquals(right.readable, false);
  assertEquals(left.counters.sent, sent + 1);
});

Deno.test("frame descriptor: nothing throws when the other side is gone", async () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = new GuestMemory();
  const [a, b] = pair();
  using _a = a;
  using left = new FrameDescriptor(a, reactor);
  const listener = new Listener();
  left.open(listener);
  b[Symbol.dispose]();
  await turnUntil(reactor, () => listener.reads > 0, "the end");
  const list = memory.frame(new Uint8Array(60));
  assertEquals(left.read(list.address, list.count), 0);
  assertEquals(left.readable, false);
  assertEquals(left.write(list.address, list.count), true);
  assertEquals(left.counters.sendErrors, 1);
});

Deno.test("prefixed segments: the header is cut off wherever its pieces end", async () => {
  using reactor = new Reactor(new VirtualClock());
  using memory = new GuestMemory();
  const [a, b] = pair();
  using _a = a;
  using _b = b;
  using right = new FrameDescriptor(b, reactor);
  right.open(new Listener());
  const segments = new PrefixedSegments(4);
  segments.prefix.bytes.set([1, 2, 3, 4]);
  const frame = ethernet("020000000002", "020000000001", 200);
  const expected = Uint8Array.from([1, 2, 3, 4, ...frame]);
  for (const pieces of [[], [12], [5, 7], [5, 20], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [13]]) {
    const count = segments.assemble(memory.frame(frame, pieces), 0);
    assertEquals(count, memory.list.count + 1);
    assertEquals(libc.writev(a.number, segments.address, count), 204);
    await turnUntil(reactor, () => right.readable, "a frame");
    const into = memory.buffer(65536, 4096);
    assertEquals(right.read(into.address, into.count), 204);
    assertEquals(memory.bytes.slice(65536, 65536 + 204), expected, `${pieces}`);
  }
  // A receiver's room of 100 bytes behind the header: the suffix shows that there was more.
  const count = segments.assembleWithSuffix(memory.buffer(65536, 112, [60]), 0);
  assertEquals(libc.write(a.number, segments.prefix.address, 4), 4);
  assertEquals(right.read(segments.address, count), 4);
  const out = memory.frame(frame, []);
  assertEquals(libc.writev(a.number, out.address, out.count), 212);
  assertEquals(right.read(segments.address, count), 4 + 100 + 64);
});
