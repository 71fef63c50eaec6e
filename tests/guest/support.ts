/**
 * Tests that boot guests. Where a guest is not available the test says so in plain words and is
 * ignored, never passed; with VMSG_GUEST_TESTS=required it fails.
 */

import {
  bootGuest,
  findGuests,
  type Guest,
  guestInitramfs,
  type GuestInitramfsOptions,
  type GuestKind,
  type Installation,
  type MicrovmOptions,
} from "../../src/cli/guest/machines.ts";
import { type Keeper, openKeeper } from "../../src/cli/guest/keeper.ts";
import { type Processes, withProcesses } from "../support/processes.ts";

/** How long a guest may take to its last line, in ms: about four times what it does take. */
export const GUEST_TIMEOUT_MS: Readonly<Record<GuestKind, number>> = {
  uml: 12_000,
  microvm: 25_000,
};

/** What to boot, and how. */
export type BootOptions = Omit<MicrovmOptions, "initramfs"> & GuestInitramfsOptions;

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

/** Registers a test that boots guests of one kind. */
export function guestTest(
  name: string,
  need: GuestKind,
  body: (test: GuestTest) => Promise<void>,
): void {
  const installation = guests[need];
  if (installation !== undefined) {
    Deno.test(name, () => run(installation, body));
    return;
  }
  const why = guests.missing[need].join("; ");
  if (Deno.env.get("VMSG_GUEST_TESTS") === "required") {
    Deno.test(name, () => {
      throw new Error(`VMSG_GUEST_TESTS=required, but ${why}`);
    });
    return;
  }
  console.log(`NOT RUN: ${name}: ${why}`);
  Deno.test({ name, ignore: true, fn: () => {} });
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
