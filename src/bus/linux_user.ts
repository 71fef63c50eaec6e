/**
 * The linux-user bus: two processes on one host, two queue files and a Unix socket, with the names,
 * sizes and the notification byte of the prototype QEMU (docs/wire.md 4.2).
 *
 *     queue-<name>-driver, queue-<name>-device   4096 slots each, 262272 bytes, mapped by both
 *     socket                                     one side listens, the other connects
 *
 * States: waiting (listening, or trying to connect every {@link RETRY_MS}) -> attached -> waiting ...
 * A listener has one peer; while it is attached, others are turned away, unless it has said nothing for
 * {@link SILENT_MS}: then the next one takes its place. After one that left without a word, the next waits a moment. Whoever comes first creates
 * the files; whoever comes later, or again, finds the other side by itself, so the start order does
 * not matter and a killed process is simply replaced.
 *
 * Two vmsg processes that speak `v1` lock the queue files (open file description locks on the driver
 * file, dropped by the kernel with the process): byte 0 while opening, byte 1 by the driver side,
 * byte 2 by the device side. Whoever finds the other role's byte free is alone and starts with empty
 * files. The prototype knows no locks, so in its dialect the queues are used as found, and only
 * `reset` empties them. Files are emptied by writing zeros: cutting one off would be a SIGBUS for
 * whoever has it mapped.
 */

import { Acceptor } from "../linux/acceptor.ts";
import { MONOTONIC, pause } from "../linux/clock.ts";
import { VmsgError } from "../linux/errors.ts";
import { type Fd, tryLockByte, unlockByte } from "../linux/fd.ts";
import { type Mapping, mapShared } from "../linux/mapping.ts";
import { type Access, openOwnFileOf } from "../linux/own_file.ts";
import { lockHolder, type MappedFile, mappedFiles } from "../linux/process_files.ts";
import type { Reactor, Timer } from "../linux/reactor.ts";
import { connectUnix, listenUnix, type UnixStream } from "../linux/unix_socket.ts";
import type { BusListener, BusOptions, Side } from "./bus.ts";
import { SpscQueue, spscSize } from "./spsc_queue.ts";
import { StreamBus } from "./stream_bus.ts";

/** Slots per queue file. */
const CAPACITY = 4096;
/** How often a connecting side tries. */
const RETRY_MS = 50;
/** For how long a peer may say nothing where another one wants its place. */
const SILENT_MS = 5000;
/** For how long one who opens the files, too, is waited for. */
const LOCK_MS = 2000;
const LOCK_RETRY_MS = 5;

const BYTE_OPENING = 0;
const BYTE_OF = { driver: 1, device: 2 } as const;

/** Options of `--bus linux-user,...`. */
export interface LinuxUserOptions extends BusOptions {
  /** Names the queue files. */
  readonly name: string;
  /** The directory of the queue files. */
  readonly directory: string;
  /** The path of the socket. */
  readonly socket: string;
  /** Who else may use the socket and the files. */
  readonly access?: Access;
  /** Listen on the socket, or connect to it. */
  readonly listen: boolean;
  /** A connecting side that finds nobody: wait, or fail. */
  readonly wait: boolean;
  /** Empty the queue files first. */
  readonly reset: boolean;
  /** Hold the lock, i.e. both sides are vmsg and speak `v1`. */
  readonly lock: boolean;
  /** Says what the bus waits for; called once per wait. */
  readonly log: (line: string) => void;
}

interface QueueFiles extends Disposable {
  readonly driver: Mapping;
  readonly device: Mapping;
  /** The file that carries the locks. */
  readonly lock: Fd;
}

function openQueueFiles(side: Side, options: LinuxUserOptions): QueueFiles {
  using stack = new DisposableStack();
  const path = (which: Side) => `${options.directory}/queue-${options.name}-${which}`;
  const size = spscSize(CAPACITY);
  const open = (which: Side) =>
    openOwnFileOf(size, path(which), { ...options.access, what: "queue file" });
  const driverFile = stack.use(open("driver"));
  using deviceFile = open("device");
  // With locks the files of a living peer stay as they are, whatever was asked for.
  const empty = options.lock ? takeRole(side, driverFile, options) : options.reset;
  const driver = stack.use(mapShared(driverFile.number, size));
  const device = stack.use(mapShared(deviceFile.number, size));
  if (empty) { for (const { buffer } of [driver, device]) new Uint8Array(buffer).fill(0); }
  if (options.lock) unlockByte(driverFile, BYTE_OPENING);
  const owner = stack.move();
  return { driver, device, lock: driverFile, [Symbol.dispose]: () => owner.dispose() };
}

/** Takes this side's lock; returns true if the other side's is free, so the files may be emptied. */
function takeRole(side: Side, file: Fd, options: LinuxUserOptions): boolean {
  const complaint = (byte: number, what: string) => {
    const holder = lockHolder(file, byte) ?? "of another user";
    const bus = `bus linux-user,name=${options.name}`;
    return new VmsgError("BUS_IN_USE", `${bus}: process ${holder} ${what}`);
  };
  // It is held for moments only, but whoever may open the file may hold it for ever.
  const endMs = MONOTONIC.now() + LOCK_MS;
  while (!tryLockByte(file, BYTE_OPENING)) {
    if (MONOTONIC.now() > endMs) {
      throw complaint(BYTE_OPENING, `has locked ${options.directory}/queue-${options.name}-driver`);
    }
    pause(LOCK_RETRY_MS);
  }
  if (!tryLockByte(file, BYTE_OF[side])) {
    throw complaint(BYTE_OF[side], `is the ${side} side already`);
  }
  const other = BYTE_OF[side === "driver" ? "device" : "driver"];
  const alone = tryLockByte(file, other);
  if (alone) unlockByte(file, other);
  return alone;
}

