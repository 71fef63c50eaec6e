/** The hub: who gets which frame, and what its limits do. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { IovecList } from "../../src/memory/mod.ts";
import { Hub, MAX_PORTS, QUEUE_FRAMES } from "../../src/network/hub.ts";
import { MacTable, MAX_AGE_SECONDS } from "../../src/network/mac_table.ts";
import type { NetworkPort, PortListener } from "../../src/network/port.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { bytes, ethernet, GuestMemory, Listener, takeFrame } from "./support.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const A = "020000000001";
const B = "020000000002";
const C = "020000000003";
const ALL = "ffffffffffff";

/** A port that is full as long as one says so. */
class SlowPort implements NetworkPort {
  readonly description = "slow";
  readonly features: number[] = [];
  readonly sent: Uint8Array[] = [];
  full = false;
  disposed = false;
  listener: PortListener | undefined;
  readonly #memory = new GuestMemory();

  setFeatures(words: Uint32Array): void {
    assertEquals([...words], [0, 0]);
  }
  open(listener: PortListener): void {
    this.listener = listener;
  }
  send(frame: IovecList): boolean {
    if (this.full) return false;
    const length = frame.copyOut(0, this.#memory.address, 4096);
    this.sent.push(this.#memory.bytes.slice(0, length));
    return true;
  }
  nextLength(): number {
    return 0;
  }
  receive(): number {
    return 0;
  }
  discard(): void {}
  [Symbol.dispose](): void {
    this.disposed = true;
    this.#memory[Symbol.dispose]();
  }
}

/** Ports 1, 2, ... of a hub, opened. */
function open(hub: Hub, count: number): NetworkPort[] {
  return Array.from({ length: count }, () => {
    const port = hub.connect();
    port.open(new Listener());
    return port;
  });
}

Deno.test("hub: floods what it does not know, and learns", () => {
  using reactor = new Reactor(new VirtualClock());
  using hub = new Hub(reactor);
  using memory = new GuestMemory();
  const [one, two, three] = open(hub, 3);
  const send = (port: NetworkPort, frame: Uint8Array) => assert(port.send(memory.frame(frame)));
  const first = ethernet(B, A);
  send(one, first);
  assertEquals(takeFrame(one, memory), undefined);
  assertEquals(takeFrame(two, memory), first);
  assertEquals(takeFrame(three, memory), first);
  const answer = ethernet(A, B, 100);
  send(two, answer);
  assertEquals(takeFrame(one, memory), answer);
  assertEquals(takeFrame(three, memory), undefined);
  send(one, first);
  assertEquals(takeFrame(two, memory), first);
  assertEquals(takeFrame(three, memory), undefined);
  // A broadcast and a multicast go to all others; a station that moved is found where it is now.
  for (const group of [ALL, "01005e000001"]) {
    send(three, ethernet(group, C));
    assertEquals(takeFrame(one, memory), ethernet(group, C));
    assertEquals(takeFrame(two, memory), ethernet(group, C));
  }
  send(three, ethernet(ALL, A));
  for (const port of [one, two]) port.discard();
  send(two, answer);
  assertEquals(takeFrame(one, memory), undefined);
  assertEquals(takeFrame(three, memory), answer);
  assertEquals(hub.counters.malformed, 0);
});

Deno.test("hub: a header asks nothing of others, and nonsense goes nowhere", () => {
  using reactor = new Reactor(new VirtualClock());
  using hub = new Hub(reactor);
  using memory = new GuestMemory();
  const [one, two] = open(hub, 2);
  memory.frame(ethernet(B, A));
  memory.bytes.fill(0xff, 0, 12);
  one.send(memory.buffer(0, 72));
  memory.bytes.fill(0xee);
  assertEquals(two.receive(memory.buffer(0, 2000, [5]), 0), 72);
  assertEquals(memory.bytes.slice(0, 12), bytes("0000 0000 0000 0000 0000 0100"));
  // Too short, from a group, longer than a slot, no header even.
  one.send(memory.frame(ethernet(B, A).slice(0, 13)));
  one.send(memory.frame(ethernet(B, "030000000001")));
  one.send(memory.buffer(0, 3));
  assertEquals(hub.counters.malformed, 3);
  one.send(memory.frame(ethernet(B, A, 4000)));
  assertEquals(hub.counters.dropped, 1);
  assertEquals(takeFrame(two, memory), undefined);
});

Deno.test("hub: a full queue drops, a port that left is forgotten", () => {
  using reactor = new Reactor(new VirtualClock());
  using hub = new Hub(reactor);
  using memory = new GuestMemory();
  const [one, two, three] = open(hub, 3);
  two.send(memory.frame(ethernet(ALL, B)));
  for (const port of [one, three]) port.discard();
  for (let i = 0; i < QUEUE_FRAMES + 10; i++) one.send(memory.frame(ethernet(B, A, 60 + i % 40)));
  assertEquals(hub.counters.dropped, 10);
  for (let i = 0; i < QUEUE_FRAMES; i++) {
    assertEquals(takeFrame(two, memory)?.length, 60 + i % 40);
  }
  assertEquals(takeFrame(two, memory), undefined);
  two[Symbol.dispose]();
  two.send(memory.frame(ethernet(A, B)));
  one.send(memory.frame(ethernet(B, A)));
  assertEquals(takeFrame(three, memory), ethernet(B, A));
  // Its place is taken again, and the number of places is limited.
  open(hub, MAX_PORTS - 2);
  assertThrows(() => hub.connect(), VmsgError, "a hub has at most 64 ports");
});

Deno.test("hub: a station that was silent for too long is looked for again", () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  using hub = new Hub(reactor);
  using memory = new GuestMemory();
  const [one, two, three] = open(hub, 3);
  two.send(memory.frame(ethernet(ALL, B)));
  for (const port of [one, three]) port.discard();
  const frame = ethernet(B, A);
  /** Whether the third port hears what is for the station behind the second. */
  const isFlooded = () => {
    // The hub asks for the time once a turn.
    reactor.schedule({ run: () => false });
    reactor.turn();
    one.send(memory.frame(frame));
    assertEquals(takeFrame(two, memory), frame);
    return takeFrame(three, memory) !== undefined;
  };
  assertEquals(isFlooded(), false);
  clock.advance(MAX_AGE_SECONDS * 1000 - 1);
  assertEquals(isFlooded(), false);
  clock.advance(2);
  assertEquals(isFlooded(), true);
});

Deno.test("hub, responder: the clock, which costs more than a small frame, is not read for each of them", () => {
  const clock = new VirtualClock();
  let reads = 0;
  const now = () => {
    reads++;
    return clock.nowMs;
  };
  using reactor = new Reactor({ now });
  using hub = new Hub(reactor);
  using memory = new GuestMemory();
  const [one, two] = open(hub, 2);
  using responder = new ResponderPort({}, reactor);
  responder.open({ readable: () => {}, writable: () => {}, link: () => {} });
  reads = 0;
  for (let i = 0; i < 50; i++) {
    one.send(memory.frame(ethernet(B, A)));
    two.discard();
    responder.send(memory.frame(ethernet(B, A)));
    assertEquals(responder.nextLength(), 0);
  }
  assertEquals(reads, 1);
});

Deno.test("hub: an uplink that is full is waited for", () => {
  using reactor = new Reactor(new VirtualClock());
  const uplink = new SlowPort();
  using memory = new GuestMemory();
  {
    using hub = new Hub(reactor, { uplink });
    const [one, two] = open(hub, 2);
    const frame = ethernet(ALL, A);
    uplink.full = true;
    one.send(memory.frame(frame));
    one.send(memory.frame(frame));
    reactor.turn();
    assertEquals([uplink.sent.length, two.nextLength()], [0, 72]);
    uplink.full = false;
    uplink.listener!.writable();
    reactor.turn();
    assertEquals(uplink.sent.map((f) => f.slice(12)), [frame, frame]);
  }
  assert(uplink.disposed);
});

Deno.test("hub: two guests and the responder", () => {
  using reactor = new Reactor(new VirtualClock());
  using hub = new Hub(reactor, { uplink: new ResponderPort({}, reactor) });
  using memory = new GuestMemory();
  const [one, two] = open(hub, 2);
  one.send(memory.frame(bytes(`${ALL} ${A} 0806 0001 0800 06 04 0001
    ${A} 0a00020f 000000000000 0a000202`)));
  for (let i = 0; i < 3 && one.nextLength() === 0; i++) reactor.turn();
  const reply = takeFrame(one, memory)!;
  assertEquals(reply.slice(0, 6), bytes(A));
  assertEquals(reply.slice(20, 22), bytes("0002"));
  two.discard();
  assertEquals(takeFrame(two, memory), undefined);
});

Deno.test("responder port: the flood comes at its rate", async () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  using port = new ResponderPort({ floodFramesPerSecond: 10 }, reactor);
  using memory = new GuestMemory();
  let frames = 0;
  const { promise: second, resolve } = Promise.withResolvers<void>();
  port.open({
    readable: () => {
      while (takeFrame(port, memory) !== undefined) frames++;
      if (frames === 10) resolve();
    },
    writable: () => {},
    link: () => {},
  });
  const startMs = clock.now();
  await reactor.until(second);
  const tookMs = clock.now() - startMs;
  assert(tookMs >= 999 && tookMs < 1050, `${tookMs} ms for 10 frames`);
});

Deno.test("MAC table: limited, and forgetful", () => {
  const table = new MacTable();
  const station = (n: number) => 0x5254_0000_0000 + n;
  for (let n = 0; n < 500; n++) table.learn(station(n), n % 60, n / 1000);
  let known = 0;
  for (let n = 0; n < 500; n++) {
    const port = table.find(station(n), 1);
    assert(port === -1 || port === n % 60);
    if (port >= 0) known++;
  }
  assert(known > 470, `${known} of 500 known`);
  assertEquals(table.find(station(1), MAX_AGE_SECONDS + 2), -1);
  // Somebody makes up addresses: the table stays as large as it is, the newest are known.
  for (let n = 0; n < 100_000; n++) table.learn(n * 7919 + 1, 9, 2 + n / 1000);
  assertEquals(table.find(99_999 * 7919 + 1, 102), 9);
  table.forgetPort(9);
  assertEquals(table.find(99_999 * 7919 + 1, 102), -1);
  assertEquals(table.find(0x1234, 102), -1);
});
