/** eventfd(2): a counter that wakes an epoll loop. Those of our own making; a peer's are in peer_event.ts. */

import { allocate } from "./arena.ts";
import { check, libc } from "./libc.ts";
import { Fd } from "./fd.ts";

const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

const word = allocate(16);
word.view.setBigUint64(0, 1n, true);

/** Makes a non-blocking eventfd with count 0. */
export function createEventFd(): Fd {
  return new Fd(check(libc.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"));
}

/** Adds 1. A count that is full already wakes the reader, so a failure means nothing. */
export function signalEventFd(fd: Fd): void {
  libc.write(fd.number, word.address, 8);
}

/** Sets the count to 0; harmless when it is 0 already. */
export function clearEventFd(fd: Fd): void {
  libc.read(fd.number, word.address + 8n, 8);
}
