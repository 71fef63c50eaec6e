/**
 * A machine with stock Xen, whose DomU has a network card, a disk and an entropy device that `vmsg proxy --xen` serves:
 * the devices are in the same Dom0, on the linux-user bus. At the end another device of that Dom0 is met by a driver of
 * this host, by way of ivshmem. All is done in one boot, which takes as long as the rest.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { DOORBELL_ADDRESS } from "../../scripts/lab/machine.ts";
import {
  createDomu,
  domuConfig,
  inBackground,
  waitForDomu,
} from "../../scripts/lab/xen_scripts.ts";
import { assertClean, makeDisk, sums } from "./disk_support.ts";
import { failing } from "./link_support.ts";
import {
  BUS,
  DISK_FILES,
  DOMU,
  GONE,
  holds,
  KILLED_UNDER_DISK,
  line,
  START_PROXY,
  THREE,
  THREE_DEVICES,
  XEN_TIMEOUT_MS,
  xenTest,
} from "./xen_support.ts";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";

const DISK = "disk.img";
const DISK_BYTES = 64 << 20;

const OTHER_BUS = "linux-user,name=other,socket=/tmp/other.sock";

xenTest(
  "Xen: a DomU's card, disk and entropy device, proxy and device killed, ended and started anew, its domain too",
  async (test) => {
    const server = await test.vmsg.start(
      ...["ivshmem-server", "--socket", `${test.directory}/iv.sock`, "--size", "1M"],
    );
    await server.waitFor(/waiting for peers/);
    const far =
      `vmsg device --bus ivshmem,pci=${DOORBELL_ADDRESS},via=sysfs --confined --net responder`;
    const steps = [
      START_PROXY,
      THREE_DEVICES,
      domuConfig(test.xen, { name: "domu", cards: THREE }),
      "sed 's/extra=\"/&disk /' /tmp/domu.cfg >/tmp/disk.cfg",
      "device",
      // What goes wrong before there is anything to serve.
      failing("open", `proxy --bus ${OTHER_BUS} --xen domain=domu`),
      failing(
        "twice",
        `proxy --bus ${OTHER_BUS} --confined --xen domain=domu,device=1 --xen domain=b,device=1`,
      ),
      "proxy; ready 'waiting for it'",
      createDomu("domu"),
      waitForDomu("domu", "GO kill"),
      "sleep 0.3; echo KILL; kill -9 $P; sleep 1; proxy; ready 'going on with'",
      waitForDomu("domu", "GO end"),
      "sleep 0.3; echo END; kill $P; wait $P; echo \"PROXY ended $?\"; proxy; ready 'going on with'",
      waitForDomu("domu", "IRQ"),
      holds("first"),
      failing("served", `proxy --bus ${OTHER_BUS} --confined --xen domain=domu`),
      // Wherever its counters are.
      "export XDG_RUNTIME_DIR=/tmp/other; mkdir /tmp/other",
      failing("taken", `proxy --bus ${OTHER_BUS} --confined --xen domain=domu`),
      "unset XDG_RUNTIME_DIR",
      'vmsg doctor | grep -E "^(xen|xenstore|vfio|ivshmem)" | sed "s/^/DOCTOR /"',
      "xl destroy domu",
      GONE,
      holds("second"),
      "cp /tmp/disk.cfg /tmp/domu.cfg",
      createDomu("domu"),
      waitForDomu("domu", "PING"),
      KILLED_UNDER_DISK,
      GONE,
      holds("third"),
      "kill $P; wait $P; echo \"RUN after $(ls /run/vmsg | tr '\\n' ' ')\"",
      "sync; echo STEPS",
      far,
    ];
    const disk = `${test.directory}/${DISK}`;
    await makeDisk(test.directory, DISK, DISK_BYTES);
    const machine = await test.start(DOMU, {
      script: steps.join("\n"),
      disk,
      doorbell: `${test.directory}/iv.sock`,
    });

    assertEquals(await machine.waitFor(/^(STEPS|LATE|ENDED)/, 4 * XEN_TIMEOUT_MS), "STEPS");
    await machine.waitFor(/ivshmem \S+: waiting for a (driver side|peer)/, XEN_TIMEOUT_MS);
    const driver = await test.vmsg.run(
      ...[
        "driver",
        "--bus",
        `ivshmem,server=${test.directory}/iv.sock`,
        "--confined",
        "--count",
        "5",
      ],
    );
    assertEquals(driver.code, 0, driver.stderr.join("\n"));

    const pings = ["PING", "FLOOD", "KILLED", "ENDED"].map((name) => line(machine, `U| ${name} `));
    assertEquals(pings, [
      "U| PING 3 sent, 3 answered",
      "U| FLOOD 200 sent, 200 answered",
      "U| KILLED 30 sent, 30 answered",
      "U| ENDED 30 sent, 30 answered",
    ]);
    // The third domain's other devices.
    assertMatch(line(machine, "U| RNG "), /^U\| RNG virtio_rng\.0 [1-9]/);
    assertMatch(
      line(machine, "U| DISK "),
      new RegExp(`^U\\| DISK size=${DISK_BYTES / 512} .*ro=0 `),
    );
    // Under traffic, and not after it.
    const said = machine.console().split("\n").map((text) => text.trimEnd());
    const order = said.filter((text) =>
      /^(KILL|END|U\| (KILLED|ENDED) .*|DISK \w+|U\| (SUMS|UMOUNT|MOUNT|WRITE) .*)$/.test(text)
    );
    const names = order.map((text) => /^(?:U\| (?:KILLED|ENDED)|.*)/.exec(text)![0]);
    assertEquals(names, [
      ...["KILL", "U| KILLED", "END", "U| ENDED"],
      ...["DISK device", "DISK proxy", `U| ${sums(DISK_FILES)}`, "U| UMOUNT rc=0"],
    ]);
    await assertClean(test.directory, DISK);
    assertMatch(line(machine, "U| IRQ "), /IO-APIC +16-edge +virtio0/);
    assertEquals(line(machine, "PROXY ended"), "PROXY ended 0");

    const holdings = ["first", "second", "third"].map((name) => {
      const [, fds, lines, free] = /(\d+) fds, (\d+) lines of domains, (\d+) MiB/.exec(
        line(machine, `HOLDS ${name}`),
      )!;
      return { fds: Number(fds), lines: Number(lines), free: Number(free) };
    });
    const [first, second, third] = holdings as [
      typeof holdings[0],
      typeof holdings[0],
      typeof holdings[0],
    ];
    // A header, Dom0, and what is not quite gone.
    assertEquals([first.lines, second.lines, third.lines], [3, 2, 2]);
    assert(second.free > first.free && third.free >= second.free, JSON.stringify(holdings));
    assertEquals(second.fds, third.fds);
    assertMatch(line(machine, "RUN first"), /xen-1\.json xen-1\.lock/);
    assertEquals(/xen-/.test(line(machine, "RUN second")), false);
    assertEquals(/xen-/.test(line(machine, "RUN after")), false);

    const doctor = machine.console().split("\n").filter((text) => text.startsWith("DOCTOR "));
    assertMatch(doctor.join("\n"), /^DOCTOR xen +yes +Xen 4\.\d+\S*, Dom0, with ioreq servers/m);
    assertMatch(
      doctor.join("\n"),
      /^DOCTOR xenstore +yes +1 domains besides Dom0\s+DOCTOR xenstore +yes +domain domu \(1\)/m,
    );
    assertMatch(doctor.join("\n"), /^DOCTOR ivshmem.*via=sysfs/m);

    const console = machine.console();
    assertMatch(console, /^open: vmsg: --xen goes with --confined: /m);
    assertMatch(console, /^RC open 2$/m);
    assertMatch(
      console,
      /^twice: vmsg: --vhost-user, --xen: a device number belongs to one guest/m,
    );
    assertMatch(console, /^served: vmsg: domain 1 is served by process \d+: give all its cards/m);
    assertMatch(console, /^RC served 1$/m);
    assertMatch(console, /^taken: vmsg: domain 1 is served by process \d+/m);
  },
);

xenTest(
  "Xen: ten times a domain comes and goes, and nothing of it is left",
  async (test) => {
    const round = (number: number) => `
${createDomu("domu")}
${waitForDomu("domu", "PING")}
xl destroy domu
${GONE}
${holds(`round-${number}`)}
echo "RSS $(awk '/VmRSS/ { print $2 }' /proc/$P/status) kB"
`;
    const steps = [
      START_PROXY,
      domuConfig(test.xen, { name: "domu", words: "short" }),
      inBackground("device", `vmsg device --bus ${BUS},listen --net responder`),
      "proxy; ready 'waiting for it'",
      ...Array.from({ length: 10 }, (_, number) => round(number)),
      "echo STEPS",
    ];
    const machine = await test.start(DOMU, { script: steps.join("\n") });
    assertEquals(await machine.waitFor(/^(STEPS|LATE|ENDED)/, 10 * XEN_TIMEOUT_MS), "STEPS");
    const console = machine.console();
    const pings = console.match(/^U\| PING 3 sent, 3 answered/gm);
    assertEquals(pings?.length, 10);
    const rounds = [
      ...console.matchAll(/^HOLDS round-\d+ (\d+) fds, 2 lines of domains, (\d+) MiB/gm),
    ];
    assertEquals(rounds.length, 10);
    assertEquals(new Set(rounds.map(([, fds]) => fds)).size, 1, "descriptors");
    assertEquals(new Set(rounds.map(([, , free]) => free)).size, 1, "Xen's memory");
    const rss = [...console.matchAll(/^RSS (\d+) kB/gm)].map(([, kib]) => Number(kib));
    // The first rounds have code compiled and the collector's heap grow.
    assert(rss[9]! < rss[3]! + 8192, `${rss}`);
  },
  FULL ? [] : [{ what: "ten domains are booted with VMSG_GUEST_FULL=1" }],
);
