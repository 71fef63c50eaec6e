/**
 * A virtio entropy device (VIRTIO 1.3, section 5.4): one queue, no configuration, buffers that the driver
 * wants filled with random bytes. They come from this machine's kernel, straight into the driver's memory.
 *
 * A buffer may be filled in part (5.4.6.1). At most {@link MOST_BYTES} in {@link MOST_PIECES} are given at a time, so that
 * a driver that asks for gigabytes does not hold the loop; it asks again for the rest.
 */

import { fillRandom, waitForRandom } from "../linux/random.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { IovecList } from "../memory/mod.ts";
import { counterShape } from "../observe/counters.ts";
import { DEVICE_RNG } from "../virtio/features.ts";
import { Chain, type DeviceQueue } from "../virtio/queue/mod.ts";
import { BATCH_COUNTERS, QueueDevice, take } from "./queue_device.ts";

/** Bytes given per buffer, and pieces of it that are filled, each by a system call; Linux asks for 64 in one. */
const MOST_BYTES = 4096;
const MOST_PIECES = 8;

const RngCounters = counterShape(...BATCH_COUNTERS, "buffers", "bytes");

/**
 * Makes an entropy device. Waits until the kernel has randomness to give, which early in a boot takes a while.
 *
 * @param name what its counters are called
 */
export function rngDevice(reactor: Reactor, name: string = "rng"): QueueDevice {
  const chain = new Chain();
  const counters = new RngCounters("device", name);
  waitForRandom();

  function fillBuffers(queue: DeviceQueue, budget: number): boolean {
    for (let i = 0; i < budget; i++) {
      if (!take(queue, chain)) return false;
      const written = fill(chain.writable);
      counters.buffers++;
      counters.bytes += written;
      queue.complete(chain.head, written);
    }
    return true;
  }
  return new QueueDevice(reactor, { deviceId: DEVICE_RNG, queues: [fillBuffers], counters });
}

function fill(buffer: IovecList): number {
  let done = 0;
  const count = Math.min(buffer.count, MOST_PIECES);
  for (let i = 0; i < count && done < MOST_BYTES; i++) {
    const length = Math.min(buffer.lengthOf(i), MOST_BYTES - done);
    const written = fillRandom(BigInt(buffer.addressOf(i)), length);
    done += written;
    if (written < length) break;
  }
  return done;
}
