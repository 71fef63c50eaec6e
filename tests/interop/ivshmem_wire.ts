/**
 * The independent peer's way onto ivshmem: a peer of an ivshmem server (docs/wire.md 4.3, 5.2). Only joining the server,
 * which takes descriptors out of a socket, is vmsg's own; queues and messages are read and written through the file.
 */

import { Reactor } from "../../src/linux/reactor.ts";
import { openServerEnd } from "../../src/ivshmem/server_end.ts";
import { createLog } from "../../src/observe/log.ts";
import { PATIENT } from "../support/patient_clock.ts";
import { MemoryFile, Queue, type Wire } from "./proto_peer.ts";

/** Slots in a page. */
const CAPACITY = 62;
const PAGE = 4096;

/** A function of a machine: it rings, and is rung. */
export interface IvshmemWire extends Wire {
  /** Waits at most so long for an interrupt that was not waited for yet; was there one? */
  interrupted(timeoutMs: number): Promise<boolean>;
  /** Interrupts that came. */
  readonly interrupts: number;
}

/**
 * Joins.
 *
 * @param file what the server shares
 * @param rings whose doorbell, always vector 0
 */
export function joinIvshmem(server: string, file: string, rings = 0): IvshmemWire {
  using stack = new DisposableStack();
  const end = stack.use(
    openServerEnd(server, { log: createLog("", "error", () => {}), clock: PATIENT }),
  );
  const reactor = stack.use(new Reactor());
  const limit = reactor.timer(() => {});
  const memory = stack.use(new MemoryFile(file, undefined));
  let interrupts = 0, seen = 0;
  end.open(reactor, { rung: () => interrupts++, joined() {}, left() {} });
  // The end goes before its reactor.
  const owner = stack.move();
  return {
    driver: new Queue(memory, 0, CAPACITY),
    device: new Queue(memory, PAGE, CAPACITY),
    // deno-lint-ignore require-await
    async ring() {
      end.ring(rings);
    },
    async interrupted(timeoutMs) {
      const endMs = performance.now() + timeoutMs;
      for (;;) {
        limit.arm(1);
        reactor.turn();
        if (interrupts > seen || performance.now() > endMs) break;
        // Others of this process have their turn.
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
      const had = interrupts > seen;
      seen = interrupts;
      return had;
    },
    get interrupts() {
      return interrupts;
    },
    [Symbol.dispose]() {
      end[Symbol.dispose]();
      owner.dispose();
    },
  };
}
