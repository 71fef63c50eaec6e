/**
 * The one loop of a data plane: epoll, timers, tasks.
 *
 * Theory of operation. A Worker blocks in `epoll_wait` until a descriptor or the next timer is due;
 * Deno's own event loop stands still meanwhile. One turn is: wait, call the handlers of the ready
 * descriptors (messages come in here, requests are answered here), fire timers, then give each
 * scheduled {@link Task} one batch (virtqueues are worked on here). What a task schedules has its batch in the same
 * turn: a frame goes from queue to doorbell between two waits. But no task has two batches in a turn. While one has more
 * to do, the next turn polls instead of blocking, so requests are never more than one batch of each task away. What can wait
 * for such a poll and what it brings ({@link Reactor.scheduleLate}) comes last in the next turn.
 *
 * Control-plane sequences (a bring-up, a replay) are ordinary async functions. Promises settle in
 * microtasks, which never run while the loop is on the stack. Whoever settles a promise that such a
 * function may wait for uses {@link Reactor.defer}: the reactor then leaves the stack for one turn of
 * Deno's event loop (about 5 us) before it blocks again. What such a function schedules has its batch at once. The data path settles no promise and never
 * pays for this.
 *
 * Only {@link stopReactorFrom}'s eventfd reaches a blocked Worker from outside.
 *
 * Where turns follow one another quickly, the loop looks a few times more before it blocks (pace.ts).
 *
 * Time is the reactor's: {@link Reactor.now}. With a clock that is moved by hand (clock.ts) the loop never
 * waits for a timer: when a turn finds nothing to do, time jumps to the next deadline. The real one is read once a
 * turn: how long to block goes by the last reading, so that a timer may be late by as long as the tasks took.
 */

import { setImmediate } from "node:timers";

import { allocate } from "./arena.ts";
import { type Clock, MONOTONIC } from "./clock.ts";
import { EINTR } from "./errors.ts";
import { clearEventFd } from "./eventfd.ts";
import { check, errno, lastError, libc } from "./libc.ts";
import { Fd } from "./fd.ts";
import { cutCount, lastCut } from "./memory_guard.ts";
import { Pace, POLLS } from "./pace.ts";

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;

/** Readiness bits of epoll(7). */
export const EPOLLIN = 0x001;
/** There is room to write. */
export const EPOLLOUT = 0x004;
/** The descriptor is in error; always watched for. */
export const EPOLLERR = 0x008;
/** The other end hung up; always watched for. */
export const EPOLLHUP = 0x010;

/** Tells of each signal once, however long it stays ready: nothing has to be read. */
export const EPOLLET = 0x8000_0000;
/** Tells once, of what is always watched for too. */
const EPOLLONESHOT = 1 << 30;

/** struct epoll_event is packed on x86-64 (data at 4) and not on arm64 (data at 8). */
const EVENT_SIZE = Deno.build.arch === "x86_64" ? 12 : 16;
const EVENT_DATA = Deno.build.arch === "x86_64" ? 4 : 8;
const MAX_EVENTS = 32;
/** Of one turn; only who makes new ones over and over comes to it. */
const MAX_TASKS = 1024;
/** The most that epoll_wait can be told; a later deadline is waited for in parts. */
const MAX_TIMEOUT_MS = 0x7fff_ffff;

/** Calls in vain, one after another, before a descriptor is left alone, and for how long. */
const MAX_VAIN = 100;
const PACE_MS = 100;

/**
 * Called with the readiness bits of its descriptor. It must not block, and may be called in vain. One that tells whether
 * it found anything is called less often where it never does.
 */
export type ReadyHandler = (events: number) => boolean | void;

/** Work that is done in batches between two looks at the descriptors. */
export interface Task {
  /** Does one bounded batch; returns true if there is more to do now. */
  run(): boolean;
  /** The reactor's own: is it in the list? */
  isScheduled?: boolean;
  /** The reactor's own: the turn in which it ran last. */
  ranIn?: number;
}

/** One deadline that can be armed again and again. */
export interface Timer {
  /** Fires once, `delayMs` from now; replaces an earlier deadline. One that is past fires in the next turn. */
  arm(delayMs: number): void;
  /** Forgets the deadline. */
  cancel(): void;
  /** Is there a deadline? */
  readonly armed: boolean;
}

