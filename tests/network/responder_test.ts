/**
 * The responder against frames that were written down from the RFCs' layouts, not made by its own code.
 *
 * The checksum here is a second, naive implementation (bytes, one carry at a time), and every frame that
 * the responder emits in any test passes `verify`, which uses that one.
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { FrameRing } from "../../src/network/responder/frame_ring.ts";
import { Responder } from "../../src/network/responder/responder.ts";
import {
  Bench,
  bytes,
  generator,
  GUEST,
  GUEST_MAC,
  hex,
  HOST,
  HOST_MAC,
  ipv4,
  naiveChecksum,
  pattern,
  read,
  u16,
  u32,
  udp,
} from "./responder_support.ts";

const ARP_REQUEST = `ffffffffffff ${GUEST_MAC} 0806
  0001 0800 06 04 0001 ${GUEST_MAC} ${GUEST} 000000000000 ${HOST}`;
const ARP_REPLY = `${GUEST_MAC} ${HOST_MAC} 0806
  0001 0800 06 04 0002 ${HOST_MAC} ${HOST} ${GUEST_MAC} ${GUEST}`;

/** What ping -s 56 sends (identification 0x1c46, "don't fragment"), and what must come back. */
const PING_DATA = `000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f
  202122232425262728292a2b2c2d2e2f 3031323334353637`;
const PING = `${HOST_MAC} ${GUEST_MAC} 0800
  4500 0054 1c46 4000 4001 0653 ${GUEST} ${HOST} 0800 eeb7 1234 0001 ${PING_DATA}`;
const PONG = `${GUEST_MAC} ${HOST_MAC} 0800
  4500 0054 0000 4000 4001 2299 ${HOST} ${GUEST} 0000 f6b7 1234 0001 ${PING_DATA}`;

/** "hi!" to port 4242, and the "port unreachable" that quotes its headers. */
const STRAY = `${HOST_MAC} ${GUEST_MAC} 0800
  4500 001f beef 4000 4011 63ce ${GUEST} ${HOST} 9c40 1092 000b b18b 686921`;
const UNREACHABLE = `${GUEST_MAC} ${HOST_MAC} 0800
  4500 0038 0000 4000 4001 22b5 ${HOST} ${GUEST} 0303 9e93 00000000
  4500 001f beef 4000 4011 63ce ${GUEST} ${HOST} 9c40 1092 000b b18b`;

function echo(size: number): Uint8Array {
  const data = Array.from({ length: size }, (_, i) => (i % 251).toString(16).padStart(2, "0"));
  const message = (checksum: number) => `0800${u16(checksum)}00070009${data.join("")}`;
  return ipv4(1, message(naiveChecksum(bytes(message(0)))));
}

Deno.test("the naive checksum agrees with the example of RFC 1071, section 3", () => {
  assertEquals(naiveChecksum(bytes("0001f203f4f5f6f7")), 0xffff - 0xddf2);
});

Deno.test("ARP: a request for our address is answered, others are not", () => {
  const bench = new Bench();
  bench.exchange(bytes(ARP_REQUEST), ARP_REPLY);
  bench.exchange(bytes(ARP_REQUEST.replace(/0a000202$/, "0a000203")));
  bench.exchange(bytes(ARP_REPLY.replace(GUEST_MAC, HOST_MAC).replace(HOST_MAC, GUEST_MAC)));
  // An unicast request, and padding as a NIC would leave it.
  bench.exchange(
    bytes(ARP_REQUEST.replace("ffffffffffff", HOST_MAC) + "00".repeat(18)),
    ARP_REPLY,
  );
  bench.exchange(bytes(ARP_REQUEST).slice(0, 41));
  const { arpReplies, malformed, ignored, framesIn, bytesIn, framesOut, bytesOut } =
    bench.responder.counters;
  assertEquals({ arpReplies, malformed, ignored }, { arpReplies: 2, malformed: 1, ignored: 2 });
  assertEquals({ framesIn, bytesIn }, { framesIn: 5, bytesIn: 42 * 3 + 60 + 41 });
  assertEquals({ framesOut, bytesOut }, { framesOut: 2, bytesOut: 84 });
});

