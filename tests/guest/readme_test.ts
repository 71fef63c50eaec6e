/**
 * The examples of README and docs/: every line that calls vmsg or a demo is accepted by its parser, and
 * guests, networks and driver are started with the commands as they are printed, but for the words in
 * capitals.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { demoGuestTask } from "../../scripts/lab/demo_guest.ts";
import { demoIvshmemTask } from "../../scripts/lab/demo_ivshmem.ts";
import { demoXenTask } from "../../scripts/lab/demo_xen.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { DONE_LINE, guestInitramfs, type GuestKind } from "../../scripts/lab/machines.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { type Command, parseOptions } from "../../src/cli/command.ts";
import { COMMANDS } from "../../src/cli/commands.ts";
import { requestOf } from "../../src/cli/control/request.ts";
import { deviceCommand } from "../../src/cli/device.ts";
import { ip, Namespace } from "../network/support.ts";
import { delay } from "../support/processes.ts";
import { machineTest } from "./machine_support.ts";
import { GUEST_TIMEOUT_MS, guestlessTest, type GuestTest, guestTest } from "./support.ts";

const ROOT = new URL("../../", import.meta.url);

/** README and the pages of docs/. */
async function readDocuments(): Promise<string> {
  const documents = [await Deno.readTextFile(new URL("README.md", ROOT))];
  const directory = new URL("docs/", ROOT);
  const names = await Array.fromAsync(Deno.readDir(directory), ({ name }) => name);
  for (const name of names.filter((name) => name.endsWith(".md")).sort()) {
    documents.push(await Deno.readTextFile(new URL(name, directory)));
  }
  return documents.join("\n");
}

const DOCUMENTS = await readDocuments();

/** The commands of indented and fenced blocks, continued lines joined, comments cut off. */
function commands(): string[] {
  let fenced = false;
  const blocks = DOCUMENTS.split("\n").filter((line) => {
    if (line.startsWith("```")) fenced = !fenced;
    return fenced || line.startsWith("    ");
  }).join("\n");
  return blocks.replaceAll("\\\n", " ").split("\n").map((line) =>
    line.replace(/\s#\s.*$/, "").trim().replace(/\s+/g, " ")
  );
}

/** The one command that begins so, wherever it is printed: its words, capitals replaced. */
function words(start: string, replace: Record<string, string>): string[] {
  const found = [...new Set(commands().filter((line) => line.startsWith(start)))];
  assertEquals(found.length, 1, `README and docs have one line that begins with: ${start}`);
  const parts = found[0].match(/"[^"]*"|\S+/g)!.map((word) => word.replaceAll('"', ""));
  return parts.map((word) =>
    Object.entries(replace).reduce((text, [name, value]) => text.replace(name, value), word)
  );
}

Deno.test("README: every vmsg command is accepted", async () => {
  const lines = commands().filter((line) => line.startsWith("vmsg "));
  assert(lines.length >= 20);
  for (const line of lines) {
    // What a shell does with the output is its own affair.
    const [, name, ...args] = line.replace(/ > \S+$/, "").split(" ");
    const command = await COMMANDS[name]();
    const options = parseOptions(command, args);
    if ("parse" in command) command.parse(options);
    if (name === "ctl") requestOf(options, options.operands.slice(1));
  }
});

Deno.test("README: the options of its tables are accepted", () => {
  const cells = DOCUMENTS.matchAll(/^\| `([a-z0-9=,./]+)` \| [^|]*\| [^|]*\|$/gm);
  const kinds = [...cells].map(([, cell]) => cell).filter((cell) => !cell.includes("cli"));
  const nets = kinds.filter((cell) => /^(responder|tap|passt|packet|hub)/.test(cell));
  assertEquals(nets.length, 5);
  const bus = ["--bus", "linux-user,socket=lu.sock"];
  for (const net of nets) {
    deviceCommand.parse(parseOptions(deviceCommand, [...bus, "--net", net]));
  }
});

Deno.test("README: the device of one's own is docs/examples/own_device.ts, which runs", async () => {
  const example = await Deno.readTextFile(new URL("docs/examples/own_device.ts", ROOT));
  assert(DOCUMENTS.includes("```ts ignore\n" + example + "```\n"));
  assert(example.split("\n").length <= 41);
});

Deno.test("README: its deno tasks exist", async () => {
  const config = JSON.parse(await Deno.readTextFile(new URL("deno.json", ROOT)));
  const found = [...DOCUMENTS.matchAll(/(?:deno|deno@[\d.]+) task ([\w:-]+)/g)];
  assert(found.length > 4);
  for (const [, task] of found) assertMatch(config.tasks[task] ?? "", /deno/, `deno task ${task}`);
});

const DEMO_TASKS: Readonly<Record<string, Command>> = {
  "demo:guest": demoGuestTask,
  "demo:ivshmem": demoIvshmemTask,
  "demo:ivshmem-arm64": demoIvshmemTask,
  "demo:demo2b-arm64": demoIvshmemTask,
  "demo:xen": demoXenTask,
  "demo:xen-arm64": demoXenTask,
};

Deno.test("README: the options of its demos are accepted", () => {
  const demos = commands().flatMap((line) => {
    const [, name = "", args = ""] = line.match(/^(?:npx -y )?deno\S* task (demo:\S+)\s*(.*)$/) ??
      [];
    return name === "" ? [] : [{ name, args: args.split(" ").filter((word) => word !== "") }];
  });
  assert(demos.length >= 4);
  for (const { name, args } of demos) parseOptions(DEMO_TASKS[name], args);
});

const SCRIPT = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });

