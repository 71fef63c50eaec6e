/** Files read piece by piece: also two of them in turns. */

import { assertEquals, assertThrows } from "@std/assert";
import { FileReader } from "../../src/linux/file_reader.ts";
import { withDirectory } from "../support/leaks.ts";

/** More than is read at a time. */
const SIZE = 200_000;

const makeBytes = (factor: number) => Uint8Array.from({ length: SIZE }, (_, i) => i * factor >> 3);

Deno.test("FileReader: pieces of any size, anywhere, of two files in turns", () =>
  withDirectory((directory) => {
    const files = [7, 11].map((factor) => {
      const path = `${directory}/${factor}`;
      const bytes = makeBytes(factor);
      Deno.writeFileSync(path, bytes);
      return { bytes, path };
    });
    using one = new FileReader(files[0]!.path);
    using other = new FileReader(files[1]!.path);
    for (let at = 0; at < SIZE; at += 12_345) {
      for (const size of [0, 12, 65_536, 150_000]) {
        assertEquals(one.read(at, size), files[0]!.bytes.slice(at, at + size));
        assertEquals(other.read(at, size), files[1]!.bytes.slice(at, at + size));
      }
    }
    assertEquals(one.read(12, 12), files[0]!.bytes.slice(12, 24));
    assertEquals(one.read(SIZE + 5, 12).length, 0);
    assertThrows(() => new FileReader(directory), Error, "is a directory and no file");
    return Promise.resolve();
  }));
