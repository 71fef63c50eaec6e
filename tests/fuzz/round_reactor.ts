/** A reactor for many rounds in virtual time, and descriptors, mappings and timers that a round must not leave. */

import { assert, assertEquals } from "@std/assert";
import { Reactor, type Timer } from "../../src/linux/reactor.ts";
import { held, leftBehind } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** A clock by which each round has a time of its own in which whatever it waits for has come. */
class RoundClock extends VirtualClock {
  override skipTo(deadlineMs: number): void {
    const rounds = this.#beganMs;
    this.nowMs -= rounds;
    try {
      super.skipTo(deadlineMs - rounds);
    } finally {
      this.nowMs += rounds;
    }
  }

  #beganMs = 0;

  begin(): void {
    this.#beganMs = this.nowMs;
  }
}

/** See the head of this file. */
export class RoundReactor extends Reactor {
  /** Those that there are, armed or not. */
  timers = 0;
  readonly #clock: RoundClock;

  constructor() {
    const clock = new RoundClock();
    super(clock);
    this.#clock = clock;
  }

  override timer(fire: () => void): Timer {
    this.timers++;
    return super.timer(fire);
  }

  override dropTimer(timer: Timer): void {
    this.timers--;
    super.dropTimer(timer);
  }

  /** Runs a round, which must leave as many timers as there were. */
  async round(body: () => Promise<void>): Promise<void> {
    this.#clock.begin();
    const { timers } = this;
    await this.until(body());
    assertEquals(this.timers, timers, "timers were left behind");
  }
}

/** Sockets that Deno opens by itself while a program runs. */
const SOCKETS_OF_DENO = 4;
/** What a garbage collector may leave for later, and more. */
const MOST_GROWTH_MIB = 512;
const isSocket = (target: string) => target.startsWith("socket:");
const socketCount = () => held().filter(isSocket).length;
const others = () => held().filter((target) => !isSocket(target));

/** Descriptors and mappings of this process before the first round, to which all later ones are compared. */
export class Holdings {
  readonly #others = others();
  readonly #sockets = socketCount();
  readonly #bytes = Deno.memoryUsage().rss;

  /** After a round. What was there before may go: Deno closes the descriptors of an earlier test's thread later. */
  check(): void {
    const left = leftBehind(this.#others).filter((target) => !isSocket(target));
    assertEquals(left, [], "descriptors or mappings were left behind");
  }

  /** After the last round: memory too, and sockets, of which a few are not ours. */
  finish(reached: string): string {
    const grownMiB = (Deno.memoryUsage().rss - this.#bytes) >> 20;
    assert(grownMiB < MOST_GROWTH_MIB, `this process has grown by ${grownMiB} MiB`);
    const more = socketCount() - this.#sockets;
    assert(more <= SOCKETS_OF_DENO, `${more} sockets were left behind`);
    return reached;
  }
}

/** Lines of a round, and of each second of it. */
const MAX_LINES = 60, MAX_LINES_PER_SECOND = 40;

/** Fails if more lines were said than a person could read. */
export function assertFew(lines: readonly string[], ms: number): void {
  const most = MAX_LINES + MAX_LINES_PER_SECOND * ms / 1000;
  assert(lines.length <= most, `${lines.length} lines in ${ms} ms:\n${lines.slice(-5).join("\n")}`);
}
