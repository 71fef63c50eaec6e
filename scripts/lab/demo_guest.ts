/**
 * `deno task demo:guest`: a stock kernel whose eth0 is a vmsg device behind a vmsg proxy. All of it runs in
 * a temporary directory and is gone afterwards, also when it fails or is interrupted.
 */

import { UsageError, VmsgError } from "../../src/linux/errors.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import {
  bootGuest,
  findGuests,
  GUEST_KINDS,
  guestInitramfs,
  type GuestKind,
  type Guests,
  type Installation,
} from "./machines.ts";
import { untilListening } from "./listening.ts";
import { fetchMissing } from "./prepare.ts";
import { pingScript } from "./scripts.ts";
import { runTask } from "./task.ts";
import type { Command } from "../../src/cli/command.ts";
import { eachLine, selfCommand, untilInterrupted } from "../../src/cli/self.ts";

/** From power-on to the last ping, many times what it takes under emulation. */
const GUEST_TIMEOUT_MS = 300_000;
const PROXY_TIMEOUT_MS = 180_000;

function parseKinds(wanted: string | undefined): GuestKind[] {
  const named = GUEST_KINDS.find((kind) => kind === wanted);
  if (wanted !== undefined && named === undefined) {
    throw new UsageError(`--guest is one of ${GUEST_KINDS.join(", ")}, not ${wanted}`);
  }
  return named === undefined ? ["uml", "microvm"] : [named];
}

function choose(guests: Guests, kinds: readonly GuestKind[]): Installation {
  for (const kind of kinds) {
    const installation = guests[kind];
    if (installation !== undefined) return installation;
  }
  const missing = kinds.map((kind) => `${kind}: ${guests.missing[kind].join("; ")}`);
  throw new VmsgError("NO_GUEST", `no guest can be booted here. ${missing.join(". ")}`);
}

/**
 * Boots the guest and pings from it.
 *
 * @param kind one of `GUEST_KINDS`, or the first of User-Mode Linux and microvm that is there
 * @param confined keeps every virtqueue and buffer in a segment of its own
 * @param capture a file for messages and frames
 * @param interrupted resolves to an exit code when the user has enough
 */
async function demoGuest(
  kind: string | undefined,
  confined: boolean,
  capture: string | undefined,
  interrupted: Promise<number>,
): Promise<number> {
  const kinds = parseKinds(kind);
  await fetchMissing({ kinds });
  const installation = choose(await findGuests(), kinds);
  await using keeper = await openKeeper();
  const bus = `linux-user,socket=${keeper.directory}/bus.sock,dir=${keeper.directory}`;
  const socket = `${keeper.directory}/vhost-user.sock`;
  const start = async (...args: string[]) => {
    console.log(`vmsg ${args.join(" ")}`);
    const child = selfCommand(args, {
      stdin: "null",
      stdout: "null",
      stderr: "piped",
      detached: true,
    }).spawn();
    await keeper.keep(child.pid);
    const output = eachLine(child.stderr, (line) => console.log(line));
    // Its end comes with the keeper's; a child that fails has said why.
    Promise.all([output, child.status]).catch(() => {});
  };
  const mode = confined ? ["--confined"] : [];
  const kept = capture === undefined ? [] : ["--capture", capture];
  await start("device", "--bus", bus, "--net", "responder", ...mode, ...kept);
  await start("proxy", "--bus", bus, "--vhost-user", `socket=${socket}`, ...mode);
  const script = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });
  const initramfs = await guestInitramfs(installation, { script });
  console.log(`booting a ${installation.kind} guest, an unmodified kernel, with ${socket}`);
  // A front end connects once and gives up.
  if (!await untilListening(socket, PROXY_TIMEOUT_MS)) {
    throw new VmsgError("DEMO_FAILED", "vmsg proxy did not start");
  }
  await using guest = await bootGuest(installation, {
    socket,
    initramfs,
    onLine: (line) => console.log(`guest| ${line}`),
  });
  const pinged = guest.waitFor(/^PING rc=/, GUEST_TIMEOUT_MS).then(async (line) => {
    await guest.status;
    return line === "PING rc=0" ? 0 : 1;
  });
  pinged.catch(() => {});
  const code = await Promise.race([interrupted, pinged]);
  if (code !== 130) console.log(code === 0 ? "\nDEMO PASSED" : `\nDEMO FAILED (${code})`);
  return code;
}

/** See `deno task demo:guest --help`. */
export const demoGuestTask: Command = {
  name: "demo:guest",
  call: "deno task demo:guest",
  summary: "a stock guest kernel's network card, served by two vmsg processes",
  description:
    "An unmodified kernel, User-Mode Linux or QEMU, whichever is there: its network card is served by\n" +
    "`vmsg device` through `vmsg proxy`. It gets an address and pings.",
  options: [
    {
      name: "guest",
      value: GUEST_KINDS.join("|"),
      help: "which guest to boot, instead of what is there",
    },
    { name: "confined", help: "the guest's memory stays its own, but for a segment" },
    {
      name: "capture",
      value: "FILE",
      help: "keep messages and frames in a file, for `vmsg trace`",
    },
  ],
  examples: ["deno task demo:guest", "deno task demo:guest --guest microvm"],
  run: async (options) => {
    using interrupted = untilInterrupted();
    const [guest, capture] = [options.text("guest"), options.text("capture")];
    return await demoGuest(guest, options.flag("confined"), capture, interrupted);
  },
};

if (import.meta.main) await runTask(demoGuestTask);
