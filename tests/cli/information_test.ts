/** Subcommands and flags that only say something. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { processTest } from "../support/processes.ts";

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
    const text = await vmsg.run("doctor");
    const json = await vmsg.run("doctor", "--json");
    assertEquals([text.code, json.code], [0, 0]);
    const findings = JSON.parse(json.stdout.join("\n"));
    assertEquals(findings.length, text.stdout.length);
    for (const [i, { name, state, detail, advice }] of findings.entries()) {
      assert(["yes", "no", "partly"].includes(state));
      // What is not there comes with what to do about it.
      if (state !== "yes") assert(advice.length > 0, name);
      assertEquals(text.stdout[i].startsWith(name), true);
      // Others use memory and files meanwhile: the numbers may differ, also in their length.
      const pattern = detail.slice(0, 8).replace(/[^\w]/g, ".").replace(/\d+/g, "\\d+");
      assertMatch(text.stdout[i], new RegExp(pattern));
    }
    const kvm = findings.find(({ name }: { name: string }) => name === "kvm");
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
