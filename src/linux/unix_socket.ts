/**
 * Unix stream sockets that carry file descriptors (SCM_RIGHTS).
 *
 * Every call is non-blocking. On a stream, descriptors belong to the first byte of the sendmsg that
 * carried them; a recvmsg never returns the descriptors of two sendmsg calls, so their order is that
 * of the bytes. Descriptors that a peer sends unasked are closed by whoever receives them.
 */

import { allocate } from "./arena.ts";
import { EAGAIN, EINTR, errnoName, linuxErrno, type LinuxError, VmsgError } from "./errors.ts";
import {
  Fd,
  fileIdentity,
  inodeNumber,
  isByteTaken,
  isSocket,
  O_CLOEXEC,
  openPath,
  shareByte,
  unlinkFile,
} from "./fd.ts";
import { check, cString, errno, lastError, libc } from "./libc.ts";
import { type Access, giveAccess, modeOf, O_NOFOLLOW } from "./own_file.ts";
import { mayReceive, ReceivedFd } from "./received_fd.ts";

const EADDRINUSE = linuxErrno("EADDRINUSE");
/** Of accept: nobody is there, or not any more. */
const NOBODY_WAITS = [EAGAIN, EINTR, linuxErrno("ECONNABORTED")];
const LOCK_EX = 2;
const LOCK_NB = 4;
const LOCK_UN = 8;
/** For how long a directory's lock is waited for: half a second. */
const LOCK_ATTEMPTS = 50;
const LOCK_PAUSE_MS = 10;
const ENOBUFS = linuxErrno("ENOBUFS");

const POLLHUP = 0x010;
// struct pollfd: s32 fd, s16 events @4, s16 revents @6. POLLHUP comes unasked.
const pollBlock = allocate(8);
const pollfd = pollBlock.view;

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
/** Of send and sendmsg: never waits, and no SIGPIPE. */
export const SEND_FLAGS: number = MSG_DONTWAIT | MSG_NOSIGNAL;
const MSG_CTRUNC = 0x08;
const MSG_CMSG_CLOEXEC = 0x40000000;

/** sun_path holds 108 bytes with its NUL. */
const MAX_PATH = 107;
/** The vhost-user protocol sends at most this many descriptors with one message. */
export const MAX_FDS = 8;
const CMSG_HEADER = 16;

const socketAddress = allocate(2 + MAX_PATH + 1);
const pair = allocate(8);
// struct msghdr: name @0, namelen @8, iov @16, iovlen @24, control @32, controllen @40, flags @48
const header = allocate(56);
const vector = allocate(16);
const control = allocate(CMSG_HEADER + 4 * MAX_FDS);
// What is received has a header of its own, of which little changes.
const incoming = allocate(56);
const incomingVector = allocate(16);
incoming.view.setBigUint64(16, incomingVector.address, true);
incoming.view.setBigUint64(24, 1n, true);
incoming.view.setBigUint64(32, control.address, true);

function fillAddress(path: string): number {
  const bytes = new TextEncoder().encode(path);
  if (bytes.length > MAX_PATH) {
    throw new VmsgError(
      "SOCKET_PATH",
      `socket path ${path} has ${bytes.length} bytes, Linux allows ${MAX_PATH}: use a shorter one`,
    );
  }
  socketAddress.bytes.fill(0);
  socketAddress.view.setUint16(0, AF_UNIX, true);
  socketAddress.bytes.set(bytes, 2);
  return 2 + bytes.length + 1;
}

function createSocket(): Fd {
  const type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  return new Fd(check(libc.socket(AF_UNIX, type, 0), "socket"));
}

const SO_SNDBUF = 7;
const SO_PEERCRED = 17;
/** Of ioctl: what was sent and is not read yet. */
const SIOCOUTQ = 0x5411n;
/** struct ucred: pid, uid, gid. */
const CREDENTIALS_SIZE = 12;
const peer = allocate(CREDENTIALS_SIZE + 4);

