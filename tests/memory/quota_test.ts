/** What drivers may have this process map, and what is refused. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { softLimit } from "../../src/linux/limits.ts";
import { memoryLimits, MemoryQuota } from "../../src/memory/mod.ts";

const GIB = 2 ** 30;

Deno.test("quota: bytes and regions of a device number, bytes of all of them", () => {
  const quota = new MemoryQuota({ size: 4 * GIB, regions: 3, total: 6 * GIB, pinned: GIB });
  assertEquals(quota.refusal([GIB, 3 * GIB], [4 * GIB]), undefined);
  quota.mapped(4 * GIB);
  assertStringIncludes(quota.refusal([4 * GIB, 1], [1])!, `at most ${4 * GIB} are taken of one`);
  assertStringIncludes(quota.refusal([1, 1, 1, 1], [1])!, "4 regions");
  assertEquals(quota.refusal([2 * GIB], [2 * GIB]), undefined);
  assertStringIncludes(quota.refusal([3 * GIB], [3 * GIB])!, `besides ${4 * GIB} of all devices`);
  quota.unmapped(4 * GIB);
  assertEquals(quota.refusal([3 * GIB], [3 * GIB]), undefined);
  // What no mapping can have: sizes come as Numbers, inexact above 2^53.
  for (const size of [2 ** 64, Infinity, NaN]) assert(quota.refusal([size], [size]) !== undefined);
});

Deno.test("quota: regions leave half of the open files to others", () => {
  const half = Math.floor(softLimit("open files") / 2);
  const quota = new MemoryQuota();
  for (let i = 1; i < half; i++) quota.mapped(1);
  assertEquals(quota.refusal([1], [1]), undefined);
  assertStringIncludes(quota.refusal([1, 1], [1, 1])!, "ulimit -n");
  quota.unmapped(1);
  assertEquals(quota.refusal([1, 1], [1, 1]), undefined);
});

Deno.test("quota: by default a guest may have as much as the machine, and not less than several GiB of it is pinned", () => {
  const { size, regions, total, pinned } = memoryLimits();
  const meminfo = Deno.readTextFileSync("/proc/meminfo");
  const machine = 1024 * Number(/^MemTotal: +(\d+) kB/m.exec(meminfo)![1]);
  assertEquals(size, Math.max(machine, 4 * GIB));
  assertEquals(regions, 64);
  assertEquals([total, pinned], [Math.max(4 * machine, size), Math.floor(0.75 * machine)]);
  assertEquals(memoryLimits({ size: 8 * size }).total, 8 * size);
});
