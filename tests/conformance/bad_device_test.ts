/** A device on a bad day (src/check/driver_faults.ts): our driver lives with it, and drivers that do not are found. */

import { assertEquals } from "@std/assert";
import { FAULT_MODES, ruleOfFault } from "../../src/check/driver_faults.ts";
import { cleanTest } from "../support/leaks.ts";
import { askOurDriver } from "./peers.ts";
import type { Change } from "./relay.ts";
import { DIALECTS } from "../../src/message/message.ts";

const [GET_CONFIG, SET_STATUS, EVENT_CONFIG, EVENT_USED] = [0x05, 0x08, 0x40, 0x42];

for (const mode of FAULT_MODES) {
  for (const dialect of DIALECTS) {
    cleanTest(`a device that is ${mode}, ${dialect}`, async () => {
      assertEquals<unknown>(await askOurDriver(ruleOfFault(mode), dialect), { verdict: "passed" });
    });
  }
}

/** From some message on nothing passes in either direction. */
const gone = (when: (bytes: Uint8Array, from: string) => boolean) => (): Change => {
  let isGone = false;
  return (from, bytes) => {
    isGone ||= when(bytes, from);
    return isGone ? [] : [bytes];
  };
};

/** Drivers that do not live with it: they end when they see it. */
const WRONG: Readonly<Record<string, () => Change>> = {
  // Says everything again at once.
  late: () => (from, bytes) =>
    from === "driver" && bytes[1] === SET_STATUS ? new Array<Uint8Array>(200).fill(bytes) : [bytes],
  reordered: gone((bytes, from) => from === "device" && bytes[1] === EVENT_USED),
  silent: gone((bytes, from) => from === "device" && bytes[1] === EVENT_CONFIG),
  torn: gone((bytes, from) => from === "device" && bytes[1] === GET_CONFIG && bytes[8] === 9),
  full: () => {
    let pings = 0;
    return (_, bytes) => bytes[0] === 2 && bytes[1] === 3 && pings++ > 2 ? [] : [bytes];
  },
};

for (const [mode, change] of Object.entries(WRONG)) {
  cleanTest(`a driver side that is wrong with a device that is ${mode} is found`, async () => {
    const { verdict } = await askOurDriver(ruleOfFault(mode), "v1", change());
    assertEquals(verdict, "failed");
  });
}

Deno.test("every mode of a bad device has a driver side that it finds", () => {
  assertEquals(Object.keys(WRONG), [...FAULT_MODES]);
});
