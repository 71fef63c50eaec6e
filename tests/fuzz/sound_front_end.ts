/** A front end that behaves, and expects to be answered or sent away, whatever the device behind the proxy does. */

import { assert } from "@std/assert";
import { Request } from "../../src/vhost_user/protocol.ts";
import { LinuxError } from "../../src/linux/errors.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import { FEATURES, RawFrontEnd, u32s } from "../support/front_end.ts";
import type { Random } from "../support/mock_driver.ts";
import { GUARD, Guest } from "./guest.ts";

/** What it asks at most in a session. */
const MAX_STEPS = 12;

/** See the head of this file. */
export class SoundFrontEnd implements Disposable {
  readonly guest: Guest = new Guest();
  readonly #front: RawFrontEnd;

  /**
   * Connects.
   *
   * @param patienceMs how long an answer may take
   * @param lines what the proxy has said, for whoever looks for the reason
   */
  constructor(
    readonly reactor: Reactor,
    socket: string,
    readonly patienceMs: number,
    readonly lines: () => readonly string[],
  ) {
    this.#front = new RawFrontEnd(reactor, socket, patienceMs);
  }

  /** Was it sent away? */
  get isSentAway(): boolean {
    return this.#front.hungUp;
  }

  #state(what: string): string {
    return `${what}; the proxy said last:\n${this.lines().slice(-5).join("\n")}`;
  }

  /** Asks; false if it was sent away instead of being answered. */
  async #ask(what: string, request: () => Promise<unknown>): Promise<boolean> {
    try {
      await request();
      return true;
    } catch (error) {
      assert(this.isSentAway, this.#state(`neither answered nor sent away: ${what}: ${error}`));
      return false;
    }
  }

  #setUp(): Promise<boolean> {
    return this.#ask("the set-up", () => this.#front.setUp(this.guest.file, FEATURES, GUARD));
  }

  #barrier(): Promise<boolean> {
    return this.#ask("a barrier", () => this.#front.barrier());
  }

  /** A session as a guest's driver has it, in any order. @param between called after each step */
  async talk(random: Random, between: () => void): Promise<void> {
    if (!await this.#setUp()) return;
    for (let steps = 1 + random.below(MAX_STEPS); steps > 0 && !this.isSentAway; steps--) {
      await this.#step(random);
      between();
      await this.reactor.sleep(random.below(20));
    }
    await this.#barrier();
  }

  async #step(random: Random): Promise<void> {
    const index = random.below(2);
    const front = this.#front;
    const { kick, rings } = this.guest;
    try {
      switch (random.below(8)) {
        case 0:
        case 1:
          return front.startRing(index, kick, rings[index]!.seen);
        case 2: {
          const ask = () => front.ask(Request.GET_VRING_BASE, u32s(index, 0));
          return void await this.#ask("GET_VRING_BASE", ask);
        }
        case 3:
          return front.send(Request.SET_VRING_ENABLE, u32s(index, random.below(2)));
        case 4: {
          const question = new Uint8Array([...u32s(0, 8, 0), ...new Uint8Array(8)]);
          return void await this.#ask("GET_CONFIG", () => front.ask(Request.GET_CONFIG, question));
        }
        case 5:
          return front.send(Request.SET_FEATURES, u32s(...FEATURES));
        default:
          return this.guest.offer(index);
      }
    } catch (error) {
      // Sent away meanwhile, which it learns with the next answer.
      if (!(error instanceof LinuxError)) throw error;
    }
  }

  /** It is served: its set-up is answered, and a ring works, if one can work there. */
  async assertServed(ringWorks: boolean): Promise<void> {
    assert(await this.#setUp(), this.#state("the next front end is sent away"));
    if (!ringWorks) return void assert(await this.#barrier(), this.#state("it is sent away"));
    const [ring] = this.guest.rings;
    this.#front.startRing(0, this.guest.kick);
    this.guest.offer(0);
    const endMs = this.reactor.now() + this.patienceMs;
    while (ring!.takeUsed() === undefined) {
      const isOver = this.isSentAway || this.reactor.now() > endMs;
      assert(!isOver, this.#state("the ring does not work"));
      await this.reactor.sleep(1);
    }
  }

  [Symbol.dispose](): void {
    this.#front[Symbol.dispose]();
    this.guest[Symbol.dispose]();
  }
}