function queueFilesOf(process: number | "self"): MappedFile[] {
  return mappedFiles(process).filter(({ path }) => /\/queue-[^/]*-(driver|device)$/.test(path));
}

/** One end of a linux-user bus. */
export class LinuxUserBus extends StreamBus {
  readonly #files: QueueFiles;
  readonly #options: LinuxUserOptions;
  readonly #retry: Timer;
  #acceptor: Acceptor | undefined;
  #told = false;
  /** Since when a peer is attached. */
  #attachedMs = 0;

  /** Opens the queue files; throws VmsgError BUS_IN_USE if another process has this side. */
  constructor(side: Side, reactor: Reactor, options: LinuxUserOptions) {
    const files = openQueueFiles(side, options);
    const driver = new SpscQueue(files.driver, 0, files.driver.size);
    const device = new SpscQueue(files.device, 0, files.device.size);
    const [outgoing, incoming] = side === "driver" ? [driver, device] : [device, driver];
    super(side, reactor, options, outgoing, incoming);
    this.#files = files;
    this.#options = options;
    this.#retry = reactor.timer(() => {
      if (this.#options.listen) this.#acceptor?.hold(false);
      else this.#connect();
    });
  }

  /** For log lines. */
  get description(): string {
    return `linux-user bus ${this.#options.socket}`;
  }

  /** Listens or begins to connect. */
  override open(listener: BusListener): void {
    super.open(listener);
    if (!this.#options.listen) return this.#connect();
    this.#acceptor = new Acceptor(
      this.reactor,
      listenUnix(this.#options.socket, this.#options.access),
      (stream) => this.#take(stream),
      (problem) => this.#tell(problem),
    );
    this.#tellWaiting();
  }

  /** A vmsg peer holds its lock, and sends again what is dropped here. */
  protected override get discards(): boolean {
    const { discardOnAttach } = this.#options;
    if (discardOnAttach !== "from vmsg") return discardOnAttach;
    const byte = BYTE_OF[this.#otherSide];
    const isFree = tryLockByte(this.#files.lock, byte);
    if (isFree) unlockByte(this.#files.lock, byte);
    return !isFree;
  }

  protected override letIn(): void {
    // After one that said nothing the next one waits.
    if (this.hasHeard) this.#acceptor?.accept();
  }

  #take(stream: UnixStream): void {
    // Whoever comes may be seen before the end of the one that went, and after its own.
    this.dropIfGone();
    if (stream.isPeerGone) return stream[Symbol.dispose]();
    const isSilent = !this.hasHeard && this.reactor.now() - this.#attachedMs > SILENT_MS;
    if (this.isAttached && isSilent) this.drop("it said nothing, and another one is there");
    if (!this.isAttached) return this.connected(stream);
    this.#tell(`turned a second ${this.#otherSide} side away`);
    stream[Symbol.dispose]();
  }

  #tell(line: string): void {
    this.#options.log(`${this.description}: ${line}`);
  }

  #connect(): void {
    const stream = connectUnix(this.#options.socket);
    if (stream !== undefined) return this.connected(stream);
    if (!this.#options.wait) {
      throw new VmsgError(
        "NOBODY_THERE",
        `${this.description}: no ${this.#otherSide} side listens there (wait=off)`,
      );
    }
    this.#tellWaiting();
    this.#retry.arm(RETRY_MS);
  }

  get #otherSide(): Side {
    return this.side === "driver" ? "device" : "driver";
  }

  /** Says so if the peer has other queue files than this side, so that nobody hears anybody. */
  protected override connected(stream: UnixStream): void {
    const { directory, name } = this.#options;
    const process = stream.peerProcess;
    const ours = new Set(queueFilesOf("self").map(({ identity }) => identity));
    const theirs = queueFilesOf(process);
    if (theirs.length > 0 && !theirs.some(({ identity }) => ours.has(identity))) {
      this.#tell(
        `the ${this.#otherSide} side, process ${process}, has ${theirs[0].path}, ` +
          `this side has dir=${directory},name=${name}: give both the same`,
      );
    }
    this.#attachedMs = this.reactor.now();
    super.connected(stream);
  }

  #tellWaiting(): void {
    if (this.#told) return;
    this.#told = true;
    this.#options.log(`${this.description}: waiting for the ${this.#otherSide} side`);
  }

  /** The peer is gone: says so and waits for the next. */
  protected override disconnected(): void {
    this.#told = false;
    this.#tellWaiting();
    // A peer that closes at once must not make this a busy loop, so never reconnect on the spot.
    if (this.#options.listen && this.hasHeard) return;
    this.#acceptor?.hold(true);
    this.#retry.arm(RETRY_MS);
  }

  /** Closes the stream, removes the socket, unmaps the files, drops the locks. */
  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.reactor.dropTimer(this.#retry);
    this.#acceptor?.[Symbol.dispose]();
    this.#acceptor = undefined;
    this.#files[Symbol.dispose]();
  }
}
