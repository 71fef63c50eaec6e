/**
 * A console at this process's standard input and output, before a guest that is mock memory: it gives back in capitals what
 * it is sent, until there is a "q" in it. Told to, it then goes on for a while, and says so. Sizes are told on standard error.
 */

import { ConsoleDevice } from "../../../src/devices/console/console_device.ts";
import { StdioEnd } from "../../../src/devices/console/console_end.ts";
import { ConsoleFeature } from "../../../src/virtio/features.ts";
import { delay } from "../../support/processes.ts";
import { BUFFERS, QueueRig } from "../../support/queue_rig.ts";

const RECEIVE = 0, SEND = 1, ROOM = 64;
const [ending] = Deno.args;

using rig = new QueueRig(
  (reactor) => new ConsoleDevice(reactor, [{ end: new StdioEnd(reactor) }]),
  [ConsoleFeature.SIZE],
);
const room = () => rig.offer(RECEIVE, BUFFERS, new Uint8Array(), ROOM);
const say = (text: string) => rig.offer(SEND, BUFFERS + ROOM, new TextEncoder().encode(text));

room();
let changes = 0;
for (let isOver = false; !isOver;) {
  // Waits for input; where there is a terminal, time jumps to the next look at its size.
  rig.reactor.turn();
  const used = rig.queues[RECEIVE].takeUsed();
  if (used !== undefined) {
    const text = new TextDecoder().decode(rig.memory.bytes(BUFFERS, used.length).slice());
    say(text.toUpperCase());
    isOver = text.includes("q");
    room();
  }
  if (rig.configChanges !== changes) {
    changes = rig.configChanges;
    const size = new DataView(rig.device.readConfig(0, 4).slice().buffer);
    console.error(`SIZE ${size.getUint16(0, true)} ${size.getUint16(2, true)}`);
  }
  await delay(1);
}
if (ending === "goes on") {
  const before = rig.device.counters.batches;
  for (let i = 0; i < 20; i++) rig.settle();
  const batches = rig.device.counters.batches - before;
  say(`\nafter the end, in ${batches < 20 ? "few" : "many"} batches`);
}
rig.settle();