/** Starts the two processes as printed, and writes the initrd that the guest's line names. */
async function startBoth(
  { installation, directory, vmsg }: GuestTest,
  device = words("vmsg device --bus linux-user,socket=bus.sock --net responder", {}).slice(1),
): Promise<void> {
  const initramfs = await guestInitramfs(installation, { script: SCRIPT });
  await Deno.writeFile(`${directory}/initrd`, initramfs);
  const [, ...proxy] = words("vmsg proxy --bus linux-user,socket=bus.sock --vhost-user", {});
  await vmsg.start(...device);
  await (await vmsg.start(...proxy)).waitFor(/waiting for a front end/);
}

guestTest("README: User-Mode Linux as printed", "uml", async (test) => {
  await startBoth(test);
  const { directory, vmsg } = test;
  // Where it keeps its files is this test's business, not the example's.
  const places = [`TMPDIR=${directory}`, `HOME=${directory}`];
  const guest = await vmsg.startProgram(
    "env",
    ...places,
    ...words("linux.uml ", { INITRD: "initrd" }),
  );
  await guest.waitFor(/PING rc=0/, GUEST_TIMEOUT_MS.uml);
});

const MACHINES: readonly (readonly [kind: GuestKind, start: string])[] = [
  ["q35", "qemu-system-x86_64 -M q35,memory-backend=ram -m 256 -kernel VMLINUZ -initrd INITRD -"],
  ["microvm", "qemu-system-x86_64 -M microvm"],
  ["arm64", "qemu-system-aarch64 -M virt,memory-backend=ram"],
];
for (const [kind, start] of MACHINES) {
  guestTest(`README: QEMU ${kind} as printed`, kind, async (test) => {
    await startBoth(test);
    const files = { VMLINUZ: test.installation.kernel, INITRD: "initrd" };
    const [program, ...args] = words(start, files);
    const guest = await test.vmsg.startProgram(program, ...args);
    await guest.waitFor(/PING rc=0/, GUEST_TIMEOUT_MS[kind]);
    await guest.waitFor(new RegExp(DONE_LINE), GUEST_TIMEOUT_MS[kind]);
  });
}

/** A line for a shell, as printed. */
function line(start: string): string {
  return words(start, {}).join(" ");
}

// What a distribution has in its initrd and its udhcpc.
const MACHINE_MODULES = [
  ...["virtio_blk", "erofs", "tun", "bridge", "vfio_iommu_type1", "vfio_pci"],
];
const DHCP_SCRIPT = `#!/bin/sh
[ "$1" = bound ] && ip addr add "$ip/$mask" dev "$interface"
`;

