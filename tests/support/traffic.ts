/** Messages of a bus, as many as a test needs, however slow the machine is: a device that is slow says less, and more at a time. */

import { assertEquals, assertMatch } from "@std/assert";
import { readCounters } from "../../src/observe/read_counters.ts";
import type { Processes, VmsgProcess } from "./processes.ts";

/** What has a process count in the test's own directory; in front of its command. */
export const countsHere = ({ directory }: Processes): string => `XDG_RUNTIME_DIR=${directory}`;

/** Messages that a device side has sent and received so far, which was started so. */
export function messagesOf({ directory }: Processes, { pid }: VmsgProcess): number {
  const { groups } = readCounters(`${directory}/vmsg/device.${pid}`);
  const { counters } = groups.find(({ kind }) => kind === "bus")!;
  return counters.filter(({ name }) => name === "sent" || name === "received")
    .reduce((sum, { value }) => sum + value, 0);
}

/**
 * Pings it until there were so many messages more, and few beyond; no ping may be lost.
 *
 * @param each how many pings of one driver
 */
export async function pingFor(
  vmsg: Processes,
  device: VmsgProcess,
  bus: string,
  messages: number,
  each = 2000,
): Promise<void> {
  const pings = (count: number) => ["--count", `${count}`, "--interval", "0.0005"];
  await vmsg.run("driver", "--bus", bus, ...pings(1));
  const wanted = messagesOf(vmsg, device) + messages;
  while (messagesOf(vmsg, device) < wanted) {
    const { code, stdout } = await vmsg.run("driver", "--bus", bus, ...pings(each));
    assertEquals(code, 0);
    const all = new RegExp(`^${each} packets transmitted, ${each} received, 0% packet loss$`, "m");
    assertMatch(stdout.join("\n"), all);
  }
}
