/** What a device side says of its devices. */

import { assertEquals } from "@std/assert";
import { Kind } from "../../src/message/message.ts";
import { listDevices } from "../../src/transport/discovery.ts";
import { withReady } from "../support/driver_rig.ts";
import { cleanTest } from "../support/leaks.ts";

cleanTest(
  "discovery: no device has a number that no message can carry",
  () =>
    withReady(async ({ side, peer }) => {
      const asked: (readonly [number, number])[] = [];
      peer.onMessage = (message) => {
        if (message.kind !== Kind.GET_DEVICES) return false;
        const { offset, count } = message;
        asked.push([offset, count]);
        // Every device there could be, and then those at the end.
        peer.reply(message, (m) => {
          Object.assign(m, { offset, count: 64, nextOffset: offset === 0 ? 0xfffc : 0 });
          m.bytes.fill(0xff, 0, 8);
        });
        return false;
      };
      const numbers = await listDevices(side, 1000);
      assertEquals(asked, [[0, 512], [0xfffc, 4]]);
      assertEquals(numbers?.slice(64), [0xfffc, 0xfffd, 0xfffe, 0xffff]);
    }),
);
