/**
 * Rules of a driver side that show only when its user wants something, which no message leads it to: bodies
 * as those of src/check/driver_rules.ts, with a hand on the driver side of this process.
 */

import type { DeviceRole } from "../../src/check/roles.ts";
import { expect, expectSame } from "../../src/check/outcome.ts";
import { Kind, type Message } from "../../src/message/message.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";

/** Asks for one rule; the remote device is the driver side's. */
type LedBody = (s: DeviceRole, remote: RemoteDevice) => Promise<void>;

/** Answers while the driver does something; what came of it. */
async function during<T>(s: DeviceRole, act: Promise<T>): Promise<T> {
  let isOver = false;
  const done = act.finally(() => isOver = true);
  done.catch(() => {});
  await s.until(() => isOver, "the driver neither did it nor gave up");
  await done.catch((error) => expect(false, `the driver gave up: ${error.message}`));
  return await done;
}

/** The same, for what must fail. */
async function fails(s: DeviceRole, act: Promise<unknown>, otherwise: string): Promise<void> {
  expect(await during(s, act.then(() => false, () => true)), otherwise);
}

/** The configuration is written; the generation that is named. */
async function writes(s: DeviceRole, remote: RemoteDevice): Promise<number | undefined> {
  const from = s.said.length;
  await during(s, remote.setConfig(2, Uint8Array.of(7)));
  return s.of(Kind.SET_CONFIG, from)[0]?.generation;
}

/** Nobody answers any more. */
async function getsNoAnswer(s: DeviceRole, remote: RemoteDevice): Promise<void> {
  await s.bringUp();
  s.override = () => true;
  const read = remote.config(0, 4);
  s.talk.send(Kind.EVENT_USED);
  await fails(s, read, "a request that nobody answered succeeds");
}

/** The generation is not named, whatever features the device has. */
async function namesNoGeneration(s: DeviceRole, remote: RemoteDevice): Promise<void> {
  await s.bringUp();
  s.generation = 41;
  await during(s, remote.config(0, 1));
  expectSame(await writes(s, remote), 0, "the generation in SET_CONFIG");
}

/** SET_CONFIG of four bytes is answered so. */
function answers(s: DeviceRole, length: number): void {
  s.override = ({ kind, device, token, generation, offset }) => {
    if (kind !== Kind.SET_CONFIG) return false;
    const words = [generation, offset, length].flatMap((word) => [word & 0xff, word >> 8, 0, 0]);
    const head = [1, 6, device & 0xff, device >> 8, token & 0xff, token >> 8, 20, 0];
    s.talk.put(s.talk.framed([...head, ...words]));
    return true;
  };
}

