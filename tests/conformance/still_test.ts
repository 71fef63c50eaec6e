/** A device side that stands still while it is asked for its rules. */

import { assertEquals, assertMatch } from "@std/assert";
import { Dialogue } from "../../src/check/dialogue.ts";
import { RULES } from "../../src/check/rules.ts";
import { askAll } from "../../src/check/session.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

Deno.test("check: of a device side that stands still one rule fails, and the others are not tested", async () => {
  using reactor = new Reactor(new VirtualClock());
  using stack = new DisposableStack();
  const bus = stack.use(inProcessBus(reactor, undefined, 256));
  const [codec, log] = [codecFor("v1"), createLog("test", "error", () => {})];
  const side = stack.use(new DeviceSide({ reactor, bus: bus.device, codec, log }));
  side.add(0, new FakeDevice());
  side.open();
  const talk = new Dialogue(reactor, bus.driver, codec, 0, undefined);
  talk.open();
  const rules = ["V8", "G1", "V1", "V2", "V3"].map((wanted) =>
    RULES.find(({ number }) => number === wanted)!
  );
  const seen: string[] = [];
  await reactor.until(askAll("device", rules, talk, ({ outcome }) => {
    seen.push(outcome.verdict === "passed" ? "passed" : `${outcome.verdict}: ${outcome.reason}`);
    bus.device.isPaused = true;
  }));
  assertEquals(seen[0], "passed");
  assertMatch(seen[1]!, /^failed: .*not answered/);
  const still = "not applicable: the device side does not answer; is its dialect another?";
  assertEquals(seen.slice(2), [still, still, still]);
});