/** A connected stream. */
export class UnixStream implements Disposable {
  /** Descriptors that came with the last {@link receive}; the caller takes or closes them. */
  readonly fds: Fd[] = [];
  /** True if the last {@link receive} lost descriptors (more than {@link MAX_FDS}). */
  truncated = false;
  /** Why the last {@link send} that returned -1 did: the errno's name. */
  sendError = "";

  /** Takes a connected, non-blocking socket. */
  constructor(readonly fd: Fd) {}

  /** Is the other end closed, whatever of it is still to be received? */
  get isPeerGone(): boolean {
    pollfd.setInt32(0, this.fd.number, true);
    const isReady = libc.poll(pollBlock.address, 1n, 0) > 0;
    return isReady && (pollfd.getInt16(6, true) & POLLHUP) !== 0;
  }

  /**
   * Sends bytes that lie at `address`, with descriptors if there are any.
   *
   * @returns how many bytes went out, 0 when the socket is full, -1 when the peer is gone or takes
   * nothing for another reason, see {@link sendError}
   */
  send(address: bigint, length: number, fds: readonly Fd[] = []): number {
    const { number } = this.fd;
    if (fds.length > 0) fillHeader(address, length, fds);
    const sent = fds.length > 0
      ? libc.sendmsg(number, header.address, SEND_FLAGS)
      : libc.send(number, address, length, SEND_FLAGS);
    if (sent >= 0) return sent;
    const reason = errno();
    if (isRetry(reason)) return 0;
    this.sendError = errnoName(reason);
    return -1;
  }

  /**
   * Receives at most `length` bytes to `address`; descriptors that came along are in {@link fds}.
   *
   * @returns how many bytes came, 0 at end of file or when the peer is gone, -1 when there are none
   */
  receive(address: bigint, length: number): number {
    if (this.fds.length > 0) this.fds.length = 0;
    this.truncated = false;
    incomingVector.view.setBigUint64(0, address, true);
    incomingVector.view.setUint32(8, length, true);
    incoming.view.setUint32(40, mayReceive() ? CMSG_HEADER + 4 * MAX_FDS : 0, true);
    incoming.view.setInt32(48, 0, true);
    const flags = MSG_CMSG_CLOEXEC | MSG_DONTWAIT;
    const received = libc.recvmsg(this.fd.number, incoming.address, flags);
    if (received < 0) return isRetry(errno()) ? -1 : 0;
    this.truncated = (incoming.view.getInt32(48, true) & MSG_CTRUNC) !== 0;
    const controlLength = incoming.view.getUint32(40, true);
    if (controlLength >= CMSG_HEADER && control.view.getInt32(12, true) === SCM_RIGHTS) {
      const end = Number(control.view.getBigUint64(0, true));
      for (let at = CMSG_HEADER; at + 4 <= end; at += 4) {
        this.fds.push(new ReceivedFd(control.view.getInt32(at, true)));
      }
    }
    return received;
  }

  /** Has everything been read that was sent? */
  get isRead(): boolean {
    check(libc.ioctl(this.fd.number, SIOCOUTQ, peer.address), "SIOCOUTQ");
    return peer.view.getInt32(0, true) === 0;
  }

  /**
   * Has the kernel keep as little as it can of what is sent and not read: six messages or so. With every message
   * a descriptor may be under way, of which there are few.
   */
  keepLittle(): void {
    peer.view.setInt32(0, 1, true);
    const { number } = this.fd;
    check(libc.setsockopt(number, SOL_SOCKET, SO_SNDBUF, peer.address, 4), "SO_SNDBUF");
  }

  /** The process at the other end when it connected or began to listen; 0 for one that is not seen from here. */
  get peerProcess(): number {
    peer.view.setUint32(CREDENTIALS_SIZE, CREDENTIALS_SIZE, true);
    const length = peer.address + BigInt(CREDENTIALS_SIZE);
    const { number } = this.fd;
    check(libc.getsockopt(number, SOL_SOCKET, SO_PEERCRED, peer.address, length), "SO_PEERCRED");
    return peer.view.getInt32(0, true);
  }

