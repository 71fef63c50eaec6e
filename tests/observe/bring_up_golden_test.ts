/**
 * A whole bring-up in words: our network driver and our card with the responder behind it, from the first message over three
 * pings to the reset, as the driver side traces it. In virtual time, so that each run says the same but for what is random
 * (epochs, nonces), which is called by the order in which it came. Times are in milliseconds: what is below depends on how
 * often the loop looks at the clock, which is nobody's promise.
 *
 * The prototype's is in tests/cli/bring_up.txt, as its own QEMU and kernel said it.
 */

import { assert, assertEquals } from "@std/assert";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { NetDriver } from "../../src/drivers/net/net_driver.ts";
import { Pinger } from "../../src/drivers/net/pinger.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { createLog } from "../../src/observe/log.ts";
import { createTracer } from "../../src/observe/trace.ts";
import { knownMemory } from "../../src/sharing/driver_memory.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { assertGolden } from "../support/golden.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const AT = 0x4000_0000;
const SIZE = 16 << 20;
const MAC = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56);

/** What is the same in each run of a line. */
function steady(): (line: string) => string {
  const names = new Map<string, string>();
  const named = (number: string) => {
    const name = names.get(number) ?? `RANDOM${names.size + 1}`;
    names.set(number, name);
    return name;
  };
  return (line) =>
    line.replace(
      / (epoch|peerEpoch|nonce) 0x([1-9a-f][0-9a-f]*)/g,
      (_, field, number) => ` ${field} ${named(number)}`,
    )
      .replace(/\+(\d+\.\d{3})\d{3}/g, "+$1").replace(/ {3}\d+ us( after .*)?$/, "   ... us$1");
}

for (const dialect of ["v1", "v1-2025"] as const) {
  cleanTest(`trace: a whole bring-up in ${dialect}, letter by letter`, async () => {
    using reactor = new Reactor(new VirtualClock());
    using stack = new DisposableStack();
    const lines: string[] = [];
    const codec = codecFor(dialect);
    const log = createLog("test", "error", () => {});
    const bus = stack.use(inProcessBus(reactor));
    const deviceSide = stack.use(new DeviceSide({ reactor, bus: bus.device, codec, log }));
    const device = new NetDevice(reactor, new ResponderPort({}, reactor), { mac: MAC, mtu: 1500 });
    // In v1 the driver sends its memory along; in the other one both sides have to know it.
    const isKnown = dialect !== "v1";
    const memory = stack.use(mapAnonymous(SIZE));
    deviceSide.add(0, device, isKnown ? [{ at: AT, size: SIZE, memory, offset: 0 }] : []);
    const tracer = createTracer((line) => lines.push(line), reactor);
    const side = stack.use(new DriverSide({ reactor, bus: bus.driver, codec, log, tracer }));
    const pinger = new Pinger(reactor, {
      target: "10.0.2.2",
      address: "10.0.2.15",
      count: 3,
      intervalMs: 10,
      throughputMs: 0,
      print: () => {},
    });
    const options = isKnown ? { memory: knownMemory(memory, AT) } : {};
    pinger.use(stack.use(new NetDriver(reactor, side, 0, pinger, log, options)));
    deviceSide.open();
    side.open();
    await reactor.until((async () => {
      assertEquals((await pinger.run()).received, 3);
      await side.device(0).reset();
    })());
    assert(lines.some((line) => line.includes("DRIVER_OK")) && lines.length > 30);
    await assertGolden(new URL(`bring_up_${dialect}.txt`, import.meta.url), lines.map(steady()));
  });
}