Deno.test("frames for other stations are ignored, frames from a group are malformed", () => {
  const bench = new Bench();
  bench.exchange(bytes(PING.replace(HOST_MAC, "52550a000203")));
  assertEquals(bench.responder.counters.ignored, 1);
  bench.exchange(bytes(PING.replace(GUEST_MAC, "ffffffffffff")));
  assertEquals(bench.responder.counters.malformed, 1);
});

Deno.test("ping: the golden frame of 56 bytes", () => {
  const bench = new Bench();
  bench.exchange(bytes(PING), PONG);
  // The same with trailing Ethernet padding.
  bench.exchange(bytes(PING + "00000000"), PONG);
  assertEquals(bench.responder.counters.echoReplies, 2);
});

Deno.test("ping: every size up to 1472 comes back whole, 1473 is dropped", () => {
  const bench = new Bench();
  for (let size = 0; size <= 1472; size++) {
    const request = echo(size);
    bench.give(request);
    const [reply, more] = bench.takeAll();
    assertEquals(more, undefined);
    assertEquals(reply.length, 42 + size);
    assertEquals(read(reply, 34, 2), 0);
    assertEquals(hex(reply.subarray(38)), hex(request.subarray(38)));
  }
  bench.exchange(echo(1473));
  bench.exchange(echo(9000));
  const { echoReplies, dropped, malformed } = bench.responder.counters;
  assertEquals({ echoReplies, dropped, malformed }, {
    echoReplies: 1473,
    dropped: 2,
    malformed: 0,
  });
});

Deno.test("IPv4: options are skipped, fragments dropped, wrong checksums and addresses refused", () => {
  const bench = new Bench();
  const message = hex(echo(8).subarray(34));
  bench.give(ipv4(1, message, { ipOptions: "94040000" }));
  assertEquals(bench.takeAll().length, 1);
  bench.exchange(ipv4(1, message, { fragment: 0x2000 }));
  bench.exchange(ipv4(1, message, { fragment: 0x0001 }));
  assertEquals(bench.responder.counters.dropped, 2);
  bench.exchange(bytes(PING.replace("0653", "0654")));
  bench.exchange(bytes(PING.replace("eeb7", "eeb8")));
  assertEquals(bench.responder.counters.checksumErrors, 2);
  assertEquals(bench.responder.counters.dropped, 4);
  for (const from of [HOST, "0a0002ff", "ffffffff", "e0000001", "7f000001"]) {
    bench.exchange(ipv4(1, message, { from }));
  }
  assertEquals(bench.responder.counters.malformed, 5);
  bench.exchange(ipv4(1, message, { from: "00000000" }));
  bench.exchange(ipv4(1, message, { to: "0a0002ff" }));
  bench.exchange(ipv4(1, message, { to: "08080808" }));
  bench.exchange(ipv4(132, message));
  assertEquals(bench.responder.counters.ignored, 4);
  bench.exchange(bytes(PING.replace("0800\n", "88cc\n")));
  assertEquals(bench.responder.counters.ignored, 5);
});

Deno.test("UDP: a stray datagram gets the golden 'port unreachable', ten a second", () => {
  const bench = new Bench();
  bench.exchange(bytes(STRAY), UNREACHABLE);
  for (let i = 0; i < 20; i++) bench.give(bytes(STRAY));
  assertEquals(bench.takeAll().length, 9);
  assertEquals(bench.responder.counters.dropped, 11);
  bench.nowMs += 100;
  bench.exchange(bytes(STRAY), UNREACHABLE);
  bench.exchange(bytes(STRAY));
  // Not for a broadcast frame (RFC 1122 3.2.2).
  bench.nowMs += 100;
  bench.exchange(bytes(STRAY.replace(HOST_MAC, "ffffffffffff")));
  assertEquals(bench.responder.counters.portUnreachables, 11);
});

Deno.test("UDP: a wrong checksum is dropped, none is accepted", () => {
  const bench = new Bench();
  bench.exchange(bytes(STRAY.replace("b18b", "b18c")));
  assertEquals(bench.responder.counters.checksumErrors, 1);
  bench.give(bytes(STRAY.replace("b18b", "0000")));
  assertEquals(bench.takeAll().length, 1);
});

