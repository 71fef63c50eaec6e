/**
 * `vmsg check` over shared memory alone, and over ivshmem with a server: a device side of ours keeps the rules, and ones
 * that are wrong are found, again and again on the same queues.
 */

import { assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { FAULT_MODES } from "../../src/check/faults.ts";
import { DEVICE_FAULTS } from "../conformance/device_faults.ts";
import { ALL, brokenIn } from "../conformance/fault.ts";
import { LED_DEVICE } from "../conformance/led_device.ts";
import { ruleOf } from "../conformance/wording.ts";
import type { Dialect } from "../../src/message/message.ts";
import { type Processes, processTest } from "../support/processes.ts";
import { assertKept, busOf, check, KINDS, makeFile, MEMORY, RAM_SIZE } from "./check_support.ts";

const WRONG_DEVICE = fromFileUrl(new URL("../conformance/wrong_device.ts", import.meta.url));
const SHM = "shm,file=shm";
const SHM_SIZE = 1 << 16;
const IVSHMEM = "ivshmem,server=iv.sock";
/** All wrong devices, which takes minutes; one otherwise, in every dialect. */
const FULL = Deno.env.get("VMSG_GUEST_FULL") !== undefined;
const FEW = ["every answer twice"];

interface Place {
  /** Makes what the bus needs. */
  readonly make: (vmsg: Processes) => Promise<void>;
  /** The bus as the device side is given it, and as the check is. */
  readonly device: string;
  readonly check: string;
  /** How often: again on the queues as a first check has left them, if the device side may meet another peer. */
  readonly times: number;
  /** Those that are tried there; all with VMSG_GUEST_FULL. */
  readonly dialects: readonly Dialect[];
}

const PLACES: Readonly<Record<string, Place>> = {
  shm: {
    make: (vmsg) => makeFile(vmsg, "shm", SHM_SIZE),
    device: SHM,
    check: SHM,
    times: 2,
    dialects: ["v1", "v1-2025", "rfc-q", "proto"],
  },
  amp1: {
    make: (vmsg) => makeFile(vmsg, "shm", SHM_SIZE),
    device: `${SHM},layout=amp1`,
    check: `${SHM},layout=amp1`,
    times: 2,
    dialects: ["rfc"],
  },
  ivshmem: {
    make: async (vmsg) => {
      const server = await vmsg.start("ivshmem-server", "--socket", "iv.sock", "--size", "1M");
      await server.waitFor(/iv\.sock/);
    },
    // Who checks is nobody's fellow, and not found by a name: the first to come is 0, the next one 1.
    device: `${IVSHMEM},peer=1`,
    check: `${IVSHMEM},peer=0`,
    times: 1,
    dialects: ["v1", "v1-2025", "proto"],
  },
};

for (const [name, place] of Object.entries(PLACES)) {
  const dialects = FULL ? ALL : place.dialects;
  for (const dialect of dialects) {
    processTest(`check: over ${name}, vmsg device keeps the rules of ${dialect}`, async (vmsg) => {
      await makeFile(vmsg, "ram", RAM_SIZE);
      await place.make(vmsg);
      const [args, unlike] = KINDS.net!;
      const device = await vmsg.start(
        "device",
        ...busOf(dialect, place.device),
        ...MEMORY,
        ...args,
      );
      await device.waitFor(/waiting for/);
      for (let n = 0; n < place.times; n++) {
        const result = await check(vmsg, ...busOf(dialect, place.check), ...MEMORY);
        assertKept(dialect, result, ["rfc-q", "proto"].includes(dialect) ? [] : unlike);
      }
    });
  }

  for (const [index, fault] of DEVICE_FAULTS.entries()) {
    if (!FULL && !FEW.includes(fault.what)) continue;
    for (const dialect of dialects) {
      const numbers = brokenIn(fault, "device", dialect).filter((number) =>
        !(number in LED_DEVICE) && !FAULT_MODES.some((mode) => mode === number)
      );
      if (numbers.length === 0) continue;
      processTest(
        `check: over ${name}, a device side that is wrong is found (${dialect}): ${fault.what}`,
        async (vmsg) => {
          await makeFile(vmsg, "ram", RAM_SIZE);
          await place.make(vmsg);
          const program = ["run", "-A", WRONG_DEVICE, `${index}`, dialect, place.device];
          const wrong = await vmsg.startProgram(Deno.execPath(), ...program);
          await wrong.waitFor(name === "shm" ? /driver side is there/ : /waiting for/);
          const wanted = numbers.flatMap((number) => ["--rule", number]);
          const args = [...busOf(dialect, place.check), ...MEMORY, "--device", "3", ...wanted];
          const [code, lines] = await check(vmsg, ...args);
          const failed = lines.filter(({ verdict }) => verdict === "FAIL").map(({ rule }) => rule);
          const inOrder = numbers.map((number) => ruleOf(number).number).toSorted();
          assertEquals([code, failed.sort()], [1, inOrder], JSON.stringify(lines));
        },
      );
    }
  }
}
