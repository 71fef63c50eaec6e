/**
 * The responder's TCP: golden frames, the rules of RFC 9293, 5961, 5681 and 7323 one by one, and a model
 * client behind a link that loses, repeats and exchanges frames.
 */

import { assert, assertEquals } from "@std/assert";
import { RETRIES_MAX, RTO_MAX_MS } from "../../src/network/responder/tcp_connection.ts";
import { Responder } from "../../src/network/responder/responder.ts";
import {
  Bench,
  bytes,
  generator,
  GUEST,
  GUEST_MAC,
  HOST,
  HOST_MAC,
  type ParsedSegment,
  parseSegment,
  pattern,
  type SegmentFields,
  tcp,
} from "./responder_support.ts";

const ISS = 0xfffffff0;
/** MSS 1460, SACK permitted, timestamps, window scale 7: what Linux sends. */
const LINUX_SYN = "020405b4 0402080a0000000100000000 01030307".replaceAll(" ", "");
const MSS_ONLY = "020405b4";

function ascii(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** One connection driven by hand. */
class Hand {
  seq = 0x1000;
  /** The responder's next number, as we know it. */
  ack = 0;
  readonly bench: Bench;

  constructor(readonly port: number, readonly clientPort = 40000, bench?: Bench) {
    this.bench = bench ?? new Bench({}, () => ISS);
  }

  give(fields: SegmentFields = {}): void {
    this.bench.give(
      tcp(this.clientPort, this.port, { seq: this.seq, ack: this.ack, ...fields }),
      fields.partial,
    );
  }

  /** Gives a segment and takes all answers. */
  say(fields: SegmentFields = {}): ParsedSegment[] {
    this.give(fields);
    return this.takeAll();
  }

  takeAll(): ParsedSegment[] {
    return this.bench.takeAll().map((frame) => {
      const segment = parseSegment(frame);
      if (segment === undefined) throw new Error("not TCP");
      return segment;
    });
  }

  connect(options = MSS_ONLY, window = 65535): this {
    const [synAck, more] = this.say({ flags: "S", options, window });
    assertEquals([synAck.flags, synAck.ack, more], ["SA", this.seq + 1, undefined]);
    this.seq++;
    this.ack = (synAck.seq + 1) >>> 0;
    this.give({ window });
    return this;
  }

  get state(): string {
    return this.bench.responder.snapshot().connections[0]?.state ?? "closed";
  }
}

const brief = (segments: ParsedSegment[]) =>
  segments.map(({ flags, seq, ack, payload }) => [flags, seq, ack, payload.length]);

Deno.test("TCP: the golden SYN and SYN-ACK", () => {
  const bench = new Bench({}, () => ISS);
  bench.exchange(
    bytes(`${HOST_MAC} ${GUEST_MAC} 0800 4500 003c 1234 4000 4006 1078 ${GUEST} ${HOST}
      c001 0050 00001000 00000000 a002 faf0 64ac 0000
      0204 05b4 0402 080a 00000001 00000000 01 0303 07`),
    `${GUEST_MAC} ${HOST_MAC} 0800 4500 0030 0000 4000 4006 22b8 ${HOST} ${GUEST}
      0050 c001 fffffff0 00001001 7012 ffff 9bb4 0000 0204 05b4 0103 0307`,
  );
});

Deno.test("TCP: options of the SYN: none, no scaling, nonsense; IPv6's size", () => {
  const synAck = (fields: SegmentFields) =>
    new Hand(9).say({ flags: "S", ...fields }).map(({ options, window }) => [options, window])[0];
  const scaled = "020405b401030307";
  const plain = "020405b401010101";
  assertEquals(synAck({}), [plain, 65535]);
  assertEquals(synAck({ options: MSS_ONLY }), [plain, 65535]);
  assertEquals(synAck({ options: LINUX_SYN }), [scaled, 65535]);
  for (const bad of ["03000000", "02ff0000", "03030000", "08000303", "00030307"]) {
    assertEquals(synAck({ options: bad })[0], bad === "03030000" ? scaled : plain, bad);
  }
  assertEquals(synAck({ options: LINUX_SYN, v6: true }), ["020405a001030307", 65535]);
});

Deno.test("TCP: a port without a service is refused, a stray segment reset, at a limited rate", () => {
  const hand = new Hand(81);
  assertEquals(brief(hand.say({ flags: "S", seq: 500 })), [["RA", 0, 501, 0]]);
  assertEquals(brief(hand.say({ flags: "A", seq: 5, ack: 77 })), [["R", 77, 0, 0]]);
  assertEquals(brief(hand.say({ flags: "SA", seq: 5, ack: 78 })), [["R", 78, 0, 0]]);
  assertEquals(hand.say({ flags: "R" }), []);
  assertEquals(hand.say({ flags: "F" }), []);
  for (let i = 0; i < 300; i++) hand.give({ flags: "S" });
  assertEquals(hand.takeAll().length, 97);
  assertEquals(hand.bench.responder.counters.tcpResetsOut, 100);
});

Deno.test("TCP discard: bytes are acknowledged, the end in both directions", () => {
  for (const v6 of [false, true]) {
    const hand = new Hand(9);
    const [synAck] = hand.say({ flags: "S", options: LINUX_SYN, v6 });
    assertEquals([synAck.seq, synAck.ack], [ISS, 0x1001]);
    const at = { seq: 0x1001, ack: ISS + 1, v6 };
    assertEquals(hand.say(at), []);
    assertEquals(hand.state, "established");
    const [ack] = hand.say({ ...at, payload: new Uint8Array(1000) });
    assertEquals(brief([ack]), [["A", ISS + 1, 0x1001 + 1000, 0]]);
    assertEquals(ack.window, (4 << 20) >> 7);
    // A retransmission is acknowledged and not counted; an overlap's new part is taken.
    assertEquals(hand.say({ ...at, payload: new Uint8Array(1000) })[0].ack, 0x1001 + 1000);
    assertEquals(hand.say({ ...at, payload: new Uint8Array(1200) })[0].ack, 0x1001 + 1200);
    assertEquals(hand.bench.responder.counters.tcpBytesIn, 1200);
    // Several segments, one acknowledgement.
    for (let i = 0; i < 3; i++) {
      hand.give({ ...at, seq: 0x1001 + 1200 + i * 10, payload: new Uint8Array(10) });
    }
    assertEquals(brief(hand.takeAll()), [["A", ISS + 1, 0x1001 + 1230, 0]]);
    // The end: our FIN carries the acknowledgement of theirs.
    assertEquals(brief(hand.say({ ...at, seq: 0x1001 + 1230, flags: "FA" })), [
      ["FA", ISS + 1, 0x1001 + 1231, 0],
    ]);
    assertEquals(hand.state, "last-ack");
    assertEquals(hand.say({ ...at, seq: 0x1001 + 1231, ack: ISS + 2 }), []);
    assertEquals(hand.state, "closed");
  }
});

Deno.test("TCP: a segment of 64 KiB with a partial checksum", () => {
  const hand = new Hand(9).connect(LINUX_SYN);
  const payload = new Uint8Array(65495);
  const [ack] = hand.say({ payload, partial: true });
  assertEquals(ack.ack, hand.seq + payload.length);
  // The same without the word of its device is an error.
  hand.bench.give(tcp(40000, 9, { seq: hand.seq, ack: hand.ack, payload, partial: true }));
  assertEquals(hand.bench.responder.counters.checksumErrors, 1);
  const v6 = new Hand(9);
  v6.say({ flags: "S", v6: true, options: LINUX_SYN });
  v6.give({ seq: 0x1001, ack: ISS + 1, v6: true });
  const long = new Uint8Array(65515);
  assertEquals(
    v6.say({ seq: 0x1001, ack: ISS + 1, v6: true, payload: long, partial: true })[0].ack,
    0x1001 + long.length,
  );
});

Deno.test("TCP: each segment out of order gets a duplicate acknowledgement of its own", () => {
  const hand = new Hand(9).connect();
  const payload = new Uint8Array(100);
  for (const gap of [1, 2, 3]) hand.give({ seq: hand.seq + gap * 100, payload });
  assertEquals(brief(hand.takeAll()), Array(3).fill(["A", hand.ack, hand.seq, 0]));
  assertEquals(hand.say({ payload })[0].ack, hand.seq + 100);
});

Deno.test("TCP: RFC 5961: RST and SYN in the window are challenged, the exact RST obeyed", () => {
  const hand = new Hand(9).connect();
  const here = [["A", hand.ack, hand.seq, 0]];
  assertEquals(brief(hand.say({ flags: "R", seq: hand.seq + 1 })), here);
  assertEquals(brief(hand.say({ flags: "S", seq: hand.seq + 5 })), here);
  assertEquals(brief(hand.say({ flags: "S", seq: 1 })), here);
  assertEquals(hand.say({ flags: "R", seq: hand.seq - 1 }), []);
  assertEquals(brief(hand.say({ ack: hand.ack + 100 })), here);
  // A keep-alive is answered.
  assertEquals(brief(hand.say({ seq: hand.seq - 1 })), here);
  assertEquals(hand.state, "established");
  assertEquals(hand.say({ flags: "R" }), []);
  assertEquals(hand.state, "closed");
  // Odd ones cannot be asked for without end.
  const other = new Hand(9, 40001, hand.bench).connect();
  for (let i = 0; i < 300; i++) assert(other.say({ seq: other.seq - 1 }).length <= 1);
  assert(other.bench.responder.counters.dropped >= 200);
});

Deno.test("TCP: a wrong acknowledgement of our SYN is reset, the SYN is sent again and given up", () => {
  const hand = new Hand(9);
  hand.say({ flags: "S" });
  assertEquals(brief(hand.say({ seq: 0x1001, ack: 5 })), [["R", 5, 0, 0]]);
  assertEquals(hand.state, "syn-received");
  // A repeated SYN gets its answer again, another one starts anew.
  assertEquals(brief(hand.say({ flags: "S" })), [["SA", ISS, 0x1001, 0]]);
  assertEquals(brief(hand.say({ flags: "S", seq: 0x9000 })), [["SA", ISS, 0x9001, 0]]);
  const delays: number[] = [];
  for (;;) {
    const delayMs = hand.bench.responder.nextTimerMs();
    if (delayMs === Infinity) break;
    delays.push(delayMs);
    hand.bench.nowMs += delayMs;
    hand.bench.responder.tick();
    assert(hand.takeAll().every((segment) => segment.flags === "SA"));
  }
  assertEquals(delays, [1000, 2000, 4000, 8000, 16000]);
  assertEquals(hand.state, "closed");
});

Deno.test("HTTP: the page, errors, HEAD, a request in pieces, who closes first waits", () => {
  const ask = (text: string) => {
    const hand = new Hand(80).connect();
    const answer = hand.say({ payload: ascii(text) });
    return answer.map((segment) => new TextDecoder().decode(segment.payload)).join("");
  };
  assert(ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").startsWith("HTTP/1.0 200 OK\r\n"));
  assert(ask("GET / HTTP/1.0\n\n").endsWith("modulo 251.\n"));
  assert(ask("GET /x HTTP/1.0\r\n\r\n").startsWith("HTTP/1.0 404 "));
  assert(ask("GET /bytes/9999999999999 HTTP/1.0\r\n\r\n").startsWith("HTTP/1.0 404 "));
  assert(ask("POST / HTTP/1.0\r\n\r\n").startsWith("HTTP/1.0 501 "));
  assert(ask("\x00\xff\r\n\r\n").startsWith("HTTP/1.0 400 "));
  assert(ask(`GET /${"x".repeat(1000)} HTTP/1.0\r\n\r\n`).startsWith("HTTP/1.0 400 "));
  const head = ask("HEAD /bytes/1000 HTTP/1.0\r\n\r\n");
  assert(head.includes("Content-Length: 1000\r\n") && head.endsWith("\r\n\r\n"));
  assertEquals(ask("GET / HTTP/1.0\r\nA: b\r\n"), "");

  const hand = new Hand(80).connect();
  for (const letter of "GET /bytes/10 HTTP/1.0\r\n\r") {
    assertEquals(hand.say({ payload: ascii(letter) })[0].payload.length, 0);
    hand.seq++;
  }
  const [fields, body] = hand.say({ payload: ascii("\n") });
  hand.seq++;
  assertEquals(new TextDecoder().decode(fields.payload).match(/Content-Length: (\d+)/)?.[1], "10");
  assertEquals([...body.payload], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert(fields.flags.includes("P") && body.flags === "FPA");
  assertEquals(hand.state, "fin-wait-1");
  hand.ack = (body.seq + 11) >>> 0;
  assertEquals(hand.say(), []);
  assertEquals(hand.state, "fin-wait-2");
  assertEquals(brief(hand.say({ flags: "FA" })), [["A", hand.ack, hand.seq + 1, 0]]);
  assertEquals(hand.state, "time-wait");
  assertEquals(brief(hand.say({ flags: "FA" })), [["A", hand.ack, hand.seq + 1, 0]]);
  // The same port may connect again, if its numbers go on.
  const again = hand.say({ flags: "S", seq: hand.seq + 1000 });
  assertEquals(brief(again), [["SA", ISS, hand.seq + 1001, 0]]);
});

Deno.test("TCP: both close at once", () => {
  const hand = new Hand(80).connect();
  const request = ascii("HEAD / HTTP/1.0\r\n\r\n");
  const [answer] = hand.say({ payload: request });
  assertEquals(answer.flags, "FPA");
  hand.seq += request.length;
  hand.say({ flags: "FA" });
  assertEquals(hand.state, "closing");
  hand.seq++;
  hand.ack = (hand.ack + answer.payload.length + 1) >>> 0;
  hand.say();
  assertEquals(hand.state, "time-wait");
  hand.bench.nowMs += hand.bench.responder.nextTimerMs();
  hand.bench.responder.tick();
  assertEquals(hand.state, "closed");
});

Deno.test("TCP chargen: windows, the peer's segment size, a window that closes and opens", () => {
  const hand = new Hand(19).connect("02040190", 1000);
  const first = hand.takeAll();
  assertEquals(first.map((segment) => segment.payload.length), [400, 400]);
  const text = pattern(5000);
  assertEquals(first[1].payload, text.subarray(400, 800));
  // The last 200 bytes of the window wait for the others' acknowledgement.
  assertEquals(hand.say({ ack: hand.ack + 800, window: 0 }), []);
  hand.ack += 800;
  const responder = hand.bench.responder;
  for (let probe = 0; probe < 20; probe++) {
    hand.bench.nowMs += responder.nextTimerMs();
    responder.tick();
    const [segment, more] = hand.takeAll();
    assertEquals([segment.seq, segment.payload.length, more], [hand.ack >>> 0, 1, undefined]);
    assertEquals(hand.say({ window: 0 }), []);
  }
  assertEquals(responder.nextTimerMs(), RTO_MAX_MS);
  const [next, more] = hand.say({ window: 700 });
  assertEquals(brief([next, more].slice(0, 1))[0].slice(1), [hand.ack >>> 0, hand.seq, 400]);
  assertEquals(next.payload, text.subarray(800, 1200));
  // A peer that stays open but never speaks again is given up.
  let ticks = 0;
  while (responder.nextTimerMs() < Infinity) {
    hand.bench.nowMs += responder.nextTimerMs();
    responder.tick();
    hand.takeAll();
    ticks++;
  }
  assertEquals(ticks, RETRIES_MAX + 1);
  assertEquals(responder.counters.tcpTimeouts, 1);
});

Deno.test("TCP chargen: slow start, fast retransmit, recovery, congestion avoidance", () => {
  const hand = new Hand(19).connect(LINUX_SYN, 65535);
  const first = hand.takeAll();
  assertEquals(first.length, 10);
  const mss = 1460;
  // The first is lost; the others make duplicates. Two are not enough, the third is.
  assertEquals([hand.say(), hand.say()].flat(), []);
  const again = hand.say();
  assertEquals([again[0].seq, again[0].payload.length], [hand.ack, mss]);
  assertEquals(hand.bench.responder.counters.tcpRetransmits, 1);
  // Each further duplicate lets one more go, once the window of half the flight and three allows it.
  const during = Array.from({ length: 6 }, () => hand.say()).flat();
  assertEquals(during.map((segment) => segment.seq), [
    (hand.ack + 10 * mss) >>> 0,
    (hand.ack + 11 * mss) >>> 0,
    (hand.ack + 12 * mss) >>> 0,
    (hand.ack + 13 * mss) >>> 0,
  ]);
  // All is there: the window is half of what was in flight, four are under way, one may go.
  hand.ack = (hand.ack + 10 * mss) >>> 0;
  assertEquals(hand.say().length, 1);
  // Avoidance: a window's worth of acknowledgements is worth one segment.
  let flight = 5;
  const sizes: number[] = [];
  for (let round = 0; round < 4; round++) {
    let sent = 0;
    for (let i = 0; i < flight; i++) {
      hand.ack = (hand.ack + mss) >>> 0;
      sent += hand.say().length;
    }
    flight = sent;
    sizes.push(sent);
  }
  for (let i = 1; i < 4; i++) assert(sizes[i] - sizes[i - 1] <= 1, `${sizes}`);
  assert(sizes[3] > sizes[0], `${sizes}`);
  // A timeout goes back to one segment, and twice as long.
  const responder = hand.bench.responder;
  hand.bench.nowMs += responder.nextTimerMs();
  responder.tick();
  assertEquals(brief(hand.takeAll()), [["A", hand.ack, hand.seq, mss]]);
  assertEquals(responder.nextTimerMs(), 400);
});

Deno.test("TCP chargen ends when the client closes, with what it has sent", () => {
  const hand = new Hand(19).connect();
  const sent = hand.takeAll().reduce((sum, segment) => sum + segment.payload.length, 0);
  const [fin] = hand.say({ flags: "FA", ack: (hand.ack + sent) >>> 0 });
  assertEquals(brief([fin]), [["FA", (hand.ack + sent) >>> 0, hand.seq + 1, 0]]);
  hand.say({ seq: hand.seq + 1, ack: (fin.seq + 1) >>> 0 });
  assertEquals(hand.state, "closed");
});

Deno.test("TCP: a SYN flood reaches half of the places, silent connections give way in the end", () => {
  const bench = new Bench({}, () => ISS);
  const hands = [0, 1].map((i) => new Hand(9, 50000 + i, bench).connect());
  for (let i = 0; i < 1000; i++) bench.give(tcp(1000 + i, 9, { flags: "S", seq: i }));
  const states = () => bench.responder.snapshot().connections.map(({ state }) => state).sort();
  assertEquals(states(), ["established", "established", ...Array(4).fill("syn-received")]);
  assertEquals(bench.takeAll().length, 4);
  for (let i = 2; i < 8; i++) hands.push(new Hand(9, 50000 + i, bench).connect());
  assertEquals(states(), Array(8).fill("established"));
  // No place: the SYN is dropped, and all go on.
  assertEquals(new Hand(9, 60000, bench).say({ flags: "S" }), []);
  for (const hand of hands) assertEquals(hand.say({ payload: new Uint8Array(5) }).length, 1);
  bench.nowMs += 50_000;
  for (const hand of hands.slice(1)) hand.say();
  bench.nowMs += 10_000;
  new Hand(9, 60000, bench).connect();
  assert(!bench.responder.snapshot().connections.some(({ peerPort }) => peerPort === 50000));
  bench.responder.reset();
  assertEquals(states(), []);
  assertEquals(bench.responder.nextTimerMs(), Infinity);
});

/** What the link does to a frame, as probabilities in a thousand. */
interface Weather {
  readonly loss: number;
  readonly repeat: number;
  readonly late: number;
}

/**
 * A client as small as one can be that is still right: it keeps segments that came early, acknowledges each
 * at once, sends again all that is not acknowledged after 300 ms. Time is simulated.
 */
class Model {
  readonly bench = new Bench({}, () => this.random(2 ** 32));
  readonly received: Uint8Array[] = [];
  bytesReceived = 0;
  finished = false;
  reset = false;
  readonly #early = new Map<number, { payload: Uint8Array; fin: boolean }>();
  readonly #events: { atMs: number; run: () => void }[] = [];
  readonly #initial: number;
  #state: "syn" | "open" = "syn";
  #una = 0;
  #nxt = 0;
  #theirs = 0;
  #window = 1;
  #deadlineMs = 0;

  constructor(
    readonly port: number,
    readonly data: Uint8Array,
    readonly weather: Weather,
    readonly random: (below: number) => number,
    readonly v6: boolean,
  ) {
    this.#initial = random(2 ** 32);
  }

  run(done: () => boolean): void {
    const startMs = this.bench.nowMs;
    while (!done()) {
      assert(this.bench.nowMs - startMs < 600_000, "it takes too long");
      this.#pump();
      const next = this.#events.reduce((min, event) => Math.min(min, event.atMs), Infinity);
      const timerMs = this.bench.nowMs + this.bench.responder.nextTimerMs();
      const pending = this.#una < this.#limit ? this.#deadlineMs : Infinity;
      const atMs = Math.min(next, timerMs, pending);
      assert(atMs < Infinity, "nothing will ever happen");
      this.bench.nowMs = Math.max(this.bench.nowMs, atMs);
      if (timerMs <= this.bench.nowMs) this.bench.responder.tick();
      if (pending <= this.bench.nowMs) this.#nxt = this.#una;
      for (let i = 0; i < this.#events.length;) {
        if (this.#events[i].atMs <= this.bench.nowMs) this.#events.splice(i, 1)[0].run();
        else i++;
      }
    }
  }

  /** SYN, data, FIN. */
  get #limit(): number {
    return this.#state === "syn" ? 1 : this.data.length + 2;
  }

  #carry(run: () => void): void {
    const { loss, repeat, late } = this.weather;
    if (this.random(1000) < loss) return;
    const copies = this.random(1000) < repeat ? 2 : 1;
    for (let i = 0; i < copies; i++) {
      const delayMs = this.random(1000) < late ? 5 + this.random(20) : 2;
      this.#events.push({ atMs: this.bench.nowMs + delayMs, run });
    }
  }

  #pump(): void {
    for (const frame of this.bench.takeAll(100_000)) {
      const segment = parseSegment(frame);
      if (segment === undefined) throw new Error("not TCP");
      this.#carry(() => this.#receive(segment));
    }
    const end = Math.min(this.#limit, this.#una + Math.min(this.#window, 65536));
    while (this.#nxt < end) {
      const at = this.#nxt;
      if (at === 0) {
        this.#send({ flags: "S", options: LINUX_SYN }, 0);
        this.#nxt = 1;
      } else {
        const length = Math.min(1460, this.data.length + 1 - at, end - at);
        const fin = at + length === this.data.length + 1 && end > at + length;
        if (length === 0 && !fin) break;
        this.#send(
          { flags: fin ? "FA" : "A", payload: this.data.subarray(at - 1, at - 1 + length) },
          at,
        );
        this.#nxt = at + length + (fin ? 1 : 0);
      }
      this.#deadlineMs = this.bench.nowMs + 300;
    }
  }

  #send(fields: SegmentFields, position: number): void {
    const seq = (this.#initial + position) >>> 0;
    const frame = tcp(40000, this.port, { seq, ack: this.#theirs, v6: this.v6, ...fields });
    this.#carry(() => this.bench.give(frame));
  }

  #receive(segment: ParsedSegment): void {
    if (segment.flags.includes("R")) {
      this.reset = true;
      return;
    }
    if (this.#state === "syn") {
      assertEquals(segment.flags, "SA");
      this.#state = "open";
      this.#theirs = (segment.seq + 1) >>> 0;
      this.#una = this.#nxt = 1;
      this.#window = segment.window;
      this.#send({}, 1);
      return;
    }
    const ack = this.#una + ((segment.ack - this.#initial - this.#una) | 0);
    if (ack > this.#una) {
      assert(ack <= this.data.length + 2, "acknowledges what was not sent");
      this.#una = ack;
      this.#nxt = Math.max(this.#nxt, ack);
      this.#deadlineMs = this.bench.nowMs + 300;
    }
    this.#window = segment.window << 7;
    const fin = segment.flags.includes("F");
    if (segment.flags.includes("S")) return this.#send({}, this.#nxt);
    if (segment.payload.length === 0 && !fin) return;
    this.#early.set(segment.seq, { payload: segment.payload, fin });
    for (;;) {
      let found = false;
      for (const [seq, { payload, fin }] of this.#early) {
        const skip = (this.#theirs - seq) | 0;
        if (skip < 0) continue;
        this.#early.delete(seq);
        if (skip > payload.length || (skip === payload.length && !fin) || this.finished) continue;
        this.received.push(payload.subarray(skip));
        this.bytesReceived += payload.length - skip;
        this.#theirs = (seq + payload.length + (fin ? 1 : 0)) >>> 0;
        if (fin) this.finished = true;
        found = true;
      }
      if (!found) break;
    }
    this.#send({}, this.#nxt);
  }

  bytes(): Uint8Array {
    const all = new Uint8Array(this.bytesReceived);
    let at = 0;
    for (const part of this.received) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

const WEATHERS: Record<string, Weather> = {
  fair: { loss: 0, repeat: 0, late: 0 },
  "one in a hundred lost": { loss: 10, repeat: 0, late: 0 },
  "exchanged and repeated": { loss: 0, repeat: 100, late: 100 },
  storm: { loss: 100, repeat: 50, late: 100 },
};

for (const [name, weather] of Object.entries(WEATHERS)) {
  Deno.test(`TCP through a link: ${name}`, () => {
    for (const seed of [7, Math.floor(Math.random() * 2 ** 32)]) {
      console.log(`seed ${seed}`);
      const random = generator(seed);
      for (const v6 of [false, true]) {
        const request = ascii("GET /bytes/200000 HTTP/1.0\r\nHost: vmsg\r\n\r\n");
        const web = new Model(80, request, weather, random, v6);
        web.run(() => web.finished);
        const answer = web.bytes();
        const body = answer.subarray(answer.length - 200_000);
        assert(body.every((byte, i) => byte === i % 251), "the body is wrong");
        assert(new TextDecoder().decode(answer.subarray(0, 15)) === "HTTP/1.0 200 OK");

        const sink = new Model(9, new Uint8Array(150_000), weather, random, v6);
        sink.run(() => sink.finished);
        assertEquals(sink.bench.responder.counters.tcpBytesIn, 150_000);
        assertEquals(sink.reset || web.reset, false);
        if (weather.loss === 0 && weather.late === 0) {
          assertEquals(web.bench.responder.counters.tcpRetransmits, 0);
        }
      }
    }
  });
}

Deno.test("TCP: no mutation throws, and every answer is whole", () => {
  for (const seed of [3, Math.floor(Math.random() * 2 ** 32)]) {
    console.log(`seed ${seed}`);
    const random = generator(seed);
    const bench = new Bench({}, () => random(2 ** 32));
    // What it has said lately: numbers near these get somewhere.
    let heard: ParsedSegment | undefined;
    for (let round = 0; round < 40_000; round++) {
      bench.nowMs += random(20);
      const near = (value: number) => (value + [0, 0, 0, 1, -1, random(2000)][random(6)]) >>> 0;
      const flags = ["S", "A", "A", "A", "FA", "R", "SA", "PA", "FSRPA", ""][random(10)];
      const frame = tcp(1000 + random(6), [9, 19, 80, 80, 81][random(5)], {
        v6: random(3) === 0,
        flags,
        seq: heard === undefined || random(5) === 0 ? random(2 ** 32) : near(heard.ack),
        ack: heard === undefined || random(5) === 0
          ? random(2 ** 32)
          : near(heard.seq + heard.payload.length),
        window: [0, 1, 100, 65535][random(4)],
        options: flags.includes("S")
          ? [LINUX_SYN, MSS_ONLY, "02040001", "0303ff00"][random(4)]
          : "",
        payload: random(3) === 0 ? ascii("GET /bytes/5000 HTTP/1.0\r\n\r\n") : new Uint8Array(),
      });
      if (heard !== undefined && random(4) !== 0) {
        const at = frame[12] === 0x86 ? 54 : 34;
        frame[at] = heard.port >> 8;
        frame[at + 1] = heard.port & 255;
        frame[at + 2] = heard.sourcePort >> 8;
        frame[at + 3] = heard.sourcePort & 255;
      }
      if (random(10) === 0) frame[random(frame.length)] = random(256);
      bench.give(random(20) === 0 ? frame.slice(0, random(frame.length)) : frame, random(8) !== 0);
      if (bench.responder.nextTimerMs() === 0) bench.responder.tick();
      for (let count = random(4); count > 0; count--) {
        const answer = bench.take();
        if (answer !== undefined) heard = parseSegment(answer) ?? heard;
      }
      assert(bench.responder.snapshot().connections.length <= 8);
    }
    const { tcpConnections, tcpResetsOut, tcpRetransmits, tcpResetsIn } = bench.responder.counters;
    for (const count of [tcpConnections, tcpResetsOut, tcpRetransmits, tcpResetsIn]) {
      assert(count > 10, JSON.stringify(bench.responder.counters));
    }
  }
});

Deno.test("TCP: a deluge from memory to discard, and from chargen to memory", () => {
  const responder = new Responder();
  const buffer = new Uint8Array(2048);
  const drain = () => {
    let bytes = 0;
    for (let length = responder.next(buffer); length > 0; length = responder.next(buffer)) {
      bytes += length - 54;
    }
    return bytes;
  };
  const connect = (port: number, clientPort: number) => {
    responder.handle(tcp(clientPort, port, { flags: "S", options: LINUX_SYN }), 74);
    const length = responder.next(buffer);
    const answer = parseSegment(buffer.slice(0, length));
    if (answer === undefined) throw new Error("no answer");
    const first = tcp(clientPort, port, { seq: 1, ack: answer.seq + 1, window: 32768 });
    responder.handle(first, first.length);
    return (answer.seq + 1) >>> 0;
  };
  const put = (frame: Uint8Array, at: number, value: number) =>
    new DataView(frame.buffer).setUint32(at, value);
  const figures: string[] = [];
  for (const size of [1460, 65160]) {
    const ack = connect(9, 40000 + size % 1000);
    const total = size === 1460 ? 64 << 20 : 512 << 20;
    const frame = tcp(40000 + size % 1000, 9, {
      seq: 1,
      ack,
      payload: new Uint8Array(size),
      partial: size > 1460,
    });
    // The number's halves sum up to the same if the checksum is to stay right: it is made anew.
    const base = (frame[50] << 8 | frame[51]) ^ 0xffff;
    const startMs = performance.now();
    let seq = 1;
    for (let sent = 0; sent < total; sent += size) {
      put(frame, 38, seq);
      let sum = base + (0xffff - 1) + (seq >>> 16) + (seq & 0xffff);
      while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
      frame[50] = (sum ^ 0xffff) >> 8;
      frame[51] = (sum ^ 0xffff) & 255;
      responder.handle(frame, frame.length, size > 1460);
      seq = (seq + size) >>> 0;
      drain();
    }
    const speed = total / 1000 / (performance.now() - startMs);
    figures.push(`discard in segments of ${size}: ${speed.toFixed(0)} MB/s`);
    if (size > 1460) figures.push("  (a partial checksum: its payload is not looked at)");
  }
  assert(responder.counters.tcpBytesIn >= (64 + 512) << 20, "bytes are missing");
  assertEquals(responder.counters.checksumErrors, 0);

  let ack = connect(19, 41000);
  const answer = tcp(41000, 19, { seq: 1, ack, window: 32768 });
  const startMs = performance.now();
  let bytes = 0;
  while (bytes < 256 << 20) {
    const got = drain();
    assert(got > 0, "chargen stands still");
    bytes += got;
    ack = (ack + got) >>> 0;
    put(answer, 42, ack);
    responder.handle(answer, answer.length, true);
  }
  const speed = bytes / 1000 / (performance.now() - startMs);
  figures.push(`chargen: ${speed.toFixed(0)} MB/s`);
  console.log(figures.join("\n"));
  assertEquals(responder.counters.tcpRetransmits, 0);
});
