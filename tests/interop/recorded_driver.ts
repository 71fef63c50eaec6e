/**
 * A program that is the recorded driver on a linux-user bus in the current directory: each request byte for byte, but for
 * the features, which are those that the device offers; and each answer has to be the recorded one, where it says
 * nothing of whose device it is. It ends with 0 if all of them are.
 */

import { assert, assertEquals } from "@std/assert";
import { openBus, parseBus } from "../../src/cli/bus_option.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { createLog } from "../../src/observe/log.ts";
import { BytePeer } from "./recorded_answers.ts";
import { exchanges, hex, idOf, isAnswer, payload, readRecording } from "./recording.ts";

const [INFO, GET_FEATURES, SET_FEATURES, GET_VQUEUE] = [0x03, 0x04, 0x05, 0x0b];
const PATIENCE_MS = 60_000;

using reactor = new Reactor();
using end = openBus(
  parseBus("linux-user,socket=lu.sock,dialect=proto", "driver"),
  "driver",
  reactor,
  createLog("recorded", "error", console.error),
);
const peer = new BytePeer(reactor, end);
const answers: Uint8Array[] = [];
peer.onMessage = (bytes) => void (isAnswer(bytes) && answers.push(bytes));
peer.open();
const ask = async (request: Uint8Array): Promise<Uint8Array> => {
  peer.put(request);
  const endMs = reactor.now() + PATIENCE_MS;
  while (answers.length === 0) {
    assert(reactor.now() < endMs, `no answer to ${hex(request)}`);
    await reactor.sleep(1);
  }
  return answers.shift()!;
};

await reactor.until((async () => {
  while (!end.isAttached) await reactor.sleep(1);
  let offered = 0n;
  for (
    const { request, answer } of [...exchanges(readRecording()), ...exchanges(readRecording())]
  ) {
    const id = idOf(request);
    if (id === SET_FEATURES) {
      const fields = payload(request);
      fields.setBigUint64(4, fields.getBigUint64(4, true) & offered, true);
    }
    if (answer === undefined) {
      peer.put(request);
      continue;
    }
    const said = await ask(request);
    if (id === INFO) {
      assertEquals([...said.slice(4, 12)], [...answer.slice(4, 12)], "version, device id");
    } else if (id === GET_FEATURES) {
      offered = payload(said).getBigUint64(4, true);
      assertEquals(offered >> 32n & 3n, 3n, "VERSION_1 and ACCESS_PLATFORM are offered");
    } else if (id === SET_FEATURES) {
      assertEquals(hex(said).slice(2), hex(request).slice(2));
    } else if (id === GET_VQUEUE) {
      const [ours, theirs] = [said, answer].map((bytes) => payload(bytes).getUint32(4, true) > 0);
      assertEquals([hex(said).slice(0, 16), ours], [hex(answer).slice(0, 16), theirs]);
    } else assertEquals(hex(said), hex(answer), `what answers ${hex(request)}`);
  }
  // Whatever came late would abort the prototype.
  await reactor.sleep(50);
  assertEquals(answers.map(hex), []);
})());
