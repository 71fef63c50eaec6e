/**
 * TCP (RFC 9293), server side: who is connected, which service has which port, and resets.
 *
 *     port 9    discard (RFC 863): takes everything; closes when the peer does
 *     port 19   chargen (RFC 864): sends the pattern until the peer closes
 *     port 80   HTTP, see http.ts
 *
 * Theory of operation. There are {@link CONNECTIONS} records, made once. Frames are neither queued nor
 * made in advance: {@link Tcp.nextLength} finds a connection with something to send, in turn, and
 * {@link Tcp.next} makes that segment in the driver side's buffer; so acknowledgements of a batch merge by
 * themselves, and the receiver sets the pace. Only resets go through the host's ring, at a limited rate, as
 * do acknowledgements that answer something odd: both could be made to go round for ever.
 *
 * Timers are the owner's: it calls {@link Tcp.tick} after {@link Tcp.timerMs}.
 *
 * A SYN flood reaches at most {@link HALF_OPEN_CONNECTIONS} records, the oldest of which gives way to the
 * next SYN. When all records are used, one that only waits gives way, or a half-open one, or one that has
 * been silent for {@link IDLE_MS}; otherwise the SYN is dropped, and comes again. Initial sequence numbers
 * are random (the aim of RFC 6528).
 */

import { addBytes, checksumOf } from "./checksum.ts";
import { ETHERNET_DESTINATION, isGroupMac } from "./ethernet.ts";
import type { Host, Verdict } from "./host.ts";
import { PROTOCOL_TCP } from "./ipv4.ts";
import { writeU16, writeU32 } from "./network_order.ts";
import type { Packet } from "./packet.ts";
import { CHARACTERS, COUNTING } from "./pattern.ts";
import { Peer } from "./peer.ts";
import { Connection, type TcpState } from "./tcp_connection.ts";
import { ACK, parseTcp, RST, SYN, TCP_HEADER_SIZE, TcpSegment } from "./tcp_segment.ts";
import { TokenBucket } from "./token_bucket.ts";

/** The sink. */
export const TCP_DISCARD_PORT = 9;
/** The source. */
export const TCP_CHARGEN_PORT = 19;
/** The web server. */
export const HTTP_PORT = 80;
/** Connections at most. */
export const CONNECTIONS = 8;
/** Of them, those whose peer has not answered yet. */
export const HALF_OPEN_CONNECTIONS = 4;
/** A connection that was silent for so long gives way to a new one when there is no other place. */
export const IDLE_MS = 60_000;

/** Resets and odd acknowledgements a second, and at once. */
const ODD_PER_SECOND = 100;
const ODD_BURST = 100;

/** A connection as plain values. */
export interface TcpConnectionSnapshot {
  /** Our port. */
  readonly port: number;
  /** The peer's. */
  readonly peerPort: number;
  /** By the names of RFC 9293. */
  readonly state: TcpState;
  /** Bytes that the peer sent, in order. */
  readonly bytesIn: number;
  /** Bytes that the peer acknowledged. */
  readonly bytesOut: number;
}

/** See the head of this file. */
export class Tcp {
  readonly #host: Host;
  readonly #now: () => number;
  readonly #random32: () => number;
  readonly #connections: Connection[];
  readonly #segment = new TcpSegment();
  readonly #oddLimit: TokenBucket;
  /** Whom a reset goes to; valid for one answer. */
  readonly #stranger = new Peer();
  /** Whose segment is looked for first. */
  #turn = 0;

  /**
   * Nobody is connected.
   *
   * @param host whose counters and ring are used
   * @param now milliseconds
   * @param random32 32 random bits, that others cannot predict
   */
  constructor(host: Host, now: () => number, random32: () => number) {
    this.#host = host;
    this.#now = now;
    this.#random32 = random32;
    this.#connections = Array.from({ length: CONNECTIONS }, () => new Connection(host, now));
    this.#oddLimit = new TokenBucket(ODD_PER_SECOND, ODD_BURST, ODD_BURST, now);
  }

