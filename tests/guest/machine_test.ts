/**
 * A machine that runs vmsg inside: it boots, finds its executable, its PCI functions and its huge
 * pages, its memory can be seen from this side, QEMU obeys, and nothing of it stays.
 */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { machineExecutable } from "../../scripts/lab/executable.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { findProgram, withLibraries } from "../../scripts/lab/libraries.ts";
import {
  DISK_ADDRESS,
  DOORBELL_ADDRESS,
  type MachineKind,
  type MachineOptions,
  NIC_ADDRESSES,
  OTHER_MEMORY_ADDRESS,
  startMachine,
} from "../../scripts/lab/machine.ts";
import { buildMachineImage } from "../../scripts/lab/machine_image.ts";
import type { QemuInstallation } from "../../scripts/lab/qemu.ts";
import { qmpCommand } from "../../scripts/lab/qmp.ts";
import { bindVfio } from "../../scripts/lab/scripts.ts";
import { UsageError, VmsgError } from "../../src/linux/errors.ts";
import { VERSION } from "../../src/version.ts";
import { machineTest } from "./machine_support.ts";
import { GUEST_TIMEOUT_MS } from "./support.ts";

const HUGE_PAGES = 8;
const MEMORY_MIB = 256;

// The string must not be in memory before the machine has written it, as part of this script.
const SCRIPT = `
echo "BOOT $(cat /proc/sys/kernel/random/boot_id)"
vmsg --version
vmsg doctor
echo "PCI" $(ls /sys/bus/pci/devices)
echo "CARDS" $(for card in /sys/class/net/eth*; do basename $(readlink -f $card/device/..); done)
echo "HUGE" $(sed -n 's/^HugePages_Total: *//p' /proc/meminfo)
${bindVfio(DOORBELL_ADDRESS)}
echo "DRIVER" $(basename $(readlink /sys/bus/pci/devices/${DOORBELL_ADDRESS}/driver))
echo "EXTRA" $(cat /extra/file)
echo "MAGIC-$((6 * 7))-WRITTEN" >/dev/shm/magic
sync
echo READY
# It ends with the machine.
vmsg device --bus linux-user,socket=/tmp/lu.sock &
sleep 1000
`;
const MAGIC = "MAGIC-42-WRITTEN";

/** True if a file holds a string; it is read in pieces that overlap. */
async function contains(path: string, text: string): Promise<boolean> {
  const decoder = new TextDecoder("latin1");
  using file = await Deno.open(path);
  const bytes = new Uint8Array(1 << 22);
  let before = "";
  for (;;) {
    const length = await file.read(bytes);
    if (length === null) return false;
    const here = before + decoder.decode(bytes.subarray(0, length));
    if (here.includes(text)) return true;
    before = here.slice(-text.length);
  }
}

/** The command line of the process that has this among its words. */
function commandLineWith(word: string): string[] | undefined {
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const words = Deno.readTextFileSync(`/proc/${name}/cmdline`).split("\0");
      if (words.some((candidate) => candidate.includes(word))) return words;
    } catch {
      // It has ended.
    }
  }
  return undefined;
}

