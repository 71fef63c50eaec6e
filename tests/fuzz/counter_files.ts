/**
 * Files of counters of two processes, damaged, cut off or of mere bytes, as `vmsg doctor` and `vmsg inspect` read them: refused in a line, or
 * a verdict of one line on each thing, whatever they say.
 */

import { assert } from "@std/assert";
import { withProcess } from "../../src/cli/stuck_links.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { CounterMemory, counterShape, countIn } from "../../src/observe/counters.ts";
import { type Instance, readPath } from "../../src/observe/figures.ts";
import { diagnoseProcesses } from "../../src/observe/live_link.ts";
import { DeviceState, PeerState, RequestState } from "../../src/observe/state.ts";
import type { Random } from "../support/mock_driver.ts";
import { mutate } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";

const SIZE = 8192;
const NOW_MS = 50_000;
const clock = { now: () => NOW_MS };
const Bus = counterShape("received", "sent", "malformed", "full");
const Doorbell = counterShape("rings", "interrupts");
const Driver = counterShape("received", "sent");
/** No process has it. */
const NOBODY = 0x7fff_fff0;

/** A file as a process would have it. */
function whole(subcommand: string): Uint8Array<ArrayBuffer> {
  const memory = new CounterMemory(new ArrayBuffer(SIZE), subcommand, NOBODY, 1.7e12);
  countIn(memory);
  try {
    const bus = new Bus("bus", "bus x");
    [bus.received, bus.sent] = [10, 12];
    new Doorbell("doorbell", "bus x").rings = 4;
    if (subcommand === "driver") {
      new Driver("driver", "device 0").received = 3;
      new RequestState().open(1, { kind: 3, device: 0, sentMs: NOW_MS - 5000 });
    } else {
      new PeerState(clock);
      for (const [number, id] of [[0, 1], [1, 2]] as const) {
        const device = new DeviceState(number, id, 2, clock);
        device.device(15, Uint32Array.of(0, 1));
        for (const index of [0, 1]) {
          const at = 4096 * (index + 1);
          const setup = { descriptorAddress: at, driverAddress: at, deviceAddress: at, size: 16 };
          device.queue(index, true, setup);
          device.kicked(index);
        }
      }
    }
  } finally {
    countIn(undefined);
  }
  return new Uint8Array(memory.buffer);
}

function damaged(random: Random, bytes: Uint8Array<ArrayBuffer>): Uint8Array {
  const copy = bytes.slice();
  const view = new DataView(copy.buffer);
  const used = view.getUint32(28, true);
  if (random.chance(0.05)) {
    for (let at = random.chance(0.5) ? 12 : 0; at < SIZE; at += 4) {
      view.setUint32(at, random.u32(), true);
    }
  } else {for (let n = random.below(6); n > 0; n--) {
      mutate(new DataView(copy.buffer, 8, used), random);
    }}
  return random.chance(0.3) ? copy.subarray(0, random.below(used + 64)) : copy;
}

export const COUNTER_FILE_FUZZERS: readonly Fuzzer[] = [{
  name: "counter-files",
  what: "damaged files of counters at doctor",
  async open(use) {
    const directory = Deno.makeTempDirSync({ prefix: "vmsg-test-" });
    const files = ["device", "driver"].map((name) =>
      ({ path: `${directory}/${name}.${NOBODY}`, bytes: whole(name) }) as const
    );
    const steps = new Set<string>();
    let refused = 0;
    const read = (path: string): readonly Instance[] => {
      try {
        return readPath(NOW_MS, path).instances;
      } catch (error) {
        if (!(error instanceof VmsgError)) throw error;
        assert(!error.message.includes("\n"), error.message);
        refused++;
        return [];
      }
    };
    const look = (random: Random, isSound: boolean) =>
      files.flatMap(({ path, bytes }) => {
        Deno.writeFileSync(path, isSound ? bytes : damaged(random, bytes));
        return read(path).map((one) => withProcess({ ...one, isRunning: random.chance(0.8) }));
      });
    try {
      await use({
        round(random) {
          const before = look(random, random.chance(0.5));
          const verdicts = diagnoseProcesses(look(random, false), NOW_MS, before);
          for (const { subject, seen, stuck } of verdicts) {
            const text = `${subject}: ${stuck?.step}: ${seen}`;
            assert(/^[ -~]*$/.test(text) && text.length < 2000, text);
            if (stuck !== undefined) steps.add(stuck.step.replaceAll(/\d+/g, "N"));
          }
        },
        finish(rounds) {
          assert(rounds < 500 || (steps.size > 5 && refused > 0), `${[...steps]}`);
          return `${refused} refused, ${steps.size} steps named`;
        },
      });
    } finally {
      Deno.removeSync(directory, { recursive: true });
    }
  },
}];
