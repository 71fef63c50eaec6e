/**
 * ivshmem PCI functions where there is none: errors, and sysfs as a directory that looks like it. What
 * needs real functions is in tests/guest/ivshmem_end_test.ts.
 */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { bindToVfio } from "../../src/ivshmem/binding.ts";
import { hasDoorbell, ivshmemFunction, ivshmemFunctions } from "../../src/ivshmem/function.ts";
import { openSysfsEnd, openSysfsMemory, readOwnId } from "../../src/ivshmem/sysfs_end.ts";
import { openVfioEnd, openVfioMemory } from "../../src/ivshmem/vfio_end.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { groupFunctions, parseResources, pciAddress } from "../../src/linux/sysfs.ts";
import { createLog } from "../../src/observe/log.ts";

const log = createLog("test", "error", () => {});

const REGISTERS = "0x00000000febf1000 0x00000000febf10ff 0x0000000000040200";
const VECTORS = "0x00000000febf2000 0x00000000febf2fff 0x0000000000040200";
const MEMORY = "0x000000fe00000000 0x000000fe003fffff 0x000000000014220c";
const NONE = "0x0000000000000000 0x0000000000000000 0x0000000000000000";

const DOORBELL = "0000:00:10.0";
const PLAIN = "0000:00:11.0";
const OTHER = "0000:00:1f.0";

/** A sysfs with a doorbell and a plain function and another; gone when it is disposed. */
class FakeSysfs implements Disposable {
  readonly root = Deno.makeTempDirSync();

  constructor() {
    const bars = (vectors: string) => [REGISTERS, vectors, MEMORY, NONE, NONE, NONE].join("\n");
    const ivshmem = { vendor: "0x1af4\n", device: "0x1110\n", enable: "0\n" };
    this.add(DOORBELL, { ...ivshmem, driver_override: "(null)\n", resource: bars(VECTORS) });
    this.add(PLAIN, { ...ivshmem, driver_override: "(null)\n", resource: bars(NONE) });
    this.add(OTHER, { vendor: "0x8086\n", device: "0x2918\n", resource: "" });
  }

  path(name: string): string {
    return `${this.root}/${name}`;
  }

  device(address: string): string {
    return this.path(`bus/pci/devices/${address}`);
  }

  add(address: string, attributes: Readonly<Record<string, string>>): void {
    Deno.mkdirSync(this.device(address), { recursive: true });
    for (const [name, text] of Object.entries(attributes)) this.write(address, name, text);
  }

  write(address: string, name: string, text: string): void {
    Deno.writeTextFileSync(`${this.device(address)}/${name}`, text);
  }

  group(address: string, group: string): void {
    const devices = this.path(`kernel/iommu_groups/${group}/devices`);
    Deno.mkdirSync(devices, { recursive: true });
    Deno.symlinkSync(this.device(address), `${devices}/${address}`);
    Deno.symlinkSync(
      `../../../kernel/iommu_groups/${group}`,
      `${this.device(address)}/iommu_group`,
    );
  }

  driver(address: string, driver: string): void {
    const directory = this.path(`bus/pci/drivers/${driver}`);
    Deno.mkdirSync(directory, { recursive: true });
    for (const name of ["unbind", "bind"]) Deno.writeTextFileSync(`${directory}/${name}`, "");
    Deno.symlinkSync(directory, `${this.device(address)}/driver`);
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.root, { recursive: true });
  }
}

function fails(code: string, pattern: RegExp, body: () => unknown): void {
  const error = assertThrows(body, VmsgError);
  assertEquals(error.code, code, error.message);
  assertMatch(error.message, pattern);
  assert(!error.message.includes("\n") && !error.message.endsWith("."), error.message);
}

Deno.test("ivshmem: PCI addresses with and without a domain, and what is none", () => {
  assertEquals(pciAddress("0000:00:10.0"), "0000:00:10.0");
  assertEquals(pciAddress("00:1F.7"), "0000:00:1f.7");
  assertEquals(pciAddress("10000:e1:00.0"), "10000:e1:00.0");
  for (const text of ["", "x", "0000:00:20.0", "00:10.8", "00:10", "../../x", "00:10.0 "]) {
    fails("USAGE", /give DOMAIN:BUS:DEVICE.FUNCTION/, () => pciAddress(text));
  }
});

