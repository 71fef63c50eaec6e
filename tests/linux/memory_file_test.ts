/** Which files are taken for memory. */

import { assertEquals } from "@std/assert";
import { createSealedMemory, Fd, resizeFile } from "../../src/linux/fd.ts";
import { check, cString, libc } from "../../src/linux/libc.ts";
import { assertMemoryFile, takeMemoryFiles } from "../../src/linux/memory_file.ts";

Deno.test("memory files: that one can be cut off is told when the first such comes, once", () => {
  using sealed = createSealedMemory("vmsg-test", 4096);
  using unsealed = new Fd(check(libc.memfd_create(cString("vmsg-test"), 0), "memfd_create"));
  resizeFile(unsealed, 4096);
  let told = 0;
  takeMemoryFiles("memory", () => told++);
  try {
    assertMemoryFile(sealed);
    assertEquals(told, 0);
    assertMemoryFile(unsealed);
    assertMemoryFile(unsealed);
    assertEquals(told, 1);
  } finally {
    takeMemoryFiles("memory");
  }
});
