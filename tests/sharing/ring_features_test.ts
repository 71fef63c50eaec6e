/** Where packed rings and IN_ORDER are offered, and where not (docs/guests.md). */

import { assertEquals } from "@std/assert";
import { QueueDevice } from "../../src/devices/queue_device.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { Descriptors } from "../../src/sharing/descriptors.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import { hasFeature, RingFeature } from "../../src/virtio/features.ts";

Deno.test("a foreign device gets no packed rings of a driver's own: nobody could tell where they go on", () => {
  for (const [peer, withheld] of [["vmsg", []], ["foreign", [RingFeature.RING_PACKED]]] as const) {
    const sharing = new Descriptors({ side: { peer } } as unknown as RemoteDevice);
    assertEquals([sharing.withheld, sharing.own], [withheld, []]);
  }
});

Deno.test("a device that completes in any order offers neither packed rings nor IN_ORDER", () => {
  using reactor = new Reactor();
  for (const anyOrder of [false, true]) {
    using device = new QueueDevice(reactor, { deviceId: 42, queues: [() => false], anyOrder });
    const offers = [RingFeature.RING_PACKED, RingFeature.IN_ORDER].map((bit) =>
      hasFeature(device.features, bit)
    );
    assertEquals(offers, [!anyOrder, !anyOrder]);
  }
});
