/**
 * Descriptors that a hostile front end sends in any place, none of them with O_NONBLOCK, what counts or holds bytes full.
 * Those that could hold up this very process (a FUSE file, also for whoever looks at /proc) are left to the
 * test that has one of every kind.
 */

import { allocate } from "../../src/linux/arena.ts";
import { createSealedMemory, Fd, openFile, openPipe, resizeFile } from "../../src/linux/fd.ts";
import { check, cString, libc } from "../../src/linux/libc.ts";
import { unixStreamPair } from "../../src/linux/unix_socket.ts";

const F_SETFL = 4;
const O_NONBLOCK = 0o4000n;
const MFD_ALLOW_SEALING = 2;
const block = allocate(4096);

/** Writes until there is no room, and leaves the descriptor such that the next write waits. */
function fill(fd: Fd, bytes: number): void {
  libc.fcntl(fd.number, F_SETFL, O_NONBLOCK);
  while (libc.write(fd.number, block.address, bytes) > 0);
  libc.fcntl(fd.number, F_SETFL, 0n);
}

/** See the head of this file. */
export class HostileDescriptors implements Disposable {
  readonly all: readonly Fd[];
  readonly #stack = new DisposableStack();
  /** Those that whoever writes to them waits for. */
  readonly full: readonly Fd[];
  readonly #counts: Fd;
  readonly #pipe: Fd;

  /** @param size of those that are memory */
  constructor(size: number) {
    const use = (fd: Fd) => this.#stack.use(fd);
    this.#counts = use(new Fd(check(libc.eventfd(0, 0), "eventfd")));
    const { read, write } = openPipe();
    this.#pipe = use(write);
    this.full = [this.#counts, this.#pipe];
    const [a, b] = unixStreamPair();
    use(b.fd);
    const unsealed = libc.memfd_create(cString("vmsg-fuzz-open"), MFD_ALLOW_SEALING);
    const memory = use(new Fd(check(unsealed, "memfd_create")));
    resizeFile(memory, size);
    this.all = [
      this.#counts,
      use(read),
      write,
      use(a.fd),
      use(new Fd(check(libc.eventfd(0, 0), "eventfd"))),
      use(new Fd(check(libc.epoll_create1(0), "epoll_create1"))),
      use(createSealedMemory("vmsg-fuzz-sealed", size)),
      use(createSealedMemory("vmsg-fuzz-small", 4096)),
      memory,
      use(openFile("/dev/zero")),
      use(openFile("/dev/null")),
      use(new Fd(check(libc.open(cString("/"), 0, 0), "open /"))),
    ];
  }

  /** What somebody has emptied is full again. */
  refill(): void {
    // A count at its most but one takes no 1 any more once there is another.
    block.view.setBigUint64(0, 0xffff_ffff_ffff_fffdn, true);
    fill(this.#counts, 8);
    block.view.setBigUint64(0, 1n, true);
    fill(this.#counts, 8);
    fill(this.#pipe, 4096);
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}
