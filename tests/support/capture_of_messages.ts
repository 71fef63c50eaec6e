/** Captures of messages that a test has, at times that it chooses: bytes of a file as vmsg would have written it. */

import { DIALECTS, Flag, HEAD_SIZE, MARK } from "../../src/observe/capture.ts";
import {
  interfaceDescription,
  LINKTYPE_USER0,
  PACKET_HEAD,
  packetSize,
  sectionHeader,
  writePacket,
} from "../../src/observe/pcapng.ts";
import type { Dialect } from "../../src/message/message.ts";

/** A message, as it was seen by the device side. */
export interface Seen {
  readonly dialect: Dialect;
  readonly fromDriver: boolean;
  readonly bytes: Uint8Array;
  /** Microseconds since the first. */
  readonly us: number;
}

/** Some day in 2026, in seconds. */
const START = 1_780_000_000;
const ANY_VERSION = 1;

function packet({ dialect, fromDriver, bytes, us }: Seen): Uint8Array {
  const size = HEAD_SIZE + bytes.length;
  const block = new Uint8Array(packetSize(size));
  const view = new DataView(block.buffer);
  const time = BigInt(START) * 1_000_000_000n + BigInt(us) * 1000n;
  const stamp = { high: Number(time >> 32n), low: Number(time & 0xffff_ffffn) };
  writePacket(view, 0, fromDriver ? 0 : 1, stamp, size, size);
  view.setUint32(PACKET_HEAD, MARK, true);
  block.set(
    [ANY_VERSION, DIALECTS.indexOf(dialect), fromDriver ? 0 : 1, fromDriver ? 0 : Flag.SENT],
    PACKET_HEAD + 4,
  );
  block.set(bytes, PACKET_HEAD + HEAD_SIZE);
  return block;
}

/** Writes a capture of one bus. */
export function writeCapture(path: string, messages: readonly Seen[]): void {
  const about = (name: string) =>
    interfaceDescription({ linkType: LINKTYPE_USER0, name, description: "a test" }, 0);
  const blocks = [
    sectionHeader("test"),
    about("bus0 driver to device"),
    about("bus0 device to driver"),
    ...messages.map(packet),
  ];
  using file = Deno.openSync(path, { write: true, create: true, truncate: true });
  for (const block of blocks) file.writeSync(block);
}
