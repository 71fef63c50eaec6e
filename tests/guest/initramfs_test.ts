import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { type CpioEntry, writeCpio } from "../../scripts/lab/cpio.ts";
import { elfNeeded, isStaticProgram } from "../../scripts/lab/elf.ts";
import { buildInitramfs, type InitramfsParts } from "../../scripts/lab/initramfs.ts";
import { loadModules, moduleDependencies } from "../../scripts/lab/kernel_modules.ts";
import { compareVersions, DONE_LINE, findKernelBelow } from "../../scripts/lab/machines.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { UsageError, VmsgError } from "../../src/linux/errors.ts";
import { assertEndsWell, GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const encode = (text: string) => new TextEncoder().encode(text);

/** Runs a program; undefined where there is none of that name. */
async function run(
  [program = "", ...args]: readonly string[],
  { input, cwd = "/" }: { input?: Uint8Array; cwd?: string } = {},
): Promise<Uint8Array | undefined> {
  let child: Deno.ChildProcess;
  try {
    const stdio = { stdin: "piped", stdout: "piped", stderr: "null" } as const;
    child = new Deno.Command(program, { args, cwd, ...stdio }).spawn();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  const writer = child.stdin.getWriter();
  const written = writer.write(input ?? new Uint8Array(0)).then(() => writer.close());
  const [{ success, stdout }] = await Promise.all([child.output(), written]);
  assert(success, `${program} failed`);
  return stdout;
}

const decoder = new TextDecoder();

const ENTRIES: readonly CpioEntry[] = [
  { kind: "directory", path: "bin" },
  { kind: "file", path: "bin/odd", bytes: encode("12345"), mode: 0o751 },
  { kind: "file", path: "bin/empty", bytes: new Uint8Array(0) },
  { kind: "symlink", path: "bin/link", target: "odd" },
  { kind: "directory", path: "dev", mode: 0o700 },
  { kind: "character-device", path: "dev/console", major: 5, minor: 1, mode: 0o600 },
];

const PARTS: InitramfsParts = {
  busybox: encode("busybox"),
  modules: [{ name: "card", bytes: encode("card") }],
  script: "echo hello",
  files: [
    { path: "usr/share/a", bytes: encode("a") },
    { path: "usr/share/b", bytes: encode("b"), mode: 0o600 },
    { path: "bin/tool", bytes: encode("tool") },
  ],
};

/** Foreign readers of archives. */
const READERS = [["cpio"], ["busybox", "cpio"]];

for (const reader of READERS) {
  const available = await run([...reader, "--help"]).catch(() => undefined) !== undefined;
  const name = `${reader.join(" ")} reads what writeCpio writes`;
  if (!available) console.log(`NOT RUN: ${name}: there is no ${reader[0]}`);
  Deno.test({ name, ignore: !available }, async () => {
    await using keeper = await openKeeper();
    const cwd = keeper.directory;
    const archive = writeCpio(ENTRIES);

    const listed = decoder.decode(await run([...reader, "-tv"], { input: archive, cwd }));
    const lines = listed.trimEnd().split("\n").map((line) => line.split(/\s+/));
    assertEquals(lines.map((words) => words[0]), [
      "drwxr-xr-x",
      "-rwxr-x--x",
      "-rw-r--r--",
      "lrwxrwxrwx",
      "drwx------",
      "crw-------",
    ]);
    // busybox shows no device numbers; that the kernel finds its console, the boot tests show.
    if (reader[0] === "cpio") assertMatch(lines[5]?.join(" ") ?? "", / 5, ?1 .* dev\/console$/);

    // Without the device, which only root may make.
    const plain = writeCpio(ENTRIES.filter(({ kind }) => kind !== "character-device"));
    await run([...reader, "-i"], { input: plain, cwd });
    assertEquals(await Deno.readTextFile(`${cwd}/bin/odd`), "12345");
    assertEquals((await Deno.stat(`${cwd}/bin/odd`)).mode! & 0o777, 0o751);
    assertEquals((await Deno.stat(`${cwd}/bin/empty`)).size, 0);
    assertEquals(await Deno.readLink(`${cwd}/bin/link`), "odd");

    const initramfs = buildInitramfs(PARTS);
    const names = decoder.decode(await run([...reader, "-t"], { input: initramfs })).split("\n");
    const expected = ["init", "run.sh", "modules/card.ko", "usr/share", "usr/share/b", "bin/tool"];
    for (const path of expected) assert(names.includes(path), `${path} in ${names}`);
  });
}

Deno.test("writeCpio writes the same bytes each time, in whole blocks", () => {
  const archive = writeCpio(ENTRIES);
  assertEquals(archive, writeCpio(ENTRIES));
  assertEquals(archive.length % 512, 0);
});

Deno.test("writeCpio refuses what a kernel would drop silently", () => {
  const file = (path: string): CpioEntry => ({ kind: "file", path, bytes: encode("x") });
  const directory = (path: string): CpioEntry => ({ kind: "directory", path });
  assertThrows(() => writeCpio([file("a/b")]), Error, "no directory before a/b");
  assertThrows(() => writeCpio([file("a/b"), directory("a")]), Error, "no directory");
  assertThrows(() => writeCpio([file("a"), file("a/b")]), Error, "no directory");
  assertThrows(() => writeCpio([file("a"), file("a")]), Error, "twice");
  for (const path of ["/a", "", "a//b", "../a", "./a", "a/", "TRAILER!!!", "a\0b"]) {
    assertThrows(() => writeCpio([directory("a"), file(path)]), Error, "not a path");
  }
});

/** A 64-bit ELF file with section .modinfo; or cut short after `length` bytes. */
function fakeModule(modinfo: string, length = Infinity): Uint8Array {
  const names = encode("\0.modinfo\0.shstrtab\0");
  const data = encode(modinfo);
  const [dataAt, namesAt] = [64, 64 + data.length];
  const table = namesAt + names.length;
  const bytes = new Uint8Array(table + 3 * 64);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setBigUint64(40, BigInt(table), true);
  view.setUint16(58, 64, true);
  view.setUint16(60, 3, true);
  view.setUint16(62, 2, true);
  bytes.set(data, dataAt);
  bytes.set(names, namesAt);
  const section = (index: number, name: number, at: number, size: number) => {
    view.setUint32(table + 64 * index, name, true);
    view.setBigUint64(table + 64 * index + 24, BigInt(at), true);
    view.setBigUint64(table + 64 * index + 32, BigInt(size), true);
  };
  section(1, 1, dataAt, data.length);
  section(2, 10, namesAt, names.length);
  return bytes.subarray(0, Math.min(length, bytes.length));
}

const info = (name: string, depends: string) => `license=GPL\0depends=${depends}\0name=${name}\0`;

/** A modules directory of these files: path below it -> contents. */
async function modulesDirectory(root: string, files: Record<string, Uint8Array>): Promise<string> {
  const directory = `${root}/lib/modules/1.2.3-cloud-amd64`;
  for (const [path, bytes] of Object.entries(files)) {
    const file = `${directory}/${path}`;
    await Deno.mkdir(file.slice(0, file.lastIndexOf("/")), { recursive: true });
    await Deno.writeFile(file, bytes);
  }
  return directory;
}

Deno.test("modules come after those they depend on, each once", async () => {
  await using keeper = await openKeeper();
  const directory = await modulesDirectory(keeper.directory, {
    "kernel/net/card.ko": fakeModule(info("card", "helper-one,base_two")),
    "kernel/net/helper_one.ko": fakeModule(info("helper_one", "base-two")),
    "kernel/lib/deep/base-two.ko": fakeModule(info("base_two", "inside")),
    "kernel/lib/other.ko": fakeModule(info("other", "")),
    "modules.builtin": encode("kernel/lib/inside.ko\nkernel/lib/built-in.ko\n"),
  });
  const modules = await loadModules(directory, ["card", "built_in", "other", "card", "maybe"], {
    optional: ["maybe"],
  });
  assertEquals(modules.map(({ name }) => name), ["base_two", "helper_one", "card", "other"]);
  assertEquals(modules[3]?.bytes, fakeModule(info("other", "")));

  const error = await assertRejects(() => loadModules(directory, ["gone"]), VmsgError);
  assertEquals(error.code, "MODULE_NOT_FOUND");
});

Deno.test("a missing dependency names who needs it", async () => {
  await using keeper = await openKeeper();
  const directory = await modulesDirectory(keeper.directory, {
    "kernel/card.ko": fakeModule(info("card", "gone")),
  });
  await assertRejects(() => loadModules(directory, ["card"]), VmsgError, "gone, which card needs");
});

Deno.test("dependencies of a file that is no module, or is cut short", () => {
  assertEquals(moduleDependencies(fakeModule("depends=a-b,c\0")), ["a_b", "c"]);
  assertEquals(moduleDependencies(encode("no module")), []);
  for (let length = 0; length < fakeModule("depends=a\0").length; length++) {
    moduleDependencies(fakeModule("depends=a\0", length));
  }
});

const compressed = await run(["xz", "-c"], { input: fakeModule(info("packed", "")) });
const xzName = "compressed modules are decompressed";
if (compressed === undefined) console.log(`NOT RUN: ${xzName}: there is no xz`);
Deno.test({ name: xzName, ignore: compressed === undefined }, async () => {
  await using keeper = await openKeeper();
  const directory = await modulesDirectory(keeper.directory, {
    "kernel/packed.ko.xz": compressed!,
    "kernel/broken.ko.xz": encode("not xz"),
  });
  const modules = await loadModules(directory, ["packed"]);
  assertEquals(modules, [{ name: "packed", bytes: fakeModule(info("packed", "")) }]);
  await assertRejects(() => loadModules(directory, ["broken"]), VmsgError, "cannot decompress");
});

Deno.test("the newest kernel that has modules is found, wherever they lie", async () => {
  await using keeper = await openKeeper();
  const root = `${keeper.directory}/`;
  assertEquals(await findKernelBelow(root), undefined);
  await Deno.mkdir(`${root}boot`);
  const releases = ["6.1.9-cloud-amd64", "6.1.10-cloud-amd64", "6.12.1-amd64", "6.13.0-rt"];
  for (const release of releases) await Deno.writeTextFile(`${root}boot/vmlinuz-${release}`, "");
  assertEquals(await findKernelBelow(root), undefined);
  await Deno.mkdir(`${root}lib/modules/6.1.9-cloud-amd64/kernel`, { recursive: true });
  await Deno.mkdir(`${root}usr/lib/modules/6.1.10-cloud-amd64/kernel`, { recursive: true });
  await Deno.mkdir(`${root}lib/modules/6.12.1-amd64`, { recursive: true });
  assertEquals(await findKernelBelow(root), {
    image: `${root}boot/vmlinuz-6.1.10-cloud-amd64`,
    release: "6.1.10-cloud-amd64",
    modules: `${root}usr/lib/modules/6.1.10-cloud-amd64`,
  });
});

Deno.test("versions are ordered by their numbers", () => {
  const ordered = ["6.1.9", "6.1.10", "6.12.99+deb12", "6.12.100+deb12", "6.12.100+deb13"];
  assertEquals([...ordered].reverse().sort(compareVersions), ordered);
  assertEquals(compareVersions("6.1", "6.1"), 0);
  assert(compareVersions("6.1", "6.1.1") < 0);
});

Deno.test("a script is no static program", () => {
  assertEquals(isStaticProgram(encode("#!/bin/sh\n")), false);
  assertEquals(isStaticProgram(fakeModule("depends=a\0")), true);
});

Deno.test("the libraries that a program needs", async () => {
  assert(elfNeeded(await Deno.readFile("/bin/sh")).includes("libc.so.6"));
  for (const bytes of [encode("#!/bin/sh\n"), fakeModule("depends=a\0")]) {
    assertEquals(elfNeeded(bytes), []);
  }
});

Deno.test("pingScript is a script, and takes nothing but addresses", async () => {
  for (const address of ["dhcp", "10.0.2.15/24"]) {
    const script = pingScript({ address, peer: "10.0.2.2", count: 3 });
    await run(["sh", "-n"], { input: encode(script) });
  }
  const wrong = [
    { address: "10.0.2.15" },
    { address: "10.0.2.256/24" },
    { address: "10.0.2.15/33" },
    { address: "10.0.2.15/24/1" },
    { peer: "$(reboot)" },
    { peer: "10.0.2.2\n" },
    { count: 0 },
    { count: 1.5 },
  ];
  for (const one of wrong) {
    const options = { address: "dhcp", peer: "10.0.2.2", count: 1, ...one };
    assertThrows(() => pingScript(options), UsageError);
  }
});

for (const kind of ["uml", "microvm"] as const) {
  guestTest(`a ${kind} guest boots, runs its script and powers itself off`, kind, async (test) => {
    const guest = await test.boot({
      script: `echo HELLO-FROM-GUEST; echo "MODULES $(cut -d' ' -f1 /proc/modules | tr '\\n' ' ')"`,
    });
    await guest.waitFor(/^HELLO-FROM-GUEST$/, GUEST_TIMEOUT_MS[kind]);
    assertMatch(await guest.waitFor(/^MODULES /, GUEST_TIMEOUT_MS[kind]), /virtio_net/);
    await guest.waitFor(new RegExp(`^${DONE_LINE}$`), GUEST_TIMEOUT_MS[kind]);
    await assertEndsWell(guest);
    assert(!/^insmod .* failed$/m.test(guest.console()), "a module was not inserted");
  });

  guestTest(`a ${kind} guest is ended with all that belongs to it`, kind, async (test) => {
    const guest = await test.boot({ script: "sleep 1000 & echo READY; wait" });
    await guest.waitFor(/^READY$/, GUEST_TIMEOUT_MS[kind]);
    await guest[Symbol.asyncDispose]();
    assertEquals((await guest.status).signal, "SIGKILL");
  });
}

guestTest("QEMU tells in one line that nobody listens on the socket", "microvm", async (test) => {
  const guest = await test.boot({ script: "", socket: `${test.directory}/nobody.sock` });
  const error = await assertRejects(
    () => guest.waitFor(/GUEST/, GUEST_TIMEOUT_MS.microvm),
    VmsgError,
    "nobody.sock",
  );
  assertEquals(error.code, "GUEST_ENDED");
});