/** A promise of an async sequence inside a reactor, and the two ways to settle it. */
export interface Deferred<T> {
  /** What is waited for. */
  readonly promise: Promise<T>;
  /** Fulfils it. */
  resolve(value: T): void;
  /** Fails it. */
  reject(reason: Error): void;
}

class ReactorTimer implements Timer {
  deadlineMs = Infinity;

  /** @param firedIn the turn in which it was made, later that in which it fired last */
  constructor(readonly fire: () => void, readonly reactor: Reactor, public firedIn: number) {}

  arm(delayMs: number): void {
    this.deadlineMs = this.reactor.now() + delayMs;
    this.reactor.expect(this.deadlineMs);
  }

  cancel(): void {
    this.deadlineMs = Infinity;
  }

  get armed(): boolean {
    return this.deadlineMs !== Infinity;
  }
}

/** An epoll loop with timers, tasks and room for async sequences. */
export class Reactor implements Disposable {
  readonly #epoll = new Fd(check(libc.epoll_create1(EPOLL_CLOEXEC), "epoll_create1"));
  readonly #events = allocate(EVENT_SIZE * MAX_EVENTS);
  readonly #control = allocate(EVENT_SIZE);
  readonly #handlers: (ReadyHandler | undefined)[] = [];
  readonly #timers: ReactorTimer[] = [];
  /** No timer is due before; one that was put off may have been. */
  #nextMs = Infinity;
  /** When the clock was read last. */
  #readMs = 0;
  /** Those that are scheduled are the first {@link #count}; an array that shrinks would be allocated anew. */
  readonly #tasks: Task[] = [];
  #count = 0;
  /** The same, of those that are late. */
  readonly #lateTasks: Task[] = [];
  #lateCount = 0;
  #turns = 0;
  readonly #turnPace = new Pace();
  /** When timers were looked at last. */
  #lookedMs = 0;
  /** See {@link turnMs}. */
  #turnMs = 0;
  #askedIn = -1;
  #settled = true;
  #stopped = false;
  #failure: unknown;
  #cuts = cutCount();
  readonly #vain: number[] = [];
  /** Called once with a descriptor that is always ready in vain. */
  paced: ((number: number) => void) | undefined;
  /** Called after a turn in which memory was found to be cut off, with an address in it (memory_guard.ts). */
  readonly cutHandlers: Set<(address: bigint) => void> = new Set();

  /**
   * Opens the epoll descriptor.
   *
   * @param clock what {@link now} and every timer go by
   */
  constructor(readonly clock: Clock = MONOTONIC) {}

  /** Milliseconds that never go back; the same origin in all Workers of a machine. */
  now(): number {
    return this.#readMs = this.clock.now();
  }

  /** The same, as old as a turn may be: for what is asked over and over and counts in seconds. */
  turnMs(): number {
    if (this.#askedIn !== this.#turns) {
      this.#askedIn = this.#turns;
      this.#turnMs = this.now();
    }
    return this.#turnMs;
  }

