/**
 * What an ivshmem server says: messages of 8 bytes, one signed little-endian number, with at most one
 * file descriptor. Clients say nothing at all.
 *
 *     0               the version, first
 *     ID              the client's own id, second
 *     -1   + memory   the shared memory
 *     ID   + eventfd  the next vector of a peer (or of the client itself, these come last): write to it
 *                     to ring the peer, read it to find out that one was rung
 *     ID              without a descriptor: that peer is gone
 *
 * A descriptor belongs to the message with whose bytes it came, so a reader never asks for more bytes
 * than the message at hand still lacks: one recvmsg may join the bytes of several messages otherwise.
 *
 * Source: qemu docs/specs/ivshmem-spec.rst; docs/wire.md 5.2.
 */

import { allocate } from "../linux/arena.ts";
import type { Fd } from "../linux/fd.ts";
import type { UnixStream } from "../linux/unix_socket.ts";

/** The version of this protocol; QEMU before 2.5 spoke one without a number. */
export const PROTOCOL_VERSION = 0;
/** Stands for the shared memory, where other messages have an id. */
export const MEMORY_MESSAGE = -1;
/** Ids are 0 to this. */
export const MAX_ID = 65535;
/** The most vectors a peer of ours has. */
export const MAX_VECTORS = 64;
/** Bytes of a message. */
export const MESSAGE_SIZE = 8;

const TWO_TO_32 = 0x1_0000_0000;
const bytes = allocate(MESSAGE_SIZE);

/** One message that is on its way out; it may take several calls. */
export interface OutgoingMessage {
  readonly value: number;
  /** Still to be sent; it goes with the first byte. The message does not own it. */
  fd: Fd | undefined;
  /** Bytes that are out. */
  sent: number;
}

/**
 * Sends what is left of a message.
 *
 * @returns "sent" when all of it is out, "full" when the socket takes no more now, "refused" when
 * the kernel lets this user have no more descriptors under way, "gone" when the client is
 */
export function sendMessage(
  stream: UnixStream,
  message: OutgoingMessage,
): "sent" | "full" | "refused" | "gone" {
  bytes.view.setUint32(0, message.value >>> 0, true);
  bytes.view.setInt32(4, Math.floor(message.value / TWO_TO_32), true);
  const fds = message.fd === undefined ? [] : [message.fd];
  const left = MESSAGE_SIZE - message.sent;
  const sent = stream.send(bytes.address + BigInt(message.sent), left, fds);
  if (sent < 0) return stream.sendError === "ETOOMANYREFS" ? "refused" : "gone";
  if (sent > 0) message.fd = undefined;
  message.sent += sent;
  return message.sent === MESSAGE_SIZE ? "sent" : "full";
}

/** What {@link MessageReader.read} found. */
export type ReadResult =
  /** A whole one; see {@link MessageReader.value} and {@link MessageReader.takeFd}. */
  | "message"
  /** Nothing, or only a part, for now. */
  | "nothing"
  /** The server is gone. */
  | "closed"
  /** A message with more descriptors than one: this is no ivshmem server. */
  | "bad";

/** The client's end of a stream; it does not own the stream. */
export class MessageReader implements Disposable {
  /** The number that the last message was; exact within 2^53, and ids are far below. */
  value = 0;
  #fd: Fd | undefined;
  #received = 0;
  readonly #bytes = new Uint8Array(MESSAGE_SIZE);
  readonly #view = new DataView(this.#bytes.buffer);

  /** Reads from a connected stream. */
  constructor(private readonly stream: UnixStream) {}

  /** Reads until a message is whole or nothing more is there. */
  read(): ReadResult {
    if (this.#received === MESSAGE_SIZE) this.#next();
    while (this.#received < MESSAGE_SIZE) {
      const received = this.stream.receive(bytes.address, MESSAGE_SIZE - this.#received);
      if (received < 0) return "nothing";
      if (!this.#keep(this.stream.fds) || this.stream.truncated) return "bad";
      if (received === 0) return "closed";
      this.#bytes.set(bytes.bytes.subarray(0, received), this.#received);
      this.#received += received;
    }
    const high = this.#view.getInt32(4, true);
    this.value = high * TWO_TO_32 + this.#view.getUint32(0, true);
    return "message";
  }

  /** Keeps the one descriptor a message may have and closes all others; false if there were any. */
  #keep(fds: Fd[]): boolean {
    let isGood = true;
    for (const fd of fds.splice(0)) {
      if (this.#fd === undefined) {
        this.#fd = fd;
      } else {
        fd[Symbol.dispose]();
        isGood = false;
      }
    }
    return isGood;
  }

  /** Hands the message's descriptor over; one that is not taken is closed with the next read. */
  takeFd(): Fd | undefined {
    const fd = this.#fd;
    this.#fd = undefined;
    return fd;
  }

  #next(): void {
    this.#received = 0;
    this.takeFd()?.[Symbol.dispose]();
  }

  /** Closes a descriptor that nobody took. */
  [Symbol.dispose](): void {
    this.#next();
  }
}
