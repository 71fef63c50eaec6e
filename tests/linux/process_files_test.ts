import { assertEquals } from "@std/assert";
import { createSealedMemory, fileIdentity } from "../../src/linux/fd.ts";
import { check, libc } from "../../src/linux/libc.ts";
import { mapAnonymous, mapShared, PAGE_SIZE } from "../../src/linux/mapping.ts";
import { fileAt, mapsPrivately, openFileOf } from "../../src/linux/process_files.ts";
import { cleanTest } from "../support/leaks.ts";

const MAP_PRIVATE = 2, MAP_FIXED = 0x10;
/** Each of every second page; some 50 bytes of text. */
const MAPPINGS = 16_000;

cleanTest("a mapping for itself alone is found, but not behind any number of others", () => {
  using file = createSealedMemory("vmsg-test-maps", PAGE_SIZE);
  const size = BigInt(PAGE_SIZE);
  // One behind the others for certain: in the last page of the same place.
  using many = mapAnonymous((MAPPINGS + 1) * PAGE_SIZE);
  const address = many.address + BigInt(MAPPINGS * PAGE_SIZE);
  assertEquals(libc.mmap(address, size, 1, MAP_PRIVATE | MAP_FIXED, file.number, 0n), address);
  const isFound = () => mapsPrivately(Deno.pid, file, Number(address));
  assertEquals(isFound(), true);
  for (let page = 0; page < MAPPINGS; page += 2) {
    check(libc.mprotect(many.address + BigInt(page * PAGE_SIZE), size, 1), "mprotect");
  }
  assertEquals(isFound(), false);
  // All alike they are one again.
  check(libc.mprotect(many.address, size * BigInt(MAPPINGS), 1), "mprotect");
  assertEquals(isFound(), true);
});

cleanTest("the file that is mapped at an address, though it has no name", () => {
  using file = createSealedMemory("vmsg-test-at", 2 * PAGE_SIZE);
  using mapping = mapShared(file.number, PAGE_SIZE, PAGE_SIZE);
  const found = fileAt(Number(mapping.address) + 5);
  assertEquals(found, { identity: fileIdentity(file), offset: PAGE_SIZE + 5 });
  using again = openFileOf(found!.identity, Deno.pid);
  assertEquals(again && fileIdentity(again), fileIdentity(file));
  using anonymous = mapAnonymous(PAGE_SIZE);
  assertEquals(fileAt(Number(anonymous.address)), undefined);
  assertEquals(openFileOf("0:1", Deno.pid), undefined);
});
