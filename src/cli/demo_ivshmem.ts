/**
 * `vmsg demo ivshmem`: two machines that share an ivshmem device, each a stock QEMU with a stock kernel
 * and this executable. Machine B has no network card but the one whose device is in machine A; its pings
 * leave through A's own card to the user network of A's QEMU.
 */

import { UsageError, VmsgError } from "../linux/errors.ts";
import { machineExecutable } from "./guest/executable.ts";
import { MACHINE_KINDS, machineArchitecture, type MachineKind } from "./guest/machine.ts";
import { findGuests } from "./guest/machines.ts";
import { deviceScript, DRIVER_HUGE_PAGES, driverScript, openPair } from "./guest/pair.ts";
import type { QemuInstallation } from "./guest/qemu.ts";

/** From power-on to the last ping, several times what it takes under emulation. */
const TIMEOUT_MS = 180_000;

/** What the demo is told. */
export interface DemoIvshmemOptions {
  /** One of `MACHINE_KINDS`; q35 unless given. */
  readonly machine: string | undefined;
  /** vmsg for the machines, if this is none. */
  readonly executable: string | undefined;
  /** "bridge" or "packet". */
  readonly net: string | undefined;
  /** Resolves to an exit code when the user has enough. */
  readonly interrupted: Promise<number>;
}

async function findMachine(
  wanted: string,
): Promise<QemuInstallation & { readonly kind: MachineKind }> {
  const kind = MACHINE_KINDS.find((name) => name === wanted);
  if (kind === undefined) {
    throw new UsageError(`--machine is one of ${MACHINE_KINDS.join(", ")}, not ${wanted}`);
  }
  const guests = await findGuests();
  const found = guests[kind];
  if (found !== undefined) return { ...found as QemuInstallation, kind };
  throw new VmsgError("NO_GUEST", `no such machine here. ${guests.missing[kind].join("; ")}`);
}

/** Runs the demo; 0 if B's pings were answered. */
export async function demoIvshmem(options: DemoIvshmemOptions): Promise<number> {
  const { net = "bridge", interrupted } = options;
  if (net !== "bridge" && net !== "packet") {
    throw new UsageError(`--net is bridge or packet, not ${net}`);
  }
  const installation = await findMachine(options.machine ?? "q35");
  const { kind } = installation;
  const executable = await machineExecutable(options.executable, machineArchitecture(kind));
  console.log("two machines, a shared memory and a doorbell between them; none of it is patched");
  await using pair = await openPair({
    installation,
    executable,
    onServerLine: (line) => console.log(`server| ${line}`),
  });
  await using machineA = await pair.startA({
    script: deviceScript({ kind, net }),
    nics: [{ netdev: "user" }],
    onLine: (line) => console.log(`A| ${line}`),
  });
  await using machineB = await pair.startB({
    script: driverScript({ then: 'ping -c 3 10.0.2.2\necho "PING rc=$?"' }),
    hugePages: DRIVER_HUGE_PAGES,
    onLine: (line) => console.log(`B| ${line}`),
  });
  const pinged = machineB.waitFor(/^(PING rc=|DRIVER ended)/, TIMEOUT_MS);
  const deviceEnded = machineA.waitFor(/^DEVICE rc=/, TIMEOUT_MS);
  const result = Promise.race([pinged, deviceEnded]).then((line) => line === "PING rc=0" ? 0 : 1);
  for (const promise of [pinged, deviceEnded, result]) promise.catch(() => {});
  const code = await Promise.race([interrupted, result]);
  console.log(code === 0 ? "\nTEST PASSED" : `\nTEST FAILED (${code})`);
  return code;
}
