/**
 * Huge pages and where they lie. The pool is the machine's, so the test asks the kernel for some more and
 * gives them back; where it may not or gets none, it is not run.
 */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { allocateHugePages, HUGE_PAGE_SIZE } from "../../src/linux/huge_pages.ts";
import { cleanTest } from "../support/leaks.ts";
import { growPool } from "../support/huge_pages.ts";
import { testUnless } from "../support/needs.ts";

const FREE = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const PAGES = 4;

/** Those that this process has. */
function held(): number {
  const text = Deno.readTextFileSync("/proc/self/status");
  return 1024 * Number(/^HugetlbPages:\s+(\d+) kB$/m.exec(text)![1]) / HUGE_PAGE_SIZE;
}

/** Why they cannot be had here. */
function lacking(): string | undefined {
  try {
    using _pool = growPool(PAGES);
    if (Number(Deno.readTextFileSync(FREE)) >= PAGES) return undefined;
    return "huge pages: the kernel has none to give";
  } catch (error) {
    return `huge pages: the pool cannot be changed here (${(error as Error).message})`;
  }
}

const what = lacking();
const lacks = what === undefined ? [] : [{ what }];

testUnless(
  "huge pages: they are taken, lie where the kernel says, and are given back",
  lacks,
  () => {
    using _pool = growPool(PAGES);
    const before = held();
    {
      // Rounded up.
      using pages = allocateHugePages(2 * HUGE_PAGE_SIZE + 1);
      const { mapping, runs } = pages;
      assertEquals(mapping.size, 3 * HUGE_PAGE_SIZE);
      assertEquals(held(), before + 3);
      let offset = 0;
      for (const run of runs) {
        assertEquals(run.offset, offset);
        assertEquals([run.physical % HUGE_PAGE_SIZE, run.length % HUGE_PAGE_SIZE], [0, 0]);
        assert(run.physical > 0 && run.length > 0);
        offset += run.length;
      }
      assertEquals(offset, mapping.size);
      // Neighbours are joined, and no two runs overlap.
      for (const [i, { physical, length }] of runs.entries()) {
        assert(runs[i + 1]?.physical !== physical + length);
        const others = runs.filter((_, j) => j !== i);
        assert(others.every((o) => o.physical >= physical + length || o.physical < physical));
      }
      const bytes = new Uint8Array(mapping.buffer);
      assert(bytes.every((byte) => byte === 0));
      bytes.fill(1);
    }
    assertEquals(held(), before);
  },
);

cleanTest("huge pages: more than there are is told with how to get them", () => {
  const error = assertThrows(() => allocateHugePages(1024 ** 4), VmsgError);
  assertMatch(error.message, /^524288 free huge pages of 2 MiB are needed: echo 524288 > /);
});
