/**
 * What the tests of network ports share: namespaces of their own, a guest's memory, frames by hand.
 *
 * A namespace here has no name: the test's thread makes it with unshare(2), and it is gone when the test
 * leaves it, however that happens. Where a test cannot run it says so in plain words and is ignored, never
 * passed; with VMSG_NET_TESTS=required it fails.
 */

import { NET_HEADER_SIZE } from "../../src/virtio/net_header.ts";
import { assert } from "@std/assert";
import { setImmediate } from "node:timers";
import { allocate } from "../../src/linux/arena.ts";
import { Fd } from "../../src/linux/fd.ts";
import { check, errno, libc } from "../../src/linux/libc.ts";
import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import { AddressSpace, IovecList } from "../../src/memory/mod.ts";
import type { NetworkPort, PortListener, PortQueue } from "../../src/network/port.ts";
import type { Log } from "../../src/observe/log.ts";
import { PATIENCE_MS } from "../support/processes.ts";

const SYS_UNSHARE = Deno.build.arch === "x86_64" ? 272n : 97n;
const SYS_SETNS = Deno.build.arch === "x86_64" ? 308n : 268n;
const CLONE_NEWNET = 0x4000_0000n;

/** A network namespace; the thread that made it is in it. Dispose goes back to where the thread was. */
export class Namespace implements Disposable {
  readonly #before: Fd;
  readonly #own: Fd;

  constructor() {
    this.#before = currentNamespace();
    check(libc.syscall(SYS_UNSHARE, CLONE_NEWNET, 0n), "unshare");
    this.#own = currentNamespace();
    ip("link set lo up");
  }

