/** What real front ends do that a proxy cannot give them, each as it was met: rows of the table in docs/guests.md. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { delay, PATIENCE_MS, type Processes } from "../support/processes.ts";
import { programFiles } from "./program_files.ts";
import { GUEST_TIMEOUT_MS, guestlessTest, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];

async function startProxy(vmsg: Processes) {
  const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
  await proxy.waitFor(/waiting for a front end/);
  await vmsg.start("device", ...BUS);
  await proxy.waitFor(/a vmsg device side is there/);
  return proxy;
}

/** A QEMU without a guest: it talks to the back end before it starts one. */
function startQemu(vmsg: Processes, netdev = "", card = "") {
  const words = "qemu-system-x86_64 -S -M q35,memory-backend=ram -m 64 -display none -nodefaults " +
    "-object memory-backend-memfd,id=ram,size=64M,share=on -chardev socket,id=c,path=vu.sock " +
    `-netdev vhost-user,id=n,chardev=c${netdev} -device virtio-net-pci,romfile=,netdev=n${card}`;
  const [program, ...args] = words.split(" ");
  return vmsg.startProgram(program!, ...args);
}

const QEMU = { programs: { "qemu-system-x86_64": "qemu-system-x86" } };

const ETHTOOL = { programs: { ethtool: "ethtool", ldd: "libc-bin" } };

guestTest(
  "A: ethtool -G fails, and the card goes on answering",
  { guest: "q35", ...ETHTOOL },
  async (test) => {
    await startProxy(test.vmsg);
    const guest = await test.boot({
      socket: `${test.vmsg.directory}/vu.sock`,
      files: await programFiles("ethtool"),
      script: pingScript({ address: "dhcp", peer: "10.0.2.2", count: 1 }) + `
echo "BEFORE $(ethtool -g $interface | tail -n 4 | tr -s '\\n\\t ' ' ')"
ethtool -G $interface rx 64 tx 32 2>&1
echo "RESIZED rc=$?"
echo "AFTER $(ethtool -g $interface | tail -n 4 | tr -s '\\n\\t ' ' ')"
pings 20 10.0.2.2
echo "AGAIN rc=$?"
`,
    });
    await guest.waitFor(/^AGAIN/, GUEST_TIMEOUT_MS.q35);
    const said = (word: string) =>
      guest.console().split("\n").find((line) => line.startsWith(word));
    assertMatch(said("RESIZED")!, /rc=[1-9]/);
    assertEquals(said("AFTER")?.slice("AFTER".length), said("BEFORE")?.slice("BEFORE".length));
    assertEquals([said("PING rc"), said("AGAIN")], ["PING rc=0", "AGAIN rc=0"]);
    assertMatch(guest.console(), /^20 packets transmitted, 20 packets received/m);
  },
);

guestTest(
  "C: a legacy virtio-mmio card: the line names VERSION_1 and the option",
  "microvm",
  async (test) => {
    const proxy = await startProxy(test.vmsg);
    const guest = await test.boot({
      socket: `${test.vmsg.directory}/vu.sock`,
      script: "ip link set eth0 up; sleep 5; echo OVER",
      reconnect: true,
      extraArgs: ["-global", "virtio-mmio.force-legacy=true"],
    });
    const said = /lack VERSION_1: .*virtio-mmio.force-legacy=false/;
    await proxy.waitFor(said, GUEST_TIMEOUT_MS.microvm);
    await guest.waitFor(/^OVER/, GUEST_TIMEOUT_MS.microvm);
    const told = proxy.lines.filter(({ text }) => said.test(text));
    // Ten at once, and then one in ten seconds, however long the boot takes.
    const most = 12 + (told.at(-1)!.atMs - told[0]!.atMs) / 10_000;
    assert(told.length <= most, `${told.length} times, of ${most}`);
  },
);

guestlessTest("F: a second QEMU on a busy socket is turned away", QEMU, async ({ vmsg }) => {
  const proxy = await startProxy(vmsg);
  await startQemu(vmsg);
  await proxy.waitFor(/a front end is there/);
  const second = await startQemu(vmsg);
  await proxy.waitFor(/one more front end is turned away/);
  await second.waitFor(/vhost/);
  assertEquals(proxy.stderr.filter((line) => line.includes("hung up")), []);
});

guestlessTest(
  "G: QEMU with queues=2 is told what there is, and not for ever",
  QEMU,
  async ({ vmsg }) => {
    const proxy = await startProxy(vmsg);
    const qemu = await startQemu(vmsg, ",queues=2", ",mq=on,vectors=6");
    await proxy.waitFor(/has queues=1: perhaps it wants more/);
    await delay(3000);
    const said = proxy.stderr.filter((line) => line.includes("queues=1")).length;
    assert(said <= 15, `${said} lines`);
    assert(qemu.lines.length <= 200, `${qemu.lines.length} lines of QEMU in 3 s`);
  },
);

guestlessTest(
  "B: DPDK virtio_user with queues=2 has its first pair",
  { programs: { "dpdk-testpmd": "dpdk-dev" } },
  async ({ vmsg }) => {
    const proxy = await startProxy(vmsg);
    const words = "dpdk-testpmd --no-huge -m 128 --no-pci --no-telemetry --lcores 0@0,1@0 --vdev " +
      "net_virtio_user0,path=vu.sock,queues=2 -- --auto-start --total-num-mbufs=4096";
    const testpmd = await vmsg.startProgram(
      "env",
      `RUNTIME_DIRECTORY=${vmsg.directory}`,
      ...words.split(" "),
    );
    await testpmd.waitFor(/Port 0: [0-9A-F:]{17}/, PATIENCE_MS);
    await delay(300);
    assertEquals(proxy.stderr.filter((line) => /entries|given up/.test(line)), []);
  },
);
