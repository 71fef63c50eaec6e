/**
 * A device side that is wrong in one way, as a process, for whoever looks for its fault: `wrong_device.ts N DIALECT
 * [BUS]`, the place in DEVICE_FAULTS; without such a place (`none`) it is not wrong, with a relay all the same. The bus is
 * given as for `vmsg device`.
 */

import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { openBus, parseBus } from "../../src/cli/bus_option.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { DEVICE_FAULTS } from "./device_faults.ts";
import { ledDevice } from "./peers.ts";
import { relayBoth } from "./relay.ts";

const AT = 0x4000_0000;
const SIZE = 1 << 20;

const [which = "", dialect, bus = "linux-user,socket=lu.sock"] = Deno.args;
const codec = codecFor(dialect as Dialect);
using reactor = new Reactor();
using memory = mapAnonymous(SIZE);
const log = createLog("wrong device", "info", console.error);
const settings = parseBus(`${bus},dialect=${dialect}`, "device");
using front = openBus(settings, "device", reactor, log, true);
using back = inProcessBus(reactor);
const side = new DeviceSide({ reactor, bus: back.device, codec, log });
side.add(3, ledDevice().model, [{ at: AT, size: SIZE, memory, offset: 0 }]);
side.add(11, new FakeDevice());
side.open();
relayBoth(
  { driver: front, device: back.driver, reactor, codec },
  DEVICE_FAULTS[Number(which)]?.change ?? (() => (_, bytes) => [bytes]),
);
await reactor.run();