Deno.test("ivshmem: BARs are what `resource` says of them", () => {
  assertEquals(
    parseResources([REGISTERS, NONE, MEMORY, NONE, NONE, NONE, VECTORS].join("\n") + "\n"),
    [
      { start: 0xfebf1000, size: 256 },
      { start: 0, size: 0 },
      { start: 0xfe_0000_0000, size: 4 << 20 },
      { start: 0, size: 0 },
      { start: 0, size: 0 },
      { start: 0, size: 0 },
    ],
  );
});

Deno.test("ivshmem: functions are found by their ids, doorbells by their BAR1", () => {
  using sysfs = new FakeSysfs();
  sysfs.group(PLAIN, "5");
  sysfs.driver(PLAIN, "vfio-pci");
  const [doorbell, plain, ...rest] = ivshmemFunctions(sysfs.root);
  assertEquals(
    [doorbell?.address, plain?.address, rest.length, hasDoorbell(doorbell!), hasDoorbell(plain!)],
    [DOORBELL, PLAIN, 0, true, false],
  );
  assertEquals([doorbell?.driver, doorbell?.iommuGroup], [undefined, undefined]);
  assertEquals([plain?.driver, plain?.iommuGroup], ["vfio-pci", "5"]);
  assertEquals(groupFunctions("5", sysfs.root).map(({ address }) => address), [PLAIN]);
  assertEquals(readOwnId(doorbell!), undefined);
  assertEquals(ivshmemFunctions(sysfs.path("nowhere")), []);
});

Deno.test("ivshmem: an address that is no ivshmem function is refused", () => {
  using sysfs = new FakeSysfs();
  const root = sysfs.root;
  const open = [
    (address: string) => ivshmemFunction(address, root),
    (address: string) => openVfioEnd(address, { log, sysfs: root }),
    (address: string) => openVfioMemory(address, { log, sysfs: root, bind: true }),
    (address: string) => openSysfsEnd(address, { log, sysfs: root }),
    (address: string) => openSysfsMemory(address, { sysfs: root }),
  ];
  for (const function_ of open) {
    fails("USAGE", /PCI address first: give/, () => function_("first"));
    fails("NO_PCI_FUNCTION", /no PCI function 0000:00:05.0/, () => function_("00:05.0"));
    fails("NOT_IVSHMEM", /0000:00:1f.0 is 8086:2918 and not ivshmem/, () => function_(OTHER));
  }
});

Deno.test("ivshmem: vfio says what it is that is missing", () => {
  using sysfs = new FakeSysfs();
  const open = (bind = false) => openVfioEnd(DOORBELL, { log, sysfs: sysfs.root, bind });
  for (const bind of [false, true]) {
    fails(
      "NO_IOMMU",
      /has no IOMMU group, .*intel_iommu=on .*or do without vfio$/,
      () => open(bind),
    );
  }
  Deno.mkdirSync(sysfs.path("module/vfio/parameters"), { recursive: true });
  const unsafe = sysfs.path("module/vfio/parameters/enable_unsafe_noiommu_mode");
  Deno.writeTextFileSync(unsafe, "N\n");
  fails("NO_IOMMU", /echo Y > .*enable_unsafe_noiommu_mode/, open);
  Deno.writeTextFileSync(unsafe, "Y\n");
  fails("NOT_BOUND", /bound to no driver/, open);

  sysfs.group(DOORBELL, "7");
  fails("NOT_BOUND", /no driver.*driver_override; echo 0000:00:10.0 > \S*drivers_probe$/, open);
  fails("NO_VFIO", /vfio-pci, which is not there: modprobe vfio-pci/, () => open(true));
  sysfs.driver(DOORBELL, "some_driver");
  fails("NOT_BOUND", /bound to some_driver.*driver\/unbind; echo .*drivers_probe$/, open);
});

Deno.test({
  name: "ivshmem: a machine without /dev/vfio says so",
  ignore: exists("/dev/vfio"),
  fn: () => {
    using sysfs = new FakeSysfs();
    sysfs.group(DOORBELL, "7");
    sysfs.driver(DOORBELL, "vfio-pci");
    fails(
      "NO_VFIO",
      /\/dev\/vfio\/vfio is not there: load the modules/,
      () => openVfioEnd(DOORBELL, { log, sysfs: sysfs.root }),
    );
  },
});

