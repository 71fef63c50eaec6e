import { assert, assertEquals, assertRejects } from "@std/assert";
import { VirtualClock } from "../../src/linux/clock.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { Fd } from "../../src/linux/fd.ts";
import {
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  Reactor,
  stopReactorFrom,
  type Task,
} from "../../src/linux/reactor.ts";
import { unixStreamPair } from "../../src/linux/unix_socket.ts";
import { cleanTest } from "../support/leaks.ts";

/** Waits until performance.now() is past a moment, without giving anybody else a chance. */
function spinUntil(momentMs: number): void {
  while (performance.now() <= momentMs);
}

cleanTest("a turn: descriptors first, then timers, then one batch of every task", () => {
  using reactor = new Reactor();
  using bell = createEventFd();
  const order: string[] = [];
  const task = (name: string): Task => ({ run: () => (order.push(name), false) });
  reactor.schedule(task("first task"));
  reactor.schedule(task("second task"));
  reactor.timer(() => order.push("timer")).arm(0);
  reactor.watch(bell, EPOLLIN, () => {
    clearEventFd(bell);
    order.push("descriptor");
  });
  signalEventFd(bell);
  spinUntil(performance.now());
  reactor.turn();
  assertEquals(order, ["descriptor", "timer", "first task", "second task"]);
});

cleanTest(
  "tasks: one batch a turn, descriptors in between, scheduled twice is scheduled once",
  () => {
    using reactor = new Reactor();
    using bell = createEventFd();
    const order: string[] = [];
    let batches = 3;
    const long: Task = { run: () => (order.push("batch"), --batches > 0) };
    reactor.watch(bell, EPOLLIN, () => order.push("look"));
    signalEventFd(bell);
    reactor.schedule(long);
    reactor.schedule(long);
    for (let i = 0; i < 4; i++) reactor.turn();
    assertEquals(order, ["look", "batch", "look", "batch", "look", "batch", "look"]);
  },
);

cleanTest("tasks: one that is scheduled by a task runs in the next turn, itself included", () => {
  using reactor = new Reactor();
  const order: string[] = [];
  const second: Task = { run: () => (order.push("second"), false) };
  let again = true;
  const first: Task = {
    run: () => {
      order.push("first");
      reactor.schedule(second);
      if (again) reactor.schedule(first);
      again = false;
      return false;
    },
  };
  reactor.schedule(first);
  reactor.turn();
  assertEquals(order, ["first"]);
  reactor.turn();
  assertEquals(order, ["first", "second", "first"]);
  reactor.turn();
  assertEquals(order, ["first", "second", "first", "second"]);
});

cleanTest("timers: in the order of their deadlines, whatever the order they were made in", () => {
  using reactor = new Reactor();
  const order: string[] = [];
  const names = ["c", "a", "b"];
  const delays = [3, 1, 2];
  names.forEach((name, i) => reactor.timer(() => order.push(name)).arm(delays[i]!));
  spinUntil(performance.now() + 4);
  reactor.turn();
  assertEquals(order, ["a", "b", "c"]);
});

cleanTest("timers: re-armed, cancelled, armed by themselves, never early", () => {
  using reactor = new Reactor();
  const order: string[] = [];
  const moved = reactor.timer(() => order.push("moved"));
  const cancelled = reactor.timer(() => order.push("cancelled"));
  moved.arm(0);
  moved.arm(15);
  cancelled.arm(0);
  assert(cancelled.armed);
  cancelled.cancel();
  assert(!cancelled.armed);
  let count = 0;
  const again = reactor.timer(() => {
    order.push("again");
    if (++count < 3) again.arm(0);
  });
  again.arm(0);
  const startMs = performance.now();
  while (moved.armed) reactor.turn();
  assert(performance.now() - startMs >= 14.9, "early");
  assertEquals(order, ["again", "again", "again", "moved"]);
  assertEquals([moved.armed, again.armed], [false, false]);
});

