/** `--bus`: which bus, and which dialect is spoken on it. */

import type { Bus, Side } from "../bus/bus.ts";
import { LinuxUserBus } from "../bus/linux_user.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { Codec, Dialect } from "../message/codec.ts";
import { codecFor } from "../message/codecs.ts";
import type { Log } from "../observe/log.ts";
import type { Option } from "./command.ts";
import { type Group, parseGroup } from "./groups.ts";

const DIALECTS: readonly Dialect[] = ["v1", "v1-2025", "proto"];

/** A parsed `--bus`; plain data, so that it can be sent to a Worker. */
export interface BusSettings {
  readonly name: string;
  readonly directory: string;
  readonly socket: string;
  readonly listen: boolean;
  readonly wait: boolean;
  readonly reset: boolean;
  readonly dialect: Dialect;
  /** `dialect=auto`: the driver side's first message tells. */
  readonly auto: boolean;
}

/** The option's entry in a command's table. */
export const BUS_OPTION: Option = {
  name: "bus",
  value:
    "linux-user,socket=PATH[,name=NAME][,dir=DIR][,listen[=off]][,wait=off][,reset][,dialect=D]",
  required: true,
  help:
    "the message bus: two queue files (queue-NAME-driver, queue-NAME-device in DIR, by default " +
    "the current directory) and a socket on which the device side listens unless told otherwise; " +
    "wait=off fails at once when nobody is there; reset empties the queues first; " +
    "dialect is v1 (default), v1-2025, proto, or on the device side auto (v1 or proto)",
};

function parseDialect(group: Group, side: Side): { dialect: Dialect; auto: boolean } {
  if (group.text("dialect") !== "auto") {
    return { dialect: group.choice("dialect", DIALECTS, "v1"), auto: false };
  }
  if (side === "driver") {
    throw group.error("dialect=auto is for the device side: a driver side speaks first");
  }
  return { dialect: "v1", auto: true };
}

/** The dialects that a first message can tell apart from `v1`. */
export function detectable(settings: BusSettings): Codec[] {
  return settings.auto ? [codecFor("proto")] : [];
}

/** Parses `--bus`. */
export function parseBus(text: string, side: Side): BusSettings {
  const group = parseGroup("bus", text, {
    "linux-user": ["name", "dir", "socket", "listen", "wait", "reset", "dialect"],
  });
  return {
    name: group.text("name") ?? "linux-user",
    directory: group.text("dir") ?? ".",
    socket: group.required("socket"),
    listen: group.flag("listen", side === "device"),
    wait: group.flag("wait", true),
    reset: group.flag("reset", false),
    ...parseDialect(group, side),
  };
}

/** Makes the bus. */
export function openBus(settings: BusSettings, side: Side, reactor: Reactor, log: Log): Bus {
  // Only vmsg processes lock, and only among them what is left in a queue is known to be stale.
  const isV1 = settings.dialect === "v1";
  return new LinuxUserBus(side, reactor, {
    ...settings,
    lock: isV1,
    discardOnAttach: settings.auto ? "from vmsg" : isV1,
    // The prototype polls its queue and wants a wake-up for every message (rule P11).
    ringPerMessage: settings.dialect === "proto",
    log: log.info,
  });
}
