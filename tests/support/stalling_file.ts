/** A file whose writes wait as long as a test likes, as on a disk that stalls; by FUSE, which takes root. */

import { fromFileUrl } from "@std/path";
import type { Lack } from "./needs.ts";
import type { Processes } from "./processes.ts";

function isThere(): boolean {
  try {
    return Deno.uid() === 0 && Deno.statSync("/dev/fuse").isCharDevice === true;
  } catch {
    return false;
  }
}

/** What it takes. */
export const STALLING_LACKS: readonly Lack[] = isThere()
  ? []
  : [{ what: "FUSE takes root and /dev/fuse", requiredBy: "VMSG_GUEST_TESTS" }];

/** See the head of this file. What was written is read elsewhere: in the copy. */
export interface StallingFile extends AsyncDisposable {
  readonly path: string;
  readonly copy: string;
  text(): string;
  /** From now on a write waits. */
  hold(): void;
  /** They go on. */
  release(): void;
}

/** Makes one, empty. Whoever has it open is to be ended before, or its writes released. */
export async function stallingFile(vmsg: Processes): Promise<StallingFile> {
  const mount = `${vmsg.directory}/fuse`;
  const copy = `${vmsg.directory}/copy`;
  const hold = `${copy}.hold`;
  Deno.mkdirSync(mount);
  Deno.writeTextFileSync(copy, "");
  const program = fromFileUrl(new URL("fuse_server.ts", import.meta.url));
  const deno = [Deno.execPath(), "run", "-A", program] as const;
  const server = await vmsg.startProgram(...deno, mount, "0", copy);
  await server.waitFor(/^mounted$/);
  const release = () => {
    try {
      Deno.removeSync(hold);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  };
  return {
    path: `${mount}/file`,
    copy,
    text: () => Deno.readTextFileSync(copy),
    hold: () => Deno.writeTextFileSync(hold, ""),
    release,
    async [Symbol.asyncDispose]() {
      release();
      // Whoever waits is let go when the server ends.
      await server[Symbol.asyncDispose]();
      await new Deno.Command("umount", { args: ["-l", mount] }).output();
    },
  };
}
