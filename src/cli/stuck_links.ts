/**
 * Where links stand still, for `vmsg doctor`: told from captures (observe/bring_up.ts), or from what the processes of this
 * machine count (observe/live_link.ts).
 */

import { busOfQueueFile } from "../bus/queue_reader.ts";
import { MONOTONIC } from "../linux/clock.ts";
import { UsageError } from "../linux/errors.ts";
import { fileStatus, openPath } from "../linux/fd.ts";
import { Reactor } from "../linux/reactor.ts";
import { mappedFiles } from "../linux/process_files.ts";
import { readText } from "../linux/sysfs.ts";
import { diagnose } from "../observe/bring_up.ts";
import { type Instance, readAll, type Reading, readPath } from "../observe/figures.ts";
import { diagnoseProcesses, type Process, ringName, type RingState } from "../observe/live_link.ts";
import { isCounterFile } from "../observe/read_counters.ts";
import type { Verdict } from "../observe/verdict.ts";
import { viewOf } from "./process_view.ts";
import { readCaptures } from "./trace.ts";

function verdictsOfCaptures(paths: readonly string[]): Verdict[] {
  // All of them, and by its name the heartbeat, of which else a few are shown.
  return diagnose(readCaptures(paths, "*,malformed,note,HELLO", true));
}

/** How often, and after what time, processes are looked at. */
const MAX_LOOKS = 3;
const LOOK_MS = 500;

/** The rings of a process's devices that can be read. */
function ringsOf(instance: Instance): Map<string, RingState> {
  const rings = new Map<string, RingState>();
  for (const { number, queues } of viewOf(instance, [], 0).devices) {
    for (const { index, ring } of queues) {
      if (ring === undefined || typeof ring === "string" || ring.isMoving) continue;
      const { pending, isUpperBound, indices, problem } = ring;
      const place = Object.entries(indices).filter(([name]) => /^used\.idx|^device's/.test(name));
      rings.set(ringName(number, index), {
        pending: isUpperBound ? undefined : pending,
        used: place.join(),
        isUntouched: indices["avail.idx"] === 0 && indices["used.idx"] === 0,
        problem,
      });
    }
  }
  return rings;
}

/** With what /proc and memory say of it. */
export function withProcess(instance: Instance): Process {
  const { pid, isRunning } = instance;
  const rings = ringsOf(instance);
  if (!isRunning) return { ...instance, isStopped: false, queueFile: undefined, rings };
  const buses = mappedFiles(pid).map(({ path }) => busOfQueueFile(path));
  return {
    ...instance,
    isStopped: /^State:\s*[Tt]/m.test(readText(`/proc/${pid}/status`) ?? ""),
    queueFile: buses.find((bus) => bus !== undefined),
    rings,
  };
}

/** Numbers of processes, files of counters and directories of them; without any, all that this user has. */
function look(operands: readonly string[], nowMs: number): Reading {
  const read = (one: string) =>
    /^\d+$/.test(one) ? readAll(nowMs, Number(one)) : readPath(nowMs, one);
  const readings = operands.length === 0 ? [readAll(nowMs)] : operands.map(read);
  return {
    instances: readings.flatMap(({ instances }) => instances),
    problems: readings.flatMap(({ problems }) => problems),
    atMs: nowMs,
  };
}

/**
 * Looks again a while later, where somebody runs: for what moves meanwhile, and a third time before something is said to be
 * stuck, which could just have been under way.
 */
async function verdictsOfProcesses(operands: readonly string[]): Promise<Verdict[]> {
  const first = look(operands, MONOTONIC.now());
  for (const problem of first.problems) console.error(`vmsg: ${problem}`);
  const before = first.instances.map(withProcess);
  let verdicts = diagnoseProcesses(before, first.atMs);
  const isAnyRunning = before.some(({ isRunning }) => isRunning);
  using reactor = new Reactor(MONOTONIC);
  for (let looks = 1; isAnyRunning && looks < MAX_LOOKS; looks++) {
    await reactor.until(reactor.sleep(LOOK_MS));
    const { instances, atMs } = look(operands, MONOTONIC.now());
    verdicts = diagnoseProcesses(instances.map(withProcess), atMs, before);
    if (verdicts.every(({ stuck }) => stuck === undefined)) break;
  }
  return verdicts;
}

function isOfProcesses(operand: string): boolean {
  if (/^\d+$/.test(operand) || isCounterFile(operand)) return true;
  using fd = openPath(operand);
  return fd !== undefined && fileStatus(fd).kind === "directory";
}

/** Says of captures, or of processes, where each link and device stands; 1 if one is stuck, or there is none to speak of. */
export async function explainLinks(
  operands: readonly string[],
  isLink: boolean,
  isJson: boolean,
): Promise<number> {
  const live = operands.filter(isOfProcesses);
  const isLive = isLink || live.length > 0;
  if (isLive && live.length < operands.length) {
    throw new UsageError("give either captures or processes; see: vmsg doctor --help");
  }
  const verdicts = isLive ? await verdictsOfProcesses(operands) : verdictsOfCaptures(operands);
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
