/** What of the vhost-user protocol depends on the kind of device. */

import { assertEquals } from "@std/assert";
import { offeredProtocolFeatures, queueNumber } from "../../../src/drivers/vhost_user/offered.ts";
import { ProtocolFeature } from "../../../src/vhost_user/protocol.ts";
import { DEVICE_NET, DEVICE_RNG } from "../../../src/virtio/features.ts";

const CARD = { deviceId: DEVICE_NET, vendorId: 0, featureBlocks: 2, configSize: 17, maxQueues: 3 };
const RNG = { deviceId: DEVICE_RNG, vendorId: 0, featureBlocks: 2, configSize: 0, maxQueues: 1 };

Deno.test("vhost-user: status is offered for a network card, configuration where there is some", () => {
  const has = (info: typeof CARD, bit: number) =>
    (offeredProtocolFeatures(info) & (1 << bit)) !== 0;
  const { STATUS, CONFIG, MQ, REPLY_ACK } = ProtocolFeature;
  assertEquals([STATUS, CONFIG, MQ, REPLY_ACK].map((bit) => has(CARD, bit)), [
    true,
    true,
    true,
    true,
  ]);
  assertEquals([STATUS, CONFIG, MQ, REPLY_ACK].map((bit) => has(RNG, bit)), [
    false,
    false,
    true,
    true,
  ]);
});

Deno.test("vhost-user: queues are counted in pairs for a network card alone", () => {
  assertEquals([queueNumber(CARD), queueNumber(RNG)], [1, 1]);
  assertEquals(queueNumber({ ...RNG, maxQueues: 4 }), 4);
  const pairs = [2, 5, 129].map((maxQueues) => queueNumber({ ...CARD, maxQueues }));
  assertEquals(pairs, [1, 2, 64]);
  // A device that does not say, in `proto`, has one.
  assertEquals(queueNumber({ ...CARD, maxQueues: 0 }), 1);
});
