/**
 * A pinger on top of the user-space driver: ARP in both directions, ICMP echo, and two throughput figures.
 *
 * Steps, each skipped when it is not asked for:
 *
 *     resolve   ARP until the target's MAC is known, again after each restart of the device side
 *     ping      one echo request per interval; one that is not answered is lost
 *     send      UDP to the discard port (RFC 863) for a while: frames and bits per second to the device
 *     receive   UDP from the responder's chargen port: the same from the device
 *
 * The device side may vanish and come back at any moment, which shows as lost pings and nothing else.
 */

import { NET_HEADER_SIZE } from "../../virtio/net_header.ts";
import { allocate } from "../../linux/arena.ts";
import type { Deferred, Reactor, Task } from "../../linux/reactor.ts";
import type { IovecList } from "../../memory/mod.ts";
import * as arp from "../../network/protocols/arp.ts";
import { EtherType, readEthertype, writeEthernetHeader } from "../../network/protocols/ethernet.ts";
import { readEchoReply, writeEchoRequest } from "../../network/protocols/icmp.ts";
import {
  formatIpv4Address,
  Ipv4Packet,
  parseIpv4,
  parseIpv4Address,
} from "../../network/protocols/ipv4.ts";
import { Protocol, type Station } from "../../network/protocols/packet.ts";
import * as traffic from "../../network/protocols/traffic.ts";
import { UDP_PAYLOAD, writeUdpHeaders } from "../../network/protocols/udp.ts";
import { Latency } from "../../observe/latency.ts";
import { giveUpMute } from "../mute_device.ts";
import type { NetDriver, NetDriverListener } from "./net_driver.ts";

const ARP_RETRY_MS = 200;
const ECHO_SIZE = 56;
/** As ping(8): an answer counts however late, as long as so many are open, and the last ones are waited for so long. */
const ECHO_TIMEOUT_MS = 10_000;
const MAX_OPEN = 1 << 15;
const FULL_RETRY_MS = 1;
const SOURCE_PORT = 0xc000;
const BATCH = 64;
/** No frame we ask for is longer. */
const MAX_FRAME = 1514;
/** Datagrams asked for in the receive figure; more than any machine sends in the time. */
const CHARGEN_COUNT = 0x0fff_ffff;

export interface PingOptions {
  /** Whom to ping, an IPv4 address. */
  readonly target: string;
  readonly address: string;
  /** How many pings; Infinity goes on until stopped. */
  readonly count: number;
  readonly intervalMs: number;
  /** How long each throughput figure takes; 0 leaves them out. */
  readonly throughputMs: number;
  readonly print: (line: string) => void;
}

/** Frames of 1514 bytes a second and their bits, in one direction. */
export interface Throughput {
  readonly framesPerSecond: number;
  readonly megabitsPerSecond: number;
}

export interface PingResult {
  /** Pings that were due. */
  readonly sent: number;
  readonly received: number;
  /** Round trips in microseconds, ascending. */
  readonly roundTripsUs: readonly number[];
  /** The figures, if they were measured. */
  readonly toDevice?: Throughput;
  readonly fromDevice?: Throughput;
}

/** See the head of this file. */
export class Pinger implements NetDriverListener {
  readonly #target: number;
  readonly #address: number;
  readonly #identifier = 1 + Math.floor(Math.random() * 0xfffe);
  readonly #packet = new Ipv4Packet();
  readonly #in = allocate(MAX_FRAME);
  readonly #sentMs = new Map<number, number>();
  readonly #roundTripsMs: number[] = [];
  readonly #latency: Latency;
  #driver!: NetDriver;
  #wasUp = false;
  #targetMac: Uint8Array | undefined;
  #sent = 0;
  readonly #resolved: Deferred<void>;
  #allAnswered: Deferred<void> | undefined;
  /** Datagram bytes received from the chargen port, and their number. */
  #generated = 0;
  readonly #floodTask: Task = { run: () => this.#flood() };
  #flooding = false;
  #flooded: Uint8Array = new Uint8Array();

  constructor(readonly reactor: Reactor, readonly options: PingOptions) {
    this.#target = parseIpv4Address(options.target);
    this.#address = parseIpv4Address(options.address);
    this.#resolved = reactor.defer();
    this.#latency = new Latency(`pings of ${options.target}`);
  }

  use(driver: NetDriver): void {
    this.#driver = driver;
  }

  up(): void {
    this.#wasUp = true;
    const { print, target, address } = this.options;
    if (this.#sent === 0) {
      print(`PING ${target} from ${address}; features ${this.#driver.features.join(" ")}`);
    }
    this.#targetMac = undefined;
    this.#resolve();
  }