for (const kind of ["q35", "arm64"] as const satisfies readonly MachineKind[]) {
  machineTest(`machine, ${kind}: vmsg inside, PCI, memory, reset, its end`, kind, async (test) => {
    const timeoutMs = GUEST_TIMEOUT_MS[kind];
    const server = await test.vmsg.start(
      ...["ivshmem-server", "--socket", "iv.sock", "--size", "1M", "--vectors", "2"],
    );
    await server.waitFor(/waiting for peers/);
    await using memory = await openKeeper("/dev/shm");
    assertMatch(memory.directory, /^\/dev\/shm\//);
    const [memoryFile, file] = ["own", "other"].map((name) => `${memory.directory}/${name}`);
    const extra = { path: "extra/file", bytes: new TextEncoder().encode("of the caller's") };
    const imageMs = performance.now();
    // Compiling is not measured.
    const image = await test.image([extra]);
    const startMs = performance.now();
    const machine = await test.start({
      script: SCRIPT,
      memoryMiB: MEMORY_MIB,
      memoryFile: memoryFile!,
      doorbell: { socket: `${test.directory}/iv.sock` },
      otherMemory: { file: file!, sizeMiB: MEMORY_MIB },
      nics: [{ netdev: "user,restrict=on" }, { netdev: "socket,udp=127.0.0.1:9,localaddr=:0" }],
      hugePages: HUGE_PAGES,
      reboots: true,
    });
    const secondsTo = async (pattern: RegExp) => {
      await machine.waitFor(pattern, timeoutMs);
      return ((performance.now() - startMs) / 1000).toFixed(1);
    };
    const boot = await machine.waitFor(/^BOOT /, timeoutMs);
    const seconds = [await secondsTo(/^BOOT /), await secondsTo(/^vmsg \d/)];
    console.log(`${kind}: script after ${seconds[0]} s, vmsg --version after ${seconds[1]} s`);
    console.log(`${kind}: image and executable after ${(startMs - imageMs).toFixed(0)} ms`);
    await machine.waitFor(/^READY$/, timeoutMs);
    const text = machine.console();
    const line = (pattern: RegExp) => text.match(pattern)?.[0];
    assertEquals(line(/^vmsg \d.*$/m), `vmsg ${VERSION}`);
    assertMatch(text, new RegExp(`^hugepages +yes +${HUGE_PAGES} `, "m"));
    assertMatch(text, new RegExp(`^ivshmem +(yes|partly) .*${DOORBELL_ADDRESS}`, "m"));
    for (
      const address of [DOORBELL_ADDRESS, OTHER_MEMORY_ADDRESS, ...NIC_ADDRESSES, DISK_ADDRESS]
    ) {
      assert(line(/^PCI .*$/m)?.split(" ").includes(address), line(/^PCI .*$/m));
    }
    assertEquals(line(/^CARDS .*$/m), `CARDS ${NIC_ADDRESSES.join(" ")}`);
    assertEquals(line(/^HUGE .*$/m), `HUGE ${HUGE_PAGES}`);
    assertEquals(line(/^DRIVER .*$/m), "DRIVER vfio-pci");
    assertEquals(line(/^EXTRA .*$/m), "EXTRA of the caller's");
    assert(!/ failed$/m.test(text), "a module or the disk is missing");
    assert(await contains(memoryFile!, MAGIC), `${MAGIC} is not in the memory`);
    assertEquals((await Deno.stat(file!)).size, MEMORY_MIB << 20);

    const isRunning = async () =>
      (await machine.qmp("query-status") as { running: boolean }).running;
    await machine.qmp("stop");
    assertEquals(await isRunning(), false);
    await machine.qmp("cont");
    assertEquals(await isRunning(), true);
    await assertRejects(() => machine.qmp("nonsense"), VmsgError, "nonsense");

    const { lineCount } = machine;
    await machine.qmp("system_reset");
    const again = await machine.waitFor(/^BOOT /, timeoutMs, lineCount);
    assert(again !== boot, "it is the same boot");

    const command = commandLineWith(image);
    const directory = command?.find((word) => word.endsWith("/initramfs.cpio"))
      ?.replace(/\/[^/]*$/, "");
    assertMatch(directory ?? "", /^\//, `QEMU has no initramfs: ${command}`);
    await machine.qmp("quit");
    assertEquals((await machine.status).code, 0);
    await machine[Symbol.asyncDispose]();
    assertEquals(commandLineWith(image), undefined);
    await assertRejects(() => Deno.stat(directory!), Deno.errors.NotFound);
    assertEquals((await server.end("SIGTERM")).code, 0);
    await memory[Symbol.asyncDispose]();
    await assertRejects(() => Deno.stat(memory.directory), Deno.errors.NotFound);
  });

  machineTest(`machine, ${kind}: ended by its script, and from outside`, kind, async (test) => {
    const ending = await test.start({ script: "vmsg device --bus linux-user,socket=/tmp/s &" });
    assertEquals((await ending.status).code, 0);
    assertMatch(ending.console(), /^GUEST-DONE$/m);
    const endless = await test.start({ script: "echo READY; sleep 1000" });
    await endless.waitFor(/^READY$/, GUEST_TIMEOUT_MS[kind]);
    await endless[Symbol.asyncDispose]();
    assertEquals((await endless.status).signal, "SIGKILL");
    const reset = await test.start({ script: "echo READY; sleep 1000" });
    await reset.waitFor(/^READY$/, GUEST_TIMEOUT_MS[kind]);
    // Without `reboots` that is its end.
    await reset.qmp("system_reset");
    assertEquals((await reset.status).code, 0);
  });
}

Deno.test("machine: what cannot be an image is told in one line", async () => {
  await using keeper = await openKeeper();
  const { directory } = keeper;
  const build = (executable: string, architecture: "x86_64" | "aarch64") =>
    assertRejects(() => buildMachineImage({ directory, architecture, executable }), VmsgError);
  const { arch } = Deno.build;
  const other = arch === "x86_64" ? "aarch64" : "x86_64";
  const program = (await findProgram("sh"))!;
  assertMatch((await build(`${directory}/nowhere`, arch)).message, /nowhere/);
  assertMatch((await build("/proc/self/cmdline", arch)).message, /is no \S+ executable/);
  assertMatch((await build(program, other)).message, /deno task compile --target/);
  assertEquals([...Deno.readDirSync(directory)], []);
});

Deno.test("machine: an executable that is named is a file", async () => {
  const { arch } = Deno.build;
  assertEquals(await machineExecutable("/bin/sh", arch), "/bin/sh");
  await assertRejects(() => machineExecutable("/nowhere", arch), VmsgError, "/nowhere");
});

Deno.test("machine: a program comes with its loader and libraries", async () => {
  const [program, ...libraries] = await withLibraries(Deno.execPath(), "/bin/deno");
  assertEquals(program, { from: Deno.execPath(), to: "/bin/deno" });
  assert(libraries.some(({ to }) => /\/ld-linux/.test(to)), "no loader");
  assert(libraries.some(({ to }) => /\/libc\.so\.6$/.test(to)), "no libc");
});

Deno.test("machine: options that no machine can have", async () => {
  const installation: QemuInstallation = {
    kind: "q35",
    qemu: "/nowhere/qemu",
    qemuVersion: "7.2",
    kernel: "/nowhere/vmlinuz",
    release: "6.12",
    modules: "/nowhere/modules",
    busybox: "/nowhere/busybox",
  };
  const wrong = (options: Partial<MachineOptions>, kind: QemuInstallation["kind"] = "q35") =>
    assertRejects(
      () => startMachine({ ...installation, kind }, { image: "", script: "", ...options }),
      UsageError,
    );
  const nic = { netdev: "user" };
  assertMatch((await wrong({ nics: [nic, nic, nic] })).message, /at most 2/);
  const otherMemory = { file: "/nowhere", sizeMiB: 320 };
  assertMatch((await wrong({ otherMemory })).message, /power of two/);
  assertMatch((await wrong({}, "microvm")).message, /microvm/);
  for (const address of ["00:10.0", "0000:00:10.0; reboot", "", "0000:00:10.8"]) {
    assertThrows(() => bindVfio(address), UsageError);
  }
});

Deno.test("machine: a QEMU that is not there, is silent, or hangs up", async () => {
  await using keeper = await openKeeper();
  const path = `${keeper.directory}/qmp.sock`;
  const fail = (timeoutMs: number) =>
    assertRejects(() => qmpCommand(path, "stop", undefined, timeoutMs), VmsgError);
  assertMatch((await fail(50)).message, /nobody listens/);
  const accepted: Deno.UnixConn[] = [];
  const listener = Deno.listen({ transport: "unix", path });
  const accept = async () => {
    const connection = await listener.accept();
    accepted.push(connection);
    return connection;
  };
  accept();
  assertMatch((await fail(100)).message, /no answer within 0.1 s/);
  accept().then((connection) => connection.close());
  assertMatch((await fail(1000)).message, /did not greet|hung up/);
  accept().then((connection) => connection.write(new TextEncoder().encode("{}nonsense\n")));
  await fail(1000);
  listener.close();
  for (const connection of [accepted[0], accepted[2]]) connection?.close();
});
