/** The clocks: one origin for every thread, and time that is moved by hand. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { MONOTONIC, pause } from "../../src/linux/clock.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { EPOLLIN, Reactor } from "../../src/linux/reactor.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** Two clocks that read the same may still be read apart by this much: what the measuring takes. */
const APART_MS = 1;

if ("WorkerGlobalScope" in globalThis) {
  const scope = globalThis as unknown as {
    onmessage: () => void;
    postMessage(nowMs: number): void;
  };
  scope.onmessage = () => scope.postMessage(MONOTONIC.now());
  scope.postMessage(MONOTONIC.now());
} else {
  // Deno keeps descriptors of its own for a thread, so they are not counted here.
  Deno.test("clock: all Workers count from one origin", async () => {
    // One that starts later than the other: `performance.now` differs by as much.
    for (let n = 0; n < 2; n++) {
      if (n > 0) pause(100);
      const thread = new Worker(import.meta.url, { type: "module" });
      const asked = () => {
        const { promise, resolve } = Promise.withResolvers<number>();
        thread.onmessage = ({ data }) => resolve(data);
        return promise;
      };
      await asked();
      for (let i = 0; i < 3; i++) {
        const beforeMs = MONOTONIC.now();
        const answer = asked();
        thread.postMessage("now?");
        const theirsMs = await answer;
        const afterMs = MONOTONIC.now();
        assert(theirsMs > beforeMs - APART_MS, `${theirsMs} there, ${beforeMs} here before`);
        assert(theirsMs < afterMs + APART_MS, `${theirsMs} there, ${afterMs} here after`);
      }
      thread.terminate();
    }
  });
}

Deno.test("clock: a pause is at least as long as it is told to be", () => {
  const startMs = MONOTONIC.now();
  pause(20.5);
  assert(MONOTONIC.now() - startMs >= 20.5);
  pause(-5);
});

cleanTest("virtual clock: a wait takes no time, and deadlines come in their order", async () => {
  using reactor = new Reactor(new VirtualClock());
  const order: string[] = [];
  const startMs = reactor.now();
  await reactor.until(Promise.all([
    reactor.sleep(3_600_000).then(() => order.push("late")),
    reactor.sleep(1000).then(() => order.push("early")),
  ]));
  assertEquals(order, ["early", "late"]);
  assertEquals(reactor.now() - startMs, 3_600_000);
});

cleanTest("virtual clock: what is ready comes before the next deadline", async () => {
  using reactor = new Reactor(new VirtualClock());
  using bell = createEventFd();
  const order: string[] = [];
  reactor.sleep(5).then(() => order.push("deadline"));
  let left = 100;
  reactor.schedule({ run: () => --left > 0 || (order.push("task"), signalEventFd(bell), false) });
  reactor.watch(bell, EPOLLIN, () => {
    clearEventFd(bell);
    order.push("descriptor");
  });
  await reactor.until(reactor.sleep(10));
  assertEquals(order, ["task", "descriptor", "deadline"]);
});

cleanTest("virtual clock: who looks at every turn until a moment comes gets there", async () => {
  using reactor = new Reactor(new VirtualClock());
  const endMs = reactor.now() + 3;
  let turns = 0;
  const { promise, resolve } = reactor.defer<void>();
  reactor.schedule({ run: () => (turns++, reactor.now() < endMs || (resolve(), false)) });
  await reactor.until(promise);
  assert(turns > 100, `${turns} turns took 3 ms`);

  // The same by timers that are due at once, and by descriptors that are ready.
  while (reactor.now() < endMs + 1) await reactor.until(reactor.sleep(0));
  using bell = createEventFd();
  signalEventFd(bell);
  reactor.watch(bell, EPOLLIN, () => {});
  await reactor.until(reactor.sleep(1));
});

cleanTest("virtual clock: it is moved by hand, and never back", () => {
  const clock = new VirtualClock();
  const startMs = clock.now();
  clock.advance(250);
  assertEquals(clock.now() - startMs, 250);
  clock.skipTo(startMs);
  assert(clock.now() > startMs + 250 && clock.now() < startMs + 251);
});

cleanTest("virtual clock: timers that go on and on do not hide that nothing comes", async () => {
  using reactor = new Reactor(new VirtualClock());
  const heartbeat = reactor.timer(() => heartbeat.arm(10_000));
  heartbeat.arm(0);
  await assertRejects(() => reactor.until(reactor.defer().promise), Error, "never comes");
  assertThrows(() => reactor.turn(), Error, "never comes");
});
