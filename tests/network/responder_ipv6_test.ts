/** The responder's IPv6: neighbour discovery, echo, UDP, against frames written down from the RFCs. */

import { assertEquals, assertThrows } from "@std/assert";
import { parseIpv6Address } from "../../src/network/protocols/ipv6.ts";
import { Responder } from "../../src/network/responder/responder.ts";
import {
  Bench,
  bytes,
  generator,
  GUEST6,
  GUEST_LINK_LOCAL,
  GUEST_MAC,
  hex,
  HOST6,
  HOST_LINK_LOCAL,
  HOST_MAC,
  icmpv6,
  ipv6,
  pattern,
  read,
  u16,
  u32,
  udp6,
} from "./responder_support.ts";

const NOBODY = "00".repeat(16);
const ALL_NODES = "ff020000000000000000000000000001";
const ALL_ROUTERS = "ff020000000000000000000000000002";
/** Solicited-node groups of fd00::2 and of our link-local address. */
const SOLICITED = "ff0200000000000000000001ff000002";
const SOLICITED_LINK_LOCAL = "ff0200000000000000000001ff000202";
const SOLICITED_MAC = "3333ff000002";

/** ICMPv6 frames of the responder: who to, what, without the checksum, which is verified by the bench. */
function parts(frame: Uint8Array): Record<string, string> {
  assertEquals(frame[20], 58);
  return {
    mac: hex(frame.subarray(0, 6)),
    from: hex(frame.subarray(22, 38)),
    to: hex(frame.subarray(38, 54)),
    message: hex(frame.subarray(54, 56)) + hex(frame.subarray(58)),
  };
}

function solicit(target: string, options: Parameters<typeof icmpv6>[2] & { ndOptions?: string }) {
  return icmpv6("8700", `00000000${target}${options.ndOptions ?? `0101${GUEST_MAC}`}`, options);
}

Deno.test("IPv6 addresses in, bytes out", () => {
  assertEquals(hex(parseIpv6Address("fd00::2")), HOST6);
  assertEquals(hex(parseIpv6Address("::")), NOBODY);
  assertEquals(hex(parseIpv6Address("1:2:3:4:5:6:7:8")), "00010002000300040005000600070008");
  assertEquals(hex(parseIpv6Address("1::")), "0001" + "00".repeat(14));
  assertEquals(hex(parseIpv6Address("FE80::5055:aff:fe00:202")), HOST_LINK_LOCAL);
  for (
    const bad of [
      "",
      ":",
      ":::",
      "1::2::3",
      "1:2:3",
      "1:2:3:4:5:6:7:8:9",
      "g::",
      "12345::",
      "::1%x",
    ]
  ) {
    assertThrows(() => parseIpv6Address(bad), TypeError);
  }
  for (const address6 of ["fe80::1", "ff02::1", "::1", "::", "10.0.2.2"]) {
    assertThrows(() => new Responder({ address6 }, () => 0), TypeError);
  }
});

Deno.test("neighbour solicitation: the golden advertisement", () => {
  const bench = new Bench();
  bench.exchange(
    bytes(`3333ff000002 ${GUEST_MAC} 86dd 60000000 0020 3a ff
      fd00000000000000505400fffe123456 ff0200000000000000000001ff000002
      8700 7520 00000000 fd000000000000000000000000000002 0101 525400123456`),
    `${GUEST_MAC} ${HOST_MAC} 86dd 60000000 0020 3a ff
      fd000000000000000000000000000002 fd00000000000000505400fffe123456
      8800 bc88 e0000000 fd000000000000000000000000000002 0201 52550a000202`,
  );
  assertEquals(bench.responder.counters.neighbourAdvertisements, 1);
});

Deno.test("neighbour solicitation: both addresses, unicast or not; nobody else's", () => {
  const bench = new Bench();
  const advertisement = (target: string, flags: string) =>
    `8800${flags}000000${target}0201${HOST_MAC}`;
  for (const to of [HOST_LINK_LOCAL, SOLICITED_LINK_LOCAL]) {
    bench.give(solicit(HOST_LINK_LOCAL, { to, from: GUEST_LINK_LOCAL }));
    assertEquals(parts(bench.takeOne()), {
      mac: GUEST_MAC,
      from: HOST_LINK_LOCAL,
      to: GUEST_LINK_LOCAL,
      message: advertisement(HOST_LINK_LOCAL, "e0"),
    });
  }
  bench.exchange(solicit(GUEST6, { to: SOLICITED }));
  bench.exchange(solicit("fd000000000000000000000000010002", { to: SOLICITED }));
  assertEquals(bench.responder.counters.ignored, 2);
});

