/** The device side in dialect `proto` (docs/wire.md, sections 2.3 and 7.5). */

import { assert, assertEquals } from "@std/assert";
import { Kind } from "../../src/message/message.ts";
import { EPOCH, RINGS, withSide } from "../support/device_rig.ts";
import { FAKE_FEATURES, FAKE_MAX_QUEUE_SIZE } from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";

cleanTest(
  "proto 2.3: features as one 64-bit value, status without an answer, refusal by GET",
  () =>
    withSide(async ({ peer, device }) => {
      const offered = await peer.ask(Kind.GET_DEVICE_FEATURES, (m) => m.index = 1);
      assertEquals([...offered.words.subarray(0, 2)], [...FAKE_FEATURES], "whatever the index");
      const setStatus = async (status: number) => {
        peer.send(Kind.SET_DEVICE_STATUS, (m) => m.status = status);
        return (await peer.ask(Kind.GET_DEVICE_STATUS)).status;
      };
      assertEquals(await setStatus(0x3), 0x3);
      assertEquals(await setStatus(0xb), 0x3, "without VERSION_1");
      // In parts, as QEMU sends them (2.4).
      for (const words of [[0, 0], [0x21, 0], [0x21, 1]]) {
        const echo = await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => m.words.set(words));
        assertEquals([...echo.words.subarray(0, 2)], words);
      }
      assertEquals(await setStatus(0xb), 0xb);
      assertEquals(device.accepted, [0x21, 1]);
      // P13: queues are asked for again at any time.
      assertEquals(
        (await peer.ask(Kind.GET_VQUEUE, (m) => m.index = 2)).maxSize,
        FAKE_MAX_QUEUE_SIZE,
      );
      assertEquals((await peer.ask(Kind.GET_VQUEUE, (m) => m.index = 3)).maxSize, 0);
      peer.send(Kind.SET_VQUEUE, (m) => {
        m.index = 1;
        m.queueSize = 64;
        Object.assign(m, RINGS);
      });
      assertEquals(await setStatus(0xf), 0xf);
      assertEquals(device.takeCalls(), ["accept", "start 1", "available 1", "resume"]);
      assertEquals(device.host.mayTouchMemory(), true, "no lease in this dialect");
      peer.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
      assertEquals(await setStatus(0), 0);
      assertEquals(device.takeCalls(), ["available 1", "stop 1"]);
    }, { dialect: "proto" }),
);

cleanTest(
  "proto 2.3: configuration of 1, 2 and 4 bytes; ones across the end",
  () =>
    withSide(async ({ peer, device }) => {
      for (const length of [1, 2, 4]) {
        const answer = await peer.ask(Kind.GET_CONFIG, (m) => {
          m.offset = 2;
          m.length = length;
        });
        assertEquals([...answer.bytes.subarray(0, length)], [3, 4, 5, 6].slice(0, length));
        assertEquals([answer.offset, answer.length], [2, length]);
      }
      const across = await peer.ask(Kind.GET_CONFIG, (m) => {
        m.offset = 10;
        m.length = 4;
      });
      assertEquals([...across.bytes.subarray(0, 4)], [0xff, 0xff, 0xff, 0xff]);
      device.acceptsConfig = false;
      const echo = await peer.ask(Kind.SET_CONFIG, (m) => {
        m.length = 2;
        m.bytes.set([0xaa, 0xbb]);
      });
      assertEquals(
        [echo.length, echo.bytes[0], echo.bytes[1]],
        [2, 0xaa, 0xbb],
        "what was written",
      );
    }, { dialect: "proto" }),
);

cleanTest(
  "proto: a first message that is no GET_DEVICE_INFO counts as well, queues are as found",
  () =>
    withSide(async ({ peer, device }) => {
      peer.send(Kind.SET_DEVICE_STATUS, (m) => m.status = 0x7);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0x7);
      device.host.used(1);
      assertEquals((await peer.nextOf(Kind.EVENT_USED)).index, 1);
    }, { dialect: "proto" }),
);

cleanTest("a first message of another dialect is named in the log", async () => {
  await withSide(async ({ peer, lines, hello }) => {
    // proto's DEVICE_INFO.
    peer.putBytes([0, 3]);
    await hello(EPOCH, 0, 0);
    assert(lines.some((line) => line.includes("the driver side speaks proto")), lines.join("\n"));
  });
  await withSide(async ({ peer, lines }) => {
    // v1's GET_DEVICE_INFO is GET_DISCONNECT's number here, but bytes 4-7 are not zero.
    peer.putBytes([0x02, 0x90, 0, 0, 1, 0, 36, 0]);
    await peer.ask(Kind.GET_DEVICE_STATUS);
    assert(lines.some((line) => line.includes("the driver side speaks v1")), lines.join("\n"));
  }, { dialect: "proto" });
});
