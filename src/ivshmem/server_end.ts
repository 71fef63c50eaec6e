/**
 * The end of an ivshmem link that a host process is, as a peer of an ivshmem server: ours (server.ts) or
 * QEMU's contrib/ivshmem-server.
 *
 * States: setting up -> set up -> open -> on its own.
 *
 * Setting up is synchronous and bounded in time ({@link SETUP_TIMEOUT_MS}): connect, then read version, id and
 * memory, and on to the first vector of our own, which a server sends behind all peers. A server without vectors
 * never sends one, so this last wait ends when the server has been quiet for a moment; then nothing rings this end.
 * From {@link ServerEnd.open} on the socket is followed by the reactor. A server that goes away, or says what it must
 * not, leaves the end on its own: it keeps memory, peers and doorbells, and learns of no further joins and leaves;
 * lasting_end.ts looks for the next server. Nothing a server says is trusted: numbers are checked, descriptors
 * counted, surplus ones closed, what rings is of a kind that cannot block us (peer_event.ts), and memory is what
 * memory_file.ts takes.
 *
 * Of each peer only vector 0 is kept, to ring it; of our own vectors each is listened to.
 *
 * Source: qemu docs/specs/ivshmem-spec.rst; docs/wire.md 5.2.
 */

import { allocate } from "../linux/arena.ts";
import { type Clock, MONOTONIC, pause } from "../linux/clock.ts";
import { VmsgError } from "../linux/errors.ts";
import { dataOf, type Fd, isSocketFile } from "../linux/fd.ts";
import { libc } from "../linux/libc.ts";
import { type Mapping, PAGE_SIZE, remap } from "../linux/mapping.ts";
import { mapMemoryFile } from "../linux/memory_file.ts";
import { PeerEvent } from "../linux/peer_event.ts";
import { EPOLLIN, type Reactor } from "../linux/reactor.ts";
import { connectUnix, type UnixStream } from "../linux/unix_socket.ts";
import type { MappedMemory } from "../memory/mod.ts";
import type { Log } from "../observe/log.ts";
import type { EndListener, IvshmemEnd } from "./end.ts";
import {
  MAX_ID,
  MAX_VECTORS,
  MEMORY_MESSAGE,
  MessageReader,
  PROTOCOL_VERSION,
} from "./protocol.ts";

/** How long setting up may take in all. */
export const SETUP_TIMEOUT_MS = 2000;
/** With the memory here: how long a server is quiet that has no vectors for us. */
const VECTORS_TIMEOUT_MS = 200;
/** How long a socket whose backlog is full is tried again. */
const CONNECT_TIMEOUT_MS = 500;
const CONNECT_RETRY_MS = 10;
/** Other peers kept at one time; each costs a descriptor. */
export const MAX_PEERS = 1024;
/** Messages taken per turn, so that a server that talks without end cannot hold the loop. */
const MESSAGE_BUDGET = 64;

const POLLIN = 0x001;
// struct pollfd: s32 fd, s16 events @4, s16 revents @6
const pollfd = allocate(8);

/** What {@link openServerEnd} needs besides the path. */
export interface ServerEndOptions {
  /** Where lines for people go. */
  readonly log: Log;
  /** What setting up goes by, which has no reactor; the machine's clock, if it is not given. */
  readonly clock?: Clock;
}

/**
 * Becomes a peer of the server at `path`.
 *
 * @throws VmsgError NOBODY_THERE, IVSHMEM_SERVER (it is none, or does not want us), MEMORY
 */
export function openServerEnd(path: string, options: ServerEndOptions): ServerEnd {
  const stream = connectWithin(path, CONNECT_TIMEOUT_MS, options.clock ?? MONOTONIC);
  if (stream === undefined) {
    throw new VmsgError(
      "NOBODY_THERE",
      `nobody listens on ${path}: start vmsg ivshmem-server --socket ${path} first`,
    );
  }
  return new ServerEnd(stream, path, options);
}

/** A server that is there has a moment to accept us, if others came at the same time. */
function connectWithin(path: string, timeoutMs: number, clock: Clock): UnixStream | undefined {
  const endMs = clock.now() + timeoutMs;
  for (;;) {
    const stream = connectUnix(path);
    if (stream !== undefined || !isSocketFile(path) || clock.now() > endMs) return stream;
    pause(CONNECT_RETRY_MS);
  }
}

/** Waits until there is something to read, the other end is gone, or the time is over. */
function waitReadable(fd: Fd, timeoutMs: number): void {
  pollfd.view.setInt32(0, fd.number, true);
  pollfd.view.setInt16(4, POLLIN, true);
  // A signal ends it early, and the caller asks again.
  libc.poll(pollfd.address, 1n, Math.max(0, Math.ceil(timeoutMs)));
}