  /** Closes the connection. */
  [Symbol.dispose](): void {
    this.fd[Symbol.dispose]();
  }
}

function fillHeader(address: bigint, length: number, fds: readonly Fd[]): void {
  if (fds.length > MAX_FDS) throw new Error(`${fds.length} descriptors in one message`);
  const controlLength = CMSG_HEADER + 4 * fds.length;
  vector.view.setBigUint64(0, address, true);
  vector.view.setBigUint64(8, BigInt(length), true);
  header.view.setBigUint64(16, vector.address, true);
  header.view.setBigUint64(24, 1n, true);
  header.view.setBigUint64(32, control.address, true);
  header.view.setBigUint64(40, BigInt(controlLength), true);
  control.view.setBigUint64(0, BigInt(controlLength), true);
  control.view.setInt32(8, SOL_SOCKET, true);
  control.view.setInt32(12, SCM_RIGHTS, true);
  fds.forEach((fd, i) => control.view.setInt32(CMSG_HEADER + 4 * i, fd.number, true));
}

function isRetry(number: number): boolean {
  return number === EAGAIN || number === EINTR || number === ENOBUFS;
}

/** A socket that accepts connections; dispose removes its path, if that is still its own. */
export class UnixListener implements Disposable {
  /** Why the last {@link accept} gave nothing though somebody waits: the errno's name, "" otherwise. */
  acceptError = "";

  /**
   * Called by {@link listenUnix}.
   *
   * @param file what was made at the path
   * @param directory where it is, with the lock that says that somebody listens
   */
  constructor(
    readonly fd: Fd,
    readonly path: string,
    private readonly file: string,
    private readonly directory: Fd,
  ) {}

  /** The next waiting connection, or undefined when there is none. */
  accept(): UnixStream | undefined {
    const number = libc.accept4(this.fd.number, 0n, 0n, SOCK_NONBLOCK | SOCK_CLOEXEC);
    this.acceptError = number >= 0 || NOBODY_WAITS.includes(errno()) ? "" : errnoName(errno());
    return number < 0 ? undefined : new UnixStream(new Fd(number));
  }

  [Symbol.dispose](): void {
    using here = openPath(this.path, O_NOFOLLOW);
    // A successor may have been told to take the path: what is there then is not ours.
    if (here !== undefined && fileIdentity(here) === this.file) unlinkFile(this.path);
    this.fd[Symbol.dispose]();
    this.directory[Symbol.dispose]();
  }
}

/**
 * Listens on a path. A socket file that a killed process left is replaced; one on which somebody
 * listens is an error.
 *
 * Who listens is told by locks on the directory, which the kernel drops with the process and which leave
 * nothing behind: the directory is locked (flock) while the path is looked at and taken, so that of two
 * who start at once one is first; afterwards a byte with the number of the socket's inode stays locked.
 * Listeners that know nothing of this are found by connecting.
 *
 * The umask is the whole process's, and says nothing about who may connect. The mode that a socket has before
 * it is bound is that of its file, but for what the umask takes away; the rest is given before anybody is listened to.
 *
 * @param access who may connect: this user, unless more are named
 */
export function listenUnix(path: string, access: Access = {}): UnixListener {
  const length = fillAddress(path);
  const what = `listen on socket ${path}`;
  using stack = new DisposableStack();
  const fd = stack.use(createSocket());
  const place = cString(`${path.slice(0, path.lastIndexOf("/") + 1)}.`);
  const directory = stack.use(new Fd(check(libc.open(place, O_CLOEXEC, 0), what)));
  lockDirectory(directory, path);
  check(libc.fchmod(fd.number, modeOf(access) & 0o700), what);
  let result = libc.bind(fd.number, socketAddress.address, length);
  if (result < 0 && errno() === EADDRINUSE) {
    assertAbandoned(path, directory);
    unlinkFile(path);
    result = libc.bind(fd.number, socketAddress.address, length);
  }
  check(result, what);
  using file = openPath(path, O_NOFOLLOW);
  if (file === undefined) throw lastError(what);
  giveAccess(file, access, 0o777, `socket ${path}`);
  check(libc.listen(fd.number, 4), what);
  shareByte(directory, byteOf(file));
  check(libc.flock(directory.number, LOCK_UN), what);
  stack.move();
  return new UnixListener(fd, path, fileIdentity(file), directory);
}

