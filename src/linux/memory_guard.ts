/**
 * Has this process live on when memory of a peer's is cut off.
 *
 * A file without seals can be made shorter by whoever has it open (User-Mode Linux's, QEMU's memory-backend-file, a
 * bus's queue file). An access to a page behind its new end is a SIGBUS, which ends a process and all whom it serves;
 * nothing short of a signal handler helps, and none can be written in JavaScript. So there is one in machine code,
 * for x86-64: it puts an empty page of this process's own in the place of the one that is gone, counts, and lets the
 * access be made again. Reads give zeros from there on, and what is written is seen by nobody: the peer has lost its
 * memory, and its rings are nonsense that is checked as always. It costs nothing until it is needed. The reactor
 * tells of it after the turn ({@link lastCut}), in the thread that put the handler in place. It serves all threads: two that come
 * to a page at once put an empty one there twice. System calls on such pages fail with EFAULT and need none of this.
 *
 * A page for which a full tmpfs has no room is the same signal and the same end.
 */

import { allocate } from "./arena.ts";
import { libc } from "./libc.ts";
import { mapAnonymous, PAGE_SIZE } from "./mapping.ts";

const SIGBUS = 7;
const SA_SIGINFO = 0x4;
const SA_ONSTACK = 0x0800_0000;
const SA_RESTART = 0x1000_0000;
const READ_EXECUTE = 5;
// struct sigaction of glibc: handler, 128 bytes of mask, s32 flags @136, restorer @144
const SIGACTION_SIZE = 152;
const FLAGS = 136;

/** handler(signal: rdi, siginfo: rsi, context: rdx), see the head of this file. */
const X86_64 = [
  "83 7e 08 02  75 5d", //                     si_code == BUS_ADRERR, or go to old
  "57  56  52", //                             push rdi, rsi, rdx
  "48 8b 7e 10", //                            rdi = si_addr
  "be 00 10 00 00", //                         rsi = 4096
  "48 89 f0  48 f7 d8  48 21 c7", //     again: rdi &= -rsi
  "ba 03 00 00 00", //                         READ | WRITE
  "41 ba 32 00 00 00", //                      PRIVATE | FIXED | ANONYMOUS
  "49 c7 c0 ff ff ff ff  45 31 c9", //         no file
  "b8 09 00 00 00  0f 05", //                  mmap
  "48 83 f8 ea  75 0c", //                     EINVAL, or go to done
  "48 d1 e6", //                               huge pages are replaced whole: twice as much,
  "48 81 fe 00 00 00 40  76 c9", //            up to 1 GiB, again
  "48 85 c0  78 12", //                  done:  an error: go to failed
  "48 89 05 b3 0f 00 00", //                   the address, into the page behind
  "f0 ff 05 a4 0f 00 00", //                   the count
  "5a  5e  5f  c3", //                         return: the access is made again
  "5a  5e  5f", //                     failed:
  "48 b8 00 00 00 00 00 00 00 00", //    old:  rax = the former handler, filled in
  "ff e0", //                                  go there
  "0f 0b", //                            end:  no instruction
].flatMap((line) => line.trim().split(/ +/).map((byte) => parseInt(byte, 16)));
/** Where the former handler's address goes in, and a place that ends the process if there was none. */
const FORMER = 0x65;
const END = 0x6f;

/** u32 count, u64 address @8: written by the handler. */
let record: DataView | undefined;

/** Puts the handler in place, once a thread is enough for all; false where there is none for this processor. */
export function guardMemory(): boolean {
  if (Deno.build.arch !== "x86_64") return false;
  if (record !== undefined) return true;
  // For the life of the process, whichever thread made it: never unmapped.
  const { address, buffer } = mapAnonymous(2 * PAGE_SIZE);
  const former = allocate(SIGACTION_SIZE);
  libc.sigaction(SIGBUS, 0n, former.address);
  const handler = former.view.getBigUint64(0, true);
  const code = new DataView(buffer);
  new Uint8Array(buffer).set(X86_64);
  code.setBigUint64(FORMER, handler > 1n ? handler : address + BigInt(END), true);
  if (libc.mprotect(address, BigInt(PAGE_SIZE), READ_EXECUTE) < 0) return false;
  const action = allocate(SIGACTION_SIZE);
  action.view.setBigUint64(0, address, true);
  action.view.setInt32(FLAGS, SA_SIGINFO | SA_ONSTACK | SA_RESTART, true);
  if (libc.sigaction(SIGBUS, action.address, 0n) < 0) return false;
  record = new DataView(buffer, PAGE_SIZE);
  return true;
}

/** How many pages were replaced so far. */
export function cutCount(): number {
  return record === undefined ? 0 : record.getUint32(0, true);
}

/** The address of the last one. */
export function lastCut(): bigint {
  return record!.getBigUint64(8, true);
}
