/** A process half of whose memory is cut off: a child of memory_guard_test.ts. */

import { createSealedMemory, Fd, resizeFile } from "../../src/linux/fd.ts";
import { check, cString, libc } from "../../src/linux/libc.ts";
import { mapShared, PAGE_SIZE } from "../../src/linux/mapping.ts";
import { cutCount, guardMemory, lastCut } from "../../src/linux/memory_guard.ts";

const PAGES = 64;

if (!guardMemory()) throw new Error("no guard");
using other = createSealedMemory("vmsg-test", PAGE_SIZE);
using untouched = mapShared(other.number, PAGE_SIZE);
using file = new Fd(check(libc.memfd_create(cString("vmsg-test"), 0), "memfd_create"));
resizeFile(file, PAGES * PAGE_SIZE);
using mapping = mapShared(file.number, PAGES * PAGE_SIZE);
const bytes = new Uint8Array(mapping.buffer);
bytes.fill(7);
resizeFile(file, PAGES * PAGE_SIZE / 2);
let read = 0;
for (let page = PAGES / 2; page < PAGES; page++) read += bytes[page * PAGE_SIZE + 5]!;
const isLast = lastCut() === mapping.address + BigInt((PAGES - 1) * PAGE_SIZE);
if (!isLast || new Uint8Array(untouched.buffer)[0] !== 0) throw new Error("another page");
console.log(`${cutCount()} of ${PAGES} pages cut, read ${read}, kept ${bytes[PAGE_SIZE]}`);
