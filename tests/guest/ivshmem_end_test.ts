/**
 * ivshmem PCI functions of stock QEMU, used from inside two guests by tests/ivshmem/end_child.ts.
 *
 * All is done in one boot of both: booting takes longer than the rest. The first guest meets every
 * error and every way to open a function; then both play, the second first by vfio and then by sysfs.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { nativeTarget } from "../../scripts/toolchain.ts";
import { toolchainLacks } from "../support/executable.ts";
import { compiledFiles } from "./compiled_program.ts";
import { type GuestTest, guestTest } from "./support.ts";

const TIMEOUT_MS = 300_000;
const ROUNDS = 300;
const POLLED_ROUNDS = 50;
const PLAIN_SIZE = 1 << 20;
const PLAIN_TEXT = "what the host wrote";

const DOORBELL = "0000:00:10.0";
const PLAIN = "0000:00:11.0";
const SHARES_GROUP = "0000:00:12.0";
const NEIGHBOUR = "0000:00:12.1";
const TWINS = ["0000:00:13.0", "0000:00:13.1"] as const;
const EDU = "0000:00:14.0";
const ISA_BRIDGE = "0000:00:1f.0";
const EMPTY = "0000:00:1e.0";

const PCI = "/sys/bus/pci";
const OVERRIDE = `${PCI}/devices/${DOORBELL}/driver_override`;

/** What the first guest does, in this order. */
const ACTIONS: readonly string[] = [
  "doctor",
  `open,vfio,${EMPTY}`,
  `open,vfio,${ISA_BRIDGE}`,
  `open,vfio,${DOORBELL}`,
  `open,bind,${SHARES_GROUP}`,
  `driver,${SHARES_GROUP}`,
  `memory,sysfs,${PLAIN},by sysfs,64`,
  `memory,uncached,${PLAIN},uncached,128`,
  `memory,bind,${PLAIN},by vfio,192`,
  `open,bind,${PLAIN}`,
  `busy,sysfs,${DOORBELL}`,
  `busy,bind,${DOORBELL}`,
  `driver,${DOORBELL}`,
  `lend,bind,${DOORBELL}`,
  `both,${TWINS[0]},${TWINS[1]}`,
  `intx,${EDU}`,
  `write,${PCI}/devices/${EDU}/driver_override,uio_pci_generic`,
  `write,${PCI}/drivers_probe,${EDU}`,
  `uio,${EDU}`,
  `play,bind,${DOORBELL},ping,0,${ROUNDS}`,
  `play,bind,${DOORBELL},ping,1,${POLLED_ROUNDS}`,
  // Another driver has it, and gets it back.
  `write,${OVERRIDE},uio_pci_generic`,
  `write,${PCI}/drivers_probe,${DOORBELL}`,
  `open,sysfs,${DOORBELL}`,
  `open,vfio,${DOORBELL}`,
  `open,bind,${DOORBELL}`,
  `driver,${DOORBELL}`,
  // Bound by hand.
  `write,${PCI}/devices/${DOORBELL}/driver/unbind,${DOORBELL}`,
  `write,${OVERRIDE},vfio-pci`,
  `write,${PCI}/drivers_probe,${DOORBELL}`,
  `open,sysfs,${DOORBELL}`,
  `open,vfio,${DOORBELL}`,
  `driver,${DOORBELL}`,
  "doctor",
];

const FIRST = `
end_child ${ACTIONS.map((action) => `'${action}'`).join(" ")}
echo NOBODY
start-stop-daemon -S -c nobody -x /bin/end_child -- \\
  open,vfio,${DOORBELL} open,bind,${PLAIN} open,sysfs,${PLAIN}
echo GIVEN
cd ${PCI}/devices/${PLAIN}
chown nobody enable resource0 resource2 resource2_wc
start-stop-daemon -S -c nobody -x /bin/end_child -- open,sysfs,${PLAIN}
echo 1 >enable
start-stop-daemon -S -c nobody -x /bin/end_child -- 'memory,sysfs,${PLAIN},by nobody,256' open,sysfs,${PLAIN}
`;
const SECOND = `
end_child play,bind,${DOORBELL},pong,0 driver,${DOORBELL} play,sysfs,${DOORBELL},pong,1
`;

