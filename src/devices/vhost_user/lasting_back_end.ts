/**
 * The back end at a socket, whichever process it is at the moment: connected to when there is one, brought to where the
 * driver is, and looked for again with pauses that grow when it is gone.
 *
 *     none --connects--> connected --the device has told it everything--> served --hangs up, is cut--> none
 *
 * What is asked of it goes one after another, and each question has {@link ANSWER_MS} with all that it takes.
 */

import type { Block } from "../../linux/arena.ts";
import { VmsgError } from "../../linux/errors.ts";
import { mapAnonymous, type Mapping } from "../../linux/mapping.ts";
import type { Reactor, Timer } from "../../linux/reactor.ts";
import { connectUnix, type UnixStream } from "../../linux/unix_socket.ts";
import { limitedLog, type Log } from "../../observe/log.ts";
import { MESSAGE_BUFFER_SIZE } from "../../vhost_user/connection.ts";
import { BackEnd, BackEndLost } from "./back_end.ts";

/** Less than a device may take for an answer (transport/conversation.ts). */
const ANSWER_MS = 3000;
/** Pauses between attempts to connect. */
const FIRST_PAUSE_MS = 50;
const LAST_PAUSE_MS = 2000;
/** One that was served so long is looked for without a long pause. */
const GOOD_MS = 5000;
/** Between lines about what a back end asks for. */
const COMPLAINT_MS = 10_000;

/** Who is served by the back end. */
export interface BackEndUser {
  /** One has come: it is told everything. @throws VmsgError if it will not do; what {@link BackEnd} throws */
  begin(backEnd: BackEnd): Promise<void>;
  /** It is gone, in whatever it was. */
  lost(): void;
  /** It says that its configuration reads otherwise. */
  configChanged(): void;
  /** How many were served, and how often one refused something. */
  readonly counters: { connections: number; refused: number };
}

function blockOf({ address, buffer }: Mapping, offset: number, size: number): Block {
  return {
    address: address + BigInt(offset),
    bytes: new Uint8Array(buffer, offset, size),
    view: new DataView(buffer, offset, size),
  };
}

/** See the head of this file. */
export class LastingBackEnd implements Disposable {
  /** The one that is served: it knows all that the device knows. */
  served: BackEnd | undefined;
  #connected: BackEnd | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #isOver = false;
  readonly #retry: Timer;
  #pauseMs = FIRST_PAUSE_MS;
  #servedMs = Infinity;
  #told = "";
  readonly #complain: (line: string) => void;
  readonly #memory = mapAnonymous(2 * MESSAGE_BUFFER_SIZE);
  readonly #buffers: readonly [Block, Block] = [
    blockOf(this.#memory, 0, MESSAGE_BUFFER_SIZE),
    blockOf(this.#memory, MESSAGE_BUFFER_SIZE, MESSAGE_BUFFER_SIZE),
  ];

  /** Looks for it from {@link open} on. */
  constructor(
    readonly reactor: Reactor,
    readonly socket: string,
    readonly user: BackEndUser,
    readonly log: Log,
  ) {
    this.#retry = reactor.timer(() => this.open());
    this.#complain = limitedLog(log.warn, reactor, COMPLAINT_MS);
  }

  /** For people. */
  get name(): string {
    return `back end ${this.socket}`;
  }

  /** Connects, or tries again later. */
  open(): void {
    let stream: UnixStream | undefined;
    try {
      stream = connectUnix(this.socket);
    } catch (error) {
      return this.#again((error as Error).message);
    }
    if (stream === undefined) return this.#again("nobody listens");
    const backEnd = new BackEnd(stream, this.reactor, this.#buffers, {
      lost: (reason) => this.#lost(backEnd, reason),
      configChanged: () => this.user.configChanged(),
      refused: (request) => this.#complain(`${this.name} asks for ${request}, and is refused`),
    });
    this.#connected = backEnd;
    this.reactor.spawn(() =>
      this.exclusively(async () => {
        const problem = await this.#attempt(backEnd, () => this.#begin(backEnd));
        if (problem !== undefined) backEnd.cut(problem);
      })
    );
  }

  async #begin(backEnd: BackEnd): Promise<void> {
    await this.user.begin(backEnd);
    this.served = backEnd;
    this.#servedMs = this.reactor.now();
    this.#told = "";
    this.user.counters.connections++;
    this.log.info(`${this.name}: it is there`);
  }

  #lost(backEnd: BackEnd, reason: string): void {
    if (this.#isOver || this.#connected !== backEnd) return;
    if (this.reactor.now() - this.#servedMs >= GOOD_MS) this.#pauseMs = FIRST_PAUSE_MS;
    this.served = undefined;
    this.#connected = undefined;
    this.#servedMs = Infinity;
    this.user.lost();
    backEnd[Symbol.dispose]();
    this.#again(reason);
  }

  #again(reason: string): void {
    if (this.#told !== reason) this.log.info(`${this.name}: ${reason}; waits for it`);
    this.#told = reason;
    this.#retry.arm(this.#pauseMs);
    this.#pauseMs = Math.min(2 * this.#pauseMs, LAST_PAUSE_MS);
  }

  /** Runs when all that was asked before is done. */
  exclusively<T>(run: () => Promise<T>): Promise<T> {
    const next = this.#last.then(run);
    this.#last = next.catch(() => {});
    return next;
  }

  /**
   * Asks the one that is served, if there is one; inside {@link exclusively}. That it is lost is no failure: the next one is
   * told everything.
   *
   * @returns why it refuses
   */
  ask(run: (backEnd: BackEnd) => Promise<void>): Promise<string | undefined> {
    return this.#attempt(this.served, run);
  }

  /** The same, of one that must do as it is asked, or is cut. */
  async demand(run: (backEnd: BackEnd) => Promise<void>): Promise<void> {
    const problem = await this.ask(run);
    if (problem !== undefined) this.served?.cut(problem);
  }

  async #attempt(
    backEnd: BackEnd | undefined,
    run: (backEnd: BackEnd) => Promise<void>,
  ): Promise<string | undefined> {
    if (backEnd === undefined) return undefined;
    try {
      await backEnd.within(ANSWER_MS, () => run(backEnd));
      return undefined;
    } catch (error) {
      if (error instanceof BackEndLost) return undefined;
      if (!(error instanceof VmsgError)) throw error;
      this.user.counters.refused++;
      return error.message;
    }
  }

  /** Cuts the connection; what the back end has it may keep until it notices. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.reactor.dropTimer(this.#retry);
    this.#connected?.[Symbol.dispose]();
    this.#connected = undefined;
    this.served = undefined;
    this.#memory[Symbol.dispose]();
  }
}
