/**
 * A file of a machine, brought out over its console: packed, as text, in lines that begin with a mark, so that whatever else is
 * said there meanwhile does no harm. For machines whose network may be what does not work.
 */

import { VmsgError } from "../../src/linux/errors.ts";

const MARK = "FILE| ";
const END = "FILE-END";
/** A busy machine emulates slowly. */
const PATIENCE_MS = 180_000;

/** Shell: says a file on the console, each line by one write, so that no other one comes in between. */
export function sayFile(path: string): string {
  const lines = `while read -r line; do echo "${MARK}$line"; done`;
  return `gzip -c ${path} | base64 | ${lines}\necho ${END}\n`;
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

  /** Writes it to a file of ours when it is whole; if `over` comes first, or nothing for a while, that is said. */
  async save(path: string, over: Promise<unknown>): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise((resolve) => timer = setTimeout(resolve, PATIENCE_MS, "late"));
    const isWhole = await Promise.race([this.whole.then(() => true), over, late]) === true;
    clearTimeout(timer);
    if (isWhole) await Deno.writeFile(path, await this.bytes(), { mode: 0o600 });
    console.log(isWhole ? `captured: ${path}; see vmsg trace --help` : "no capture came");
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
