/** Split virtqueues: the device's side, the driver's side, the layout both share. */

export * from "./chain.ts";
export * from "./chain_sequence.ts";
export * from "./device_queue.ts";
export * from "./driver_queue.ts";
export * from "./layout.ts";
export * from "./open_buffers.ts";
export * from "./ring_views.ts";
