/** Receive steering before a port with one queue: frames as bytes, no network. */

import { assertEquals } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { IovecList } from "../../src/memory/mod.ts";
import { flowOf, FLOWS, NO_FLOW } from "../../src/network/flow.ts";
import type { NetworkPort, PortListener } from "../../src/network/port.ts";
import { SteeredPort } from "../../src/network/steered_port.ts";
import { NET_HEADER_SIZE } from "../../src/virtio/net_header.ts";
import { VirtualClock } from "../support/virtual_clock.ts";
import { bytes, GuestMemory, takeFrame } from "./support.ts";

const MACS = "020000000001 020000000002";
const [GUEST, HOST] = ["0a000002", "0a000001"];
const staging = allocate(4096);

const port16 = (port: number) => port.toString(16).padStart(4, "0");

/** A UDP datagram over IPv4; `options` are the words of its header beyond five, `fragment` its fragment field. */
function udp(from: string, to: string, ports: [number, number], fragment = "0000", options = 0) {
  const [source, destination] = ports.map(port16);
  return bytes(
    `${MACS} 0800 4${5 + options}00 0024 0000 ${fragment} 4011 0000 ${from} ${to}
     ${"01".repeat(4 * options)} ${source} ${destination} 0010 0000 ${"00".repeat(8)}`,
  );
}

const toHost = (port: number) => udp(GUEST, HOST, [port, 53]);
const toGuest = (port: number) => udp(HOST, GUEST, [53, port]);

/** A port that keeps what was sent, and gives what a test put in. */
class OnePort implements NetworkPort {
  readonly description = "one";
  readonly features = [];
  readonly waiting: Uint8Array[] = [];
  sent = 0;
  full = false;
  listener!: PortListener;

  open(listener: PortListener): void {
    this.listener = listener;
  }

  send(_frame: IovecList): boolean {
    if (!this.full) this.sent++;
    return !this.full;
  }

  nextLength(): number {
    return this.waiting.length === 0 ? 0 : NET_HEADER_SIZE + this.waiting[0]!.length;
  }

  receive(into: IovecList, first: number): number {
    const frame = this.waiting.shift()!;
    staging.bytes.fill(0, 0, NET_HEADER_SIZE);
    staging.bytes[10] = 1;
    staging.bytes.set(frame, NET_HEADER_SIZE);
    return into.copyIn(0, staging.address, NET_HEADER_SIZE + frame.length, first);
  }

  discard(): void {
    this.waiting.shift();
  }

  [Symbol.dispose](): void {}
}

class Rig implements Disposable {
  readonly clock = new VirtualClock();
  readonly reactor = new Reactor(this.clock);
  readonly memory = new GuestMemory();
  readonly one = new OnePort();
  readonly port: SteeredPort;
  readonly readable: number[] = [];
  readonly writable: number[] = [];

  constructor(queues: number) {
    this.port = new SteeredPort(this.one, queues, this.reactor);
    this.port.open({
      readable: (queue) => this.readable.push(queue!),
      writable: (queue) => this.writable.push(queue!),
      link: () => {},
    });
  }

  /** Gives frames to the port, and says what comes from which queue. */
  give(...frames: Uint8Array[]): Uint8Array[][] {
    this.one.waiting.push(...frames);
    this.one.listener.readable();
    const tick = this.reactor.timer(() => {});
    for (let i = 0; i < 10; i++) {
      tick.arm(0);
      this.reactor.turn();
    }
    this.reactor.dropTimer(tick);
    return this.port.queues.map((queue) => {
      const came: Uint8Array[] = [];
      for (let frame; (frame = takeFrame(queue, this.memory)) !== undefined;) came.push(frame);
      return came;
    });
  }

  send(queue: number, frame: Uint8Array): boolean {
    return this.port.queues[queue]!.send(this.memory.frame(frame));
  }

  [Symbol.dispose](): void {
    this.port[Symbol.dispose]();
    this.memory[Symbol.dispose]();
    this.reactor[Symbol.dispose]();
  }
}

Deno.test("flow: both directions of a connection are one, others are others", () => {
  using memory = new GuestMemory();
  const flow = (frame: Uint8Array) => flowOf(memory.frame(frame));
  const numbers = new Set<number>();
  for (let port = 1024; port < 1152; port++) {
    assertEquals(flow(toHost(port)), flow(toGuest(port)));
    numbers.add(flow(toHost(port)));
  }
  // 128 of 1024 that fell by chance would be some 120.
  assertEquals(numbers.size > 100, true, `${numbers.size} of 128`);
  assertEquals([...numbers].every((one) => one >= 0 && one < FLOWS), true);
  // Options of IPv4 are skipped, a VLAN tag is.
  const plain = toHost(2000);
  assertEquals(flow(udp(GUEST, HOST, [2000, 53], "0000", 3)), flow(plain));
  const tagged = new Uint8Array([...plain.slice(0, 12), 0x81, 0, 0, 5, ...plain.slice(12)]);
  assertEquals(flow(tagged), flow(plain));
  // Fragments: the second one has no ports, so the first one's do not count either.
  const first = flow(udp(GUEST, HOST, [2000, 53], "2000"));
  assertEquals(flow(udp(GUEST, HOST, [7, 7], "0010")), first);
  const six = (from: string, to: string, [source, destination]: number[]) =>
    bytes(
      `${MACS} 86dd 60000000 0010 11 40 ${from.padStart(32, "0")} ${to.padStart(32, "0")}
       ${port16(source!)} ${port16(destination!)} 0010 0000 ${"00".repeat(8)}`,
    );
  assertEquals(flow(six("1", "2", [5, 6])), flow(six("2", "1", [6, 5])));
  assertEquals(flow(six("1", "2", [5, 6])) === flow(six("1", "2", [5, 7])), false);
});

