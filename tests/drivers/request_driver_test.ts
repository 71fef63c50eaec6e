/** Our drivers of disks and entropy devices, and devices that do what they must not, or are lost. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { type Batch, QueueDevice, take } from "../../src/devices/queue_device.ts";
import { BlkDriver } from "../../src/drivers/blk/blk_driver.ts";
import { transfer } from "../../src/drivers/blk/transfer.ts";
import { RequestDriver } from "../../src/drivers/request_driver.ts";
import { readEntropy, RNG_DRIVER } from "../../src/drivers/rng.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { BorrowedFd } from "../../src/linux/fd.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { ownMemory } from "../../src/sharing/driver_memory.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { QueueSetup } from "../../src/virtio/device.ts";
import { BlkFeature, DEVICE_BLK, DEVICE_RNG } from "../../src/virtio/features.ts";
import { Chain } from "../../src/virtio/queue/mod.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const { SEG_MAX, SIZE_MAX, BLK_SIZE, RO, FLUSH } = BlkFeature;

interface What {
  readonly deviceId?: number;
  readonly features?: readonly number[];
  /** Where in the configuration which 32-bit words are. */
  readonly config?: Readonly<Record<number, number>>;
  /** What it does with a buffer; how many bytes it says it wrote. */
  readonly serve: (chain: Chain, device: Device) => number | "keep";
}

/** A device that does with each buffer what a test says. */
class Device extends QueueDevice {
  #usedAt = 0;

  constructor(
    reactor: Reactor,
    { deviceId = DEVICE_BLK, features = [], config = {}, serve }: What,
  ) {
    const chain = new Chain();
    const bytes = new Uint8Array(60);
    for (const [at, word] of Object.entries(config)) {
      new DataView(bytes.buffer).setUint32(Number(at), word, true);
    }
    const batch: Batch = (queue) => {
      while (take(queue, chain)) {
        const written = serve(chain, this);
        if (written === "keep") {
          queue.rewind(1);
          return false;
        }
        queue.complete(chain.head, written);
      }
      return false;
    };
    super(reactor, { deviceId, features, config: bytes, queues: [batch] });
  }

  breakDown(): void {
    this.host.needsReset("test");
  }

  override startQueue(index: number, setup: QueueSetup): string | undefined {
    this.#usedAt = setup.deviceAddress;
    return super.startQueue(index, setup);
  }

  /** Shows more used buffers than there are. */
  lie(): void {
    const at = this.#usedAt;
    const { buffer, byteOffset, at: start } = this.host.memory.find(at, 4)!;
    new DataView(buffer, byteOffset + at - start).setUint16(2, 500, true);
    this.host.used(0);
  }
}

interface Rig {
  readonly reactor: Reactor;
  readonly side: DriverSide;
  readonly log: ReturnType<typeof createLog>;
  readonly options: { memory: ReturnType<typeof ownMemory>; number: number; rings: "split" };
  /** Detaches both sides, and attaches them again. */
  attachAgain(): void;
}

async function withDevice(what: What, body: (rig: Rig) => Promise<void>): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor);
  const codec = codecFor("v1");
  const log = createLog("test", "error", () => {});
  using deviceSide = new DeviceSide({ reactor, bus: pair.device, codec, log });
  using device = new Device(reactor, what);
  deviceSide.add(0, device);
  using memory = ownMemory(1 << 20);
  using side = new DriverSide({ reactor, bus: pair.driver, codec, log });
  deviceSide.open();
  side.open();
  const options = { memory, number: 0, rings: "split" } as const;
  const attachAgain = () => pair.attachAgain();
  await reactor.until(body({ reactor, side, log, options, attachAgain }));
}

/** A sector of zeros, in the last byte of a request that all is well. */
function serveWell({ readable, writable }: Chain): number {
  assert(readable.length >= 16);
  writable.setUint8(writable.length - 1, 0);
  return writable.length;
}

// No file: nothing is to come to it.
const fd = new BorrowedFd(0x7fff_ffff);
const READ = { way: "read", fd, path: "x", offset: 0, length: 512 } as const;

