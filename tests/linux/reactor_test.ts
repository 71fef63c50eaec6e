import { assert, assertEquals, assertRejects } from "@std/assert";
import { MONOTONIC } from "../../src/linux/clock.ts";
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
import { VirtualClock } from "../support/virtual_clock.ts";

cleanTest("a stop that is refused is none, and is asked for again with the next signal", () => {
  using reactor = new Reactor();
  using stop = createEventFd();
  let asked = 0;
  stopReactorFrom(reactor, stop, () => ++asked === 2);
  for (const isStopped of [false, true]) {
    signalEventFd(stop);
    reactor.turn();
    assertEquals(reactor.isStopped, isStopped);
  }
  assertEquals(asked, 2);
});

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
    reactor.watch(bell, EPOLLIN, () => void order.push("look"));
    signalEventFd(bell);
    reactor.schedule(long);
    reactor.schedule(long);
    for (let i = 0; i < 4; i++) reactor.turn();
    assertEquals(order, ["look", "batch", "look", "batch", "look", "batch", "look"]);
  },
);

cleanTest(
  "tasks: a late one runs after a poll, behind what that brings, and no time passes for it",
  () => {
    const clock = new VirtualClock();
    using reactor = new Reactor(clock);
    using bell = createEventFd();
    const order: string[] = [];
    const task = (name: string, then = () => {}): Task => ({
      run: () => (order.push(name), then(), false),
    });
    const [more, late, behind] = [task("task"), task("late"), task("behind")];
    reactor.watch(bell, EPOLLIN, () => {
      clearEventFd(bell);
      order.push("descriptor");
      reactor.schedule(more);
      // Of the next turn.
      reactor.scheduleLate(behind);
    });
    reactor.timer(() => order.push("timer")).arm(5000);
    reactor.schedule(task("first", () => {
      signalEventFd(bell);
      reactor.scheduleLate(late);
      reactor.scheduleLate(late);
    }));
    const startMs = clock.now();
    reactor.turn();
    assertEquals(order.splice(0), ["first"]);
    reactor.turn();
    assertEquals(order.splice(0), ["descriptor", "task", "late"]);
    reactor.turn();
    assertEquals(order.splice(0), ["behind"]);
    // A virtual clock moves by itself too, a little at each look.
    assert(clock.now() - startMs < 1);
    reactor.turn();
    assertEquals(order, ["timer"]);
    assert(clock.now() - startMs >= 5000);
  },
);

cleanTest("tasks: one that a sequence schedules runs before the loop waits again", async () => {
  using reactor = new Reactor(new VirtualClock());
  using bell = createEventFd();
  const order: string[] = [];
  const task: Task = { run: () => (order.push("task"), false) };
  reactor.watch(bell, EPOLLIN, () => void order.push("look"));
  signalEventFd(bell);
  const { promise, resolve } = reactor.defer<void>();
  reactor.spawn(async () => {
    await promise;
    reactor.schedule(task);
  });
  resolve();
  await reactor.until(reactor.sleep(1));
  assertEquals(order[0], "task");
});

cleanTest("tasks: one that is scheduled by a task runs in the same turn, but none twice", () => {
  using reactor = new Reactor();
  const order: string[] = [];
  const second: Task = { run: () => (order.push("second"), reactor.schedule(first), false) };
  let again = 2;
  const first: Task = {
    run: () => {
      order.push("first");
      reactor.schedule(second);
      if (again-- > 0) reactor.schedule(first);
      return false;
    },
  };
  reactor.schedule(first);
  for (let turn = 1; turn < 4; turn++) {
    reactor.turn();
    assertEquals(order.splice(0), ["first", "second"]);
  }
});

cleanTest("tasks: one that makes another each time does not hold the loop, nor is one lost", () => {
  using reactor = new Reactor();
  let [made, ran] = [0, 0];
  const make = (): Task => {
    made++;
    return { run: () => (ran++, reactor.schedule(make()), false) };
  };
  reactor.schedule(make());
  reactor.turn();
  const first = ran;
  assert(first < 10_000 && made === ran + 1, `${made} made, ${ran} ran`);
  reactor.turn();
  assert(ran > first && made === ran + 1, `${made} made, ${ran} ran`);
});

cleanTest("timers: put off and cancelled, they are not waited for at their old deadline", () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  const startMs = reactor.now();
  const late = reactor.timer(() => {});
  const gone = reactor.timer(() => {});
  late.arm(5);
  gone.arm(1);
  late.arm(50);
  gone.cancel();
  reactor.turn();
  assertEquals([reactor.now() - startMs, late.armed], [50, false]);
});

cleanTest("timers: in the order of their deadlines, whatever the order they were made in", () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  const order: string[] = [];
  const names = ["c", "a", "b"];
  const delays = [3, 1, 2];
  names.forEach((name, i) => reactor.timer(() => order.push(name)).arm(delays[i]!));
  clock.advance(4);
  reactor.turn();
  assertEquals(order, ["a", "b", "c"]);
});

