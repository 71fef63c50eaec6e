/**
 * Where links stand still, for `vmsg doctor`: told from captures (observe/bring_up.ts), or from what the processes of this
 * machine count (observe/live_link.ts).
 */

import { busOfQueueFile } from "../bus/queue_reader.ts";
import { MONOTONIC } from "../linux/clock.ts";
import { UsageError } from "../linux/errors.ts";
import { fileStatus, openPath } from "../linux/fd.ts";
import { mappedFiles } from "../linux/process_files.ts";
import { readText } from "../linux/sysfs.ts";
import { diagnose, type Verdict } from "../observe/bring_up.ts";
import { type Instance, readAll, readPath } from "../observe/figures.ts";
import { diagnoseProcesses, type Process } from "../observe/live_link.ts";
import { isCounterFile } from "../observe/read_counters.ts";
import { readCaptures } from "./trace.ts";

function verdictsOfCaptures(paths: readonly string[]): Verdict[] {
  const lines: string[] = [];
  // All of them, and by its name the heartbeat, of which else a few are shown.
  readCaptures(paths, "*,malformed,HELLO", true, (line) => lines.push(line));
  return diagnose(lines);
}

function withProcess(instance: Instance): Process {
  const { pid, isRunning } = instance;
  if (!isRunning) return { ...instance, isStopped: false, queueFile: undefined };
  const buses = mappedFiles(pid).map(({ path }) => busOfQueueFile(path));
  return {
    ...instance,
    isStopped: /^State:\s*[Tt]/m.test(readText(`/proc/${pid}/status`) ?? ""),
    queueFile: buses.find((bus) => bus !== undefined),
  };
}

/** Numbers of processes, files of counters and directories of them; without any, all that this user has. */
function verdictsOfProcesses(operands: readonly string[]): Verdict[] {
  const nowMs = MONOTONIC.now();
  const read = (one: string) =>
    /^\d+$/.test(one) ? readAll(nowMs, Number(one)) : readPath(nowMs, one);
  const readings = operands.length === 0 ? [readAll(nowMs)] : operands.map(read);
  for (const problem of readings.flatMap(({ problems }) => problems)) {
    console.error(`vmsg: ${problem}`);
  }
  const processes = readings.flatMap(({ instances }) => instances).map(withProcess);
  return diagnoseProcesses(processes, nowMs);
}

function isOfProcesses(operand: string): boolean {
  if (/^\d+$/.test(operand) || isCounterFile(operand)) return true;
  using fd = openPath(operand);
  return fd !== undefined && fileStatus(fd).kind === "directory";
}

/** Says of captures, or of processes, where each link and device stands; 1 if one is stuck, or there is none to speak of. */
export function explainLinks(
  operands: readonly string[],
  isLink: boolean,
  isJson: boolean,
): number {
  const live = operands.filter(isOfProcesses);
  const isLive = isLink || live.length > 0;
  if (isLive && live.length < operands.length) {
    throw new UsageError("give either captures or processes; see: vmsg doctor --help");
  }
  const verdicts = isLive ? verdictsOfProcesses(operands) : verdictsOfCaptures(operands);
  const isNothing = verdicts.length === 0;
  const isStuck = verdicts.some(({ stuck }) => stuck !== undefined);
  if (isJson) console.log(JSON.stringify(verdicts, undefined, 2));
  else {
    for (const { subject, seen, stuck } of verdicts) {
      console.log(`${subject}: ${stuck === undefined ? "runs" : `stuck: ${stuck.step}`}`);
      console.log(`  seen: ${seen}`);
      if (stuck === undefined) continue;
      console.log(
        `  whose turn: the ${stuck.owes.replace("either side", "one side or the other")}`,
      );
      console.log(`  likely: ${stuck.likely}`);
    }
    if (isNothing) console.log("there is no process with a bus");
    else if (!isStuck) console.log("nothing is stuck");
  }
  return isStuck || isNothing ? 1 : 0;
}