const hostile: Record<string, [What, RegExp]> = {
  "answers with an error": [
    { serve: ({ writable }) => (writable.setUint8(writable.length - 1, 1), writable.length) },
    /^device 0 answers a read of 512 bytes at sector 0 with an input\/output error$/,
  ],
  "answers that it cannot": [
    { serve: ({ writable }) => (writable.setUint8(writable.length - 1, 2), writable.length) },
    /with that it cannot do that$/,
  ],
  "answers with a status that is none": [
    { serve: ({ writable }) => (writable.setUint8(writable.length - 1, 77), writable.length) },
    /with status 77, which is none$/,
  ],
  "writes no status": [{ serve: () => 0 }, /with nothing$/],
  "breaks its ring": [
    { serve: (_, device) => (device.lie(), "keep") },
    /^device 0 broke its ring: .*used 500 of 1/,
  ],
  "gives up": [
    { serve: (_, device) => (device.breakDown(), "keep") },
    /^device 0 gave up and needs a reset$/,
  ],
  "never answers": [{ serve: () => "keep" }, /^device 0 has not answered for 60 s$/],
  "has no sectors": [{ config: { 0: 0 }, serve: serveWell }, /are not on a disk of 0$/],
  "has more sectors than can be": [
    { config: { 0: 0, 4: 0xffff_ffff }, serve: serveWell },
    /^device 0 says it has \d+ sectors/,
  ],
  "has blocks of no size": [
    { features: [BLK_SIZE], config: { 20: 1000 }, serve: serveWell },
    /blocks of 1000 bytes$/,
  ],
  "has blocks that are larger than its requests": [
    {
      features: [BLK_SIZE, SIZE_MAX, SEG_MAX],
      config: { 8: 512, 12: 1, 20: 4096 },
      serve: serveWell,
    },
    /multiples of 4096, the bytes of a block/,
  ],
  "is another device": [
    { deviceId: 4, serve: serveWell },
    /^device 0 is not a disk but has device id 4$/,
  ],
};
for (const [name, [what, pattern]] of Object.entries(hostile)) {
  cleanTest(`driver of a disk: one that ${name}`, async () => {
    const config = { 0: 2048, ...what.config };
    const error = await assertRejects(
      () =>
        withDevice({ ...what, config }, async ({ reactor, side, log, options }) => {
          using driver = new BlkDriver(reactor, side, log, options);
          await transfer(driver, READ);
        }),
      VmsgError,
    );
    assertMatch(error.message, pattern);
  });
}

cleanTest("driver of a disk: segments and requests are no larger than it takes", async () => {
  const seen: number[][] = [];
  const serve = (chain: Chain) => {
    const { writable } = chain;
    seen.push(Array.from({ length: writable.count }, (_, i) => writable.lengthOf(i)));
    return serveWell(chain);
  };
  const features = [SIZE_MAX, SEG_MAX, FLUSH, RO];
  const config = { 0: 2048, 8: 1536, 12: 3 };
  await withDevice({ features, config, serve }, async ({ reactor, side, log, options }) => {
    using driver = new BlkDriver(reactor, side, log, options);
    assertEquals((await driver.info()).readonly, true);
    assertEquals(await driver.pieceSize(), 3 * 1536);
    const [slot] = driver.slots;
    await driver.read(slot!, 0, 4096);
    await driver.flush(slot!);
    assertEquals(await driver.serial(slot!), "");
    await assertRejects(() => transfer(driver, { ...READ, way: "write" }), VmsgError, "only read");
  });
  assertEquals(seen, [[1536, 1536, 1024, 1], [1], [20, 1]]);
});

cleanTest(
  "driver of a disk: what a lost device has not answered is asked of the next one",
  async () => {
    let lives = 0, answered = 0;
    const serve = (chain: Chain) => lives === 0 ? "keep" : (answered++, serveWell(chain));
    await withDevice({ config: { 0: 2048 }, serve }, async (rig) => {
      const { reactor, side, log, options } = rig;
      using driver = new BlkDriver(reactor, side, log, options);
      await driver.info();
      const reads = driver.slots.slice(0, 3).map((slot) => driver.read(slot, 0, 512));
      await reactor.sleep(100);
      lives++;
      rig.attachAgain();
      await Promise.all(reads);
    });
    assertEquals(answered, 3);
  },
);

cleanTest(
  "driver of an entropy device: short answers are gone on from, and none at all for ever is an end",
  async () => {
    const sizes = [1, 0, 3, 4096];
    const serve = ({ writable }: Chain) => {
      const size = Math.min(sizes.shift() ?? 0, writable.length);
      for (let i = 0; i < size; i++) writable.setUint8(i, 7);
      return size;
    };
    const what = { deviceId: DEVICE_RNG, serve };
    await withDevice(what, async ({ reactor, side, log, options }) => {
      using driver = new RequestDriver(reactor, side, log, { ...options, ...RNG_DRIVER });
      const pieces: number[] = [];
      await readEntropy(driver, 1000, (piece) => {
        assert(piece.every((byte) => byte === 7));
        pieces.push(piece.length);
      });
      assertEquals(pieces, [1, 0, 3, 996]);
      await assertRejects(
        () => readEntropy(driver, 1, () => {}),
        VmsgError,
        "gave no byte 100 times",
      );
    });
  },
);
