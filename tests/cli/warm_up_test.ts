import { assert, assertEquals } from "@std/assert";
import { WarmUp } from "../../src/cli/warm_up.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { CounterMemory, countIn, HEADER_SIZE } from "../../src/observe/counters.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const BUDGET_MS = 500;

/** Turns until the warm-up is over and what it leaves is given back. */
async function finish(reactor: Reactor, warmUp: WarmUp): Promise<void> {
  await reactor.until((async () => {
    while (warmUp.isRunning) await reactor.sleep(0.1);
  })());
  // Deno's own loop sees to that, not the reactor.
  await warmUp.atRest;
}

for (const hasDevices of [false, true]) {
  const whose = hasDevices ? "that serves devices" : "of a driver side";
  cleanTest(
    `a data plane ${whose} warms up: pings go round in all circuits, nothing stays`,
    () => warm(hasDevices),
  );
}

async function warm(hasDevices: boolean): Promise<void> {
  const counters = new CounterMemory(new ArrayBuffer(1 << 16), "test", 1, 0);
  countIn(counters);
  const used = () => new Uint32Array(counters.buffer)[7];
  try {
    const clock = new VirtualClock();
    using reactor = new Reactor(clock);
    using warmUp = new WarmUp(reactor, () => false, hasDevices);
    await finish(reactor, warmUp);
    assertEquals(warmUp.pings, 4 * 1000);
    assertEquals(used(), HEADER_SIZE, "groups of counters were made that others see");
    // A timer or a descriptor that was left would be found before.
    let isDue = false;
    reactor.timer(() => isDue = true).arm(3_600_000);
    reactor.turn();
    assert(isDue, "something is left in the loop");
  } finally {
    countIn(undefined);
  }
}

cleanTest("a warm-up ends with its time, however few pings came back", async () => {
  // A clock of which each turn takes a fifth of a second: a machine that is busy.
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  const startMs = clock.now();
  using warmUp = new WarmUp(reactor, () => {
    clock.advance(20);
    return false;
  });
  await finish(reactor, warmUp);
  const tookMs = clock.now() - startMs;
  assert(tookMs >= BUDGET_MS && tookMs < BUDGET_MS + 100, `it took ${tookMs} ms`);
  assert(warmUp.pings > 0 && warmUp.pings < 100, `${warmUp.pings} pings`);
});

cleanTest("a warm-up ends at once when somebody is there", async () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  let isOver = false;
  using warmUp = new WarmUp(reactor, () => isOver);
  await reactor.until((async () => {
    while (warmUp.pings < 10) await reactor.sleep(0.1);
  })());
  isOver = true;
  const before = { pings: warmUp.pings, ms: clock.now() };
  await finish(reactor, warmUp);
  assert(warmUp.pings <= before.pings + 2, `${warmUp.pings - before.pings} more pings`);
  assert(clock.now() - before.ms < 3, `it took ${clock.now() - before.ms} ms`);
});

cleanTest("a warm-up that is cut short leaves nothing", async () => {
  using reactor = new Reactor(new VirtualClock());
  const warmUp = new WarmUp(reactor, () => false);
  await reactor.until((async () => {
    while (warmUp.pings < 5) await reactor.sleep(0.1);
  })());
  warmUp[Symbol.dispose]();
  for (let n = 0; n < 5; n++) await reactor.until(reactor.sleep(1));
});
