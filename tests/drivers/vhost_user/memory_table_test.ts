/** A front end's memory table: what it shows once more stays, what it shows no more goes when nobody needs it. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { MemoryTable } from "../../../src/drivers/vhost_user/memory_table.ts";
import { createSealedMemory, Fd, openFile, resizeFile } from "../../../src/linux/fd.ts";
import { check, cString, libc } from "../../../src/linux/libc.ts";
import { MemoryQuota } from "../../../src/memory/mod.ts";
import { cleanTest } from "../../support/leaks.ts";

const O_RDWR = 2;
const SIZE = 0x10000;
const USER = 0x7f00_0000_0000;

const region = (guestAddress: number, fileOffset = 0, size = SIZE) => ({
  guestAddress,
  size,
  userAddress: USER + guestAddress,
  fileOffset,
});

/** As a front end sends it: the same file, another descriptor. */
function copy(fd: Fd): Fd {
  return openFile(`/proc/self/fd/${fd.number}`, O_RDWR);
}

/** How many mappings this process has of files with that name. */
function mappings(name: string): number {
  const lines = Deno.readTextFileSync("/proc/self/maps").split("\n");
  return lines.filter((line) => line.includes(name)).length;
}

cleanTest("memory table: a region that is shown again is looked at, and not mapped", () => {
  const name = "vmsg-test-table";
  using file = createSealedMemory(name, 2 * SIZE);
  using table = new MemoryTable();
  table.set([region(0)], [copy(file)]);
  const [first] = table.regions;
  assertEquals(mappings(name), 1);
  const fds = [copy(file), copy(file)];
  const [again, other] = fds;
  table.set([region(0), region(SIZE, SIZE)], fds);
  assert(table.regions[0] === first);
  assertEquals(mappings(name), 2);
  // What was not needed is still the message's, which closes it.
  assertEquals(fds, [again]);
  again![Symbol.dispose]();
  assert(table.regions[1]!.fd === other);
  // The same place in the guest, but other bytes.
  const moved = [copy(file)];
  table.set([region(0, SIZE)], moved);
  assertEquals(moved, []);
  assert(table.regions[0] !== first);
  assertEquals(table.regions.length, 1);
});

cleanTest("memory table: a region that is added, or removed, once more changes nothing", () => {
  const name = "vmsg-test-twice";
  using file = createSealedMemory(name, 2 * SIZE);
  using other = createSealedMemory("vmsg-test-thrice", SIZE);
  using table = new MemoryTable();
  table.add(region(0), [copy(file)]);
  const [first] = table.regions;
  const again = [copy(file)];
  table.add(region(0), again);
  assertEquals([table.regions, mappings(name), again.length], [[first], 1, 1]);
  // The same place, but other bytes.
  const fds = [copy(file), copy(other)];
  assertThrows(() => table.add(region(0, SIZE), [fds[0]!]), RangeError, "overlap");
  assertThrows(() => table.add(region(0), [fds[1]!]), RangeError, "overlap");
  for (let time = 0; time < 2; time++) table.remove(region(0));
  assertEquals(table.regions, []);
  again[0]![Symbol.dispose]();
});

cleanTest("memory table: another file of the same shape is another region", () => {
  using one = createSealedMemory("vmsg-test-one", SIZE);
  using two = createSealedMemory("vmsg-test-two", SIZE);
  using table = new MemoryTable();
  table.set([region(0)], [copy(one)]);
  const [first] = table.regions;
  table.set([region(0)], [copy(two)]);
  assert(table.regions[0] !== first);
});

cleanTest("memory table: what it does not hold is closed as soon as nobody needs it", () => {
  const name = "vmsg-test-unused";
  using file = createSealedMemory(name, SIZE);
  using table = new MemoryTable();
  table.set([region(0)], [copy(file)]);
  const [first] = table.regions;
  table.remove(region(0));
  const asked: unknown[] = [];
  table.closeUnused((one) => {
    asked.push(one);
    return false;
  });
  assertEquals([asked.length, asked[0] === first, mappings(name)], [1, true, 1]);
  table.closeUnused(() => true);
  assertEquals(mappings(name), 0);
});

cleanTest(
  "memory table: what is too much is refused before anything is mapped, whoever has the rest",
  () => {
    const name = "vmsg-test-quota";
    using file = createSealedMemory(name, 4 * SIZE);
    const quota = new MemoryQuota({ size: 3 * SIZE, regions: 2, total: 4 * SIZE, pinned: 0 });
    using table = new MemoryTable(undefined, quota);
    const refused = (act: (fds: Fd[]) => void, count: number, why: string) => {
      const fds = Array.from({ length: count }, () => copy(file));
      assertThrows(() => act(fds), RangeError, why);
      // They are the message's, which closes them.
      assertEquals(fds.length, count);
      for (const fd of fds) fd[Symbol.dispose]();
    };
    const whole = { ...region(0), size: 4 * SIZE };
    refused((fds) => table.set([whole], fds), 1, `shows ${4 * SIZE} bytes of memory`);
    refused((fds) => table.set([region(0), region(SIZE), region(2 * SIZE)], fds), 3, "3 regions");
    assertEquals(mappings(name), 0);
    table.set([region(0), region(SIZE)], [copy(file), copy(file)]);
    refused((fds) => table.add(region(2 * SIZE), fds), 1, "3 regions");
    // Another front end's.
    const other = new MemoryTable(undefined, quota);
    refused((fds) => other.set([{ ...region(0), size: 3 * SIZE }], fds), 1, "of all devices");
    other.set([region(0), region(SIZE)], [copy(file), copy(file)]);
    // One that is replaced by itself is no more than before.
    const same = [copy(file), copy(file)];
    table.set([region(0), region(SIZE)], same);
    for (const fd of same) fd[Symbol.dispose]();
    other[Symbol.dispose]();
    table.set([{ ...region(0), size: 2 * SIZE }], [copy(file)]);
    assertEquals(mappings(name), 3);
  },
);

cleanTest("memory table: user addresses become those on the bus, or are told to be none", () => {
  using file = createSealedMemory("vmsg-test-user", SIZE);
  using table = new MemoryTable();
  assertThrows(() => table.busAddress(0, USER), Error, "the front end shares no memory");
  table.add({ ...region(0x4000), userAddress: USER }, [copy(file)]);
  assertEquals(table.busAddress(0, USER + 0x123), 0x4123);
  assertEquals(table.busAddress(0, USER + SIZE - 1), 0x4000 + SIZE - 1);
  for (const address of [USER - 1, USER + SIZE, 0]) {
    assertThrows(() => table.busAddress(3, address), Error, "ring 3 lies outside the memory");
  }
  const more = [copy(file)];
  assertThrows(() => table.add(region(0x4000), more), RangeError, "overlap");
  assertEquals(table.regions.length, 1);
});

cleanTest(
  "memory table: memory that is cut off is told of every guest, not of the last one only",
  () => {
    const name = cString("vmsg-test-cut");
    using file = new Fd(check(libc.memfd_create(name, 0), "memfd_create"));
    resizeFile(file, 2 * SIZE);
    using table = new MemoryTable();
    table.set([region(0, SIZE)], [copy(file)]);
    const { memory } = table.regions[0]!;
    const elsewhere = memory.address + BigInt(memory.size);
    assertEquals([table.isCut(elsewhere), table.isCut(memory.address)], [false, true]);
    // Behind what it shows, and then in it.
    resizeFile(file, 2 * SIZE + 4096);
    assertEquals(table.isCut(elsewhere), false);
    resizeFile(file, SIZE + 4096);
    assertEquals(table.isCut(elsewhere), true);
  },
);
