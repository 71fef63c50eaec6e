/**
 * A file of a machine, brought out over its console: packed, as text, in lines that begin with a mark, so that whatever else is
 * said there meanwhile does no harm. For machines whose network may be what does not work.
 */

import { VmsgError } from "../../src/linux/errors.ts";

const MARK = "FILE| ";
const END = "FILE-END";

/** Shell: says a file on the console. */
export function sayFile(path: string): string {
  return `gzip -c ${path} | base64 | sed 's/^/${MARK}/'\necho ${END}\n`;
}

/** Collects the lines of {@link sayFile}. */
export class ConsoleFile {
  /** Resolves when the last line was there. */
  readonly whole: Promise<void>;
  readonly #lines: string[] = [];
  #end!: () => void;

  constructor() {
    this.whole = new Promise((resolve) => this.#end = resolve);
  }

  /** Takes a line of the console; was it one of the file's? */
  take(line: string): boolean {
    const text = line.trimEnd();
    if (text === END) this.#end();
    else if (text.startsWith(MARK)) this.#lines.push(text.slice(MARK.length));
    else return false;
    return true;
  }

  /** Unpacked; a checksum is in it. @throws VmsgError if the console lost something */
  async bytes(): Promise<Uint8Array> {
    try {
      const packed = Uint8Array.fromBase64(this.#lines.join(""));
      const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      return await new Response(unpacked).bytes();
    } catch (error) {
      throw new VmsgError("CONSOLE_FILE", `the machine's file came damaged: ${error}`);
    }
  }
}
