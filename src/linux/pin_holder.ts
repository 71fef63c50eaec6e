/**
 * A process that keeps pinned memory pinned for a moment after this one was killed.
 *
 * Another machine may write to our RAM for as long as its lease lasts, also after a SIGKILL took us by surprise.
 * The kernel lets a DMA mapping go, and gives its pages to others, when the last descriptor of its VFIO group and
 * container is closed. So a child of ours, a shell that waits, has them as well. It waits for a line from a pipe
 * whose other end only we have: a line says that nobody writes any more and it ends at once, an end without a line
 * that we are gone and that it has to wait. Whoever opens the group meanwhile is told that it is busy, and tries
 * again (vfio.ts).
 *
 * The child is the leader of a session of its own, so that what is sent to our process group spares it.
 */

import { type Fd, openPipe, setInherited } from "./fd.ts";
import { allocate } from "./arena.ts";
import { libc } from "./libc.ts";
import { PROGRAM_ENVIRONMENT, SHELL } from "./programs.ts";

const line = allocate(1);
line.bytes[0] = "\n".charCodeAt(0);

/** Waits for a line; without one, for the time. A `sleep` that takes whole seconds only waits longer. */
function script(read: Fd, holdMs: number): string {
  const seconds = holdMs / 1000;
  return `read -r _ </proc/self/fd/${read.number} || sleep ${seconds} || sleep ${
    Math.ceil(seconds)
  }`;
}

/** See the head of this file. */
export class PinHolder implements Disposable {
  readonly #pipe: Fd;

  /**
   * Called by {@link holdPins}.
   *
   * @param ended resolves when it has ended
   */
  constructor(pipe: Fd, readonly pid: number, readonly ended: Promise<unknown>) {
    this.#pipe = pipe;
  }

  /** Nobody writes to what is pinned any more: the holder ends. */
  [Symbol.dispose](): void {
    // One that has ended already is no harm: a broken pipe is an error here, no signal (Deno ignores it).
    libc.write(this.#pipe.number, line.address, 1);
    this.#pipe[Symbol.dispose]();
  }
}

/**
 * Starts a holder.
 *
 * @param handles what it keeps open
 * @param holdMs how long after we were killed
 * @returns undefined if none can be started: there is no shell, or no permission to run one
 */
export function holdPins(handles: readonly Fd[], holdMs: number): PinHolder | undefined {
  const { read, write } = openPipe();
  using stack = new DisposableStack();
  stack.use(write);
  using _read = read;
  const inherited = [read, ...handles];
  try {
    for (const fd of inherited) setInherited(fd, true);
    const child = new Deno.Command(SHELL, {
      ...PROGRAM_ENVIRONMENT,
      args: ["-c", script(read, holdMs)],
      stdin: "null",
      stdout: "null",
      stderr: "null",
      detached: true,
    }).spawn();
    child.unref();
    stack.move();
    return new PinHolder(write, child.pid, child.status);
  } catch {
    return undefined;
  } finally {
    for (const fd of inherited) setInherited(fd, false);
  }
}
