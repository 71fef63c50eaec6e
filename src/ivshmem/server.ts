/**
 * An ivshmem server: gives processes on this host (stock QEMU's `ivshmem-doorbell`, or server_end.ts) one
 * shared memory, an id each, and an eventfd per peer and vector to ring one another by. It carries no
 * data: peers that have met go on without it.
 *
 * A newcomer is first told to all who are there, then gets its own list: version, id, memory, the
 * vectors of the others, its own vectors last (protocol.ts). Its id is the next after the one given
 * last; a freed one comes up again when all 65536 have been through. Whatever a client sends ends its
 * connection, as does its end of file; those who were told of it are told that it is gone.
 *
 * A client that does not read never holds the others. Its socket keeps little, so that few of the descriptors
 * that a user may have under way are its own; what that does not take waits in a queue, sent when there is room. News
 * of a peer that leaves before they are out are taken back (its eventfds are closed by then). So a queue
 * holds little more than the peers there are, and a client whose queue is longer than the longest list a
 * newcomer can get is dropped. Clients say nothing, so one that does not read is known by that alone: it goes when
 * its place, or what waits in its socket, is wanted by another.
 *
 * The memory is a sealed memfd, which no client can cut off under the others (SIGBUS), or a file of the
 * user's, which anybody can who may open it.
 *
 * Source: qemu docs/specs/ivshmem-spec.rst, contrib/ivshmem-server; docs/wire.md 5.2.
 */

import { Acceptor } from "../linux/acceptor.ts";
import { allocate } from "../linux/arena.ts";
import { LinuxError, VmsgError } from "../linux/errors.ts";
import { createEventFd } from "../linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../linux/fd.ts";
import { type Access, openOwnFileOf } from "../linux/own_file.ts";
import { EPOLLIN, EPOLLOUT, type Reactor, type Timer } from "../linux/reactor.ts";
import { kindOf } from "../linux/received_fd.ts";
import { listenUnix, type UnixStream } from "../linux/unix_socket.ts";
import type { Log } from "../observe/log.ts";
import {
  MAX_ID,
  MAX_VECTORS,
  MEMORY_MESSAGE,
  type OutgoingMessage,
  PROTOCOL_VERSION,
  sendMessage,
} from "./protocol.ts";

/** Clients at one time. */
export const MAX_CLIENTS = 64;
/** The least memory: a page. */
export const MIN_MEMORY = 4096;
/** The most memory: against slips of the pen, and far below what can be mapped. */
export const MAX_MEMORY = 2 ** 36;
/** The messages in front of the vectors in a newcomer's list: version, id, memory. */
const LIST_HEAD = 3;
/** For how long a client may leave unread what it was sent, where that is in another's way. */
const UNREAD_MS = 5000;
/** How often descriptors are sent again that could not be. */
const RETRY_MS = 100;

/**
 * unix(7), ETOOMANYREFS: for anybody but root, all descriptors that were sent and not yet read count against
 * the limit of open files. Who cannot be told for so long goes.
 */
const REFUSED_MS = 2 * UNREAD_MS;
const REFUSED = "more descriptors wait to be read than this user may send (ETOOMANYREFS): " +
  "raise the limit of open files (ulimit -n), give fewer --vectors, or be root";

/** What a server is made of. */
export interface IvshmemServerOptions {
  /** The path to listen on. */
  readonly socket: string;
  /** Bytes of shared memory: a power of two from {@link MIN_MEMORY} to {@link MAX_MEMORY}. */
  readonly size: number;
  /** Eventfds per client, 0 to {@link MAX_VECTORS}. With 0 nobody can ring or see anybody. */
  readonly vectors: number;
  /** Who may connect besides this user. */
  readonly access?: Access;
  /** The file that is the memory, made if there is none; otherwise it is anonymous and sealed. */
  readonly file?: string | undefined;
  /** The number of the user whose file it is, if it is not this one's. */
  readonly owner?: number | undefined;
  /** Joins and leaves are told at "info". */
  readonly log: Log;
  /** Takes a line for each message that is out. */
  readonly trace?: ((line: string) => void) | undefined;
  /** The id after which ids begin again at 0: {@link MAX_ID}, if it is not given; tests count less far. */
  readonly lastId?: number;
}

interface Client {
  readonly id: number;
  readonly stream: UnixStream;
  readonly vectors: readonly Fd[];
  /** What its socket has not taken yet. */
  readonly queue: OutgoingMessage[];
  /** Messages that are out. */
  told: number;
  /** It waits for room in its socket, or among the descriptors that are under way. */
  isFull: boolean;
  /** When it was sent something last, and since when nothing more can be because of {@link REFUSED}. */
  sentMs: number;
  refusedMs: number | undefined;
  /** Why it is to be dropped, as soon as nobody walks the list of clients any more. */
  problem: string | undefined;
}

