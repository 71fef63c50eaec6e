/** What a device at the other end of a bus is taken for. */

import { assertEquals } from "@std/assert";
import { describe } from "../../../src/drivers/carried/description.ts";
import { codecFor } from "../../../src/message/codecs.ts";
import type { RemoteDevice } from "../../../src/transport/remote_device.ts";

Deno.test("carried: queues are counted where a device does not say how many it has, as the first of rfc-q", async () => {
  const asked: number[] = [];
  const device = {
    info: () => ({ deviceId: 1, vendorId: 2, featureBlocks: 2, configSize: 12, maxQueues: 0 }),
    features: () => new Uint32Array([0, 1]),
    queue: (index: number) => ({ maxSize: asked.push(index) > 3 ? 0 : 1024 }),
    side: { link: { codec: codecFor("rfc-q") } },
  } as unknown as RemoteDevice;
  const sharing = { withheld: [], own: [] } as unknown as Parameters<typeof describe>[1];
  const { queueSizes, configSize } = await describe(device, sharing, () => undefined);
  assertEquals([queueSizes.length, configSize, asked], [3, 12, [0, 1, 2, 3]]);
});
