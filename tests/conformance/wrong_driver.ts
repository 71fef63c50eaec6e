/**
 * A driver side that is wrong in one way, as a process on a linux-user bus in the current directory, for whoever
 * looks for its fault: `wrong_driver.ts N DIALECT`, the place in DRIVER_FAULTS; without such a place (`none`) it is not wrong, with a relay
 * all the same. Cut off, it begins anew.
 */

import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { openLinuxUserBus } from "../../src/bus/open.ts";
import { NetDriver } from "../../src/drivers/net/net_driver.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { knownMemory } from "../../src/sharing/driver_memory.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { DRIVER_FAULTS } from "./driver_faults.ts";
import { type Change, relayBoth, type Way } from "./relay.ts";

const AT = 0x4000_0000;
const SIZE = 16 << 20;
const NUMBER = 3;
const LOOK_MS = 5;

/** A driver that gives up is one that waits to be cut off. */
class LastingReactor extends Reactor {
  override fail(): void {}
}

const log = createLog("wrong driver", "info", console.error);

/** From one arrival to the departure behind it. */
async function live(dialect: Dialect, make: (way: Way) => Change): Promise<void> {
  using reactor = new LastingReactor();
  using stack = new DisposableStack();
  const memory = stack.use(mapAnonymous(SIZE));
  const front = stack.use(openLinuxUserBus("driver", reactor, { socket: "lu.sock" }, log));
  const back = stack.use(inProcessBus(reactor));
  const codec = codecFor(dialect);
  const side = stack.use(new DriverSide({ reactor, bus: back.driver, codec, log }));
  const listener = { up() {}, down() {}, frame: () => true, writable() {} };
  stack.use(
    new NetDriver(reactor, side, NUMBER, listener, log, { memory: knownMemory(memory, AT) }),
  );
  relayBoth({ driver: back.device, device: front, reactor, codec }, make);
  await reactor.until((async () => {
    while (!front.isAttached) await reactor.sleep(LOOK_MS);
    side.open();
    while (front.isAttached) await reactor.sleep(LOOK_MS);
  })());
}

const [which = "", dialect] = Deno.args;
const change = DRIVER_FAULTS[Number(which)]?.change;
for (;;) await live(dialect as Dialect, change ?? (() => (_, bytes) => [bytes]));
