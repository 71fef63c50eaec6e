/**
 * What SET_VQUEUE makes of a queue in `v1` (docs/wire.md 3.2, rules V45 to V50): it stores fields, all or but
 * some, and may enable what is stored then. Nothing comes of what cannot be, and nothing of an enabled queue.
 */

import { type Message, QUEUE_ENABLED, QueueFlag } from "../message/message.ts";
import type { QueueSetup } from "../virtio/device.ts";
import { isAligned, isQueueSize } from "../virtio/queue/config.ts";
import type { QueueRecord } from "./device_slot.ts";

/** The queue that SET_VQUEUE describes. */
export function described(request: Message): QueueSetup {
  const { queueSize, descriptorAddress, driverAddress, deviceAddress } = request;
  return { size: queueSize, descriptorAddress, driverAddress, deviceAddress, base: 0 };
}

/** Where the queue lies after it; undefined where nothing happens. */
export function operate(
  request: Message,
  { stored, isEnabled }: Pick<QueueRecord, "stored" | "isEnabled">,
): QueueSetup | undefined {
  const { flags, mustBeZero } = request;
  const state = flags & QueueFlag.STATE;
  const isReserved = state === QueueFlag.RESERVED_STATE || flags > QueueFlag.ALL;
  if (isEnabled || isReserved || mustBeZero !== 0) return undefined;
  const said = described(request);
  const from = (keeps: number) => (flags & keeps) !== 0 ? stored : said;
  const { size } = from(QueueFlag.KEEP_SIZE);
  const setup: QueueSetup = {
    size,
    descriptorAddress: from(QueueFlag.KEEP_DESCRIPTOR).descriptorAddress,
    driverAddress: from(QueueFlag.KEEP_DRIVER).driverAddress,
    deviceAddress: from(QueueFlag.KEEP_DEVICE).deviceAddress,
    base: 0,
  };
  // None may be stored yet, but only a queue with one runs.
  const mayBeUnset = (flags & QueueFlag.KEEP_SIZE) !== 0 && state !== QUEUE_ENABLED;
  const canBe = (isQueueSize(size) || (size === 0 && mayBeUnset)) && isAligned(setup);
  return canBe ? setup : undefined;
}
