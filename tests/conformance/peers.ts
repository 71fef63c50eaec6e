/** Our own sides as peers to be asked for their rules, in one process and in virtual time. */

import type { Bus } from "../../src/bus/bus.ts";
import { askDevice, askDriver } from "../../src/check/check.ts";
import { Dialogue } from "../../src/check/dialogue.ts";
import type { DeviceRole } from "../../src/check/roles.ts";
import type { Outcome } from "../../src/check/outcome.ts";
import type { Rule } from "../../src/check/rules.ts";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { NetDriver } from "../../src/drivers/net/net_driver.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Codec, Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { createLog } from "../../src/observe/log.ts";
import { knownMemory } from "../../src/sharing/driver_memory.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { DeviceModel } from "../../src/virtio/device.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { LED_DEVICE } from "./led_device.ts";
import { LED_DRIVER } from "./led_driver.ts";
import { type Change, relayBoth, type Way } from "./relay.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const AT = 0x4000_0000;
const MEMORY = 16 << 20;
const SLOTS = 256;
const NUMBER = 3;
/** Other devices on the same bus; the last is in another window of GET_DEVICES. */
const OTHERS = [0, 11, 700];
/** Rules of what drivers may do and ours does not. */
export const NOT_OF_OURS: readonly string[] = ["B19", "B36", "P9"];
/** The same, of what it does if it is led. */
const NOT_UNLED: readonly string[] = ["R8", "R9", "R20", "R21", "R29"];

/** What our driver, whose user wants nothing, is to be asked for in vain. */
export const isSeen = (number: string): boolean => ![...NOT_OF_OURS, ...NOT_UNLED].includes(number);
const LOG = createLog("test", "error", () => {});

/** A device to ask. */
export interface Subject {
  readonly model: DeviceModel;
  /** The same, if it can be led by hand. */
  readonly led?: FakeDevice;
}

/** A device that can be led: VERSION_1, ACCESS_PLATFORM and RING_RESET are offered. */
export function ledDevice(): Subject {
  const led = new FakeDevice({ features: [0x3000_0021, 0x0000_0103], configSize: 256 });
  return { model: led, led };
}

/** The network card, with the responder behind it. */
export function networkCard(reactor: Reactor): Subject {
  const mac = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56);
  return { model: new NetDevice(reactor, new ResponderPort({}, reactor), { mac, mtu: 1500 }) };
}

/** How what passes is changed. */
type Make = (way: Way) => Change;

/** Two ends of a bus, with a relay between them if a message is to be changed on its way. */
function ends(reactor: Reactor, codec: Codec, stack: DisposableStack, make?: Make): [Bus, Bus] {
  const front = stack.use(inProcessBus(reactor, undefined, SLOTS));
  if (make === undefined) return [front.driver, front.device];
  const back = stack.use(inProcessBus(reactor, undefined, SLOTS));
  relayBoth({ driver: front.device, device: back.driver, reactor, codec }, make);
  return [front.driver, back.device];
}

/** How a peer is asked for a rule. */
export type Ask = (rule: Rule) => Promise<Outcome>;

/** A device side of ours, to be asked for rules one after the other. */
export async function withOurDevice(
  dialect: Dialect,
  make: (reactor: Reactor) => Subject,
  body: (ask: Ask) => Promise<void>,
  change?: Make,
): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using stack = new DisposableStack();
  const memory = stack.use(mapAnonymous(MEMORY));
  const codec = codecFor(dialect);
  const [driver, device] = ends(reactor, codec, stack, change);
  const side = stack.use(new DeviceSide({ reactor, bus: device, codec, log: LOG }));
  const { model, led } = make(reactor);
  side.add(NUMBER, model, [{ at: AT, size: MEMORY, memory, offset: 0 }]);
  for (const number of OTHERS) side.add(number, new FakeDevice());
  const talk = new Dialogue(reactor, driver, codec, NUMBER, { at: AT, size: MEMORY });
  side.open();
  talk.open();
  await reactor.until(body((rule) => {
    const ledBody = led && LED_DEVICE[rule.number];
    return askDevice(rule, talk, ledBody && ((role) => ledBody(role, led)));
  }));
}

/** Asks a device side of ours that nobody has asked before. */
export async function askOurDevice(
  rule: Rule,
  dialect: Dialect,
  change?: Make,
  _isLed = true,
): Promise<Outcome | undefined> {
  let outcome: Outcome | undefined;
  await withOurDevice(dialect, ledDevice, async (ask) => {
    outcome = await ask(rule);
  }, change);
  return outcome;
}

/** A driver that ends is one that gave up: its process would, and what is asked of it goes on. */
class LastingReactor extends Reactor {
  override fail(): void {}
}

/** Asks a driver side of ours, with the net driver on it, for a rule; led by hand, if that can be. */
export async function askOurDriver(
  rule: Rule,
  dialect: Dialect,
  change?: Make,
  isLed = true,
): Promise<Outcome> {
  using reactor = new LastingReactor(new VirtualClock());
  using stack = new DisposableStack();
  const memory = stack.use(mapAnonymous(MEMORY));
  const codec = codecFor(dialect);
  const [bus, device] = ends(reactor, codec, stack, change);
  const side = stack.use(new DriverSide({ reactor, bus, codec, log: LOG }));
  const listener = { up() {}, down() {}, frame: () => true, writable() {} };
  stack.use(
    new NetDriver(reactor, side, NUMBER, listener, LOG, { memory: knownMemory(memory, AT) }),
  );
  const talk = new Dialogue(reactor, device, codec, NUMBER, { at: AT, size: MEMORY });
  const remote = side.device(NUMBER);
  talk.open();
  side.open();
  const ledBody = isLed ? LED_DRIVER[rule.number] : undefined;
  const body = ledBody && ((role: DeviceRole) => ledBody(role, remote));
  return await reactor.until(askDriver(rule, talk, body));
}