Deno.test("ivshmem: a binding that fails puts everything back", () => {
  using sysfs = new FakeSysfs();
  sysfs.group(DOORBELL, "7");
  // The driver is there, but this sysfs does nothing.
  sysfs.driver(OTHER, "vfio-pci");
  Deno.writeTextFileSync(sysfs.path("bus/pci/drivers_probe"), "");
  const said: string[] = [];
  const pci = ivshmemFunction(DOORBELL, sysfs.root);
  const told = createLog("test", "debug", (line) => said.push(line));
  fails("BIND", /cannot be bound to vfio-pci: see the kernel's log/, () => bindToVfio(pci, told));
  assertEquals(pci.attribute("driver_override"), "");
  assertEquals(Deno.readTextFileSync(sysfs.path("bus/pci/drivers_probe")), DOORBELL);
  assertEquals(said, [`test: ivshmem ${DOORBELL} is back with no driver`]);

  // One that is bound already is left so.
  sysfs.driver(PLAIN, "vfio-pci");
  using binding = bindToVfio(ivshmemFunction(PLAIN, sysfs.root), told);
  assertEquals(binding.changed, false);
});

Deno.test("ivshmem: sysfs alone maps no function that a driver has", () => {
  using sysfs = new FakeSysfs();
  sysfs.write(DOORBELL, "resource0", "");
  sysfs.driver(DOORBELL, "some_driver");
  sysfs.driver(PLAIN, "vfio-pci");
  const root = sysfs.root;
  const unbind = /bound to some_driver.*echo 0000:00:10.0 > \S*driver\/unbind$/;
  fails("FUNCTION_BUSY", unbind, () => openSysfsEnd(DOORBELL, { log, sysfs: root }));
  fails("FUNCTION_BUSY", /use it through vfio/, () => openSysfsMemory(PLAIN, { sysfs: root }));
});

Deno.test("ivshmem: sysfs alone maps the files of BAR2, and takes back that it enabled", () => {
  using sysfs = new FakeSysfs();
  const size = 4 << 20;
  const fill = (name: string, byte: number) =>
    Deno.writeFileSync(`${sysfs.device(PLAIN)}/${name}`, new Uint8Array(size).fill(byte));
  const look = (writeCombining: boolean) => {
    using memory = openSysfsMemory(PLAIN, { sysfs: sysfs.root, writeCombining });
    assertEquals(memory.size, size);
    assertEquals(ivshmemFunction(PLAIN, sysfs.root).attribute("enable"), "1");
    return [new Uint8Array(memory.buffer)[size - 1], memory.isDeviceMemory];
  };
  fill("resource2", 2);
  assertEquals(look(true), [2, true]);
  fill("resource2_wc", 3);
  assertEquals([look(true), look(false)], [[3, false], [2, true]]);
  assertEquals(ivshmemFunction(PLAIN, sysfs.root).attribute("enable"), "0");
});

Deno.test("ivshmem: two users of one function through sysfs are not possible, rings are stores", () => {
  using sysfs = new FakeSysfs();
  const registers = `${sysfs.device(DOORBELL)}/resource0`;
  Deno.writeFileSync(registers, new Uint8Array(4096));
  Deno.writeFileSync(`${sysfs.device(DOORBELL)}/resource2`, new Uint8Array(4 << 20));
  const open = () => openSysfsEnd(DOORBELL, { log, sysfs: sysfs.root });
  {
    using end = open();
    fails("FUNCTION_BUSY", /in use by another process/, open);
    assertEquals([end.id, end.interrupts, end.peers], [0, false, undefined]);
    assertEquals(end.pin(0x1000n, 4096), undefined);
    end.ring(0x8001);
  }
  const words = new Uint32Array(Deno.readFileSync(registers).buffer);
  assertEquals([...words.slice(0, 5)], [0, 0, 0, 0x8001_0000, 0]);
  using _again = open();
});

Deno.test({
  name: "ivshmem: sysfs alone, as a user who was given the files but may not enable",
  // Root may write whatever the mode is; tests run as a user by deno task test:user.
  ignore: Deno.uid() === 0,
  fn: () => {
    using sysfs = new FakeSysfs();
    Deno.writeFileSync(`${sysfs.device(PLAIN)}/resource2`, new Uint8Array(4 << 20));
    Deno.chmodSync(`${sysfs.device(PLAIN)}/enable`, 0o444);
    const open = () => openSysfsMemory(PLAIN, { sysfs: sysfs.root });
    fails("NO_PERMISSION", /be root, or have root do it: echo 1 > \S*enable$/, open);
    Deno.chmodSync(`${sysfs.device(PLAIN)}/enable`, 0o644);
    sysfs.write(PLAIN, "enable", "1\n");
    Deno.chmodSync(`${sysfs.device(PLAIN)}/enable`, 0o444);
    open()[Symbol.dispose]();
    assertEquals(ivshmemFunction(PLAIN, sysfs.root).attribute("enable"), "1");
  },
});

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
