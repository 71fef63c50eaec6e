/** Test vectors: vectors.txt has every message of every dialect. */

/** One vector. */
export interface Vector {
  readonly dialect: string;
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** Parses `# dialect/name | direction | n bytes | meaning` and lines of `offset: bytes` in hex. */
export function parseVectors(text: string): Vector[] {
  const vectors: Vector[] = [];
  let name = "";
  let expected = 0;
  let bytes: number[] = [];
  function finish(): void {
    if (name === "") return;
    if (bytes.length !== expected) throw new Error(`${name}: ${bytes.length} of ${expected} bytes`);
    const slash = name.indexOf("/");
    vectors.push({
      dialect: name.slice(0, slash),
      name: name.slice(slash + 1),
      bytes: Uint8Array.from(bytes),
    });
  }
  for (const line of text.split("\n")) {
    if (line === "") continue;
    const head = /^# (\S+\/\S+) \| [^|]+ \| (\d+) bytes \|/.exec(line);
    if (head) {
      finish();
      name = head[1]!;
      expected = Number(head[2]);
      bytes = [];
      continue;
    }
    const row = /^([0-9a-f]{4}): ((?:[0-9a-f]{2} ?)+)$/.exec(line);
    if (!row || parseInt(row[1]!, 16) !== bytes.length) throw new Error(`bad line: ${line}`);
    bytes.push(...row[2]!.trim().split(" ").map((byte) => parseInt(byte, 16)));
  }
  finish();
  return vectors;
}

/** All vectors of vectors.txt. */
export function readVectors(): Vector[] {
  return parseVectors(Deno.readTextFileSync(new URL("./vectors.txt", import.meta.url)));
}

/** A 64-byte slot that starts with these bytes; what is behind them is `fill`. */
export function slotOf(bytes: Uint8Array, fill = 0): DataView {
  const slot = new Uint8Array(64).fill(fill);
  slot.set(bytes);
  return new DataView(slot.buffer);
}

/** The first bytes of a slot. */
export function bytesOf(slot: DataView, size: number): Uint8Array {
  return new Uint8Array(slot.buffer, slot.byteOffset, size);
}
