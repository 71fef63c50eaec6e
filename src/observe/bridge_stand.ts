/**
 * Where a kernel's bridge stands, before any device is spoken of: a session, an endpoint that is online, devices that are published, frames
 * that are read, memory that is mapped. Told from a trace as JSON ({@link BridgeWatch}) or from what a process says of itself
 * (state.ts, ReadBridge); the steps and what is usually the reason are the same.
 */

import type { Line, MissingStep } from "./verdict.ts";

/** What is known of one. */
export interface BridgeStand {
  readonly state: "none" | "offline" | "online";
  /** For how long, in seconds. */
  readonly ageS: number;
  /** Devices that the kernel was told of; undefined before. */
  readonly published: number | undefined;
  /** Has the kernel said anything about a device since? */
  readonly isAsked: boolean;
  /** Frames that the kernel has not read, for longer than it may take. */
  readonly unread: number;
  readonly windows: number;
  /** Windows that were not taken in this session. */
  readonly refused: number;
  /** For how long the oldest request about a window has waited, in seconds. */
  readonly waitsS: number;
}

/** A kernel takes some time for its modules' work; it gives a request up after 5 s. */
const PATIENCE_S = 1;
/** Requests that are followed; a kernel has as many open at most. And windows: a damaged capture may name any number. */
const MAX_OPEN = 1024;
const MAX_WINDOWS = 1 << 16;

/** The first step that did not happen. */
export function bridgeStep(stand: BridgeStand): MissingStep | undefined {
  const { state, ageS, published, isAsked, unread, windows, refused, waitsS } = stand;
  const steps: [boolean, MissingStep["owes"], string, string][] = [
    [
      state !== "none",
      "driver side",
      "there is no session at the kernel's bridge",
      "nobody is there (path=unix:), or it ended the last one, by faults: the log says why, and when the next one begins",
    ],
    [
      state !== "offline",
      "driver side",
      "the endpoint of the kernel's bridge is offline",
      "its module or partition is not there, or went; on the loopback nothing brings it back: reboot that machine",
    ],
    [
      unread === 0,
      "driver side",
      `the kernel does not read: ${unread} frames wait in the ring`,
      "its bridge hangs, for 5 s per window where a device was left out of a session that goes on: see its dmesg",
    ],
    [
      waitsS < PATIENCE_S,
      "device side",
      "a request for a window (MAP_ADD, MAP_DEL) was not answered" +
      (waitsS === Infinity ? "" : `, for ${waitsS.toFixed(1)} s`),
      "a device does not let go of that memory, or the process hangs; the kernel gives it up after 5 s",
    ],
    [
      refused === 0 || windows > 0,
      "device side",
      `memory was refused: MAP_ADD, ${refused} times`,
      "--memory-limit is less than the kernel shows, or what it says makes no sense: the log says why",
    ],
    [
      published !== undefined || ageS < PATIENCE_S,
      "device side",
      "no device was published: TOPOLOGY_COMMIT never came",
      "the process has none so far, or is busy with those of another bus: its log says more",
    ],
    [
      isAsked || !published || ageS < PATIENCE_S,
      "driver side",
      `${published} devices were published, and the kernel asks for none`,
      "its transport is not loaded (virtio_msg), or the numbers are above 31 on the loopback: see its dmesg",
    ],
  ];
  const [, owes, step, likely] = steps.find(([isTaken]) => !isTaken) ?? [];
  return step === undefined ? undefined : { step, owes: owes!, likely: likely! };
}

/** In a line. */
export function bridgeSeen(stand: BridgeStand): string {
  const { state, published, windows, refused, unread } = stand;
  if (state === "none") return "no session";
  return [
    `endpoint ${state}`,
    `${published ?? "no"} devices published`,
    `${windows} windows mapped`,
    ...(refused > 0 ? [`${refused} refused`] : []),
    ...(unread > 0 ? [`${unread} frames not read`] : []),
  ].join(", ");
}

/** Follows one in the lines of a trace. */
export class BridgeWatch {
  #state: BridgeStand["state"] = "none";
  #sinceS = 0;
  #published: number | undefined;
  #isAsked = false;
  #refused = 0;
  readonly #windows = new Set<string>();
  /** Requests that are not answered: when they came. */
  readonly #open = new Map<number, number>();

  /** Is it about a kernel's bridge? */
  static isAbout({ message = "", note = "" }: Line): boolean {
    return /^(MAP|ENDPOINT|TOPOLOGY)_/.test(message) || note.startsWith("bridge: ");
  }

  see({ message, sort, note, fields = {}, number = 0, request = -1, time = 0, ...rest }: Line) {
    const window = `${fields.map}`;
    // bus/bridge_trace.ts writes it.
    const attached = /^bridge: attached, the endpoint is (online|offline)/.exec(note ?? "");
    if (attached) this.#is(attached[1] as "online" | "offline", time);
    else if (/^bridge: .*(\(fault\)|is gone)$/.test(note ?? "")) this.#is("none", time);
    else if (message === "ENDPOINT_ONLINE") this.#is("online", time);
    else if (message === "ENDPOINT_OFFLINE") this.#is("offline", time);
    else if (message === "TOPOLOGY_COMMIT") this.#published = Number(fields.count);
    else if (message === "MAP_ADD" || message === "MAP_DEL") {
      if (sort !== "answer") {
        this.#open.set(number, time);
        if (this.#open.size > MAX_OPEN) this.#open.delete(this.#open.keys().next().value!);
      } else {
        this.#open.delete(request);
        if (message === "MAP_DEL") this.#windows.delete(window);
        else if (fields.result !== 0) this.#refused++;
        else if (this.#windows.size < MAX_WINDOWS) this.#windows.add(window);
      }
    } else if (rest.device !== undefined && rest.direction === "<-") this.#isAsked = true;
  }

  #is(state: BridgeStand["state"], time: number): void {
    this.#state = state;
    this.#sinceS = time;
    this.#published = undefined;
    this.#isAsked = false;
    this.#refused = 0;
    this.#windows.clear();
    this.#open.clear();
  }

  /** How it stands at that time. */
  at(endS: number): BridgeStand {
    const oldest = this.#open.values().next().value;
    return {
      state: this.#state,
      ageS: endS - this.#sinceS,
      published: this.#published,
      isAsked: this.#isAsked,
      // No message shows that.
      unread: 0,
      windows: this.#windows.size,
      refused: this.#refused,
      waitsS: oldest === undefined ? 0 : endS - oldest,
    };
  }
}