  /** Takes a packet with a segment for one of our addresses. */
  receive(frame: Uint8Array, packet: Packet): Verdict {
    const segment = this.#segment;
    const verdict = parseTcp(segment, frame, packet);
    if (verdict !== "done") return verdict;
    this.#host.counters.tcpSegmentsIn++;
    for (let i = 0; i < CONNECTIONS; i++) {
      const connection = this.#connections[i];
      if (!connection.owns(frame, packet, segment)) continue;
      if ((segment.flags & (SYN | ACK | RST)) === SYN && connection.yieldsTo(segment)) {
        connection.free();
        break;
      }
      return this.#deliver(connection, frame, packet);
    }
    return this.#listen(frame, packet);
  }

  /** Bytes of the next frame, 0 if there is nothing to send. */
  nextLength(): number {
    for (let i = 0; i < CONNECTIONS; i++) {
      const turn = (this.#turn + i) % CONNECTIONS;
      const length = this.#connections[turn].nextLength();
      if (length > 0) {
        this.#turn = turn;
        return length;
      }
    }
    return 0;
  }

  /**
   * Makes the next frame in `target` and returns its length; 0 if there is none, or if it does not fit: then
   * the segment counts as lost.
   */
  next(target: Uint8Array): number {
    if (this.nextLength() === 0) return 0;
    const length = this.#connections[this.#turn].write(target);
    this.#turn = (this.#turn + 1) % CONNECTIONS;
    if (length === 0) this.#host.counters.dropped++;
    return length;
  }

  /** Milliseconds until {@link Tcp.tick} has something to do: 0 if it has, Infinity if it never will. */
  timerMs(): number {
    let deadlineMs = Infinity;
    for (let i = 0; i < CONNECTIONS; i++) {
      const connectionMs = this.#connections[i].deadlineMs;
      if (connectionMs < deadlineMs) deadlineMs = connectionMs;
    }
    return deadlineMs === Infinity ? Infinity : Math.max(0, deadlineMs - this.#now());
  }

  /** Does what is due; afterwards there may be frames to send. */
  tick(): void {
    const nowMs = this.#now();
    for (let i = 0; i < CONNECTIONS; i++) {
      const connection = this.#connections[i];
      if (connection.deadlineMs > nowMs) continue;
      if (connection.timeout(nowMs)) continue;
      this.#host.counters.tcpTimeouts++;
      connection.free();
    }
  }

  /** Forgets all connections, without a word to their peers. */
  clear(): void {
    for (const connection of this.#connections) connection.free();
  }

  /** The connections that are not closed. */
  snapshot(): TcpConnectionSnapshot[] {
    return this.#connections.filter((connection) => connection.used).map((connection) => ({
      port: connection.port,
      peerPort: connection.peerPort,
      state: connection.state,
      bytesIn: connection.bytesIn,
      bytesOut: connection.bytesOut,
    }));
  }

  #deliver(connection: Connection, frame: Uint8Array, packet: Packet): Verdict {
    const event = connection.receive(this.#segment);
    switch (event) {
      case "reset":
        this.#host.counters.tcpResetsIn++;
        return "done";
      case "refused":
        return this.#reset(frame, packet);
      case "challenge":
        if (!this.#oddLimit.take()) return "dropped";
        connection.challenge();
        return "done";
      case "opened":
        this.#host.counters.tcpConnections++;
        this.#opened(connection);
        this.#received(connection, frame);
        break;
      case "received":
        this.#received(connection, frame);
        break;
      case "none":
        break;
    }
    connection.settle();
    return "done";
  }

  #opened(connection: Connection): void {
    if (connection.port === TCP_CHARGEN_PORT) connection.send(0, CHARACTERS, Infinity);
  }

