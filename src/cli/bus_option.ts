/** `--bus`: which bus, and which dialect is spoken on it. */

import type { Bus, Side } from "../bus/bus.ts";
import { LinuxUserBus } from "../bus/linux_user.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { Dialect } from "../message/codec.ts";
import type { Log } from "../observe/log.ts";
import type { Option } from "./command.ts";
import { parseGroup } from "./groups.ts";

const DIALECTS: readonly Dialect[] = ["v1", "proto"];

/** A parsed `--bus`; plain data, so that it can be sent to a Worker. */
export interface BusSettings {
  readonly name: string;
  readonly directory: string;
  readonly socket: string;
  readonly listen: boolean;
  readonly wait: boolean;
  readonly reset: boolean;
  readonly dialect: Dialect;
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
    "dialect is v1 (default) or proto",
};

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
    dialect: group.choice("dialect", DIALECTS, "v1"),
  };
}

/** Makes the bus. */
export function openBus(settings: BusSettings, side: Side, reactor: Reactor, log: Log): Bus {
  const isV1 = settings.dialect === "v1";
  return new LinuxUserBus(side, reactor, {
    ...settings,
    lock: isV1,
    discardOnAttach: isV1,
    // The prototype polls its queue and wants a wake-up for every message (rule P11).
    ringPerMessage: !isV1,
    log: log.info,
  });
}