Deno.test("flow: what is no IP, cut short or nonsense is in none", () => {
  using memory = new GuestMemory();
  const frame = toHost(1);
  for (const length of [0, 13, 17, 33]) {
    assertEquals(flowOf(memory.frame(frame.slice(0, length))), NO_FLOW, `${length} bytes`);
  }
  assertEquals(flowOf(memory.frame(bytes(`${MACS} 0806 ${"00".repeat(28)}`))), NO_FLOW);
  // The longest header there can be, and no more than that: its ports are not there.
  assertEquals(flowOf(memory.frame(udp(GUEST, HOST, [1, 2], "0000", 10).slice(0, 70))) >= 0, true);
});

Deno.test("steering: frames go where their flow was sent from last, whole and in order", () => {
  using rig = new Rig(3);
  rig.port.setQueues(3);
  for (const [queue, port] of [[0, 1000], [1, 1001], [2, 1002]]) rig.send(queue!, toHost(port!));
  const frames = [1002, 1000, 1001, 1002, 1000].map(toGuest);
  frames[3]![50] = 7;
  const [zero, one, two] = rig.give(...frames);
  assertEquals([zero, one, two], [
    [frames[1]!, frames[4]!],
    [frames[2]!],
    [frames[0]!, frames[3]!],
  ]);
  assertEquals(rig.readable.sort(), [0, 0, 1, 2, 2]);
  rig.send(1, toHost(1002));
  assertEquals(rig.give(toGuest(1002)).map(({ length }) => length), [0, 1, 0]);
});

Deno.test("steering: one queue until more are used, and none of those that are given up", () => {
  using rig = new Rig(2);
  rig.send(1, toHost(1000));
  assertEquals(rig.give(toGuest(1000), toGuest(1001)).map(({ length }) => length), [2, 0]);
  rig.port.setQueues(2);
  rig.send(1, toHost(1000));
  assertEquals(rig.give(toGuest(1000)).map(({ length }) => length), [0, 1]);
  rig.port.setQueues(1);
  assertEquals(rig.give(toGuest(1000)).map(({ length }) => length), [1, 0]);
});

Deno.test("steering: a queue that is full holds the others back for a while, and then costs them nothing", () => {
  using rig = new Rig(2);
  rig.port.setQueues(2);
  rig.send(0, toHost(1000));
  rig.send(1, toHost(1001));
  rig.one.waiting.push(...Array.from({ length: 100 }, () => toGuest(1001)), toGuest(1000));
  const turns = (count: number) => {
    const tick = rig.reactor.timer(() => {});
    for (let i = 0; i < count; i++) {
      tick.arm(0);
      rig.reactor.turn();
    }
    rig.reactor.dropTimer(tick);
  };
  rig.one.listener.readable();
  turns(10);
  const [zero, one] = rig.port.queues;
  assertEquals([rig.one.waiting.length, zero!.nextLength()], [36, 0], "one frame is held");
  // A guest that takes some has it go on, and nothing is lost.
  for (let i = 0; i < 10; i++) takeFrame(one!, rig.memory);
  turns(10);
  assertEquals([rig.one.waiting.length, rig.port.counters.dropped], [26, 0]);
  // One that takes none is not waited for.
  rig.clock.advance(20);
  turns(10);
  assertEquals([rig.one.waiting.length, rig.port.counters.dropped], [0, 26]);
  assertEquals(zero!.nextLength() > 0, true);
  const [came, rest] = rig.give();
  assertEquals([came!.length, rest!.length], [1, 64]);
  // It took something: what comes now is for it again.
  assertEquals(rig.give(toGuest(1001)).map(({ length }) => length), [0, 1]);
});

Deno.test("steering: what is held back for a queue that is given up is dropped, and the others go on", () => {
  using rig = new Rig(2);
  rig.port.setQueues(2);
  rig.send(0, toHost(1000));
  rig.send(1, toHost(1001));
  rig.one.waiting.push(...Array.from({ length: 66 }, () => toGuest(1001)), toGuest(1000));
  rig.one.listener.readable();
  const tick = rig.reactor.timer(() => {});
  for (let i = 0; i < 10; i++) {
    tick.arm(0);
    rig.reactor.turn();
  }
  rig.reactor.dropTimer(tick);
  rig.port.setQueues(1);
  assertEquals(rig.give().map(({ length }) => length), [2, 0]);
});

Deno.test("steering: each queue that found the port full is told when it is not", () => {
  using rig = new Rig(3);
  rig.port.setQueues(3);
  rig.one.full = true;
  assertEquals([rig.send(0, toHost(1)), rig.send(2, toHost(2))], [false, false]);
  rig.one.full = false;
  rig.one.listener.writable();
  assertEquals(rig.writable, [0, 2]);
  assertEquals([rig.send(0, toHost(1)), rig.one.sent], [true, 1]);
});