  down(): void {
    this.#targetMac = undefined;
  }

  writable(): void {
    if (this.#flooding) this.reactor.schedule(this.#floodTask);
  }

  frame(frame: IovecList): boolean {
    const length = frame.length - NET_HEADER_SIZE;
    if (length <= MAX_FRAME) {
      frame.copyOut(NET_HEADER_SIZE, this.#in.address, length);
      this.#received(this.#in.bytes, length);
    }
    return true;
  }

  #received(bytes: Uint8Array, length: number): void {
    const mac = arp.readArpReply(bytes, length, this.#target);
    if (mac !== undefined) {
      this.#targetMac = mac;
      return this.#resolved.resolve();
    }
    if (readEthertype(bytes) === EtherType.ARP) return this.#answerArp(bytes, length);
    if (length < 34 || readEthertype(bytes) !== EtherType.IPV4) return;
    if (parseIpv4(this.#packet, bytes, length) !== "done") return;
    if (this.#packet.protocol === Protocol.UDP) this.#generated++;
    if (this.#packet.protocol === Protocol.ICMP) this.#echoReply();
  }

  #resolve(): void {
    if (!this.#driver.isUp || this.#targetMac !== undefined) return;
    const frame = this.#claim();
    if (frame !== undefined) this.#send(arp.writeArpRequest(this.#station(frame), this.#target));
    this.reactor.spawn(async () => {
      await this.reactor.sleep(ARP_RETRY_MS);
      this.#resolve();
    });
  }

  /** A kernel behind the device asks again and again where we are, and without an answer speaks no more to us. */
  #answerArp(request: Uint8Array, length: number): void {
    if (arp.checkArpRequest(request, length, this.#address) !== "done") return;
    const frame = this.#claim();
    if (frame === undefined) return;
    this.#send(arp.writeArpReply(this.#station(frame), request));
  }

  #station(slot: Uint8Array): Station {
    return { mac: this.#driver.mac, address: this.#address, slot };
  }

  /** A transmit buffer without its header. */
  #claim(): Uint8Array | undefined {
    return this.#driver.claim() ? this.#driver.frame : undefined;
  }

  #send(length: number): void {
    this.#driver.send(NET_HEADER_SIZE + length);
  }

  #echoReply(): void {
    const sequence = readEchoReply(this.#packet, this.#identifier);
    const sentMs = this.#sentMs.get(sequence);
    if (sentMs === undefined) return;
    this.#sentMs.delete(sequence);
    const roundTripMs = this.reactor.now() - sentMs;
    this.#roundTripsMs.push(roundTripMs);
    this.#latency.add(roundTripMs);
    const size = this.#packet.end - this.#packet.start;
    this.options.print(
      `${size} bytes from ${formatIpv4Address(this.#packet.source)}: ` +
        `icmp_seq=${sequence} time=${roundTripMs.toFixed(3)} ms`,
    );
    if (this.#sentMs.size === 0) this.#allAnswered?.resolve();
  }

  result(): PingResult {
    return {
      sent: this.#sent,
      received: this.#roundTripsMs.length,
      roundTripsUs: this.#roundTripsMs.map((ms) => ms * 1000).sort((a, b) => a - b),
    };
  }

  async run(): Promise<PingResult> {
    // Who counts wants an end.
    if (this.options.count !== Infinity) {
      const { side, number } = this.#driver;
      this.reactor.spawn(() => giveUpMute(side, number, () => this.#wasUp));
    }
    await this.#resolved.promise;
    await this.#ping();
    if (this.options.throughputMs === 0) return this.result();
    const toDevice = await this.#measureSending();
    const fromDevice = await this.#measureReceiving();
    return { ...this.result(), toDevice, fromDevice };
  }

  async #ping(): Promise<void> {
    while (this.#sent < this.options.count) {
      // Where a device takes none, as it stands still, none is sent; without it they are lost, as with a pulled cable.
      while (this.#targetMac !== undefined && this.#driver.isUp && !this.#driver.claim()) {
        await this.reactor.sleep(FULL_RETRY_MS);
      }
      this.#sendEcho();
      if (this.#sent < this.options.count) await this.reactor.sleep(this.options.intervalMs);
    }
    const nowMs = this.reactor.now();
    for (const [sequence, sentMs] of this.#sentMs) {
      if (nowMs - sentMs > ECHO_TIMEOUT_MS) this.#sentMs.delete(sequence);
    }
    if (this.#sentMs.size === 0) return;
    this.#allAnswered = this.reactor.defer();
    const timeout = this.reactor.timer(() => this.#allAnswered?.resolve());
    timeout.arm(ECHO_TIMEOUT_MS);
    await this.#allAnswered.promise;
    this.reactor.dropTimer(timeout);
  }

  #sendEcho(): void {
    const sequence = ++this.#sent & 0xffff;
    const frame = this.#targetMac === undefined ? undefined : this.#claim();
    if (frame === undefined) return;
    writeEthernetHeader(frame, this.#targetMac!, 0, this.#driver.mac, EtherType.IPV4);
    const by = this.#station(frame);
    const length = writeEchoRequest(by, this.#target, ECHO_SIZE, this.#identifier, sequence);
    this.#sentMs.set(sequence, this.reactor.now());
    this.#sentMs.delete((sequence - MAX_OPEN) & 0xffff);
    this.#send(length);
  }

  async #measureSending(): Promise<Throughput> {
    if (this.#targetMac === undefined) return throughput(0, this.options.throughputMs);
    // Made once: the figure is that of the virtqueue, not of a checksum in JavaScript.
    this.#flooded = new Uint8Array(UDP_PAYLOAD + traffic.NUMBERED_SIZE_MAX);
    this.#datagram(this.#flooded, traffic.DISCARD_PORT, traffic.NUMBERED_SIZE_MAX);
    const before = this.#driver.counters.sent;
    const startMs = this.reactor.now();
    this.#flooding = true;
    this.reactor.schedule(this.#floodTask);
    await this.reactor.sleep(this.options.throughputMs);
    this.#flooding = false;
    const frames = this.#driver.counters.sent - before;
    return throughput(frames, this.reactor.now() - startMs);
  }

  #flood(): boolean {
    for (let i = 0; i < BATCH && this.#flooding; i++) {
      const frame = this.#targetMac === undefined ? undefined : this.#claim();
      if (frame === undefined) return false;
      frame.set(this.#flooded);
      this.#send(this.#flooded.length);
    }
    return this.#flooding;
  }

  #datagram(frame: Uint8Array, port: number, size: number): number {
    writeEthernetHeader(frame, this.#targetMac!, 0, this.#driver.mac, EtherType.IPV4);
    writeUdpHeaders(frame, size, [this.#address, SOURCE_PORT], [this.#target, port]);
    return UDP_PAYLOAD + size;
  }

  async #measureReceiving(): Promise<Throughput> {
    await this.#requestGenerator(CHARGEN_COUNT);
    const before = this.#generated;
    const startMs = this.reactor.now();
    await this.reactor.sleep(this.options.throughputMs);
    const result = throughput(this.#generated - before, this.reactor.now() - startMs);
    await this.#requestGenerator(0);
    return result;
  }

  async #requestGenerator(count: number): Promise<void> {
    // Right behind a flood every buffer may be on its way.
    for (let attempt = 0; attempt < 100; attempt++) {
      const frame = this.#targetMac === undefined ? undefined : this.#claim();
      if (frame !== undefined) {
        traffic.writeChargenRequest(frame, UDP_PAYLOAD, count, traffic.NUMBERED_SIZE_MAX);
        return this.#send(
          this.#datagram(frame, traffic.CHARGEN_PORT, traffic.CHARGEN_REQUEST_SIZE),
        );
      }
      await this.reactor.sleep(1);
    }
  }
}

function throughput(frames: number, elapsedMs: number): Throughput {
  const framesPerSecond = Math.round(1000 * frames / elapsedMs);
  const bits = framesPerSecond * (UDP_PAYLOAD + traffic.NUMBERED_SIZE_MAX) * 8;
  return { framesPerSecond, megabitsPerSecond: Math.round(bits / 1e6) };
}

function quantile(ascending: readonly number[], share: number): number {
  return ascending[Math.min(ascending.length - 1, Math.floor(share * ascending.length))] ?? 0;
}

/** The result in lines for people, as ping(8) ends. */
export function describeResult(result: PingResult): string[] {
  const { sent, received, roundTripsUs, toDevice, fromDevice } = result;
  const lost = sent === 0 ? 0 : Math.round(100 * (sent - received) / sent);
  const lines = [`${sent} packets transmitted, ${received} received, ${lost}% packet loss`];
  if (received > 0) {
    const times = [0, 0.5, 0.99, 1].map((share) => quantile(roundTripsUs, share).toFixed(0));
    lines.push(`round trip min/median/p99/max = ${times.join("/")} us`);
  }
  for (const [to, figure] of [["to", toDevice], ["from", fromDevice]] as const) {
    if (figure === undefined) continue;
    const { framesPerSecond, megabitsPerSecond } = figure;
    lines.push(
      `${to} the device: ${framesPerSecond} frames/s of 1514 bytes, ${megabitsPerSecond} Mbit/s`,
    );
  }
  return lines;
}
