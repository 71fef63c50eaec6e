/** Split virtqueues: the device's side, the driver's side, the layout both share. */

export * from "./chain.ts";
export * from "./chain_sequence.ts";
export * from "./device_queue.ts";
export * from "./driver_queue.ts";
export * from "./layout.ts";
