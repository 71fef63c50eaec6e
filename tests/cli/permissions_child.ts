/**
 * For permissions_test.ts: vmsg as it is, whose Worker prints what it may do once it is ready, and tries the rest.
 *
 * Arguments: what a user gives vmsg.
 */

import { main } from "../../src/main.ts";

const Original = Worker;

/** Forbidden things, each of which needs one permission. */
const TRIALS: Readonly<Record<string, () => unknown>> = {
  run: () => new Deno.Command("/bin/true").outputSync(),
  read: () => Deno.readTextFileSync("/etc/hostname"),
  write: () => Deno.writeTextFileSync("forbidden", ""),
  net: () => Deno.listen({ port: 0 }).close(),
  env: () => Deno.env.get("HOME"),
  sys: () => Deno.hostname(),
  ffi: () => new Deno.UnsafePointerView(Deno.UnsafePointer.of(new Uint8Array(1))!).getUint8(),
};

/** What this thread is allowed to do, by trying. */
function allowed(): string {
  const names = Object.keys(TRIALS).filter((name) => {
    try {
      TRIALS[name]!();
      return true;
    } catch {
      return false;
    }
  });
  return names.join(" ");
}

/** Tells of the main thread when the data plane is ready: permissions are those of the process. */
class Watched extends Original {
  override set onmessage(listen: (event: MessageEvent<{ kind: string }>) => void) {
    super.onmessage = (event) => {
      if (event.data.kind === "ready") console.log(`allowed: ${allowed()}`);
      listen(event);
    };
  }
}
globalThis.Worker = Watched;

if (import.meta.main) {
  console.log(`at first: ${allowed()}`);
  Deno.exit(await main(Deno.args));
}
