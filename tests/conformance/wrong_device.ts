/**
 * A device side that is wrong in one way, as a process on a linux-user bus in the current directory, for whoever
 * looks for its fault: `wrong_device.ts N`, the place in DEVICE_FAULTS.
 */

import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { openLinuxUserBus } from "../../src/bus/open.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { DEVICE_FAULTS } from "./faults.ts";
import { ledDevice } from "./peers.ts";
import { relay } from "./relay.ts";

const AT = 0x4000_0000;
const SIZE = 1 << 20;

const { change: make, dialect } = DEVICE_FAULTS[Number(Deno.args[0])]!;
using reactor = new Reactor();
using memory = mapAnonymous(SIZE);
const log = createLog("wrong device", "info", console.error);
using front = openLinuxUserBus("device", reactor, { socket: "lu.sock" }, log);
using back = inProcessBus(reactor);
const side = new DeviceSide({ reactor, bus: back.device, codec: codecFor(dialect), log });
side.add(3, ledDevice().model, [{ at: AT, size: SIZE, memory, offset: 0 }]);
side.add(11, new FakeDevice());
const change = make();
side.open();
relay("device", back.driver, front, change);
relay("driver", front, back.driver, change);
await reactor.run();