/** Why a size cannot be that of the memory, or undefined. QEMU needs a power of two, as PCI does. */
export function memorySizeProblem(size: number): string | undefined {
  const isPowerOfTwo = 2 ** Math.round(Math.log2(size)) === size;
  if (isPowerOfTwo && size >= MIN_MEMORY && size <= MAX_MEMORY) return undefined;
  return `the memory has a power of two of bytes from 4K to 64G, not ${size}`;
}

/** A message for people, before it is out. */
function inWords({ id, told }: Client, { value, fd }: OutgoingMessage): string {
  const to = `-> peer ${id}:`;
  if (told === 0) return `${to} version ${value}`;
  if (told === 1) return `${to} its id is ${value}`;
  if (fd === undefined) return `${to} peer ${value} is gone`;
  if (value === MEMORY_MESSAGE) return `${to} the memory`;
  return `${to} a vector of ${value === id ? "its own" : `peer ${value}`}`;
}

const byte = allocate(1);

/** See the head of this file. */
export class IvshmemServer implements Disposable {
  readonly #reactor: Reactor;
  readonly #log: Log;
  readonly #trace: ((line: string) => void) | undefined;
  readonly #name: string;
  readonly #vectors: number;
  readonly #longestList: number;
  readonly #memory: Fd;
  readonly #acceptor: Acceptor;
  readonly #retry: Timer;
  readonly #clients = new Map<number, Client>();
  readonly #lastId: number;
  #nextId = 0;
  #isClosed = false;