Deno.test("discard counts, and says nothing", () => {
  const bench = new Bench();
  bench.exchange(udp(5000, 9, ""));
  bench.exchange(udp(5000, 9, "aabbcc"));
  bench.exchange(udp(5000, 9, "00".repeat(20000)));
  bench.exchange(udp(5000, 9, "aabbcc", { to: "0a0002ff" }));
  const { discardedFrames, discardedBytes, ignored } = bench.responder.counters;
  assertEquals({ discardedFrames, discardedBytes, ignored }, {
    discardedFrames: 3,
    discardedBytes: 20003,
    ignored: 1,
  });
});

interface DhcpMessage {
  readonly mac: string;
  readonly to: string;
  readonly op: number;
  readonly xid: string;
  readonly flags: number;
  readonly ciaddr: string;
  readonly yiaddr: string;
  readonly chaddr: string;
  readonly options: Record<number, string>;
}

function parseDhcp(frame: Uint8Array): DhcpMessage {
  assertEquals(read(frame, 34, 4), 67 * 65536 + 68);
  const message = frame.subarray(42);
  assert(message.length >= 300);
  assertEquals(hex(message.subarray(1, 4)), "010600");
  assertEquals(hex(message.subarray(236, 240)), "63825363");
  const options: Record<number, string> = {};
  let at = 240;
  while (message[at] !== 255) {
    const end = at + 2 + message[at + 1];
    assert(end < message.length);
    options[message[at]] = hex(message.subarray(at + 2, end));
    at = end;
  }
  assert(message.subarray(at + 1).every((byte) => byte === 0));
  return {
    mac: hex(frame.subarray(0, 6)),
    to: hex(frame.subarray(30, 34)),
    op: message[0],
    xid: hex(message.subarray(4, 8)),
    flags: read(message, 10, 2),
    ciaddr: hex(message.subarray(12, 16)),
    yiaddr: hex(message.subarray(16, 20)),
    chaddr: hex(message.subarray(28, 34)),
    options,
  };
}

interface DhcpQuery {
  mac?: string;
  flags?: number;
  ciaddr?: string;
  giaddr?: string;
  options: string;
  from?: string;
  to?: string;
}

function dhcp(query: DhcpQuery): Uint8Array {
  const zero = "00000000";
  const mac = query.mac ?? GUEST_MAC;
  const message = `01010600 deadbeef 0000 ${u16(query.flags ?? 0)}
    ${query.ciaddr ?? zero} ${zero} ${zero} ${query.giaddr ?? zero}
    ${mac} ${"00".repeat(10)} ${"00".repeat(192)} 63825363 ${query.options} ff`;
  return udp(68, 67, hex(bytes(message)), {
    from: query.from ?? zero,
    to: query.to ?? "ffffffff",
    mac: "ffffffffffff",
    sourceMac: mac,
  });
}

const DISCOVER = "350101";
const REQUEST = "350103";
const SERVER_ID = `3604${HOST}`;

