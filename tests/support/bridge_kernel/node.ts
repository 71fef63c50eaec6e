/**
 * The device node /dev/virtio-msg-bridge, played on a Unix socket: a connection is an open file, a request is an
 * ioctl, an answer is its result, the memory file stands for mmap, a word of poll bits for poll().
 *
 *     u32 number, argument structure [+ ring, kick, call by SCM_RIGHTS with ATTACH]  ->
 *     <-  u32 number, s32 result, argument structure [+ the memory file with ATTACH]
 *     <-  u32 0, u32 poll bits                                                          (at any time)
 *
 * It runs in the test's own event loop, {@link BridgeNode.open} to dispose; only waiting is on another thread.
 */

import {
  accept,
  closeFd,
  eventFd,
  fileSize,
  listenAt,
  receiveBytes,
  sendBytes,
  signal,
  unsignal,
  waitReadable,
} from "./libc.ts";
import type { Frame } from "./frames.ts";
import { Choices } from "./random.ts";
import * as ioctl from "./requests.ts";
import { RingFault } from "./ring.ts";
import { Session, type SessionOwner } from "./session.ts";
import { GuestMemory } from "./windows.ts";

const POLL_ERR = 0x08, POLL_HUP = 0x10;
/** How long a test waits for the process; it may be starting on a busy machine. */
const PATIENCE_MS = 180_000;
/** How often it looks while the process may do nothing. */
const LOOK_MS = 5;

interface Waiter {
  readonly condition: () => boolean;
  resolve(): void;
  reject(error: unknown): void;
}

export class BridgeNode implements SessionOwner, AsyncDisposable {
  readonly memory: GuestMemory;
  readonly busName = "loopback";
  /** What the process did that the text does not allow. */
  readonly violations: string[] = [];
  /** Every request that came, by name. */
  readonly requests: string[] = [];
  readonly sessions: Session[] = [];
  /** The session that is attached. */
  session: Session | undefined;
  /** What the next ATTACH finds. */
  startsOnline = true;
  /** Answers to requests other than by the rules, each used once. */
  readonly refusals = new Map<number, number>();
  /** Sees every frame. */
  onFrame: ((direction: "K>D" | "D>K", frame: Frame) => void) | undefined;
  /** Sees every request before it is answered; true: it never is, the connection ends. */
  onRequest: ((name: string) => boolean) | undefined;
  connections = 0;
  readonly #listener: number;
  readonly #wake = eventFd();
  readonly #waiters = new Set<Waiter>();
  readonly #handles = new Map<number, number>();
  #nextHandle = 2;
  #mapSeq = 0;
  #connection: number | undefined;
  #isOpen = true;
  readonly #running: Promise<void>;

  private constructor(readonly path: string, readonly choices: Choices) {
    this.memory = new GuestMemory(choices);
    this.#listener = listenAt(path);
    this.#running = this.#run();
  }

