/**
 * The forms of a link through ivshmem: one machine that runs `vmsg driver` in all of them, one after the
 * other, and processes of this host that are its device side, as peers of the same ivshmem server.
 *
 * Pings say that both directions work: a message that is lost, a doorbell that is not heard or an address
 * that is wrong by one byte answers none. What cannot be seen in a ping (where the driver's memory is,
 * whether somebody rings or looks) is read from what both sides say.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { openKeeper } from "../../src/cli/keeper.ts";
import { DOORBELL_ADDRESS, OTHER_MEMORY_ADDRESS } from "../../scripts/lab/machine.ts";
import { PING_WAIT_S } from "../../scripts/lab/scripts.ts";
import {
  assertFailure,
  failing,
  type Form,
  linkScript,
  said,
  startHost,
  STEP_TIMEOUT_MS,
} from "./link_support.ts";
import { machineTest } from "./machine_support.ts";

const FUNCTION = `/sys/bus/pci/devices/${DOORBELL_ADDRESS}`;
const PCI = `ivshmem,pci=${DOORBELL_ADDRESS}`;

/** What the machine does, in this order. */
const FORMS: readonly Form[] = [
  {
    name: "pages",
    before: failing("unbound", `driver --bus ${PCI} --memory segment`),
    driver: `--bus ${PCI},bind --memory hugepages=10M --trace`,
    during: [
      'echo "INTERRUPTS" $(grep "vfio-msix.0." /proc/interrupts)',
      failing("taken", `driver --bus ${PCI},bind --memory segment`),
      failing("bound", `driver --bus ${PCI},via=sysfs --memory segment`),
    ].join("\n"),
  },
  { name: "segment", driver: `--bus ${PCI},bind,poll --memory segment --trace` },
  { name: "sysfs", driver: `--bus ${PCI},via=sysfs --memory hugepages=10M` },
  {
    name: "shm",
    before: failing("disabled", `driver --bus shm,file=${FUNCTION}/resource2,size=1M`) +
      `\necho 1 >${FUNCTION}/enable`,
    driver: `--bus shm,file=${FUNCTION}/resource2,size=1M`,
  },
  // A dialect without announcements: addresses are used as they are, so the pages must be one piece.
  { name: "proto", driver: `--bus ${PCI},bind,dialect=proto,peer=2 --memory hugepages=2M` },
  { name: "detected", driver: `--bus ${PCI},bind,dialect=proto,peer=3 --memory hugepages=2M` },
  { name: "after", driver: `--bus ${PCI},bind --memory hugepages=2M` },
  // Another layout in the memory that had queues, and a dialect that has no tokens.
  {
    name: "amp1",
    driver: `--bus ${PCI},bind,layout=amp1,dialect=rfc,peer=4 --memory hugepages=2M`,
  },
];