Deno.test("DHCP: DISCOVER, OFFER, REQUEST, ACK", () => {
  const bench = new Bench();
  const ask = (query: DhcpQuery) => {
    bench.give(dhcp(query));
    return bench.takeAll().map(parseDhcp);
  };
  const common = { op: 2, xid: "deadbeef", ciaddr: "00000000", chaddr: GUEST_MAC };
  const options = { 54: HOST, 51: "00015180", 1: "ffffff00", 3: HOST };

  const unicast = { mac: GUEST_MAC, to: GUEST, flags: 0 };
  assertEquals(ask({ options: DISCOVER }), [
    { ...common, ...unicast, yiaddr: GUEST, options: { 53: "02", ...options } },
  ]);
  assertEquals(bench.responder.counters.dhcpLeases, 0);
  assertEquals(ask({ options: `${REQUEST}3204${GUEST}${SERVER_ID}` }), [
    { ...common, ...unicast, yiaddr: GUEST, options: { 53: "05", ...options } },
  ]);
  assertEquals(bench.responder.counters.dhcpLeases, 1);

  // The broadcast flag, a client identifier, pad options.
  const toAll = { mac: "ffffffffffff", to: "ffffffff", flags: 0x8000 };
  assertEquals(ask({ flags: 0x8000, options: `0000${DISCOVER}003d0701${GUEST_MAC}` }), [
    {
      ...common,
      ...toAll,
      yiaddr: GUEST,
      options: { 53: "02", ...options, 61: `01${GUEST_MAC}` },
    },
  ]);

  // Another address: NAK, to all, whatever the flag says. So when nothing was asked for before.
  const nak = { ...common, ...toAll, yiaddr: "00000000", options: { 53: "06", 54: HOST } };
  assertEquals(ask({ options: `${REQUEST}32040a000210${SERVER_ID}` }), [{ ...nak, flags: 0 }]);
  assertEquals(ask({ mac: "525400000009", options: `${REQUEST}3204c0a80105` }), [
    { ...nak, flags: 0, chaddr: "525400000009" },
  ]);

  // Renewal: unicast from the lease's address, no server identifier.
  assertEquals(ask({ options: REQUEST, ciaddr: GUEST, from: GUEST, to: HOST }), [
    { ...common, ...unicast, ciaddr: GUEST, yiaddr: GUEST, options: { 53: "05", ...options } },
  ]);

  // Another server's, a relay's, RELEASE, INFORM, BOOTP: ignored.
  const ignored = bench.responder.counters.ignored;
  assertEquals(ask({ options: `${REQUEST}3204${GUEST}36040a000203` }), []);
  assertEquals(ask({ options: DISCOVER, giaddr: "0a000203" }), []);
  assertEquals(ask({ options: "350107" }), []);
  assertEquals(ask({ options: "350108" }), []);
  assertEquals(ask({ options: "" }), []);
  assertEquals(bench.responder.counters.ignored, ignored + 5);
  // Options that are cut off or have a wrong length.
  for (const bad of ["35", "350201", "3503010101", "3204", "35010132030a0002", "3dff"]) {
    assertEquals(ask({ options: bad }), []);
  }
  assertEquals(bench.responder.counters.malformed, 6);
  // All that left one lease: the next address is free.
  assertEquals(bench.responder.counters.dhcpLeases, 1);
  const [offer] = ask({ mac: "525400000009", options: DISCOVER });
  assertEquals(offer.yiaddr, "0a000210");
});

Deno.test("DHCP: the longest client identifier comes back", () => {
  const bench = new Bench();
  const identifier = "ab".repeat(255);
  bench.give(dhcp({ options: `${DISCOVER}3dff${identifier}` }));
  const [offer] = bench.takeAll().map(parseDhcp);
  assertEquals(offer.options[61], identifier);
});

Deno.test("DHCP: 64 clients get .15, .16, ... and keep them; the 65th gets nothing", () => {
  const bench = new Bench();
  const offerFor = (client: number, options = DISCOVER) => {
    bench.give(dhcp({ mac: `5254000000${client.toString(16).padStart(2, "0")}`, options }));
    return bench.takeAll().map((frame) => parseDhcp(frame).yiaddr);
  };
  for (let client = 0; client < 64; client++) {
    assertEquals(offerFor(client), [u32(0x0a00020f + client)]);
  }
  assertEquals(offerFor(64), []);
  assertEquals(offerFor(64, `${REQUEST}3204${GUEST}`), []);
  assertEquals(bench.responder.counters.dropped, 2);
  assertEquals(offerFor(5), ["0a000214"]);
  // A client that remembers its address gets it from a responder that was started anew.
  const restarted = new Bench();
  restarted.give(dhcp({ options: `${REQUEST}32040a000214` }));
  const [ack] = restarted.takeAll().map(parseDhcp);
  assertEquals([ack.options[53], ack.yiaddr], ["05", "0a000214"]);
});

Deno.test("DHCP: the pool leaves out our own address and ends with the subnet", () => {
  const bench = new Bench({ address: "192.168.7.16", prefix: 27 });
  const offers: string[] = [];
  for (let client = 0; client < 20; client++) {
    const mac = `5254000000${client.toString(16).padStart(2, "0")}`;
    bench.responder.handle(dhcp({ mac, options: DISCOVER }), 14 + 20 + 8 + 244);
    const buffer = new Uint8Array(1514);
    if (bench.responder.next(buffer) > 0) offers.push(hex(buffer.subarray(58, 62)));
  }
  assertEquals(offers.length, 15);
  assertEquals(offers[0], "c0a8070f");
  assertEquals(offers[1], "c0a80711");
  assertEquals(offers[14], "c0a8071e");
});

