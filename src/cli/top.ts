/** `vmsg top`: what the counters of running and crashed processes say, live, once, or for monitoring. */

import { UsageError, VmsgError } from "../linux/errors.ts";
import { MONOTONIC, pause } from "../linux/clock.ts";
import {
  figuresAsJson,
  figuresAsPrometheus,
  figuresOf,
  readAll,
  type Reading,
  readPath,
  sortFigures,
  SORTS,
  tableOf,
} from "../observe/figures.ts";
import { type Look, type View, watchFigures } from "../observe/live_figures.ts";
import type { Command } from "./command.ts";

function lookAt([operand, ...more]: readonly string[]): Look {
  if (more.length > 0) throw new UsageError("one process at a time, or all; see: vmsg top --help");
  if (operand === undefined) return () => readAll(MONOTONIC.now());
  if (!/^\d+$/.test(operand)) return () => readPath(MONOTONIC.now(), operand);
  const look = () => readAll(MONOTONIC.now(), Number(operand));
  const { instances, problems } = look();
  if (instances.length > 0) return look;
  throw new VmsgError("NO_COUNTERS", problems[0] ?? `process ${operand} ended`);
}

/** See `vmsg top --help`. */
export const topCommand: Command = {
  name: "top",
  summary: "what running and crashed processes have counted, live or for monitoring",
  description:
    "Shows the counters of all vmsg processes of this user (of root: those in /run/vmsg), or of one, with rates: " +
    "frames, batches, notifications, messages, latencies, and what was dropped and why. Reads files only, so processes do " +
    "not notice. Keys: s sorts by rate, total or name, p pauses, z shows zeros, q quits.",
  operands: "[PID|FILE|DIRECTORY]",
  options: [
    { name: "once", help: "print it once, also when this is no terminal" },
    { name: "json", help: "print totals as one JSON object" },
    { name: "prometheus", help: "print totals as Prometheus reads them (text format 0.0.4)" },
    {
      name: "interval",
      value: "SECONDS",
      default: "1",
      help: "between two looks; rates are over it",
    },
    { name: "sort", value: SORTS.join("|"), default: "rate", help: "what comes first" },
    { name: "zeros", help: "show what never counted as well" },
  ],
  examples: [
    "vmsg top",
    "vmsg top --once --sort total",
    "vmsg top --prometheus > /var/lib/node_exporter/vmsg.prom",
  ],
  run: async (options) => {
    const sort = options.choice("sort", SORTS)!;
    const intervalMs = options.number("interval", 0.1, 3600)! * 1000;
    const look = lookAt(options.operands);
    const view: View = { sort, zeros: options.flag("zeros"), paused: false };
    const complain = ({ problems }: Reading) =>
      problems.forEach((problem) => console.error(`vmsg: ${problem}`));
    if (options.flag("json")) console.log(figuresAsJson(look()));
    else if (options.flag("prometheus")) {
      const now = look();
      complain(now);
      console.log(figuresAsPrometheus(now));
    } else if (!options.flag("once") && Deno.stdout.isTerminal() && Deno.stdin.isTerminal()) {
      return await watchFigures(look, view, intervalMs);
    } else {
      const before = look();
      // Nothing moves in the files of those that are gone.
      if (before.instances.some(({ isRunning }) => isRunning)) pause(intervalMs);
      const now = look();
      complain(now);
      for (const line of tableOf(sortFigures(figuresOf(now, before), sort), view.zeros)) {
        console.log(line.trimEnd());
      }
    }
    return 0;
  },
};
