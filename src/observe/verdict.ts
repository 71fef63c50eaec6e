/** What links are judged by, and what is said of them: by bring_up.ts, bridge_stand.ts and live_link.ts. */

/** A line of a trace as JSON, as far as it matters here. */
export type Line =
  & {
    readonly [
      name in "bus" | "direction" | "message" | "sort" | "words" | "malformed" | "note" | "capture"
    ]?: string;
  }
  & {
    readonly [name in "time" | "number" | "device" | "latency" | "request" | "unanswered"]?: number;
  }
  & { readonly fields?: Readonly<Record<string, number | string | readonly number[]>> };

/** A step that was not taken. */
export interface MissingStep {
  readonly step: string;
  readonly owes: "device side" | "driver side" | "either side";
  /** What is usually the reason, and what to do. */
  readonly likely: string;
}

/** What is to be said of a device, or of a bus as a whole. */
export interface Verdict {
  readonly subject: string;
  /** What was seen of it. */
  readonly seen: string;
  /** The first step that did not happen; undefined: nothing is stuck. */
  readonly stuck: MissingStep | undefined;
}
