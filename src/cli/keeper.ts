/**
 * A keeper sees to it that nothing is left behind, whatever happens to this process.
 *
 * Guests live in sessions of their own, which Ctrl-C does not reach, ignore SIGTERM (User-Mode Linux), leave
 * helpers and files; and handlers in this process do not run after a SIGKILL. So a small shell process makes
 * a directory, then reads commands from a pipe whose other end only this process holds:
 *
 *     keep PID    PID leads a session (it was started with `detached: true`): end it when we go
 *     end PID     end that session now
 *     (the end)   end what is kept, remove the directory
 *
 * Processes are ended with SIGKILL by their own id, found by their session in /proc. A session's id is not
 * given to anybody else while the session has a member, so it is forgotten as soon as it is seen empty.
 *
 * Not covered: a process that makes itself yet another session; and where there is no shell, a SIGKILL of ours.
 */

import { TextLineStream } from "@std/streams/text-line-stream";
import { VmsgError } from "../linux/errors.ts";
import { PROGRAM_ENVIRONMENT, SHELL } from "../linux/programs.ts";

const SCRIPT = `
trap '' HUP INT QUIT TERM
umask 077
directory=$(mktemp -d "$1/vmsg-XXXXXX") || exit 1
printf '%s\\n' "$directory"

# members SESSION: the ids of its living processes
members() {
  for file in /proc/[0-9]*/stat; do
    { read -r line <"$file"; } 2>/dev/null || continue
    # id (name) state parent group session ...; a name may hold anything
    session=$1
    set -- \${line##*) }
    if [ "$4" = "$session" ] && [ "$1" != Z ]; then
      id=\${file#/proc/}
      printf '%s ' "\${id%/stat}"
    fi
    set -- "$session"
  done
}

end() {
  attempt=0
  while [ "$attempt" -lt 250 ]; do
    ids=$(members "$1")
    [ -n "$ids" ] || return 0
    kill -KILL $ids 2>/dev/null
    attempt=$((attempt + 1))
    sleep 0.01
  done
}

kept=
while read -r command id; do
  case $command in
    keep) kept="$kept $id" ;;
    end)
      end "$id"
      others=
      for other in $kept; do [ "$other" = "$id" ] || others="$others $other"; done
      kept=$others
      printf '%s\\n' "$id"
      ;;
  esac
done
for id in $kept; do end "$id"; done
rm -rf -- "$directory"
`;

/** See the head of this file. Dispose ends every session that is kept and removes the directory. */
export interface Keeper extends AsyncDisposable {
  /** A new directory, for this user only. */
  readonly directory: string;
  /** Takes charge of a process that was started with `detached: true`, and of its children. */
  keep(pid: number): Promise<void>;
  /** Ends such a process and its children; returns when they are gone. */
  end(pid: number): Promise<void>;
}

/** Starts a keeper; its directory is made in `base`: TMPDIR or /tmp, unless given. */
export async function openKeeper(base?: string): Promise<Keeper> {
  try {
    return await openShellKeeper(base);
  } catch (error) {
    // A root directory with nothing but vmsg in it.
    if (error instanceof Deno.errors.NotFound) return await openOwnKeeper(base);
    throw error;
  }
}

function noDirectory(base: string | undefined): VmsgError {
  const where = base === undefined ? ": set TMPDIR to a directory you may write to" : ` in ${base}`;
  return new VmsgError("NO_TEMPORARY_DIRECTORY", `cannot make a temporary directory${where}`);
}

/** Where temporary files belong. */
export function temporaryDirectory(): string {
  return Deno.env.get("TMPDIR") || "/tmp";
}

async function openOwnKeeper(base: string | undefined): Promise<Keeper> {
  const dir = base ?? temporaryDirectory();
  const directory = await Deno.makeTempDir({ dir, prefix: "vmsg-" }).catch(() => {
    throw noDirectory(base);
  });
  const kept = new Set<number>();
  const end = (pid: number) => {
    kept.delete(pid);
    try {
      Deno.kill(pid, "SIGKILL");
    } catch {
      // It has ended.
    }
    return Promise.resolve();
  };
  return {
    directory,
    keep: (pid) => Promise.resolve(void kept.add(pid)),
    end,
    async [Symbol.asyncDispose]() {
      for (const pid of kept) await end(pid);
      await Deno.remove(directory, { recursive: true });
    },
  };
}

async function openShellKeeper(base: string | undefined): Promise<Keeper> {
  const child = new Deno.Command(SHELL, {
    ...PROGRAM_ENVIRONMENT,
    args: ["-c", SCRIPT, "vmsg-keeper", base ?? temporaryDirectory()],
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
    detached: true,
  }).spawn();
  const commands = child.stdin.getWriter();
  const text: ReadableStream<string> = child.stdout.pipeThrough(new TextDecoderStream());
  const lines: ReadableStream<string> = text.pipeThrough(new TextLineStream());
  const answers = lines.getReader();
  const say = (command: string) => commands.write(new TextEncoder().encode(`${command}\n`));
  /** Commands that are answered run one after the other. */
  let last: Promise<unknown> = Promise.resolve();

  async function close(): Promise<void> {
    await last.catch(() => {});
    // A keeper that somebody killed has closed its side already.
    await commands.close().catch(() => {});
    await answers.cancel().catch(() => {});
    await child.status;
  }

  const directory = (await answers.read()).value ?? "";
  if (directory === "") {
    await close();
    throw noDirectory(base);
  }
  return {
    directory,
    keep: (pid) => say(`keep ${pid}`),
    async end(pid) {
      const ended = last.then(async () => {
        await say(`end ${pid}`);
        await answers.read();
      });
      last = ended;
      await ended;
    },
    [Symbol.asyncDispose]: close,
  };
}