async function check(test: GuestTest): Promise<void> {
  const { vmsg, directory } = test;
  const child = new URL("../ivshmem/end_child.ts", import.meta.url);
  const text = (line: string) => new TextEncoder().encode(`${line}\n`);
  const files = [
    ...await compiledFiles(child, "bin/end_child", directory),
    { path: "etc/passwd", bytes: text("nobody:x:1000:1000::/:/bin/sh") },
    { path: "etc/group", bytes: text("nobody:x:1000:") },
  ];
  const server = await vmsg.start(
    ...["ivshmem-server", "--socket", "iv.sock", "--size", "4M", "--vectors", "2"],
  );
  await server.waitFor(/waiting for peers/);
  const plain = `${directory}/plain`;
  const bytes = new Uint8Array(PLAIN_SIZE);
  bytes.set(new TextEncoder().encode(PLAIN_TEXT));
  await Deno.writeFile(plain, bytes);

  const boot = (script: string, devices: string[]) =>
    test.boot({
      script,
      files,
      memoryMiB: 768,
      accelerator: "tcg",
      modules: ["vfio_iommu_type1", "vfio_pci", "uio_pci_generic"],
      kernelArgs: ["intel_iommu=on"],
      extraArgs: [
        ...["-device", "intel-iommu,intremap=on"],
        ...["-chardev", `socket,path=${vmsg.directory}/iv.sock,id=iv`],
        ...["-device", "ivshmem-doorbell,vectors=2,chardev=iv,addr=0x10"],
        ...devices,
      ],
    });
  const first = await boot(FIRST, [
    ...["-object", `memory-backend-file,id=plain,size=1M,mem-path=${plain},share=on`],
    ...["-device", "ivshmem-plain,memdev=plain,addr=0x11"],
    ...["-object", "memory-backend-ram,id=other,size=1M,share=on"],
    ...["-device", "ivshmem-plain,memdev=other,addr=0x12.0,multifunction=on"],
    ...["-device", "virtio-rng-pci,addr=0x12.1"],
    ...["-object", "memory-backend-ram,id=twin0,size=64K,share=on"],
    ...["-object", "memory-backend-ram,id=twin1,size=128K,share=on"],
    ...["-device", "ivshmem-plain,memdev=twin0,addr=0x13.0,multifunction=on"],
    ...["-device", "ivshmem-plain,memdev=twin1,addr=0x13.1"],
    ...["-device", "edu,addr=0x14"],
  ]);
  const second = await boot(SECOND, []);
  await first.waitFor(/^GUEST-DONE/, TIMEOUT_MS);
  await second.waitFor(/^GUEST-DONE/, TIMEOUT_MS);
  checkFirst(first.console().split("\n"), await Deno.readFile(plain));
  checkSecond(second.console().split("\n"));
  assertEquals((await server.end("SIGTERM")).code, 0);
}

/** What was printed for each action, in their order; the lines of the log apart. */
function answers(lines: readonly string[]): { action: string; lines: string[]; log: string[] }[] {
  const all: { action: string; lines: string[]; log: string[] }[] = [];
  for (const line of lines) {
    if (line.startsWith("DO ")) all.push({ action: line.slice(3), lines: [], log: [] });
    else if (line.startsWith("end: ")) all.at(-1)?.log.push(line.slice(5));
    else all.at(-1)?.lines.push(line);
  }
  return all;
}

/** Lines, each against a pattern, none missing and none besides. */
function assertLines(lines: readonly string[], patterns: readonly RegExp[]): void {
  assertEquals(lines.length, patterns.length, lines.join("\n"));
  lines.forEach((line, i) => assertMatch(line, patterns[i]!));
}

