/**
 * User-mode networking by the program passt (https://passt.top), which needs no privilege: the guest's
 * connections become sockets of this user on the host.
 *
 * Theory of operation. passt speaks Ethernet frames on a Unix stream socket, each preceded by its length
 * as a 32-bit big-endian number, without a virtio-net header; so there are no offloads. The payload of a
 * frame that is sent goes from the guest's pages by one sendmsg; what the socket did not take of it is
 * copied and goes first next time. Received bytes are collected in a buffer, from which whole frames are
 * copied; the buffer is filled only while the guest takes frames, so passt feels it when it does not.
 *
 *     connected --end of file, or a length no frame has--> down --attached by path: every second--> connected
 *
 * passt is started here with one end of a socket pair, or attached to where it listens. A passt started
 * here ends when that socket closes, which the kernel does however this process ends (`--fd` implies
 * `--one-off`); a session of its own keeps Ctrl-C from it. It is not started again: what ended it would
 * most likely end the next one. What it said on standard error (its first 4 KiB, kept in a sealed memfd so
 * that neither a full pipe nor a talkative passt can do harm) is told then.
 */

import { allocate } from "../linux/arena.ts";
import { UsageError, VmsgError } from "../linux/errors.ts";
import { createSealedMemory, type Fd } from "../linux/fd.ts";
import { libc } from "../linux/libc.ts";
import { mapAnonymous, type Mapping, mapShared } from "../linux/mapping.ts";
import {
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  type Reactor,
  type Timer,
} from "../linux/reactor.ts";
import { connectUnix, UnixStream, unixStreamPair } from "../linux/unix_socket.ts";
import type { SegmentList } from "../memory/mod.ts";
import type { Log } from "../observe/log.ts";
import {
  NET_HEADER_SIZE,
  type NetworkPort,
  NUM_BUFFERS_OFFSET,
  type PortListener,
} from "./port.ts";
import { PrefixedSegments } from "./prefixed_segments.ts";

/** Which passt. */
export interface PasstOptions {
  /** The socket on which a passt listens that somebody else started; without it one is started here. */
  readonly socket?: string;
  /** More arguments for the one that is started, e.g. `["--tcp-ports", "2222:22"]`. */
  readonly args?: readonly string[];
}

const LENGTH_SIZE = 4;
const MIN_FRAME = 14;
/** passt sends datagrams whole: 64 KiB and headers, as QEMU allows. */
const MAX_FRAME = 65536 + 4096;
const BUFFER_SIZE = 256 << 10;
const RECONNECT_MS = 1000;
const EPOLLET = 0x8000_0000;
const MSG_NOSIGNAL = 0x4000;
const MSG_DONTWAIT = 0x40;
const F_SETFD = 2;
const WORDS_SIZE = 4096;