  /** Goes (back) into it. */
  enter(): void {
    check(libc.syscall(SYS_SETNS, BigInt(this.#own.number), CLONE_NEWNET), "setns");
  }

  [Symbol.dispose](): void {
    check(libc.syscall(SYS_SETNS, BigInt(this.#before.number), CLONE_NEWNET), "setns");
    this.#own[Symbol.dispose]();
    this.#before[Symbol.dispose]();
  }
}

function currentNamespace(): Fd {
  // A namespace file opens for reading only.
  return new Fd(check(libc.open(CURRENT, 0o2000000, 0), "open the thread's namespace"));
}
const CURRENT = new TextEncoder().encode("/proc/thread-self/ns/net\0");

/** Runs `ip` with words that contain no blanks, in the thread's namespace. */
export function ip(command: string): string {
  const { success, stdout, stderr } = new Deno.Command("ip", { args: command.split(" ") })
    .outputSync();
  assert(success, `ip ${command}: ${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

/** Sets a number of the kernel's for the thread's namespace, as in "ipv4/tcp_min_tso_segs". */
export function setNet(name: string, value: number): void {
  Deno.writeTextFileSync(`/proc/sys/net/${name}`, `${value}`);
}

/**
 * Has the kernel look for neighbours at an interface for as long as a test waits, and not for three seconds: whoever
 * answers has to be given a processor first.
 */
export function lookPatiently(name: string): void {
  for (const family of ["ipv4", "ipv6"]) setNet(`${family}/neigh/${name}/mcast_solicit`, 600);
}

/** A ping that ends with its third answer, whenever that comes. */
export const THREE_PINGS: readonly string[] = [
  "-c",
  "3",
  "-i",
  "0.1",
  "-w",
  `${PATIENCE_MS / 1000}`,
];

/** Whether PATH has a program. */
export function has(program: string): boolean {
  const directories = program.startsWith("/") ? [""] : (Deno.env.get("PATH") ?? "").split(":");
  return directories.some((directory) => {
    try {
      return Deno.statSync(`${directory}/${program}`).isFile;
    } catch {
      return false;
    }
  });
}

/** Deno 2.6 counts a child until it has seen its end itself, which may be after the test. */
const COUNTS_CHILDREN = Deno.version.deno.startsWith("2.6.");

/** For tests whose passt ends after them; what it must not leave behind they assert themselves. */
export const ENDS_LATER = COUNTS_CHILDREN ? { sanitizeOps: false, sanitizeResources: false } : {};

/** Registers a test that needs root for network namespaces, and some programs. */
export function networkTest(
  name: string,
  programs: readonly string[],
  body: () => void | Promise<void>,
): void {
  const missing = programs.filter((program) => !has(program)).map((program) => `no ${program}`);
  if (Deno.uid() !== 0) missing.unshift("needs root");
  if (missing.length === 0) {
    Deno.test({ name, fn: body, ...(programs.includes("passt") ? ENDS_LATER : {}) });
    return;
  }
  const why = missing.join("; ");
  if (Deno.env.get("VMSG_NET_TESTS") === "required") {
    Deno.test(name, () => {
      throw new Error(`VMSG_NET_TESTS=required, but ${why}`);
    });
    return;
  }
  console.log(`NOT RUN: ${name}: ${why}`);
  Deno.test({ name, ignore: true, fn: () => {} });
}

/** Turns a reactor, and Deno's own loop, until something holds. */
export async function turnUntil(
  reactor: Reactor,
  holds: () => boolean,
  what: string,
  timeoutMs = PATIENCE_MS,
): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs;
  const tick = reactor.timer(() => {});
  try {
    while (!holds()) {
      assert(performance.now() < deadlineMs, `${what}: not within ${timeoutMs} ms`);
      tick.arm(2);
      reactor.turn();
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  } finally {
    reactor.dropTimer(tick);
  }
}

/** A log that keeps its lines. */
export function keepingLog(lines: string[]): Log {
  const keep = (line: string) => void lines.push(line);
  return { error: keep, warn: keep, info: keep, debug: keep };
}

/** Memory as a guest has it, where buffers come in pieces. */
export class GuestMemory implements Disposable {
  static readonly size: number = 512 << 10;
  readonly list = new IovecList(512);
  readonly address: bigint;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly #mapping: Mapping = mapAnonymous(GuestMemory.size);
  readonly #space = new AddressSpace();

  constructor() {
    this.address = this.#mapping.address;
    this.bytes = new Uint8Array(this.#mapping.buffer);
    this.view = new DataView(this.#mapping.buffer);
    this.#space.add(0, GuestMemory.size, this.#mapping);
  }

  /**
   * The list as a buffer of `length` bytes from `at` on, in pieces.
   *
   * @param pieces the length of each piece; the last one is as long as it must be
   */
  buffer(at: number, length: number, pieces: readonly number[] = []): IovecList {
    this.list.clear();
    for (const piece of [...pieces, Infinity]) {
      const part = Math.min(piece, length);
      if (part <= 0) break;
      assert(this.#space.translate(at, part, this.list));
      at += part;
      length -= part;
    }
    return this.list;
  }

  /** A frame in the memory, behind a header of zeros, as a buffer in pieces. */
  frame(bytes: Uint8Array, pieces: readonly number[] = [NET_HEADER_SIZE]): IovecList {
    this.bytes.fill(0, 0, NET_HEADER_SIZE);
    this.bytes.set(bytes, NET_HEADER_SIZE);
    return this.buffer(0, NET_HEADER_SIZE + bytes.length, pieces);
  }

  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]();
  }
}

/** What a port said. */
export class Listener implements PortListener {
  readable = (): void => void this.reads++;
  writable = (): void => void this.writes++;
  reads = 0;
  writes = 0;
  links: boolean[] = [];

  link(up: boolean): void {
    this.links.push(up);
  }
}

/** Takes the next frame of a port, without its header; undefined if there is none. */
export function takeFrame(port: PortQueue, memory: GuestMemory): Uint8Array | undefined {
  const wanted = port.nextLength();
  if (wanted === 0) return undefined;
  const at = GuestMemory.size / 2;
  const length = port.receive(memory.buffer(at, wanted, [5, 30]), 0);
  return length === 0 ? undefined : memory.bytes.slice(at + NET_HEADER_SIZE, at + length);
}

/** Bytes of hexadecimal digits; blanks do not count. */
export function bytes(hex: string): Uint8Array {
  return Uint8Array.from(hex.replace(/\s/g, "").match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

/** An Ethernet frame of some length. */
export function ethernet(destination: string, source: string, length = 60): Uint8Array {
  const frame = new Uint8Array(length);
  frame.set(bytes(`${destination} ${source} 88b5`));
  for (let i = 14; i < length; i++) frame[i] = i;
  return frame;
}

/** Hands the frames of one port to another, and back. */
export class Relay {
  /** Per direction: the longest frame, its header included, and how many left something to a device. */
  readonly seen = [0, 1].map(() => ({ longest: 0, segmented: 0, partial: 0, frames: 0 }));
  readonly links: boolean[][] = [[], []];
  readonly #memory = [new GuestMemory(), new GuestMemory()];
  #open = true;
  readonly #held: (IovecList | undefined)[] = [undefined, undefined];

  constructor(readonly reactor: Reactor, readonly ports: readonly [NetworkPort, NetworkPort]) {
    for (const from of [0, 1]) {
      const task = { run: () => this.#move(from) };
      const back = { run: () => this.#move(1 - from) };
      ports[from].open({
        readable: () => reactor.schedule(task),
        writable: () => reactor.schedule(back),
        link: (up) => void this.links[from].push(up),
      });
    }
  }

  #move(from: number): boolean {
    if (!this.#open) return false;
    const [port, other] = [this.ports[from], this.ports[1 - from]];
    const memory = this.#memory[from];
    for (let i = 0; i < 32; i++) {
      const held = this.#held[from];
      if (held !== undefined) {
        if (!other.send(held)) return false;
        this.#held[from] = undefined;
      }
      const wanted = port.nextLength();
      if (wanted === 0) return false;
      const pieces = Array.from({ length: 64 }, (_, k) => k === 0 ? 100 : 1500);
      const length = port.receive(memory.buffer(0, wanted, pieces), 0);
      if (length === 0) return false;
      const seen = this.seen[from];
      seen.frames++;
      seen.longest = Math.max(seen.longest, length);
      if ((memory.bytes[0] & 1) !== 0) seen.partial++;
      if (memory.bytes[1] !== 0) seen.segmented++;
      this.#held[from] = memory.buffer(0, length, pieces);
    }
    return true;
  }

  dispose(): void {
    this.#open = false;
    for (const memory of this.#memory) memory[Symbol.dispose]();
  }
}

const AF_INET = 2;
const STREAM_NONBLOCK_CLOEXEC = 1 | 0o4000 | 0o2000000;
const socketAddress = allocate(16);

function fillSocketAddress(address: string, port: number): void {
  socketAddress.bytes.fill(0);
  socketAddress.view.setUint16(0, AF_INET, true);
  socketAddress.view.setUint16(2, port, false);
  socketAddress.bytes.set(address.split(".").map(Number), 4);
}

/** A TCP socket of the kernel in the thread's namespace, non-blocking. */
export class Tcp implements Disposable {
  readonly fd: Fd = new Fd(check(libc.socket(AF_INET, STREAM_NONBLOCK_CLOEXEC, 0), "socket"));
  readonly #block = mapAnonymous(256 << 10);
  readonly buffer: Uint8Array = new Uint8Array(this.#block.buffer);

  static listen(address: string, port: number): Tcp {
    const socket = new Tcp();
    fillSocketAddress(address, port);
    check(libc.bind(socket.fd.number, socketAddress.address, 16), "bind");
    check(libc.listen(socket.fd.number, 1), "listen");
    return socket;
  }

  static connect(address: string, port: number): Tcp {
    const socket = new Tcp();
    fillSocketAddress(address, port);
    libc.connect(socket.fd.number, socketAddress.address, 16);
    return socket;
  }

  accept(): Fd | undefined {
    const number = libc.accept4(this.fd.number, 0n, 0n, 0o4000 | 0o2000000);
    return number < 0 ? undefined : new Fd(number);
  }

  /** Bytes that went out, -1 when none do now. */
  write(from: number, length: number, fd: Fd = this.fd): number {
    return libc.write(fd.number, this.#block.address + BigInt(from), length);
  }

  /** Bytes that came, -1 when there are none now. */
  read(length: number, fd: Fd = this.fd): number {
    const read = libc.read(fd.number, this.#block.address, length);
    assert(read >= 0 || errno() === 11 || errno() === 107, `read: errno ${errno()}`);
    return read;
  }

  [Symbol.dispose](): void {
    this.fd[Symbol.dispose]();
    this.#block[Symbol.dispose]();
  }
}

/**
 * The kernel makes frames of 64 KiB as soon as the window allows it: by itself it goes by how fast the other end
 * acknowledged them, and on a busy machine that may be too slow for any.
 */
export function sendLargeFrames(): void {
  setNet("ipv4/tcp_min_tso_segs", 44);
}

/** Sends `total` bytes of a pattern from a client to a server, through whatever is in between. */
export async function transfer(
  reactor: Reactor,
  client: Tcp,
  server: Tcp,
  total: number,
): Promise<void> {
  let accepted: Fd | undefined;
  let sent = 0;
  let got = 0;
  let wrong = 0;
  const pattern = (i: number) => (i * 7 + (i >>> 8)) & 0xff;
  const chunk = 65536;
  for (let i = 0; i < client.buffer.length; i++) client.buffer[i] = pattern(i % chunk);
  try {
    await turnUntil(
      reactor,
      () => {
        accepted ??= server.accept();
        if (sent < total) {
          const at = sent % chunk;
          const n = client.write(at, Math.min(chunk, total - sent));
          if (n > 0) sent += n;
        }
        if (accepted !== undefined) {
          const n = server.read(chunk, accepted);
          for (let i = 0; i < n; i += 97) {
            if (server.buffer[i] !== pattern((got + i) % chunk)) wrong++;
          }
          if (n > 0) got += n;
        }
        return got === total;
      },
      `a transfer of ${total} bytes`,
    );
  } finally {
    accepted?.[Symbol.dispose]();
  }
  assert(wrong === 0, `${wrong} wrong bytes`);
}
