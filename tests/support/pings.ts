/** What a running ping said (iputils, busybox, `vmsg driver`), looked at from outside. */

import { assert, assertEquals } from "@std/assert";

/** An answer, with the times of `performance.now()` here. */
export interface Answer {
  readonly sequence: number;
  readonly sentMs: number;
  readonly atMs: number;
}

/** The answers in lines that came at those times. */
export function answersIn(lines: Iterable<{ text: string; atMs: number }>): Answer[] {
  return [...lines].flatMap(({ text, atMs }) => {
    const [, sequence, ms] = /\d+ bytes from .*seq=(\d+) .*time=([\d.]+) ms/.exec(text) ?? [];
    if (sequence === undefined) return [];
    return [{ sequence: Number(sequence), sentMs: atMs - Number(ms), atMs }];
  });
}

/**
 * Asserts that of a `vmsg driver` that was ended no ping was lost: all are answered in turn, up to one behind which they were
 * under way when the end came.
 */
export function assertInTurn(stdout: readonly string[], sent: number, received: number): void {
  const sequences = stdout.flatMap((line) => /icmp_seq=(\d+) /.exec(line)?.[1] ?? []).map(Number);
  assertEquals(sequences, Array.from({ length: received }, (_, i) => i + 1));
  assert(sent >= received, `${received} of ${sent}`);
}

/** By how much more than another a line may be read late here, on a machine that has other work to do. */
const READ_LATE_MS = 500;

/**
 * Answers to pings that were sent when there was an answer again. What waited in a ring meanwhile may
 * be answered late, and what was sent in the gap may be lost: neither counts. When a ping was sent is
 * known only by when its answer was read, so those of the first moments do not count either.
 *
 * @param sinceMs when what was missing had been started again
 */
export function sinceReturn(answers: readonly Answer[], sinceMs: number): Answer[] {
  const first = answers.find(({ atMs }) => atMs > sinceMs);
  return first === undefined
    ? []
    : answers.filter(({ sentMs }) => sentMs > first.atMs + READ_LATE_MS);
}

function missing(answers: readonly Answer[]): number {
  const sequences = answers.map(({ sequence }) => sequence);
  return Math.max(...sequences) - Math.min(...sequences) + 1 - new Set(sequences).size;
}

/** Asserts that nothing was lost since the return; the gap and what was lost in it. */
export function assertNoneLostSince(
  answers: readonly Answer[],
  sinceMs: number,
): { gapMs: number; lost: number } {
  assertEquals(missing(sinceReturn(answers, sinceMs)), 0, "pings were lost after it was back");
  const gapMs = Math.max(...answers.slice(1).map(({ atMs }, i) => atMs - answers[i]!.atMs));
  return { gapMs: Math.round(gapMs), lost: missing(answers) };
}
