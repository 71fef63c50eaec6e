/** What a front end is told that it may use, which depends on the kind of device. */

import type { DeviceInfo } from "../../transport/remote_device.ts";
import { ProtocolFeature } from "../../vhost_user/protocol.ts";
import { DEVICE_NET } from "../../virtio/features.ts";

const OFFERED = [
  ProtocolFeature.MQ,
  ProtocolFeature.REPLY_ACK,
  ProtocolFeature.BACKEND_REQ,
  ProtocolFeature.CONFIG,
  ProtocolFeature.CONFIGURE_MEM_SLOTS,
  ProtocolFeature.STATUS,
];

/**
 * What GET_QUEUE_NUM is answered for a device. The protocol counts queues; QEMU and DPDK count pairs of them for a
 * network card, and do not count its control queue.
 */
export function queueNumber({ deviceId, maxQueues }: DeviceInfo): number {
  return Math.max(1, deviceId === DEVICE_NET ? maxQueues >> 1 : maxQueues);
}

/**
 * What GET_PROTOCOL_FEATURES is answered for a device. QEMU reports DRIVER_OK for network cards alone (its
 * vhost_user_dev_start knows of no other device which queues are the last), so with others the rings must tell. And
 * it warns of a configuration space that it has no use for.
 */
export function offeredProtocolFeatures({ deviceId, configSize }: DeviceInfo): number {
  let bits = 0;
  for (const bit of OFFERED) bits |= 1 << bit;
  if (deviceId !== DEVICE_NET) bits &= ~(1 << ProtocolFeature.STATUS);
  if (configSize === 0) bits &= ~(1 << ProtocolFeature.CONFIG);
  return bits;
}
