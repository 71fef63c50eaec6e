/** Which features of a device a front end is offered. */

import { assertEquals } from "@std/assert";
import { carriedFeatures } from "../../src/drivers/offer.ts";
import { DEVICE_NET, DEVICE_RNG, featureNames } from "../../src/virtio/features.ts";

/** The bits that are not offered, by name. */
function withheld(deviceId: number, isForeign = false): string[] {
  return featureNames(carriedFeatures(deviceId, isForeign).map((word) => ~word), deviceId);
}

const UNKNOWN = [25, 26, 30, 31];
const LATER = [42, 43, 44, 45, 46, 47, 48, 49];
const named = (bits: readonly number[]) => bits.map((bit) => `bit ${bit}`);
const OF_RING = [
  "ACCESS_PLATFORM",
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
  // How many queue pairs are used, a device side of ours sees by the rings that run.
  const isMq = (name: string) => name === "MQ";
  assertEquals([false, true].map((isForeign) => withheld(DEVICE_NET, isForeign).some(isMq)), [
    false,
    true,
  ]);
  const net = ["HASH_TUNNEL", "VQ_NOTF_COAL", "NOTF_COAL", "HASH_REPORT", "RSS"];
  assertEquals(withheld(DEVICE_NET), [
    "GUEST_ANNOUNCE",
    ...[...named(UNKNOWN), ...OF_RING, ...named(LATER)],
    ...net,
  ]);
});