machineTest(
  "ivshmem, forms: a machine and this host, every bus and memory",
  "q35",
  async (test) => {
    await using keeper = await openKeeper("/dev/shm");
    const host = await startHost(test, keeper);
    const machine = await host.start({ script: FORMS.map(linkScript).join("\n"), hugePages: 6 });
    // Ids are given in order, and the dialect proto finds nobody by itself.
    await host.server.waitFor(/peer 0 joined/, STEP_TIMEOUT_MS);
    const pinged = async (name: string) => {
      assertMatch(await machine.waitFor(new RegExp(`^PING ${name} `), STEP_TIMEOUT_MS), /rc=0/);
      await machine.waitFor(new RegExp(`^UNLINKED ${name}$`), STEP_TIMEOUT_MS);
      assertEquals(said(machine, name).at(-1), `DRIVER ${name} rc=0`);
    };
    const bus = `ivshmem,server=${host.socket}`;
    const seen = ["--memory", `file=${host.memory},at=0`];

    const first = await host.device(bus, ...seen);
    await pinged("pages");
    assertFailure(
      machine,
      "unbound",
      /is bound to no driver, not to vfio-pci: give the option bind,/,
    );
    assertFailure(
      machine,
      "taken",
      /\/dev\/vfio\/\d+ is in use by another process: end that first$/,
    );
    assertFailure(machine, "bound", /is bound to vfio-pci, so sysfs may not map it: /);
    const [, interrupts] = /^INTERRUPTS \d+: (\d+) /m.exec(machine.console()) ?? [];
    assert(Number(interrupts) > 20, `${interrupts} interrupts`);
    const announced = (name: string) =>
      said(machine, name).filter((line) => /-> .* ADD_MEMORY\? /.test(line));
    for (const line of announced("pages")) {
      assertMatch(line, /is at 0x[0-9a-f]+00000 of the sender's machine/);
    }
    console.log(`10 MiB of huge pages lie in ${announced("pages").length} pieces`);
    await pinged("segment");
    const [memory, ...more] = announced("segment");
    assertEquals(more, []);
    assertMatch(memory ?? "", /1040384 bytes at 0x2000 is segment offset 0x2000$/);
    await pinged("sysfs");
    const { stderr } = await first.end("SIGTERM");
    // More where a slow machine was thought to be gone.
    assert(stderr.filter((line) => line.includes("a vmsg driver side is there")).length >= 3);

    const plain = await host.device(`shm,file=${host.shared},size=1M`);
    await pinged("shm");
    assertFailure(machine, "disabled", /is not enabled: echo 1 > \S*\/enable$/);
    await plain.end("SIGTERM");

    const proto = await host.device(`${bus},dialect=proto`, ...seen);
    await pinged("proto");
    await proto.end("SIGTERM");

    const auto = await host.device(`${bus},dialect=auto`, ...seen);
    await pinged("detected");
    await auto.waitFor(/the driver side speaks proto$/);
    // It does not say goodbye, and the next one speaks another dialect.
    await pinged("after");
    await auto.waitFor(/the driver side speaks v1$/);
    await auto.end("SIGTERM");

    await host.device(`${bus},layout=amp1,dialect=rfc`, ...seen);
    await pinged("amp1");
    assertEquals((await machine.status).code, 0);
  },
);

const LARGE_MIB = 8192;
/** Where the machine type q35 has its RAM, if it has more than 2.75 GiB. */
const LAYOUT = "at=0,low=2G,hole=2G";

machineTest(
  "ivshmem, forms: memory above 4 GiB, seen by a machine and this host",
  "q35",
  async (test) => {
    await using keeper = await openKeeper("/dev/shm");
    const host = await startHost(test, keeper);
    const device = `vmsg device --bus ${PCI},bind --memory pci=${OTHER_MEMORY_ADDRESS},${LAYOUT}`;
    const other = await test.start({
      script: `${device} --net responder`,
      doorbell: { socket: host.socket },
      otherMemory: { file: host.memory, sizeMiB: LARGE_MIB },
    });
    const form = {
      name: "high",
      driver: `--bus ${PCI},bind --memory hugepages=4M --trace`,
      // The machine is followed by a process of this host, which has another id.
      during: `
until [ "$(grep -c "connected;" /tmp/high)" = 2 ]; do sleep 0.1; done
ping -c 5 -i 0.1 -W ${PING_WAIT_S} 10.0.2.2
echo "PING again rc=$?"`,
    };
    const machine = await host.start({
      script: linkScript(form),
      memoryMiB: LARGE_MIB,
      hugePages: 4,
    });
    assertMatch(await machine.waitFor(/^PING high /, STEP_TIMEOUT_MS), /rc=0/);
    await other[Symbol.asyncDispose]();
    await host.device(`ivshmem,server=${host.socket}`, "--memory", `file=${host.memory},${LAYOUT}`);
    assertMatch(await machine.waitFor(/^PING again /, STEP_TIMEOUT_MS), /rc=0/);
    const announced = said(machine, "high").filter((line) => /-> .* ADD_MEMORY\? /.test(line));
    assert(announced.length >= 2, "both were told");
    for (const line of announced) {
      assertMatch(
        line,
        / is at 0x[12][0-9a-f]{8} of the sender's machine$/,
      );
    }
    assertEquals((await machine.status).code, 0);
  },
);
