/**
 * Captures, damaged, cut off or of mere bytes, as `vmsg trace`, its chart and `vmsg doctor` read them: refused in a line, or lines that
 * a terminal takes for what they are.
 */

import { assert } from "@std/assert";
import { readCaptures } from "../../src/cli/trace.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { diagnose } from "../../src/observe/bring_up.ts";
import { chart } from "../../src/observe/chart.ts";
import { recordedSession } from "../message/recorded_session.ts";
import { writeCapture } from "../support/capture_of_messages.ts";
import type { Random } from "../support/mock_driver.ts";
import { mutate } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";

const MESSAGES = 40;

function damaged(random: Random, whole: Uint8Array<ArrayBuffer>): Uint8Array {
  const copy = whole.slice();
  for (let n = random.below(8); n > 0; n--) mutate(new DataView(copy.buffer), random);
  return random.chance(0.3) ? copy.subarray(0, random.below(copy.length)) : copy;
}

export const CAPTURE_FUZZERS: readonly Fuzzer[] = [{
  name: "captures",
  what: "damaged captures at trace, chart and doctor",
  async open(use) {
    const directory = Deno.makeTempDirSync({ prefix: "vmsg-test-" });
    const path = `${directory}/c.pcapng`;
    writeCapture(path, recordedSession().slice(0, MESSAGES));
    const whole = Deno.readFileSync(path);
    let refused = 0, shown = 0;
    const attempt = (work: () => void) => {
      try {
        work();
      } catch (error) {
        if (!(error instanceof VmsgError)) throw error;
        assert(/^\P{C}+$/u.test(error.message), error.message);
        refused++;
      }
    };
    try {
      await use({
        round(random) {
          Deno.writeFileSync(path, damaged(random, whole));
          attempt(() => {
            for (const line of readCaptures([path], "", false)) {
              assert(/^\P{C}+$/u.test(line), JSON.stringify(line));
              shown++;
            }
          });
          attempt(() => chart([...readCaptures([path], "*,malformed,note", true)], "c"));
          attempt(() => {
            for (const { subject, seen, stuck } of diagnose(readCaptures([path], "", true))) {
              assert(/^\P{C}+$/u.test(`${subject} ${seen} ${stuck?.step}`));
            }
          });
        },
        finish(rounds) {
          assert(rounds < 100 || (refused > 0 && shown > 0), `${refused} ${shown}`);
          return `${refused} refused, ${shown} lines`;
        },
      });
    } finally {
      Deno.removeSync(directory, { recursive: true });
    }
  },
}];
