/** `vmsg xen-acpi`: the tables that tell a PVH domain of its cards, to be put in front of its initrd. */

import { acpiArchive, MAX_CARDS, MAX_VCPUS } from "../drivers/xen/acpi.ts";
import { UsageError } from "../linux/errors.ts";
import type { Command } from "./command.ts";

/** See `vmsg xen-acpi --help`. */
export const xenAcpiCommand: Command = {
  name: "xen-acpi",
  summary: "x86 under Xen: writes the ACPI tables by which a PVH domain finds its cards",
  description:
    "Writes a cpio archive with an SSDT (the cards) and an MADT (an IOAPIC) to standard output. Put it in\n" +
    "front of the domain's initrd; its kernel takes them at boot. See docs/two-machines.md.",
  options: [
    { name: "vcpus", value: "N", required: true, help: "vcpus= of the domain's configuration" },
    { name: "cards", value: "N", default: "1", help: "how many --xen the domain has" },
  ],
  examples: ["vmsg xen-acpi --vcpus 1 > acpi.cpio; cat acpi.cpio initrd > domu.img"],
  run: async (options) => {
    const vcpus = options.wholeNumber("vcpus", 1, MAX_VCPUS)!;
    const cards = options.wholeNumber("cards", 1, MAX_CARDS)!;
    if (Deno.stdout.isTerminal()) {
      throw new UsageError(
        "these are bytes, give them a file: vmsg xen-acpi --vcpus 1 > acpi.cpio",
      );
    }
    const bytes = acpiArchive(vcpus, cards);
    for (let done = 0; done < bytes.length;) done += await Deno.stdout.write(bytes.subarray(done));
    return 0;
  },
};
