/** The demos fetch what they need: with an empty cache directory all of it is on the list. */

import { assertEquals } from "@std/assert";
import { missingSteps } from "../../scripts/lab/prepare.ts";
import { openKeeper } from "../../src/cli/keeper.ts";

Deno.test("prepare: an arm64 machine with an empty cache needs guests, libraries and QEMU", async () => {
  await using keeper = await openKeeper();
  const before = Deno.env.get("XDG_CACHE_HOME");
  Deno.env.set("XDG_CACHE_HOME", keeper.directory);
  try {
    const steps = await missingSteps({ kinds: ["arm64"], arm64Libraries: true, arm64Qemu: true });
    assertEquals(steps.map(({ what }) => what), [
      "kernels and programs for guests (arm64)",
      "qemu-user-static, and for arm64 libc6 and libgcc-s1",
      "",
    ]);
  } finally {
    if (before === undefined) Deno.env.delete("XDG_CACHE_HOME");
    else Deno.env.set("XDG_CACHE_HOME", before);
  }
});
