/**
 * The Unix socket of a connection, and those of the guest's bytes that it had no room for.
 *
 * Theory of operation. Bytes go between the guest's pages and the socket by one system call. What the socket does not take
 * is copied to a backlog, as large as the credit the guest was given: a host program that does not read holds up its own
 * connection and no other. The socket is watched for edges, so that one that stays ready costs nothing: it counts as
 * readable until a read finds nothing.
 *
 *     host program        is told of by          here
 *     has sent            EPOLLIN                readable until EAGAIN
 *     sends no more       a read of 0            hasEnded
 *     receives no more    EPIPE                  isDeaf: what the guest sends is for nobody
 *     is gone             EPOLLHUP               isDeaf, and readable until the read of 0
 */

import { EAGAIN, EINTR } from "../../linux/errors.ts";
import type { Fd } from "../../linux/fd.ts";
import { errno, libc } from "../../linux/libc.ts";
import { EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, type Reactor } from "../../linux/reactor.ts";
import type { IovecList } from "../../memory/mod.ts";
import { VsockHeader } from "../../virtio/vsock.ts";
import type { Payload } from "./payload.ts";

const SHUT_RD = 0, SHUT_WR = 1;
const WATCHED = EPOLLIN | EPOLLET;

/** Memory of a backlog; its size is a power of two. */
export interface Backlog {
  readonly address: bigint;
  readonly size: number;
}

/** Who is told. */
export interface StreamOwner {
  /** There may be something to read, or something else has changed. */
  changed(): void;
}

function isRetry(): boolean {
  return errno() === EAGAIN || errno() === EINTR;
}

/** See the head of this file. After dispose it takes what the guest sends, for nobody. */
export class HostStream implements Disposable {
  /** A read is worth a try. */
  isReadable = true;
  hasEnded = false;
  isDeaf = false;
  isGone = false;
  /** Bytes of the guest that are done with: written, or for nobody. Free-running, 32 bits. */
  taken = 0;
  /** Bytes in the backlog. */
  waiting = 0;
  #from = 0;
  #isFinishing = false;
  #isOpen = true;

  constructor(
    readonly reactor: Reactor,
    readonly fd: Fd,
    readonly backlog: Backlog,
    readonly owner: StreamOwner,
  ) {
    reactor.watch(fd, WATCHED, (events) => this.#ready(events));
  }

  #ready(events: number): void {
    if ((events & (EPOLLIN | EPOLLHUP)) !== 0) this.isReadable = !this.hasEnded;
    if ((events & EPOLLHUP) !== 0) {
      this.isGone = true;
      this.#goDeaf();
    } else if ((events & EPOLLOUT) !== 0 && this.waiting > 0) {
      this.#flush();
    }
    this.owner.changed();
  }

  /** Reads to where the payload lies, which has room. @returns how many bytes; 0 if there are none yet, or any more */
  read({ address, count }: Payload): number {
    const bytes = libc.readv(this.fd.number, address, count);
    if (bytes > 0) return bytes;
    if (bytes < 0 && errno() === EINTR) return 0;
    this.isReadable = false;
    this.hasEnded = bytes === 0 || errno() !== EAGAIN;
    return 0;
  }

  /** One byte to `address`; otherwise as {@link read}. */
  readByte(address: bigint): number {
    const bytes = libc.read(this.fd.number, address, 1);
    if (bytes > 0) return bytes;
    this.isReadable = false;
    this.hasEnded = bytes === 0 || !isRetry();
    return 0;
  }

  /**
   * Hands on what the guest sent.
   *
   * @param packet with its header, of which `payload` is what is sent
   * @returns false if that is more than the backlog has room for, and so more than the guest has credit
   */
  write(packet: IovecList, { address, count, length }: Payload): boolean {
    let written = 0;
    if (this.isDeaf) return this.#take(length);
    if (this.waiting === 0) {
      const sent = libc.writev(this.fd.number, address, count);
      if (sent < 0 && !isRetry()) {
        this.#goDeaf();
        return this.#take(length);
      }
      written = Math.max(0, sent);
      this.#take(written);
      if (written === length) return true;
    }
    return this.#keep(packet, VsockHeader.SIZE + written, length - written);
  }

  /** Bytes that are our own, not the guest's. */
  say(address: bigint, length: number): void {
    libc.write(this.fd.number, address, length);
  }

  #take(bytes: number): true {
    this.taken = (this.taken + bytes) >>> 0;
    return true;
  }

  #goDeaf(): void {
    this.isDeaf = true;
    this.#take(this.waiting);
    this.waiting = 0;
  }

  #keep(packet: IovecList, from: number, length: number): boolean {
    const { address, size } = this.backlog;
    if (length > size - this.waiting) return false;
    const at = (this.#from + this.waiting) & (size - 1);
    const first = Math.min(length, size - at);
    packet.copyOut(from, address + BigInt(at >>> 0), first);
    if (first < length) packet.copyOut(from + first, address, length - first);
    if (this.waiting === 0) this.reactor.rewatch(this.fd, WATCHED | EPOLLOUT);
    this.waiting += length;
    return true;
  }

  #flush(): void {
    const { address, size } = this.backlog;
    while (this.waiting > 0) {
      const part = Math.min(this.waiting, size - this.#from);
      const sent = libc.write(this.fd.number, address + BigInt(this.#from >>> 0), part);
      if (sent < 0) {
        if (isRetry()) return;
        this.#goDeaf();
        break;
      }
      this.#take(sent);
      this.waiting -= sent;
      this.#from = (this.#from + sent) & (size - 1);
    }
    this.reactor.rewatch(this.fd, WATCHED);
    if (this.#isFinishing) libc.shutdown(this.fd.number, SHUT_WR);
  }

  /** The guest sends no more: the host program reads an end behind what is waiting. */
  finish(): void {
    this.#isFinishing = true;
    if (this.#isOpen && this.waiting === 0) libc.shutdown(this.fd.number, SHUT_WR);
  }

  /** The guest receives no more. */
  stopReading(): void {
    if (this.#isOpen) libc.shutdown(this.fd.number, SHUT_RD);
  }

  [Symbol.dispose](): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.isReadable = false;
    this.hasEnded = true;
    this.#goDeaf();
    this.reactor.unwatch(this.fd);
    this.fd[Symbol.dispose]();
  }
}
