/** Looking without a doorbell: often while there is something to see, and bounded in silence. */

import { assert, assertEquals } from "@std/assert";
import { Poller } from "../../src/bus/poller.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { cleanTest } from "../support/leaks.ts";

const SILENCE_MS = 400;

cleanTest("poller: silence costs at most 200 looks a second, and they do not end", async () => {
  using reactor = new Reactor();
  let looks = 0;
  using poller = new Poller(reactor, () => (looks++, false));
  await reactor.until(reactor.sleep(50));
  looks = 0;
  await reactor.until(reactor.sleep(SILENCE_MS));
  // Every 5 ms; a busy machine is slower, never faster.
  assert(looks <= SILENCE_MS / 5 + 1, `${looks} looks in ${SILENCE_MS} ms`);
  assert(looks >= 4, `${looks} looks in ${SILENCE_MS} ms`);
  poller[Symbol.dispose]();
  looks = 0;
  await reactor.until(reactor.sleep(20));
  assertEquals(looks, 0, "it looks after its end");
});

/** Looks after a round's start, the most of several rounds in each span. */
interface Looks {
  /** In the first half millisecond. */
  readonly busy: number;
  /** From 1 to 5 ms. */
  readonly near: number;
  /** From 10 to 30 ms. */
  readonly later: number;
}

/**
 * Counts looks after something happened. The best of several rounds: another process may have the
 * processor meanwhile.
 *
 * @param sent tells the poller that something was sent
 * @param finds how many looks from the start on find something
 */
async function looksAfter(sent: boolean, finds: number): Promise<Looks> {
  using reactor = new Reactor();
  const atMs: number[] = [];
  let left = 0;
  using poller = new Poller(reactor, () => {
    atMs.push(performance.now());
    return left > 0 && left-- > 0;
  });
  await reactor.until(reactor.sleep(50));
  const counts = { busy: 0, near: 0, later: 0 };
  for (let round = 0; round < 10 || (round < 100 && counts.near < 3); round++) {
    atMs.length = 0;
    left = finds;
    if (sent) poller.expect();
    await reactor.until(reactor.sleep(40));
    assertEquals(left, 0, "it has not found all");
    // The look that found the last is where the round starts.
    const start = sent ? 0 : finds - 1;
    const startMs = atMs[start]!;
    const within = (from: number, to: number) =>
      atMs.slice(start + 1).filter((ms) => ms - startMs >= from && ms - startMs < to).length;
    counts.busy = Math.max(counts.busy, within(0, 0.5));
    counts.near = Math.max(counts.near, within(1, 5));
    counts.later = Math.max(counts.later, within(10, 30));
  }
  return counts;
}

/** Every millisecond, then every 5 ms. */
function assertNearThenIdle({ near, later }: Looks): void {
  assert(near >= 3 && near <= 5, `${near} looks from 1 to 5 ms`);
  assert(later >= 2 && later <= 5, `${later} looks from 10 to 30 ms`);
}

cleanTest(
  "poller: after something was sent it looks every millisecond, and is not busy",
  async () => {
    const looks = await looksAfter(true, 0);
    assert(looks.busy <= 2, `${looks.busy} looks in the first half millisecond`);
    assertNearThenIdle(looks);
  },
);

cleanTest("poller: after one find it looks every millisecond, and is not busy", async () => {
  const looks = await looksAfter(false, 1);
  assert(looks.busy <= 2, `${looks.busy} looks in the first half millisecond`);
  assertNearThenIdle(looks);
});

cleanTest("poller: after a second find while near it looks at every turn", async () => {
  const looks = await looksAfter(false, 2);
  assert(looks.busy >= 5, `${looks.busy} looks in the first half millisecond`);
  assertNearThenIdle(looks);
});

cleanTest("poller: what it finds makes it look again at once, and other work goes on", async () => {
  using reactor = new Reactor();
  let left = 1000;
  using _poller = new Poller(reactor, () => left > 0 && left-- > 0);
  let turns = 0;
  while (left > 0) {
    await reactor.until(reactor.sleep(0));
    turns++;
  }
  assert(turns > 10, `${turns} timers while it found something`);
});
