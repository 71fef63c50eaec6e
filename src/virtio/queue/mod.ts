/**
 * Virtqueues, the device's side and the driver's, in both formats: ../split/ and ../packed/. The loop of a device that reads
 * buffers:
 *
 * @example
 * ```ts
 * import { AddressSpace } from "../../memory/mod.ts";
 * import { ChainBatch, openDeviceQueue } from "./mod.ts";
 *
 * // 64 KiB of the driver's memory, and a queue of 256 entries at its beginning
 * const memory = { address: 0n, buffer: new ArrayBuffer(65536), size: 65536 };
 * const space = new AddressSpace();
 * space.add(0x4000_0000, memory.size, memory);
 * const queue = openDeviceQueue(space, {
 *   size: 256,
 *   descriptorAddress: 0x4000_0000,
 *   driverAddress: 0x4000_1000,
 *   deviceAddress: 0x4000_2000,
 *   base: 0,
 *   eventIndex: true,
 *   indirect: false,
 * });
 * if (typeof queue === "string") throw new Error(queue);
 *
 * const batch = new ChainBatch(64, 1024);
 * let bytes = 0;
 * do {
 *   queue.noKicks();
 *   const count = queue.pop(batch, 64);
 *   for (let i = 0; i < count; i++) {
 *     batch.select(i);
 *     bytes += batch.readable.length; // here: writev(fd, batch.readable.address, batch.readable.count)
 *   }
 *   queue.completeOldest(count);
 *   batch.clear();
 *   if (queue.publish()) console.log("send a used buffer notification");
 *   // Kicks are wanted again; look once more, for a buffer may have come before the driver saw that.
 * } while (queue.wantKicks());
 * if (queue.broken !== undefined) console.log(`set DEVICE_NEEDS_RESET: ${queue.broken}`);
 * ```
 */

export * from "./chain.ts";
export * from "./chain_sequence.ts";
export * from "./config.ts";
export * from "./device_queue.ts";
export * from "./driver_ring.ts";
export * from "../split/driver_queue.ts";
export * from "./open.ts";
export * from "./pop.ts";
