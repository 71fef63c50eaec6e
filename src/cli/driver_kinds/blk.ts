/** `vmsg driver --device blk`: what a disk is, and copies between it and a file. */

import { BlkDriver, type DiskInfo } from "../../drivers/blk/blk_driver.ts";
import { openInput, transfer, type Way } from "../../drivers/blk/transfer.ts";
import { VmsgError } from "../../linux/errors.ts";
import { type Fd, fileSize, fileStatus, resizeFile } from "../../linux/fd.ts";
import { openOwnFile } from "../../linux/own_file.ts";
import { SECTOR } from "../../virtio/blk.ts";
import type { DriverKind } from "./driver_kind.ts";

interface BlkSettings {
  /** Undefined: the disk is only asked what it is. */
  readonly transfer: { readonly way: Way; readonly path: string } | undefined;
  readonly offset: number;
  readonly length: number | undefined;
  readonly flush: boolean;
}

const WAYS: readonly Way[] = ["read", "write", "verify"];
const DONE: Readonly<Record<Way, string>> = {
  read: "read to",
  write: "written from",
  verify: "the same as in",
};

export const blkDriver: DriverKind<BlkSettings> = {
  name: "blk",
  usage: "blk[,read=FILE|,write=FILE|,verify=FILE][,offset=N][,length=N][,flush]",
  help:
    "a disk: what it is; with a file, bytes from offset (0) on are read to it, written from it or compared " +
    "with it, up to the disk's end or as many as the file has; what was written is flushed, and with flush what others wrote",
  keys: [...WAYS, "offset", "length", "flush"],
  parse: (group) => {
    const ways = WAYS.filter((way) => group.text(way) !== undefined);
    if (ways.length > 1) throw group.error("give one of read=, write= and verify=");
    const [way] = ways;
    for (const key of ["offset", "length"]) {
      if (way === undefined && group.text(key) !== undefined) {
        throw group.error(`${key}= goes with read=, write= or verify=`);
      }
    }
    return {
      transfer: way && { way, path: group.required(way) },
      offset: group.bytes("offset", 0),
      length: group.text("length") === undefined ? undefined : group.bytes("length"),
      flush: group.flag("flush", way === "write"),
    };
  },
  open: (settings, { reactor, side, log, options, stack, print }) => {
    const { transfer: wanted, offset, flush } = settings;
    const fd = wanted && stack.use(openFor(wanted.way, wanted.path));
    const driver = stack.use(new BlkDriver(reactor, side, log, options));
    return {
      isKnown: () => driver.ringSize > 0,
      run: async () => {
        const info = await driver.info();
        const slot = driver.slots[0]!;
        const serial = await driver.serial(slot);
        for (const line of describe(options.number, info, serial)) print(line);
        const bytes = info.sectors * SECTOR;
        let length = 0;
        if (wanted !== undefined) {
          const { way, path } = wanted;
          const rest = way === "read" ? Math.max(0, bytes - offset) : fileSize(fd!);
          length = settings.length ?? rest;
          await transfer(driver, { way, path, fd: fd!, offset, length });
        }
        if (flush) await driver.flush(slot);
        if (wanted !== undefined) print(`${length} bytes ${DONE[wanted.way]} ${wanted.path}`);
        const { blockSize, readonly, features } = info;
        const disk = { bytes, blockSize, readonly, serial, features };
        return { device: options.number, ...disk, transferred: length };
      },
    };
  },
};

function openFor(way: Way, path: string): Fd {
  if (way === "read") {
    const { fd } = openOwnFile(path, { what: "file" });
    resizeFile(fd, 0, path);
    return fd;
  }
  const fd = openInput(path);
  const { kind } = fileStatus(fd);
  if (kind === "file" || kind === "block device") return fd;
  fd[Symbol.dispose]();
  throw new VmsgError("NO_FILE", `${path} is neither a file nor a block device`);
}

function describe(number: number, info: DiskInfo, serial: string | undefined): string[] {
  const { sectors, blockSize, readonly, features } = info;
  const size = `${sectors * SECTOR} bytes in blocks of ${blockSize}`;
  const name = serial === undefined
    ? "no serial number"
    : `serial number ${JSON.stringify(serial)}`;
  return [
    `device ${number}: a disk of ${size}, ${readonly ? "only read, " : ""}${name}`,
    `features ${features.join(" ")}`,
  ];
}
