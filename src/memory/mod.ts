/** Shared memory: windows, translation, segments, memory order. */

export * from "./address_space.ts";
export * from "./atomics.ts";
export * from "./segment_ring.ts";
export { SegmentList } from "./segments.ts";
