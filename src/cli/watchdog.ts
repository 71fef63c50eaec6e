/**
 * Names what blocks the data plane, and ends the process then.
 *
 * The Worker may block in epoll_wait and nowhere else. What could make it is refused or avoided (received_fd.ts,
 * peer_event.ts); should something be left, all guests of the process wait for it, and nobody would know for what. So
 * the main thread looks every two seconds at the Worker's system call, as /proc tells it. The same one at the same
 * place five times, without the thread having run meanwhile, is one that does not return: the process says which, of
 * which file, and ends, so that whoever looks after it can start it again.
 *
 * A process that was paused as a whole, or a machine, finds at most one look missed.
 */

import { VmsgError } from "../linux/errors.ts";
import { nameOf } from "../linux/received_fd.ts";
import { readText } from "../linux/sysfs.ts";

const LOOK_MS = 2000;
/** How often the same is seen before it counts. */
const LOOKS = 5;

const isX86 = Deno.build.arch === "x86_64";
/** epoll_wait, epoll_pwait, epoll_pwait2: where a loop waits, ours or Deno's. */
const WAITS = isX86 ? [232, 281, 441] : [22, 441];
/** By number, for people; the first argument of these is a descriptor. */
const NAMES: Readonly<Record<number, string>> = isX86
  ? { 0: "read", 1: "write", 3: "close", 5: "fstat", 19: "readv", 20: "writev", 46: "sendmsg" }
  : {
    63: "read",
    64: "write",
    57: "close",
    80: "fstat",
    65: "readv",
    66: "writev",
    211: "sendmsg",
  };

/** What a blocked thread is in: words, from /proc's line of number, arguments, stack and instruction. */
function wordsFor(line: string): string {
  const [number, first] = line.split(" ");
  // No system call: a page fault, as on a file whose pages another process gives.
  if (number === "-1") return "an access to memory";
  const name = NAMES[Number(number)];
  if (name === undefined) return `system call ${number}`;
  const fd = Number(first);
  return `${name} of descriptor ${fd} (${nameOf(fd)})`;
}

/**
 * Watches a thread of this process.
 *
 * @param thread its number, of threadId
 * @param onBlocked called once
 * @returns what is to be disposed at the end
 */
export function watchThread(
  thread: number,
  onBlocked: (error: VmsgError) => void,
  lookMs = LOOK_MS,
): Disposable {
  const task = `/proc/self/task/${thread}`;
  let before = "";
  let seen = 0;
  const timer = setInterval(() => {
    const call = readText(`${task}/syscall`) ?? "";
    const runs = /^voluntary_ctxt_switches:.*$/m.exec(readText(`${task}/status`) ?? "")?.[0];
    const now = `${call} ${runs}`;
    const isWaiting = !/^-?\d/.test(call) || WAITS.includes(parseInt(call));
    seen = isWaiting || now !== before ? 0 : seen + 1;
    before = now;
    if (seen < LOOKS) return;
    clearInterval(timer);
    const words = `the data plane has been blocked for ${LOOKS * lookMs / 1000} s`;
    onBlocked(new VmsgError("BLOCKED", `${words}, in ${wordsFor(call)}: this process ends`));
  }, lookMs);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
