/** Packet ports on one end of a veth pair; the kernel has the other end. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { receiveMerging } from "../../src/linux/netdev.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { LARGE_FRAME_ROOM } from "../../src/network/frame_size.ts";
import { PacketPort } from "../../src/network/packet.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { TapPort } from "../../src/network/tap.ts";
import {
  ethernet,
  GuestMemory,
  ip,
  keepingLog,
  Listener,
  lookPatiently,
  Namespace,
  networkTest,
  Relay,
  sendLargeFrames,
  takeFrame,
  Tcp,
  THREE_PINGS,
  transfer,
  turnUntil,
} from "./support.ts";

function words(bits: readonly number[]): Uint32Array {
  const set = new Uint32Array(2);
  for (const bit of bits) set[bit >> 5] |= 1 << (bit & 31);
  return set;
}

/** A veth pair: the port's end is `wire`, the kernel's `host` with an address. */
function pair(): void {
  ip("link add wire type veth peer name host");
  ip("link set host up");
  ip("addr add 10.0.2.1/24 dev host");
  lookPatiently("host");
}

networkTest("packet: the kernel pings a responder on the wire", ["ip", "ping"], async () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  pair();
  const log: string[] = [];
  using port = new PacketPort({ name: "wire" }, reactor, keepingLog(log));
  using responder = new ResponderPort({}, reactor);
  const relay = new Relay(reactor, [port, responder]);
  let status: Deno.CommandStatus | undefined;
  const child = new Deno.Command("ping", {
    args: [...THREE_PINGS, "-s", "1400", "10.0.2.2"],
    stdout: "null",
  }).spawn();
  const ended = child.status.then((s) => status = s);
  await turnUntil(reactor, () => status !== undefined, "ping");
  await ended;
  assertEquals(status!.code, 0);
  assertEquals(relay.links[0].at(-1), true);
  assertEquals(log, []);
  relay.dispose();
});

networkTest("packet: a TCP stream comes in frames of 64 KiB", ["ip"], async () => {
  using one = new Namespace();
  using reactor = new Reactor();
  pair();
  sendLargeFrames();
  using port = new PacketPort({ name: "wire" }, reactor, keepingLog([]));
  using _two = new Namespace();
  using tap = new TapPort({ address: "10.0.2.2/24" }, reactor);
  lookPatiently("tap0");
  port.setFeatures(words(port.features));
  tap.setFeatures(words(port.features));
  const relay = new Relay(reactor, [port, tap]);
  using server = Tcp.listen("10.0.2.2", 5001);
  one.enter();
  using client = Tcp.connect("10.0.2.2", 5001);
  await transfer(reactor, client, server, 8 << 20);
  const seen = relay.seen[0];
  assert(seen.longest > 40_000 && seen.longest <= LARGE_FRAME_ROOM, JSON.stringify(seen));
  assert(seen.segmented > 20, JSON.stringify(seen));
  assertEquals(port.counters.tooLarge, 0);
  relay.dispose();
});

networkTest("packet: a driver without offloads gets plain frames only", ["ip"], async () => {
  using one = new Namespace();
  using reactor = new Reactor();
  pair();
  const log: string[] = [];
  using port = new PacketPort({ name: "wire" }, reactor, keepingLog(log));
  using two = new Namespace();
  using tap = new TapPort({ address: "10.0.2.2/24" }, reactor);
  lookPatiently("tap0");
  one.enter();
  const before = receiveMerging("wire");
  port.setFeatures(words([]));
  two.enter();
  const relay = new Relay(reactor, [port, tap]);
  using server = Tcp.listen("10.0.2.2", 5001);
  one.enter();
  using client = Tcp.connect("10.0.2.2", 5001);
  // The kernel leaves checksums to the other end of a veth; wrong ones would not arrive.
  await transfer(reactor, client, server, 1000);
  assert(port.counters.checksums > 0);
  // Large frames cannot be switched off at the other end; they are dropped and told.
  using bulk = Tcp.connect("10.0.2.2", 5001);
  await turnUntil(reactor, () => bulk.write(0, bulk.buffer.length) > 0, "a connection");
  await turnUntil(reactor, () => port.counters.tooLarge > 0, "a large frame");
  assertEquals(relay.seen[0].segmented, 0);
  assert(relay.seen[0].longest <= 1530);
  assert(log[0].includes("frames larger than the guest takes are dropped"), log[0]);
  assertEquals(log.length, 1);
  port.setFeatures(words(port.features));
  assertEquals(receiveMerging("wire"), before);
  relay.dispose();
});

networkTest("packet: tagged frames of another network stay out", ["ip"], async () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  pair();
  using port = new PacketPort({ name: "wire" }, reactor, keepingLog([]));
  using sender = new PacketPort({ name: "host" }, reactor, keepingLog([]));
  using memory = new GuestMemory();
  // Both ends: a queue whose carrier has just come drops what it is given.
  const listeners = [port, sender].map((end) => {
    const listener = new Listener();
    end.open(listener);
    return listener;
  });
  await turnUntil(reactor, () => listeners.every((l) => l.links.at(-1) === true), "the carrier");
  const tagged = ethernet("ffffffffffff", "020000000001", 64);
  tagged.set([0x81, 0x00, 0x00, 0x0a, 0x88, 0xb5], 12);
  const plain = ethernet("020000000009", "020000000001");
  assert(sender.send(memory.frame(tagged)));
  assert(sender.send(memory.frame(plain, [3, 9, 20])));
  const got: Uint8Array[] = [];
  await turnUntil(
    reactor,
    () => {
      // The kernel may have to say something of its own, to its IPv6 neighbours.
      const frame = takeFrame(port, memory);
      if (frame !== undefined && !(frame[12] === 0x86 && frame[13] === 0xdd)) got.push(frame);
      return got.length > 0 && frame === undefined;
    },
    "a frame",
  );
  assertEquals(got, [plain]);
});

networkTest("packet: the interface vanishes", ["ip"], async () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  pair();
  const log: string[] = [];
  using port = new PacketPort({ name: "wire" }, reactor, keepingLog(log));
  using memory = new GuestMemory();
  const listener = new Listener();
  port.open(listener);
  const last = () => listener.links.at(-1);
  await turnUntil(reactor, () => last() === true, "up");
  ip("link set host down");
  await turnUntil(reactor, () => last() === false, "no carrier");
  ip("link set host up");
  await turnUntil(reactor, () => last() === true, "carrier");
  ip("link del wire");
  await turnUntil(reactor, () => last() === false, "gone");
  assertEquals(port.send(memory.frame(ethernet("020000000009", "020000000001"))), true);
  // What had come before is still there, then nothing.
  while (takeFrame(port, memory) !== undefined);
  assertEquals(port.nextLength(), 0);
  assertEquals(log, ["interface wire is gone"]);
});

networkTest("packet: errors are for people", ["ip"], () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  const error = assertThrows(
    () => new PacketPort({ name: "nosuch" }, reactor, keepingLog([])),
    VmsgError,
  );
  assertEquals(error.message, "there is no interface nosuch: see ip link");
});