function checkFirst(lines: readonly string[], plain: Uint8Array): void {
  const all = answers(lines);
  const next = (action: string): string[] => {
    const answer = all.shift();
    assertEquals(answer?.action, action);
    return answer!.lines;
  };
  const doorbell = (state: string, rest: string) =>
    new RegExp(`^DOCTOR ivshmem ${state} ${DOORBELL} doorbell, 4 MiB, ${rest}`);
  const plains = [PLAIN, SHARES_GROUP, ...TWINS].map((address) =>
    new RegExp(`^DOCTOR ivshmem yes ${address} plain, \\S+ [KM]iB, no driver, IOMMU group \\d+$`)
  );
  const vfio = /^DOCTOR vfio yes \d+ IOMMU groups$/;

  assertLines(next("doctor"), [
    vfio,
    doorbell("partly", "no driver, IOMMU group \\d+: for interrupts .* bind"),
    ...plains,
  ]);
  assertLines(next(`open,vfio,${EMPTY}`), [/^ERROR NO_PCI_FUNCTION: /]);
  assertLines(next(`open,vfio,${ISA_BRIDGE}`), [/^ERROR NOT_IVSHMEM: .* 8086:\w+ and not/]);
  assertLines(next(`open,vfio,${DOORBELL}`), [/^ERROR NOT_BOUND: .* is bound to no driver,/]);
  assertLines(next(`open,bind,${SHARES_GROUP}`), [
    new RegExp(`^ERROR GROUP_NOT_VIABLE: .* unbind ${NEIGHBOUR} \\(virtio-pci\\)`),
  ]);
  assertLines(next(`driver,${SHARES_GROUP}`), [/ undefined \(null\)$/]);

  const written = (at: number, text: string) => {
    const found = plain.subarray(at, at + text.length + 1);
    assertEquals(new TextDecoder().decode(found), `${text}\0`);
  };
  const shown = (way: string, isDeviceMemory: boolean) =>
    new RegExp(`^MEMORY ${way} ${PLAIN_SIZE} device-memory=${isDeviceMemory} "${PLAIN_TEXT}"`);
  assertLines(next(`memory,sysfs,${PLAIN},by sysfs,64`), [shown("sysfs", false)]);
  assertLines(next(`memory,uncached,${PLAIN},uncached,128`), [shown("uncached", true)]);
  assertLines(next(`memory,bind,${PLAIN},by vfio,192`), [shown("bind", false)]);
  written(64, "by sysfs");
  written(128, "uncached");
  written(192, "by vfio");
  assertLines(next(`open,bind,${PLAIN}`), [
    /id=0 size=1048576$/,
    /^LIKE interrupts=false device-memory=false$/,
    /^PINNED true 0 kB -> 1024 kB$/,
  ]);

  for (const way of ["sysfs", "bind"]) {
    assertLines(next(`busy,${way},${DOORBELL}`), []);
    assertLines(next(`open,${way},${DOORBELL}`), [/^ERROR FUNCTION_BUSY: .* by another process/]);
  }
  assertLines(next(`driver,${DOORBELL}`), [/ undefined \(null\)$/]);
  assertLines(next(`lend,bind,${DOORBELL}`), [
    /^LENT 1, refused true, none left true$/,
    /^RANG 1 0, moved true: 0 1, refused true$/,
    /^AGAIN 1: 1 0$/,
  ]);
  assertLines(next(`both,${TWINS[0]},${TWINS[1]}`), [/^BOTH 65536 131072$/]);
  assertLines(next(`intx,${EDU}`), [/^INTX 5 of 5$/]);
  assertLines(next(`write,${PCI}/devices/${EDU}/driver_override,uio_pci_generic`), []);
  assertLines(next(`write,${PCI}/drivers_probe,${EDU}`), []);
  assertLines(next(`uio,${EDU}`), [/^UIO interrupts=true 5 of 5$/]);

  checkPing(next(`play,bind,${DOORBELL},ping,0,${ROUNDS}`), "vfio to vfio", ROUNDS);
  checkPing(next(`play,bind,${DOORBELL},ping,1,${POLLED_ROUNDS}`), "vfio to sysfs", POLLED_ROUNDS);

  assertLines(next(`write,${OVERRIDE},uio_pci_generic`), []);
  assertLines(next(`write,${PCI}/drivers_probe,${DOORBELL}`), []);
  assertLines(next(`open,sysfs,${DOORBELL}`), [
    /^OPENED sysfs .* id=0 size=4194304$/,
    /^LIKE interrupts=false device-memory=false$/,
    /^PINNED false 0 kB -> 0 kB$/,
  ]);
  assertLines(next(`open,vfio,${DOORBELL}`), [/^ERROR NOT_BOUND: .* to uio_pci_generic,/]);
  const opened = [
    /^OPENED \w+ .* id=0 size=4194304$/,
    /^LIKE interrupts=true device-memory=false$/,
    /^PINNED true 0 kB -> 1024 kB$/,
  ];
  assertLines(next(`open,bind,${DOORBELL}`), opened);
  assertLines(next(`driver,${DOORBELL}`), [/ uio_pci_generic uio_pci_generic$/]);
  for (const action of ACTIONS.slice(-7, -4)) assertLines(next(action), []);
  assertLines(next(`open,sysfs,${DOORBELL}`), [/^ERROR FUNCTION_BUSY: .* bound to vfio-pci/]);
  assertLines(next(`open,vfio,${DOORBELL}`), opened);
  assertLines(next(`driver,${DOORBELL}`), [/ vfio-pci vfio-pci$/]);
  assertLines(next("doctor"), [
    vfio,
    doorbell("yes", "vfio-pci, IOMMU group \\d+$"),
    ...plains,
    /^NOBODY$/,
  ]);
  assertLines(next(`open,vfio,${DOORBELL}`), [/^ERROR NO_PERMISSION: .*\/dev\/vfio\/\d+ may not/]);
  assertLines(next(`open,bind,${PLAIN}`), [
    /^ERROR NO_PERMISSION: .* may not be bound to vfio-pci/,
  ]);
  assertLines(next(`open,sysfs,${PLAIN}`), [
    /^ERROR NO_PERMISSION: .*resource0 may not/,
    /^GIVEN$/,
  ]);
  // The kernel lets no user enable, whoever has the file; what root has enabled may be used.
  assertLines(next(`open,sysfs,${PLAIN}`), [
    /^ERROR NO_PERMISSION: .* root do it: echo 1 > .*enable$/,
  ]);
  assertLines(next(`memory,sysfs,${PLAIN},by nobody,256`), [shown("sysfs", false)]);
  written(256, "by nobody");
  assertMatch(next(`open,sysfs,${PLAIN}`)[0] ?? "", /^OPENED sysfs .* size=1048576$/);
  assertEquals(all, []);
}