cleanTest("timers: one that arms itself for now fires once a turn, so the loop goes on", () => {
  using reactor = new Reactor();
  let fired = 0;
  const timer = reactor.timer(() => {
    fired++;
    timer.arm(-1);
  });
  timer.arm(-1);
  reactor.turn();
  assertEquals(fired, 1);
  reactor.turn();
  assertEquals(fired, 2);
  reactor.dropTimer(timer);
});

cleanTest("timers: dropped by another one's handler, it does not fire any more", () => {
  using reactor = new Reactor();
  const order: string[] = [];
  const first = reactor.timer(() => {
    order.push("first");
    reactor.dropTimer(second);
  });
  const second = reactor.timer(() => order.push("second"));
  const third = reactor.timer(() => order.push("third"));
  first.arm(0);
  second.arm(0.01);
  third.arm(0.02);
  spinUntil(performance.now() + 1);
  reactor.turn();
  assertEquals(order, ["first", "third"]);
});

cleanTest("watch: readiness bits, rewatch, hang-up", () => {
  using reactor = new Reactor();
  const [a, b] = unixStreamPair();
  using _a = a;
  const seen: number[] = [];
  reactor.watch(a.fd, EPOLLIN | EPOLLOUT, (events) => seen.push(events));
  reactor.turn();
  reactor.rewatch(a.fd, EPOLLIN);
  b[Symbol.dispose]();
  reactor.turn();
  assertEquals(seen[0], EPOLLOUT);
  assertEquals(seen[1]! & (EPOLLIN | EPOLLHUP), EPOLLIN | EPOLLHUP);
  reactor.unwatch(a.fd);
});

cleanTest(
  "unwatch inside a handler: the event that is pending in the same batch is not delivered",
  () => {
    using reactor = new Reactor();
    using bells = new DisposableStack();
    const all = [0, 1, 2].map(() => bells.use(createEventFd()));
    const called: number[] = [];
    all.forEach((bell, i) => {
      reactor.watch(bell, EPOLLIN, () => {
        called.push(i);
        // Whoever is called first takes the others away.
        all.forEach((other, n) => n !== i && reactor.unwatch(other));
        clearEventFd(bell);
      });
      signalEventFd(bell);
    });
    reactor.turn();
    assertEquals(called.length, 1);
  },
);

cleanTest("sequences: until runs an async function with sleeps and deferred promises", async () => {
  using reactor = new Reactor();
  const order: string[] = [];
  const deferred = reactor.defer<number>();
  const timer = reactor.timer(() => deferred.resolve(7));
  timer.arm(1);
  const value = await reactor.until((async () => {
    order.push("start");
    const value = await deferred.promise;
    order.push("deferred");
    await reactor.sleep(1);
    order.push("slept");
    return value;
  })());
  assertEquals(value, 7);
  assertEquals(order, ["start", "deferred", "slept"]);
});

cleanTest(
  "sequences: many promise hops between two turns all happen before the loop blocks",
  async () => {
    using reactor = new Reactor();
    async function hop(depth: number): Promise<number> {
      if (depth === 0) return 0;
      await Promise.resolve();
      return 1 + await hop(depth - 1);
    }
    const startMs = performance.now();
    // A loop that blocked too early would sleep until this timer.
    reactor.timer(() => {}).arm(2000);
    const hops = await reactor.until((async () => {
      let sum = 0;
      for (let i = 0; i < 3; i++) {
        await reactor.sleep(1);
        sum += await hop(200);
      }
      return sum;
    })());
    assertEquals(hops, 600);
    assert(performance.now() - startMs < 1000);
  },
);

cleanTest("sequences: one waits for another through plain promises", async () => {
  using reactor = new Reactor();
  const order: string[] = [];
  const inner = (async () => {
    await reactor.sleep(2);
    order.push("inner");
  })();
  reactor.spawn(async () => {
    await Promise.all([inner, reactor.sleep(1)]);
    order.push("outer");
    reactor.stop();
  });
  await reactor.run();
  assertEquals(order, ["inner", "outer"]);
});

cleanTest("sequences: what one throws ends run, the first error wins", async () => {
  using reactor = new Reactor();
  reactor.spawn(async () => {
    await reactor.sleep(1);
    throw new Error("first");
  });
  reactor.spawn(async () => {
    await reactor.sleep(5);
    throw new Error("second");
  });
  await assertRejects(() => reactor.run(), Error, "first");
});

