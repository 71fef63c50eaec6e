/**
 * Tests that boot guests. Where a guest is not available the test says so in plain words and is
 * ignored, never passed; with VMSG_GUEST_TESTS=required it fails (tests/support/needs.ts).
 */

import { assert } from "@std/assert";
import {
  bootGuest,
  findGuests,
  type Guest,
  guestInitramfs,
  type GuestInitramfsOptions,
  type GuestKind,
  type Installation,
  type QemuOptions,
} from "../../scripts/lab/machines.ts";
import { type Keeper, openKeeper } from "../../src/cli/keeper.ts";
import { has } from "../network/support.ts";
import { type Lack, testUnless } from "../support/needs.ts";
import { type Processes, withProcesses } from "../support/processes.ts";

/**
 * How long a guest may take to its last line, in ms: many times what it does take, as only one that hangs
 * is to meet it. A machine may be slow, or busy with something else.
 */
export const GUEST_TIMEOUT_MS: Readonly<Record<GuestKind, number>> = {
  uml: 180_000,
  microvm: 300_000,
  q35: 300_000,
  arm64: 300_000,
};

/** What to boot, and how. */
export type BootOptions = Omit<QemuOptions, "initramfs"> & GuestInitramfsOptions;

/** What a guest test is given. */
export interface GuestTest {
  readonly installation: Installation;
  /** An empty directory, for sockets and such; gone after the test. */
  readonly directory: string;
  /** Ends other processes the test starts (with `detached: true`), whatever happens. */
  readonly keeper: Keeper;
  /** Starts vmsg in that directory; what it said is printed if the test fails. */
  readonly vmsg: Processes;
  /** Boots a guest; it is ended after the test, and its console printed if the test fails. */
  boot(options: BootOptions): Promise<Guest>;
}

const guests = await findGuests();

/** What a test needs. */
export interface GuestNeeds {
  /** The kind of guest it boots; none if it belongs here for another reason. */
  readonly guest?: GuestKind;
  /** Programs on PATH, and the Debian package each is in. */
  readonly programs?: Readonly<Record<string, string>>;
  /** Root, for network namespaces and TAPs. */
  readonly root?: boolean;
  /** What else is missing. */
  readonly lacks?: readonly Lack[];
}

/** Registers a test that boots guests of one kind. */
export function guestTest(
  name: string,
  need: GuestKind | (GuestNeeds & { guest: GuestKind }),
  body: (test: GuestTest) => Promise<void>,
): void {
  const needs = typeof need === "string" ? { guest: need } : need;
  register(name, needs, () => run(guests[needs.guest]!, body));
}

/** Registers a test that belongs here although it boots no guest. */
export function guestlessTest(
  name: string,
  needs: Omit<GuestNeeds, "guest">,
  body: (test: Omit<GuestTest, "installation" | "boot">) => Promise<void>,
): void {
  register(name, needs, async () => {
    await using keeper = await openKeeper();
    const { directory } = keeper;
    await withProcesses(keeper, (vmsg) => body({ directory, keeper, vmsg }));
  });
}

function register(name: string, needs: GuestNeeds, fn: () => Promise<void>): void {
  const { guest, programs = {}, root = false } = needs;
  const missing = guest === undefined ? [] : [...guests.missing[guest]];
  for (const [program, debianPackage] of Object.entries(programs)) {
    if (!has(program)) missing.push(`${program} is missing: apt-get install ${debianPackage}`);
  }
  if (root && Deno.uid() !== 0) missing.push("it needs root");
  const lacks = missing.map((what): Lack => ({ what, requiredBy: "VMSG_GUEST_TESTS" }));
  testUnless(name, [...lacks, ...needs.lacks ?? []], fn);
}

const ABORTED = 128 + 6;

/**
 * Waits for a guest that powers itself off. User-Mode Linux was seen to abort when its kernel had halted already and said
 * so: nothing of a card is in use then, and what it does to its own process is its own affair.
 */
export async function assertEndsWell(guest: Guest): Promise<void> {
  const { code } = await guest.status;
  const isHalted = guest.kind === "uml" && /^reboot: System halted$/m.test(guest.console());
  assert(
    code === 0 || (isHalted && code === ABORTED),
    `the ${guest.kind} guest ended with ${code}`,
  );
}

async function run(
  installation: Installation,
  body: (test: GuestTest) => Promise<void>,
): Promise<void> {
  const booted: Guest[] = [];
  await using keeper = await openKeeper();
  await using running = new AsyncDisposableStack();
  try {
    await withProcesses(keeper, (vmsg) =>
      body({
        installation,
        directory: keeper.directory,
        keeper,
        vmsg,
        async boot(options) {
          const initramfs = await guestInitramfs(installation, options);
          const guest = running.use(await bootGuest(installation, { ...options, initramfs }));
          booted.push(guest);
          return guest;
        },
      }));
  } catch (error) {
    booted.forEach((guest, index) => {
      console.error(`--- console of ${guest.kind} guest ${index + 1} ---\n${guest.console()}---`);
    });
    throw error;
  }
}
