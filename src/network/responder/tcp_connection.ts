/**
 * One TCP connection, from the SYN that opened it (RFC 9293, server side only).
 *
 * Theory of operation. What is sent is a stream whose bytes follow from their offset: a short head, then a
 * {@link Pattern}. So nothing is buffered for retransmission: a segment is made when the driver side takes
 * it ({@link Connection.nextLength}, {@link Connection.write}), and made again if need be. What is
 * received is consumed at once, so the window that we offer never closes; a segment that is not the next
 * one is dropped and answered with a duplicate acknowledgement, and the peer sends it again.
 *
 * Positions count our sequence space from the initial sequence number on, without wrapping: 0 is the SYN,
 * 1 the first byte, and the FIN comes after the last one. `una`, `nxt` and `max` are RFC 9293's SND.UNA
 * and SND.NXT, and the highest position ever sent; after a timeout `nxt` goes back to `una`.
 *
 * States. `syn-received` until the peer acknowledges our SYN. Then "open": each side closes on its own, and
 * the RFC's names for the combinations (ESTABLISHED to LAST_ACK) follow from three booleans, see
 * {@link Connection.state}. When both have closed, the connection is `closed`, that is, free, or waits in
 * `time-wait` if we closed first.
 *
 * Retransmission: RFC 6298 with the smaller minimum that everybody uses, exponential backoff, and Karn's
 * rule with one timed segment at a time. A window of 0 is probed with one byte by the same timer.
 * Congestion control: slow start and avoidance as in RFC 5681 with the initial window of RFC 6928, fast
 * retransmit and NewReno's recovery (RFC 6582). Without timestamps and selective acknowledgements: nobody
 * loses frames on this link but for want of room.
 */

import { addBytes, checksumOf } from "./checksum.ts";
import { ETHERNET_FRAME_MAX } from "./ethernet.ts";
import type { Host } from "./host.ts";
import { HTTP_HEAD_SIZE_MAX, HttpRequest } from "./http.ts";
import { PROTOCOL_TCP } from "./ipv4.ts";
import { copyBytes, writeU16, writeU32 } from "./network_order.ts";
import { CHARACTERS, type Pattern } from "./pattern.ts";
import { Peer } from "./peer.ts";
import type { Packet } from "./packet.ts";
import {
  ACK,
  FIN,
  OPTION_MSS,
  OPTION_NOP,
  OPTION_WINDOW_SCALE,
  PSH,
  RST,
  SYN,
  TCP_HEADER_SIZE,
  type TcpSegment,
} from "./tcp_segment.ts";

/** The window that we offer, and how far its field is shifted; without scaling it is 65535. */
export const RECEIVE_WINDOW: number = 4 << 20;
const RECEIVE_SHIFT = 7;
const UNSCALED_WINDOW_MAX = 0xffff;

/** The retransmission timeout until a round-trip time is known (RFC 6298 2.1). */
export const RTO_INITIAL_MS = 1000;
/** RFC 6298 wants 1 s; Linux and the others have 200 ms. */
export const RTO_MIN_MS = 200;
/** The largest, backoff included. */
export const RTO_MAX_MS = 16_000;
/** Timeouts in a row without a sign of life before the connection is given up. */
export const RETRIES_MAX = 8;
/** The same for our SYN. */
export const SYN_RETRIES_MAX = 4;
/** Two maximum segment lifetimes, on a link without routers; a new SYN ends it early. */
export const TIME_WAIT_MS = 10_000;
/** How long a peer that has been told that we are through may leave its half open. */
export const FIN_WAIT_MS = 30_000;

const MSS_DEFAULT_4 = 536;
const MSS_DEFAULT_6 = 1220;
/** No smaller segments, whatever the peer says: each would cost a frame. */
const MSS_MIN = 64;
const INITIAL_WINDOW_SEGMENTS = 10;
/** What is in flight at most. */
const CONGESTION_WINDOW_MAX = 4 << 20;
const DUPLICATES_FOR_LOSS = 3;
const DUPLICATES_DUE_MAX = 8;
const SYN_OPTIONS_SIZE = 8;

