/**
 * A socket device between a guest and host programs, all of whom do anything at any time: sensible things, whose streams must
 * arrive whole and within the credit, and among them packets that make no sense, which may end their own connection and no
 * other.
 */

import { assert, assertEquals } from "@std/assert";
import { libc } from "../../src/linux/libc.ts";
import type { UnixListener, UnixStream } from "../../src/linux/unix_socket.ts";
import {
  CID,
  CREDIT_REQUEST,
  CREDIT_UPDATE,
  encode,
  GRANT,
  Guest,
  HEADER,
  HOST,
  HOST_PORT,
  type Packet,
  pattern,
  readBytes,
  REQUEST,
  RESPONSE,
  ROOM,
  RST,
  RW,
  RX,
  SHUTDOWN,
  writeBytes,
} from "../devices/vsock/support.ts";
import { held, leftBehind } from "../support/leaks.ts";
import type { Random } from "../support/mock_driver.ts";
import type { Fuzzer } from "./fuzzer.ts";

const STEPS = 60;
const RECEIVE = 1, SEND = 2;
const WORDS = [0, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/** What is known of a connection for which both ends have done nothing wrong. */
interface Link {
  readonly guestPort: number;
  readonly hostPort: number;
  readonly program: UnixStream;
  /** Has the guest been given the connection? */
  isOpen: boolean;
  /** May the device end it? */
  mayEnd: boolean;
  /** Of the guest's stream: what was sent, how much the device has handed on, what the program has read. */
  sent: number;
  taken: number;
  read: number;
  /** Of the program's: what it wrote, what the guest has, and the credit it gave. */
  written: number;
  got: number;
  bufAlloc: number;
  fwdCnt: number;
  /** Flags of SHUTDOWN, of the guest and of the device. */
  guestShut: number;
  hostShut: number;
  isGone: boolean;
}

/** One round: a guest that begins, and whoever is there. */
class Round {
  readonly #links: Link[] = [];
  /** By the guest's port, each of which is asked for once. */
  readonly #dialled = new Map<number, UnixStream>();
  readonly #others: UnixStream[] = [];
  #nextPort = 1;
  bytes = 0;

  constructor(
    readonly guest: Guest,
    readonly listener: UnixListener,
    readonly random: Random,
  ) {}

  run(): void {
    const { random } = this;
    this.guest.rig.restart();
    const steps = [
      ...[this.#connect, this.#dial, this.#send, this.#send, this.#write, this.#write, this.#read],
      ...[
        this.#credit,
        this.#room,
        this.#room,
        this.#shut,
        this.#leave,
        this.#nonsense,
        this.#wait,
      ],
    ];
    for (let i = 0; i < STEPS; i++) {
      random.pick(steps).call(this);
      this.#hear();
      assertEquals(this.guest.rig.resets, []);
    }
    this.#finish();
  }

  #begin(guestPort: number, hostPort: number, program: UnixStream, isOpen: boolean): void {
    const bufAlloc = isOpen ? 0 : ROOM;
    this.#links.push({
      ...{ guestPort, hostPort, program, isOpen, mayEnd: false, sent: 0, taken: 0, read: 0 },
      ...{ written: 0, got: 0, bufAlloc, fwdCnt: 0, guestShut: 0, hostShut: 0, isGone: false },
    });
  }

  #pick(): Link | undefined {
    // One of them more often, so that its backlog is filled and emptied.
    return this.random.chance(0.5) ? this.#links.at(-1) : this.random.pick(this.#links);
  }

  /** Nothing is expected of it any more, but that others do not notice. */
  #forget(link: Link): void {
    this.#links.splice(this.#links.indexOf(link), 1);
    this.#others.push(link.program);
  }

  #say(link: Link, packet: Partial<Packet>): void {
    const { guestPort: srcPort, hostPort: dstPort, bufAlloc, fwdCnt } = link;
    this.guest.send({ srcPort, dstPort, bufAlloc, fwdCnt, ...packet });
    this.guest.rig.queues[1].takeUsed();
  }

  #connect(): void {
    const srcPort = this.#nextPort++;
    this.guest.send({ op: REQUEST, srcPort });
    const program = this.listener.accept();
    if (program !== undefined) this.#begin(srcPort, HOST_PORT, program, false);
  }

  #dial(): void {
    const port = this.#nextPort++;
    if (this.#dialled.size < 8) this.#dialled.set(port, this.guest.dial(`CONNECT ${port}\n`));
  }

  #send(): void {
    const link = this.#pick();
    if (link === undefined || !link.isOpen || (link.guestShut & SEND) !== 0) return;
    // Sometimes more than the kernel keeps for the program.
    const count = this.random.pick([1, 1, 20]);
    for (let i = 0; i < count && link.isOpen; i++) {
      const most = Math.min(0x8000, GRANT - (link.sent - link.taken));
      const length = this.random.below(most + 1);
      this.#say(link, { payload: pattern(link.sent, length) });
      link.sent += length;
      this.bytes += length;
      if (count > 1) this.#room();
      this.#hear();
    }
  }

  #write(): void {
    const link = this.#pick();
    if (link === undefined || link.isGone || (link.hostShut & SEND) !== 0) return;
    const written = writeBytes(link.program, pattern(link.written, this.random.below(20_000)));
    assert(written >= 0 || (link.guestShut & RECEIVE) !== 0, "the program cannot write");
    link.written += Math.max(0, written);
  }

  #read(): void {
    const link = this.#pick();
    if (link !== undefined && !link.isGone) this.#readFrom(link);
  }

  #readFrom(link: Link): void {
    const bytes = readBytes(link.program);
    if (bytes === undefined) return;
    const wanted = pattern(link.read, bytes.length);
    assert(bytes.every((byte, i) => byte === wanted[i]), "the program reads other bytes");
    link.read += bytes.length;
    assert(link.read <= link.sent);
    if (bytes.length === 0) {
      assert(link.mayEnd || (link.guestShut & SEND) !== 0, "the program reads an end");
      assert(link.mayEnd || link.read === link.sent, "something is missing before the end");
    }
  }

  #credit(): void {
    const link = this.#pick();
    if (link === undefined) return;
    link.fwdCnt = link.got - this.random.below(Math.min(link.got - link.fwdCnt, 1000) + 1);
    link.bufAlloc = this.random.pick([0, 100, 5000, ROOM]);
    this.#say(link, { op: this.random.pick([CREDIT_UPDATE, CREDIT_REQUEST]) });
  }

  #room(): void {
    const count = Math.min(this.random.below(16), 60 - this.guest.rooms);
    const size = this.random.pick([HEADER + 1, 100, 1500, 0x1000]);
    if (count > 0) this.guest.room(count, size);
  }

  #shut(): void {
    const link = this.#pick();
    if (link === undefined) return;
    if (this.random.chance(0.5)) {
      link.guestShut |= 1 + this.random.below(3);
      link.mayEnd ||= link.guestShut === 3;
      this.#say(link, { op: SHUTDOWN, flags: link.guestShut });
    } else if (!link.isGone) {
      libc.shutdown(link.program.fd.number, 1);
      link.hostShut |= SEND;
    }
  }

  #leave(): void {
    const link = this.#pick();
    if (link === undefined || this.random.chance(0.5)) return;
    link.isGone = link.mayEnd = true;
    link.program[Symbol.dispose]();
  }

  /** A packet that may mean anything, sometimes of a connection. */
  #nonsense(): void {
    const { random } = this;
    const link = random.chance(0.5) ? this.#pick() : undefined;
    const word = () => random.chance(0.5) ? random.pick(WORDS) : random.u32();
    const bytes = encode({
      srcCid: random.chance(0.8) ? BigInt(CID) : BigInt(word()) << BigInt(random.below(33)),
      dstCid: random.chance(0.8) ? BigInt(HOST) : BigInt(word()) << BigInt(random.below(33)),
      srcPort: link?.guestPort ?? word(),
      dstPort: link?.hostPort ?? word(),
      type: random.chance(0.8) ? 1 : random.below(0x10000),
      op: random.chance(0.8) ? random.below(9) : random.below(0x10000),
      flags: word(),
      bufAlloc: word(),
      fwdCnt: word(),
      len: random.chance(0.5) ? undefined : word(),
      payload: pattern(0, random.below(300)),
    });
    if (link !== undefined) this.#forget(link);
    this.guest.sendBytes(random.chance(0.9) ? bytes : bytes.subarray(0, 1 + random.below(HEADER)));
    this.guest.rig.queues[1].takeUsed();
    // One may have connected, to a port that it is not known to have.
    for (let other; (other = this.listener.accept()) !== undefined;) this.#others.push(other);
  }

  /** A moment, or so long that whoever is waited for is not any more. */
  #wait(): void {
    const { reactor } = this.guest.rig;
    if (this.random.chance(0.9)) return;
    for (const link of this.#links) link.mayEnd ||= link.isGone || !link.isOpen;
    const timer = reactor.timer(() => {});
    timer.arm(70_000);
    while (timer.armed) reactor.turn();
    reactor.dropTimer(timer);
  }

  #hear(): void {
    for (const packet of this.guest.heard()) {
      const { op, srcCid, dstCid, srcPort, dstPort, payload, flags } = packet;
      assertEquals(dstCid, BigInt(CID));
      assert(op >= REQUEST && op <= CREDIT_REQUEST);
      assert(payload.length === 0 || op === RW, "a payload of a packet that has none");
      assert(op === RST || srcCid === BigInt(HOST) && packet.type === 1);
      if (op === REQUEST) this.#answer(dstPort, srcPort);
      const link = this.#links.find(({ guestPort, hostPort }) =>
        guestPort === dstPort && hostPort === srcPort
      );
      if (link === undefined || srcCid !== BigInt(HOST) || packet.type !== 1) continue;
      if (op === RST) {
        assert(link.mayEnd || !link.isOpen, "a connection ends for no reason");
        this.#forget(link);
        continue;
      }
      assert(
        packet.fwdCnt >= link.taken && packet.fwdCnt <= link.sent,
        "more is handed on than was",
      );
      link.taken = packet.fwdCnt;
      if (op === RESPONSE) link.isOpen = true;
      if (op === SHUTDOWN) {
        assertEquals(flags & ~3, 0);
        link.hostShut |= flags;
        link.mayEnd ||= flags === 3;
      }
      if (op === RW) this.#receive(link, payload);
    }
  }

  #receive(link: Link, payload: Uint8Array): void {
    assert(link.isOpen && payload.length > 0);
    const wanted = pattern(link.got, payload.length);
    assert(payload.every((byte, i) => byte === wanted[i]), "the guest is sent other bytes");
    link.got += payload.length;
    this.bytes += payload.length;
    assert(link.got <= link.written || link.isGone);
    assert(link.got - link.fwdCnt <= link.bufAlloc, "more than the guest has room for");
  }

  /** The guest's answer to a host program. */
  #answer(guestPort: number, hostPort: number): void {
    const program = this.#dialled.get(guestPort);
    if (program === undefined) return;
    this.#dialled.delete(guestPort);
    if (this.random.chance(0.2)) {
      this.#others.push(program);
      this.guest.send({ op: RST, srcPort: guestPort, dstPort: hostPort });
      return;
    }
    this.guest.send({ op: RESPONSE, srcPort: guestPort, dstPort: hostPort });
    this.#begin(guestPort, hostPort, program, true);
    const link = this.#links.at(-1)!;
    link.bufAlloc = ROOM;
    const line = readBytes(program);
    if (line === undefined || line.length === 0) this.#forget(link);
    else assertEquals(new TextDecoder().decode(line), `OK ${hostPort}\n`);
  }

  #finish(): void {
    for (const { program } of this.#links) this.#others.push(program);
    for (const program of [...this.#others, ...this.#dialled.values()]) program[Symbol.dispose]();
  }
}

const sockets: Fuzzer["open"] = async (use) => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  const before = held();
  let bytes = 0;
  await use({
    round(random) {
      const round = new Round(guest, listener, random);
      round.run();
      bytes += round.bytes;
    },
    finish() {
      guest.rig.restart();
      for (let other; (other = listener.accept()) !== undefined;) other[Symbol.dispose]();
      assertEquals(leftBehind(before), []);
      assertEquals(guest.rig.queues[RX].takeUsed(), undefined);
      return `${bytes} bytes in ${guest.rig.device.counters.connections} connections`;
    },
  });
};

export const SOCKET_FUZZERS: readonly Fuzzer[] = [
  {
    name: "vsock",
    what:
      "guests and host programs that do anything to a socket device, held against what streams are",
    open: sockets,
  },
];
