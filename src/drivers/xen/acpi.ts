/**
 * How a PVH domain on x86 learns of its cards: ACPI tables in an archive in front of its initrd, which a kernel with
 * ACPI_TABLE_UPGRADE takes at boot (Documentation/admin-guide/acpi/initrd_table_override.rst).
 *
 *     SSDT   a device LNRO0005 (virtio-mmio) per card: its registers, and an edge of the IOAPIC
 *     MADT   instead of Xen's, which has no IOAPIC: a local APIC per processor, and ours
 *
 * All of it is numbers; the layouts are those of ACPI 6.5, 5.2.12 (MADT), 6.4 (resources) and 20.2 (AML).
 */

import { IOAPIC_ADDRESS, IOAPIC_PINS } from "./ioapic.ts";
import { REGISTERS_SIZE } from "../mmio/registers.ts";

/** Where the first card is; the others follow. RAM ends below in domains of up to 3 GiB. */
export const X86_BASE = 0xd000_0000;
/** The first card's pin; those below belong to devices of a PC. */
export const X86_IRQ = 16;
/** As many as there are pins. */
export const MAX_CARDS: number = IOAPIC_PINS - X86_IRQ;
/** APIC ids are even, and of 8 bits. */
export const MAX_VCPUS = 127;

const LOCAL_APIC_ADDRESS = 0xfee0_0000;
const HEADER_SIZE = 36;

const text = (characters: string, length = characters.length): number[] => [
  ...new TextEncoder().encode(characters.padEnd(length, "\0")),
];
const word = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);

/** A table behind its header, with a checksum. */
function table(
  signature: string,
  revision: number,
  [oem, name, version]: readonly [string, string, number],
  body: readonly number[],
): Uint8Array {
  const bytes = Uint8Array.from([
    ...text(signature),
    ...word(HEADER_SIZE + body.length),
    ...[revision, 0, ...text(oem, 6), ...text(name, 8), ...word(version)],
    ...[...text("VMSG"), ...word(1)],
    ...body,
  ]);
  bytes[9] = -bytes.reduce((sum, byte) => sum + byte, 0);
  return bytes;
}

/** A package of AML with its length in front, which counts itself. */
function sized(body: readonly number[]): number[] {
  const length = body.length + 1;
  return length < 0x40
    ? [length, ...body]
    : [0x40 | ((length + 1) & 15), (length + 1) >> 4, ...body];
}

function card(number: number): number[] {
  const resources = [
    // Memory32Fixed, writable
    ...[0x86, 9, 0, 1, ...word(X86_BASE + number * REGISTERS_SIZE), ...word(REGISTERS_SIZE)],
    // Interrupt: consumer, edge, active high
    ...[0x89, 6, 0, 3, 1, ...word(X86_IRQ + number)],
    ...[0x79, 0],
  ];
  const name = (id: string, value: readonly number[]) => [0x08, ...text(id), ...value];
  return [
    ...[0x5b, 0x82],
    ...sized([
      ...text(`VR0${number}`),
      ...name("_HID", [0x0d, ...text("LNRO0005"), 0]),
      ...name("_UID", [0x0a, number]),
      ...name("_CRS", [0x11, ...sized([0x0a, resources.length, ...resources])]),
    ]),
  ];
}

function ssdt(cards: number): Uint8Array {
  const all = Array.from({ length: cards }, (_, number) => card(number)).flat();
  return table("SSDT", 2, ["VMSG", "VIRTIO", 1], [0x10, ...sized([...text("\\_SB_"), ...all])]);
}

function madt(vcpus: number): Uint8Array {
  // Xen gives its processors every second id.
  const local = (number: number) => [0, 8, number, 2 * number, ...word(1)];
  return table("APIC", 2, ["Xen", "HVM", 1], [
    ...[...word(LOCAL_APIC_ADDRESS), ...word(0)],
    ...Array.from({ length: vcpus }, (_, number) => local(number)).flat(),
    ...[1, 12, 1, 0, ...word(IOAPIC_ADDRESS), ...word(0)],
  ]);
}

/** A file of a cpio archive in the "new ASCII" format. */
function member(path: string, data: Uint8Array, number: number): number[] {
  const isFile = data.length > 0;
  const fields = [number, isFile ? 0o100644 : 0, 0, 0, 1, 0, data.length, 0, 0, 0, 0];
  const hex = [...fields, path.length + 1, 0].map((field) => field.toString(16).padStart(8, "0"));
  const padded = (bytes: number[]) => [...bytes, ...Array(-bytes.length & 3).fill(0)];
  return padded([...padded([...text(`070701${hex.join("")}${path}`), 0]), ...data]);
}

/**
 * The archive, to be put in front of the domain's initrd.
 *
 * @param vcpus the domain's processors, as its configuration says
 * @param cards how many it has, 1 to {@link MAX_CARDS}
 */
export function acpiArchive(vcpus: number, cards: number): Uint8Array<ArrayBuffer> {
  const bytes = [
    ...member("kernel/firmware/acpi/ssdt.aml", ssdt(cards), 1),
    ...member("kernel/firmware/acpi/apic.aml", madt(vcpus), 2),
    ...member("TRAILER!!!", new Uint8Array(), 0),
  ];
  return Uint8Array.from([...bytes, ...Array(-bytes.length & 511).fill(0)]);
}