function lockDirectory(directory: Fd, path: string): void {
  for (let attempt = 0; libc.flock(directory.number, LOCK_EX | LOCK_NB) < 0; attempt++) {
    if (errno() !== EAGAIN) throw lastError(`lock the directory of socket ${path}`);
    // Held for moments by who starts as we do; anybody who may read the directory can hold it for ever.
    if (attempt === LOCK_ATTEMPTS) {
      throw new VmsgError(
        "SOCKET_LOCKED",
        `another process holds a lock on the directory of ${path}: use a directory of your own`,
      );
    }
    libc.poll(0n, 0n, LOCK_PAUSE_MS);
  }
}

function assertAbandoned(path: string, directory: Fd): void {
  using file = openPath(path, O_NOFOLLOW);
  if (file === undefined) return;
  // Connecting to any other file is refused as well, and it is not ours to remove.
  if (!isSocket(file)) {
    throw new VmsgError("SOCKET_PATH", `socket path ${path} is a file that is no socket`);
  }
  if (isByteTaken(directory, byteOf(file)) || isAnswered(path)) {
    throw new VmsgError("SOCKET_IN_USE", `socket ${path} is in use by another process`);
  }
}

/** Within what a lock may have as its start. */
function byteOf(file: Fd): bigint {
  return BigInt.asUintN(62, inodeNumber(file));
}

function isAnswered(path: string): boolean {
  const result = tryConnect(path);
  if (!(result instanceof UnixStream)) return result === "EAGAIN";
  result[Symbol.dispose]();
  return true;
}

/**
 * Connects to a path; undefined when nobody listens there (yet), or when there is no descriptor for it now: whoever tries
 * again may have others to serve meanwhile.
 */
export function connectUnix(path: string): UnixStream | undefined {
  try {
    const result = tryConnect(path);
    return result instanceof UnixStream ? result : undefined;
  } catch (error) {
    const { code } = error as LinuxError;
    if (code === "EMFILE" || code === "ENFILE") return undefined;
    throw error;
  }
}

/** A connection, or why there is none: EAGAIN is a listener whose backlog is full. */
function tryConnect(path: string): UnixStream | "EAGAIN" | "nobody" {
  const length = fillAddress(path);
  using stack = new DisposableStack();
  const fd = stack.use(createSocket());
  if (libc.connect(fd.number, socketAddress.address, length) < 0) {
    const error = lastError(`connect to socket ${path}`);
    if (error.code === "EAGAIN") return "EAGAIN";
    if (error.code === "ENOENT" || error.code === "ECONNREFUSED") return "nobody";
    throw error;
  }
  stack.move();
  return new UnixStream(fd);
}

/** Two connected streams, for tests and in-process buses. */
export function unixStreamPair(): [UnixStream, UnixStream] {
  const [a, b] = socketPair(SOCK_STREAM);
  return [new UnixStream(a), new UnixStream(b)];
}

/** Two connected sockets that keep frames apart. */
export function unixDatagramPair(): [Fd, Fd] {
  return socketPair(SOCK_DGRAM);
}

function socketPair(type: number): [Fd, Fd] {
  const flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
  check(libc.socketpair(AF_UNIX, type | flags, 0, pair.address), "socketpair");
  return [new Fd(pair.view.getInt32(0, true)), new Fd(pair.view.getInt32(4, true))];
}
