/** What a holder keeps open, and for how long. A lock that goes with the last descriptor shows it. */

import { assert, assertEquals } from "@std/assert";
import { MONOTONIC, pause } from "../../src/linux/clock.ts";
import { type Fd, O_CREAT, openFile, tryLockByte, unlockByte } from "../../src/linux/fd.ts";
import { holdPins, type PinHolder } from "../../src/linux/pin_holder.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

/** A holder that was told to stay as long does not end by itself in any test. */
const LONG_MS = 3_600_000;
/** Other processes have this long to do what they do at once. */
const TIMEOUT_MS = 60_000;

function isFree(path: string): boolean {
  using fd = openFile(path);
  if (!tryLockByte(fd, 0)) return false;
  unlockByte(fd, 0);
  return true;
}

/** Waits until the lock is free. */
function untilFree(path: string): void {
  const endMs = MONOTONIC.now() + TIMEOUT_MS;
  while (!isFree(path)) {
    assert(MONOTONIC.now() < endMs, "the lock is never free");
    pause(5);
  }
}

/** Waits for a holder's end; the interval keeps the event loop alive, which that does not. */
async function untilEnded(holder: PinHolder): Promise<void> {
  const alive = setInterval(() => {}, 1000);
  await holder.ended;
  clearInterval(alive);
}

function lockedFile(path: string): Fd {
  const fd = openFile(path, O_CREAT);
  assert(tryLockByte(fd, 0));
  return fd;
}

cleanTest(
  "pin holder: it has the descriptors, and a line ends it at once",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      const fd = lockedFile(path);
      const holder = holdPins([fd], LONG_MS)!;
      fd[Symbol.dispose]();
      assert(!isFree(path), "it has not got the descriptor");
      holder[Symbol.dispose]();
      untilFree(path);
      await untilEnded(holder);
    }),
);

cleanTest(
  "pin holder: it waits as long as we live, whatever time it was given",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      const fd = lockedFile(path);
      const holder = holdPins([fd], 10)!;
      fd[Symbol.dispose]();
      // One that took the time from its start on would be gone.
      pause(200);
      assert(!isFree(path));
      holder[Symbol.dispose]();
      await untilEnded(holder);
    }),
);

cleanTest(
  "pin holder: what it is given is inherited by nobody else",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      using fd = lockedFile(path);
      const holder = holdPins([fd], LONG_MS)!;
      const { stdout } = await new Deno.Command("ls", { args: ["-l", "/proc/self/fd"] }).output();
      const listed = new TextDecoder().decode(stdout);
      assert(listed.includes("/dev/null") || listed.includes("pipe:"), listed);
      assert(!listed.includes(path), listed);
      holder[Symbol.dispose]();
      await untilEnded(holder);
    }),
);

/** A process with a holder, killed; then the holder's pid, and when it was killed. */
async function killed(path: string, holdMs: number): Promise<{ pid: number; atMs: number }> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--allow-all",
      "--quiet",
      new URL("pin_child.ts", import.meta.url).pathname,
      path,
      `${holdMs}`,
    ],
    stdin: "null",
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  const atMs = MONOTONIC.now();
  child.kill("SIGKILL");
  await child.status;
  // The pipe ends with the last who has it, and the holder has not: it may live for an hour yet.
  assertEquals((await reader.read()).done, true);
  const pid = Number(new TextDecoder().decode(value));
  // A group is killed by it, and 0 would be our own.
  assert(pid > 1, "it has started no holder");
  return { pid, atMs };
}

cleanTest(
  "pin holder: after a SIGKILL it keeps them, and nothing else",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      const { pid } = await killed(path, LONG_MS);
      assert(!isFree(path));
      // The shell and the program it waits for are a group of their own.
      Deno.kill(-pid, "SIGKILL");
      untilFree(path);
    }),
);

cleanTest(
  "pin holder: after a SIGKILL it keeps them for the time it was given",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      const { atMs } = await killed(path, 300);
      untilFree(path);
      const tookMs = MONOTONIC.now() - atMs;
      assert(tookMs >= 300, `${tookMs} ms`);
    }),
);
