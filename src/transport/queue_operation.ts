/**
 * A queue as the transport knows it, and what SET_VQUEUE makes of it in `v1` (docs/wire.md 3.2, rules V45 to V50): it stores fields, all or but
 * some, and may enable what is stored then. Nothing comes of what cannot be, and nothing of an enabled queue.
 */

import { Kind, type Message, QUEUE_ENABLED, QueueFlag } from "../message/message.ts";
import type { QueueNotifier, QueueSetup } from "../virtio/device.ts";
import { isAligned, isQueueSize } from "../virtio/queue/config.ts";
import { type Notification, QueueNotification } from "./notifications.ts";

/** A queue as the transport knows it. */
export interface QueueRecord {
  /** Where SET_VQUEUE has put it; {@link UNSET} at first and after a reset. */
  stored: QueueSetup;
  /** The device works on it. */
  isEnabled: boolean;
  /** The device has it, or is about to, and will have to be told to stop. */
  isHeld: boolean;
  /** SET_VQUEUE_STATE's index, for the next SET_VQUEUE. */
  base: number;
  /** Its QUEUE_GOES_ON, likewise. */
  goesOn: boolean;
  /** EVENT_USED. */
  readonly used: Notification;
  /** What takes its place, and EVENT_AVAIL's; only while {@link isEnabled}. */
  notifier: QueueNotifier | undefined;
}

/** Of a queue that was never set up. */
export const UNSET: QueueSetup = {
  size: 0,
  descriptorAddress: 0,
  driverAddress: 0,
  deviceAddress: 0,
  base: 0,
};

/** A queue that was never set up. */
export function newQueue(device: number, index: number): QueueRecord {
  const used = new QueueNotification(Kind.EVENT_USED, device, index);
  const state = { isEnabled: false, isHeld: false, base: 0, goesOn: false };
  return { stored: UNSET, ...state, used, notifier: undefined };
}

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