cleanTest("timers: re-armed, cancelled, armed by themselves, at their deadline", () => {
  using reactor = new Reactor(new VirtualClock());
  const startMs = reactor.now();
  const order: [string, number][] = [];
  const note = (what: string) => order.push([what, reactor.now() - startMs]);
  const moved = reactor.timer(() => note("moved"));
  const cancelled = reactor.timer(() => note("cancelled"));
  moved.arm(5);
  moved.arm(15);
  cancelled.arm(1);
  assert(cancelled.armed);
  cancelled.cancel();
  assert(!cancelled.armed);
  let left = 3;
  const again = reactor.timer(() => {
    note("again");
    if (--left > 0) again.arm(4);
  });
  again.arm(4);
  while (moved.armed) reactor.turn();
  assertEquals(order, [["again", 4], ["again", 8], ["again", 12], ["moved", 15]]);
  assertEquals([moved.armed, again.armed], [false, false]);
});

cleanTest("timers: the real clock is waited for, and no timer is early", async () => {
  using reactor = new Reactor();
  const startMs = reactor.now();
  await reactor.until(reactor.sleep(15));
  assert(reactor.now() - startMs >= 15, `${reactor.now() - startMs} ms`);
});

cleanTest("timers: one that arms itself for the past fires once a turn, and holds nobody", () => {
  for (const clock of [new VirtualClock(), MONOTONIC]) {
    using reactor = new Reactor(clock);
    let [fired, others] = [0, 0];
    const greedy = reactor.timer(() => {
      fired++;
      greedy.arm(-1000);
    });
    const other = reactor.timer(() => others++);
    greedy.arm(-1000);
    other.arm(-1);
    reactor.turn();
    assertEquals([fired, others], [1, 1]);
    reactor.turn();
    assertEquals([fired, others], [2, 1]);
  }
});

cleanTest("timers: one that makes another for now each time does not hold the loop", () => {
  using reactor = new Reactor(new VirtualClock());
  let made = 0;
  const make = () => {
    made++;
    reactor.timer(make).arm(0);
  };
  make();
  for (let turns = 0; turns < 5; turns++) reactor.turn();
  assertEquals(made, 6);
});

cleanTest("timers: a deadline months away is no wait without end, nor one of no time", async () => {
  using reactor = new Reactor();
  reactor.timer(() => {}).arm(2 ** 40);
  await reactor.until(reactor.sleep(1));
  using virtual = new Reactor(new VirtualClock());
  virtual.timer(() => {}).arm(2 ** 40);
  await virtual.until(virtual.sleep(1));
});

cleanTest("timers: dropped by another one's handler, it does not fire any more", () => {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  const order: string[] = [];
  const first = reactor.timer(() => {
    order.push("first");
    reactor.dropTimer(second);
  });
  const second = reactor.timer(() => order.push("second"));
  const third = reactor.timer(() => order.push("third"));
  first.arm(1);
  second.arm(2);
  third.arm(3);
  clock.advance(5);
  reactor.turn();
  assertEquals(order, ["first", "third"]);
});

cleanTest("watch: readiness bits, rewatch, hang-up", () => {
  using reactor = new Reactor();
  const [a, b] = unixStreamPair();
  using _a = a;
  const seen: number[] = [];
  reactor.watch(a.fd, EPOLLIN | EPOLLOUT, (events) => void seen.push(events));
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
  using reactor = new Reactor(new VirtualClock());
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
    using reactor = new Reactor(new VirtualClock());
    async function hop(depth: number): Promise<number> {
      if (depth === 0) return 0;
      await Promise.resolve();
      return 1 + await hop(depth - 1);
    }
    const startMs = reactor.now();
    // A loop that went on too early would jump to this timer.
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
    assert(reactor.now() - startMs < 1000);
  },
);

cleanTest("sequences: one waits for another through plain promises", async () => {
  using reactor = new Reactor(new VirtualClock());
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
  using reactor = new Reactor(new VirtualClock());
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

cleanTest(
  "paced: a source that is always ready in vain gets pauses, is told of once, and comes back",
  () => {
    const clock = new VirtualClock();
    using reactor = new Reactor(clock);
    using fd = createEventFd();
    using other = createEventFd();
    let [calls, found] = [0, false];
    const paced: number[] = [];
    reactor.paced = (number) => paced.push(number);
    reactor.watch(fd, EPOLLIN, () => {
      calls++;
      return found;
    });
    // Keeps every turn from being an idle one, in which time would go on.
    reactor.watch(other, EPOLLIN, () => {});
    [fd, other].forEach(signalEventFd);
    for (let i = 0; i < 1000; i++) reactor.turn();
    assertEquals([calls, paced], [100, [fd.number]]);
    clearEventFd(other);
    for (let i = 0; i < 40; i++) reactor.turn();
    assert(calls > 100 && calls <= 120, `${calls} calls`);
    assertEquals(paced, [fd.number]);
    found = true;
    const before = calls;
    for (let i = 0; i < 50; i++) reactor.turn();
    assert(calls - before >= 48, `${calls - before} calls`);
    reactor.unwatch(fd);
  },
);
