/** Every fuzzer there is. */

import { BACK_END_FUZZERS } from "./back_ends.ts";
import { ARRIVAL_FUZZERS } from "./arrivals.ts";
import { CAPTURE_FUZZERS } from "./captures.ts";
import { COUNTER_FILE_FUZZERS } from "./counter_files.ts";
import { DISK_FUZZERS } from "./disks.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { FRAME_FUZZERS } from "./frames.ts";
import { FRONT_END_FUZZERS } from "./front_ends.ts";
import { HOSTILE_DEVICE_FUZZERS } from "./hostile_device.ts";
import { KERNEL_BRIDGE_FUZZERS } from "./kernel_bridge.ts";
import { LIVE_DEVICE_FUZZERS } from "./live_device.ts";
import { READER_FUZZERS } from "./readers.ts";
import { RING_FUZZERS } from "./rings.ts";
import { SLOT_FUZZERS } from "./slots.ts";
import { SOCKET_FUZZERS } from "./sockets.ts";

/** In the order in which they run. */
export const FUZZERS: readonly Fuzzer[] = [
  ...RING_FUZZERS,
  ...READER_FUZZERS,
  ...FRAME_FUZZERS,
  ...DISK_FUZZERS,
  ...COUNTER_FILE_FUZZERS,
  ...CAPTURE_FUZZERS,
  ...SOCKET_FUZZERS,
  ...BACK_END_FUZZERS,
  ...SLOT_FUZZERS,
  ...ARRIVAL_FUZZERS,
  ...KERNEL_BRIDGE_FUZZERS,
  ...HOSTILE_DEVICE_FUZZERS,
  ...FRONT_END_FUZZERS,
  ...LIVE_DEVICE_FUZZERS,
];
