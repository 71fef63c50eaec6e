/**
 * The kernel's bridge over a Unix socket, for tests and for other programs that play the kernel: `path=unix:PATH`.
 *
 * One connection is one open node. A request is its number and its argument, as the ioctl takes them, ATTACH with the three
 * descriptors; the answer is the number, 0 or a negative errno, and the argument as it comes back. With ATTACH's comes the
 * memory file, of which windows are mapped in place of the node. A number of 0 with poll bits tells what poll would. All is
 * little-endian.
 *
 * Whoever asks waits for the answer, at most {@link ANSWER_MS}: an ioctl is not waited for elsewhere either.
 */

import { allocate, type Block } from "../linux/arena.ts";
import { EINTR, linuxErrno, VmsgError } from "../linux/errors.ts";
import type { Fd } from "../linux/fd.ts";
import { errno, libc } from "../linux/libc.ts";
import { mapMemoryFile, type MappedPart } from "../linux/memory_file.ts";
import { MONOTONIC } from "../linux/clock.ts";
import { EPOLLIN, type Reactor, type Timer } from "../linux/reactor.ts";
import { connectUnix, type UnixStream } from "../linux/unix_socket.ts";
import { argumentSize, BridgeNode, MAX_ARGUMENT } from "./bridge_node.ts";

/** How long an answer is waited for. */
export const ANSWER_MS = 5000;
const RETRY_MS = 50;
const HEAD = 8;
const POLLIN = 1;
/** What poll reports of a session at fault. */
const POLLERR = 8;
const EIO = linuxErrno("EIO");

const out = allocate(4 + MAX_ARGUMENT);
const head = allocate(HEAD);
const pollBlock = allocate(8);

/** See the head of this file. */
export class SocketNode extends BridgeNode {
  override readonly isKernel = false;
  #stream: UnixStream | undefined;
  #memory: Fd | undefined;
  /** Bytes of a head that have come. */
  #have = 0;
  #received: Fd[] = [];
  /** Told while an answer was waited for. */
  #isFaulted = false;
  readonly #retry: Timer;
  #opened: (() => void) | undefined;
  #faulted: (() => void) | undefined;
  #gone: (() => void) | undefined;

  /** @param socket the path of the socket */
  constructor(
    readonly reactor: Reactor,
    readonly socket: string,
    readonly log: (line: string) => void,
  ) {
    super();
    this.#retry = reactor.timer(() => this.#connect());
  }

  override get path(): string {
    return `unix:${this.socket}`;
  }

  override get isOpen(): boolean {
    return this.#stream !== undefined;
  }

  override open(opened: () => void): void {
    this.#opened = opened;
    this.log(`${this.path}: waiting for whoever plays the kernel`);
    this.#connect();
  }

  #connect(): void {
    const stream = this.#stream = connectUnix(this.socket);
    if (stream === undefined) return this.#retry.arm(RETRY_MS);
    this.#have = 0;
    this.reactor.watch(stream.fd, EPOLLIN, () => this.#heard());
    this.#opened!();
  }

  #close(): void {
    const stream = this.#stream;
    if (stream === undefined) return;
    this.#stream = undefined;
    this.reactor.unwatch(stream.fd);
    stream[Symbol.dispose]();
    for (const fd of this.#received.splice(0)) fd[Symbol.dispose]();
    this.#memory?.[Symbol.dispose]();
    this.#memory = undefined;
  }

  /** Whoever was there is gone, or breaks the rules: the next one may do better. */
  #lost(): void {
    if (this.#stream === undefined) return;
    this.#close();
    this.#retry.arm(RETRY_MS);
    const gone = this.#gone;
    this.unwatch();
    gone?.();
  }

  // --- receiving ---------------------------------------------------------------------------------

  /** Receives so many bytes to an address, behind `have`; how many there are then, -1 if no more can come. */
  #receive(address: bigint, have: number, wanted: number): number {
    while (have < wanted) {
      const count = this.#stream!.receive(address + BigInt(have), wanted - have);
      this.#received.push(...this.#stream!.fds);
      if (count === 0 || this.#stream!.truncated || this.#received.length > 1) return -1;
      if (count < 0) break;
      have += count;
    }
    return have;
  }

