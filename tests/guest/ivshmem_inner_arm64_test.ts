/**
 * A guest inside an arm64 machine, as `deno task demo:demo2b-arm64` shows it: a stock QEMU with KVM
 * in machine B, whose guest has its network card's device in machine A. The guest gets an address,
 * pings, and fetches a file of this host: confined, and with its own pages in machine A's reach.
 */

import { assertEquals, assertMatch } from "@std/assert";
import { ARM64_QEMU, arm64QemuRoot } from "../../scripts/lab/arm64_qemu.ts";
import { compiledExecutable, scriptCommand } from "../../scripts/lab/executable.ts";
import type { Lack } from "../support/needs.ts";
import { machineTest } from "./machine_support.ts";

const TARGET = "aarch64-unknown-linux-gnu";
const TIMEOUT_MS = 600_000;

function qemuLacks(): Lack[] {
  try {
    Deno.statSync(`${arm64QemuRoot()}${ARM64_QEMU}`);
    return [];
  } catch {
    const what = "QEMU for arm64 machines is missing: deno run -A scripts/fetch_arm64_qemu.ts";
    return [{ what, requiredBy: "VMSG_GUEST_TESTS" }];
  }
}

for (const mode of [[], ["--direct"]]) {
  const title = `arm64 machines: a guest under KVM inside B, ${mode[0] ?? "confined"}`;
  machineTest(title, "arm64", async ({ vmsg }) => {
    const executable = await compiledExecutable(TARGET);
    const startMs = performance.now();
    const args = ["--machine", "arm64", "--inner", ...mode, "--executable", executable];
    const demo = await vmsg.startProgram(...scriptCommand("lab/demo_ivshmem.ts", ...args));
    const { code, stdout } = await demo.ended(TIMEOUT_MS);
    const text = stdout.join("\n");
    assertMatch(text, /^B\| 3 packets transmitted, 3 packets received/m);
    assertMatch(text, /^B\| PING rc=0$/m);
    assertMatch(text, /^B\| FETCHED 4194304 bytes, checksum right$/m);
    assertMatch(text, /^TEST PASSED$/m);
    assertEquals(code, 0);
    console.log(`${title}: ${((performance.now() - startMs) / 1000).toFixed(0)} s`);
  }, qemuLacks());
}
