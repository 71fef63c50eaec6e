/**
 * A FUSE file system of one file, which answers until the file is open and never again: a Worker of
 * descriptor_kinds.ts. Whoever asks the file anything waits until the descriptor of /dev/fuse is closed.
 *
 * Source: include/uapi/linux/fuse.h, protocol 7.31.
 */

import { allocate } from "../../src/linux/arena.ts";
import { libc } from "../../src/linux/libc.ts";

const LOOKUP = 1, GETATTR = 3, OPEN = 14, INIT = 26;
const ROOT = 1;
const FILE = 2;
const OUT_HEADER = 16;
const BUFFER_SIZE = 1 << 17;
const buffer = allocate(BUFFER_SIZE);
const answer = allocate(256);

/** What it is started with. */
export interface FuseStart {
  readonly device: number;
  readonly size: number;
}

/** struct fuse_attr, 88 bytes. */
function putAttributes(at: number, node: number, size: number): void {
  answer.view.setBigUint64(at, BigInt(node), true);
  answer.view.setBigUint64(at + 8, BigInt(size), true);
  answer.view.setUint32(at + 60, node === ROOT ? 0o40755 : 0o100666, true);
  answer.view.setUint32(at + 64, 1, true);
  answer.view.setUint32(at + 80, 4096, true);
}

function serve({ device, size }: FuseStart): void {
  for (let isOpen = false; !isOpen;) {
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
    } else if (operation === GETATTR) {
      length = 104;
      putAttributes(OUT_HEADER + 16, node, size);
    } else if (operation === OPEN) {
      length = 16;
      isOpen = true;
    } else error = -38;
    answer.view.setUint32(0, OUT_HEADER + length, true);
    answer.view.setInt32(4, error, true);
    answer.view.setBigUint64(8, buffer.view.getBigUint64(8, true), true);
    libc.write(device, answer.address, OUT_HEADER + length);
  }
}

const scope = globalThis as unknown as { onmessage: (event: MessageEvent<FuseStart>) => void };
scope.onmessage = ({ data }) => serve(data);
