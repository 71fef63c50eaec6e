/**
 * What came of asking a peer for a rule: it keeps it, it breaks it and how, or it cannot be asked and why
 * not. Nothing is left out silently.
 *
 * A rule's body says the latter two by throwing, so that it reads as a list of what must be so.
 */

export type Outcome =
  | { readonly verdict: "passed" }
  | { readonly verdict: "failed" | "not applicable"; readonly reason: string };

/** The end of a body before its end. */
class Ended extends Error {
  constructor(readonly verdict: "failed" | "not applicable", readonly reason: string) {
    super(reason);
  }
}

/** What must be so: otherwise the peer breaks the rule. */
export function expect(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new Ended("failed", otherwise);
}

export function expectSame(actual: unknown, expected: unknown, what: string): void {
  const [is, wanted] = [JSON.stringify(actual), JSON.stringify(expected)];
  expect(is === wanted, `${what}: ${is} instead of ${wanted}`);
}

/** What must be so for the peer to be asked at all. */
export function require(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new Ended("not applicable", otherwise);
}

/** Runs a rule's body. What it throws besides the above is a fault of our own, and goes on. */
export async function outcomeOf(body: () => Promise<void>): Promise<Outcome> {
  try {
    await body();
    return { verdict: "passed" };
  } catch (error) {
    if (!(error instanceof Ended)) throw error;
    return { verdict: error.verdict, reason: error.reason };
  }
}
