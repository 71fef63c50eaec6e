/** A thread that blocks is named with what it blocks in; one that waits for work is not. */

import { assertMatch } from "@std/assert";
import { createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { Fd } from "../../src/linux/fd.ts";
import { check, libc } from "../../src/linux/libc.ts";
import { watchThread } from "../../src/cli/watchdog.ts";
import { readProc } from "../support/proc_files.ts";
import { delay, until } from "../support/processes.ts";

const LOOK_MS = 20;

/** Starts the child on a descriptor; the number of its thread. */
async function childOn(worker: Worker, fd: Fd, how: "read" | "turn"): Promise<number> {
  const told = new Promise<number>((resolve) => {
    worker.onmessage = ({ data }: MessageEvent<number>) => resolve(data);
  });
  worker.postMessage([fd.number, how]);
  return await told;
}

const child = () => new Worker(new URL("watchdog_child.ts", import.meta.url), { type: "module" });

Deno.test("watchdog: a blocked read is named, with its descriptor", async () => {
  // Without O_NONBLOCK.
  using fd = new Fd(check(libc.eventfd(0, 0), "eventfd"));
  const worker = child();
  const thread = await childOn(worker, fd, "read");
  const error = await new Promise<Error>((resolve) => watchThread(thread, resolve, LOOK_MS));
  signalEventFd(fd);
  worker.terminate();
  assertMatch(
    error.message,
    /^the data plane has been blocked for 0.1 s, in read of descriptor \d+ \(anon_inode:\[eventfd\]\): this process ends$/,
  );
});

Deno.test("watchdog: a loop that waits for work is left alone", async () => {
  using fd = createEventFd();
  const worker = child();
  const thread = await childOn(worker, fd, "turn");
  // epoll_wait, or one of its kin: what it does before that may last.
  await until(() => /^(232|281|441|22) /.test(readProc(`self/task/${thread}/syscall`)));
  let problem = "";
  using _watchdog = watchThread(thread, ({ message }) => problem = message, LOOK_MS);
  await delay(20 * LOOK_MS);
  signalEventFd(fd);
  worker.terminate();
  assertMatch(problem, /^$/);
});
