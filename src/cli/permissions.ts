/**
 * What a process may do besides what it is for: nothing. Of Deno's permissions each subcommand keeps those of its row in
 * {@link KEPT}, and gives up the others when its options are parsed, for good and for all its threads; a data plane
 * once more when its Worker has opened everything, before it listens to anybody. So where it was started with
 * --allow-all, as the executable is not, that does not matter either.
 *
 * What this is worth: FFI stays, and with it whoever makes this process run code of his own can call anything in libc. It
 * is a net below mistakes (a path or a name from outside that ends in Deno's API), no wall; the wall is
 * around the process (scripts/systemd, docs/security.md).
 *
 * For files FFI is used throughout, because Deno gives nobody with less than all permissions /proc, /sys and /dev.
 */

import { libc } from "../linux/libc.ts";
import { startsProgramsLater } from "../linux/programs.ts";
import type { PlaneName } from "./commands.ts";

const ALL = ["run", "read", "write", "net", "env", "sys", "ffi", "import"] as const;
type Permission = typeof ALL[number];

/** From source, modules are read when a Worker starts. */
const SOURCE: readonly Permission[] = Deno.build.standalone ? [] : ["read"];
/** NOTIFY_SOCKET, XDG_RUNTIME_DIR, and passt or a holder of pins, which is a shell. */
const OPENING: readonly Permission[] = ["ffi", "env", "run", ...SOURCE];
const PLANE = { opening: OPENING, running: ["ffi"] } as const;

interface Kept {
  readonly opening: readonly Permission[];
  /** Once everything is open; `run` besides, if a program may have to be started (again). */
  readonly running?: readonly Permission[];
}

/** The table, with a row for every subcommand. */
export const KEPT: Readonly<Record<PlaneName, Kept> & Record<string, Kept>> = {
  device: PLANE,
  proxy: PLANE,
  driver: PLANE,
  // They start nothing.
  bridge: { opening: ["ffi", "env", ...SOURCE], running: ["ffi"] },
  check: { opening: ["ffi", "env", ...SOURCE], running: ["ffi"] },
  "ivshmem-server": { opening: ["ffi", "env", ...SOURCE], running: ["ffi"] },
  // Two processes of vmsg and a keeper; without a shell it keeps its directory itself. TMPDIR.
  demo: { opening: ["ffi", "env", "run", "write"] },
  // Programs are asked for their version. TMPDIR.
  doctor: { opening: ["ffi", "env", "run"] },
  // It connects to a socket, and writes to standard output.
  ctl: { opening: ["ffi"] },
  // It reads files through FFI, as all do.
  trace: { opening: ["ffi"] },
  // XDG_RUNTIME_DIR.
  top: { opening: ["ffi", "env"] },
  // The same.
  inspect: { opening: ["ffi", "env"] },
  // It writes to standard output.
  "xen-acpi": { opening: [] },
};

function giveUpAllBut(kept: readonly Permission[]): void {
  for (const name of ALL) if (!kept.includes(name)) Deno.permissions.revokeSync({ name });
}

/** The options of a subcommand are parsed: it may do what it has to do. */
export function enterOpening(name: string): void {
  giveUpAllBut(KEPT[name]!.opening);
}

/** A data plane has opened everything. */
export function enterRunning(plane: PlaneName): void {
  giveUpAllBut([...KEPT[plane].running!, ...startsProgramsLater() ? ["run"] as const : []]);
}

const PR_SET_NO_NEW_PRIVS = 38;

/** No program that this thread or one that it starts runs from now on has more rights than they have. */
export function forbidNewPrivileges(): void {
  libc.prctl(PR_SET_NO_NEW_PRIVS, 1n, 0n, 0n, 0n);
}