function chargenRequest(port: number, count: number, size: number, from = GUEST): Uint8Array {
  return udp(port, 19, `${u32(count)}${u16(size)}0000`, { from });
}

Deno.test("chargen: a short datagram gets one line", () => {
  const bench = new Bench();
  bench.give(udp(6000, 19, "0a"));
  const [line, more] = bench.takeAll();
  assertEquals(more, undefined);
  assertEquals(hex(line.subarray(34, 38)), u16(19) + u16(6000));
  assertEquals(line.subarray(42), pattern(74));
});

Deno.test("chargen: count, sizes, sequence numbers, pattern", () => {
  const bench = new Bench();
  for (const size of [18, 19, 500, 1471, 1472]) {
    bench.give(chargenRequest(6000, 300, size));
    assertEquals(bench.responder.queuedFrames, 0);
    assertEquals(bench.responder.chargenPending, 300);
    const frames = bench.takeAll();
    assertEquals(frames.length, 300);
    frames.forEach((frame, sequence) => {
      assertEquals(frame.length, 42 + size);
      assertEquals(read(frame, 42, 4), sequence);
      assertEquals(hex(frame.subarray(0, 6)) + hex(frame.subarray(30, 34)), GUEST_MAC + GUEST);
      assertEquals(hex(frame.subarray(34, 38)), u16(19) + u16(6000));
      assertEquals(frame.subarray(46), pattern(size).subarray(4));
    });
  }
  // More than 2^16 datagrams, so that the checksum sees both halves of the number.
  bench.give(chargenRequest(6000, 70_000, 18));
  assertEquals(bench.takeAll(70_000).length, 70_000);
  assertEquals(bench.responder.counters.chargenFrames, 5 * 300 + 70_000);

  bench.exchange(chargenRequest(6000, 1, 17));
  bench.exchange(chargenRequest(6000, 1, 1473));
  bench.exchange(udp(6000, 19, "0000000100120001"));
  assertEquals(bench.responder.counters.malformed, 3);
  for (const port of [0, 7, 19]) bench.exchange(chargenRequest(port, 1, 100));
  assertEquals(bench.responder.counters.dropped, 3);
});

Deno.test("chargen: four senders take turns, a new request replaces the old one", () => {
  const bench = new Bench();
  const port = (frame: Uint8Array | undefined) => frame && read(frame, 36, 2);
  for (let i = 0; i < 5; i++) bench.give(chargenRequest(6000 + i, 1000, 100 + i));
  assertEquals(bench.responder.counters.dropped, 1);
  assertEquals(Array.from({ length: 6 }, () => port(bench.take())), [
    6000,
    6001,
    6002,
    6003,
    6000,
    6001,
  ]);
  bench.give(chargenRequest(6001, 2, 200));
  bench.give(chargenRequest(6000, 0, 100));
  bench.give(chargenRequest(6002, 0, 100));
  // A place is free again; the same port at another address is another sender.
  bench.give(chargenRequest(6003, 1, 300, "0a000210"));
  assertEquals(bench.responder.chargenPending, 2 + 1 + 999);
  const rest = bench.takeAll();
  assertEquals(rest.length, 1002);
  const of1 = rest.filter((frame) => port(frame) === 6001);
  assertEquals(of1.map((frame) => [frame.length, read(frame, 42, 4)]), [[242, 0], [242, 1]]);
  assertEquals(rest.filter((frame) => hex(frame.subarray(30, 34)) === "0a000210").length, 1);

  bench.give(chargenRequest(6000, 0xffffffff, 100));
  assertEquals(bench.responder.chargenPending, 0xffffffff);
  bench.responder.stopDatagrams();
  assertEquals(bench.takeAll(), []);
});

