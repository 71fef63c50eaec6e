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

cleanTest(
  "poller: after something was sent it looks at every turn, then every millisecond",
  async () => {
    using reactor = new Reactor();
    const atMs: number[] = [];
    using poller = new Poller(reactor, () => (atMs.push(performance.now()), false));
    await reactor.until(reactor.sleep(50));
    const counts = { busy: 0, near: 0, later: 0 };
    // The best of several rounds: another process may have the processor meanwhile.
    for (let round = 0; round < 10 || (round < 100 && counts.near < 4); round++) {
      atMs.length = 0;
      const startMs = performance.now();
      poller.expect();
      await reactor.until(reactor.sleep(30));
      const within = (from: number, to: number) =>
        atMs.filter((ms) => ms - startMs >= from && ms - startMs < to).length;
      counts.busy = Math.max(counts.busy, within(0, 0.5));
      counts.near = Math.max(counts.near, within(1, 10));
      counts.later = Math.max(counts.later, within(15, 30));
    }
    assert(counts.busy >= 5, `${counts.busy} looks in the first half millisecond`);
    assert(counts.near >= 4 && counts.near <= 10, `${counts.near} looks from 1 to 10 ms`);
    assert(counts.later <= 4, `${counts.later} looks from 15 to 30 ms`);
  },
);

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
