/** Subcommands and flags that only say something. */

import { assert, assertEquals } from "@std/assert";
import { processTest, until } from "../support/processes.ts";

processTest(
  "cli: proxy --print-capabilities is JSON as QEMU's conventions have it",
  async (vmsg) => {
    const { code, stdout } = await vmsg.run("proxy", "--print-capabilities");
    assertEquals([code, JSON.parse(stdout.join("\n"))], [0, { type: "net" }]);
  },
);

processTest(
  "cli: doctor has a line for each thing it looks at, and the same as JSON",
  async (vmsg) => {
    interface Finding {
      readonly name: string;
      readonly state: string;
      readonly detail: string;
      readonly advice?: string;
    }
    let findings: Finding[] = [];
    // Others use memory and files meanwhile: numbers may differ, and what is there between the two looks.
    await until(async () => {
      const text = await vmsg.run("doctor");
      const json = await vmsg.run("doctor", "--json");
      assertEquals([text.code, json.code], [0, 0]);
      findings = JSON.parse(json.stdout.join("\n"));
      return findings.length === text.stdout.length && findings.every(({ name, detail }, i) => {
        const pattern = detail.slice(0, 8).replace(/[^\w]/g, ".").replace(/\d+/g, "\\d+");
        return text.stdout[i]!.startsWith(name) && new RegExp(pattern).test(text.stdout[i]!);
      });
    });
    for (const { name, state, advice } of findings) {
      assert(["yes", "no", "partly"].includes(state));
      // What is not there comes with what to do about it.
      if (state !== "yes") assert(advice !== undefined && advice.length > 0, name);
    }
    const kvm = findings.find(({ name }) => name === "kvm")!;
    const opens = await Deno.open("/dev/kvm", { read: true, write: true }).then(
      (file) => {
        file.close();
        return "yes";
      },
      () => "no",
    );
    assertEquals(kvm.state, opens);
  },
);
