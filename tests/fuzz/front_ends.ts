/**
 * Hostile front ends at a live `vmsg proxy` with a live `vmsg device` behind it: sessions that are sound in parts, whose
 * messages come changed, twice, in another order, cut, or as mere bytes, with descriptors of every kind beside them, and
 * whose rings change while they are worked on. Another front end on the same proxy and device behaves and is answered
 * all the time (tests/support/two_guests.ts).
 *
 * Both processes live on with as many descriptors and mappings as before, take little more memory, say little, and
 * are at rest as they were when nothing comes any more.
 */

import { openKeeper } from "../../src/cli/keeper.ts";
import { Request } from "../../src/vhost_user/protocol.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import type { Fd } from "../../src/linux/fd.ts";
import { LinuxError } from "../../src/linux/errors.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import {
  FEATURES,
  MEMORY_SIZE,
  type RawFrontEnd,
  regionBytes,
  u32s,
  USER_ADDRESS,
} from "../support/front_end.ts";
import type { Random } from "../support/mock_driver.ts";
import { PATIENCE_MS, until, withProcesses } from "../support/processes.ts";
import { type TwoGuests, withTwoGuests } from "../support/two_guests.ts";
import { mutate } from "./bytes.ts";
import { HostileDescriptors } from "./descriptors.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { GUARD, Guest } from "./guest.ts";
import { Holder } from "./holder.ts";

/** The other front end waits no longer for a round of its own, on a busy machine. */
const BOUND_MS = PATIENCE_MS;
const CHECK_ROUNDS = 20;
/** Processor time is compared over so many rounds of the other front end's. */
const COMPARED_ROUNDS = 200;
/** Of a round: less than a process uses that turns in vain meanwhile. */
const MORE_MS = 0.5;

/**
 * Processor time of both for a round of the other front end's, in ms, while nobody else asks. It goes on as fast as it is
 * answered, so that in a second they use what the machine has to give.
 */
async function cost(guests: TwoGuests, holders: readonly Holder[]): Promise<number> {
  const used = () => holders.reduce((sum, holder) => sum + holder.usedMs(), 0);
  const [before, first] = [used(), guests.rounds];
  await guests.answered(COMPARED_ROUNDS);
  return (used() - before) / (guests.rounds - first);
}

interface Step {
  readonly request: number;
  readonly payload: Uint8Array;
  readonly fds: readonly Fd[];
}

/** A sound session. */
function script(guest: Guest, kick: Fd, call: Fd, random: Random): Step[] {
  const say = (request: number, payload: Uint8Array = new Uint8Array(), ...fds: Fd[]): Step => ({
    request,
    payload,
    fds,
  });
  const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, GUARD);
  const table = new Uint8Array([...u32s(1, 0), ...region]);
  const ring = (index: number): Step[] => {
    const addresses = new DataView(new ArrayBuffer(40));
    addresses.setUint32(0, index, true);
    [0x1000, 0x3000, 0x2000].forEach((at, i) =>
      addresses.setBigUint64(8 + 8 * i, BigInt(USER_ADDRESS + 0x4000 * index + at), true)
    );
    return [
      say(Request.SET_VRING_NUM, u32s(index, 64)),
      say(Request.SET_VRING_BASE, u32s(index, 0)),
      say(Request.SET_VRING_ADDR, new Uint8Array(addresses.buffer)),
      say(Request.SET_VRING_CALL, u32s(index, 0), call),
      say(Request.SET_VRING_ERR, u32s(index, 0), call),
      say(Request.SET_VRING_KICK, u32s(index, 0), kick),
      say(Request.SET_VRING_ENABLE, u32s(index, 1)),
    ];
  };
  return [
    say(Request.GET_FEATURES),
    say(Request.SET_OWNER),
    say(Request.GET_PROTOCOL_FEATURES),
    say(Request.SET_PROTOCOL_FEATURES, u32s(random.pick([1 << 9, 0x1_8229]), 0)),
    say(Request.GET_QUEUE_NUM),
    say(Request.SET_FEATURES, u32s(...FEATURES)),
    say(Request.SET_MEM_TABLE, table, guest.file),
    ...ring(0),
    ...ring(1),
    say(Request.SET_STATUS, u32s(0xf, 0)),
    say(Request.GET_CONFIG, new Uint8Array([...u32s(0, 8, 0), ...new Uint8Array(8)])),
    say(Request.SET_BACKEND_REQ_FD, new Uint8Array(), call),
    say(Request.SET_VRING_ENABLE, u32s(0, 0)),
    say(Request.GET_VRING_BASE, u32s(0, 0)),
    ...ring(0),
    say(Request.REM_MEM_REG, new Uint8Array([...u32s(0, 0), ...region])),
    say(Request.ADD_MEM_REG, new Uint8Array([...u32s(0, 0), ...region]), guest.file),
    say(Request.SET_MEM_TABLE, table, guest.file),
    say(Request.SET_STATUS, u32s(0, 0)),
    say(Request.GET_VRING_BASE, u32s(1, 0)),
    say(Request.RESET_OWNER),
  ];
}