cleanTest("sequences: a rejected deferred reaches the one who waits", async () => {
  using reactor = new Reactor();
  const deferred = reactor.defer<void>();
  reactor.timer(() => deferred.reject(new Error("gone"))).arm(0);
  await assertRejects(() => reactor.until(deferred.promise), Error, "gone");
});

cleanTest("until: an error of another sequence ends it, and so does stop", async () => {
  {
    using reactor = new Reactor();
    reactor.spawn(async () => {
      await reactor.sleep(1);
      throw new Error("elsewhere");
    });
    await assertRejects(() => reactor.until(reactor.defer().promise), Error, "elsewhere");
  }
  using reactor = new Reactor();
  reactor.timer(() => reactor.stop()).arm(0);
  await assertRejects(() => reactor.until(reactor.defer().promise), Error, "stopped");
});

cleanTest("until: a promise that is settled already, or rejected already", async () => {
  using reactor = new Reactor();
  assertEquals(await reactor.until(Promise.resolve(3)), 3);
  await assertRejects(() => reactor.until(Promise.reject(new Error("no"))), Error, "no");
});

cleanTest("run: an error in a handler ends it", async () => {
  using reactor = new Reactor();
  reactor.timer(() => {
    throw new Error("in a handler");
  }).arm(0);
  await assertRejects(() => reactor.run(), Error, "in a handler");
});

/** Blocks in a reactor of its own until it is stopped; then says so. */
async function worker(): Promise<void> {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<{ stop: number; started: number }>) => void;
    postMessage(message: string): void;
    close(): void;
  };
  await Promise.resolve();
  scope.onmessage = async ({ data }) => {
    using reactor = new Reactor();
    stopReactorFrom(reactor, new Fd(data.stop));
    const started = new Fd(data.started);
    // The last thing before the loop blocks.
    reactor.schedule({ run: () => (signalEventFd(started), false) });
    await reactor.run();
    scope.postMessage("stopped");
    scope.close();
  };
  scope.postMessage("loaded");
}

if ("WorkerGlobalScope" in globalThis) {
  await worker();
} else {
  // Deno keeps descriptors of its own for a thread, so they are not counted here.
  Deno.test("stopReactorFrom: another thread ends a loop that is blocked", async () => {
    using stop = createEventFd();
    using started = createEventFd();
    const thread = new Worker(import.meta.url, { type: "module" });
    const messages: ((data: string) => void)[] = [];
    const next = () => new Promise<string>((resolve) => messages.push(resolve));
    thread.onmessage = ({ data }) => messages.shift()!(data);
    assertEquals(await next(), "loaded");
    const ended = next();
    thread.postMessage({ stop: stop.number, started: started.number });
    using reactor = new Reactor();
    await reactor.until((async () => {
      const blocked = reactor.defer<void>();
      reactor.watch(started, EPOLLIN, () => {
        clearEventFd(started);
        blocked.resolve();
      });
      await blocked.promise;
    })());
    signalEventFd(stop);
    assertEquals(await ended, "stopped");
    thread.terminate();
  });
}

Deno.test("reactor: with a virtual clock a wait takes no time, and fires in order", async () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  const order: string[] = [];
  const started = performance.now();
  const begin = reactor.now();
  await reactor.until((async () => {
    await Promise.all([
      reactor.sleep(3_600_000).then(() => order.push("late")),
      reactor.sleep(1000).then(() => order.push("early")),
    ]);
  })());
  assertEquals(order, ["early", "late"]);
  assertEquals(reactor.now() - begin, 3_600_000);
  assert(performance.now() - started < 60_000, "an hour was waited for");
});

Deno.test("reactor: with a virtual clock what is ready comes before time passes", async () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  const begin = reactor.now();
  let left = 100;
  const { promise, resolve } = reactor.defer<number>();
  const timer = reactor.timer(() => {});
  timer.arm(5);
  reactor.schedule({ run: () => --left > 0 || (resolve(reactor.now()), false) });
  assertEquals(await reactor.until(promise), begin);
});
