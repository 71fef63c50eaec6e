/** The devices of the session that was recorded at a kernel's bridge (tests/message/bridge-kernel.txt), as its process had them. */

import { FakeDevice } from "./fake_device.ts";

/** One of them; it does nothing by itself. */
export class RecordedDevice extends FakeDevice {
  override readonly vendorId: number = 0x67736d76;

  constructor(
    override readonly deviceId: number,
    lowFeatures: number,
    readonly maxQueueSizes: readonly number[],
    config: readonly number[],
  ) {
    super({
      features: [lowFeatures, 3],
      queueCount: maxQueueSizes.length,
      configSize: config.length,
    });
    this.config.set(config);
  }
}

/** Their numbers. */
export const RNG = 3, NET = 5, BLOCK = 7;

/** The disk, which comes twice. */
export function recordedDisk(): RecordedDevice {
  return new RecordedDevice(2, 0xa46, [16], blockConfig());
}

/** All of them, by number. */
export function recordedDevices(): Map<number, RecordedDevice> {
  return new Map([
    [RNG, new RecordedDevice(4, 0, [8], [])],
    [NET, new RecordedDevice(1, 0x10020, [32, 64], [0x52, 0x54, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0])],
    [BLOCK, recordedDisk()],
  ]);
}

/** Capacity, largest segment, segments, block size, write-back. */
function blockConfig(): number[] {
  const view = new DataView(new ArrayBuffer(36));
  view.setUint32(0, 0x80, true);
  view.setUint32(8, 0x1000, true);
  view.setUint32(12, 4, true);
  view.setUint32(20, 512, true);
  view.setUint8(32, 1);
  return [...new Uint8Array(view.buffer)];
}
