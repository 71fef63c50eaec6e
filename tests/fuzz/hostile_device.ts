/**
 * A device side that does what it likes (hostile_peer.ts), into a proxy in this process and in virtual time, in each of
 * the modes. A sound front end talks to the proxy meanwhile.
 *
 * Nothing is thrown through the reactor; in confined mode nothing of the guest's memory changes but what it lent for
 * writing; nothing is left behind. When a sound device side comes, the front end is answered or sent away, and
 * the next one is served.
 */

import type { SharedSegment } from "../../src/bus/bus.ts";
import { rngDevice } from "../../src/devices/rng.ts";
import { VhostUserServer } from "../../src/drivers/vhost_user/server.ts";
import { mapAnonymous, PAGE_SIZE } from "../../src/linux/mapping.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import type { Codec } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog, withoutRepeats } from "../../src/observe/log.ts";
import { openSharing } from "../../src/sharing/mode.ts";
import { Pages } from "../../src/sharing/pages.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { MADE_UP } from "../support/front_end.ts";
import { inProcessBus, type InProcessPair } from "../../src/bus/in_process_bus.ts";
import { withDirectory } from "../support/leaks.ts";
import type { Random } from "../support/mock_driver.ts";
import { FakePins } from "../support/translated_rig.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { HostileDevice, type RingFinder, viewIn } from "./hostile_peer.ts";
import { assertFew, Holdings, RoundReactor } from "./round_reactor.ts";
import { SoundFrontEnd } from "./sound_front_end.ts";

/** How the device side gets to see the guest's memory. */
export type Mode = "descriptors" | "confined" | "direct";

/** How long the device side is hostile; what the front end has asked may wait for the next one. */
const HOSTILE_MS = 30_000;
/** Then all is done in the time of a few requests that are not answered. */
const PATIENCE_MS = HOSTILE_MS + 30_000;

/** A proxy for a device number of an in-process bus. */
interface Proxy {
  readonly pair: InProcessPair;
  readonly side: DriverSide;
  readonly sound: DeviceSide;
  readonly socket: string;
  readonly said: string[];
  readonly codec: Codec;
  readonly rings: RingFinder;
}

function openProxy(
  reactor: Reactor,
  stack: DisposableStack,
  mode: Mode,
  socket: string,
): Proxy {
  const isConfined = mode === "confined";
  const memory = isConfined ? stack.use(mapAnonymous(1 << 20)) : undefined;
  const segment: SharedSegment | undefined = memory && { memory, start: PAGE_SIZE };
  const pair = stack.use(inProcessBus(reactor, undefined, 64, segment));
  const codec = codecFor("v1");
  const said: string[] = [];
  const log = withoutRepeats(createLog("fuzz", "info", (line) => said.push(line)), reactor);
  const side = stack.use(new DriverSide({ reactor, bus: pair.driver, codec, log }));
  let page: ArrayBuffer | undefined;
  const allocate: typeof MADE_UP.allocate = (size) => {
    const made = MADE_UP.allocate(size);
    page = made.mapping.buffer;
    return made;
  };
  const pages = mode === "direct"
    ? new Pages(new FakePins(), 1, log, { ...MADE_UP, allocate, waitForSilence: () => {} })
    : undefined;
  const confined = isConfined ? { size: undefined } : undefined;
  const sharing = stack.use(
    openSharing({ reactor, bus: pair.driver, side, confined, deviceCount: 1, log, pages }),
  );
  const device = sharing.forDevice(side.device(0), 0);
  const source = { kind: "listen", socket } as const;
  stack.use(new VhostUserServer(reactor, side, { source, device: 0 }, log, device));
  const sound = stack.use(
    new DeviceSide({ reactor, bus: pair.device, codec, log, confined: isConfined }),
  );
  // In direct mode the sound device side sees this process's memory at its own addresses.
  const ram = mode === "direct" ? stack.use(mapAnonymous(PAGE_SIZE)) : undefined;
  sound.add(
    0,
    rngDevice(reactor),
    ram && [{ at: 0, size: PAGE_SIZE, memory: ram, offset: 0 }],
  );
  side.open();
  pair.device.open({ attached() {}, detached() {}, received() {} });
  return {
    pair,
    side,
    sound,
    socket,
    said,
    codec,
    rings: (address, length) =>
      memory !== undefined
        ? viewIn(memory.buffer, 0)(address, length)
        : page && viewIn(page, MADE_UP_PHYSICAL)(address, length),
  };
}

/** Where {@link MADE_UP} has the huge page. */
const MADE_UP_PHYSICAL = 0x4000_0000;

function opener(mode: Mode): Fuzzer["open"] {
  return (use) =>
    withDirectory(async (directory) => {
      using reactor = new RoundReactor();
      using stack = new DisposableStack();
      const proxy = openProxy(reactor, stack, mode, `${directory}/a.sock`);
      // As after each round: a sound device side, with which doorbells are agreed on.
      proxy.sound.open();
      proxy.pair.attachAgain();
      await reactor.until(reactor.sleep(PATIENCE_MS));
      const holdings = new Holdings();
      let answers = 0, served = 0, sentAway = 0;

      const round = async (random: Random) => {
        const startMs = reactor.now();
        proxy.said.length = 0;
        const connect = () =>
          new SoundFrontEnd(reactor, proxy.socket, PATIENCE_MS, () => proxy.said);
        {
          const malice = random.pick([0, 0.02, 0.1, 0.4]);
          const { pair, codec, rings } = proxy;
          using device = new HostileDevice(reactor, pair.device, codec, random, malice, rings);
          pair.device.open(device);
          pair.attachAgain();
          using front = connect();
          const talked = front.talk(random, () => device.act());
          await Promise.race([talked, reactor.sleep(HOSTILE_MS)]);
          device[Symbol.dispose]();
          proxy.sound.open();
          pair.attachAgain();
          await talked;
          answers += device.answers;
          if (front.isSentAway) sentAway++;
          if (mode === "confined") front.guest.check();
          else front.guest.memory.checkGuards();
        }
        await reactor.sleep(20);
        {
          using next = connect();
          // In direct mode the sound device side sees none of this memory.
          await next.assertServed(mode !== "direct");
          served++;
        }
        await reactor.sleep(PATIENCE_MS);
        assertFew(proxy.said, reactor.now() - startMs);
        holdings.check();
      };
      const reached = () =>
        `${answers} answers, ${sentAway} front ends sent away, ${served} served`;
      await use({
        round: (random) => reactor.round(() => round(random)),
        finish: () => holdings.finish(reached()),
      });
    });
}

const MODES: readonly Mode[] = ["descriptors", "confined", "direct"];

/** See the head of this file. */
export const HOSTILE_DEVICE_FUZZERS: readonly Fuzzer[] = MODES.map((mode) => ({
  name: `device-${mode}`,
  what: `a hostile device side into a proxy (${mode})`,
  open: opener(mode),
}));
