/** What a holder keeps open, and for how long. A lock that goes with the last descriptor shows it. */

import { assert, assertEquals } from "@std/assert";
import { type Fd, O_CREAT, openFile, tryLockByte, unlockByte } from "../../src/linux/fd.ts";
import { holdPins, PIN_HOLD_MS, type PinHolder } from "../../src/linux/pin_holder.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

/** How long a lock is waited for. */
const TIMEOUT_MS = 5000;

/** Milliseconds until the lock is free. */
async function untilFree(path: string): Promise<number> {
  using fd = openFile(path);
  const startMs = performance.now();
  while (!tryLockByte(fd, 0)) {
    assert(performance.now() - startMs < TIMEOUT_MS, "the lock is never free");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  unlockByte(fd, 0);
  return performance.now() - startMs;
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
      const holder = holdPins([fd])!;
      fd[Symbol.dispose]();
      await new Promise((resolve) => setTimeout(resolve, 2 * PIN_HOLD_MS));
      {
        using other = openFile(path);
        assertEquals(tryLockByte(other, 0), false, "it waits as long as we live");
      }
      holder[Symbol.dispose]();
      const tookMs = await untilFree(path);
      assert(tookMs < PIN_HOLD_MS / 2, `${tookMs} ms`);
      await untilEnded(holder);
    }),
);

cleanTest(
  "pin holder: what it is given is inherited by nobody else",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      using fd = lockedFile(path);
      const holder = holdPins([fd])!;
      const { stdout } = await new Deno.Command("ls", { args: ["-l", "/proc/self/fd"] }).output();
      const listed = new TextDecoder().decode(stdout);
      assert(listed.includes("/dev/null") || listed.includes("pipe:"), listed);
      assert(!listed.includes(path), listed);
      holder[Symbol.dispose]();
      await untilEnded(holder);
    }),
);

cleanTest(
  "pin holder: after a SIGKILL it keeps them for half a second",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      const child = new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "--allow-all",
          "--quiet",
          new URL("pin_child.ts", import.meta.url).pathname,
          path,
        ],
        stdin: "null",
        stdout: "piped",
      }).spawn();
      // It says so when it holds; the pipe's end is that of all who have it, and the holder has not.
      const reader = child.stdout.getReader();
      await reader.read();
      child.kill("SIGKILL");
      const startMs = performance.now();
      await child.status;
      assertEquals((await reader.read()).done, true);
      assert(performance.now() - startMs < PIN_HOLD_MS / 2, "the holder has its standard output");
      await untilFree(path);
      const tookMs = performance.now() - startMs;
      assert(tookMs >= PIN_HOLD_MS - 50 && tookMs < TIMEOUT_MS / 2, `${tookMs} ms`);
    }),
);
