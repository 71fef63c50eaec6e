/**
 * The recorded session of the kernel's user-space bridge (bridge-kernel.txt): a Linux with three devices in
 * `v1`, messages of up to 128 bytes.
 */

/** Bytes of the largest message of that session. */
export const BRIDGE_SLOT = 128;

/** One frame, as it was seen. */
export interface Frame {
  /** Who sent it: the kernel has the driver, the process the devices. */
  readonly from: "kernel" | "process";
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of the file, for messages. */
  readonly line: string;
}

/** The frames, in order. */
export function readFrames(): Frame[] {
  const text = Deno.readTextFileSync(new URL("bridge-kernel.txt", import.meta.url));
  return text.split("\n").filter((line) => /^[KD]>/.test(line)).map((line) => ({
    from: line.startsWith("K") ? "kernel" as const : "process" as const,
    bytes: Uint8Array.fromHex(line.slice(4, line.indexOf(" ;"))),
    line,
  }));
}