/** See the head of this file. */
export class ServerEnd implements IvshmemEnd {
  /** As in "ivshmem server shm.sock". */
  readonly description: string;
  readonly isDeviceMemory = false;
  readonly #log: Log;
  readonly #reader: MessageReader;
  #stream: UnixStream | undefined;
  #id = -1;
  #memory: Mapping | undefined;
  #memoryFile: Fd | undefined;
  #reactor: Reactor | undefined;
  #listener: EndListener | undefined;
  #gone: (() => void) | undefined;
  readonly #peers = new Set<number>();
  /** Vector 0 of each peer. */
  readonly #doorbells = new Map<number, PeerEvent>();
  readonly #vectors: PeerEvent[] = [];
  readonly #isWatched: boolean[] = [];

  /**
   * Sets up on a connection to a server; takes the stream.
   *
   * @param name of the server, for people
   * @throws as {@link openServerEnd}; everything is closed then
   */
  constructor(stream: UnixStream, name: string, { log, clock = MONOTONIC }: ServerEndOptions) {
    this.description = `ivshmem server ${name}`;
    this.#stream = stream;
    this.#reader = new MessageReader(stream);
    this.#log = log;
    try {
      this.#setUp(clock);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  get id(): number {
    return this.#id;
  }

  get memory(): MappedMemory {
    return this.#memory!;
  }

  /** False only if the server has no vectors. */
  get interrupts(): boolean {
    return this.#vectors.length > 0;
  }

  get peers(): ReadonlySet<number> {
    return this.#peers;
  }

  #setUp(clock: Clock): void {
    const endMs = clock.now() + SETUP_TIMEOUT_MS;
    if (!this.#receive(endMs, clock)) throw this.#error("said nothing: is it an ivshmem server?");
    const version = this.#reader.value;
    if (version !== PROTOCOL_VERSION) {
      throw this.#error(`is none, or of another version: it begins with ${version}, not 0`);
    }
    if (!this.#receive(endMs, clock)) throw this.#error("gave us no id");
    const id = this.#reader.value;
    if (id < 0 || id > MAX_ID) throw this.#error(`gave us the id ${id}, they end at ${MAX_ID}`);
    this.#id = id;
    // Looked at with each message: a server that talks without end is never quiet.
    const isLate = () => clock.now() > endMs;
    while (this.#memory === undefined) {
      if (isLate() || !this.#receive(endMs, clock)) throw this.#error("gave us no memory");
      this.#takeInSetup();
    }
    while (this.#vectors.length === 0) {
      if (isLate()) throw this.#error("gave us no vector, and was never quiet");
      if (!this.#receive(Math.min(endMs, clock.now() + VECTORS_TIMEOUT_MS), clock)) return;
      this.#takeInSetup();
    }
  }

  /** The next message; false if none came in time. */
  #receive(endMs: number, clock: Clock): boolean {
    for (;;) {
      const result = this.#reader.read();
      if (result === "message") return true;
      if (result === "closed") throw this.#error("closed the connection: it may be full");
      if (result === "bad") throw this.#error("sent two file descriptors with one number");
      const leftMs = endMs - clock.now();
      if (leftMs <= 0) return false;
      waitReadable(this.#stream!.fd, leftMs);
    }
  }

  #takeInSetup(): void {
    const problem = this.#take();
    if (problem !== undefined) throw this.#error(problem);
  }

  #error(problem: string): VmsgError {
    return new VmsgError("IVSHMEM_SERVER", `${this.description} ${problem}`);
  }

  /** Follows a message behind version and id; returns what is wrong with it. */
  #take(): string | undefined {
    const { value } = this.#reader;
    const fd = this.#reader.takeFd();
    if (fd === undefined) return this.#takeLeave(value);
    using stack = new DisposableStack();
    stack.use(fd);
    if (value === MEMORY_MESSAGE) {
      if (this.#memory !== undefined) return "sent a second memory";
      this.#memory = this.#map(fd);
      this.#memoryFile = fd;
      stack.move();
      return undefined;
    }
    if (value < 0 || value > MAX_ID) return `sent the id ${value}`;
    const isOurs = value === this.#id;
    const isSurplus = isOurs ? this.#vectors.length === MAX_VECTORS : this.#doorbells.has(value);
    if (isSurplus) return undefined;
    if (!isOurs && this.#doorbells.size >= MAX_PEERS) {
      return `has more than ${MAX_PEERS} peers`;
    }
    try {
      const role = isOurs ? `vector ${this.#vectors.length}` : `the doorbell of peer ${value}`;
      this.#keep(value, new PeerEvent(fd, isOurs ? "wait" : "signal", role));
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      return `sent something that does not work: ${error.message}`;
    }
    stack.move();
    return undefined;
  }

  #keep(id: number, event: PeerEvent): void {
    if (id === this.#id) {
      this.#vectors.push(event);
      this.#listenTo(this.#vectors.length - 1);
      return;
    }
    this.#doorbells.set(id, event);
    this.#peers.add(id);
    this.#listener?.joined(id);
  }

  #takeLeave(peer: number): string | undefined {
    if (peer === MEMORY_MESSAGE) return "sent no memory where it had to";
    if (peer < 0 || peer > MAX_ID) return `sent the id ${peer}`;
    if (peer === this.#id) return "says that we are gone";
    // A peer without vectors is not known here, and is told of all the same by QEMU's server.
    const doorbell = this.#doorbells.get(peer);
    if (doorbell === undefined) return undefined;
    this.#doorbells.delete(peer);
    this.#peers.delete(peer);
    doorbell[Symbol.dispose]();
    this.#listener?.left(peer);
    return undefined;
  }

  #map(fd: Fd): Mapping {
    const problem = (what: string) => new VmsgError("MEMORY", `${this.description}: ${what}`);
    try {
      const { memory } = mapMemoryFile(fd);
      if (memory.size >= PAGE_SIZE) return memory;
      memory[Symbol.dispose]();
    } catch (error) {
      if (!(error instanceof VmsgError || error instanceof RangeError)) throw error;
      throw problem(`its memory cannot be mapped: ${error.message}`);
    }
    throw problem(`its memory has less than ${PAGE_SIZE} bytes`);
  }

