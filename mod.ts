/**
 * vmsg as a library: the parts its command line is made of.
 *
 * @module
 */

export * from "./src/bus/bus.ts";
export * from "./src/bus/ivshmem.ts";
export * from "./src/bus/linux_user.ts";
export * from "./src/bus/page_bus.ts";
export * from "./src/bus/shm.ts";
export * from "./src/bus/spsc_queue.ts";
export * from "./src/bus/stream_bus.ts";
export * from "./src/devices/net/net_device.ts";
export * from "./src/ivshmem/end.ts";
export * from "./src/ivshmem/server.ts";
export * from "./src/ivshmem/server_end.ts";
export * from "./src/linux/errors.ts";
export { type Region } from "./src/sharing/memory_table.ts";
export { Fd } from "./src/linux/fd.ts";
export { allocateHugePages, type HugePages } from "./src/linux/huge_pages.ts";
export * from "./src/linux/mapping.ts";
export { type PhysicalRun, physicalRuns } from "./src/linux/page_map.ts";
export * from "./src/linux/reactor.ts";
export { UnixStream } from "./src/linux/unix_socket.ts";
export * from "./src/memory/mod.ts";
export * from "./src/message/codec.ts";
export * from "./src/message/codecs.ts";
export * from "./src/message/detect.ts";
export * from "./src/virtio/features.ts";
export * from "./src/message/message.ts";
export * from "./src/message/table.ts";
export * from "./src/message/text.ts";
export * from "./src/network/port.ts";
export * from "./src/network/responder_port.ts";
export type { DhcpLease } from "./src/network/responder/dhcp_server.ts";
export type { ResponderCounters } from "./src/network/responder/host.ts";
export * from "./src/network/responder/responder.ts";
export * from "./src/observe/log.ts";
export * from "./src/observe/trace.ts";
export * from "./src/sharing/forwarding_queue.ts";
export * from "./src/sharing/shadow_device.ts";
export * from "./src/sharing/segment.ts";
export * from "./src/sharing/copied_queue.ts";
export * from "./src/sharing/driver_memory.ts";
export * from "./src/drivers/net/net_driver.ts";
export * from "./src/drivers/net/pinger.ts";
export * from "./src/sharing/physical_map.ts";
export * from "./src/sharing/ring_pages.ts";
export * from "./src/sharing/translated_queue.ts";
export * from "./src/sharing/memory_table.ts";
export * from "./src/drivers/vhost_user/server.ts";
export * from "./src/virtio/device.ts";
export * from "./src/transport/device_side.ts";
export * from "./src/transport/driver_side.ts";
export * from "./src/version.ts";
export * from "./src/virtio/split/mod.ts";
