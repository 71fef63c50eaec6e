/**
 * A device that behaves as machines do on a bad day, played to a driver side: by mode, what it does. None of it
 * is wrong, or it is what a driver must live with, so in the end the device has to be in use.
 */

import { Kind } from "../message/message.ts";
import { Status } from "../virtio/features.ts";
import type { Faults } from "./faults.ts";
import { expect, require } from "./outcome.ts";
import type { DeviceRole } from "./roles.ts";

const LATE_MS = 100;
const PAUSE_MS = 1000;
const SILENCE_MS = 3000;
/** A driver that asks again and again has no limit. */
const MAX_MESSAGES = 1000;
const PINGS = 200;
/** In which a device that needs it is reset. */
const LIFE_MS = 2000;
const TRIES = 4;

/**
 * It says something when it is spoken to: PING is answered; where there is none, a changed configuration is read, or a
 * device that needs it is reset.
 */
async function isAlive(s: DeviceRole): Promise<boolean> {
  if (s.talk.codec.has(Kind.PING)) {
    await s.ping(1);
    return true;
  }
  const from = s.said.length;
  s.generation++;
  await s.announce({});
  const isRead = () => s.of(Kind.GET_CONFIG, from).length > 0;
  if (s.config.length > 0 && await s.serve(isRead, LIFE_MS)) return true;
  await s.announce({ status: s.status | Status.DEVICE_NEEDS_RESET });
  if (!await s.serve(() => s.of(Kind.SET_DEVICE_STATUS, from).length > 0, LIFE_MS)) return false;
  await s.bringUp();
  return true;
}

async function endsInUse(s: DeviceRole): Promise<void> {
  const isInUse = () => (s.status & Status.DRIVER_OK) !== 0;
  await s.until(isInUse, "the device is not in use in the end");
  if (s.talk.codec.has(Kind.PING)) await isAlive(s);
  expect(s.said.length < MAX_MESSAGES, `${s.said.length} messages were sent meanwhile`);
}

/** Something happens to a device that is in use; that it still is shows in what showed it before. */
async function survives(s: DeviceRole, happens: () => Promise<void>): Promise<void> {
  await s.bringUp();
  const wasAlive = await isAlive(s);
  await happens();
  await endsInUse(s);
  require(
    wasAlive,
    "it neither reads what changes nor resets a device that needs it, so its end would not be seen",
  );
  // It may be coming back to the device just now.
  let lives = false;
  for (let n = 0; n < TRIES && !lives; n++) lives = await isAlive(s);
  expect(
    lives,
    "what it said before to a change, or to a device that needs a reset, it says no more",
  );
}

/** See the head of this file. */
export const DRIVER_FAULTS: Faults<DeviceRole> = {
  late: ["every answer comes late", async (s) => {
    s.override = (request) => {
      s.later(LATE_MS, () => s.answer(request));
      return true;
    };
    await s.bringUp();
    await endsInUse(s);
  }],
  reordered: ["events come before the answers that they should follow", async (s) => {
    s.override = (request) => {
      if (!s.talk.codec.answered(request.kind)) return false;
      s.talk.send(Kind.EVENT_USED);
      s.talk.send(Kind.EVENT_CONFIG, { status: s.status, generation: s.generation });
      return false;
    };
    await s.bringUp();
    await endsInUse(s);
  }],
  silent: ["the device is silent for a while, then goes on", (s) =>
    survives(s, async () => {
      const { reactor } = s.talk;
      const endMs = reactor.now() + SILENCE_MS;
      s.override = (request) => {
        s.later(endMs - reactor.now(), () => s.answer(request));
        return true;
      };
      s.generation++;
      await s.announce({});
      await s.lookOn(endMs - reactor.now());
      s.override = undefined;
    })],
  torn: ["the configuration changes while it is read", async (s) => {
    let reads = 0;
    s.override = ({ kind }) => {
      if (kind !== Kind.GET_CONFIG || ++reads > 3) return false;
      s.generation++;
      s.config[5]!++;
      return false;
    };
    await s.bringUp();
    await endsInUse(s);
  }],
  full: [
    "messages are not taken for a while, and the queue is full",
    (s) =>
      survives(s, async () => {
        const { bus, codec, reactor } = s.talk;
        bus.isPaused = true;
        const hasPing = codec.has(Kind.PING);
        for (let n = 0; n < PINGS && bus.claim() >= 0; n++) {
          s.talk.send(hasPing ? Kind.PING : Kind.EVENT_USED);
          // So that the driver takes it, and its own queue fills up.
          if (n % 16 === 0) await reactor.sleep(1);
        }
        await reactor.sleep(PAUSE_MS);
        bus.isPaused = false;
        await s.lookOn();
      }),
  ],
};
