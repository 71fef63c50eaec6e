/** What encoding and decoding one message costs. Run: deno bench -A bench/message_bench.ts */

import { codecFor } from "../src/message/codecs.ts";
import type { Dialect } from "../src/message/codec.ts";
import { Kind, Message } from "../src/message/message.ts";

function run(name: string, dialect: Dialect, response: boolean, fill: (m: Message) => void): void {
  const codec = codecFor(dialect);
  const slot = new DataView(new ArrayBuffer(64));
  const message = new Message();
  const kind = Kind[name as keyof typeof Kind];
  const what = `${dialect} ${name}${response ? " answer" : ""}`;
  Deno.bench(`${what}: encode`, { group: what }, () => {
    message.reset(kind, response);
    fill(message);
    codec.encode(message, slot, 0);
  });
  Deno.bench(`${what}: decode`, { group: what }, () => {
    codec.decode(slot, 0, message);
  });
  message.reset(kind, response);
  fill(message);
  codec.encode(message, slot, 0);
}

run("EVENT_AVAIL", "v1", false, (m) => {
  m.index = 1;
});
run("SET_VQUEUE", "v1", false, (m) => {
  m.index = 1;
  m.flags = 1;
  m.queueSize = 256;
  m.descriptorAddress = 0x1_4001_0000;
  m.driverAddress = 0x1_4001_1000;
  m.deviceAddress = 0x1_4001_2000;
});
run("GET_DEVICE_FEATURES", "v1", true, (m) => {
  m.count = 2;
  m.words[0] = 0x30010020;
  m.words[1] = 3;
});
run("GET_VQUEUE", "v1-2025", true, (m) => {
  m.index = 1;
  m.maxSize = 1024;
  m.queueSize = 256;
  m.descriptorAddress = 0x1_4001_0000;
  m.driverAddress = 0x1_4001_1000;
  m.deviceAddress = 0x1_4001_2000;
});
run("EVENT_AVAIL", "proto", false, (m) => {
  m.index = 1;
});
