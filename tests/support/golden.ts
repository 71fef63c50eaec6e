/** Texts that a test must give again, letter by letter, in files; VMSG_GOLDEN=write makes them. */

import { assertEquals } from "@std/assert";

/** Compares lines with those of a file. */
export async function assertGolden(file: URL, lines: readonly string[]): Promise<void> {
  const text = lines.join("\n") + "\n";
  if (Deno.env.get("VMSG_GOLDEN") === "write") await Deno.writeTextFile(file, text);
  assertEquals(text.split("\n"), (await Deno.readTextFile(file)).split("\n"));
}
