/**
 * What two vmsg processes say to each other: private bus messages, in dialect `v1` only. Two that
 * are told to speak `v1-2025` are foreign to each other.
 *
 * virtio-msg leaves out what a bridge needs: whether the peer was restarted, which memory a bus
 * address means, how to stop one queue and go on with it later. These messages fill the gaps. Their
 * ids are in the range that revision 1 leaves to implementations (bit 7 set, rule G17); a foreign
 * peer drops them, and nothing but HELLO is sent before it has been answered.
 *
 * HELLO            driver side, on attach and every 100 ms: who I am (`epoch`), whom I believe you to
 *                  be (`peerEpoch`, 0 at first), the last `nonce` you gave me. The answer names the
 *                  answerer's own epoch, echoes the requester's and brings a fresh nonce. A new epoch
 *                  makes the device side stop all queues, drop memory and pending events and set
 *                  status 0 before it answers. The nonce is a lease: the device side touches the
 *                  driver side's memory until 250 ms after it issued the one that came back.
 *                  Bit 0 of `capabilities`, if both have it: the driver side keeps a grant in its queue, which the
 *                  device side looks at as well. Bit 1, if both have it: SET_DOORBELLS may follow. Bit 2: SET_NOTIFIER.
 * ADD_MEMORY       `length` bytes of the `ordinal`th descriptor of this connection, from `offset`, are
 *                  at bus address `address` for device number `memoryDevice`. Where no descriptor can
 *                  come, a flag says what is meant instead: MEMORY_SEGMENT the shared memory that holds
 *                  the queues, from its byte `offset`, and none of the queues' own; MEMORY_WINDOW what
 *                  the device side was given by `--memory`, where `offset` is an address as `at=` there
 *                  counts (the physical address in the driver side's machine); with all three 0, all of
 *                  that at its own addresses. Answered when it is mapped.
 * REMOVE_MEMORY    takes that away again; refused (EBUSY) under a running queue.
 * STOP_VQUEUE      publishes used entries, takes back unfinished chains, flushes the queue's
 *                  EVENT_USED, then answers where the queue goes on: `base` (virtio/device.ts); `wrap` is
 *                  0. The queue is unconfigured then.
 * SET_VQUEUE_STATE says where it goes on, behind FEATURES_OK and before SET_VQUEUE, which consumes it;
 *                  stop, reset and status 0 clear it. QUEUE_GOES_ON: the driver's queue has been in use, whatever `base`
 *                  is: that of a copy of it is 0.
 * SET_DOORBELLS    the `ordinal`th descriptor of this connection and the next are eventfds: the device side listens to
 *                  the first and rings the second from its answer on, the driver side rings the first from then on.
 * SET_NOTIFIER     notifications of a queue that is set up, out of band. NOTIFIER_KICK: the `ordinal`th descriptor of
 *                  this connection is what the driver kicks, and the device side watches it. NOTIFIER_CALL: the next one
 *                  is what calls the driver, and the device side signals it; without, the driver wants no call. With
 *                  flags 0, or an answer other than 0, notifications are in band: EVENT_AVAIL, EVENT_USED.
 *                  NOTIFIER_VECTOR, and nothing else, where the bus rings interrupts of the peer's instead of carrying
 *                  descriptors: the device side rings vector `ordinal`, which calls the driver; kicks are in band. It holds
 *                  until the next one, or until the queue is stopped or reset.
 *
 * Every request names the sender's epoch, so that one from before a restart is dropped. `result` is 0
 * or an errno. An epoch is drawn below 2^53, so that a Number holds it and an echo is exact.
 */

import type { Kind } from "./message.ts";
import { type Definition, type Layout, layout, request } from "./layout.ts";

const HELLO: Layout = layout(
  28,
  "0 u64 epoch, 8 u64 peerEpoch, 16 u32 nonce, 20 u32 version",
  "24 u32 capabilities",
);
const RESULT: Layout = layout(12, "0 u64 epoch, 8 u32 result");

function privateRequest(
  name: keyof typeof Kind,
  id: number,
  payload: Layout,
  response: Layout,
): Definition {
  return request(name, { v1: { id, request: payload, response } }, { bus: true });
}

export const PRIVATE_MESSAGES: readonly Definition[] = [
  privateRequest("HELLO", 0x90, HELLO, HELLO),
  privateRequest(
    "ADD_MEMORY",
    0x91,
    layout(
      40,
      "0 u64 epoch, 8 u32 ordinal, 12 u16 memoryDevice, 14 u16 flags, 16 u64 address",
      "24 u64 length, 32 u64 offset",
    ),
    RESULT,
  ),
  privateRequest(
    "REMOVE_MEMORY",
    0x92,
    layout(
      32,
      "0 u64 epoch, 8 u32 reserved, 12 u16 memoryDevice, 14 u16 flags, 16 u64 address",
      "24 u64 length",
    ),
    RESULT,
  ),
  privateRequest(
    "STOP_VQUEUE",
    0x93,
    layout(16, "0 u64 epoch, 8 u16 memoryDevice, 10 u16 reserved, 12 u32 index"),
    layout(20, "0 u64 epoch, 8 u32 result, 12 u32 index, 16 u16 base, 18 u16 wrap"),
  ),
  privateRequest(
    "SET_VQUEUE_STATE",
    0x94,
    layout(
      20,
      "0 u64 epoch, 8 u16 memoryDevice, 10 u16 flags, 12 u32 index, 16 u16 base",
      "18 u16 wrap",
    ),
    RESULT,
  ),
  privateRequest("SET_DOORBELLS", 0x95, layout(12, "0 u64 epoch, 8 u32 ordinal"), RESULT),
  privateRequest(
    "SET_NOTIFIER",
    0x96,
    layout(20, "0 u64 epoch, 8 u32 ordinal, 12 u16 memoryDevice, 14 u16 flags, 16 u32 index"),
    RESULT,
  ),
];

const FIRST: number = PRIVATE_MESSAGES[0]!.kind;

/** Whether only two vmsg processes say this to each other. */
export function isPrivate(kind: Kind): boolean {
  return kind >= FIRST;
}