machineTest("README: two machines as printed", "q35", async (test) => {
  const { directory, installation, vmsg } = test;
  await using memory = await openKeeper("/dev/shm");
  const places = {
    VMLINUZ: installation.kernel,
    DISK: await test.image(),
    "/dev/shm": memory.directory,
  };
  const bytes = new TextEncoder().encode(DHCP_SCRIPT);
  const files = [{ path: "etc/udhcpc/default.script", bytes }];
  const start = async (machine: "A" | "B", script: string) => {
    const parts = { script, files, modules: MACHINE_MODULES, disk: "/dev/vda" };
    await Deno.writeFile(
      `${directory}/${machine}.cpio`,
      await guestInitramfs(installation, parts),
    );
    const memoryOption = machine === "A" ? "" : ",memory-backend=ram";
    const printed = `qemu-system-x86_64 -M q35${memoryOption} -m 256 -kernel VMLINUZ -initrd ` +
      `INITRD_${machine} `;
    const [program, ...args] = words(printed, {
      ...places,
      [`INITRD_${machine}`]: `${machine}.cpio`,
    });
    return await vmsg.startProgram(program, ...args);
  };
  const server = await vmsg.start(...words("vmsg ivshmem-server --socket iv.sock", {}).slice(1));
  await server.waitFor(/waiting for peers/);
  const bridge = line("ip link add br0 ");
  const bus = "--bus ivshmem,pci=00:10.0,bind --memory";
  const device = line(`vmsg device ${bus} pci=00:11.0,at=0 --net tap=`);
  await start("A", `${bridge}\n${device}\n`);
  const driver = line(`vmsg driver ${bus} hugepages=10M --tap`);
  const b = await start(
    "B",
    `${driver} >/tmp/driver.log 2>&1 &
until grep "connected;" /tmp/driver.log; do sleep 0.1; done
${line("ip link set vm0 up")}
ping -c 3 10.0.2.2
echo "PING rc=$?"
`,
  );
  await b.waitFor(/PING rc=0/, 2 * GUEST_TIMEOUT_MS.q35);
});

guestlessTest(
  "README: several devices, and what is asked of them, as printed",
  {},
  async ({ vmsg }) => {
    const run = (start: string) => words(start, {}).slice(1);
    using disk = await Deno.open(`${vmsg.directory}/disk.img`, { write: true, createNew: true });
    await disk.truncate(1 << 20);
    await vmsg.start(...run("vmsg device --control ctl.sock"));
    const proxy = await vmsg.start(...run("vmsg proxy --vhost-user socket=net.sock"));
    await proxy.waitFor(/disk\.sock: waiting for a front end/);
    await proxy.waitFor(/a vmsg device side is there/);
    const said: string[] = [];
    for (
      const start of ["add --device blk,file=disk.img --number", "list", "link 0 down", "remove 2"]
    ) {
      const { code, stdout, stderr } = await vmsg.run(...run(`vmsg ctl ctl.sock ${start}`));
      assertEquals([code, stderr], [0, []], start);
      said.push(...stdout);
    }
    assertEquals(said.map((text) => text.split("\t")[0]), [
      "device 2: blk disk.img",
      "0",
      "1",
      "2",
    ]);
    await proxy.waitFor(/device 2 was removed/);
  },
);

const NETWORK = { programs: { ip: "iproute2", passt: "passt" }, root: true };

guestlessTest("README: a TAP and the user-space driver as printed", NETWORK, async ({ vmsg }) => {
  using _namespace = new Namespace();
  const [, ...device] = words("vmsg device --bus linux-user,socket=bus.sock --net tap=", {});
  const [, ...driver] = words("vmsg driver --bus linux-user,socket=bus.sock --count 5", {});
  await vmsg.start(...device);
  const pings = await vmsg.start(...driver);
  assertEquals((await pings.ended()).code, 0);
  assertMatch(pings.stdout.join("\n"), /5 packets transmitted, 5 received/);
});

guestTest("README: passt as printed", { guest: "uml", ...NETWORK }, async (test) => {
  using _namespace = new Namespace();
  // passt needs a way out to have something to offer.
  ip("link add up0 type veth peer name up1");
  ip("link set up0 up");
  ip("link set up1 up");
  ip("addr add 192.0.2.2/24 dev up0");
  ip("route add default via 192.0.2.1");
  const [, ...device] = words("vmsg device --bus linux-user,socket=bus.sock --net passt", {});
  await startBoth(test, device);
  const guest = await test.boot({ socket: `${test.directory}/vu.sock`, script: SCRIPT });
  await guest.waitFor(/^LEASE 192\.0\.2\.2/, GUEST_TIMEOUT_MS.uml);
  // The capture is written soon after each frame.
  for (let tries = 0; (await Deno.stat(`${test.directory}/frames.pcap`)).size < 500; tries++) {
    assert(tries < 600, "the capture holds the DHCP exchange");
    await delay(100);
  }
});
