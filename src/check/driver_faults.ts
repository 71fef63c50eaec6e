/**
 * A device that behaves as machines do on a bad day, played to a driver side: by mode, what it does. None of it
 * is wrong, or it is what a driver must live with, so in the end the device has to be in use.
 */

import { DIALECTS, Kind } from "../message/message.ts";
import { Status } from "../virtio/features.ts";
import type { Body } from "./common_rules.ts";
import { expect } from "./outcome.ts";
import type { DeviceRole } from "./roles.ts";
import type { Rule } from "./rules.ts";

const LATE_MS = 100;
const PAUSE_MS = 1000;
const SILENCE_MS = 3000;
/** A driver that asks again and again has no limit. */
const MAX_MESSAGES = 1000;
const PINGS = 200;

async function endsInUse(s: DeviceRole): Promise<void> {
  const isInUse = () => (s.status & Status.DRIVER_OK) !== 0;
  await s.until(isInUse, "the device is not in use in the end");
  if (s.talk.codec.has(Kind.PING)) await s.ping(1);
  expect(s.said.length < MAX_MESSAGES, `${s.said.length} messages were sent meanwhile`);
}

/** By mode: what the device does, and how. */
const FAULTS: Readonly<Record<string, readonly [text: string, body: Body<DeviceRole>]>> = {
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
  silent: ["the device is silent for a while, then goes on", async (s) => {
    await s.bringUp();
    s.override = (request) => {
      s.later(SILENCE_MS, () => s.answer(request));
      return true;
    };
    s.generation++;
    await s.announce({});
    await s.lookOn(SILENCE_MS);
    s.override = undefined;
    await endsInUse(s);
  }],
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
  full: ["messages are not taken for a while, and the queue is full", async (s) => {
    const { bus, codec, reactor } = s.talk;
    await s.bringUp();
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
    await endsInUse(s);
  }],
};

export const FAULT_MODES: readonly string[] = Object.keys(FAULTS);

/** A mode in the place of a rule, for whoever lists and reports these. */
export function ruleOfFault(mode: string): Rule {
  return {
    number: mode,
    section: "7.3",
    must: true,
    sides: ["driver"],
    dialects: DIALECTS,
    unasked: {},
  };
}

export const faultBody = (mode: string): Body<DeviceRole> | undefined => FAULTS[mode]?.[1];
export const faultText = (mode: string): string | undefined => FAULTS[mode]?.[0];
