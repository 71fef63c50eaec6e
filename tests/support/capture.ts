/** Captures, as Debian's tshark and we ourselves see them. */

import { assert, assertEquals } from "@std/assert";
import { dissector } from "../../src/observe/dissector.ts";
import {
  LINKTYPE_ETHERNET,
  type ReadItem,
  type ReadPacket,
  readPcapng,
} from "../../src/observe/pcapng.ts";

/** An Ethernet frame of a capture. */
export type Frame = Uint8Array;

/** What is in a capture. */
export function readAll(path: string): ReadItem[] {
  const bytes = Deno.readFileSync(path);
  return [...readPcapng((at, size) => bytes.subarray(at, at + size))];
}

/** The packets of a capture; one that is cut off at the end is left out. */
export function readPackets(path: string): ReadPacket[] {
  return readAll(path).filter((item) => item.kind === "packet");
}

/** The frames of a capture, whole ones. */
export function readFrames(path: string): Frame[] {
  return readPackets(path).filter((packet) => packet.interface.linkType === LINKTYPE_ETHERNET)
    .map(({ data, length }) => {
      assertEquals(data.length, length, "a frame was cut");
      return data;
    });
}

function onesComplement(bytes: Uint8Array, sum = 0): number {
  for (let i = 0; i < bytes.length; i++) sum += i % 2 === 0 ? bytes[i]! << 8 : bytes[i]!;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return sum;
}

/** Where a TCP or UDP frame has its segment and checksum, and the sum of its pseudo-header. */
function transport(
  frame: Frame,
): { start: number; length: number; at: number; sum: number } | undefined {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const type = view.getUint16(12);
  const isIpv6 = type === 0x86dd;
  if (!isIpv6 && type !== 0x0800) return undefined;
  const protocol = frame[isIpv6 ? 20 : 23]!;
  if (protocol !== 6 && protocol !== 17) return undefined;
  const start = isIpv6 ? 54 : 14 + (frame[14]! & 15) * 4;
  const length = isIpv6 ? view.getUint16(18) : view.getUint16(16) - (start - 14);
  const addresses = isIpv6 ? frame.subarray(22, 54) : frame.subarray(26, 34);
  const at = start + (protocol === 6 ? 16 : 6);
  return { start, length, at, sum: onesComplement(addresses, length + protocol) };
}

/**
 * Whether the checksum of a TCP or UDP frame was left to whoever comes later (VIRTIO 1.2, 5.1.6.2,
 * NEEDS_CSUM): its field then holds the sum of the pseudo-header alone, not inverted. A file does not
 * have the virtio-net header, so this is the only mark; a computed checksum has that value once in 65536.
 */
export function isPartial(frame: Frame): boolean {
  const found = transport(frame);
  return found !== undefined && (frame[found.at]! << 8 | frame[found.at + 1]!) === found.sum;
}

/**
 * Whether the checksum is right as receivers judge it (RFC 1071). tshark finds 0xffff wrong where 0 would
 * do, one frame in 65536, but Linux writes that on purpose (CSUM_MANGLED_0).
 */
function isRight(frame: Frame): boolean {
  const found = transport(frame);
  if (found === undefined) return false;
  const { start, length, sum } = found;
  return onesComplement(frame.subarray(start, start + length), sum) === 0xffff;
}

/** tshark's word on a file. */
export interface Dissection {
  /** How many frames of each protocol, named as in its list. */
  readonly protocols: ReadonlyMap<string, number>;
  /** Frames, from 1 on, whose TCP or UDP checksum it finds wrong. */
  readonly badChecksums: readonly number[];
  /** Those where it finds one in an IP header or in ICMP wrong. */
  readonly badHeaders: readonly number[];
  /** Those it finds malformed. */
  readonly malformed: readonly number[];
  /** How many checksums of each protocol it found right. */
  readonly goodChecksums: Readonly<Record<string, number>>;
}

const CHECKED = ["ip", "tcp", "udp", "icmp", "icmpv6"];
const TRANSPORTS = ["tcp", "udp"];
const BAD = "0";
const GOOD = "1";

