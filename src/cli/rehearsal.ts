/**
 * A device side that talks to itself before anybody else comes.
 *
 * The first time that a function runs it has to be compiled, and the first request of a driver side needs a good
 * part of all functions: milliseconds, and some 50 times as many in an emulated machine. Whoever waits 3.5 ms and
 * then aborts, as the prototype's peers do (docs/wire.md 2.4), does not see the answer. So everything that a driver
 * side does from its first request to its first buffers is done once here, over a bus of this process, to a device
 * that does nothing; then it is all taken down.
 */

import { inProcessBus } from "../bus/in_process_bus.ts";
import { QueueDevice } from "../devices/queue_device.ts";
import { LinuxError } from "../linux/errors.ts";
import { mapAnonymous, PAGE_SIZE } from "../linux/mapping.ts";
import { Reactor } from "../linux/reactor.ts";
import type { Codec } from "../message/codec.ts";
import { Kind, Message, QUEUE_ENABLED } from "../message/message.ts";
import { uncounted } from "../observe/counters.ts";
import { createLog } from "../observe/log.ts";
import { createTracer } from "../observe/trace.ts";
import { DeviceSide } from "../transport/device_side.ts";
import { DEVICE_NET, Status } from "../virtio/features.ts";

/** The second time what was compiled in haste is there. */
const ROUNDS = 2;
/** Turns of the loop that an answer may take; it takes one. */
const MAX_TURNS = 4;
/** How long a turn waits for what should be there already. */
const TURN_MS = 10;
/** Rings of 4 entries in one page. */
const RINGS = { descriptorAddress: PAGE_SIZE, driverAddress: 0x1100, deviceAddress: 0x1200 };
const CONFIG_SIZE = 17;

type Line = readonly [kind: Kind, fields?: Partial<Message>];

const status = (value: number): Line[] => [
  [Kind.SET_DEVICE_STATUS, { status: value }],
  [Kind.GET_DEVICE_STATUS],
];

/** What a driver side says, docs/wire.md 2.4 and 3.5. */
const LINES: readonly Line[] = [
  [Kind.GET_DEVICE_INFO],
  [Kind.GET_DEVICE_FEATURES, { count: 2 }],
  [Kind.GET_VQUEUE],
  [Kind.GET_VQUEUE, { index: 3 }],
  ...[0, Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER].flatMap(status),
  [Kind.SET_DRIVER_FEATURES, { count: 2 }],
  ...status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK),
  [Kind.GET_CONFIG, { length: 1 }],
  [Kind.SET_CONFIG, { length: 1 }],
  [Kind.GET_CONFIG_GENERATION],
  [Kind.SET_VQUEUE, { flags: QUEUE_ENABLED, queueSize: 4, ...RINGS }],
  [Kind.GET_VQUEUE],
  ...status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK),
  [Kind.EVENT_AVAIL],
  [Kind.RESET_VQUEUE],
  ...status(0),
];

class Nothing extends QueueDevice {
  constructor(reactor: Reactor) {
    const changed = () => {
      this.host.configChanged();
      this.host.used(0);
      return false;
    };
    const config = new Uint8Array(CONFIG_SIZE);
    super(reactor, { deviceId: DEVICE_NET, config, queues: [changed, changed, changed] });
  }
}

/**
 * See the head of this file. It is a courtesy: a process without descriptors or memory for it does without.
 *
 * @param codecs the dialects that may come
 * @param isTraced messages will be shown in words
 * @returns how many answers came and how many lacked, which is for tests
 */
export function rehearse(codecs: readonly Codec[], isTraced: boolean): Outcome {
  const sum = { came: 0, lack: 0 };
  try {
    for (let round = 0; round < ROUNDS; round++) {
      uncounted(() => codecs.forEach((codec) => play(codec, isTraced, sum)));
    }
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
  }
  return sum;
}

interface Outcome {
  came: number;
  lack: number;
}

function play(codec: Codec, isTraced: boolean, outcome: Outcome): void {
  using reactor = new Reactor();
  using memory = mapAnonymous(2 * PAGE_SIZE);
  using bus = inProcessBus(reactor, { discardOnAttach: false, ringPerMessage: true });
  const { driver } = bus;
  using side = new DeviceSide({
    reactor,
    bus: bus.device,
    codec,
    log: createLog("", "error", () => {}),
    tracer: isTraced ? createTracer(() => {}, reactor) : undefined,
  });
  side.add(0, new Nothing(reactor), [{ at: 0, size: memory.size, memory, offset: 0 }]);
  side.open();
  const message = new Message();
  driver.open({
    attached() {},
    detached() {},
    received(slot) {
      codec.decode(slot, 0, message);
      if (message.response) outcome.came++;
    },
  });
  const limit = reactor.timer(() => {});
  let token = 0;
  for (const [kind, fields] of LINES) {
    if (!codec.has(kind)) continue;
    message.reset(kind, false);
    Object.assign(message, fields);
    if (kind === Kind.SET_DRIVER_FEATURES) message.words[1] = 1;
    const isAnswered = codec.answered(kind);
    if (isAnswered && codec.conduct.hasTokens) message.token = ++token;
    codec.encode(message, driver.view, driver.claim());
    driver.send();
    const before = outcome.came;
    for (let turn = 0; turn < MAX_TURNS; turn++) {
      // A turn blocks until there is something to do.
      limit.arm(TURN_MS);
      reactor.turn();
      if (!isAnswered || outcome.came > before) break;
    }
    if (isAnswered && outcome.came === before) outcome.lack++;
  }
}
