import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import {
  featureNames,
  NetFeature,
  RingFeature,
  Status,
  statusNames,
} from "../../src/virtio/features.ts";
import { Kind, Message } from "../../src/message/message.ts";
import { MESSAGES } from "../../src/message/table.ts";
import { describe } from "../../src/message/text.ts";
import { readVectors, slotOf } from "./vectors.ts";

const message = new Message();

function text(name: string): string {
  const [dialect, ...rest] = name.split("/");
  const vector = readVectors().find((entry) =>
    entry.dialect === dialect && entry.name === rest.join("/")
  );
  if (vector === undefined) throw new Error(`no vector ${name}`);
  const codec = codecFor(dialect as Dialect);
  assertEquals(codec.decode(slotOf(vector.bytes), 0, message), undefined);
  return describe(message);
}

Deno.test("every vector has a line", () => {
  let lines = 0;
  for (const { dialect, name, bytes } of readVectors()) {
    assertEquals(codecFor(dialect as Dialect).decode(slotOf(bytes), 0, message), undefined);
    const line = describe(message);
    assertMatch(line, /^[A-Z_]+(\?| =|)( |$)/);
    assert(!/undefined|NaN|\[object|\n| {2}| $/.test(line), `${name}: ${line}`);
    // Requests, answers and events are told apart by the mark behind the name.
    assertEquals(name.includes(".resp"), line.includes(" ="), line);
    assertEquals(MESSAGES[message.kind]!.event, !/[?=]/.test(line), line);
    lines++;
  }
  assertEquals(lines, 32 + 45 + 34 + 34 + 27);
});

Deno.test("lines", () => {
  const lines: Readonly<Record<string, string>> = {
    "v1/GET_DEVICE_INFO.req": "GET_DEVICE_INFO?",
    "v1/GET_DEVICE_INFO.resp.admin": "GET_DEVICE_INFO = net vendor 0x554d4551, 2 feature blocks, " +
      "config 12 bytes, 5 queues, admin queues 3 +2",
    "v1-2025/GET_DEVICE_INFO.resp":
      "GET_DEVICE_INFO = net vendor 0x554d4551, 2 feature blocks, config 12 bytes, 3 queues",
    "proto/DEVICE_INFO.resp": "GET_DEVICE_INFO = net vendor 0x554d4551 version 1",
    "v1/GET_DEVICE_FEATURES.req": "GET_DEVICE_FEATURES? blocks 0..1",
    "v1/GET_DEVICE_FEATURES.resp":
      "GET_DEVICE_FEATURES = MAC STATUS INDIRECT_DESC EVENT_IDX VERSION_1 ACCESS_PLATFORM",
    "proto/SET_FEATURES.req": "SET_DRIVER_FEATURES? MAC STATUS VERSION_1 ACCESS_PLATFORM",
    "v1/SET_DRIVER_FEATURES.resp": "SET_DRIVER_FEATURES = done",
    "v1/GET_CONFIG.resp": "GET_CONFIG = generation 7, offset 0 bytes 525400123456",
    "v1/SET_CONFIG.resp.nodata": "SET_CONFIG = generation 7, offset 8 length 4 applied",
    "v1/SET_CONFIG.resp.rejected": "SET_CONFIG = generation 8, offset 8 not applied",
    "v1/SET_DEVICE_STATUS.req": "SET_DEVICE_STATUS? ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK",
    "v1/SET_DEVICE_STATUS.req.reset": "SET_DEVICE_STATUS? 0 (reset)",
    "v1/SET_VQUEUE.req":
      "SET_VQUEUE? queue 1 size 256 desc 0x40010000 driver 0x40011000 device 0x40012000",
    "v1/GET_VQUEUE.resp.absent": "GET_VQUEUE = queue 7 absent",
    "v1/EVENT_AVAIL.packed": "EVENT_AVAIL queue 1 next 5 wrap 1",
    "proto/EVENT_CONFIG":
      "EVENT_CONFIG ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK DEVICE_NEEDS_RESET",
    "v1/EVENT_USED": "EVENT_USED queue 1",
    "v1/BUS_EVENT_DEVICE": "EVENT_DEVICE device 5 added",
    "v1-2025/BUS_EVENT_DEVICE": "EVENT_DEVICE device 5 ready",
    "v1-2025/BUS_EVENT_DEVICE.removed": "EVENT_DEVICE device 5 removed",
    "v1-2025/GET_VQUEUE.resp": "GET_VQUEUE = queue 1 max 1024 size 256 enabled " +
      "desc 0x40010000 driver 0x40011000 device 0x40012000",
    "v1-2025/BUS_GET_DEVICES.resp": "GET_DEVICES = 0 3 of 32 from 0",
    "v1/BUS_GET_DEVICES.resp.short": "GET_DEVICES = 0 3 of 4 from 0, next 40",
    "proto/IOMMU_TRANSLATE.resp": "IOMMU_TRANSLATE = 0x43210000 is 0x7a5c3000 for read",
    "proto/GET_CONFIG_GEN.resp": "GET_CONFIG_GENERATION = generation 7",
  };
  for (const [name, line] of Object.entries(lines)) assertEquals(text(name), line);
});

Deno.test("only what the dialect writes is described", () => {
  const slot = slotOf(new Uint8Array(0));
  message.reset(Kind.GET_DEVICE_INFO, true);
  message.deviceId = 1;
  message.version = 1;
  message.featureBlocks = 2;
  const sized = "GET_DEVICE_INFO = net vendor 0x0, 2 feature blocks, config 0 bytes, 0 queues";
  assertEquals(describe(message), sized);
  codecFor("v1").encode(message, slot, 0);
  assertEquals(describe(message), sized);
  codecFor("proto").encode(message, slot, 0);
  assertEquals(describe(message), "GET_DEVICE_INFO = net vendor 0x0 version 1");
});

Deno.test("private messages and empty records have words too", () => {
  message.reset(Kind.HELLO, false);
  message.epoch = 0x123456789abc;
  assertEquals(
    describe(message),
    "HELLO? epoch 0x123456789abc, peerEpoch 0x0, nonce 0x0, version 0, capabilities 0",
  );
  message.reset(Kind.ADD_MEMORY, true);
  message.result = 12;
  assertEquals(describe(message), "ADD_MEMORY = errno 12");
  message.reset(Kind.SET_NOTIFIER, false);
  message.say({ memoryDevice: 2, index: 1, ordinal: 7 });
  assertEquals(describe(message), "SET_NOTIFIER? device 2 queue 1 in band");
  message.flags = 3;
  const both = "SET_NOTIFIER? device 2 queue 1 kick descriptor 7 call descriptor 8";
  assertEquals(describe(message), both);
  message.flags = 4;
  assertEquals(describe(message), "SET_NOTIFIER? device 2 queue 1 call vector 7");
  for (const { kind } of MESSAGES) {
    for (const response of [false, true]) {
      message.reset(kind, response);
      assert(!/undefined|NaN| {2}| $/.test(describe(message)), describe(message));
    }
  }
});

Deno.test("feature and status names", () => {
  assertEquals(featureNames([1 << NetFeature.MAC, 1], 1), ["MAC", "VERSION_1"]);
  assertEquals(featureNames([1 << NetFeature.MAC, 1], 3), ["bit 5", "VERSION_1"]);
  assertEquals(featureNames([1 << (RingFeature.RING_RESET - 32)], 1, 1), ["RING_RESET"]);
  assertEquals(featureNames([0, 0, 0x80000001], 1), ["bit 64", "bit 95"]);
  assertEquals(featureNames([], 1), []);
  assertEquals(statusNames(Status.ACKNOWLEDGE | Status.FAILED), ["ACKNOWLEDGE", "FAILED"]);
  assertEquals(statusNames(0x80000010), ["bit 4", "bit 31"]);
  assertEquals(statusNames(0), []);
});