/** The bodies by the rule's number. */
export const LED_DRIVER: Readonly<Record<string, LedBody>> = {
  async R7(s, remote) {
    s.config = s.config.slice(0, 12);
    await s.bringUp();
    for (const [offset, length] of [[0, 13], [12, 1], [9, 4], [0xffff_ffff, 4]] as const) {
      await fails(s, remote.config(offset, length), "a read across the end succeeds");
      const write = remote.setConfig(offset, new Uint8Array(length));
      await fails(s, write, "a write across the end succeeds");
    }
    for (const { offset, length } of s.of([Kind.GET_CONFIG, Kind.SET_CONFIG])) {
      expect(offset + length <= 12, `${length} bytes from ${offset} on, of 12`);
    }
  },
  async R8(s, remote) {
    await s.bringUp();
    s.generation = 41;
    await during(s, remote.config(0, 4));
    expectSame(await writes(s, remote), 41, "the generation after a read");
    s.generation = 50;
    s.talk.send(Kind.EVENT_CONFIG, { status: s.status, generation: 50 });
    await s.lookOn();
    expectSame(await writes(s, remote), 50, "the generation after EVENT_CONFIG");
  },
  async R9(s, remote) {
    await s.bringUp();
    let refusals = 0;
    s.override = (request) => {
      if (request.kind !== Kind.SET_CONFIG) return false;
      s.talk.reply(request, { generation: 100 + refusals++ });
      return true;
    };
    const written = await during(s, remote.setConfig(0, Uint8Array.of(1)));
    expectSame(written, false, "whether a refused write was taken for one");
    // Where the generation was the reason, once more with the one that the answer names.
    const most = s.talk.codec.conduct.configWriteNamesGeneration ? 2 : 1;
    expect(refusals <= most, `a refused write was repeated ${refusals - 1} times`);
  },
  async R18(s, remote) {
    await s.bringUp();
    const from = s.said.length;
    const bytes = await during(s, remote.config(10, 100));
    expectSame([...bytes], [...s.config.slice(10, 110)], "what was read in parts");
    await during(s, remote.setConfig(10, bytes));
    for (const kind of [Kind.GET_CONFIG, Kind.SET_CONFIG]) {
      let next = 10;
      for (const { offset, length } of s.of(kind, from)) {
        expectSame(offset, next, "where the next part begins");
        expect(length <= s.talk.codec.limits.configBytes, `${length} bytes in one message`);
        next += length;
      }
      expectSame(next, 110, "where the last part ends");
    }
  },
  R20: namesNoGeneration,
  async R21(s, remote) {
    await s.bringUp();
    const from = s.said.length;
    s.override = (request) => {
      if (request.kind !== Kind.GET_CONFIG) return false;
      // It moves between the first parts, and then rests.
      if (s.of(Kind.GET_CONFIG, from).length < 3) s.generation++;
      s.config.fill(s.generation);
      return false;
    };
    const bytes = await during(s, remote.config(0, 50));
    expectSame(new Set(bytes).size, 1, "generations in what was read");
    let reads = 0;
    s.override = ({ kind }) => {
      if (kind === Kind.GET_CONFIG && reads++ >= 0) s.generation++;
      return false;
    };
    await fails(s, remote.config(0, 50), "what never rests was read");
    expect(reads <= 12, `${reads} reads of what never rests`);
  },
  async R24(s, remote) {
    await s.bringUp();
    let late: Message | undefined;
    s.override = (request) => {
      if (request.kind !== Kind.GET_CONFIG) return false;
      late = request;
      return true;
    };
    await fails(s, remote.config(0, 4), "a request that was not answered succeeds");
    s.override = undefined;
    const reset = during(s, remote.reset());
    s.answer(late!);
    await reset;
    expectSame(s.status, 0, "the status after a reset");
  },
  async R25(s, remote) {
    await s.bringUp();
    const from = s.said.length;
    let shows = 0;
    s.override = (request) => {
      if (request.kind !== Kind.GET_VQUEUE || shows++ >= 3) return false;
      s.answer(request, { flags: 1, queueSize: 256, deviceAddress: 1 });
      return true;
    };
    await during(s, remote.resetQueue(1));
    const kinds = s.said.slice(from).map(({ kind }) => kind);
    const { GET_VQUEUE, RESET_VQUEUE } = Kind;
    const wanted = [RESET_VQUEUE, GET_VQUEUE, GET_VQUEUE, GET_VQUEUE, GET_VQUEUE];
    expectSame(kinds, wanted, "what was said");
  },
  async R29(s, remote) {
    s.features = [0xffff_ffff, s.features[1]!];
    await namesNoGeneration(s, remote);
  },
  async R35(s, remote) {
    await s.bringUp();
    answers(s, 3);
    const isRefusal = during(
      s,
      remote.setConfig(0, new Uint8Array(4)).then(() => true, () => false),
    );
    expectSame(await isRefusal, false, "whether three bytes of four were taken for an answer");
  },
  async R36(s, remote) {
    await s.bringUp();
    answers(s, 4);
    const isWritten = await during(s, remote.setConfig(0, new Uint8Array(4)));
    expectSame(isWritten, true, "whether a success without data was taken for one");
  },
  B25: getsNoAnswer,
  B27: getsNoAnswer,
};
