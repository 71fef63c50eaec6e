/**
 * Frames: a guest's into the responder and the hub, and the stream of a passt into its port. They are sound ones with
 * changes, whose checksums are made good again or need not be looked at, or mere bytes.
 *
 * Nothing throws; what the responder sends is whole, is no more than a few frames for each that came, and does not
 * depend on bytes behind the frame; no frame is longer than the room that was asked for it, and nothing is written
 * around that.
 */

import { assert, assertEquals } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { listenUnix, type UnixStream } from "../../src/linux/unix_socket.ts";
import { Hub } from "../../src/network/hub.ts";
import { PasstPort } from "../../src/network/passt.ts";
import type { NetworkPort } from "../../src/network/port.ts";
import { createLog } from "../../src/observe/log.ts";
import {
  Bench,
  bytes,
  GUEST,
  GUEST_MAC,
  HOST,
  icmpv6,
  ipv4,
  ipv6,
  naiveChecksum,
  udp,
  udp6,
} from "../network/responder_support.ts";
import { GuestMemory, Listener } from "../network/support.ts";
import { withDirectory } from "../support/leaks.ts";
import type { Random } from "../support/mock_driver.ts";
import { mutate } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { assertFew, RoundReactor } from "./round_reactor.ts";

const BROADCAST = "ffffffffffff";
/** BOOTP and DHCPDISCOVER (RFC 2131), from a guest without an address. */
const DISCOVER = `01010600 12345678 00000000${"00".repeat(16)}${GUEST_MAC}${"00".repeat(202)}` +
  "63825363 350101 3204 0a00020f 37020103 ff";
const NOBODY = { mac: BROADCAST, from: "00000000", to: "ffffffff" };

/** What the responder answers, or at least reads to its end. */
const SOUND: readonly Uint8Array[] = [
  bytes(`${BROADCAST}${GUEST_MAC}0806 0001080006040001 ${GUEST_MAC}${GUEST}000000000000${HOST}`),
  ipv4(1, "0800 f7ff 0000 0000"),
  ipv4(1, `0800 e5f6 1200 0009 ${"00".repeat(56)}`),
  ipv4(1, "0800 f7ff 0000 0000", { ipOptions: "01010101" }),
  udp(1000, 9, "0102030405"),
  udp(1000, 19, "000000020040"),
  udp(1000, 4000, "00"),
  udp(68, 67, DISCOVER.replace(/\s/g, ""), NOBODY),
  ipv6(58, "8000 0000 0001 0002"),
  icmpv6("8000", "00010002"),
  icmpv6("8500", "00000000"),
  icmpv6("8700", `00000000${"fd000000000000000000000000000002"}0101${GUEST_MAC}`),
  ipv6(58, "8000 0000 0001 0002", { hopByHop: "010400000000" }),
  udp6(1000, 19, "000000020040"),
  udp6(1000, 4000, "00"),
];
/** "Chargen" answers a datagram with as many as it asks for; all others with one frame or two. */
const MOST_ANSWERS = 70_000;

/** The header's checksum of IPv4 is what its bytes say, so that what lies behind is looked at. */
function repair(frame: Uint8Array): void {
  const size = 4 * (frame[14]! & 15);
  if (frame[12] !== 8 || frame[13] !== 0 || size < 20 || frame.length < 14 + size) return;
  frame.fill(0, 24, 26);
  const sum = naiveChecksum(frame.subarray(14, 14 + size));
  frame[24] = sum >> 8;
  frame[25] = sum & 0xff;
}

function anyFrame(random: Random): Uint8Array {
  let frame = random.pick(SOUND).slice();
  if (random.chance(0.2)) frame = frame.slice(0, random.below(frame.length + 1));
  if (random.chance(0.1)) {
    const longer = new Uint8Array(frame.length + random.below(100));
    longer.set(frame);
    frame = longer;
  }
  if (random.chance(0.9)) mutate(new DataView(frame.buffer), random);
  if (random.chance(0.8)) repair(frame);
  return frame;
}

const responder: Fuzzer["open"] = async (use) => {
  let answers = 0, frames = 0;
  const round = (random: Random) => {
    const [one, other] = [new Bench(), new Bench()];
    for (let count = 1 + random.below(20); count > 0; count--) {
      const frame = anyFrame(random);
      const trusted = random.chance(0.5);
      frames++;
      // The same frame, with other bytes behind it.
      const outcomes = [one, other].map((bench, n) => {
        const buffer = new Uint8Array(frame.length + 64).fill(0xee - n);
        buffer.set(frame);
        bench.responder.handle(buffer, frame.length, trusted);
        return takeSome(bench);
      });
      assertEquals(outcomes[0], outcomes[1], "an answer depends on bytes behind the frame");
      answers += outcomes[0]!.length;
      for (const bench of [one, other]) bench.nowMs += random.below(200);
    }
    const { framesIn, framesOut } = one.responder.counters;
    assert(framesOut <= framesIn * MOST_ANSWERS);
  };
  const finish = (rounds: number) => {
    assert(rounds < 1000 || answers > rounds, "the responder answers");
    return `${frames} frames, ${answers} answers`;
  };
  await use({ round, finish });
};