  /** Hands new bytes, and the end of the peer's stream, to the service. */
  #received(connection: Connection, frame: Uint8Array): void {
    const { receivedStart, receivedEnd, port, request } = connection;
    this.#host.counters.tcpBytesIn += receivedEnd - receivedStart;
    if (port === HTTP_PORT && !request.complete) {
      if (request.receive(frame, receivedStart, receivedEnd)) {
        const headLength = request.writeAnswer(connection.head);
        connection.send(headLength, COUNTING, request.bodyLength);
        connection.close();
      }
    }
    if (connection.peerClosed) connection.close();
  }

  /** A segment that belongs to no connection (RFC 9293 3.10.7.1 and 2). */
  #listen(frame: Uint8Array, packet: Packet): Verdict {
    const { flags, destinationPort: port } = this.#segment;
    if ((flags & RST) !== 0) return "ignored";
    if ((flags & ACK) !== 0) return this.#reset(frame, packet);
    if ((flags & SYN) === 0) return "ignored";
    if (port !== TCP_DISCARD_PORT && port !== TCP_CHARGEN_PORT && port !== HTTP_PORT) {
      return this.#reset(frame, packet);
    }
    if (isGroupMac(frame, ETHERNET_DESTINATION)) return "ignored";
    const connection = this.#place();
    if (connection === undefined) return "dropped";
    connection.open(frame, packet, this.#segment, this.#random32() >>> 0);
    return "done";
  }

  /** A free record, or one that gives way. */
  #place(): Connection | undefined {
    let halfOpen = 0;
    let free: Connection | undefined;
    let oldest: Connection | undefined;
    let waiting: Connection | undefined;
    let silent: Connection | undefined;
    for (let i = 0; i < CONNECTIONS; i++) {
      const connection = this.#connections[i];
      if (!connection.used) {
        free ??= connection;
      } else if (connection.halfOpen) {
        halfOpen++;
        if (oldest === undefined || connection.openedMs < oldest.openedMs) oldest = connection;
      } else if (connection.timeWait) {
        if (waiting === undefined || connection.heardMs < waiting.heardMs) waiting = connection;
      } else if (silent === undefined || connection.heardMs < silent.heardMs) {
        silent = connection;
      }
    }
    if (halfOpen >= HALF_OPEN_CONNECTIONS) return oldest;
    const place = free ?? waiting ?? oldest;
    if (place !== undefined) return place;
    return silent !== undefined && this.#now() - silent.heardMs >= IDLE_MS ? silent : undefined;
  }

  /** Tells the sender of the segment that there is no such connection. */
  #reset(frame: Uint8Array, packet: Packet): Verdict {
    if (isGroupMac(frame, ETHERNET_DESTINATION)) return "ignored";
    if (!this.#oddLimit.take()) return "dropped";
    const host = this.#host;
    const reply = host.ring.reserve();
    if (reply === undefined) return "dropped";
    const segment = this.#segment;
    const peer = this.#stranger;
    peer.set(frame, packet);
    const header = peer.payload;
    const hasAck = (segment.flags & ACK) !== 0;
    peer.writeHeaders(reply, host.mac, PROTOCOL_TCP, TCP_HEADER_SIZE);
    writeU16(reply, header, segment.destinationPort);
    writeU16(reply, header + 2, segment.sourcePort);
    writeU32(reply, header + 4, hasAck ? segment.acknowledgement : 0);
    writeU32(reply, header + 8, hasAck ? 0 : segment.sequence + segment.span);
    writeU16(reply, header + 12, TCP_HEADER_SIZE << 10 | RST | (hasAck ? 0 : ACK));
    writeU16(reply, header + 14, 0);
    writeU32(reply, header + 16, 0);
    const end = header + TCP_HEADER_SIZE;
    const sum = addBytes(peer.addressSum + PROTOCOL_TCP + TCP_HEADER_SIZE, reply, header, end);
    writeU16(reply, header + 16, checksumOf(sum));
    host.ring.commit(end);
    host.counters.tcpResetsOut++;
    return "done";
  }
}
