/**
 * A driver that behaves as machines do on a bad day, played to a device side: by mode, what it does. None of it
 * is wrong, or it is what a device must live with, so in the end a driver can use the device as before. Nothing is
 * ever offered in a queue.
 */

import { Kind, type Message } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import type { Body } from "./common_rules.ts";
import type { Fields } from "./dialogue.ts";
import type { Faults } from "./faults.ts";
import { expect, expectSame, require } from "./outcome.ts";
import { type DriverRole, KNOWN, NEARLY, RUNNING } from "./roles.ts";

const LATE_MS = 100;
const PAUSE_MS = 1000;
const SILENCE_MS = 3000;
/** Bytes of a configuration that are looked at; `proto` does not say how many there are. */
const MOST_CONFIG = 16;
const PROTO_CONFIG = 8;
/** Requests without a look at the answers: more than queues hold. */
const FLOOD = 12_000;

type Step = readonly [kind: Kind, fields?: Fields];

const statusOf = (status: number): Step => [Kind.SET_DEVICE_STATUS, { status }];

/** A bring-up and a first notification, and a last question that shows what came of it. */
async function bringUp(d: DriverRole): Promise<readonly Step[]> {
  const words = await d.negotiate();
  await d.setStatus(0);
  const queue: Step[] = d.talk.memory === undefined ? [] : [[Kind.SET_VQUEUE, d.ring(0)]];
  return [
    [Kind.GET_DEVICE_INFO],
    statusOf(0),
    statusOf(1),
    statusOf(KNOWN),
    [Kind.GET_DEVICE_FEATURES, { count: 2 }],
    [Kind.SET_DRIVER_FEATURES, { count: 2, words }],
    statusOf(NEARLY),
    [Kind.GET_VQUEUE],
    ...queue,
    statusOf(RUNNING),
    [Kind.EVENT_AVAIL],
    [Kind.GET_DEVICE_STATUS],
  ];
}

/** Sends a request; what it is to be answered with. */
function send({ talk }: DriverRole, [kind, fields]: Step): (readonly [Kind, token: number])[] {
  const token = talk.send(kind, fields);
  return talk.codec.answered(kind) ? [[kind, token]] : [];
}

/** Each request has its one answer, in the order of the requests, and nothing else is answered; the last one. */
async function answersTo(
  d: DriverRole,
  from: number,
  sent: readonly (readonly [Kind, number])[],
): Promise<Message> {
  const { talk } = d;
  for (let count = 0; count < sent.length;) {
    const heard = await talk.next();
    expect(heard !== undefined, `${sent.length} requests were answered ${count} times`);
    if (heard.message.response) count++;
  }
  await d.calm("these requests");
  const answers = talk.heard.slice(from).filter(({ message: m }) => m.response);
  for (const [i, [kind, token]] of sent.entries()) {
    const { message } = answers[i]!;
    const is = [kindName(message.kind), message.token];
    expectSame(is, [kindName(kind), token], `answer ${i + 1} of ${sent.length}, and its token`);
  }
  return answers[sent.length - 1]!.message;
}

/** All at once. */
function volley(d: DriverRole, steps: readonly Step[]): Promise<Message> {
  const from = d.talk.heard.length;
  return answersTo(d, from, steps.flatMap((step) => send(d, step)));
}

/** One after the other, as drivers do, and something happens between one and the next. */
async function inTurn(
  d: DriverRole,
  steps: readonly Step[],
  between?: (fields: Fields) => Promise<void>,
): Promise<void> {
  for (const [kind, fields] of steps) {
    if (d.talk.codec.answered(kind)) await d.talk.ask(kind, fields);
    else d.talk.send(kind, fields);
    await between?.(fields ?? {});
  }
  await isRunning(d);
}

async function isRunning(d: DriverRole): Promise<void> {
  expectSame(await d.status(), RUNNING, "the status behind a bring-up");
}