/** How often vector 0 interrupted, from the lines of /proc/interrupts before and after. */
function interruptsOf(lines: readonly string[]): number {
  const counts = lines.map((line) => /^INTERRUPTS \d+: (\d+) .* vfio-msix\[0\]/.exec(line)?.[1])
    .filter((count) => count !== undefined).map(Number);
  assertEquals(counts.length, 2, lines.join("\n"));
  assertEquals(counts[0], 0);
  return counts[1]!;
}

function checkPing(lines: readonly string[], who: string, rounds: number): void {
  assert(lines.includes("MET id=0 peer=1"), lines.join("\n"));
  const result = lines.find((line) => line.startsWith(`PING rounds=${rounds} `));
  assert(result !== undefined, lines.join("\n"));
  const interrupts = interruptsOf(lines);
  console.log(`${who}: ${result}, ${interrupts} interrupts`);
  // Rings coalesce.
  assert(interrupts > rounds / 2 && interrupts <= rounds + 1, `${interrupts} interrupts`);
}

function checkSecond(lines: readonly string[]): void {
  const [vfio, driver, sysfs, ...rest] = answers(lines);
  assertEquals(rest, []);
  assert(vfio!.lines.includes("MET id=1 peer=0"));
  assert(vfio!.lines.some((line) => line.startsWith(`PONG answered=${ROUNDS} `)));
  assert(interruptsOf(vfio!.lines) > ROUNDS / 2);
  assertMatch(driver!.lines[0]!, / undefined \(null\)$/);
  assert(sysfs!.lines.includes("MET id=1 peer=0"));
  assert(sysfs!.lines.some((line) => line.startsWith(`PONG answered=${POLLED_ROUNDS} rung=0 `)));
}

guestTest(
  "ivshmem: PCI functions inside guests, through vfio and sysfs",
  { guest: "q35", lacks: toolchainLacks(nativeTarget()) },
  check,
);
