/**
 * README's examples: every line that calls vmsg is accepted by its parser, and the two guests of "Your own
 * guest" are booted with the commands as they are printed, but for the words in capitals.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { guestInitramfs } from "../../src/cli/guest/machines.ts";
import { pingScript } from "../../src/cli/guest/scripts.ts";
import { DONE_LINE } from "../../src/cli/guest/machines.ts";
import { parseBus } from "../../src/cli/bus_option.ts";
import { type Command, parseOptions } from "../../src/cli/command.ts";
import { demoCommand } from "../../src/cli/demo.ts";
import { deviceCommand } from "../../src/cli/device.ts";
import { doctorCommand } from "../../src/cli/doctor.ts";
import { driverCommand } from "../../src/cli/driver.ts";
import { parseMemory } from "../../src/cli/memory_option.ts";
import { parseHub, parseNet, parseTap } from "../../src/cli/net_option.ts";
import { parseVhostUser, proxyCommand } from "../../src/cli/proxy.ts";
import { GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";

const README = await Deno.readTextFile(new URL("../../README.md", import.meta.url));

/** The indented blocks' commands, continued lines joined, comments cut off. */
function commands(): string[] {
  const blocks = README.split("\n").filter((line) => line.startsWith("    ")).join("\n");
  return blocks.replaceAll("\\\n", " ").split("\n").map((line) =>
    line.replace(/\s#\s.*$/, "").trim().replace(/\s+/g, " ")
  );
}

/** The one command that begins so, its words, capitals replaced. */
function words(start: string, replace: Record<string, string>): string[] {
  const found = commands().filter((line) => line.startsWith(start));
  assertEquals(found.length, 1, `README has one line that begins with: ${start}`);
  const parts = found[0].match(/"[^"]*"|\S+/g)!.map((word) => word.replaceAll('"', ""));
  return parts.map((word) =>
    Object.entries(replace).reduce((text, [name, value]) => text.replace(name, value), word)
  );
}

const COMMANDS: Readonly<Record<string, Command>> = {
  demo: demoCommand,
  device: deviceCommand,
  doctor: doctorCommand,
  driver: driverCommand,
  proxy: proxyCommand,
};

Deno.test("README: every vmsg command is accepted", () => {
  const lines = commands().filter((line) => line.startsWith("vmsg "));
  assert(lines.length >= 6);
  for (const line of lines) {
    const [, name, ...args] = line.split(" ");
    const options = parseOptions(COMMANDS[name], args);
    const side = name === "device" ? "device" : "driver";
    if (options.text("bus") !== undefined) parseBus(options.text("bus")!, side);
    options.list("net").forEach(parseNet);
    options.list("hub").forEach(parseHub);
    options.list("memory").forEach(parseMemory);
    options.list("vhost-user").forEach(parseVhostUser);
    if (options.text("tap") !== undefined) parseTap(options.text("tap")!);
  }
});

Deno.test("README: the options of its tables are accepted", () => {
  const cells = README.matchAll(/^\| `([a-z0-9=,./]+)` \| [^|]*\| [^|]*\|$/gm);
  const kinds = [...cells].map(([, cell]) => cell).filter((cell) => !cell.includes("cli"));
  const nets = kinds.filter((cell) => /^(responder|tap|passt|packet|hub)/.test(cell));
  assertEquals(nets.length, 5);
  nets.forEach(parseNet);
});

Deno.test("README: its deno tasks exist", async () => {
  const config = JSON.parse(
    await Deno.readTextFile(new URL("../../deno.json", import.meta.url)),
  );
  const tasks = [...README.matchAll(/(?:deno|deno@[\d.]+) task ([\w:]+)/g)].map(([, task]) => task);
  assert(tasks.length > 4);
  for (const task of tasks) assertMatch(config.tasks[task] ?? "", /deno/, `deno task ${task}`);
});

const SCRIPT = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });

/** Starts the two processes as printed, and writes the initrd that the guest's line names. */
async function startBoth({ installation, directory, vmsg }: GuestTest): Promise<void> {
  const initramfs = await guestInitramfs(installation, { script: SCRIPT });
  await Deno.writeFile(`${directory}/initrd`, initramfs);
  const [, ...device] = words("vmsg device --bus linux-user,socket=bus.sock --net responder", {});
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

guestTest("README: QEMU as printed", "q35", async (test) => {
  await startBoth(test);
  const files = { VMLINUZ: test.installation.kernel, INITRD: "initrd" };
  const [program, ...args] = words("qemu-system-x86_64 ", files);
  const guest = await test.vmsg.startProgram(program, ...args);
  await guest.waitFor(/PING rc=0/, GUEST_TIMEOUT_MS.q35);
  await guest.waitFor(new RegExp(DONE_LINE), GUEST_TIMEOUT_MS.q35);
});
