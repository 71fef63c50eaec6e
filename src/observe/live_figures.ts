/**
 * Counters on a terminal, again and again: the screen of `vmsg top`. The main thread has no reactor there: keys, the window's
 * size and signals are Deno's, and time is too.
 */

import { figuresOf, type Reading, type Sort, sortFigures, SORTS, tableOf } from "./figures.ts";

/** What is looked at. */
export type Look = () => Reading;

/** What keys change. */
export interface View {
  sort: Sort;
  zeros: boolean;
  paused: boolean;
}

function screen(now: Reading, before: Reading | undefined, view: View): string[] {
  const { instances, problems } = now;
  const running = instances.filter(({ isRunning }) => isRunning).length;
  const ended = instances.length - running;
  return [
    `vmsg top  ${running} running${ended > 0 ? `, ${ended} ended` : ""}  by ${view.sort}` +
    `${view.paused ? "  PAUSED" : ""}   keys: s sort, p pause, z zeros, q quit`,
    ...problems,
    ...tableOf(sortFigures(figuresOf(now, before), view.sort), view.zeros),
  ];
}

/** Lines that fit in the terminal, in the place of those before. */
function draw(lines: readonly string[]): void {
  let [columns, rows] = [80, 24];
  try {
    const size = Deno.consoleSize();
    // A serial line has no size.
    if (size.columns > 0 && size.rows > 0) [columns, rows] = [size.columns, size.rows];
  } catch {
    // Nor has what is no terminal any more.
  }
  const room = Math.max(1, rows - 1);
  const shown = lines.slice(0, room);
  if (lines.length > room) shown[room - 1] = `... ${lines.length - room + 1} more lines`;
  const text = shown.map((line) => `${line.slice(0, columns - 1)}\x1b[K`).join("\r\n");
  console.log(`\x1b[H${text}\x1b[J\r`);
}

/** Shows it until somebody presses q; the main thread has no reactor, and keys and signals are Deno's. */
export async function watchFigures(look: Look, view: View, intervalMs: number): Promise<number> {
  const events: string[] = [];
  let wake = Promise.withResolvers<void>();
  const tell = (event: string) => {
    events.push(event);
    wake.resolve();
  };
  using stack = new DisposableStack();
  for (const [signal, event] of [["SIGWINCH", ""], ["SIGTERM", "q"], ["SIGHUP", "q"]] as const) {
    const listener = () => tell(event);
    Deno.addSignalListener(signal, listener);
    stack.defer(() => Deno.removeSignalListener(signal, listener));
  }
  Deno.stdin.setRaw(true);
  stack.defer(() => Deno.stdin.setRaw(false));
  console.log("\x1b[?1049h\x1b[?25l");
  stack.defer(() => console.log("\x1b[?25h\x1b[?1049l"));
  (async () => {
    for await (const keys of Deno.stdin.readable) {
      new TextDecoder().decode(keys).split("").forEach(tell);
    }
  })().finally(() => tell("q")).catch(() => {});
  const ticker = setInterval(() => tell("tick"), intervalMs);
  stack.defer(() => clearInterval(ticker));
  let before: Reading | undefined;
  let now = look();
  for (;;) {
    draw(screen(now, before, view));
    await wake.promise;
    wake = Promise.withResolvers();
    for (const event of events.splice(0)) {
      if (event === "q" || event === "\x03") return 0;
      else if (event === "s") view.sort = SORTS[(SORTS.indexOf(view.sort) + 1) % SORTS.length]!;
      else if (event === "z") view.zeros = !view.zeros;
      else if (event === "p" || event === " ") view.paused = !view.paused;
      else if (event === "tick" && !view.paused) [before, now] = [now, look()];
    }
  }
}