Deno.test("duplicate address detection: a guest's own address is not disturbed, ours is defended", () => {
  const bench = new Bench();
  const probe = (target: string, to: string) =>
    solicit(target, { from: NOBODY, to, mac: SOLICITED_MAC, ndOptions: "" });
  bench.exchange(probe(GUEST6, "ff0200000000000000000001ff123456"));
  bench.exchange(probe(GUEST_LINK_LOCAL, "ff0200000000000000000001ff123456"));
  // The same group as ours, but another address.
  bench.exchange(
    probe("fc000000000000000000000000000002", SOLICITED),
  );
  assertEquals(bench.responder.counters.neighbourAdvertisements, 0);
  bench.give(probe(HOST6, SOLICITED));
  assertEquals(parts(bench.takeOne()), {
    mac: "333300000001",
    from: HOST6,
    to: ALL_NODES,
    message: `8800a0000000${HOST6}0201${HOST_MAC}`,
  });
});

Deno.test("router solicitation: a prefix for autoconfiguration, and no default router", () => {
  const bench = new Bench({ address6: "fec0::2" });
  bench.identity = {
    mac: HOST_MAC,
    address: "",
    address6: "fec00000000000000000000000000002",
    linkLocal: HOST_LINK_LOCAL,
  };
  const message = `8600 40 00 0000 00000000 00000000
    0304 40 c0 00015180 00003840 00000000 fec00000000000000000000000000000 0101${HOST_MAC}`
    .replace(/\s/g, "");
  const mac = "333300000002";
  bench.give(icmpv6("8500", `000000000101${GUEST_MAC}`, {
    from: GUEST_LINK_LOCAL,
    to: ALL_ROUTERS,
    mac,
  }));
  assertEquals(parts(bench.takeOne()), {
    mac: GUEST_MAC,
    from: HOST_LINK_LOCAL,
    to: GUEST_LINK_LOCAL,
    message,
  });
  bench.give(icmpv6("8500", "00000000", { from: NOBODY, to: ALL_ROUTERS, mac }));
  assertEquals(parts(bench.takeOne()), {
    mac: "333300000001",
    from: HOST_LINK_LOCAL,
    to: ALL_NODES,
    message,
  });
  assertEquals(bench.responder.counters.routerAdvertisements, 2);
});

Deno.test("neighbour discovery: what RFC 4861 6.1.1 and 7.1.1 have discarded", () => {
  const bench = new Bench();
  const router = { from: GUEST_LINK_LOCAL, to: ALL_ROUTERS };
  const bad = [
    solicit(HOST6, { to: SOLICITED, hopLimit: 254 }),
    solicit(ALL_NODES, { to: SOLICITED }),
    solicit(HOST6, { to: SOLICITED, ndOptions: "0100525400123456" }),
    solicit(HOST6, { to: SOLICITED, ndOptions: "0102525400123456" }),
    solicit(HOST6, { to: SOLICITED, ndOptions: "01" }),
    solicit(HOST6, { to: SOLICITED, from: NOBODY }),
    solicit(HOST6, { to: HOST6, from: NOBODY, ndOptions: "" }),
    icmpv6("8700", `00000000${HOST6.slice(0, 30)}`, { to: SOLICITED }),
    icmpv6("8500", "00000000", { ...router, hopLimit: 64 }),
    icmpv6("8500", `000000000101${GUEST_MAC}`, { ...router, from: NOBODY }),
  ];
  for (const frame of bad) bench.exchange(frame);
  assertEquals(bench.responder.counters.malformed, bad.length);
  const wrong = solicit(HOST6, { to: SOLICITED });
  wrong[56] ^= 1;
  bench.exchange(wrong);
  assertEquals(bench.responder.counters.checksumErrors, 1);
});

Deno.test("ping -6: every size up to 1452 comes back whole, from the address that was asked", () => {
  const bench = new Bench();
  for (let size = 0; size <= 1452; size += size < 64 || size > 1440 ? 1 : 37) {
    const data = hex(Uint8Array.from({ length: size }, (_, i) => i % 253));
    for (const to of [HOST6, HOST_LINK_LOCAL]) {
      bench.give(icmpv6("8000", `00070009${data}`, { to, hopLimit: 64 }));
      assertEquals(parts(bench.takeOne()), {
        mac: GUEST_MAC,
        from: to,
        to: GUEST6,
        message: `810000070009${data}`,
      });
    }
  }
  bench.exchange(icmpv6("8000", `00070009${"00".repeat(1453)}`));
  assertEquals(bench.responder.counters.dropped, 1);
  // Not to groups, not to others, not from nobody or ourselves.
  bench.exchange(icmpv6("8000", "00070009", { to: ALL_NODES }));
  bench.exchange(icmpv6("8000", "00070009", { to: GUEST6 }));
  bench.exchange(icmpv6("8000", "00070009", { from: NOBODY }));
  assertEquals(bench.responder.counters.ignored, 3);
  for (const from of [HOST6, HOST_LINK_LOCAL, ALL_NODES, "0".repeat(31) + "1"]) {
    bench.exchange(icmpv6("8000", "00070009", { from }));
  }
  assertEquals(bench.responder.counters.malformed, 4);
});

