/**
 * Hostile vhost-user back ends: replies that come changed, cut, twice, late, never, or with descriptors, rings in which they write what
 * they like, hang-ups at any moment, and a driver side that goes on asking as the transport does.
 *
 * Every question is answered in time, and nothing is left open or said more often than a person could read.
 */

import { assert } from "@std/assert";
import { VhostUserDevice } from "../../src/devices/vhost_user/vhost_user_device.ts";
import { createLog } from "../../src/observe/log.ts";
import type { MemoryRegion } from "../../src/memory/mod.ts";
import {
  ACCEPTED,
  AT,
  BLOCK,
  Host,
  openMemory,
  SECOND,
  SETUP,
  SIZE,
} from "../devices/vhost_user/support.ts";
import { withDirectory } from "../support/leaks.ts";
import { MockBackEnd, USUAL } from "../support/mock_back_end.ts";
import type { Random } from "../support/mock_driver.ts";
import { mutate } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { assertFew, Holdings, RoundReactor } from "./round_reactor.ts";

const STEPS = 40;
/** An answer may wait for what was asked before, each of them within 3 s. */
const BOUND_MS = 7000;
/** How long a back end has to come at first. */
const KNOWN_MS = 500;
const QUEUES = [SETUP, SECOND];

function wrongly(random: Random): typeof USUAL.instead {
  const share = random.pick([0, 0.02, 0.1, 0.5]);
  return (_request, answer) => {
    if (!random.chance(share)) return undefined;
    const fds = random.chance(0.2) ? random.below(9) : 0;
    const kind = random.below(6);
    if (kind === 0) return { bytes: answer.subarray(0, random.below(answer.length)), fds };
    if (kind === 1) return { bytes: new Uint8Array(), fds: 0 };
    if (kind === 2) return { bytes: new Uint8Array([...answer, ...answer]), fds };
    const bytes = answer.slice();
    mutate(new DataView(bytes.buffer), random, [12, 20, 64, 4096, 4097]);
    return { bytes, fds };
  };
}

/** One device and its back end, asked as the transport asks. */
async function round(reactor: RoundReactor, socket: string, random: Random): Promise<void> {
  const startMs = reactor.now();
  const lines: string[] = [];
  using region = openMemory(SIZE, AT);
  using more = openMemory(SIZE, AT + SIZE);
  using backEnd = new MockBackEnd(reactor, socket, {
    protocol: random.u32() & 0x1_ffff | (random.chance(0.5) ? USUAL.protocol : 0),
    queues: random.pick([0, 1, 2, 2 ** 31]),
    slots: random.pick([0, 1, 8, 2 ** 31]),
    instead: wrongly(random),
  });
  const log = createLog("fuzz", "info", (line) => lines.push(line));
  const options = { socket, deviceId: BLOCK, queueSize: 128, name: "0 fuzz" };
  using device = new VhostUserDevice(reactor, options, log);
  let isKnown = false;
  device.ready.then(() => isKnown = true);
  await reactor.sleep(KNOWN_MS);
  if (!isKnown) return assertFew(lines, reactor.now() - startMs);
  const host = new Host();
  for (const { at, size, memory } of [region, more]) host.memory.add(at, size, memory);
  device.connect(host);

  const shown: MemoryRegion[] = [];
  const running = new Set<number>();
  let isAccepted = false;
  const ask = async <T>(question: string, answer: T | Promise<T>): Promise<T> => {
    const askedMs = reactor.now();
    const value = await answer;
    const tookMs = reactor.now() - askedMs;
    assert(tookMs <= BOUND_MS, `${question} was answered after ${tookMs} ms`);
    return value;
  };
  const stop = async (index: number) => {
    running.delete(index);
    const base = await ask("stop", device.stopQueue(index));
    assert(Number.isInteger(base) && base >= 0 && base <= 0xffff, `base ${base}`);
  };
  const reset = async () => {
    for (const index of running) await stop(index);
    host.isRunning = isAccepted = false;
    await ask("reset", device.reset());
    for (const one of shown.splice(0)) await ask("removed", device.memoryRemoved([one]));
  };
  const view = new DataView(region.memory.buffer);
  const step = async () => {
    switch (random.below(16)) {
      case 0:
        if (running.size === 0) isAccepted = await ask("accept", device.acceptFeatures(ACCEPTED));
        return;
      case 1:
      case 2: {
        const next = [region, more].find((one) => !shown.includes(one));
        if (next === undefined) return;
        if (await ask("added", device.memoryAdded([next])) === undefined) shown.push(next);
        return;
      }
      case 3:
      case 4: {
        const index = random.below(2);
        const isFree = isAccepted && shown.includes(region) && !running.has(index);
        if (!isFree || index >= device.queueCount) return;
        const problem = await ask("start", device.startQueue(index, QUEUES[index]!));
        if (problem === undefined) running.add(index);
        return;
      }
      case 5:
        for (const index of running) if (random.chance(0.3)) await stop(index);
        return;
      case 6:
        if (random.chance(0.3)) await reset();
        return;
      case 7:
        host.isRunning = isAccepted;
        return device.resume();
      case 8:
        for (const index of running) device.available(index);
        return;
      case 9: {
        const offset = random.below(device.configSize + 1);
        const bytes = new Uint8Array(random.below(device.configSize - offset + 1));
        await ask("write", device.writeConfig(offset, bytes));
        device.readConfig(offset, bytes.length);
        return;
      }
      case 10:
        return random.chance(0.5) ? backEnd.hangUp() : backEnd.die();
      case 11:
        if (!backEnd.isListening) backEnd.listen();
        return;
      case 12:
        return mutate(new DataView(view.buffer, 0x2000, 0x1030), random, [0xffff, 8]);
      case 13: {
        const { kick, call, error } = backEnd.rings[random.below(2)] ?? {};
        const fd = random.pick([kick, call, error]);
        return fd && backEnd.signal(fd);
      }
      case 14:
        if (random.chance(0.2)) {
          backEnd.sendBytes(new Uint8Array(random.below(100)).map(() => random.u32()));
        }
        return backEnd.hasChannel ? backEnd.say(random.below(8), random.below(16)) : undefined;
      default:
        await reactor.sleep(random.pick([1, 10, 1000]));
    }
  };
  for (let i = 0; i < STEPS; i++) await step();
  if (random.chance(0.5)) await reset();
  assertFew(lines, reactor.now() - startMs);
}

/** See the head of this file. */
export const BACK_END_FUZZERS: readonly Fuzzer[] = [{
  name: "back-end",
  what: "a hostile vhost-user back end into a device",
  open: (use) =>
    withDirectory(async (directory) => {
      using reactor = new RoundReactor();
      const socket = `${directory}/back.sock`;
      // What is opened once is there before the first round is compared to.
      await reactor.round(() => warmUp(reactor, socket));
      const holdings = new Holdings();
      await use({
        round: async (random) => {
          await reactor.round(() => round(reactor, socket, random));
          holdings.check();
        },
        finish: () => holdings.finish("every question was answered"),
      });
    }),
}];

async function warmUp(reactor: RoundReactor, socket: string): Promise<void> {
  using _backEnd = new MockBackEnd(reactor, socket);
  const options = { socket, deviceId: BLOCK, queueSize: 128, name: "0 fuzz" };
  using device = new VhostUserDevice(reactor, options, createLog("fuzz", "error", () => {}));
  await device.ready;
}
