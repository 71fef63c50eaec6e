/** What a kind of `--device` is. Each has a file of its own here, and a line in device_option.ts. */

import type { PairLine } from "../../devices/net/pair_line.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { CaptureFile } from "../../observe/capture_file.ts";
import type { Log } from "../../observe/log.ts";
import type { DeviceModel } from "../../virtio/device.ts";
import type { Kind } from "../kinds.ts";
import type { HubLinks } from "../port_kinds/port_kind.ts";

/** What a device side has unless it is told otherwise. */
export const DEFAULT_DEVICE = "net";

export interface DeviceContext {
  readonly reactor: Reactor;
  readonly log: Log;
  /** What the device's counters are called, in front of what it is. */
  readonly number: number;
  readonly hubs: HubLinks;
  /** Do buffers come through a proxy that has room, or pieces, for so much only (confined and direct mode)? */
  readonly forwarded: boolean;
  /** Is nobody served yet, so that it may wait for what others are about to let go of? */
  readonly mayBlock: boolean;
  /** Lines to threads for queue pairs that no device has yet; who has one takes it out. */
  readonly pairLines: PairLine[];
  /** Where the frames of network cards are captured, if they are. */
  readonly frameCapture?: CaptureFile | undefined;
}

export interface OpenDevice {
  readonly model: DeviceModel;
  /** What it is, or works with, for people. */
  readonly description: string;
  readonly counters?: object;
  /** Resolves when it is known what the device is, where that takes until somebody comes; at once otherwise. */
  readonly ready?: Promise<void>;
  /** Of a network card: plugs its cable in or pulls it. */
  link?(up: boolean): void;
  /** Of a disk: looks at its size again. */
  refresh?(): void;
}

/** A record of the table; see `Kind` for which thread uses what. */
export interface DeviceKind<Settings = unknown> extends Kind {
  /**
   * Plain data of what was given.
   *
   * @param text what stands behind the kind; it may be empty
   * @param option what it was given to, for messages
   * @param number the device's number on the bus
   */
  parse(text: string, option: string, number: number): Settings;
  /** For how many queue pairs it would have threads. */
  pairThreads?(settings: Settings): number;
  /** Opens it; what was opened is closed if that fails. */
  open(settings: Settings, context: DeviceContext): OpenDevice;
}