/** The state by the names of RFC 9293 3.3.2, in lower case. */
export type TcpState =
  | "closed"
  | "syn-received"
  | "established"
  | "fin-wait-1"
  | "fin-wait-2"
  | "closing"
  | "close-wait"
  | "last-ack"
  | "time-wait";

/** What happened that the owner has to act on. */
export type TcpEvent = "none" | "opened" | "received" | "reset" | "refused" | "challenge";

/** See the head of this file. One record serves one connection after the other. */
export class Connection {
  /** Who it is with. */
  readonly peer: Peer = new Peer();
  /** What was asked for, on the web server's port. */
  readonly request: HttpRequest = new HttpRequest();
  /** What goes out first: an HTTP answer's head. */
  readonly head: Uint8Array = new Uint8Array(HTTP_HEAD_SIZE_MAX);
  /** Our port. */
  port = 0;
  /** The peer's. */
  peerPort = 0;
  /** When it was opened. */
  openedMs = 0;
  /** When the peer was last heard. */
  heardMs = 0;
  /** When {@link Connection.timeout} is due. */
  deadlineMs: number = Infinity;
  /** Bytes that the peer sent in order. */
  bytesIn = 0;
  /** Where the bytes that the last segment brought begin in its frame. */
  receivedStart = 0;
  /** Where they end. */
  receivedEnd = 0;
  /** The peer has closed its half. */
  peerClosed = false;

  readonly #host: Host;
  readonly #now: () => number;

  #used = false;
  #synReceived = false;
  #timeWait = false;

  // Receiving.
  #initialReceived = 0;
  #receiveNext = 0;
  #receiveShift = -1;
  #ackDue = false;
  #duplicatesDue = 0;

  // Sending.
  #initial = 0;
  #una = 0;
  #nxt = 0;
  #max = 0;
  #synDue = false;
  #lossDue = false;
  #probeDue = false;
  #closing = false;
  #finAcknowledged = false;
  #closedFirst = false;
  #headLength = 0;
  #body: Pattern = CHARACTERS;
  #bodyLength = 0;
  #mss = 0;
  #window = 0;
  #windowShift = 0;
  #windowSequence = 0;
  #windowAcknowledgement = 0;

  // Congestion and time.
  #congestionWindow = 0;
  #threshold = Infinity;
  #duplicates = 0;
  #recovering = false;
  #recover = 0;
  #roundTripMs = -1;
  #variationMs = 0;
  #rtoMs = RTO_INITIAL_MS;
  #backoff = 0;
  #retries = 0;
  #timedEnd = -1;
  #timedMs = 0;

  // The plan for the next segment.
  #planFlags = 0;
  #planPosition = 0;
  #planLength = 0;

  /** A free record. */
  constructor(host: Host, now: () => number) {
    this.#host = host;
    this.#now = now;
  }

  /** Whether it is somebody's. */
  get used(): boolean {
    return this.#used;
  }

  /** Whether the peer has yet to acknowledge our SYN. */
  get halfOpen(): boolean {
    return this.#used && this.#synReceived;
  }

  /** Whether nothing is left but to wait for stray segments. */
  get timeWait(): boolean {
    return this.#timeWait;
  }

