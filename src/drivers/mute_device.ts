/** Who wants an end does not wait for ever for a device side that is there: it is never understood, or lacks the device. */

import { VmsgError } from "../linux/errors.ts";
import type { DriverSide } from "../transport/driver_side.ts";

const LIMIT_MS = 15_000;
const LOOK_MS = 1000;

/**
 * Gives it up after a while. One that is missing is waited for.
 *
 * @param number the device's
 * @param isKnown tells that the device has been there
 * @throws VmsgError MUTE_DEVICE, NO_DEVICE
 */
export async function giveUpMute(
  side: DriverSide,
  number: number,
  isKnown: () => boolean,
): Promise<void> {
  const { bus, codec: { dialect } } = side.options;
  for (let muteMs = 0; !isKnown(); muteMs += LOOK_MS) {
    const isThere = bus.isAttached && (bus.noticesPeers || side.counters.received > 0);
    if (!isThere) muteMs = 0;
    else if (muteMs >= LIMIT_MS) {
      if (side.device(number).isAbsent) {
        const what = `the device side has had no device ${number} for ${LIMIT_MS / 1000} s`;
        throw new VmsgError("NO_DEVICE", `${bus.description}: ${what}`);
      }
      throw new VmsgError(
        "MUTE_DEVICE",
        `${bus.description}: the device side is there, but for ${
          LIMIT_MS / 1000
        } s gave no answer ` +
          `that is ${dialect}: give both sides the same dialect=, if it does not hang`,
      );
    }
    await side.reactor.sleep(LOOK_MS);
  }
}