Deno.test("IPv6: hop-by-hop options are stepped over or obeyed, other headers ignored", () => {
  const bench = new Bench();
  const ping = (hopByHop: string) => icmpv6("8000", "00070009", { hopByHop });
  for (
    const skipped of [
      "050200000100",
      "000000000000",
      "010400000000",
      "1e0401020304" + "0106000000000000",
    ]
  ) {
    bench.give(ping(skipped));
    assertEquals(parts(bench.takeOne()).message, "810000070009");
  }
  // Unknown with action bits, a jumbo payload.
  for (const refused of ["4e0400000000", "c20400010000"]) bench.exchange(ping(refused));
  assertEquals(bench.responder.counters.dropped, 2);
  for (const bad of ["010500000000", "000000000005"]) bench.exchange(ping(bad));
  const long = ping("010400000000");
  long[55] = 2;
  bench.exchange(long);
  assertEquals(bench.responder.counters.malformed, 3);
  for (const protocol of [43, 44, 60, 59, 132]) bench.exchange(ipv6(protocol, "00".repeat(16)));
  assertEquals(bench.responder.counters.ignored, 5);
});

Deno.test("UDP over IPv6: discard, chargen, port unreachable, a checksum that must be there", () => {
  const bench = new Bench();
  bench.exchange(udp6(5000, 9, "aabbcc"));
  assertEquals(bench.responder.counters.discardedBytes, 3);

  bench.give(udp6(6000, 19, "0a"));
  const line = bench.takeOne();
  assertEquals(hex(line.subarray(54, 58)), u16(19) + u16(6000));
  assertEquals(line.subarray(62), pattern(74));

  const request = (count: number, size: number) =>
    udp6(6000, 19, `${u32(count)}${u16(size)}0000`, { to: HOST_LINK_LOCAL });
  bench.give(request(3, 1452));
  for (let sequence = 0; sequence < 3; sequence++) {
    const frame = bench.takeOne();
    assertEquals(frame.length, 1514);
    assertEquals(read(frame, 62, 4), sequence);
    assertEquals(hex(frame.subarray(22, 38)), HOST_LINK_LOCAL);
    assertEquals(frame.subarray(66), pattern(1452).subarray(4));
  }
  bench.exchange(request(3, 1453));
  assertEquals(bench.responder.counters.malformed, 1);

  const stray = udp6(5000, 4242, "686921");
  bench.give(stray);
  assertEquals(parts(bench.takeOne()).message, `010400000000${hex(stray.subarray(14))}`);
  const long = udp6(5000, 4242, "11".repeat(1400));
  bench.give(long);
  assertEquals(parts(bench.takeOne()).message, `010400000000${hex(long.subarray(14, 14 + 1232))}`);

  const none = udp6(5000, 9, "aabbcc");
  none[60] = none[61] = 0;
  bench.exchange(none);
  const wrong = udp6(5000, 9, "aabbcc");
  wrong[61] ^= 1;
  bench.exchange(wrong);
  assertEquals(bench.responder.counters.checksumErrors, 2);
  // A checksum that the guest left to its device.
  bench.give(wrong, true);
  assertEquals(bench.responder.counters.discardedBytes, 6);
});

Deno.test("IPv6: every truncation is malformed, no mutation throws", () => {
  const kinds = [
    solicit(HOST6, { to: SOLICITED }),
    icmpv6("8500", `000000000101${GUEST_MAC}`, { from: GUEST_LINK_LOCAL, to: ALL_ROUTERS }),
    icmpv6("8000", "000700091122", { hopByHop: "050200000100" }),
    udp6(6000, 19, "0a"),
    udp6(5000, 4242, "686921"),
  ];
  const bench = new Bench();
  for (const frame of kinds) {
    for (let length = 0; length < frame.length; length++) bench.responder.handle(frame, length);
  }
  assertEquals(bench.responder.counters.malformed, bench.responder.counters.framesIn);
  const seed = Math.floor(Math.random() * 2 ** 32);
  console.log(`seed ${seed}`);
  const random = generator(seed);
  for (let round = 0; round < 20_000; round++) {
    const frame = kinds[random(kinds.length)].slice();
    for (let count = random(4); count > 0; count--) frame[random(frame.length)] = random(256);
    bench.nowMs += random(30);
    // Trusted, so that the mutation gets past the checksum.
    bench.give(random(4) === 0 ? frame.slice(0, random(frame.length + 1)) : frame, random(2) === 0);
    // The addresses that it answers from may be any group's or ours; the bench checks the rest.
    bench.takeAll();
  }
});