Deno.test("flood: the rate, the burst, the delay, the frame", () => {
  const bench = new Bench({ floodFramesPerSecond: 1000 });
  assertEquals(bench.take(), undefined);
  assertEquals(bench.responder.floodDelayMs(), 1);
  bench.nowMs += 0.5;
  assertEquals(bench.responder.floodDelayMs(), 0.5);
  assertEquals(bench.take(), undefined);
  let sequence = 0;
  const expectFrames = (count: number) => {
    const frames = bench.takeAll();
    assertEquals(frames.length, count);
    for (const frame of frames) {
      assertEquals(frame.length, 1442);
      assertEquals(hex(frame.subarray(0, 6)), "ffffffffffff");
      assertEquals(hex(frame.subarray(30, 34)), "0a0002ff");
      assertEquals(read(frame, 36, 2), 9);
      assertEquals(read(frame, 42, 4), sequence++);
    }
  };
  bench.nowMs += 0.5;
  assertEquals(bench.responder.floodDelayMs(), 0);
  expectFrames(1);
  bench.nowMs += 10;
  expectFrames(10);
  bench.nowMs += 5000;
  expectFrames(64);
  // In steps that are no multiples of the interval, a second still has its thousand frames.
  for (let i = 0; i < 300; i++) {
    bench.nowMs += 10 / 3;
    sequence += bench.takeAll().length;
  }
  assertEquals(sequence, 75 + 1000);
  // A clock that goes backwards neither gives nor takes.
  bench.nowMs -= 100;
  expectFrames(0);
  assertEquals(bench.responder.counters.floodFrames, 1075);
  // An owner that sleeps for exactly the delay finds a frame, whatever the rounding.
  const slow = new Bench({ floodFramesPerSecond: 7 });
  for (let i = 0; i < 1000; i++) {
    slow.nowMs += slow.responder.floodDelayMs();
    assertEquals(slow.takeAll().length, 1);
  }
  assertEquals(new Bench().responder.floodDelayMs(), Infinity);
});

Deno.test("answers go before chargen, chargen before the flood", () => {
  const bench = new Bench({ floodFramesPerSecond: 1000 });
  bench.give(chargenRequest(6000, 2, 100));
  bench.nowMs += 2;
  bench.give(bytes(ARP_REQUEST));
  assertEquals(bench.takeAll().map((frame) => frame.length), [42, 142, 142, 1442, 1442]);
});

Deno.test("a full ring drops and counts, and goes on after it", () => {
  const bench = new Bench();
  for (let i = 0; i < 300; i++) bench.give(bytes(i % 2 === 0 ? ARP_REQUEST : PING));
  assertEquals(bench.responder.queuedFrames, 256);
  assertEquals(bench.responder.counters.dropped, 44);
  assertEquals(bench.takeAll().map((frame) => frame.length), Array(128).fill([42, 98]).flat());
  bench.exchange(bytes(PING), PONG);
  // A DHCP answer that found no room leaves the address to another client.
  for (let i = 0; i < 256; i++) bench.give(bytes(ARP_REQUEST));
  bench.give(dhcp({ options: DISCOVER }));
  bench.give(udp(6000, 19, ""));
  assertEquals(bench.responder.counters.dropped, 46);
  bench.takeAll();
  bench.give(dhcp({ mac: "525400000009", options: DISCOVER }));
  assertEquals(parseDhcp(bench.takeOne()).yiaddr, GUEST);
});

Deno.test("a target that is too small loses its frame, not the ones after it", () => {
  const bench = new Bench({ floodFramesPerSecond: 1000 });
  const small = new Uint8Array(60);
  bench.give(bytes(PING));
  bench.give(bytes(ARP_REQUEST));
  bench.give(chargenRequest(6000, 1, 100));
  bench.nowMs += 1;
  assertEquals(Array.from({ length: 5 }, () => bench.responder.next(small)), [0, 42, 0, 0, 0]);
  assertEquals(bench.responder.counters.dropped, 3);
  assertEquals(bench.responder.counters.framesOut, 1);
});

Deno.test("the ring wraps, refuses when full, asserts on misuse", () => {
  const ring = new FrameRing(3);
  const target = new Uint8Array(16);
  assertEquals([ring.peekLength(), ring.shift(target)], [0, 0]);
  for (let i = 0; i < 10; i++) {
    for (let j = 0; j < 3; j++) {
      ring.slot[0] = i * 3 + j;
      assert(ring.commit(j + 1), "full too early");
    }
    // What finds no room leaves those that wait alone.
    ring.slot[0] = 0xff;
    assertEquals(ring.commit(1), false);
    for (let j = 0; j < 3; j++) {
      assertEquals(ring.peekLength(), j + 1);
      assertEquals(ring.shift(target), j + 1);
      assertEquals(target[0], i * 3 + j);
    }
  }
  assertThrows(() => ring.commit(0), RangeError);
  assertThrows(() => ring.commit(2049), RangeError);
});