/** The first bytes of the configuration, read in pieces of so many. */
async function configIn(d: DriverRole, size: number, piece: number, between?: () => Promise<void>) {
  const bytes: number[] = [];
  const generations = new Set<number>();
  for (let at = 0; at < size; at += piece) {
    await between?.();
    const length = Math.min(piece, size - at);
    const answer = await d.config(at, length);
    generations.add(answer.generation);
    bytes.push(...answer.bytes.subarray(0, length));
  }
  return { bytes, generations };
}

/** A mode, behind which the device is there as it was, and a driver can begin anew. */
function mode(text: string, body: Body<DriverRole>): readonly [string, Body<DriverRole>] {
  return [text, async (d) => {
    const { departures } = d.talk;
    await body(d);
    await d.setStatus(0);
    expectSame(await d.status(), 0, "the status behind a reset in the end");
    await inTurn(d, await bringUp(d));
    expectSame(d.talk.departures, departures, "how often it has gone");
  }];
}

/** See the head of this file. */
export const DEVICE_FAULTS: Faults<DriverRole> = {
  late: mode("answers are taken late", async (d) => {
    const { bus, reactor } = d.talk;
    const steps = await bringUp(d);
    for (const step of steps) {
      bus.isPaused = true;
      const from = d.talk.heard.length;
      const sent = send(d, step);
      await reactor.sleep(LATE_MS);
      bus.isPaused = false;
      if (sent.length > 0) await answersTo(d, from, sent);
    }
    await isRunning(d);
  }),
  reordered: mode("what a driver says comes backwards, and then all at once", async (d) => {
    const steps = await bringUp(d);
    await volley(d, steps.toReversed());
    const { status } = await volley(d, steps);
    expectSame(status, RUNNING, "the status behind a bring-up without a pause");
  }),
  silent: mode("the driver is silent for a while, then goes on", async (d) => {
    const { reactor } = d.talk;
    await inTurn(d, await bringUp(d), async ({ status }) => {
      if (status !== NEARLY && status !== RUNNING) return;
      await reactor.sleep(SILENCE_MS);
      expectSame(await d.status(), status, "the status behind a silence");
    });
  }),
  torn: mode("configuration is read and written in pieces, while the status changes", async (d) => {
    const { dialect } = d.talk.codec;
    const { configSize } = await d.ask(Kind.GET_DEVICE_INFO);
    const size = dialect === "proto" ? PROTO_CONFIG : Math.min(configSize, MOST_CONFIG);
    const whole = await configIn(d, size, 4);
    let changes = 0;
    const changesStatus = async () => {
      await d.setStatus([1, KNOWN, 0][changes++ % 3]!);
    };
    for (const piece of [1, 2, 4]) {
      const is = await configIn(d, size, piece, changesStatus);
      const isStill = new Set([...whole.generations, ...is.generations]).size <= 1;
      require(isStill, "its configuration changes by itself");
      expectSame(is.bytes, whole.bytes, `the configuration in pieces of ${piece}`);
    }
    // What is there already, half of it under a generation that may be none any more.
    const [generation = 0] = whole.generations;
    const half = Math.min(4, size >> 1);
    const write = (offset: number): Step => {
      const bytes = whole.bytes.slice(offset, offset + half);
      return [Kind.SET_CONFIG, { offset, length: half, bytes, generation }];
    };
    if (half > 0) {
      const read: Step = [Kind.GET_CONFIG, { length: half }];
      await volley(d, [write(0), read, statusOf(1), write(half), read, statusOf(0), write(0)]);
    }
    expectSame((await configIn(d, size, 4)).bytes, whole.bytes, "what was written as it was");
  }),
  full: mode("answers are not taken for a while, and the queues are full", async (d) => {
    const { talk, talk: { bus, reactor } } = d;
    await inTurn(d, await bringUp(d));
    const from = talk.heard.length;
    const sent: (readonly [Kind, number])[] = [];
    bus.isPaused = true;
    for (let waitedMs = 0; waitedMs < PAUSE_MS;) {
      if (sent.length < FLOOD && bus.claim() >= 0) {
        sent.push(...send(d, [Kind.GET_DEVICE_STATUS]));
      } else {
        await reactor.sleep(1);
        waitedMs++;
      }
    }
    bus.isPaused = false;
    await answersTo(d, from, sent);
    await isRunning(d);
  }),
};
