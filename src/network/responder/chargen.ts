/**
 * The character generator as a traffic source (protocols/traffic.ts says what is asked and sent).
 *
 * A datagram of fewer than 8 bytes gets one line of 72 characters, CR, LF. Of a pending request what is left
 * is stored: each datagram is made when it is taken. A sender is an address and a port; its new request replaces
 * the old one, and 0 datagrams end it. At most four senders have requests at a time; they take turns. Requests from
 * the ports of services that answer everything (echo, and chargen itself) are dropped, as the two would talk
 * for ever (CERT CA-1996-01).
 */

import { readU16, readU32 } from "../protocols/byte_order.ts";
import { writeUdpAnswer } from "../protocols/answer.ts";
import { ETHERNET_FRAME_MAX } from "../protocols/ethernet.ts";
import type { Packet, Verdict } from "../protocols/packet.ts";
import {
  CHARGEN_PORT,
  CHARGEN_REQUEST_SIZE,
  NUMBERED_SIZE_MIN,
  writePattern,
} from "../protocols/traffic.ts";
import { UDP_HEADER_SIZE, type UdpDatagram } from "../protocols/udp.ts";
import type { Host } from "./host.ts";
import { NumberedDatagram } from "./numbered_datagram.ts";

const SENDERS = 4;

const ECHO_PORT = 7;
const LINE_SIZE = 74;

/** One sender's pending request; free if nothing remains. */
class Sender {
  readonly datagram = new NumberedDatagram();
  port = 0;
  remaining = 0;
}

export class Chargen {
  readonly #host: Host;
  readonly #senders: Sender[] = Array.from({ length: SENDERS }, () => new Sender());
  /** Whose datagram is next; its `remaining` is 0 only if everyone's is. */
  #turn = 0;

  constructor(host: Host) {
    this.#host = host;
  }

  get pending(): number {
    return this.#senders.reduce((sum, { remaining }) => sum + remaining, 0);
  }

  receive(packet: Packet, { frame, sourcePort: port, start: at, end }: UdpDatagram): Verdict {
    if (port === 0 || port === ECHO_PORT || port === CHARGEN_PORT) return "dropped";
    if (end - at < CHARGEN_REQUEST_SIZE) return this.#sendLine(packet, port);
    const count = readU32(frame, at);
    const size = readU16(frame, at + 4);
    const udp = packet.version.payload;
    const room = ETHERNET_FRAME_MAX - udp - UDP_HEADER_SIZE;
    if (readU16(frame, at + 6) !== 0 || size < NUMBERED_SIZE_MIN || size > room) return "malformed";

    const sender = this.#senderFor(packet, port);
    if (sender === undefined) return "dropped";
    sender.port = port;
    sender.remaining = count;
    const { mac, address } = this.#host;
    const by = { mac, address, slot: sender.datagram.prepare(udp, size) };
    writeUdpAnswer(by, packet, size, CHARGEN_PORT, port);
    this.#settleTurn();
    return "done";
  }

  nextLength(): number {
    const sender = this.#senders[this.#turn];
    return sender.remaining === 0 ? 0 : sender.datagram.length;
  }

  /**
   * Makes the next frame in `target` and returns its length; 0 if no request is pending, or if it does
   * not fit: then the datagram is lost.
   */
  next(target: Uint8Array): number {
    const sender = this.#senders[this.#turn];
    if (sender.remaining === 0) return 0;
    sender.remaining--;
    this.#turn = (this.#turn + 1) % SENDERS;
    this.#settleTurn();
    return sender.datagram.next(target);
  }

  clear(): void {
    for (const sender of this.#senders) sender.remaining = 0;
  }

  /** Moves the turn to the nearest sender with something left, or leaves it. */
  #settleTurn(): void {
    for (let i = 0; i < SENDERS; i++) {
      const turn = (this.#turn + i) % SENDERS;
      if (this.#senders[turn].remaining > 0) {
        this.#turn = turn;
        return;
      }
    }
  }

  /** The sender's own place, or a free one. */
  #senderFor(packet: Packet, port: number): Sender | undefined {
    let free: Sender | undefined;
    for (const sender of this.#senders) {
      if (sender.remaining === 0) free ??= sender;
      else if (sender.port === port && sender.datagram.answers(packet)) return sender;
    }
    return free;
  }

  #sendLine(packet: Packet, port: number): Verdict {
    const host = this.#host;
    const start = packet.version.payload + UDP_HEADER_SIZE;
    writePattern(host.slot, start, start + LINE_SIZE);
    const length = writeUdpAnswer(host, packet, LINE_SIZE, CHARGEN_PORT, port);
    return host.answer(length, "chargenFrames");
  }
}
