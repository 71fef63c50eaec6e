/** `--bus`: which bus, and which dialect is spoken on it. */

import type { Bus, Side } from "../bus/bus.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { Codec } from "../message/codec.ts";
import { codecFor } from "../message/codecs.ts";
import { type Dialect, DIALECTS } from "../message/message.ts";
import type { Log } from "../observe/log.ts";
import { bridgeKind } from "./bus_kinds/bridge.ts";
import type { BusKind } from "./bus_kinds/bus_kind.ts";
import { ivshmemKind } from "./bus_kinds/ivshmem.ts";
import { linuxUserKind } from "./bus_kinds/linux_user.ts";
import { shmKind } from "./bus_kinds/shm.ts";
import type { Option, Section } from "./command.ts";
import type { Group } from "./groups.ts";
import { type Chosen, findKind, kindsSection, parseKind } from "./kinds.ts";

const BUS_KINDS: readonly BusKind[] = [linuxUserKind, ivshmemKind, shmKind, bridgeKind];

/** Linux's flavour of `rfc` leaves data out of sizes, which is taken in any case. */
const LINUX_RFC = "rfc-lk";

/** A parsed `--bus`; plain data, so that it can be sent to a Worker. */
export interface BusSettings {
  readonly bus: Chosen;
  readonly reset: boolean;
  readonly dialect: Dialect;
  /** `dialect=auto`: the driver side's first message tells. */
  readonly auto: boolean;
}

export const BUS_OPTION: Option = {
  name: "bus",
  value: "KIND,...[,reset][,dialect=D]",
  required: true,
  help: "the message bus, see Buses below; reset empties the queues first; " +
    "dialect is v1 (default), v1-2025, rfc (rfc-lk is another name of it), rfc-q, proto, or on the device side auto " +
    "(v1, rfc or proto)",
};

export const BUS_SECTION: Section = kindsSection("Buses", BUS_KINDS);

function parseDialect(group: Group, side: Side): { dialect: Dialect; auto: boolean } {
  if (group.text("dialect") !== "auto") {
    const dialect = group.choice("dialect", [...DIALECTS, LINUX_RFC], "v1");
    return { dialect: dialect === LINUX_RFC ? "rfc" : dialect, auto: false };
  }
  if (side === "driver") {
    throw group.error("dialect=auto is for the device side: a driver side speaks first");
  }
  return { dialect: "v1", auto: true };
}

export function parseBus(text: string, side: Side): BusSettings {
  const { kind, group } = parseKind("--bus", text, BUS_KINDS, ["reset", "dialect"]);
  return {
    bus: { kind: kind.name, settings: kind.parse(group, side) },
    reset: group.flag("reset", false),
    ...parseDialect(group, side),
  };
}

/** Is it one bus, whatever is spoken on it? Of two that a driver side may be at. */
export function isSameBus(one: string, other: string): boolean {
  const [a, b] = [one, other].map((text) =>
    parseKind("--bus", text, BUS_KINDS, ["reset", "dialect"])
  );
  const settings = ({ kind, group }: typeof a) => JSON.stringify(kind.parse(group, "driver"));
  return a.kind === b.kind && settings(a) === settings(b);
}

/** See {@link BusKind.lendsMemory}. */
export function lendsMemory({ bus }: BusSettings): boolean {
  return findKind(BUS_KINDS, "--bus", bus.kind).lendsMemory === true;
}

/** The dialects that a first message can tell apart from `v1`. */
export function detectable(settings: BusSettings): Codec[] {
  return settings.auto ? [codecFor("rfc"), codecFor("proto")] : [];
}

/** @param isForeign this process does not pass for a vmsg: it locks, names and discards nothing */
export function openBus(
  { bus, reset, dialect, auto }: BusSettings,
  side: Side,
  reactor: Reactor,
  log: Log,
  isForeign = false,
): Bus {
  const isV1 = dialect === "v1" && !isForeign;
  return findKind(BUS_KINDS, "--bus", bus.kind).open(bus.settings, {
    ...{ side, reactor, log, isV1, isAuto: auto, reset },
    common: {
      // The prototype polls its queue and wants a wake-up for every message (rule P11).
      ringPerMessage: codecFor(dialect).conduct.ringsPerMessage,
      // Only vmsg processes name themselves in the queues.
      named: isV1,
      log: log.info,
    },
  });
}
