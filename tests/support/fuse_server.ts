/**
 * A FUSE file system of one file, which answers until the file is open and never again: a process of
 * descriptor_kinds.ts, started with a directory and the file's size. Whoever asks the file anything waits until this
 * process ends, which it does by itself: such a wait cannot be ended from outside.
 *
 * Given the path of a copy as well (stalling_file.ts), it answers on, and puts what is written there. A write waits while there is a
 * file COPY.hold, and so does all that is asked after it.
 *
 * Source: include/uapi/linux/fuse.h, protocol 7.31.
 */

import { allocate } from "../../src/linux/arena.ts";
import { openFile, setInherited } from "../../src/linux/fd.ts";
import { libc } from "../../src/linux/libc.ts";
import { existsSync } from "node:fs";

const LOOKUP = 1, GETATTR = 3, SETATTR = 4, OPEN = 14, WRITE = 16, RELEASE = 18, INIT = 26;
const ROOT = 1;
const FILE = 2;
const OUT_HEADER = 16;
/** fuse_in_header and fuse_write_in: where the data of a write is. */
const WRITTEN = 80;
const BUFFER_SIZE = 1 << 17;
const buffer = allocate(BUFFER_SIZE);
const answer = allocate(256);

/** How long it lives. */
const LIFE_MS = 300_000;
const HELD_MS = 10;

/** struct fuse_attr, 88 bytes. */
function putAttributes(at: number, node: number, size: number): void {
  answer.view.setBigUint64(at, BigInt(node), true);
  answer.view.setBigUint64(at + 8, BigInt(size), true);
  answer.view.setUint32(at + 60, node === ROOT ? 0o40755 : 0o100600, true);
  answer.view.setUint32(at + 64, 1, true);
  answer.view.setUint32(at + 80, 4096, true);
}

/** Puts what a write brings into the copy; how much it is. */
function write(copy: string): number {
  for (const endMs = Date.now() + LIFE_MS; existsSync(`${copy}.hold`) && Date.now() < endMs;) {
    libc.poll(0n, 0n, HELD_MS);
  }
  const size = buffer.view.getUint32(56, true);
  using file = Deno.openSync(copy, { write: true, create: true });
  file.seekSync(Number(buffer.view.getBigUint64(48, true)), Deno.SeekMode.Start);
  file.writeSync(buffer.bytes.slice(WRITTEN, WRITTEN + size));
  return size;
}

function serve(device: number, bytes: number, copy: string | undefined): void {
  let size = bytes;
  for (let isOpen = false; !isOpen || copy !== undefined;) {
    if (libc.read(device, buffer.address, BUFFER_SIZE) <= 0) return;
    const operation = buffer.view.getUint32(4, true);
    const node = buffer.view.getUint32(16, true);
    answer.bytes.fill(0);
    let [length, error] = [0, 0];
    if (operation === INIT) {
      length = 64;
      [7, 31].forEach((n, i) => answer.view.setUint32(OUT_HEADER + 4 * i, n, true));
      answer.view.setUint32(OUT_HEADER + 20, 4096, true);
    } else if (operation === LOOKUP) {
      length = 128;
      answer.view.setBigUint64(OUT_HEADER, BigInt(FILE), true);
      putAttributes(OUT_HEADER + 40, FILE, size);
    } else if (operation === GETATTR || operation === SETATTR) {
      length = 104;
      putAttributes(OUT_HEADER + 16, node, size);
    } else if (operation === OPEN) {
      length = 16;
      isOpen = true;
    } else if (operation === WRITE && copy !== undefined) {
      length = 8;
      const count = write(copy);
      answer.view.setUint32(OUT_HEADER, count, true);
      size = Math.max(size, Number(buffer.view.getBigUint64(48, true)) + count);
    } else if (operation !== RELEASE) error = -38;
    answer.view.setUint32(0, OUT_HEADER + length, true);
    answer.view.setInt32(4, error, true);
    answer.view.setBigUint64(8, buffer.view.getBigUint64(8, true), true);
    libc.write(device, answer.address, OUT_HEADER + length);
  }
}

const [mount, size, copy] = Deno.args;
using device = openFile("/dev/fuse");
setInherited(device, true);
const options = `fd=${device.number},rootmode=40000,user_id=0,group_id=0,allow_other`;
const args = ["-i", "-t", "fuse", "-o", options, "none", mount!];
const { success, stderr } = await new Deno.Command("mount", { args }).output();
console.log(success ? "mounted" : new TextDecoder().decode(stderr));
if (success) {
  serve(device.number, Number(size), copy);
  libc.poll(0n, 0n, LIFE_MS);
}
