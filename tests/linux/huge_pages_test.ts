/**
 * Huge pages and where they lie. The pool is the machine's, so the test asks the kernel for some more and
 * gives them back; where it may not or gets none, it is not run.
 */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { allocateHugePages, HUGE_PAGE_SIZE } from "../../src/linux/huge_pages.ts";
import { cleanTest } from "../support/leaks.ts";
import { testUnless } from "../support/needs.ts";

const POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const PAGES = 4;

const read = (name: string) => Number(Deno.readTextFileSync(`${POOL}/${name}`));

/** Makes the pool larger until it is disposed; a string says why it cannot be. */
function growPool(): Disposable | string {
  let before: number;
  try {
    before = read("nr_hugepages");
    Deno.writeTextFileSync(`${POOL}/nr_hugepages`, `${before + PAGES}`);
  } catch (error) {
    return `huge pages: the pool cannot be changed here (${(error as Error).message})`;
  }
  const restore = () => Deno.writeTextFileSync(`${POOL}/nr_hugepages`, `${before}`);
  if (read("free_hugepages") >= PAGES) return { [Symbol.dispose]: restore };
  restore();
  return "huge pages: the kernel has none to give";
}

function grownPool(): Disposable {
  const pool = growPool();
  if (typeof pool === "string") throw new Error(pool);
  return pool;
}

const probe = growPool();
const lacks = typeof probe === "string" ? [{ what: probe }] : [];
if (typeof probe !== "string") probe[Symbol.dispose]();

testUnless(
  "huge pages: they are taken, lie where the kernel says, and are given back",
  lacks,
  () => {
    using _pool = grownPool();
    const free = read("free_hugepages");
    {
      // Rounded up.
      using pages = allocateHugePages(2 * HUGE_PAGE_SIZE + 1);
      const { mapping, runs } = pages;
      assertEquals(mapping.size, 3 * HUGE_PAGE_SIZE);
      assertEquals(read("free_hugepages"), free - 3);
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
    assertEquals(read("free_hugepages"), free);
  },
);

cleanTest("huge pages: more than there are is told with how to get them", () => {
  const error = assertThrows(() => allocateHugePages(1024 ** 4), VmsgError);
  assertMatch(error.message, /^524288 free huge pages of 2 MiB are needed: echo 524288 > /);
});
