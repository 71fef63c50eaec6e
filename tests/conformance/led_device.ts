/**
 * Rules of a device side that show only when its device does something by itself, which no message leads
 * it to: bodies as those of src/check/device_rules.ts, with levers into a device of this process.
 */

import { type DriverRole, RUNNING } from "../../src/check/roles.ts";
import { expect, expectSame } from "../../src/check/outcome.ts";
import type { Heard } from "../../src/check/dialogue.ts";
import { kindName } from "../../src/message/table.ts";
import { Kind } from "../../src/message/message.ts";
import type { DeviceModel } from "../../src/virtio/device.ts";
import { Status } from "../../src/virtio/features.ts";
import type { FakeDevice } from "../support/fake_device.ts";

/** Asks for one rule. */
type LedBody = (d: DriverRole, device: FakeDevice) => Promise<void>;

/** The next event of that kind; others are passed over. */
async function eventOf({ talk }: DriverRole, kind: Kind): Promise<Heard> {
  for (;;) {
    const heard = await talk.next();
    expect(heard !== undefined, `no ${kindName(kind)} came`);
    if (heard.message.kind === kind && heard.malformed === undefined) return heard;
  }
}

function change({ config, host }: FakeDevice): void {
  config.forEach((byte, i) => config[i] = byte + 1);
  host.configChanged();
}

/** An event of either kind; what is heard is looked at. */
async function speaks(d: DriverRole, device: FakeDevice): Promise<void> {
  await d.start();
  device.host.used(0);
  change(device);
  await eventOf(d, Kind.EVENT_USED);
  await eventOf(d, Kind.EVENT_CONFIG);
}

/** The configuration changes three times; what is said of it. */
async function announces(d: DriverRole, device: FakeDevice): Promise<void> {
  const { configSize } = await d.ask(Kind.GET_DEVICE_INFO);
  // More than an event holds, so that no event has data.
  expect(configSize > d.talk.codec.limits.eventBytes, "the configuration fits an event");
  await d.start();
  const seen = new Set([(await d.config(0, 1)).generation]);
  for (let n = 1; n <= 3; n++) {
    change(device);
    const { message } = await eventOf(d, Kind.EVENT_CONFIG);
    const { status, size, offset, length, generation } = message;
    d.claim("V15", status, RUNNING, "the status in EVENT_CONFIG");
    d.claim(
      "V41 V60",
      [size, offset, length],
      [d.talk.codec.sizeOf(16), 0, 0],
      "EVENT_CONFIG's size and range",
    );
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
    const events = [await eventOf(d, Kind.EVENT_USED), await eventOf(d, Kind.EVENT_USED)];
    const queues = events.map(({ message }) => message.index).sort();
    expectSame(queues, [0, 1], `the queues told of in round ${round}`);
  }
}

async function announcesFailure(d: DriverRole, device: FakeDevice): Promise<void> {
  await d.start();
  const { generation } = await d.config(0, 1);
  device.host.needsReset("led to");
  const { message } = await eventOf(d, Kind.EVENT_CONFIG);
  const broken = RUNNING | Status.DEVICE_NEEDS_RESET;
  const { size, offset, length } = message;
  const is = [
    message.status,
    message.generation,
    size,
    offset,
    length,
    await d.status(),
  ];
  const wanted = [broken, generation, d.talk.codec.sizeOf(16), 0, 0, broken];
  expectSame(is, wanted, "status, generation, size, range; the status then");
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

/** A reset takes a time, in which the status is asked for. */
async function resetsLate(d: DriverRole, device: DeviceModel): Promise<void> {
  const { talk, talk: { reactor, heard } } = d;
  await d.start();
  let overMs = Infinity;
  device.reset = async () => {
    await reactor.sleep(50);
    overMs = reactor.now();
  };
  const from = heard.length;
  talk.send(Kind.SET_DEVICE_STATUS, { status: 0 });
  for (let n = 0; n < 5; n++) talk.send(Kind.GET_DEVICE_STATUS);
  await d.status();
  delete device.reset;
  const shown = heard.slice(from).filter(({ message }) => message.status === 0);
  expect(shown.length > 0, "status 0 was never shown");
  expect(shown.every(({ atMs }) => atMs >= overMs), "status 0 was shown before the reset was over");
}

/** A buffer is used while a request is worked on. */
async function eventsPass(d: DriverRole, device: FakeDevice): Promise<void> {
  const { talk, talk: { reactor } } = d;
  await d.negotiate();
  await d.setQueue(0);
  await d.setStatus(RUNNING);
  const model: DeviceModel = device;
  const { readConfig } = model;
  model.readConfig = async () => {
    await reactor.sleep(50);
    return Uint8Array.of(1);
  };
  const token = talk.send(Kind.GET_CONFIG, { length: 1 });
  await reactor.sleep(1);
  device.host.used(0);
  const event = await eventOf(d, Kind.EVENT_USED);
  const answer = await talk.answer(Kind.GET_CONFIG, token);
  model.readConfig = readConfig;
  expect(event.atMs < answer.atMs, "an event waited for an answer");
}

/** The bodies by the rule's number. */
export const LED_DEVICE: Readonly<Record<string, LedBody>> = {
  G9: speaks,
  G19: speaks,
  V11: announces,
  V15: announces,
  V16: announces,
  V17: announces,
  V18: announcesFailure,
  V26: tellsUsed,
  V41: announces,
  V57: resetsLate,
  async V60(d, device) {
    await announces(d, device);
    // What the driver does is no news to it, also not under a generation that is past.
    for (const generation of [0, 999]) {
      await d.ask(Kind.SET_CONFIG, { generation, length: 1, bytes: [9] });
    }
    const events = await d.calm("writes of the configuration");
    expectSame(events.length, 0, "events after writes of the configuration");
    await d.setStatus(0);
    await announcesFailure(d, device);
  },
  B6: tellsUsed,
  B32: eventsPass,
  P12: holdsEventsBack,
};