/** A connection, as soon as there is room for one more. */
async function connected(connect: () => RawFrontEnd, reactor: Reactor): Promise<RawFrontEnd> {
  for (const endMs = reactor.now() + BOUND_MS;;) {
    try {
      return connect();
    } catch (error) {
      if (reactor.now() > endMs) throw error;
    }
    await reactor.sleep(10);
  }
}

/** One front end's session, and its end. */
async function session(
  front: RawFrontEnd,
  random: Random,
  hostile: HostileDescriptors,
  guest: Guest,
  reactor: Reactor,
): Promise<number> {
  const malice = random.pick([0, 0, 0.01, 0.05, 0.3]);
  using ownCall = createEventFd();
  // A session that is sound but for these gets as far as to use them.
  const any = () => random.pick(random.chance(0.5) ? hostile.full : hostile.all);
  const kick = random.chance(0.1) ? any() : guest.kick;
  const call = random.chance(0.5) ? any() : ownCall;
  const steps = script(guest, kick, call, random);
  let sent = 0;
  let position = 0;
  // One that comes soon after another waits until it is served; few come as unseen as they leave.
  if (random.chance(0.9)) await answered(() => front.ask(Request.GET_FEATURES));
  for (let count = 5 + random.below(100); count > 0 && !front.hungUp; count--) {
    if (position >= steps.length || random.chance(malice)) position = random.below(steps.length);
    const { request, payload, fds } = steps[position++]!;
    const bytes = payload.slice();
    if (random.chance(malice)) mutate(new DataView(bytes.buffer), random, [0x1000, MEMORY_SIZE]);
    let sentFds = fds;
    if (random.chance(malice) || (fds.length > 0 && random.chance(2 * malice))) {
      const most = random.chance(0.9) ? 1 : 9;
      sentFds = Array.from(
        { length: random.below(most + 1) },
        () => random.pick(hostile.all),
      );
    }
    try {
      if (random.chance(malice / 8)) front.sendBytes(bytes, sentFds);
      else front.send(request, bytes, sentFds, random.chance(0.2) ? 8 : 0);
      sent++;
    } catch (error) {
      // The proxy hung up, or takes no more for now.
      if (!(error instanceof LinuxError)) throw error;
    }
    // The flags are the open file's, which both have: what was made to block no more does so again.
    if (random.chance(0.2)) hostile.refill();
    if (random.chance(0.3)) guest.offer(random.below(2));
    if (random.chance(2 * malice)) guest.scribble(random);
    if (random.chance(0.3)) await reactor.sleep(random.below(6));
  }
  if (random.chance(0.5)) await answered(() => front.barrier());
  await reactor.sleep(random.below(30));
  return sent;
}

/** What a hostile front end is answered is nothing that anybody owes it. */
async function answered(ask: () => Promise<unknown>): Promise<void> {
  try {
    await ask();
  } catch {
    // Sent away, or confused by what it asked before.
  }
}

const open: Fuzzer["open"] = async (use) => {
  await using keeper = await openKeeper();
  await withProcesses(keeper, (vmsg) =>
    withTwoGuests(vmsg, async (guests) => {
      using hostile = new HostileDescriptors(MEMORY_SIZE);
      await guests.answered();
      const holders = await Promise.all([guests.proxy, guests.device].map(Holder.of));
      const before = await cost(guests, holders);
      let messages = 0, worked = 0, rounds = 0, longestMs = 0;

      const check = async () => {
        for (const holder of holders) await holder.check();
      };
      const round = async (random: Random) => {
        using guest = new Guest();
        messages += await guests.attack(async ({ connect, reactor }) => {
          hostile.refill();
          const others = random.chance(0.1) ? random.below(8) : 0;
          for (let n = 0; n < others; n++) await connected(connect, reactor);
          return await session(await connected(connect, reactor), random, hostile, guest, reactor);
        });
        longestMs = Math.max(longestMs, await guests.answered(1, BOUND_MS));
        guest.memory.checkGuards();
        if (guest.rings.some(({ usedIndex }) => usedIndex !== 0)) worked++;
        if (++rounds % CHECK_ROUNDS === 0) await check();
      };
      const finish = async () => {
        await check();
        let after = 0;
        const figures = () => `${before.toFixed(2)} ms before, ${after.toFixed(2)} ms after`;
        const isAtRest = async () => (after = await cost(guests, holders)) < 1.5 * before + MORE_MS;
        await until(isAtRest).catch(() => {
          throw new Error(`processor time at rest, of a round: ${figures()}`);
        });
        return `${messages} messages, a ring used ${worked} times, the other front end waited ${
          Math.round(longestMs)
        } ms at ` +
          `most, processor time at rest, of a round ${figures()}`;
      };
      await use({ round, finish });
    }));
};

/** See the head of this file. */
export const FRONT_END_FUZZERS: readonly Fuzzer[] = [
  { name: "front-ends", what: "hostile front ends, with any descriptors, at live processes", open },
];
