/**
 * A device side that does what it likes (hostile_peer.ts), into a live `vmsg proxy` over a linux-user bus, as a process
 * that comes and goes; a sound front end talks to the proxy meanwhile. Then a sound device side comes, by which whoever
 * waited is answered or sent away, and the next front end is served: within a bound, so that no stall goes unseen.
 *
 * The proxy lives on with as many descriptors and mappings as before, says little, and is at rest afterwards.
 */

import { openLinuxUserBus } from "../../src/bus/open.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { rngDevice } from "../../src/devices/rng.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import type { Random } from "../support/mock_driver.ts";
import { delay, until, withProcesses } from "../support/processes.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { HostileDevice } from "./hostile_peer.ts";
import { Holder } from "./holder.ts";
import { SoundFrontEnd } from "./sound_front_end.ts";

/** How long a device side is hostile at most. */
const HOSTILE_MS = 800;
/** Then all is done within the time of a few requests that are not answered. */
const PATIENCE_MS = HOSTILE_MS + 60_000;
const CHECK_ROUNDS = 20;
/** Of the loop, so that Deno reads what the proxy says. */
const BREATH_MS = 2;
/** Of a second: processor time of a proxy that has nobody to serve. */
const AT_REST = 0.3;
const REST_MS = 1000;
/** After it has said that a front end hung up, all that it had is closed. */
const SETTLE_MS = 300;

function opener(isConfined: boolean): Fuzzer["open"] {
  return async (use) => {
    await using keeper = await openKeeper();
    await withProcesses(keeper, async (vmsg) => {
      const bus = ["--bus", "linux-user,socket=lu.sock"];
      const confined = isConfined ? ["--confined"] : [];
      const proxy = await vmsg.start("proxy", ...bus, "--vhost-user", "socket=a.sock", ...confined);
      await proxy.waitFor(/waiting for a front end/);
      const { directory } = vmsg;
      const place = { directory, socket: `${directory}/lu.sock` };
      const codec = codecFor("v1");
      const quiet = createLog("fuzz", "error", () => {});
      const lines = () => proxy.lines.map(({ text }) => text);
      let answers = 0, sentAway = 0, rounds = 0, longestMs = 0;
      using reactor = new Reactor();
      // It is the devices' for the whole run: what it allocates is never given back.
      const model = rngDevice(reactor);
      Object.defineProperty(model, Symbol.dispose, { value: () => model.stopQueue(0) });

      const soundSide = () => {
        using stack = new DisposableStack();
        const bus = stack.use(openLinuxUserBus("device", reactor, place, quiet));
        const options = { reactor, bus, codec, log: quiet, confined: isConfined };
        const side = stack.use(new DeviceSide(options));
        side.add(0, model);
        side.open();
        return stack.move();
      };
      const connect = () => new SoundFrontEnd(reactor, `${directory}/a.sock`, PATIENCE_MS, lines);

      const body = async (random: Random) => {
        using front = connect();
        let talked: Promise<void>;
        {
          using busEnd = openLinuxUserBus("device", reactor, place, quiet);
          const malice = random.pick([0, 0.02, 0.1, 0.4]);
          using device = new HostileDevice(reactor, busEnd, codec, random, malice);
          busEnd.open(device);
          talked = front.talk(random, () => device.act());
          await Promise.race([talked, reactor.sleep(50 + random.below(HOSTILE_MS))]);
          answers += device.answers;
        }
        using _side = soundSide();
        const startMs = reactor.now();
        await talked;
        if (front.isSentAway) sentAway++;
        if (isConfined) front.guest.check();
        else front.guest.memory.checkGuards();
        front[Symbol.dispose]();
        await reactor.sleep(20);
        using next = connect();
        await next.assertServed(true);
        longestMs = Math.max(longestMs, reactor.now() - startMs);
      };

      const run = async (body: () => Promise<void>) => {
        const breath = reactor.timer(() => {
          breath.arm(BREATH_MS);
          reactor.spawn(() => Promise.resolve());
        });
        breath.arm(BREATH_MS);
        await reactor.until(body());
        reactor.dropTimer(breath);
      };
      // What a proxy holds for good it has from its first device side and front end on.
      await run(async () => {
        using _side = soundSide();
        using front = connect();
        await front.assertServed(true);
      });
      await proxy.waitFor(/hung up; waiting for a front end/);
      await delay(SETTLE_MS);
      const holder = await Holder.of(proxy);
      const round = async (random: Random) => {
        await run(() => body(random));
        if (++rounds % CHECK_ROUNDS === 0) await holder.check();
      };
      const finish = async () => {
        await holder.check();
        let load = 1;
        const isAtRest = async () => {
          const [before, startMs] = [holder.usedMs(), performance.now()];
          await delay(REST_MS);
          load = (holder.usedMs() - before) / (performance.now() - startMs);
          return load < AT_REST;
        };
        await until(isAtRest).catch(() => {
          throw new Error(`a proxy at rest uses ${load.toFixed(2)} of a processor`);
        });
        return `${answers} answers, ${sentAway} front ends sent away, all served again after ` +
          `${Math.round(longestMs)} ms at most`;
      };
      await use({ round, finish });
    });
  };
}

/** See the head of this file. */
export const LIVE_DEVICE_FUZZERS: readonly Fuzzer[] = [
  {
    name: "live-descriptors",
    what: "a hostile device side into a live proxy (descriptors)",
    open: opener(false),
  },
  {
    name: "live-confined",
    what: "a hostile device side into a live proxy (confined)",
    open: opener(true),
  },
];
