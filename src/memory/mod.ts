/** Shared memory: windows, translation, lists of segments, memory order. */

export * from "./address_space.ts";
export * from "./atomics.ts";
export * from "./iovec_ring.ts";
export * from "./quota.ts";
export { IovecArray, IovecList } from "./iovec_list.ts";
export type { MemoryRegion } from "./region.ts";
export { type MappedMemory, MemoryWindow } from "./window.ts";
