/** What the responder's tests share: frames from hex, a second checksum, a bench that checks every answer. */

import { assert, assertEquals } from "@std/assert";
import { Responder, type ResponderOptions } from "../../src/network/responder/responder.ts";

export const GUEST_MAC = "525400123456";
export const HOST_MAC = "52550a000202";
export const GUEST = "0a00020f"; // 10.0.2.15
export const HOST = "0a000202"; // 10.0.2.2

export const HOST6 = "fd000000000000000000000000000002";
export const HOST_LINK_LOCAL = "fe8000000000000050550afffe000202";
export const GUEST6 = "fd00000000000000505400fffe123456";
export const GUEST_LINK_LOCAL = "fe80000000000000505400fffe123456";

/** A station's addresses in hex. */
export interface Identity {
  readonly mac: string;
  readonly address: string;
  readonly address6: string;
  readonly linkLocal: string;
}

const OURS: Identity = {
  mac: HOST_MAC,
  address: HOST,
  address6: HOST6,
  linkLocal: HOST_LINK_LOCAL,
};

/** mulberry32: small, seeded, good enough to place errors. */
export function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

export function bytes(hex: string): Uint8Array {
  const digits = hex.replace(/\s/g, "");
  assert(digits.length % 2 === 0 && /^[0-9a-f]*$/.test(digits), `bad hex ${hex}`);
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

export function hex(data: Uint8Array): string {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function u8(value: number): string {
  return (value & 0xff).toString(16).padStart(2, "0");
}

export function u16(value: number): string {
  return (value & 0xffff).toString(16).padStart(4, "0");
}

export function u32(value: number): string {
  return (value >>> 0).toString(16).padStart(8, "0");
}

/** RFC 1071 as one would do it on paper. */
export function naiveChecksum(data: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < data.length; i++) {
    sum += i % 2 === 0 ? data[i] * 256 : data[i];
    if (sum > 0xffff) sum -= 0xffff;
  }
  return 0xffff - sum;
}

export function read(data: Uint8Array, at: number, size: number): number {
  let value = 0;
  for (let i = 0; i < size; i++) value = value * 256 + data[at + i];
  return value;
}

/** An IPv4 frame from the guest, made of hex parts, with naive checksums. */
export function ipv4(protocol: number, payload: string, options: {
  from?: string;
  to?: string;
  mac?: string;
  fragment?: number;
  ipOptions?: string;
  sourceMac?: string;
} = {}): Uint8Array {
  const ipOptions = options.ipOptions ?? "";
  const header = (checksum: number) =>
    bytes(`4${(5 + ipOptions.length / 8).toString(16)}00
      ${u16(20 + ipOptions.length / 2 + bytes(payload).length)}
      0001 ${u16(options.fragment ?? 0)} 40 ${protocol.toString(16).padStart(2, "0")}
      ${u16(checksum)} ${options.from ?? GUEST} ${options.to ?? HOST} ${ipOptions}`);
  return bytes(
    `${options.mac ?? HOST_MAC}${options.sourceMac ?? GUEST_MAC}0800` +
      hex(header(naiveChecksum(header(0)))) + hex(bytes(payload)),
  );
}

/** A UDP frame from the guest with a naive checksum. */
export function udp(
  sourcePort: number,
  port: number,
  payload: string,
  options: Parameters<typeof ipv4>[2] = {},
): Uint8Array {
  const length = 8 + bytes(payload).length;
  const datagram = (checksum: number) =>
    `${u16(sourcePort)}${u16(port)}${u16(length)}${u16(checksum)}${payload}`;
  const pseudo = `${options.from ?? GUEST}${options.to ?? HOST}0011${u16(length)}`;
  const checksum = naiveChecksum(bytes(pseudo + datagram(0)));
  return ipv4(17, datagram(checksum === 0 ? 0xffff : checksum), options);
}

/** Whatever the responder sends is whole: lengths, checksums, our addresses. */
export function verify(frame: Uint8Array, is: Identity = OURS): void {
  assert(frame.length >= 42 && frame.length <= 1514, `length ${frame.length}`);
  assertEquals(hex(frame.subarray(6, 12)), is.mac);
  const ethertype = read(frame, 12, 2);
  if (ethertype === 0x0806) return assertEquals(frame.length, 42);
  if (ethertype === 0x86dd) return verify6(frame, is);
  assertEquals(ethertype, 0x0800);
  assertEquals(read(frame, 14, 1), 0x45);
  assertEquals(read(frame, 16, 2), frame.length - 14);
  assertEquals(naiveChecksum(frame.subarray(14, 34)), 0);
  assertEquals(hex(frame.subarray(26, 30)), is.address);
  const payload = frame.subarray(34);
  if (frame[23] === 1) return assertEquals(naiveChecksum(payload), 0);
  verifyTransport(frame[23], hex(frame.subarray(26, 34)), payload);
}

function verify6(frame: Uint8Array, is: Identity): void {
  assertEquals(read(frame, 14, 4), 0x60000000);
  assertEquals(read(frame, 18, 2), frame.length - 54);
  const source = hex(frame.subarray(22, 38));
  assert(source === is.address6 || source === is.linkLocal, source);
  const payload = frame.subarray(54);
  const discovery = frame[20] === 58 && payload[0] >= 133 && payload[0] <= 137;
  assertEquals(frame[21], discovery ? 255 : 64);
  verifyTransport(frame[20], hex(frame.subarray(22, 54)), payload);
}

function verifyTransport(protocol: number, addresses: string, payload: Uint8Array): void {
  assert(protocol === 6 || protocol === 17 || protocol === 58, `protocol ${protocol}`);
  if (protocol === 17) {
    assertEquals(read(payload, 4, 2), payload.length);
    assert(read(payload, 6, 2) !== 0);
  }
  const pseudo = bytes(`${addresses}00${u8(protocol)}${u16(payload.length)}`);
  assertEquals(naiveChecksum(new Uint8Array([...pseudo, ...payload])), 0);
}

/** RFC 864's pattern, one line per row. */
export function pattern(length: number): Uint8Array {
  const ring = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)).join("");
  const lines: string[] = [];
  for (let line = 0; line * 74 < length; line++) {
    const start = line % 95;
    lines.push((ring + ring).slice(start, start + 72));
  }
  return new TextEncoder().encode(lines.join("\r\n") + "\r\n").slice(0, length);
}