  /** A head that nobody waits for; true if there was one. */
  #takeHead(): boolean {
    this.#have = this.#receive(head.address, this.#have, HEAD);
    return this.#have === HEAD;
  }

  #heard(): void {
    // Bounded: who tells it again and again must not hold the loop.
    for (let i = 0; i < 64 && this.#stream !== undefined && this.#takeHead(); i++) {
      this.#have = 0;
      if (head.view.getUint32(0, true) !== 0 || this.#received.length > 0) return this.#lost();
      this.#noteBits();
    }
    if (this.#have < 0) return this.#lost();
    this.#tellFault();
  }

  #noteBits(): void {
    if ((head.view.getUint32(4, true) & POLLERR) !== 0) this.#isFaulted = true;
  }

  #tellFault(): void {
    if (!this.#isFaulted || this.#faulted === undefined) return;
    this.#isFaulted = false;
    const faulted = this.#faulted;
    this.unwatch();
    faulted();
  }

  #waitUntil(endMs: number): boolean {
    const leftMs = endMs - MONOTONIC.now();
    pollBlock.view.setInt32(0, this.#stream!.fd.number, true);
    pollBlock.view.setInt16(4, POLLIN, true);
    if (leftMs <= 0) return false;
    return libc.poll(pollBlock.address, 1n, Math.ceil(leftMs)) >= 0 || errno() === EINTR;
  }

  // --- asking ------------------------------------------------------------------------------------

  protected override request(number: number, argument: Block, fds: readonly Fd[]): number {
    const failure = this.#stream === undefined ? EIO : this.#exchange(number, argument, fds);
    if (failure === undefined) {
      this.#lost();
      return EIO;
    }
    if (failure === 0 && fds.length > 0) this.#isFaulted = false;
    return failure;
  }

  /** The answer's errno; undefined if there is none. */
  #exchange(number: number, argument: Block, fds: readonly Fd[]): number | undefined {
    const size = argumentSize(number);
    out.view.setUint32(0, number, true);
    out.bytes.set(argument.bytes.subarray(0, size), 4);
    // So little always fits, or nothing is read there.
    if (this.#stream!.send(out.address, 4 + size, fds) !== 4 + size) return undefined;
    const endMs = MONOTONIC.now() + ANSWER_MS;
    for (;;) {
      if (!this.#takeHead()) {
        if (this.#have < 0 || !this.#waitUntil(endMs)) return undefined;
        continue;
      }
      this.#have = 0;
      if (head.view.getUint32(0, true) !== 0) break;
      this.#noteBits();
    }
    if (head.view.getUint32(0, true) !== number) return undefined;
    const result = head.view.getInt32(4, true);
    for (let have = 0; have < size;) {
      have = this.#receive(argument.address, have, size);
      if (have < 0 || have < size && !this.#waitUntil(endMs)) return undefined;
    }
    return this.#takeMemory(result, fds.length > 0) ? -result : undefined;
  }

  /** With the answer to an ATTACH comes a file, and with no other. */
  #takeMemory(result: number, isAttach: boolean): boolean {
    const fds = this.#received.splice(0);
    const isRight = result <= 0 && fds.length === (isAttach && result === 0 ? 1 : 0);
    if (!isRight) fds.forEach((fd) => fd[Symbol.dispose]());
    else if (fds.length > 0) {
      this.#memory?.[Symbol.dispose]();
      this.#memory = fds[0];
    }
    return isRight;
  }

  override map(offset: number, length: number): MappedPart {
    if (this.#memory === undefined) throw new VmsgError("MEMORY", "no memory file came");
    return mapMemoryFile(this.#memory, offset, length);
  }

  override watch(faulted: () => void, gone: () => void): void {
    this.#faulted = faulted;
    this.#gone = gone;
  }

  override unwatch(): void {
    this.#faulted = undefined;
    this.#gone = undefined;
  }

  override [Symbol.dispose](): void {
    this.unwatch();
    this.#close();
    this.reactor.dropTimer(this.#retry);
  }
}
