/**
 * The host's side by Unix sockets, with the convention of firecracker and cloud-hypervisor, so that their tools work:
 *
 *     a host program connects to PREFIX, writes "CONNECT 1234\n", reads "OK <its own port>\n"; then it has the guest's port 1234
 *     a guest program connects to port 1234 of the host (context 2): it has who listens on PREFIX_1234
 */

import { Acceptor } from "../../linux/acceptor.ts";
import { allocate } from "../../linux/arena.ts";
import type { Fd } from "../../linux/fd.ts";
import type { Reactor } from "../../linux/reactor.ts";
import { connectUnix, listenUnix } from "../../linux/unix_socket.ts";
import type { Log } from "../../observe/log.ts";
import type { HostStream } from "./host_stream.ts";

/** Of a line, in bytes; the longest that means something has 18. */
const MOST_LINE = 32;
const MOST_PORT = 0xffff_ffff;
/** What a prefix may have in bytes: a port's number follows, and Linux allows 107. */
export const MOST_PREFIX = 107 - `_${MOST_PORT}`.length;

const byte = allocate(1);
const answer = allocate(MOST_LINE);

/** What a host program has said so far. */
export class Greeting {
  #line = "";

  /** Reads on. @returns the port, undefined if there is more to come, or -1 if it makes no sense */
  read(stream: HostStream): number | undefined {
    // Byte by byte: what follows the line is the guest's.
    while (stream.isReadable && stream.readByte(byte.address) > 0) {
      const character = String.fromCharCode(byte.bytes[0]);
      if (character === "\n") return portOf(this.#line);
      this.#line += character;
      if (this.#line.length >= MOST_LINE) return -1;
    }
    return stream.hasEnded ? -1 : undefined;
  }
}

function portOf(line: string): number {
  const port = Number(/^connect +(\d{1,10})\r?$/i.exec(line)?.[1] ?? -1);
  return port <= MOST_PORT ? port : -1;
}

/** Tells a host program that it has its connection. */
export function sayConnected(stream: HostStream, hostPort: number): void {
  const { written } = new TextEncoder().encodeInto(`OK ${hostPort}\n`, answer.bytes);
  stream.say(answer.address, written);
}

/** See the head of this file. */
export class HostSockets implements Disposable {
  readonly #acceptor: Acceptor;
  #isHeld = false;
  #hasComplained = false;

  /** @param take is given each host program that connects */
  constructor(
    reactor: Reactor,
    readonly prefix: string,
    readonly log: Log,
    take: (fd: Fd) => void,
  ) {
    const warn = (line: string) => log.warn(`vsock ${prefix}: ${line}`);
    this.#acceptor = new Acceptor(reactor, listenUnix(prefix), ({ fd }) => take(fd), warn);
  }

  /** Lets host programs wait, or goes on. */
  hold(isHeld: boolean): void {
    if (isHeld !== this.#isHeld) this.#acceptor.hold(isHeld);
    this.#isHeld = isHeld;
  }

  /** Who listens on a port of the host; undefined if nobody does, or who does has enough waiting. */
  connect(port: number): Fd | undefined {
    try {
      return connectUnix(`${this.prefix}_${port}`)?.fd;
    } catch (error) {
      if (!this.#hasComplained) this.log.warn(`vsock: ${(error as Error).message}`);
      this.#hasComplained = true;
      return undefined;
    }
  }

  [Symbol.dispose](): void {
    this.#acceptor[Symbol.dispose]();
  }
}