  /** Opens the memory and listens; throws VmsgError SOCKET_IN_USE, MEMORY. */
  constructor(reactor: Reactor, options: IvshmemServerOptions) {
    const { socket, size, vectors, file, log } = options;
    const problem = memorySizeProblem(size);
    if (problem !== undefined) throw new VmsgError("MEMORY", problem);
    if (!(vectors >= 0 && vectors <= MAX_VECTORS)) throw new Error(`${vectors} vectors`);
    const lastId = options.lastId ?? MAX_ID;
    if (!(lastId >= MAX_CLIENTS && lastId <= MAX_ID)) throw new Error(`ids up to ${lastId}`);
    this.#lastId = lastId;
    this.#reactor = reactor;
    this.#log = log;
    this.#trace = options.trace;
    this.#name = `ivshmem server ${socket}`;
    this.#vectors = vectors;
    this.#longestList = LIST_HEAD + MAX_CLIENTS * vectors;
    using stack = new DisposableStack();
    // The socket first: a file in use by a server that runs is left alone.
    const listener = stack.use(listenUnix(socket, options.access));
    this.#memory = stack.use(
      file === undefined
        ? createSealedMemory("vmsg-ivshmem", size)
        : openOwnFileOf(size, file, { what: "memory file", owner: options.owner }),
    );
    this.#acceptor = new Acceptor(
      reactor,
      listener,
      (stream) => this.#join(stream),
      (problem) => this.#log.warn(`${this.#name}: ${problem}`),
    );
    this.#retry = reactor.timer(() => this.#sendAgain());
    stack.move();
    const backing = file === undefined ? "sealed" : file;
    const doorbells = `${vectors} vector${vectors === 1 ? "" : "s"}`;
    log.info(`${this.#name}: ${size} bytes (${backing}), ${doorbells}; waiting for peers`);
    if (kindOf(this.#memory) === "memory") return;
    const advice = "put it on tmpfs, hugetlbfs or a disk, or give them --memory-files any";
    log.warn(`${this.#name}: peers that are vmsg refuse a file such as ${file}: ${advice}`);
  }

  /** The ids of those who are there. */
  get peers(): number[] {
    return [...this.#clients.keys()];
  }

  #join(stream: UnixStream): void {
    using stack = new DisposableStack();
    stack.use(stream);
    if (this.#clients.size >= MAX_CLIENTS) this.#dropUnread();
    if (this.#clients.size >= MAX_CLIENTS) {
      const { size } = this.#clients;
      this.#log.warn(`${this.#name}: full, turned a client away: ${size} are there already`);
      return;
    }
    const vectors: Fd[] = [];
    try {
      while (vectors.length < this.#vectors) vectors.push(stack.use(createEventFd()));
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      this.#log.warn(`${this.#name}: full, turned a client away: ${error.message}`);
      // The next one has a place, if there is anybody who does not read.
      stack.dispose();
      return this.#dropUnread();
    }
    const id = this.#takeId();
    stream.keepLittle();
    const client: Client = {
      ...{ id, stream, vectors, queue: [], told: 0, isFull: false },
      ...{ sentMs: this.#reactor.now(), refusedMs: undefined, problem: undefined },
    };
    this.#reactor.watch(stream.fd, EPOLLIN, (events) => this.#ready(client, events));
    stack.move();
    for (const other of this.#clients.values()) {
      for (const fd of vectors) this.#tell(other, id, fd);
    }
    this.#tell(client, PROTOCOL_VERSION);
    this.#tell(client, id);
    this.#tell(client, MEMORY_MESSAGE, this.#memory);
    for (const other of this.#clients.values()) {
      for (const fd of other.vectors) this.#tell(client, other.id, fd);
    }
    for (const fd of vectors) this.#tell(client, id, fd);
    this.#clients.set(id, client);
    this.#log.info(`${this.#name}: peer ${id} joined, ${this.#clients.size} in all`);
    this.#dropWithProblems();
  }

  /** The next id that nobody has; there are more ids than clients. */
  #takeId(): number {
    for (;;) {
      const id = this.#nextId;
      this.#nextId = id === this.#lastId ? 0 : id + 1;
      if (!this.#clients.has(id)) return id;
    }
  }

  #ready(client: Client, events: number): void {
    if ((events & EPOLLOUT) !== 0) {
      client.isFull = false;
      this.#send(client);
      if (!client.isFull) this.#reactor.rewatch(client.stream.fd, EPOLLIN);
    }
    if ((events & ~EPOLLOUT) !== 0) {
      const received = client.stream.receive(byte.address, 1);
      for (const fd of client.stream.fds.splice(0)) fd[Symbol.dispose]();
      if (received === 0) client.problem ??= "left";
      if (received > 0) client.problem ??= "sent something, which no client does, and was dropped";
    }
    this.#dropWithProblems();
  }

  #tell(client: Client, value: number, fd?: Fd): void {
    if (client.problem !== undefined) return;
    client.queue.push({ value, fd, sent: 0 });
    if (!client.isFull) this.#send(client);
    if (client.queue.length <= this.#longestList) return;
    client.problem = "does not read and was dropped";
  }

  #send(client: Client): void {
    let done = 0;
    for (; done < client.queue.length; done++) {
      const message = client.queue[done]!;
      const line = this.#trace === undefined ? "" : inWords(client, message);
      const result = sendMessage(client.stream, message);
      if (result === "gone") client.problem ??= "left";
      if (result === "refused") this.#refused(client);
      if (result === "full") {
        client.isFull = true;
        this.#reactor.rewatch(client.stream.fd, EPOLLIN | EPOLLOUT);
      }
      if (result !== "sent") break;
      client.told++;
      client.sentMs = this.#reactor.now();
      client.refusedMs = undefined;
      this.#trace?.(line);
    }
    client.queue.splice(0, done);
  }

  #refused(client: Client): void {
    const nowMs = this.#reactor.now();
    if (client.refusedMs === undefined) {
      client.refusedMs = nowMs;
      this.#log.warn(`${this.#name}: full, peer ${client.id} has to wait: ${REFUSED}`);
    } else if (nowMs - client.refusedMs > REFUSED_MS) client.problem ??= `was dropped: ${REFUSED}`;
    client.isFull = true;
    // Its socket has room, which is of no use.
    this.#reactor.rewatch(client.stream.fd, EPOLLIN);
    if (!this.#retry.armed) this.#retry.arm(RETRY_MS);
  }

  #sendAgain(): void {
    this.#dropUnread();
    for (const client of this.#clients.values()) {
      if (client.refusedMs === undefined) continue;
      client.isFull = false;
      this.#send(client);
    }
    this.#dropWithProblems();
  }

  /** Drops who does not read, for the sake of somebody else. */
  #dropUnread(): void {
    const beforeMs = this.#reactor.now() - UNREAD_MS;
    for (const client of this.#clients.values()) {
      if (client.sentMs >= beforeMs || client.stream.isRead) continue;
      client.problem ??= "does not read and was dropped, its place is wanted";
    }
    this.#dropWithProblems();
  }

  /** Whoever cannot be told that one is gone goes as well, so this takes rounds. */
  #dropWithProblems(): void {
    let isDone = false;
    while (!isDone) {
      isDone = true;
      for (const client of this.#clients.values()) {
        if (client.problem === undefined) continue;
        isDone = false;
        this.#leave(client, client.problem);
      }
    }
  }

  #leave(client: Client, how: string): void {
    this.#clients.delete(client.id);
    for (const other of this.#clients.values()) this.#tellGone(other, client);
    this.#close(client);
    const line = `${this.#name}: peer ${client.id} ${how}, ${this.#clients.size} in all`;
    if (how === "left") this.#log.info(line);
    else this.#log.warn(line);
  }

  #tellGone(client: Client, gone: Client): void {
    const { queue } = client;
    const isNews = ({ value, fd }: OutgoingMessage) => value === gone.id && fd !== undefined;
    const kept = queue.filter((message) => !isNews(message));
    const takenBack = queue.length - kept.length;
    if (takenBack > 0) queue.splice(0, queue.length, ...kept);
    // It is told only to those who were told that it came.
    if (takenBack < gone.vectors.length) this.#tell(client, gone.id);
  }

  #close(client: Client): void {
    this.#reactor.unwatch(client.stream.fd);
    client.stream[Symbol.dispose]();
    for (const fd of client.vectors) fd[Symbol.dispose]();
  }

  /** Closes all connections, removes the socket. A memory file stays. */
  [Symbol.dispose](): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const client of this.#clients.values()) this.#close(client);
    this.#clients.clear();
    this.#reactor.dropTimer(this.#retry);
    this.#acceptor[Symbol.dispose]();
    this.#memory[Symbol.dispose]();
  }
}