  /**
   * Starts to follow the server; peers that are there already are told at once.
   *
   * @param gone called when this end is on its own
   */
  open(reactor: Reactor, listener: EndListener, gone?: () => void): void {
    if (this.#reactor !== undefined) throw new Error(`${this.description} is opened twice`);
    this.#reactor = reactor;
    this.#listener = listener;
    this.#gone = gone;
    if (this.#stream !== undefined) reactor.watch(this.#stream.fd, EPOLLIN, () => this.#ready());
    this.#vectors.forEach((_, index) => this.#listenTo(index));
    for (const peer of [...this.#peers]) listener.joined(peer);
  }

  #listenTo(index: number): void {
    const reactor = this.#reactor;
    if (reactor === undefined) return;
    const vector = this.#vectors[index]!;
    reactor.watch(vector.fd, EPOLLIN, () => {
      const isRung = vector.clear();
      this.#listener?.rung();
      return isRung;
    });
    this.#isWatched[index] = true;
  }

  #ready(): void {
    for (let i = 0; i < MESSAGE_BUDGET; i++) {
      // The listener may have disposed of this end meanwhile.
      if (this.#stream === undefined) return;
      const result = this.#reader.read();
      if (result === "nothing") return;
      if (result === "closed") return this.#alone("is gone");
      const problem = result === "bad" ? "sent two file descriptors with one number" : this.#take();
      if (problem !== undefined) return this.#alone(problem);
    }
  }

  #alone(problem: string): void {
    this.#closeStream();
    this.#log.warn(`${this.description} ${problem}: joins and leaves are no longer noticed`);
    this.#gone?.();
  }

  /** Those who were there are not waited for any more. */
  forgetPeers(): void {
    for (const peer of [...this.#peers]) this.#takeLeave(peer);
  }

  /**
   * Takes the place of an earlier server's end: the memory that it had mapped, and others have views of, is
   * this server's from here on.
   *
   * @param keptFrom the byte of the memory from which on its content is taken along, if any is
   * @throws VmsgError MEMORY if this server's memory has another size
   */
  succeed(former: ServerEnd, keptFrom: number | undefined): void {
    const [before, now] = [former.#memory!, this.#memory!];
    if (now.size !== before.size) {
      throw new VmsgError(
        "MEMORY",
        `${this.description} has now ${now.size} bytes of memory, not ${before.size} as before: ` +
          "start this side again",
      );
    }
    const bytes = new Uint8Array(before.buffer);
    const parts = keptFrom === undefined ? [] : dataOf(former.#memoryFile!, keptFrom);
    for (const { from, to } of parts) {
      if (from >= before.size) break;
      new Uint8Array(now.buffer).set(bytes.subarray(from, to), from);
    }
    remap(before, this.#memoryFile!.number);
    now[Symbol.dispose]();
    this.#memory = before;
    former.#memory = undefined;
  }

  #closeStream(): void {
    const stream = this.#stream;
    if (stream === undefined) return;
    this.#stream = undefined;
    this.#reactor?.unwatch(stream.fd);
    this.#reader[Symbol.dispose]();
    stream[Symbol.dispose]();
  }

  ring(peer: number): void {
    (peer === this.#id ? this.#vectors[0] : this.#doorbells.get(peer))?.signal();
  }

  /** A process's memory stays where it is only for vfio. */
  pin(_address: bigint, _size: number): undefined {
    return undefined;
  }

  /** None: nothing is pinned. */
  readonly pinHandles: readonly Fd[] = [];

  /** Leaves the server and unmaps the memory. */
  [Symbol.dispose](): void {
    this.#listener = undefined;
    this.#closeStream();
    this.#vectors.forEach((event, index) => {
      if (this.#isWatched[index]) this.#reactor?.unwatch(event.fd);
      event[Symbol.dispose]();
    });
    this.#vectors.length = 0;
    this.#isWatched.length = 0;
    for (const event of this.#doorbells.values()) event[Symbol.dispose]();
    this.#doorbells.clear();
    this.#peers.clear();
    this.#memory?.[Symbol.dispose]();
    this.#memory = undefined;
    this.#memoryFile?.[Symbol.dispose]();
    this.#memoryFile = undefined;
  }
}
