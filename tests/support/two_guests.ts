/**
 * Two guests on one `vmsg proxy` and one `vmsg device`, all as processes: the measure for everything that a hostile
 * front end may do. Guest A, device 0, is the test's: it connects front ends and does what it likes. Guest B, device 1,
 * behaves and asks all the time (second_guest.ts). {@link TwoGuests.answered} is the assertion: B goes on
 * being answered.
 *
 *     processTest("what A does", (vmsg) => withTwoGuests(vmsg, async (guests) => {
 *       await guests.attack(async (a) => {
 *         const frontEnd = a.connect();
 *         ...
 *       });
 *       await guests.answered();
 *     }));
 */

import { assert, assertEquals } from "@std/assert";
import { Reactor } from "../../src/linux/reactor.ts";
import { RawFrontEnd } from "./front_end.ts";
import { PATIENCE_MS, type Processes, until, type VmsgProcess } from "./processes.ts";
import type { SecondGuestWord } from "./second_guest.ts";

/** How often Deno's own loop gets its turn during an attack: it reads what the processes say. */
const BREATH_MS = 2;

/** How the processes are started. */
export interface TwoGuestsOptions {
  /** More arguments. */
  readonly proxy?: readonly string[];
  readonly device?: readonly string[];
  /** What the two devices are, as after `--device`. */
  readonly devices?: readonly [string, string];
}

/** What an attack has in hand. */
export interface Attack {
  /** Real time. */
  readonly reactor: Reactor;
  /** One more front end for device 0; the proxy serves one at a time. Closed when the attack is over. */
  connect(): RawFrontEnd;
}

/** See the head of this file. */
export interface TwoGuests {
  readonly device: VmsgProcess;
  readonly proxy: VmsgProcess;
  /** Where A connects. */
  readonly socket: string;
  /** How often B was answered. */
  readonly rounds: number;
  /** Runs A's part. The test may wait for anything in it, processes too. */
  attack<T>(body: (attack: Attack) => Promise<T>): Promise<T>;
  /** Waits until B was answered so many times more; fails if it is not, or was turned away. The longest took so many ms. */
  answered(rounds?: number, timeoutMs?: number): Promise<number>;
}

/** Guest B, as the test's side sees it. */
class SecondGuest implements AsyncDisposable {
  rounds = 0;
  /** The longest round since {@link reset}. */
  longestMs = 0;
  problem: string | undefined;
  readonly #worker = new Worker(new URL("second_guest.ts", import.meta.url), { type: "module" });
  readonly #ended = Promise.withResolvers<void>();

  constructor(socket: string) {
    this.#worker.onmessage = ({ data }: MessageEvent<SecondGuestWord>) => {
      if (data.kind === "round") {
        this.rounds++;
        this.longestMs = Math.max(this.longestMs, data.ms);
        return;
      }
      this.problem = data.problem ?? "it was told to stop";
      this.#ended.resolve();
    };
    this.#worker.postMessage(socket);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#worker.postMessage(undefined);
    await this.#ended.promise;
    this.#worker.terminate();
  }
}

/** Starts both processes and guest B in the test's directory, and ends them when the body is done. */
export async function withTwoGuests(
  vmsg: Processes,
  body: (guests: TwoGuests) => Promise<void>,
  options: TwoGuestsOptions = {},
): Promise<void> {
  const { devices = ["net,responder", "net,responder"] } = options;
  const bus = ["--bus", "linux-user,socket=lu.sock"];
  const device = await vmsg.start(
    "device",
    ...bus,
    ...devices.flatMap((kind) => ["--device", kind]),
    ...options.device ?? [],
  );
  const sockets = ["--vhost-user", "socket=a.sock", "--vhost-user", "socket=b.sock"];
  const proxy = await vmsg.start("proxy", ...bus, ...sockets, ...options.proxy ?? []);
  await proxy.waitFor(/a vmsg device side is there/);
  const socket = `${vmsg.directory}/a.sock`;
  await using second = new SecondGuest(`${vmsg.directory}/b.sock`);

  const answered = async (rounds = 3, timeoutMs = PATIENCE_MS) => {
    const wanted = second.rounds + rounds;
    const isDone = () => second.rounds >= wanted || second.problem !== undefined;
    await until(isDone, timeoutMs).catch(() => {});
    assertEquals(second.problem, undefined, "the other guest was turned away");
    assert(second.rounds >= wanted, `the other guest was not answered within ${timeoutMs} ms`);
    const { longestMs } = second;
    second.longestMs = 0;
    return longestMs;
  };

  const attack = async <T>(body: (attack: Attack) => Promise<T>): Promise<T> => {
    using stack = new DisposableStack();
    const reactor = stack.use(new Reactor());
    const breath = reactor.timer(() => {
      breath.arm(BREATH_MS);
      // It has the reactor leave the stack for a moment.
      reactor.spawn(() => Promise.resolve());
    });
    breath.arm(BREATH_MS);
    const connect = () => stack.use(new RawFrontEnd(reactor, socket));
    return await reactor.until(body({ reactor, connect }));
  };

  await answered();
  await body({
    ...{ device, proxy, socket, attack, answered },
    get rounds() {
      return second.rounds;
    },
  });
}
