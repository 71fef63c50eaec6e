/**
 * Whether somebody listens on a socket, without asking there: a socket's file is there a moment before that,
 * and who connects in between is refused.
 */

/** SO_ACCEPTCON, as /proc/net/unix has it among the flags of each socket. */
const LISTENS = /^\S+ \S+ \S+ 00010000 \S+ \S+ +\S+ (.*)$/gm;

/** @param path as the one who listens was given it */
export function isListening(path: string): boolean {
  const sockets = Deno.readTextFileSync("/proc/net/unix");
  return [...sockets.matchAll(LISTENS)].some((match) => match[1] === path);
}

/** Waits until somebody listens; false if nobody does in time. */
export async function untilListening(path: string, timeoutMs: number): Promise<boolean> {
  const endMs = performance.now() + timeoutMs;
  while (!isListening(path)) {
    if (performance.now() > endMs) return false;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return true;
}
