/** Which devices a device side has: GET_DEVICES, window by window (rules B18, B31). */

import { Kind } from "../message/message.ts";
import type { Requests } from "./requests.ts";

/** Device numbers that one request asks for; an answer may have fewer. */
const WINDOW = 512;
const NUMBERS = 0x1_0000;

/**
 * Asks for the numbers of the devices.
 *
 * @param most numbers beyond these are not asked for
 * @returns undefined where the dialect has no request for it
 * @throws PeerLost
 */
export async function listDevices(side: Requests, most: number): Promise<number[] | undefined> {
  if (!side.link.codec.has(Kind.GET_DEVICES)) return undefined;
  const numbers: number[] = [];
  // It is not about a device, and one that does not answer it is not reset for that.
  const asker = {
    number: 0,
    session: 0,
    get mayAsk() {
      return side.isReady;
    },
    late: () => {},
  };
  for (let offset = 0; offset < NUMBERS && numbers.length < most;) {
    const asked = { offset, count: Math.min(WINDOW, NUMBERS - offset) };
    const next = await side.requests.request(asker, Kind.GET_DEVICES, asked, (answer) => {
      const count = answer.offset === offset ? Math.min(answer.count, asked.count) : 0;
      for (let i = 0; i < count && numbers.length < most; i++) {
        if ((answer.bytes[i >> 3]! >> (i & 7) & 1) !== 0) numbers.push(offset + i);
      }
      return answer.nextOffset;
    });
    // Who goes back would have us ask for ever.
    if (next <= offset) break;
    offset = next;
  }
  return numbers;
}
