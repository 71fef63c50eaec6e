/**
 * A passt of our own: started with one end of a socket pair, ended with us.
 *
 * It ends when that socket closes (`--fd` implies `--one-off`), but not always: one (2023_03_09) was seen to read the
 * end of a TCP connection again and again and never to look at that socket. So it is killed, also when we are: a
 * shell beside it waits for a line from a pipe whose other end only we have. A line says that it has ended, an end
 * without a line that we are gone, or want it to go. (PR_SET_PDEATHSIG will not do: passt changes its credentials, and
 * the kernel forgets it.) Both are leaders of sessions of their own, which keeps Ctrl-C from them.
 *
 * Both are Deno's to wait for, and nobody else's: it keeps a descriptor of each that it closes only when it has heard itself
 * how it ended. It hears that while sequences run, and only in about one of sixty turns of its own loop; so we look as well.
 *
 * The first 4 KiB that it says on standard error are kept in a sealed memfd, so that neither a full pipe nor a
 * talkative passt can do harm.
 */

import { allocate } from "../linux/arena.ts";
import { VmsgError } from "../linux/errors.ts";
import { createSealedMemory, type Fd, openPipe, setInherited } from "../linux/fd.ts";
import { libc } from "../linux/libc.ts";
import { mapShared } from "../linux/mapping.ts";
import { findProgram, PROGRAM_ENVIRONMENT, SHELL } from "../linux/programs.ts";
import { type UnixStream, unixStreamPair } from "../linux/unix_socket.ts";

const F_SETFL = 4;
const P_PID = 1;
/** WNOHANG, WEXITED, and WNOWAIT: it remains to be waited for. */
const LOOK = 0x1 | 0x4 | 0x100_0000;
const CLD_EXITED = 1;
const WORDS_SIZE = 4096;

/** siginfo_t: i32 code @8, i32 pid @16, i32 status @24 */
const info = allocate(128);

/** See the head of this file. */
export class PasstProcess implements Disposable {
  /** Of passt itself. */
  readonly pid: number;
  /** Our end of the socket pair; whoever takes it closes it. */
  readonly stream: UnixStream;
  /** Have both ended, and nothing is left of them? */
  isGone = false;
  /** Settles when they have. */
  readonly gone: Promise<void>;
  readonly #words: Fd;
  /** To the shell beside it; closed when it has ended, or has to. */
  #pipe: Fd | undefined;
  #how: string | undefined;

  constructor(args: readonly string[]) {
    const program = findProgram("passt");
    if (program === undefined) {
      throw new VmsgError(
        "NO_PASST",
        "the program passt is not installed: apt install passt, or see https://passt.top",
      );
    }
    using stack = new DisposableStack();
    this.#words = stack.use(createSealedMemory("vmsg-passt", WORDS_SIZE));
    const [ours, theirs] = unixStreamPair();
    this.stream = stack.use(ours);
    using _theirs = theirs;
    // passt reads and writes blocking.
    libc.fcntl(theirs.fd.number, F_SETFL, 0n);
    const fd = `${theirs.fd.number}`;
    // The shell opens standard error and is replaced by passt.
    const script = `exec "$0" "$@" 2<>/proc/self/fd/${this.#words.number}`;
    const child = spawn(
      [script, program, "--foreground", "--quiet", "--fd", fd, ...args],
      [this.#words, theirs.fd],
    );
    this.pid = child.pid;
    const ended = child.status.then(({ code, signal }) =>
      this.#ended(code, signal === null ? 0 : code - 128)
    );
    const { pipe, watcher } = killedWithUs(this.pid);
    this.#pipe = stack.use(pipe);
    this.gone = Promise.all([ended, watcher.status]).then(() => void (this.isGone = true));
    stack.move();
  }

  #ended(code: number, signal: number): void {
    this.#how ??= signal === 0 ? `ended with exit status ${code}` : `was ended by signal ${signal}`;
    // What it said is the reason if it gave up by itself.
    if (this.#pipe === undefined) return;
    if (code !== 0 && signal === 0) this.#how += lastWords(this.#words);
    // It is no more, and its number may be another's soon.
    libc.write(this.#pipe.number, line.address, 1);
    this[Symbol.dispose]();
  }

  /** How it ended, for people; undefined as long as it runs. */
  end(): string | undefined {
    info.view.setInt32(16, 0, true);
    if (this.#how === undefined && libc.waitid(P_PID, this.pid, info.address, LOOK) === 0) {
      const [code, pid, status] = [8, 16, 24].map((at) => info.view.getInt32(at, true));
      if (pid === this.pid) {
        if (code === CLD_EXITED) this.#ended(status!, 0);
        else this.#ended(0, status!);
      }
    }
    return this.#how;
  }

  /** Has it killed, if it runs. */
  [Symbol.dispose](): void {
    const pipe = this.#pipe;
    this.#pipe = undefined;
    pipe?.[Symbol.dispose]();
    if (pipe !== undefined) this.#words[Symbol.dispose]();
  }
}

const line = allocate(1);
line.bytes[0] = "\n".charCodeAt(0);

/** Runs a shell script in a session of its own. @param args the script, its name, and its arguments */
function spawn(args: readonly string[], inherited: readonly Fd[]): Deno.ChildProcess {
  try {
    for (const fd of inherited) setInherited(fd, true);
    const child = new Deno.Command(SHELL, {
      ...PROGRAM_ENVIRONMENT,
      args: ["-c", ...args],
      stdin: "null",
      stdout: "null",
      stderr: "null",
      detached: true,
    }).spawn();
    // It must not keep this process alive.
    child.unref();
    return child;
  } finally {
    for (const fd of inherited) setInherited(fd, false);
  }
}

/** Has a process killed when the pipe is closed without a line, however that happens. */
function killedWithUs(pid: number): { pipe: Fd; watcher: Deno.ChildProcess } {
  const { read, write } = openPipe();
  using _read = read;
  using stack = new DisposableStack();
  stack.use(write);
  const script = `read -r _ </proc/self/fd/${read.number} || kill -KILL ${pid}`;
  const watcher = spawn([script], [read]);
  stack.move();
  return { pipe: write, watcher };
}

/** The last line that passt said behind a colon, without its complaints about a missing syslog; "" for none. */
function lastWords(words: Fd): string {
  using mapping = mapShared(words.number, WORDS_SIZE);
  const bytes = new Uint8Array(mapping.buffer).slice();
  const end = bytes.indexOf(0);
  const text = new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
  const lines = text.split("\n").map((line) => line.trim());
  const said = lines.filter((line) => line !== "" && !line.startsWith("Failed to send")).pop();
  return said === undefined ? "" : `: ${said}`;
}
