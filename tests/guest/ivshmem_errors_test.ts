/**
 * What goes wrong between a machine and its device side is said in one line that tells what to do. The
 * machine has no IOMMU, so it shows as well that a link does without (by sysfs).
 *
 * What shows on one host alone is in tests/cli/ivshmem_link_errors_test.ts.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { openKeeper } from "../../src/cli/keeper.ts";
import { DOORBELL_ADDRESS, NIC_ADDRESSES } from "../../scripts/lab/machine.ts";
import { assertFailure, failing, linkScript, startHost, STEP_TIMEOUT_MS } from "./link_support.ts";
import { machineTest } from "./machine_support.ts";

const PCI = `ivshmem,pci=${DOORBELL_ADDRESS}`;
const SYSFS = `--bus ${PCI},via=sysfs`;

/** What fails alone: arguments of vmsg, and what it says. */
const ALONE: readonly [name: string, args: string, said: RegExp][] = [
  [
    "no-iommu",
    `driver --bus ${PCI},bind --memory segment`,
    /has no IOMMU group, .*: boot with intel_iommu=on .*; or do without vfio$/,
  ],
  [
    "no-ivshmem",
    `driver --bus ivshmem,pci=${NIC_ADDRESSES[0]}`,
    /0000:00:12.0 is 1af4:1\w+ and not ivshmem \(1af4:1110\): vmsg doctor/,
  ],
  [
    "no-pages",
    `driver ${SYSFS} --memory hugepages=1G`,
    /512 free huge pages of 2 MiB are needed: echo 512 > \/proc\/sys\/vm\/nr_hugepages, or boot/,
  ],
];

machineTest("ivshmem, errors: a machine without an IOMMU", "q35", async (test) => {
  await using keeper = await openKeeper("/dev/shm");
  const host = await startHost(test, keeper);
  const pages = `driver ${SYSFS} --memory hugepages=2M`;
  const script = [
    ...ALONE.map(([name, args]) => failing(name, args)),
    failing("no-memory", pages),
    failing("no-window", pages),
    linkScript({
      name: "link",
      driver: `${SYSFS} --memory segment`,
      during: failing("in-use", `driver ${SYSFS}`),
    }),
  ];
  const machine = await host.start({
    script: script.join("\n"),
    hugePages: 1,
    nics: [{ netdev: "user,restrict=on" }],
    kernelArgs: ["intel_iommu=off"],
  });
  await host.server.waitFor(/peer 0 joined/, STEP_TIMEOUT_MS);
  const failed = (name: string) => machine.waitFor(new RegExp(`^FAILED ${name}$`), STEP_TIMEOUT_MS);

  const bus = `ivshmem,server=${host.socket}`;
  const blind = await host.device(bus);
  for (const [name] of ALONE) await failed(name);
  for (const [name, , pattern] of ALONE) assertFailure(machine, name, pattern);

  await failed("no-memory");
  const unseen =
    /device 0 refused ADD_MEMORY: EFAULT: it does not see .* at 0x\w+ to 0x\w+: give .*--memory/;
  assertFailure(machine, "no-memory", unseen);
  await blind.waitFor(/driver side's memory is at 0x\w+ to 0x\w+ of its machine, give --memory/);
  await blind.end("SIGTERM");

  const narrow = await host.device(bus, "--memory", `file=${host.memory},at=0,size=1M`);
  await failed("no-window");
  assertFailure(machine, "no-window", unseen);
  await narrow.waitFor(/driver side's memory is at .* of its machine, which no --memory covers$/);

  assertMatch(await machine.waitFor(/^PING link /, STEP_TIMEOUT_MS), /rc=0/);
  await failed("in-use");
  assertFailure(machine, "in-use", /0000:00:10.0 is in use by another process: end that first$/);
  assertEquals((await machine.status).code, 0);
});
