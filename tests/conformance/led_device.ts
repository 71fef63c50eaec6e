/**
 * Rules of a device side that show only when its device does something by itself, which no message leads
 * it to: bodies as those of src/check/device_rules.ts, with levers into a device of this process.
 */

import type { DriverRole } from "../../src/check/driver_role.ts";
import { RUNNING } from "../../src/check/driver_role.ts";
import { expect, expectSame } from "../../src/check/outcome.ts";
import { lookOn } from "../../src/check/traffic.ts";
import { Kind } from "../../src/message/message.ts";
import { Status } from "../../src/virtio/features.ts";
import type { FakeDevice } from "../support/fake_device.ts";

/** Asks for one rule. */
type LedBody = (d: DriverRole, device: FakeDevice) => Promise<void>;

function change({ config, host }: FakeDevice): void {
  config.forEach((byte, i) => config[i] = byte + 1);
  host.configChanged();
}

/** An event of either kind, and a look at all that was heard. */
async function looksOn(d: DriverRole, device: FakeDevice): Promise<void> {
  await d.start();
  device.host.used(0);
  change(device);
  await d.event(Kind.EVENT_USED);
  await d.event(Kind.EVENT_CONFIG);
  lookOn(d.talk, d.rule);
}

/** The configuration changes three times; what is said of it. */
async function announces(d: DriverRole, device: FakeDevice): Promise<void> {
  const { configSize } = await d.info();
  // More than an event holds, so that no event has data.
  expect(configSize > d.talk.codec.limits.eventBytes, "the configuration fits an event");
  await d.start();
  const seen = new Set([(await d.config(0, 1)).generation]);
  for (let n = 1; n <= 3; n++) {
    change(device);
    const { message } = await d.event(Kind.EVENT_CONFIG);
    const { status, size, offset, length, generation } = message;
    d.claim("V15", status, RUNNING, "the status in EVENT_CONFIG");
    d.claim("V41", [size, offset, length], [24, 0, 0], "EVENT_CONFIG's size and range");
    d.claim("V17", length, 0, "EVENT_CONFIG's length");
    const now = (await d.config(0, 1)).generation;
    d.claim("V15", generation, now, "the generation in EVENT_CONFIG");
    d.claim("V11 V16", seen.has(now), false, `generation ${now} was there before`);
    seen.add(now);
  }
}

/** Buffers of two queues are used, again and again. */
async function tellsUsed(d: DriverRole, device: FakeDevice): Promise<void> {
  await d.negotiate();
  for (const index of [0, 1]) await d.setQueue(index);
  await d.setStatus(RUNNING);
  for (let round = 1; round <= 20; round++) {
    for (const index of [0, 1]) device.host.used(index);
    const events = [await d.event(Kind.EVENT_USED), await d.event(Kind.EVENT_USED)];
    const queues = events.map(({ message }) => message.index).sort();
    expectSame(queues, [0, 1], `the queues told of in round ${round}`);
  }
}

async function announcesFailure(d: DriverRole, device: FakeDevice): Promise<void> {
  await d.start();
  const { generation } = await d.config(0, 1);
  device.host.needsReset("led to");
  const { message } = await d.event(Kind.EVENT_CONFIG);
  const broken = RUNNING | Status.DEVICE_NEEDS_RESET;
  const is = [message.status, message.generation, message.size, await d.status()];
  expectSame(is, [broken, generation, 24, broken], "status, generation, size; the status then");
  await d.setStatus(RUNNING);
  expectSame(await d.status(), broken, "the status without a reset");
}

async function holdsEventsBack(d: DriverRole, device: FakeDevice): Promise<void> {
  await d.start();
  for (let n = 0; n < 1000; n++) device.host.used(n & 1);
  for (let n = 0; n < 1000; n++) device.host.configChanged();
  const from = d.talk.heard.length;
  await d.calm("many events");
  const events = d.talk.heard.length - from - 1;
  expect(events <= 128, `${events} events came while an answer was waited for`);
}

/** The bodies by the rule's number. */
export const LED_DEVICE: Readonly<Record<string, LedBody>> = {
  G9: looksOn,
  G19: looksOn,
  V11: announces,
  V15: announces,
  V16: announces,
  V17: announces,
  V18: announcesFailure,
  V26: tellsUsed,
  V41: announces,
  B6: tellsUsed,
  P12: holdsEventsBack,
};
