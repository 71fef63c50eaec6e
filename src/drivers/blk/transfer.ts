/**
 * Copies between a disk and a file, or compares them: as many pieces at a time as the driver has slots, each straight
 * between the file and the slot. Pieces are independent, so one that is asked for again of the next device does no harm.
 */

import { allocate } from "../../linux/arena.ts";
import { VmsgError } from "../../linux/errors.ts";
import { Fd, O_CLOEXEC } from "../../linux/fd.ts";
import { check, cString, lastError, libc } from "../../linux/libc.ts";
import { SECTOR } from "../../virtio/blk.ts";
import type { Slot } from "../request_driver.ts";
import type { BlkDriver } from "./blk_driver.ts";

/** What is done: from the disk to the file, the other way, or both are compared. */
export type Way = "read" | "write" | "verify";

const O_NONBLOCK = 0o4000;

/** Opens a file that is only read; a pipe in its place is not waited for. */
export function openInput(path: string): Fd {
  return new Fd(check(libc.open(cString(path), O_CLOEXEC | O_NONBLOCK, 0), `open ${path}`));
}

/** What goes between which bytes of the disk and a file. */
export interface Transfer {
  readonly way: Way;
  readonly fd: Fd;
  /** For messages. */
  readonly path: string;
  /** First byte on the disk; the file's is always its first. */
  readonly offset: number;
  readonly length: number;
}

/** @throws VmsgError UNALIGNED, OUT_OF_DISK, READ_ONLY for what cannot be of this disk; DISK_ERROR, DIFFERS; LinuxError */
export async function transfer(driver: BlkDriver, wanted: Transfer): Promise<void> {
  const { way, offset, length } = wanted;
  const { sectors, blockSize, readonly } = await driver.info();
  const { number } = driver.options;
  if (offset % blockSize !== 0 || length % blockSize !== 0) {
    const what = `offset ${offset} and length ${length} have to be multiples of ${blockSize}`;
    throw new VmsgError("UNALIGNED", `${what}, the bytes of a block of device ${number}`);
  }
  if (offset + length > sectors * SECTOR) {
    const what = `${length} bytes from ${offset} on are not on a disk of ${sectors * SECTOR}`;
    throw new VmsgError("OUT_OF_DISK", `device ${number}: ${what}`);
  }
  if (way === "write" && readonly) {
    throw new VmsgError("READ_ONLY", `device ${number} is a disk that is only read`);
  }
  const pieceSize = await driver.pieceSize();
  let next = 0;
  const work = async (slot: Slot) => {
    const { address, bytes } = driver.data(slot);
    const expected = way === "verify" ? allocate(pieceSize) : undefined;
    while (next < length) {
      const at = next;
      const size = Math.min(pieceSize, length - at);
      next += size;
      const sector = (offset + at) / SECTOR;
      if (way === "write") {
        readFile(wanted, address, size, at);
        await driver.write(slot, sector, size);
        continue;
      }
      await driver.read(slot, sector, size);
      if (expected === undefined) writeFile(wanted, address, size, at);
      else {
        readFile(wanted, expected.address, size, at);
        const differs = expected.bytes.subarray(0, size).findIndex((byte, i) => byte !== bytes[i]);
        if (differs < 0) continue;
        const where = `byte ${offset + at + differs} of the disk is not byte ${at + differs} of`;
        throw new VmsgError("DIFFERS", `device ${number}: ${where} ${wanted.path}`);
      }
    }
  };
  await Promise.all(driver.slots.map(work));
}

function readFile({ fd, path }: Transfer, address: bigint, length: number, at: number): void {
  for (let done = 0; done < length;) {
    const left = length - done;
    const got = libc.pread(fd.number, address + BigInt(done), left, BigInt(at + done));
    if (got < 0) throw lastError(`read ${path}`);
    if (got === 0) throw new VmsgError("SHORT_FILE", `${path} ends at byte ${at + done}`);
    done += got;
  }
}

function writeFile({ fd, path }: Transfer, address: bigint, length: number, at: number): void {
  for (let done = 0; done < length;) {
    const left = length - done;
    const put = libc.pwrite(fd.number, address + BigInt(done), left, BigInt(at + done));
    if (put < 0) throw lastError(`write ${path}`);
    done += put;
  }
}
