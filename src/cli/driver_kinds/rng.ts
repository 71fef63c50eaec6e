/** `vmsg driver --device rng`: bytes of an entropy device, printed or written to a file. */

import { readEntropy, RNG_DRIVER } from "../../drivers/rng.ts";
import { RequestDriver } from "../../drivers/request_driver.ts";
import { EAGAIN, LinuxError } from "../../linux/errors.ts";
import { type Fd, fileStatus, resizeFile } from "../../linux/fd.ts";
import { lastError, libc } from "../../linux/libc.ts";
import { allocate } from "../../linux/arena.ts";
import { openOwnFile } from "../../linux/own_file.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { DriverKind } from "./driver_kind.ts";

/** A pipe that is full is tried again after so long. */
const RETRY_MS = 1;
const LINE = 16;

interface RngSettings {
  readonly bytes: number;
  readonly file: string | undefined;
}

export const rngDriver: DriverKind<RngSettings> = {
  name: "rng",
  usage: "rng[,bytes=N][,file=PATH]",
  help:
    "an entropy device: N bytes of it (64) are printed in hexadecimal, or written to a file, a pipe or " +
    "/dev/stdout as they are",
  keys: ["bytes", "file"],
  parse: (group) => ({ bytes: group.bytes("bytes", 64), file: group.text("file") }),
  open: ({ bytes, file }, { reactor, side, log, options, stack, print }) => {
    const fd = file === undefined ? undefined : stack.use(openOutput(file));
    const driver = stack.use(new RequestDriver(reactor, side, log, { ...options, ...RNG_DRIVER }));
    const piece = allocate(RNG_DRIVER.slotSize);
    let done = 0, hex = "";
    const take = async (bytes: Uint8Array) => {
      // A copy: what is shared may be written still.
      piece.bytes.set(bytes);
      const { length } = bytes;
      if (fd === undefined) {
        hexLines(piece.bytes.subarray(0, length), done).forEach(print);
        hex += piece.bytes.subarray(0, length).toHex();
      } else await writeAll(reactor, fd, piece.address, length, file!);
      done += length;
    };
    return {
      isKnown: () => driver.ringSize > 0,
      run: async () => {
        await readEntropy(driver, bytes, take);
        if (file !== undefined) log.info(`${done} bytes written to ${file}`);
        const data = fd === undefined ? { hex } : { file };
        return { device: options.number, bytes: done, ...data };
      },
    };
  },
};

function openOutput(path: string): Fd {
  const { fd } = openOwnFile(path, { what: "file", mayBePipe: true, mayBeDevice: true });
  if (fileStatus(fd).kind === "file") resizeFile(fd, 0, path);
  return fd;
}

/** What was opened here does not block: a pipe may be full. */
async function writeAll(
  reactor: Reactor,
  fd: Fd,
  address: bigint,
  length: number,
  path: string,
): Promise<void> {
  for (let done = 0; done < length;) {
    const put = libc.write(fd.number, address + BigInt(done), length - done);
    if (put >= 0) {
      done += put;
      continue;
    }
    const error = lastError(`write ${path}`);
    if (!(error instanceof LinuxError) || error.errno !== EAGAIN) throw error;
    await reactor.sleep(RETRY_MS);
  }
}

/** As `od -An -tx1` has them, behind where they are. A line may be short where a piece ends. */
function hexLines(bytes: Uint8Array, at: number): string[] {
  const lines: string[] = [];
  for (let i = 0; i < bytes.length; i += LINE) {
    const line = Array.from(
      bytes.subarray(i, i + LINE),
      (byte) => byte.toString(16).padStart(2, "0"),
    );
    lines.push(`${(at + i).toString(16).padStart(8, "0")}  ${line.join(" ")}`);
  }
  return lines;
}
