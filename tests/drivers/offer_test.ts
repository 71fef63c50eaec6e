/** Which features of a device a front end is offered. */

import { assertEquals } from "@std/assert";
import { carriedFeatures } from "../../src/drivers/offer.ts";
import { DEVICE_NET, DEVICE_RNG, featureNames } from "../../src/virtio/features.ts";

/** The bits that are not offered, by name. */
function withheld(deviceId: number): string[] {
  return featureNames(carriedFeatures(deviceId).map((word) => ~word), deviceId);
}

const UNKNOWN = [25, 26, 30, 31];
const LATER = [42, 43, 44, 45, 46, 47, 48, 49];
const named = (bits: readonly number[]) => bits.map((bit) => `bit ${bit}`);
const OF_RING = [
  "ACCESS_PLATFORM",
  "RING_PACKED",
  "SR_IOV",
  "NOTIFICATION_DATA",
  "NOTIF_CONFIG_DATA",
  "RING_RESET",
  "ADMIN_VQ",
];

Deno.test("a front end is offered nothing of the ring or the transport that it would keep to itself", () => {
  assertEquals(withheld(DEVICE_RNG), [...named(UNKNOWN), ...OF_RING, ...named(LATER)]);
});

Deno.test("a network card's front end is not offered what begins with a command", () => {
  const net = ["HASH_TUNNEL", "VQ_NOTF_COAL", "NOTF_COAL", "HASH_REPORT", "RSS"];
  assertEquals(withheld(DEVICE_NET), [
    ...["GUEST_ANNOUNCE", "MQ"],
    ...[...named(UNKNOWN), ...OF_RING, ...named(LATER)],
    ...net,
  ]);
});
