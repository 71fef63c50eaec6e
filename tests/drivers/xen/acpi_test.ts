/** The tables of `vmsg xen-acpi`: as iasl makes them, with checksums, in an archive as a kernel reads it. */

import { assert, assertEquals } from "@std/assert";
import { acpiArchive, MAX_CARDS, MAX_VCPUS } from "../../../src/drivers/xen/acpi.ts";

/** The files of an archive in the "new ASCII" format. */
function unpack(bytes: Uint8Array): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  const text = (from: number, to: number) => new TextDecoder().decode(bytes.subarray(from, to));
  const aligned = (at: number) => (at + 3) & ~3;
  for (let at = 0;;) {
    assertEquals(text(at, at + 6), "070701");
    const field = (index: number) => parseInt(text(at + 6 + 8 * index, at + 14 + 8 * index), 16);
    const [size, nameSize] = [field(6), field(11)];
    const name = text(at + 110, at + 110 + nameSize - 1);
    if (name === "TRAILER!!!") return files;
    const data = aligned(at + 110 + nameSize);
    files.set(name, bytes.subarray(data, data + size));
    at = aligned(data + size);
  }
}

const hex = (bytes: Uint8Array) => bytes.toHex();

Deno.test("xen-acpi: the SSDT of one card is what iasl makes of its source", () => {
  const ssdt = unpack(acpiArchive(1, 1)).get("kernel/firmware/acpi/ssdt.aml")!;
  // DefinitionBlock ("", "SSDT", 2, "VMSG", "VIRTIO", 1) { Scope (\_SB) { Device (VR00) {
  //   Name (_HID, "LNRO0005") Name (_UID, ...) Name (_CRS, ResourceTemplate () {
  //     Memory32Fixed (ReadWrite, 0xd0000000, 0x200)
  //     Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 16 } }) } } }
  assertEquals(
    hex(ssdt.subarray(36)),
    "1044045c5f53425f5b823b56523030085f4849440d4c4e524f3030303500085f5549440a00" +
      "085f435253111a0a1786090001000000d00002000089060003011000000079" + "00",
  );
});

Deno.test("xen-acpi: the MADT has each processor's local APIC, and the IOAPIC", () => {
  const madt = unpack(acpiArchive(2, 1)).get("kernel/firmware/acpi/apic.aml")!;
  assertEquals(
    hex(madt.subarray(36)),
    "0000e0fe00000000" + "0008000001000000" + "0008010201000000" + "010c01000000c0fe00000000",
  );
  assertEquals(new TextDecoder().decode(madt.subarray(10, 19)), "Xen\0\0\0HVM");
  assert(new DataView(madt.buffer, madt.byteOffset).getUint32(24, true) > 0, "newer than Xen's");
});

Deno.test("xen-acpi: lengths and checksums, for all that can be asked for", () => {
  for (const [vcpus, cards] of [[1, 1], [8, 3], [MAX_VCPUS, MAX_CARDS]] as const) {
    const archive = acpiArchive(vcpus, cards);
    assertEquals(archive.length % 512, 0);
    const tables = [...unpack(archive).values()];
    assertEquals(tables.length, 2);
    for (const table of tables) {
      const view = new DataView(table.buffer, table.byteOffset);
      assertEquals(view.getUint32(4, true), table.length);
      assertEquals(table.reduce((sum, byte) => sum + byte, 0) % 256, 0);
    }
    const names = new TextDecoder("latin1").decode(tables[0]!).match(/VR0\d/g);
    assertEquals(names, Array.from({ length: cards }, (_, card) => `VR0${card}`));
  }
});
