/** A program that is the recorded device on a linux-user bus in the current directory, and says what it is told. */

import { openBus, parseBus } from "../../src/cli/bus_option.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { createLog } from "../../src/observe/log.ts";
import { Status } from "../../src/virtio/features.ts";
import { BytePeer, RecordedAnswers } from "./recorded_answers.ts";
import { hex, idOf, payload } from "./recording.ts";

const reactor = new Reactor();
const log = createLog("recorded", "info", console.error);
const bus = openBus(
  parseBus("linux-user,socket=lu.sock,dialect=proto", "device"),
  "device",
  reactor,
  log,
);
const peer = new BytePeer(reactor, bus);
const device = new RecordedAnswers(peer);
const answer = peer.onMessage!;
peer.onMessage = (bytes) => {
  answer(bytes);
  for (const line of device.aborts.splice(0)) console.log(`ABORT ${line}`);
  const fields = payload(bytes);
  console.log(`SAID ${hex(bytes)}`);
  if (idOf(bytes) === 0x05) {
    console.log(`FEATURES ${fields.getUint32(4, true)} ${fields.getUint32(8, true)}`);
  }
  if (idOf(bytes) === 0x0c) console.log(`QUEUE ${fields.getUint32(0, true)}`);
  if (idOf(bytes) === 0x0a && (fields.getUint32(0, true) & Status.DRIVER_OK) !== 0) {
    console.log("DRIVER_OK");
  }
};
peer.open();
await reactor.run();
