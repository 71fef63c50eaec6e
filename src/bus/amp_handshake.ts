/**
 * How both sides of an AMP layout (docs/wire.md 4.5) find each other, by the status that each has in its head.
 *
 *     INIT -the other side has a head, and has not ended: cursors become 0-> READY -it is not INIT-> RUN
 *     RUN -it is INIT again, or has ended-> INIT
 *
 * The device side writes the layout first, unless it lies there already; the driver side waits for it. Nobody rings for this
 * step or that, so both look again and again.
 *
 * Others look at the status until they run and never again, so a side in RUN is never made to begin anew by us: a process
 * that takes the place of another one goes on with the cursors that it finds, and where the other side has begun anew
 * unseen, what it writes is read from its first element on. What was written for its predecessor it finds itself, once.
 */

import type { Reactor, Timer } from "../linux/reactor.ts";
import { copyBlock, hasBlock, hasPlace, placeIn, readBlock, writeBlock } from "./amp_block.ts";
import { type AmpQueue, AmpStatus } from "./amp_queue.ts";

/** How often a side looks that waits for the other, and one that runs. */
const WAIT_MS = 10;
const WATCH_MS = 50;

/** Who wants to know. */
export interface HandshakeUser {
  /** Both sides run: messages can be sent. */
  running(): void;
  /** They do not any more; that they do again is said by itself. */
  lost(reason: string): void;
  /** This side's status has changed: the other one may sleep. */
  ring(): void;
  /** For people. */
  tell(line: string): void;
}

/** See the head of this file. */
export class AmpHandshake implements Disposable {
  readonly #timer: Timer;
  readonly #words: Uint16Array;
  /** The block that was taken up. */
  #block: Uint16Array = new Uint16Array(0);
  /** What this side found first may be what an earlier process of it left. */
  #mayGoOn = true;
  #isClear = false;
  /** Does this side run with what an earlier process of it left? */
  goesOn = false;
  #isRunning = false;
  #wasLost = false;
  /** Has the other side been seen in RUN since this one is? */
  #hasSeenRun = false;
  #told = "";

  /**
   * Touches nothing before {@link begin}.
   *
   * @param size bytes of the layout, from the queue's offset on
   * @param anew nothing that lies there is of any use
   */
  constructor(
    readonly reactor: Reactor,
    readonly queue: AmpQueue,
    size: number,
    private anew: boolean,
    readonly user: HandshakeUser,
  ) {
    this.#words = new Uint16Array(queue.memory.buffer, queue.offset, size / 2);
    this.#timer = reactor.timer(() => this.#step());
  }

  /** Wants both sides to run; {@link HandshakeUser.running} is called when they do, which may be at once. */
  begin(): void {
    this.#step();
  }

  /** Wants nothing any more, until it begins again. */
  pause(): void {
    this.#timer.cancel();
    this.#isRunning = this.#isClear = false;
    this.#mayGoOn = true;
  }

  #step(): void {
    this.#timer.arm(this.#isRunning ? WATCH_MS : WAIT_MS);
    const problem = this.#isRunning ? this.#whyLost() : undefined;
    if (problem !== undefined) this.#lose(problem);
    else if (!this.#isRunning && this.#findPlace()) this.#shake();
  }

  /** Is the layout there? */
  #findPlace(): boolean {
    const { side } = this.queue;
    const place = side === "device" ? placeIn(this.#words.byteLength) : readBlock(this.#words);
    if (typeof place !== "object") {
      this.#tell(
        place === undefined
          ? "waiting for the device side to lay out the memory"
          : `what the memory says of its layout cannot be: ${place}`,
      );
      return false;
    }
    if (side === "device" && (this.anew || !hasPlace(this.#words, place))) {
      writeBlock(this.#words, place);
      this.#mayGoOn = false;
    }
    if (this.anew) this.#mayGoOn = false;
    this.anew = false;
    this.#block = copyBlock(this.#words);
    this.queue.place(place);
    return true;
  }

  #tell(line: string): void {
    if (line !== this.#told) this.user.tell(line);
    this.#told = line;
  }

  #shake(): void {
    const { queue } = this;
    const theirs = queue.theirStatus;
    const isFound = this.#mayGoOn && queue.status !== undefined && theirs === AmpStatus.RUN;
    this.goesOn = isFound && !this.#wasLost;
    this.#mayGoOn = false;
    if (!isFound) {
      if (theirs === undefined || theirs > AmpStatus.RUN) {
        this.#isClear = false;
        if (queue.status !== AmpStatus.INIT) this.#say(AmpStatus.INIT);
        return this.#tell(`waiting for the ${queue.side === "device" ? "driver" : "device"} side`);
      }
      // Not READY any more: somebody has emptied the memory.
      if (!this.#isClear || queue.status !== AmpStatus.READY) {
        this.#say(AmpStatus.INIT);
        queue.clear();
        this.#isClear = true;
        this.#say(AmpStatus.READY);
      }
      if (queue.theirStatus === AmpStatus.INIT) return;
    }
    this.#say(AmpStatus.RUN);
    this.#isRunning = true;
    this.#hasSeenRun = this.#isClear = this.#wasLost = false;
    this.#told = "";
    this.#timer.arm(WATCH_MS);
    this.user.running();
  }

  #say(status: number): void {
    this.queue.status = status;
    this.user.ring();
  }

  /** Why the other side cannot be talked to any more, if it cannot. */
  #whyLost(): string | undefined {
    const { queue } = this;
    const theirs = queue.theirStatus;
    if (!hasBlock(this.#words, this.#block)) return "the memory was laid out anew";
    if (queue.status !== AmpStatus.RUN) return "somebody has emptied the memory";
    if (theirs === AmpStatus.RUN) this.#hasSeenRun = true;
    else if (theirs === undefined || theirs > AmpStatus.RUN) return "the other side has ended";
    else if (theirs === AmpStatus.INIT || this.#hasSeenRun) return "the other side begins anew";
    queue.look();
    return queue.isAstray ? "the other side began anew" : undefined;
  }

  #lose(reason: string): void {
    const { queue } = this;
    // In another layout there is nothing to say.
    const isThere = hasBlock(this.#words, this.#block);
    if (isThere && queue.theirStatus !== AmpStatus.RUN) this.#say(AmpStatus.INIT);
    this.user.lost(reason);
    this.#isRunning = this.#isClear = false;
    this.#wasLost = true;
    // It may have gone on to RUN meanwhile, as this side was still there.
    this.#mayGoOn = isThere && queue.theirStatus === AmpStatus.RUN;
    if (this.#mayGoOn) queue.readAnew();
    this.#timer.arm(WAIT_MS);
  }

  /** Says that this side has ended. */
  [Symbol.dispose](): void {
    if (this.#isRunning || this.#isClear) this.#say(AmpStatus.SHUTDOWN);
    this.pause();
    this.reactor.dropTimer(this.#timer);
  }
}
