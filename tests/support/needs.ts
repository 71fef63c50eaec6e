/**
 * Tests that need what not every machine has. Where something is missing the test says so in plain
 * words and is ignored, never passed; a variable of the environment set to "required" makes it
 * fail.
 */

/** Something that a test needs and that is not there. */
export interface Lack {
  /** One line; how to get it. */
  readonly what: string;
  /** The variable that makes it a failure; none where it is the user's choice. */
  readonly requiredBy?: "VMSG_GUEST_TESTS" | "VMSG_COMPILE_TESTS";
}

/** Registers a test, to run if nothing is missing. */
export function testUnless(
  name: string,
  lacks: readonly Lack[],
  fn: () => void | Promise<void>,
): void {
  if (lacks.length === 0) {
    Deno.test(name, fn);
    return;
  }
  const why = lacks.map(({ what }) => what).join("; ");
  const required = lacks.map(({ requiredBy }) => requiredBy)
    .find((variable) => variable !== undefined && Deno.env.get(variable) === "required");
  // A choice of the user's comes before what is required.
  if (required !== undefined && lacks.every(({ requiredBy }) => requiredBy !== undefined)) {
    Deno.test(name, () => {
      throw new Error(`${required}=required, but ${why}`);
    });
    return;
  }
  console.log(`NOT RUN: ${name}: ${why}`);
  Deno.test({ name, ignore: true, fn });
}