/** Has tshark read a file, checksums and all. */
export async function dissect(path: string): Promise<Dissection> {
  const checks = ["ip", "tcp", "udp"].flatMap((name) => ["-o", `${name}.check_checksum:TRUE`]);
  // A port that the kernel chose is nobody's, whatever tshark has read of it: else some streams look malformed.
  const ports = ["tcp", "udp"].flatMap((name) => ["-d", `${name}.port==1024-65535,data`]);
  const fields = [
    ...["frame.number", "_ws.col.Protocol", "_ws.malformed"],
    ...CHECKED.map((name) => `${name}.checksum.status`),
  ];
  const { code, stdout, stderr } = await new Deno.Command("tshark", {
    args: [
      ...["-n", "-r", path, ...checks, ...ports],
      ...["-T", "fields", ...fields.flatMap((name) => ["-e", name])],
    ],
    stdin: "null",
  }).output();
  const complaints = new TextDecoder().decode(stderr).split("\n")
    .filter((line) => line !== "" && !line.startsWith("Running as user"));
  assertEquals([code, complaints], [0, []], "tshark cannot read the file");
  const protocols = new Map<string, number>();
  const badChecksums: number[] = [];
  const badHeaders: number[] = [];
  const malformed: number[] = [];
  const goodChecksums = Object.fromEntries(CHECKED.map((name) => [name, 0]));
  for (const line of new TextDecoder().decode(stdout).trimEnd().split("\n")) {
    const [number, protocol = "", bad, ...states] = line.split("\t");
    protocols.set(protocol, (protocols.get(protocol) ?? 0) + 1);
    if (bad) malformed.push(Number(number));
    CHECKED.forEach((name, i) => {
      // An ICMP error holds a second header: "1,1".
      const all = (states[i] ?? "").split(",");
      const bads = TRANSPORTS.includes(name) ? badChecksums : badHeaders;
      if (all.includes(BAD)) bads.push(Number(number));
      else if (all.includes(GOOD)) goodChecksums[name] = goodChecksums[name]! + 1;
    });
  }
  return { protocols, badChecksums, badHeaders, malformed, goodChecksums };
}

/**
 * Has tshark read a capture with vmsg's dissector: a line for each packet, its protocol and what it says. None is
 * malformed or unknown.
 */
export async function dissectMessages(path: string): Promise<string[]> {
  const script = `${path}.lua`;
  await Deno.writeTextFile(script, dissector("test"));
  const fields = ["_ws.malformed", "vmsg.refused", "_ws.col.Protocol", "_ws.col.Info"];
  const { stdout, stderr } = await new Deno.Command("tshark", {
    args: [
      ...["-X", `lua_script:${script}`, "-r", path, "-T", "fields"],
      ...fields.flatMap((name) => ["-e", name]),
    ],
    stdin: "null",
  }).output();
  await Deno.remove(script);
  const complaints = new TextDecoder().decode(stderr).split("\n")
    .filter((line) => line !== "" && !line.startsWith("Running as user"));
  const lines = new TextDecoder().decode(stdout).replace(/\n$/, "").split("\n")
    .map((line) => line.split("\t"));
  const bad = lines.filter(([malformed, refused, protocol]) =>
    malformed !== "" || refused !== "" || !/^(virtio-msg|ARP|ICMP|DHCP|UDP|ICMPv6)/.test(protocol!)
  );
  assertEquals([complaints, bad], [[], []]);
  return lines.map(([, , protocol, info]) => `${protocol} ${info}`);
}

/** Asserts that a file is whole, nothing in it malformed, and every computed checksum right. */
export async function assertSound(
  path: string,
  { partial }: { partial: boolean },
): Promise<Dissection> {
  const frames = readFrames(path);
  const dissection = await dissect(path);
  const seen = [...dissection.protocols.values()].reduce((sum, count) => sum + count, 0);
  assertEquals(seen, frames.length, "frames that tshark sees");
  assertEquals([dissection.malformed, dissection.badHeaders], [[], []]);
  const bad = dissection.badChecksums.filter((number) => !isRight(frames[number - 1]!));
  const wrong = bad.filter((number) => !partial || !isPartial(frames[number - 1]!))
    .map((number) => `frame ${number}: ${hex(frames[number - 1]!.subarray(0, 80))}`);
  assertEquals(wrong, [], "frames with a wrong checksum");
  if (partial) assert(bad.length > 0, "no partial checksum: offloads are not used");
  return { ...dissection, badChecksums: bad };
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
