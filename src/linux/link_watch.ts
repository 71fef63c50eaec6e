/**
 * Tells when an interface goes up, down or away, by rtnetlink(7), since the descriptors of a TAP or a
 * packet socket say nothing of it to epoll.
 *
 *     struct sockaddr_nl: u16 family, u16 pad, u32 pid, u32 groups
 *     struct nlmsghdr: u32 length, u16 type, u16 flags, u32 sequence, u32 pid
 *     struct ifinfomsg, behind it: u8 family, u8 pad, u16 type, s32 index, u32 flags, u32 change
 *
 * Messages that were lost because there were too many (ENOBUFS) are made up for by asking. The socket
 * sees the network namespace that the thread was in when it was made.
 */

import { allocate } from "./arena.ts";
import { EAGAIN, EINTR, LinuxError } from "./errors.ts";
import { Fd } from "./fd.ts";
import { check, errno, libc } from "./libc.ts";
import { interfaceFlags } from "./netdev.ts";
import { EPOLLIN, type Reactor } from "./reactor.ts";

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_ROUTE = 0;
const RTMGRP_LINK = 1;
const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const NLMSG_HEADER = 16;
const IFINFO_SIZE = 16;
/** Messages of a bridge about its ports have family AF_BRIDGE; they are not about the interface. */
const AF_UNSPEC = 0;

/** Messages taken at one readiness, each at most a page or two. */
const BUDGET = 16;
const BUFFER_SIZE = 16384;

/** See the head of this file. */
export class LinkWatch implements Disposable {
  readonly #fd: Fd;
  readonly #buffer = allocate(BUFFER_SIZE);
  #open = true;

  /**
   * Starts watching.
   *
   * @param name the interface's name when it was opened, for asking
   * @param index its number, which stays when it is renamed
   * @param changed is told the flags, or undefined when the interface left this namespace
   */
  constructor(
    readonly reactor: Reactor,
    readonly name: string,
    readonly index: number,
    readonly changed: (flags: number | undefined) => void,
  ) {
    const type = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC;
    this.#fd = new Fd(check(libc.socket(AF_NETLINK, type, NETLINK_ROUTE), "socket AF_NETLINK"));
    this.#buffer.bytes.fill(0, 0, 12);
    this.#buffer.view.setUint16(0, AF_NETLINK, true);
    this.#buffer.view.setUint32(8, RTMGRP_LINK, true);
    check(libc.bind(this.#fd.number, this.#buffer.address, 12), "bind AF_NETLINK");
    reactor.watch(this.#fd, EPOLLIN, () => this.#receive());
  }

  #receive(): void {
    for (let i = 0; i < BUDGET && this.#open; i++) {
      const length = libc.read(this.#fd.number, this.#buffer.address, BUFFER_SIZE);
      if (length > 0) this.#parse(length);
      else if (length === 0 || errno() === EAGAIN || errno() === EINTR) return;
      else this.#ask();
    }
  }

  #parse(length: number): void {
    const view = this.#buffer.view;
    for (let at = 0; at + NLMSG_HEADER + IFINFO_SIZE <= length && this.#open;) {
      const size = view.getUint32(at, true);
      const type = view.getUint16(at + 4, true);
      const info = at + NLMSG_HEADER;
      const about = view.getUint8(info) === AF_UNSPEC &&
        view.getInt32(info + 4, true) === this.index;
      if (about && type === RTM_NEWLINK) this.changed(view.getUint32(info + 8, true));
      if (about && type === RTM_DELLINK) this.changed(undefined);
      if (size < NLMSG_HEADER) return;
      at += (size + 3) & ~3;
    }
  }

  #ask(): void {
    try {
      this.changed(interfaceFlags(this.name));
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      this.changed(undefined);
    }
  }

  /** Closes the socket. */
  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.reactor.unwatch(this.#fd);
    this.#fd[Symbol.dispose]();
  }
}