  /** The state's name. */
  get state(): TcpState {
    if (!this.#used) return "closed";
    if (this.#synReceived) return "syn-received";
    if (this.#timeWait) return "time-wait";
    if (!this.#closing) return this.peerClosed ? "close-wait" : "established";
    if (this.#finAcknowledged) return "fin-wait-2";
    if (!this.peerClosed) return "fin-wait-1";
    return this.#closedFirst ? "closing" : "last-ack";
  }

  /** Bytes of our stream that the peer has acknowledged. */
  get bytesOut(): number {
    return Math.max(0, Math.min(this.#una, this.#dataEnd) - 1);
  }

  /** The position after the last byte that there is to send. */
  get #dataEnd(): number {
    return 1 + this.#headLength + this.#bodyLength;
  }

  /** The position after the last byte or FIN that there is to send. */
  get #end(): number {
    return this.#closing ? this.#dataEnd + 1 : this.#dataEnd;
  }

  /** Begins with a SYN; `initial` is our initial sequence number. */
  open(frame: Uint8Array, packet: Packet, segment: TcpSegment, initial: number): void {
    this.peer.set(frame, packet);
    this.request.clear();
    this.port = segment.destinationPort;
    this.peerPort = segment.sourcePort;
    this.openedMs = this.heardMs = this.#now();
    this.bytesIn = 0;
    this.peerClosed = false;
    this.#used = true;
    this.#synReceived = true;
    this.#timeWait = false;

    this.#initialReceived = segment.sequence;
    this.#receiveNext = (segment.sequence + 1) >>> 0;
    this.#receiveShift = segment.windowShift < 0 ? -1 : RECEIVE_SHIFT;
    this.#ackDue = false;
    this.#duplicatesDue = 0;

    this.#initial = initial;
    this.#una = this.#nxt = this.#max = 0;
    this.#synDue = true;
    this.#lossDue = this.#probeDue = false;
    this.#closing = this.#finAcknowledged = this.#closedFirst = false;
    this.#headLength = this.#bodyLength = 0;
    const offered = segment.mss || (packet.version === 4 ? MSS_DEFAULT_4 : MSS_DEFAULT_6);
    this.#mss = Math.max(MSS_MIN, Math.min(offered, this.#ownMss()));
    this.#window = segment.window;
    this.#windowShift = Math.max(0, segment.windowShift);
    this.#windowSequence = segment.sequence;
    this.#windowAcknowledgement = initial;

    this.#congestionWindow = INITIAL_WINDOW_SEGMENTS * this.#mss;
    this.#threshold = Infinity;
    this.#duplicates = 0;
    this.#recovering = false;
    this.#recover = 0;
    this.#roundTripMs = -1;
    this.#rtoMs = RTO_INITIAL_MS;
    this.#backoff = this.#retries = 0;
    this.#timedEnd = -1;
    this.deadlineMs = Infinity;
  }

  /** Is free from here on. */
  free(): void {
    this.#used = false;
    this.#synReceived = false;
    this.#timeWait = false;
    this.#synDue = this.#lossDue = this.#ackDue = false;
    this.#duplicatesDue = 0;
    this.deadlineMs = Infinity;
  }

  /** Whether a segment belongs here. */
  owns(frame: Uint8Array, packet: Packet, segment: TcpSegment): boolean {
    return this.#used && segment.sourcePort === this.peerPort &&
      segment.destinationPort === this.port && this.peer.sent(frame, packet);
  }

  /**
   * Whether a SYN without ACK may take the place of this connection: it never got further than its own
   * SYN, or is only waiting and the new one's number is higher (RFC 9293 3.6.1).
   */
  yieldsTo(segment: TcpSegment): boolean {
    if (this.#synReceived) return segment.sequence !== this.#initialReceived;
    return this.#timeWait && ((segment.sequence - this.#receiveNext) | 0) > 0;
  }

  /** Sends the first `headLength` bytes of {@link Connection.head} and then a pattern's first bytes. */
  send(headLength: number, body: Pattern, bodyLength: number): void {
    this.#headLength = headLength;
    this.#body = body;
    this.#bodyLength = bodyLength;
  }

  /** Closes our half after what there is to send; an endless stream ends with what has been sent. */
  close(): void {
    if (this.#closing) return;
    if (this.#bodyLength === Infinity) {
      this.#bodyLength = Math.max(0, this.#max - 1 - this.#headLength);
    }
    this.#closing = true;
    this.#closedFirst = !this.peerClosed;
  }

  /** Takes a segment of this connection (RFC 9293 3.10.7.4), in that order. */
  receive(segment: TcpSegment): TcpEvent {
    const nowMs = this.heardMs = this.#now();
    const { flags, span } = segment;
    this.receivedStart = this.receivedEnd = segment.end;
    /** How far behind the next expected byte the segment begins. */
    const offset = (segment.sequence - this.#receiveNext) | 0;
    const acceptable = span === 0
      ? offset >= 0 && offset < this.#receiveWindow()
      : offset < this.#receiveWindow() && offset + span > 0;
    if (!acceptable) return this.#receiveUnacceptable(segment, span);
    if ((flags & RST) !== 0) {
      // RFC 5961 3.2: only the exact number; a guess within the window is asked again.
      if (offset !== 0) return "challenge";
      this.free();
      return "reset";
    }
    // RFC 5961 4.2: a peer that has forgotten the connection answers the challenge with RST.
    if ((flags & SYN) !== 0) return "challenge";
    if ((flags & ACK) === 0) return "none";

    const acknowledged = this.#una +
      ((segment.acknowledgement - this.#sequence(this.#una)) | 0);
    let event: TcpEvent = "none";
    if (this.#synReceived) {
      // Nothing but the SYN was sent.
      if (acknowledged !== 1 || this.#max !== 1) return "refused";
      this.#synReceived = false;
      this.#synDue = false;
      event = "opened";
      this.#takeWindow(segment);
    }
    if (acknowledged > this.#max) return "challenge";
    const payload = segment.end - segment.start;
    if (acknowledged > this.#una) {
      this.#advance(acknowledged, nowMs);
      this.#updateWindow(segment, nowMs);
    } else if (acknowledged === this.#una) {
      this.#retries = 0;
      const unchanged = segment.window << this.#windowShift === this.#window;
      const duplicate = span === 0 && unchanged && this.#max > this.#una && event === "none";
      this.#updateWindow(segment, nowMs);
      if (duplicate && this.#window > 0) this.#countDuplicate(nowMs);
    }

    if (span > 0) {
      if (offset > 0) {
        this.#duplicatesDue = Math.min(this.#duplicatesDue + 1, DUPLICATES_DUE_MAX);
      } else {
        this.#ackDue = true;
        const fresh = payload + offset;
        if (!this.peerClosed) {
          if (fresh > 0) {
            this.receivedStart = segment.start - offset;
            this.receivedEnd = segment.end;
            this.#receiveNext = (this.#receiveNext + fresh) >>> 0;
            this.bytesIn += fresh;
            if (event === "none") event = "received";
          }
          if ((flags & FIN) !== 0) {
            this.#receiveNext = (this.#receiveNext + 1) >>> 0;
            this.peerClosed = true;
            if (event === "none") event = "received";
          }
        }
      }
    }
    return event;
  }

  /** What follows from a segment after the service has seen it. */
  settle(): void {
    if (!this.#used || this.#synReceived || this.#timeWait) return;
    const nowMs = this.heardMs;
    if (this.#finAcknowledged) {
      if (!this.peerClosed) {
        if (this.deadlineMs === Infinity) this.deadlineMs = nowMs + FIN_WAIT_MS;
      } else if (this.#closedFirst) {
        this.#timeWait = true;
        this.deadlineMs = nowMs + TIME_WAIT_MS;
      } else {
        this.free();
      }
      return;
    }
    // A closed window with nothing in flight is probed, for the update that opens it may get lost.
    if (
      this.#max === this.#una && this.#nxt < this.#end && this.#window === 0 &&
      this.deadlineMs === Infinity
    ) this.#startTimer(nowMs);
  }

  /** The time is up; returns false if the connection has to be given up. */
  timeout(nowMs: number): boolean {
    this.deadlineMs = Infinity;
    if (this.#timeWait || this.#finAcknowledged) {
      this.free();
      return true;
    }
    const waiting = this.#window === 0 && this.#nxt < this.#end;
    if (this.#max === this.#una && !waiting) return true;
    if (++this.#retries > (this.#synReceived ? SYN_RETRIES_MAX : RETRIES_MAX)) return false;
    // Karn: what is sent twice is not timed.
    this.#timedEnd = -1;
    if (this.#synReceived) {
      this.#synDue = true;
    } else {
      if (this.#window === 0) {
        this.#probeDue = true;
      } else {
        if (this.#backoff === 0) this.#reduceThreshold();
        this.#congestionWindow = this.#mss;
      }
      this.#recovering = false;
      this.#lossDue = false;
      this.#duplicates = 0;
      this.#recover = this.#max;
      this.#nxt = this.#una;
    }
    if (this.#rtoMs * 2 ** this.#backoff < RTO_MAX_MS) this.#backoff++;
    this.#startTimer(nowMs);
    return true;
  }

  /** Acknowledges again, as an answer to something odd. */
  challenge(): void {
    this.#ackDue = true;
  }

  /** Plans the next segment; returns the bytes of its frame, 0 if there is nothing to send. */
  nextLength(): number {
    if (!this.#used) return 0;
    const headers = this.peer.payload + TCP_HEADER_SIZE;
    if (this.#synReceived) {
      if (!this.#synDue) return 0;
      this.#planFlags = SYN | ACK;
      this.#planPosition = 0;
      this.#planLength = 0;
      return headers + SYN_OPTIONS_SIZE;
    }
    this.#planFlags = ACK;
    this.#planLength = 0;
    // A duplicate acknowledgement counts only if it carries nothing.
    if (this.#duplicatesDue > 0) {
      this.#planPosition = this.#nxt;
      return headers;
    }
    if (this.#lossDue) {
      if (this.#planData(this.#una, this.#mss)) return headers + this.#planLength;
      this.#lossDue = false;
    }
    if (this.#nxt < this.#end) {
      const limit = this.#una + Math.floor(Math.min(this.#congestionWindow, this.#window));
      const room = Math.max(limit - this.#nxt, this.#probeDue ? 1 : 0);
      if (room > 0 && this.#planData(this.#nxt, room)) return headers + this.#planLength;
    }
    if (this.#ackDue) {
      this.#planFlags = ACK;
      this.#planPosition = this.#nxt;
      this.#planLength = 0;
      return headers;
    }
    return 0;
  }

  /**
   * Makes the planned segment, which {@link Connection.nextLength} has just announced, in `target`, or only
   * does as if it had been sent if that is too small.
   *
   * @returns the frame's length, 0 if it did not fit
   */
  write(target: Uint8Array): number {
    const flags = this.#planFlags;
    const position = this.#planPosition;
    const payload = this.#planLength;
    const header = this.peer.payload;
    const syn = (flags & SYN) !== 0;
    const headerSize = TCP_HEADER_SIZE + (syn ? SYN_OPTIONS_SIZE : 0);
    const length = header + headerSize + payload;
    this.#account(flags, position, payload);
    if (length > target.length) return 0;

    this.peer.writeHeaders(target, this.#host.mac, PROTOCOL_TCP, headerSize + payload);
    writeU16(target, header, this.port);
    writeU16(target, header + 2, this.peerPort);
    writeU32(target, header + 4, this.#sequence(position));
    writeU32(target, header + 8, this.#receiveNext);
    writeU16(target, header + 12, headerSize << 10 | flags);
    const scaled = !syn && this.#receiveShift > 0;
    writeU16(
      target,
      header + 14,
      scaled ? RECEIVE_WINDOW >>> this.#receiveShift : UNSCALED_WINDOW_MAX,
    );
    // Checksum and urgent pointer.
    writeU32(target, header + 16, 0);
    if (syn) this.#writeSynOptions(target, header + TCP_HEADER_SIZE);
    let sum = this.peer.addressSum + PROTOCOL_TCP + headerSize + payload;
    sum = addBytes(sum, target, header, header + headerSize);
    if (payload > 0) sum += this.#writePayload(target, header + headerSize, position, payload);
    writeU16(target, header + 16, checksumOf(sum));
    return length;
  }

  /** Notes that a segment is on its way. */
  #account(flags: number, position: number, payload: number): void {
    const end = position + payload + ((flags & (SYN | FIN)) !== 0 ? 1 : 0);
    if (this.#duplicatesDue > 0) this.#duplicatesDue--;
    this.#ackDue = false;
    this.#host.counters.tcpSegmentsOut++;
    if (end === position) return;
    if (position < this.#max) this.#host.counters.tcpRetransmits++;
    this.#synDue = false;
    if (this.#lossDue) {
      this.#lossDue = false;
      this.#timedEnd = -1;
    } else {
      this.#probeDue = false;
      // Only what is sent for the first time is timed.
      const timed = this.#timedEnd < 0 && position === this.#max;
      if (timed || this.deadlineMs === Infinity) {
        const nowMs = this.#now();
        if (timed) {
          this.#timedEnd = end;
          this.#timedMs = nowMs;
        }
        if (this.deadlineMs === Infinity) this.#startTimer(nowMs);
      }
      this.#nxt = Math.max(this.#nxt, end);
    }
    if (end > this.#max) {
      this.#host.counters.tcpBytesOut += payload;
      this.#max = end;
    }
  }

  /** Plans data, FIN or both from a position on, with room for so many sequence numbers. */
  #planData(position: number, room: number): boolean {
    const dataEnd = this.#dataEnd;
    const headEnd = 1 + this.#headLength;
    // A segment has bytes of the head or of the body, not both.
    const available = (position < headEnd ? headEnd : dataEnd) - position;
    const wanted = Math.min(this.#mss, Math.max(0, available));
    // Small segments wait while others are under way (RFC 9293 3.8.6.2.1).
    if (room < wanted && this.#una < position) return false;
    const length = Math.min(wanted, room);
    const end = position + length;
    const fin = this.#closing && end >= dataEnd && position <= dataEnd && room > length;
    if (length === 0 && !fin) return false;
    this.#planPosition = position;
    this.#planLength = length;
    const push = length > 0 && (end === headEnd || end === dataEnd);
    this.#planFlags = ACK | (fin ? FIN : 0) | (push ? PSH : 0);
    return true;
  }

  /** Writes bytes of the stream and returns their sum. */
  #writePayload(target: Uint8Array, at: number, position: number, length: number): number {
    const offset = position - 1;
    if (offset < this.#headLength) {
      copyBytes(target, at, this.head, offset, length);
      return addBytes(0, target, at, at + length);
    }
    return this.#body.write(target, at, offset - this.#headLength, length);
  }

  #writeSynOptions(target: Uint8Array, at: number): void {
    writeU32(target, at, OPTION_MSS << 24 | 4 << 16 | this.#ownMss());
    // Window scaling only if the peer offered it (RFC 7323 2.2).
    const scale = OPTION_NOP << 24 | OPTION_WINDOW_SCALE << 16 | 3 << 8 | this.#receiveShift;
    const nothing = OPTION_NOP * 0x01010101;
    writeU32(target, at + 4, this.#receiveShift > 0 ? scale : nothing);
  }

  /** The largest payload that fits into a frame. */
  #ownMss(): number {
    return ETHERNET_FRAME_MAX - this.peer.payload - TCP_HEADER_SIZE;
  }

  #sequence(position: number): number {
    return (this.#initial + position) >>> 0;
  }

  #receiveWindow(): number {
    return this.#receiveShift > 0 ? RECEIVE_WINDOW : UNSCALED_WINDOW_MAX;
  }

  /** Something old, or out of any order. It is told where we are; but not if it could be told for ever. */
  #receiveUnacceptable(segment: TcpSegment, span: number): TcpEvent {
    if ((segment.flags & RST) !== 0) return "none";
    if (this.#synReceived) {
      const again = (segment.flags & SYN) !== 0 && segment.sequence === this.#initialReceived;
      if (again) this.#synDue = true;
      return again ? "none" : "challenge";
    }
    if (span === 0) return "challenge";
    this.#ackDue = true;
    if (this.#timeWait) this.deadlineMs = this.heardMs + TIME_WAIT_MS;
    return "none";
  }

  /** The peer has everything before a position that is above `una`. */
  #advance(position: number, nowMs: number): void {
    const acknowledged = position - this.#una;
    this.#una = position;
    if (this.#nxt < position) this.#nxt = position;
    this.#retries = 0;
    this.#backoff = 0;
    this.#lossDue = false;
    if (this.#timedEnd >= 0 && position >= this.#timedEnd) {
      this.#measure(nowMs - this.#timedMs);
      this.#timedEnd = -1;
    }
    if (this.#closing && position === this.#dataEnd + 1) this.#finAcknowledged = true;

    const mss = this.#mss;
    let window = this.#congestionWindow;
    if (this.#recovering) {
      if (position >= this.#recover) {
        this.#recovering = false;
        window = this.#threshold;
      } else {
        // A partial acknowledgement: the next hole (RFC 6582 3.2, step 3).
        this.#lossDue = true;
        window = Math.max(window - acknowledged, 0) + mss;
      }
    } else if (window < this.#threshold) {
      window += acknowledged;
    } else {
      window += mss * acknowledged / window;
    }
    this.#congestionWindow = Math.min(window, CONGESTION_WINDOW_MAX);
    this.#duplicates = 0;
    this.deadlineMs = Infinity;
    if (position < this.#max) this.#startTimer(nowMs);
  }

  /** A third duplicate acknowledgement means a loss (RFC 5681 3.2). */
  #countDuplicate(nowMs: number): void {
    this.#duplicates++;
    if (this.#recovering) {
      const inflated = this.#congestionWindow + this.#mss;
      this.#congestionWindow = Math.min(inflated, CONGESTION_WINDOW_MAX);
    } else if (this.#duplicates === DUPLICATES_FOR_LOSS && this.#una > this.#recover) {
      this.#reduceThreshold();
      this.#recovering = true;
      this.#recover = this.#max;
      this.#lossDue = true;
      this.#congestionWindow = this.#threshold + DUPLICATES_FOR_LOSS * this.#mss;
      this.#startTimer(nowMs);
    }
  }

  #reduceThreshold(): void {
    this.#threshold = Math.max((this.#max - this.#una) / 2, 2 * this.#mss);
  }

  #takeWindow(segment: TcpSegment): void {
    this.#window = segment.window << this.#windowShift;
    this.#windowSequence = segment.sequence;
    this.#windowAcknowledgement = segment.acknowledgement;
  }

  /** Takes the window of a segment unless it is older than the one that was taken last. */
  #updateWindow(segment: TcpSegment, nowMs: number): void {
    const newer = (segment.sequence - this.#windowSequence) | 0;
    if (newer < 0) return;
    if (newer === 0 && ((segment.acknowledgement - this.#windowAcknowledgement) | 0) < 0) return;
    const closed = this.#window === 0;
    this.#takeWindow(segment);
    if (closed && this.#window > 0) {
      // A probe's byte was most likely not kept.
      this.#nxt = this.#una;
      this.#probeDue = false;
      this.#backoff = 0;
      this.deadlineMs = Infinity;
      if (this.#max > this.#una) this.#startTimer(nowMs);
    }
  }

  #startTimer(nowMs: number): void {
    this.deadlineMs = nowMs + Math.min(this.#rtoMs * 2 ** this.#backoff, RTO_MAX_MS);
  }

  /** A round-trip time was measured (RFC 6298 2). */
  #measure(sampleMs: number): void {
    if (this.#roundTripMs < 0) {
      this.#roundTripMs = sampleMs;
      this.#variationMs = sampleMs / 2;
    } else {
      const error = Math.abs(this.#roundTripMs - sampleMs);
      this.#variationMs = 0.75 * this.#variationMs + 0.25 * error;
      this.#roundTripMs = 0.875 * this.#roundTripMs + 0.125 * sampleMs;
    }
    const rtoMs = this.#roundTripMs + 4 * this.#variationMs;
    this.#rtoMs = Math.min(Math.max(rtoMs, RTO_MIN_MS), RTO_MAX_MS);
  }
}