/** The first frames that wait, each of which is looked at. */
function takeSome(bench: Bench): Uint8Array[] {
  const taken: Uint8Array[] = [];
  for (let frame; taken.length < 8 && (frame = bench.take()) !== undefined;) taken.push(frame);
  return taken;
}

/** Bytes around the room that a frame is given. */
const AROUND = 0xa7;
const ROOM_AT = 4096;

/** Takes frames of a port into rooms that are as large as it asked for; returns how many. */
function takeFrames(port: NetworkPort, memory: GuestMemory, random: Random): number {
  for (let count = 0;; count++) {
    const wanted = port.nextLength();
    if (wanted === 0 || count === 64) return count;
    if (random.chance(0.1)) {
      port.discard();
      continue;
    }
    assert(wanted < GuestMemory.size - 2 * ROOM_AT, `a frame of ${wanted} bytes`);
    const end = ROOM_AT + wanted;
    memory.bytes.fill(AROUND, ROOM_AT - 64, ROOM_AT).fill(AROUND, end, end + 64);
    const length = port.receive(memory.buffer(ROOM_AT, wanted, [12, 1 + random.below(2000)]), 0);
    assert(length <= wanted, `${length} bytes for ${wanted}`);
    for (const at of [ROOM_AT - 64, end]) {
      assert(
        memory.bytes.subarray(at, at + 64).every((byte) => byte === AROUND),
        "wrote around it",
      );
    }
  }
}

const hub: Fuzzer["open"] = async (use) => {
  using reactor = new RoundReactor();
  using whole = new Hub(reactor);
  using memory = new GuestMemory();
  const ports = Array.from({ length: 3 }, () => whole.connect());
  for (const port of ports) port.open(new Listener());
  let frames = 0, taken = 0;
  const round = (random: Random) => {
    for (let count = random.below(100); count > 0; count--) {
      const frame = random.chance(0.1) ? new Uint8Array(random.below(70_000)) : anyFrame(random);
      const address = random.below(8);
      if (frame.length > 12 && random.chance(0.8)) frame.set([2, 0, 0, 0, 0, address], 6);
      if (frame.length > 12 && random.chance(0.5)) frame.set([2, 0, 0, 0, 0, random.below(8)], 0);
      const list = memory.frame(frame, [1 + random.below(100), 1 + random.below(1000)]);
      frames++;
      assert(random.pick(ports).send(list));
      if (random.chance(0.1)) taken += takeFrames(random.pick(ports), memory, random);
    }
  };
  await use({ round, finish: () => `${frames} frames, ${taken} taken` });
};

const passt: Fuzzer["open"] = (use) =>
  withDirectory(async (directory) => {
    using reactor = new RoundReactor();
    using listening = listenUnix(`${directory}/s`);
    const said: string[] = [];
    const log = createLog("fuzz", "info", (line) => said.push(line));
    using port = new PasstPort({ socket: `${directory}/s` }, reactor, log);
    port.open(new Listener());
    using memory = new GuestMemory();
    const block = allocate(1 << 17);
    let stream: UnixStream | undefined;
    let taken = 0, connections = 0;
    const round = async (random: Random) => {
      said.length = 0;
      const startMs = reactor.now();
      const before = stream;
      if (before === undefined || before.isPeerGone) {
        before?.[Symbol.dispose]();
        await reactor.sleep(2000);
        stream = listening.accept();
        connections++;
      }
      const peer = stream;
      if (peer === undefined) throw new Error("the port does not connect again");
      for (let count = random.below(40); count > 0; count--) {
        const frame = random.chance(0.05) ? new Uint8Array(random.below(69_000)) : anyFrame(random);
        block.view.setUint32(0, frame.length, false);
        block.bytes.set(frame, 4);
        let size = 4 + frame.length;
        if (random.chance(0.01)) {
          mutate(new DataView(block.bytes.buffer, block.bytes.byteOffset, 8), random);
        }
        if (random.chance(0.05)) {
          size = random.below(size + 1);
        }
        for (let sent = 0; sent < size;) {
          const piece = random.chance(0.5)
            ? size - sent
            : Math.min(size - sent, 1 + random.below(99));
          const done = peer.send(block.address + BigInt(sent), piece);
          if (done <= 0) break;
          sent += done;
        }
        if (random.chance(0.3)) await reactor.sleep(1);
        if (random.chance(0.5)) taken += takeFrames(port, memory, random);
        if (random.chance(0.2)) port.send(memory.frame(anyFrame(random)));
      }
      // What the port sent to passt is of no interest, but a full socket is not wanted for ever.
      while (peer.receive(block.address, block.bytes.length) > 0);
      if (random.chance(0.05)) {
        peer[Symbol.dispose]();
        stream = undefined;
      }
      await reactor.sleep(1);
      taken += takeFrames(port, memory, random);
      assertFew(said, reactor.now() - startMs);
    };
    await use({
      round: (random) => reactor.round(() => round(random)),
      finish: () => `${taken} frames taken, ${connections} connections`,
    });
    stream?.[Symbol.dispose]();
  });

/** See the head of this file. */
export const FRAME_FUZZERS: readonly Fuzzer[] = [
  { name: "responder", what: "any frames into the built-in host", open: responder },
  { name: "hub", what: "any frames through a hub", open: hub },
  { name: "passt-stream", what: "any stream of a passt into its port", open: passt },
];
