/** Looking without a doorbell: often while there is something to see, and bounded in silence. */

import { assert, assertEquals } from "@std/assert";
import { Poller } from "../../src/bus/poller.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

cleanTest("poller: silence costs 200 looks a second, and they do not end", async () => {
  using reactor = new Reactor(new VirtualClock());
  let looks = 0;
  using poller = new Poller(reactor, () => (looks++, false));
  await reactor.until(reactor.sleep(50));
  for (let second = 1; second <= 3; second++) {
    looks = 0;
    await reactor.until(reactor.sleep(1000));
    // Every 5 ms, and what a turn takes.
    assert(looks > 190 && looks <= 200, `${looks} looks in second ${second}`);
  }
  poller[Symbol.dispose]();
  looks = 0;
  await reactor.until(reactor.sleep(20));
  assertEquals(looks, 0, "it looks after its end");
});

/** Looks after something happened. */
interface Looks {
  /** In the first half millisecond. */
  readonly busy: number;
  /** From 0.5 to 4.5 ms. */
  readonly near: number;
  /** From 10 to 30 ms. */
  readonly later: number;
}

/**
 * Counts looks after something happened.
 *
 * @param sent tells the poller that something was sent
 * @param finds how many looks from the start on find something
 */
async function looksAfter(sent: boolean, finds: number): Promise<Looks> {
  using reactor = new Reactor(new VirtualClock());
  const atMs: number[] = [];
  let left = 0;
  using poller = new Poller(reactor, () => {
    atMs.push(reactor.now());
    return left > 0 && left-- > 0;
  });
  await reactor.until(reactor.sleep(50));
  atMs.length = 0;
  left = finds;
  if (sent) poller.expect();
  await reactor.until(reactor.sleep(40));
  assertEquals(left, 0, "it has not found all");
  // The look that found the last is where it starts.
  const start = sent ? 0 : finds - 1;
  const startMs = atMs[start]!;
  const within = (from: number, to: number) =>
    atMs.slice(start + 1).filter((ms) => ms - startMs >= from && ms - startMs < to).length;
  return { busy: within(0, 0.5), near: within(0.5, 4.5), later: within(10, 30) };
}

cleanTest(
  "poller: after something was sent it looks every millisecond, then every five",
  async () => {
    assertEquals(await looksAfter(true, 0), { busy: 0, near: 4, later: 4 });
  },
);

cleanTest("poller: after one find it looks every millisecond, and is not busy", async () => {
  assertEquals(await looksAfter(false, 1), { busy: 0, near: 4, later: 4 });
});

cleanTest(
  "poller: after a second find while near it looks at every turn for a moment",
  async () => {
    const { busy, near, later } = await looksAfter(false, 2);
    assert(busy > 50, `${busy} looks in the first half millisecond`);
    assertEquals([near, later], [4, 4]);
  },
);

cleanTest("poller: what it finds makes it look again at once, and other work goes on", async () => {
  using reactor = new Reactor(new VirtualClock());
  let left = 1000;
  using _poller = new Poller(reactor, () => left > 0 && left-- > 0);
  let turns = 0;
  while (left > 0) {
    await reactor.until(reactor.sleep(0));
    turns++;
  }
  assert(turns > 10, `${turns} timers while it found something`);
});
