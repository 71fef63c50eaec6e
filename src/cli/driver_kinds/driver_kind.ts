/** What a kind of `vmsg driver --device` is, apart from the network card. Each has a file of its own here. */

import type { Reactor } from "../../linux/reactor.ts";
import type { RequestDriverOptions } from "../../drivers/request_driver.ts";
import type { Log } from "../../observe/log.ts";
import type { DriverSide } from "../../transport/driver_side.ts";
import type { Group } from "../groups.ts";
import type { GroupKind } from "../kinds.ts";

export interface DriverContext {
  readonly reactor: Reactor;
  readonly log: Log;
  readonly side: DriverSide;
  readonly options: Pick<RequestDriverOptions, "memory" | "number" | "rings">;
  /** Owns what is opened. */
  readonly stack: DisposableStack;
  /** For lines that are the result. */
  readonly print: (line: string) => void;
}

/** What came of it, as `--json` prints it. */
export type Outcome = Readonly<Record<string, unknown>>;

export interface DriverKind<Settings = unknown> extends GroupKind {
  /** Plain data: it is sent to the Worker. */
  parse(group: Group): Settings;
  /** Opens what it needs; what it returns does the work, when the bus is open, and prints. */
  open(settings: Settings, context: DriverContext): RunningDriver;
}

export interface RunningDriver {
  /** Has a device been there? */
  isKnown(): boolean;
  run(): Promise<Outcome>;
}