  static open(path: string, choices: Choices = new Choices()): BridgeNode {
    return new BridgeNode(path, choices);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOpen = false;
    signal(this.#wake);
    await this.#running;
    this.disconnect();
    closeFd(this.#listener);
    closeFd(this.#wake);
    closeFd(this.memory.fd);
    for (const session of this.sessions) session.unmap();
    this.memory[Symbol.dispose]();
  }

  /** What was wrong so far, with what makes it happen again. */
  assertClean(): void {
    const wrong = [...this.violations, ...this.memory.storesToGone()];
    if (wrong.length > 0) throw new Error(`SEED=${this.choices.seed}: ${wrong.join("\n")}`);
  }

  violation(what: string): void {
    this.violations.push(what);
  }

  faulted(): void {
    this.#poll(POLL_ERR);
  }

  seen(direction: "K>D" | "D>K", frame: Frame): void {
    this.onFrame?.(direction, frame);
  }

  /** The node is gone, or comes to its end: the connection is closed. */
  disconnect(): void {
    if (this.#connection === undefined) return;
    closeFd(this.#connection);
    this.#connection = undefined;
    this.#forget();
  }

  #forget(): void {
    this.session?.close();
    this.session = undefined;
    this.#handles.clear();
  }

  #poll(bits: number): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setUint32(4, bits, true);
    if (this.#connection !== undefined) sendBytes(this.#connection, bytes);
  }

  /** Says what poll() says of a node that is not attached, or no longer. */
  pollHangUp(): void {
    this.#poll(POLL_ERR | POLL_HUP);
  }

  async until(condition: () => boolean, what: string): Promise<void> {
    if (this.violations.length === 0 && condition()) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiter = { condition, resolve, reject };
    this.#waiters.add(waiter);
    signal(this.#wake);
    const timer = setTimeout(
      () => reject(new Error(`not within ${PATIENCE_MS} ms: ${what}`)),
      PATIENCE_MS,
    );
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      this.#waiters.delete(waiter);
    }
  }

  /** Like Promise.all, but a violation ends it, and so does time. */
  async settled<T>(promise: Promise<T>, what: string): Promise<T> {
    let isDone = false;
    const done = promise.finally(() => {
      isDone = true;
      signal(this.#wake);
    });
    // Who waits for both learns of it by `done`.
    done.catch(() => {});
    await this.until(() => isDone, what);
    return await done;
  }

  /** The session attached now, or the next one, whose devices are these. */
  async published(devices: readonly number[], but?: Session): Promise<Session> {
    const wanted = [...devices].sort((a, b) => a - b).join();
    await this.until(() => {
      const { session } = this;
      if (session === undefined || session === but || session.commits === 0) return false;
      return [...session.devices.keys()].sort((a, b) => a - b).join() === wanted;
    }, `devices ${wanted} are published`);
    return this.session!;
  }

  async #run(): Promise<void> {
    while (this.#isOpen) {
      const { session } = this;
      const fds = [this.#wake, this.#listener, this.#connection ?? -1];
      fds.push(session === undefined ? -1 : session.fds.kick);
      const isWatched = session !== undefined && !session.isOnline && session.epoch > 0;
      const ready = await waitReadable(fds, isWatched || this.#waiters.size > 0 ? LOOK_MS : 500);
      try {
        this.#turn(ready, session);
      } catch (error) {
        if (!(error instanceof RingFault)) this.violation(`the node failed: ${error}`);
        else this.violation(error.message);
        this.session?.fault();
      }
      this.#settle();
    }
  }

  #turn(
    [wake, listener, connection, kick]: readonly boolean[],
    session: Session | undefined,
  ): void {
    if (wake) unsignal(this.#wake);
    if (kick && session === this.session) session!.kicked();
    if (connection && this.#connection !== undefined) this.#serve(this.#connection);
    if (listener) this.#accept();
    this.session?.lookWhileOffline();
  }

  #settle(): void {
    for (const waiter of this.#waiters) {
      if (this.violations.length > 0) {
        waiter.reject(new Error(`SEED=${this.choices.seed}: ${this.violations.join("\n")}`));
        continue;
      }
      try {
        if (waiter.condition()) waiter.resolve();
      } catch (error) {
        waiter.reject(error);
      }
    }
  }

  #accept(): void {
    // Whoever comes while another is there waits in the backlog.
    if (this.#connection !== undefined) return;
    this.#connection = accept(this.#listener);
    if (this.#connection !== undefined) this.connections++;
  }

  #serve(connection: number): void {
    const { bytes, fds } = receiveBytes(connection, 4096);
    if (bytes === undefined || bytes.length === 0) {
      this.requests.push("end");
      this.disconnect();
      return;
    }
    const number = bytes.length < 4 ? 0 : new DataView(bytes.buffer).getUint32(0, true);
    const name = ioctl.NAMES.get(number);
    if (name === undefined || bytes.length !== 4 + ioctl.argumentSize(number)) {
      this.violation(`no request: ${bytes.toHex()}`);
      fds.forEach(closeFd);
      return;
    }
    this.requests.push(name);
    if (this.onRequest?.(name)) {
      fds.forEach(closeFd);
      this.disconnect();
      return;
    }
    const argument = bytes.slice(4);
    const refusal = this.refusals.get(number);
    this.refusals.delete(number);
    if (refusal !== undefined) fds.forEach(closeFd);
    const result = refusal ?? this.#ioctl(number, argument, fds);
    if (result < 0 && refusal === undefined) {
      this.violation(`${name} failed with ${result}: ${bytes.toHex()}`);
    }
    const answer = new Uint8Array(8 + argument.length);
    const view = new DataView(answer.buffer);
    view.setUint32(0, number, true);
    view.setInt32(4, result, true);
    answer.set(argument, 8);
    sendBytes(connection, answer, number === ioctl.ATTACH && result === 0 ? [this.memory.fd] : []);
  }

  #ioctl(number: number, argument: Uint8Array<ArrayBuffer>, fds: readonly number[]): number {
    const view = new DataView(argument.buffer);
    if (number !== ioctl.ATTACH && fds.length > 0) {
      this.violation("descriptors with a request that has none");
    }
    if (number === ioctl.RESOLVE) {
      const names = ioctl.readResolve(argument);
      if (names === undefined) return -ioctl.EINVAL;
      if (names.name !== this.busName) return -ioctl.ENOENT;
      if (names.id !== "" && names.id !== "default") return -ioctl.ENODEV;
      const handle = this.#nextHandle++;
      this.#handles.set(handle, 1);
      view.setUint32(64, handle, true);
      return 0;
    }
    if (number === ioctl.RELEASE) {
      if (argument.subarray(4).some((byte) => byte !== 0)) return -ioctl.EINVAL;
      if (!this.#handles.delete(view.getUint32(0, true))) this.violation("RELEASE of no handle");
      return 0;
    }
    if (number === ioctl.DETACH) return this.#detach();
    return this.#attach(argument, fds);
  }

  #detach(): number {
    const { session } = this;
    if (session === undefined) return -ioctl.ENOTCONN;
    // A kernel that copies a name that was cleared stops (section G, fact 3).
    if (!session.isOnline && !session.isFaulted) this.violation("DETACH while offline");
    session.close();
    this.session = undefined;
    return 0;
  }

  #attach(argument: Uint8Array<ArrayBuffer>, fds: readonly number[]): number {
    const [ring, kick, call] = fds;
    if (ring === undefined || kick === undefined || call === undefined || fds.length !== 3) {
      fds.forEach(closeFd);
      return -ioctl.EINVAL;
    }
    const request = ioctl.readAttach(argument, fileSize(ring));
    const refuse = (errno: number) => {
      fds.forEach(closeFd);
      return -errno;
    };
    if (typeof request === "string") {
      this.violation(request);
      return refuse(ioctl.EINVAL);
    }
    if (this.session !== undefined) return refuse(ioctl.EBUSY);
    if (!this.#handles.has(request.handle)) return refuse(ioctl.ENODEV);
    const session = new Session(this, request, { ring, kick, call }, () => ++this.#mapSeq);
    this.session = session;
    this.sessions.push(session);
    if (this.startsOnline) session.goOnline(false);
    ioctl.writeCapabilities(argument, session.epoch);
    return 0;
  }
}
