/** The recorded session of proto-linux-user.txt, whose head says what it is. */

import type { Seen } from "../support/capture_of_messages.ts";

/** Its messages in order. */
export function recordedSession(): Seen[] {
  const text = Deno.readTextFileSync(new URL("./proto-linux-user.txt", import.meta.url));
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return lines.map((line) => {
    const [, us, direction, hex] = /^ *(\d+) (driver->device|device->driver) ([0-9a-f]{80})$/.exec(
      line,
    )!;
    return {
      dialect: "proto",
      us: Number(us),
      fromDriver: direction === "driver->device",
      bytes: Uint8Array.from(hex!.match(/../g)!, (byte) => parseInt(byte, 16)),
    };
  });
}
