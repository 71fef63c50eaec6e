/**
 * What a demo needs and what is not here is fetched before it begins, by the scripts that do it by hand: they
 * say what they fetch. What they cannot get (packages, without root) the demo names afterwards.
 */

import { findArm64, LIBRARY_PACKAGES } from "../fetch_arm64.ts";
import { fetchArm64Qemu } from "../fetch_arm64_qemu.ts";
import { scriptCommand } from "./executable.ts";
import { findGuests, type GuestKind } from "./machines.ts";

/** What is started: guests or machines, and what goes into an arm64 machine. */
export interface Needs {
  /** One of these is enough. */
  readonly kinds: readonly GuestKind[];
  /** The libraries of an arm64 vmsg. */
  readonly arm64Libraries?: boolean;
  /** A QEMU inside an arm64 machine. */
  readonly arm64Qemu?: boolean;
}

/** The steps that are to be taken here, as lines for people, each with what takes it. */
export async function missingSteps(
  needs: Needs,
): Promise<{ readonly what: string; readonly take: () => Promise<unknown> }[]> {
  const steps = [];
  const guests = await findGuests();
  if (needs.kinds.every((kind) => guests.missing[kind].length > 0)) {
    const what = `kernels and programs for guests (${needs.kinds.join(" or ")})`;
    steps.push({ what, take: () => runScript("fetch_guests.ts") });
  }
  if (needs.arm64Libraries && await findArm64() === undefined) {
    const what = `qemu-user-static, and for arm64 ${LIBRARY_PACKAGES.join(" and ")}`;
    steps.push({ what, take: () => runScript("fetch_arm64.ts") });
  }
  // It says itself what it fetches, if it does.
  if (needs.arm64Qemu) steps.push({ what: "", take: fetchArm64Qemu });
  return steps;
}

/** Takes these steps. */
export async function fetchMissing(needs: Needs): Promise<void> {
  for (const { what, take } of await missingSteps(needs)) {
    if (what !== "") console.log(`fetching ${what}`);
    await take();
  }
}

async function runScript(name: string): Promise<void> {
  const [program, ...args] = scriptCommand(name);
  await new Deno.Command(program, { args, stdin: "null" }).spawn().status;
}
