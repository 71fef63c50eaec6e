/**
 * vmsg as a library: what it takes to write a virtio device and serve it over a bus, or to drive one.
 *
 * A device says what it is and what it does with a batch of buffers ({@link QueueDevice}); a
 * {@link DeviceSide} serves it at one end of a bus to whoever is at the other: `vmsg proxy` with a
 * guest behind it, a kernel's own virtio-msg driver, or a {@link DriverSide}. Everything runs in one
 * {@link Reactor} and blocks its thread: a program that does other things as well runs it in a Worker.
 *
 * This is a whole device (docs/examples/own_device.ts). With
 *
 *     vmsg proxy --bus linux-user,socket=own.sock --vhost-user socket=vu.sock,device=0
 *
 * a User-Mode Linux gets it by `virtio_uml.device=vu.sock:3`, and what is written to its /dev/hvc0 is
 * printed here.
 *
 * @example Your own virtio device
 * ```ts
 * import {
 *   allocate,
 *   Chain,
 *   codecFor,
 *   createLog,
 *   type DeviceQueue,
 *   DeviceSide,
 *   openLinuxUserBus,
 *   QueueDevice,
 *   Reactor,
 *   take,
 * } from "./mod.ts";
 *
 * const chain = new Chain();
 * const text = allocate(4096);
 *
 * function print(queue: DeviceQueue, budget: number): boolean {
 *   for (let i = 0; i < budget; i++) {
 *     if (!take(queue, chain)) return false; // no buffer left: sleep until the driver kicks
 *     for (let at = 0; at < chain.readable.length;) {
 *       const length = chain.readable.copyOut(at, text.address, text.bytes.length);
 *       at += Deno.stdout.writeSync(text.bytes.subarray(0, length));
 *     }
 *     queue.complete(chain.head, 0);
 *   }
 *   return true; // there may be more, after others had their turn
 * }
 *
 * async function serve(socket: string): Promise<void> {
 *   const log = createLog("own device", "info", console.error);
 *   using reactor = new Reactor();
 *   using bus = openLinuxUserBus("device", reactor, { socket }, log);
 *   using side = new DeviceSide({ reactor, bus, codec: codecFor("v1"), log });
 *   side.add(0, new QueueDevice(reactor, { deviceId: 3, queues: [() => false, print] }));
 *   side.open();
 *   await reactor.run();
 * }
 *
 * if (import.meta.main) await serve(Deno.args[0]);
 * ```
 *
 * @module
 */

// The loop a device lives in, memory for system calls, lines for people.
export { allocate, type Block } from "./src/linux/arena.ts";
export { VmsgError } from "./src/linux/errors.ts";
export { Reactor, type Task, type Timer } from "./src/linux/reactor.ts";
export { createLog, type Log, type LogLevel } from "./src/observe/log.ts";

// Buses, and what is spoken on them.
export type { Bus, Side } from "./src/bus/bus.ts";
export {
  type IvshmemPlace,
  type LinuxUserPlace,
  openIvshmemBus,
  openLinuxUserBus,
} from "./src/bus/open.ts";
export { codecFor } from "./src/message/codecs.ts";
export { createTracer, type Tracer } from "./src/observe/trace.ts";

// Writing a device.
export {
  type Batch,
  type BatchCounters,
  QueueDevice,
  type QueueDeviceOptions,
  take,
} from "./src/devices/queue_device.ts";
export { Chain, ChainBatch, DeviceQueue, Pop } from "./src/virtio/queue/mod.ts";
export { hasFeature, NetFeature, RingFeature, Status } from "./src/virtio/features.ts";
export type {
  DeviceHost,
  DeviceModel,
  QueueNotifier,
  QueueSetup,
  Terms,
} from "./src/virtio/device.ts";
export type { PairLine } from "./src/devices/net/pair_line.ts";

// Devices there are.
export {
  type NetCounters,
  NetDevice,
  type NetDeviceOptions,
} from "./src/devices/net/net_device.ts";
export { rngDevice } from "./src/devices/rng.ts";
export type { NetworkPort, PortListener, PortQueue } from "./src/network/port.ts";
export { TapPort } from "./src/network/tap.ts";

// Serving devices.
export { DeviceSide, type DeviceSideOptions } from "./src/transport/device_side.ts";

// Driving a device.
export { DriverQueue, type DriverQueueOptions } from "./src/virtio/queue/mod.ts";
export {
  DriverSide,
  type DriverSideOptions,
  type PeerListener,
} from "./src/transport/driver_side.ts";
export { RemoteDevice } from "./src/transport/remote_device.ts";
export { tellRegion } from "./src/sharing/descriptors.ts";
export { ownMemory } from "./src/sharing/driver_memory.ts";

// What the above mention.
export type { BusListener, KernelBus, LentVector, SharedSegment } from "./src/bus/bus.ts";
export type { Clock } from "./src/linux/clock.ts";
export type { Fd } from "./src/linux/fd.ts";
export type { OpenFile } from "./src/linux/mapping.ts";
export type { Deferred, ReadyHandler } from "./src/linux/reactor.ts";
export type {
  AddressSpace,
  IovecArray,
  IovecList,
  MappedMemory,
  MemoryLimits,
  MemoryQuota,
  MemoryRegion,
  MemoryWindow,
  WindowRefusal,
} from "./src/memory/mod.ts";
export type { Codec, Conduct, Dialect, Limits, Malformed } from "./src/message/codec.ts";
export type { Field, FIELDS, Fields, Kind, Message } from "./src/message/message.ts";
export type { Counters } from "./src/observe/counters.ts";
export type { Direction, LineTracer, TraceFormat, TraceOptions } from "./src/observe/trace.ts";
export type { DriverMemory } from "./src/sharing/driver_memory.ts";
export type { SharedRegion } from "./src/sharing/sharing.ts";
export type { Link } from "./src/transport/link.ts";
export type {
  Notification,
  NotificationOptions,
  Notifications,
} from "./src/transport/notifications.ts";
export type { RemotePresence } from "./src/transport/remote_presence.ts";
export type { RemotePrivate, RingEvents } from "./src/transport/remote_private.ts";
export type { DeviceInfo, QueueInfo } from "./src/transport/remote_device.ts";
export type {
  Asker,
  OpenRequests,
  PeerKind,
  PeerLost,
  Requests,
} from "./src/transport/requests.ts";
export type { DropCause, LinkOptions } from "./src/transport/link.ts";
export type { Answer } from "./src/virtio/device.ts";
export type { Place } from "./src/virtio/place.ts";
export type { QueueConfig } from "./src/virtio/queue/mod.ts";
