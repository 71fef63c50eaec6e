/** The recorded session of the prototype QEMU (tests/message/proto-linux-user.txt), as bytes. */

import { assertEquals } from "@std/assert";

/** Bytes of a message of dialect `proto`. */
export const MESSAGE_SIZE = 40;

/** One message of the recording, or a request with its answer. */
export interface Recorded {
  readonly from: "driver" | "device";
  readonly bytes: Uint8Array;
}

/** The ids that are answered, see docs/wire.md 2.2: by the device. */
export const ANSWERED: readonly number[] = [0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0b];

/** The message's id. */
export function idOf(bytes: Uint8Array): number {
  return bytes[1]!;
}

/** Is it an answer? */
export function isAnswer(bytes: Uint8Array): boolean {
  return (bytes[0]! & 1) !== 0;
}

/** The view of a message's payload. */
export function payload(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset + 4, MESSAGE_SIZE - 4);
}

/** Bytes as hexadecimal digits, so that a difference can be read. */
export function hex(bytes: Uint8Array): string {
  return bytes.toHex();
}

/** All messages, in the order of the recording. */
export function readRecording(): Recorded[] {
  const url = new URL("../message/proto-linux-user.txt", import.meta.url);
  const lines = Deno.readTextFileSync(url).split("\n");
  const session = lines.filter((line) => line !== "" && !line.startsWith("#")).map((line) => {
    const [, from, , digits] = /^ *\d+ (driver|device)->(driver|device) ([0-9a-f]{80})$/.exec(
      line,
    )!;
    return { from: from as "driver" | "device", bytes: Uint8Array.fromHex(digits!) };
  });
  assertEquals(session.length, 174);
  return session;
}

/** A request or an event of the driver, with the device's answer if there is one. */
export interface Exchange {
  readonly request: Uint8Array;
  readonly answer: Uint8Array | undefined;
}

/** What the driver sent, each with its answer; the device's events are left out. */
export function exchanges(session: readonly Recorded[]): Exchange[] {
  const answers = session.filter(({ from, bytes }) => from === "device" && isAnswer(bytes));
  return session.filter(({ from }) => from === "driver").map(({ bytes }) => {
    const answer = ANSWERED.includes(idOf(bytes)) ? answers.shift()!.bytes : undefined;
    if (answer !== undefined) assertEquals(idOf(answer), idOf(bytes));
    return { request: bytes, answer };
  });
}

/** The bytes of a message that carry the sender's own choice, by id. */
const CHOICES: Readonly<Record<number, readonly (readonly [number, number])[]>> = {
  0x05: [[8, 16]],
  0x06: [[4, 6], [7, 8]],
  0x0c: [[4, 6], [8, 10], [12, 18], [20, 26], [28, 34]],
};

/** A message without them: two drivers that do the same say the same then. */
export function withoutChoices(bytes: Uint8Array): string {
  const copy = bytes.slice();
  for (const [from, to] of CHOICES[idOf(bytes)] ?? []) copy.fill(0, from, to);
  return hex(copy);
}
