/**
 * What a peer gave us to signal it by, or to be signalled by: a kick, a call, an error, an ivshmem vector.
 *
 * It is an eventfd, or where we signal a Unix socket (User-Mode Linux's call), and nothing a peer does with it may
 * block us. O_NONBLOCK does not help: it belongs to the open file description, which the peer has too. It clears
 * the flag and fills the count, and a write blocks for ever. So
 *
 *     eventfd, read      preadv2 with RWF_NOWAIT, which goes by this call alone (Linux 5.8)
 *     eventfd, signal    eventfds take no such flag for writing (6.18). But the kernel itself signals one
 *                        without ever blocking, as when an asynchronous operation of io_submit(2) is done:
 *                        one is submitted that is done at once, a poll of the very eventfd. It costs 0.4 us more
 *                        than a write
 *     socket, signal     send with MSG_DONTWAIT
 *
 * A pipe is not taken: whoever reads it into memory that faults slowly holds its lock, which no flag spares us.
 * A full count wakes its reader all the same, so a signal that adds nothing means nothing.
 */

import { allocate } from "./arena.ts";
import { EAGAIN, VmsgError } from "./errors.ts";
import { signalEventFd } from "./eventfd.ts";
import { type Fd, setNonBlocking } from "./fd.ts";
import { errno, libc } from "./libc.ts";
import { describeFd, kindOf } from "./received_fd.ts";
import { readText } from "./sysfs.ts";
import { SEND_FLAGS } from "./unix_socket.ts";

const RWF_NOWAIT = 8;
const POSITION = -1n;

const buffer = allocate(16);
// What is read goes to the first half; a socket is sent the second.
buffer.view.setBigUint64(8, 1n, true);
// struct iovec: u64 address, u64 length
const vector = allocate(16);
vector.view.setBigUint64(0, buffer.address, true);
vector.view.setBigUint64(8, 8n, true);

const SYS_IO_SETUP = Deno.build.arch === "x86_64" ? 206n : 0n;
const SYS_IO_SUBMIT = Deno.build.arch === "x86_64" ? 209n : 2n;
const IOCB_CMD_POLL = 5;
const IOCB_FLAG_RESFD = 1;
const POLLIN = 0x001;
const POLLOUT = 0x004;

// struct iocb: u16 opcode @16, u32 fd @20, u64 buf @24 (events to poll for), u32 flags @56, u32 resfd @60
const iocb = allocate(64);
iocb.view.setUint16(16, IOCB_CMD_POLL, true);
// An eventfd is always ready for one of them, or in error, so the poll never waits.
iocb.view.setBigUint64(24, BigInt(POLLIN | POLLOUT), true);
iocb.view.setUint32(56, IOCB_FLAG_RESFD, true);
const iocbs = allocate(8);
iocbs.view.setBigUint64(0, iocb.address, true);

interface Submitter {
  readonly context: bigint;
  /** struct aio_ring: u32 id, nr, head, tail; what was done is taken out by moving the head to the tail. */
  readonly ring: Uint32Array;
}

let submitter: Submitter | "none" | undefined;

/** A context of this thread's, for its life; "none" where the kernel, or a filter, gives no such thing. */
function openSubmitter(): Submitter | "none" {
  const block = allocate(8);
  if (libc.syscall(SYS_IO_SETUP, 1n, block.address) < 0) return "none";
  const context = block.view.getBigUint64(0, true);
  const pointer = Deno.UnsafePointer.create(context)!;
  return { context, ring: new Uint32Array(Deno.UnsafePointerView.getArrayBuffer(pointer, 16)) };
}

function signalFromKernel({ context, ring }: Submitter, number: number): void {
  iocb.view.setUint32(20, number, true);
  iocb.view.setUint32(60, number, true);
  libc.io_submit(SYS_IO_SUBMIT, context, 1n, iocbs.address);
  ring[2] = ring[3]!;
}

/** See the head of this file. */
export class PeerEvent implements Disposable {
  readonly #isSocket: boolean;

  /**
   * Takes a descriptor that a peer sent, unless it throws.
   *
   * @param fd to be watched for signals, where they are waited for
   * @param direction whether we signal by it or wait for signals
   * @param role of it, for people, as in "the kick of ring 0"
   * @throws VmsgError EVENT_KIND
   */
  constructor(readonly fd: Fd, direction: "signal" | "wait", role: string) {
    const kind = kindOf(fd);
    this.#isSocket = kind === "unix stream socket" && direction === "signal";
    if (kind !== "eventfd" && !this.#isSocket) {
      throw new VmsgError("EVENT_KIND", `${role} is no eventfd, but ${describeFd(fd)}`);
    }
    if (direction === "wait" && isSemaphore(fd)) {
      throw new VmsgError("EVENT_KIND", `${role} is an eventfd that counts as a semaphore`);
    }
    submitter ??= openSubmitter();
    if (submitter === "none") setNonBlocking(fd);
  }

  /** Wakes whoever waits for it; never blocks. */
  signal(): void {
    const { number } = this.fd;
    if (this.#isSocket) libc.send(number, buffer.address + 8n, 8, SEND_FLAGS);
    else if (submitter === "none") signalEventFd(this.fd);
    else signalFromKernel(submitter!, number);
  }

  /** Takes the signals out; false if there were none. Never blocks. */
  clear(): boolean {
    const read = libc.preadv2(this.fd.number, vector.address, 1, POSITION, RWF_NOWAIT);
    if (read >= 0 || errno() === EAGAIN) return read > 0;
    // A kernel that does not know it of eventfds: what is left is the peer's flag.
    setNonBlocking(this.fd);
    return libc.read(this.fd.number, buffer.address, 8) > 0;
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.fd[Symbol.dispose]();
  }
}

/** One that is read by ones and was filled before would wake us for ever. */
function isSemaphore(fd: Fd): boolean {
  const information = readText(`/proc/self/fdinfo/${fd.number}`) ?? "";
  return /^eventfd-semaphore: 1$/m.test(information);
}