Deno.test("wrong options are refused with one line", () => {
  for (
    const options of [
      { address: "10.0.2" },
      { address: "10.0.2.256" },
      { address: "10.0.2.x" },
      { address: "10.0.2.0" },
      { address: "10.0.2.255" },
      { address: "224.0.0.1" },
      { prefix: 28 },
      { prefix: 7 },
      { prefix: 8.5 },
      { mac: "52:55:0a:00:02" },
      { mac: "53:55:0a:00:02:02" },
      { mac: "52:55:0a:00:02:0g" },
      { floodFramesPerSecond: -1 },
      { floodFramesPerSecond: NaN },
    ]
  ) {
    const error = assertThrows(() => new Responder(options, () => 0), TypeError);
    assert(!error.message.includes("\n"));
  }
});

Deno.test("malformed: every truncation of every kind of frame", () => {
  const bench = new Bench();
  for (const frame of samples()) {
    for (let length = 0; length < frame.length; length++) {
      // The rest of the frame is behind the cut, where a reader that does not check would find it.
      bench.responder.handle(frame, length);
      const { framesIn, malformed } = bench.responder.counters;
      assertEquals(framesIn, malformed);
    }
  }
  for (const length of [-1, NaN, 1.5, Infinity, 99]) {
    bench.responder.handle(new Uint8Array(60), length);
  }
  assertEquals(bench.responder.counters.framesIn, bench.responder.counters.malformed);
  assertEquals(bench.takeAll(), []);
});

/** One frame of each kind that gets an answer. */
function samples(): Uint8Array[] {
  return [
    bytes(ARP_REQUEST),
    bytes(PING),
    bytes(STRAY),
    echo(400),
    udp(5000, 9, "aabb"),
    udp(6000, 19, "aa"),
    chargenRequest(6000, 3, 200),
    dhcp({ options: DISCOVER }),
    dhcp({ options: `${REQUEST}3204${GUEST}${SERVER_ID}3d0701${GUEST_MAC}` }),
  ];
}

/** Makes the checksums of a mutated frame right again, so that the mutation gets past them. */
function repair(frame: Uint8Array): void {
  if (frame.length < 34 || read(frame, 12, 2) !== 0x0800) return;
  const put = (at: number, value: number) => {
    if (at + 1 >= frame.length) return;
    frame[at] = value >> 8;
    frame[at + 1] = value & 255;
  };
  const start = 14 + (frame[14] & 15) * 4;
  const end = 14 + read(frame, 16, 2);
  if (frame[23] === 17) put(start + 6, 0);
  if (frame[23] === 1 && end <= frame.length) {
    put(start + 2, 0);
    put(start + 2, naiveChecksum(frame.subarray(start, end)));
  }
  put(24, 0);
  put(24, naiveChecksum(frame.subarray(14, start)));
}

Deno.test("malformed: random mutations never throw, and every answer is whole", () => {
  for (const seed of [1, 0x5eed, Math.floor(Math.random() * 2 ** 32)]) {
    console.log(`seed ${seed}`);
    const random = generator(seed);
    const bench = new Bench({ floodFramesPerSecond: 100 });
    const kinds = samples();
    for (let round = 0; round < 20_000; round++) {
      bench.nowMs += random(30);
      const frame = kinds[random(kinds.length)].slice();
      for (let count = random(4); count > 0; count--) {
        const at = random(3) === 0 ? random(frame.length) : random(Math.min(frame.length, 60));
        frame[at] = random(2) === 0 ? [0, 1, 0x7f, 0x80, 0xff][random(5)] : random(256);
      }
      const cut = random(4) === 0 ? frame.slice(0, random(frame.length + 1)) : frame;
      if (random(4) !== 0) repair(cut);
      bench.give(cut);
      for (let count = random(4); count > 0; count--) bench.take();
    }
    const { framesIn, malformed, ignored, checksumErrors, framesOut } = bench.responder.counters;
    assertEquals(framesIn, 20_000);
    for (const count of [malformed, ignored, checksumErrors, framesOut]) assert(count > 100);
    bench.responder.stopDatagrams();
  }
});