  /** For timers: one has this deadline. */
  expect(deadlineMs: number): void {
    if (deadlineMs < this.#nextMs) this.#nextMs = deadlineMs;
  }

  /** Watches a descriptor (level-triggered). The caller keeps owning it. */
  watch(fd: Fd, events: number, handler: ReadyHandler): void {
    this.#handlers[fd.number] = handler;
    this.#vain[fd.number] = 0;
    this.#epollControl(EPOLL_CTL_ADD, fd.number, events);
  }

  /** A source that is always ready and never has anything would keep the loop from sleeping: it gets a pause. */
  #pace(number: number): void {
    if (++this.#vain[number]! < MAX_VAIN) return;
    if (this.#vain[number] === MAX_VAIN) this.paced?.(number);
    const handler = this.#handlers[number];
    this.#epollControl(EPOLL_CTL_MOD, number, EPOLLONESHOT);
    const timer = this.timer(() => {
      this.dropTimer(timer);
      // Unless it is another one's by now.
      if (this.#handlers[number] === handler) this.#epollControl(EPOLL_CTL_MOD, number, EPOLLIN);
    });
    timer.arm(PACE_MS);
  }

  /** Changes the bits a watched descriptor is watched for; 0 still reports hang-ups. */
  rewatch(fd: Fd, events: number): void {
    this.#epollControl(EPOLL_CTL_MOD, fd.number, events);
  }

  /** Stops watching; call it before the descriptor is closed. */
  unwatch(fd: Fd): void {
    this.#handlers[fd.number] = undefined;
    this.#epollControl(EPOLL_CTL_DEL, fd.number, 0);
  }

  #epollControl(operation: number, number: number, events: number): void {
    this.#control.view.setUint32(0, events, true);
    this.#control.view.setInt32(EVENT_DATA, number, true);
    const result = libc.epoll_ctl(this.#epoll.number, operation, number, this.#control.address);
    check(result, `epoll_ctl fd ${number}`);
  }

  /** Makes a timer, not armed yet. */
  timer(fire: () => void): Timer {
    const timer = new ReactorTimer(fire, this, this.#turns);
    this.#timers.push(timer);
    return timer;
  }

  /** Forgets a timer for good. */
  dropTimer(timer: Timer): void {
    timer.cancel();
    const position = this.#timers.indexOf(timer as ReactorTimer);
    if (position >= 0) this.#timers.splice(position, 1);
  }

  /** Has a task run one batch in this turn, or in the next if it had one; a second call before that changes nothing. */
  schedule(task: Task): void {
    if (task.isScheduled === true) return;
    task.isScheduled = true;
    this.#tasks[this.#count++] = task;
  }

  /** Has a task run at the end of the next turn, which polls, behind all that its descriptors bring. */
  scheduleLate(task: Task): void {
    if (task.isScheduled === true) return;
    task.isScheduled = true;
    this.#lateTasks[this.#lateCount++] = task;
  }

  /** A promise whose settling lets the async sequences of this reactor go on. */
  defer<T>(): Deferred<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    return {
      promise,
      resolve: (value) => {
        this.#settled = true;
        resolve(value);
      },
      reject: (reason) => {
        this.#settled = true;
        reject(reason);
      },
    };
  }

  /** Resolves after `delayMs`. */
  sleep(delayMs: number): Promise<void> {
    const { promise, resolve } = this.defer<void>();
    const timer = this.timer(() => {
      this.dropTimer(timer);
      resolve();
    });
    timer.arm(delayMs);
    return promise;
  }

  /** Starts an async sequence; what it throws ends {@link run}. */
  spawn(sequence: () => Promise<void>): void {
    this.#settled = true;
    sequence().catch((error) => this.fail(error));
  }

  /** Ends {@link run} with an error. The first one wins. */
  fail(error: unknown): void {
    if (!this.#stopped) this.#failure = error;
    this.#stopped = true;
  }

  /** Ends {@link run} after this turn. */
  stop(): void {
    this.#stopped = true;
  }

  /** Has {@link run} ended, or will it with this turn? */
  get isStopped(): boolean {
    return this.#stopped;
  }

  /** Runs turns until {@link stop} or {@link fail}. */
  async run(): Promise<void> {
    while (!this.#stopped) {
      await this.#letSequencesRun();
      if (this.#stopped) break;
      this.turn();
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Runs turns until the promise settles, and passes its outcome on; for tests and set-up. */
  async until<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    const watched = promise.finally(() => settled = true);
    watched.catch(() => {});
    this.#settled = true;
    while (!settled && !this.#stopped) {
      await this.#letSequencesRun();
      if (!settled && !this.#stopped) this.turn();
    }
    if (this.#failure !== undefined) throw this.#failure;
    // It would never settle any more.
    if (!settled) throw new Error("the reactor was stopped");
    return await watched;
  }

  async #letSequencesRun(): Promise<void> {
    while (this.#settled) {
      this.#settled = false;
      // An immediate runs when no microtask is left, however long the chains of promises are. (A
      // message to oneself does not in a Worker: it arrives after a few microtasks.)
      await new Promise<void>((resolve) => setImmediate(resolve));
      this.now();
      // What they have sent is rung for before the next wait, not after it.
      this.#runTasks();
    }
  }

  /** One turn of the loop, see the head of this file. It blocks until there is something to do. */
  turn(): void {
    const late = this.#lateCount;
    const timeoutMs = this.#count > 0 || late > 0 ? 0 : this.#timeoutMs();
    const count = this.#wait(timeoutMs);
    if (count < 0 && errno() !== EINTR) throw lastError("epoll_wait");
    for (let i = 0; i < count; i++) {
      const events = this.#events.view.getUint32(i * EVENT_SIZE, true);
      const number = this.#events.view.getInt32(i * EVENT_SIZE + EVENT_DATA, true);
      const found = this.#handlers[number]?.(events);
      if (found === false) this.#pace(number);
      else if (found === true) this.#vain[number] = 0;
    }
    this.clock.skipTo?.(count + late + this.#count === 0 ? this.#deadlineMs() : -Infinity);
    this.#fireTimers();
    this.#runTasks();
    if (late > 0) this.#runLate(late);
    if (cutCount() !== this.#cuts) this.#tellOfCut();
  }

  /** Waits for descriptors; a busy loop looks a few times before it sleeps (pace.ts). */
  #wait(timeoutMs: number): number {
    const { number } = this.#epoll, { address } = this.#events;
    if (timeoutMs !== 0 && this.#turnPace.isBusy) {
      for (let i = 0; i < POLLS; i++) {
        const count = libc.epoll_wait(number, address, MAX_EVENTS, 0);
        if (count !== 0) return count;
      }
    }
    return libc.epoll_wait(number, address, MAX_EVENTS, timeoutMs);
  }

  #tellOfCut(): void {
    this.#cuts = cutCount();
    for (const tell of this.cutHandlers) tell(lastCut());
  }

  #deadlineMs(): number {
    let deadlineMs = Infinity;
    for (const timer of this.#timers) deadlineMs = Math.min(deadlineMs, timer.deadlineMs);
    return deadlineMs;
  }

  #timeoutMs(): number {
    if (this.clock.skipTo !== undefined) return this.#deadlineMs() === Infinity ? -1 : 0;
    if (this.#nextMs === Infinity) return -1;
    // Rounded up: waking early would turn the last millisecond into a busy loop.
    return Math.min(Math.max(0, Math.ceil(this.#nextMs - this.#readMs)), MAX_TIMEOUT_MS);
  }

  #fireTimers(): void {
    const turn = ++this.#turns;
    if (this.#nextMs === Infinity) return;
    const nowMs = this.now();
    this.#turnPace.turned(nowMs - this.#lookedMs);
    this.#lookedMs = nowMs;
    if (nowMs < this.#nextMs) return;
    for (;;) {
      // The earliest first, and each once a turn: one that arms itself for a moment in the past is over and
      // over the earliest, and must hold neither the loop nor the others.
      let due: ReactorTimer | undefined;
      for (const timer of this.#timers) {
        if (timer.deadlineMs > nowMs || timer.firedIn === turn) continue;
        if (due === undefined || timer.deadlineMs < due.deadlineMs) due = timer;
      }
      if (due === undefined) break;
      due.firedIn = turn;
      due.cancel();
      due.fire();
    }
    this.#nextMs = this.#deadlineMs();
  }

  #runTasks(): void {
    const tasks = this.#tasks;
    let kept = 0;
    // Those that are scheduled meanwhile come behind the others.
    for (let i = 0; i < this.#count; i++) {
      const task = tasks[i]!;
      if (task.ranIn === this.#turns || i >= MAX_TASKS) {
        tasks[kept++] = task;
        continue;
      }
      task.isScheduled = false;
      task.ranIn = this.#turns;
      if (task.run()) this.schedule(task);
    }
    this.#count = kept;
  }

  /** Those that were late before this turn; more may come meanwhile. */
  #runLate(count: number): void {
    const tasks = this.#lateTasks;
    for (let i = 0; i < count; i++) {
      const task = tasks[i]!;
      task.isScheduled = false;
      if (task.run()) this.schedule(task);
    }
    this.#lateCount -= count;
    tasks.copyWithin(0, count, count + this.#lateCount);
  }

  /** Closes the epoll descriptor. */
  [Symbol.dispose](): void {
    this.#epoll[Symbol.dispose]();
  }
}

/**
 * Ends a reactor when an eventfd is signalled, also from another thread; the caller owns both.
 *
 * @param may is it to end now?
 */
export function stopReactorFrom(reactor: Reactor, stop: Fd, may: () => boolean = () => true): void {
  reactor.watch(stop, EPOLLIN, () => {
    clearEventFd(stop);
    if (may()) reactor.stop();
  });
}
