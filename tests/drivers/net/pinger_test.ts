/** `vmsg driver --count`: it ends, also where a device side is never understood. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { inProcessBus } from "../../../src/bus/in_process_bus.ts";
import { NetDevice } from "../../../src/devices/net/net_device.ts";
import { NetDriver } from "../../../src/drivers/net/net_driver.ts";
import { Pinger } from "../../../src/drivers/net/pinger.ts";
import { VmsgError } from "../../../src/linux/errors.ts";
import { mapAnonymous } from "../../../src/linux/mapping.ts";
import { Reactor } from "../../../src/linux/reactor.ts";
import type { Dialect } from "../../../src/message/codec.ts";
import { codecFor } from "../../../src/message/codecs.ts";
import type { PortListener } from "../../../src/network/port.ts";
import { ResponderPort } from "../../../src/network/responder_port.ts";
import { createLog } from "../../../src/observe/log.ts";
import type { IovecList } from "../../../src/memory/mod.ts";
import { knownMemory } from "../../../src/sharing/driver_memory.ts";
import { DeviceSide } from "../../../src/transport/device_side.ts";
import { DriverSide } from "../../../src/transport/driver_side.ts";
import { withDriverSide } from "../../support/driver_rig.ts";
import { cleanTest } from "../../support/leaks.ts";
import { DIALECTS } from "../../../src/message/message.ts";
import { VirtualClock } from "../../support/virtual_clock.ts";

/** A driver whose device side takes everything and says nothing; how long it went on. */
async function goesOn(dialect: Dialect, count: number): Promise<number> {
  using memory = mapAnonymous(16 << 20);
  let lastMs = 0;
  await withDriverSide(async ({ reactor, side, peer }) => {
    peer.onMessage = () => false;
    const options = { target: "10.0.2.2", address: "10.0.2.15", throughputMs: 0, intervalMs: 1 };
    const pinger = new Pinger(reactor, { ...options, count, print: () => {} });
    const log = createLog("test", "error", () => {});
    const shared = { memory: knownMemory(memory, 0x4000_0000) };
    using driver = new NetDriver(reactor, side, 0, pinger, log, shared);
    pinger.use(driver);
    reactor.spawn(async () => void await pinger.run());
    const startMs = reactor.now();
    for (; lastMs < 60_000; lastMs = reactor.now() - startMs) await reactor.sleep(100);
  }, { dialect, answersHello: false });
  return lastMs;
}

for (const dialect of DIALECTS) {
  cleanTest(
    `pinger: a device side that says nothing of ${dialect} ends one who counts`,
    async () => {
      await assertRejects(() => goesOn(dialect, 3), VmsgError, `no answer that is ${dialect}`);
    },
  );
}

/** A responder that takes nothing and says nothing for a while behind the first echo. */
class SlowPort extends ResponderPort {
  readonly #again = this.reactor.timer(() => {
    this.#listener?.writable();
    this.#listener?.readable();
  });
  #listener: PortListener | undefined;
  #hushMs: number | undefined;

  constructor(reactor: Reactor, readonly hushMs: number) {
    super({}, reactor);
  }

  override open(listener: PortListener): void {
    this.#listener = listener;
    super.open(listener);
  }

  override nextLength(): number {
    if (this.responder.counters.echoReplies > 0 && this.#hushMs === undefined) {
      this.#hushMs = this.reactor.now() + this.hushMs;
      this.#again.arm(this.hushMs);
    }
    return this.#again.armed ? 0 : super.nextLength();
  }

  override send(frame: IovecList): boolean {
    return !this.#again.armed && super.send(frame);
  }
}

cleanTest(
  "pinger: an answer counts however late, and no ping is lost where a ring is full",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    using stack = new DisposableStack();
    const pair = stack.use(inProcessBus(reactor));
    const [codec, log] = [codecFor("v1"), createLog("test", "error", () => {})];
    const devices = stack.use(new DeviceSide({ reactor, bus: pair.device, codec, log }));
    const mac = Uint8Array.of(2, 0, 0, 0, 0, 1);
    devices.add(0, new NetDevice(reactor, new SlowPort(reactor, 5000), { mac, mtu: 1500 }));
    const side = stack.use(new DriverSide({ reactor, bus: pair.driver, codec, log }));
    const options = { target: "10.0.2.2", address: "10.0.2.15", throughputMs: 0, intervalMs: 10 };
    const pinger = new Pinger(reactor, { ...options, count: 600, print: () => {} });
    pinger.use(stack.use(new NetDriver(reactor, side, 0, pinger, log, {})));
    devices.open();
    side.open();
    const { sent, received, roundTripsUs } = await reactor.until(pinger.run());
    assertEquals([sent, received], [600, 600]);
    assert(roundTripsUs.at(-1)! >= 4e6, `the longest took ${roundTripsUs.at(-1)} us`);
  },
);

cleanTest("pinger: who does not count waits for ever", async () => {
  assertEquals(await goesOn("v1", Infinity) >= 60_000, true);
});