/** An IPv6 frame from the guest, made of hex parts. */
export function ipv6(protocol: number, payload: string, options: {
  from?: string;
  to?: string;
  mac?: string;
  hopLimit?: number;
  /** A hop-by-hop header's options. */
  hopByHop?: string;
} = {}): Uint8Array {
  let body = hex(bytes(payload));
  let next = protocol;
  if (options.hopByHop !== undefined) {
    const size = (bytes(options.hopByHop).length + 2) / 8 - 1;
    body = u8(protocol) + u8(size) + options.hopByHop + body;
    next = 0;
  }
  return bytes(
    `${options.mac ?? HOST_MAC}${GUEST_MAC}86dd 60000000 ${u16(body.length / 2)} ${u8(next)}
    ${u8(options.hopLimit ?? 255)} ${options.from ?? GUEST6} ${options.to ?? HOST6} ${body}`,
  );
}

/** The naive checksum of a message over IPv6, its checksum field 0. */
export function checksum6(
  protocol: number,
  message: string,
  options: { from?: string; to?: string } = {},
): number {
  const data = bytes(message);
  const pseudo = `${options.from ?? GUEST6}${options.to ?? HOST6}${u32(data.length)}000000`;
  return naiveChecksum(new Uint8Array([...bytes(pseudo + u8(protocol)), ...data]));
}

/** An ICMPv6 frame from the guest with a naive checksum; `rest` is what follows the checksum. */
export function icmpv6(
  kind: string,
  rest: string,
  options: Parameters<typeof ipv6>[2] = {},
): Uint8Array {
  return ipv6(58, `${kind}${u16(checksum6(58, `${kind}0000${rest}`, options))}${rest}`, options);
}

/** The same for UDP. */
export function udp6(
  sourcePort: number,
  port: number,
  payload: string,
  options: Parameters<typeof ipv6>[2] = {},
): Uint8Array {
  const length = 8 + bytes(payload).length;
  const datagram = (checksum: number) =>
    `${u16(sourcePort)}${u16(port)}${u16(length)}${u16(checksum)}${payload}`;
  const sum = checksum6(17, datagram(0), options);
  return ipv6(17, datagram(sum === 0 ? 0xffff : sum), options);
}

export class Bench {
  nowMs = 1000;
  readonly responder: Responder;
  readonly #buffer = new Uint8Array(2048);

  /** Whose frames are expected; without it they are not looked at. */
  identity: Identity | undefined = OURS;

  constructor(options: ResponderOptions = {}) {
    this.responder = new Responder(options, () => this.nowMs);
  }

  /** Hands a frame in; unlike the slice, the buffer it lies in is larger than the frame. */
  give(frame: Uint8Array, trusted = false): void {
    const buffer = new Uint8Array(frame.length + 64).fill(0xee);
    buffer.set(frame);
    this.responder.handle(buffer, frame.length, trusted);
  }

  /** Takes one frame out and verifies it. */
  take(): Uint8Array | undefined {
    const announced = this.responder.nextLength();
    this.#buffer.fill(0xdd);
    const length = this.responder.next(this.#buffer);
    assertEquals(length, announced);
    assert(this.#buffer.subarray(length).every((byte) => byte === 0xdd), "wrote behind the frame");
    if (length === 0) return undefined;
    const frame = this.#buffer.slice(0, length);
    if (this.identity !== undefined) verify(frame, this.identity);
    return frame;
  }

  /** Takes one frame, which must be there. */
  takeOne(): Uint8Array {
    const frame = this.take();
    if (frame === undefined) throw new Error("there is no frame");
    return frame;
  }

  takeAll(limit = 10_000): Uint8Array[] {
    const frames: Uint8Array[] = [];
    for (let frame = this.take(); frame !== undefined; frame = this.take()) {
      frames.push(frame);
      assert(frames.length <= limit, "no end of frames");
    }
    return frames;
  }

  /** Gives a frame and expects exactly these answers. */
  exchange(frame: Uint8Array, ...answers: string[]): void {
    this.give(frame);
    assertEquals(this.takeAll().map(hex), answers.map((answer) => hex(bytes(answer))));
  }
}
