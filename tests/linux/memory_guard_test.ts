/** Memory that is cut off under a process: a child's, because whatever goes wrong ends it. */

import { assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";

Deno.test({
  name: "memory guard: pages that are cut off read as zeros and end nobody, huge pages too",
  ignore: Deno.build.arch !== "x86_64",
  fn: async () => {
    const program = fromFileUrl(new URL("memory_guard_child.ts", import.meta.url));
    const child = new Deno.Command(Deno.execPath(), { args: ["run", "-A", program] });
    const { code, stdout } = await child.output();
    assertEquals([code, new TextDecoder().decode(stdout)], [
      0,
      "32 of 64 pages cut, read 0, kept 7\n",
    ]);
  },
});
