/**
 * What came of asking a peer for a rule: it keeps it, it breaks it and how, or it cannot be asked and why
 * not. Nothing is left out silently.
 *
 * A rule's body says the latter two by throwing, so that it reads as a list of what must be so.
 */

/** What came of it. */
export type Outcome =
  | { readonly verdict: "passed" }
  | { readonly verdict: "failed" | "not applicable"; readonly reason: string };

/** The peer breaks the rule. */
export class Broken extends Error {
  /** The class, for printing. */
  override readonly name: string = "Broken";
}

/** This peer cannot be asked. */
export class NotApplicable extends Error {
  /** The class, for printing. */
  override readonly name: string = "NotApplicable";
}

/** What must be so. */
export function expect(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new Broken(otherwise);
}

/** Two plain values, or lists of them, that must be the same. */
export function expectSame(actual: unknown, expected: unknown, what: string): void {
  const [is, wanted] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (is !== wanted) throw new Broken(`${what}: ${is} instead of ${wanted}`);
}

/** What must be so for the peer to be asked at all. */
export function require(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new NotApplicable(otherwise);
}

/** Who asks for one rule, by a body that may cover several. */
export class Asker {
  /** @param rule the number of the one that is asked for */
  constructor(readonly rule: string) {}

  /** Two values that must be the same by these rules, if the one that is asked for is among them. */
  claim(rules: string, actual: unknown, expected: unknown, what: string): void {
    if (rules.split(" ").includes(this.rule)) expectSame(actual, expected, what);
  }
}

/** Runs a rule's body. What it throws besides the above is a fault of our own, and goes on. */
export async function outcomeOf(body: () => Promise<void>): Promise<Outcome> {
  try {
    await body();
    return { verdict: "passed" };
  } catch (error) {
    if (error instanceof Broken) return { verdict: "failed", reason: error.message };
    if (error instanceof NotApplicable) return { verdict: "not applicable", reason: error.message };
    throw error;
  }
}
