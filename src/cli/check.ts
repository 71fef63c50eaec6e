/** `vmsg check`: any device side, or any driver side, is asked for the rules of virtio-msg. */

import { Dialogue, type Watch } from "../check/dialogue.ts";
import { FAULT_MODES, type FaultMode, ruleOfFault } from "../check/faults.ts";
import { PLAYED, PLAYED_KINDS, type PlayedKind } from "../check/played.ts";
import { junitOf, type Line, lineOf, summaryOf, wordsOf } from "../check/report.ts";
import { RINGS_SIZE } from "../check/roles.ts";
import { type Rule, RULES, type RuleSide } from "../check/rules.ts";
import { askAll, rulesFor } from "../check/session.ts";
import { UsageError, VmsgError } from "../linux/errors.ts";
import { rewriteFile } from "../linux/fd.ts";
import { openOwnFile } from "../linux/own_file.ts";
import { codecFor } from "../message/codecs.ts";
import type { Tracer } from "../observe/trace.ts";
import { BUS_OPTION, BUS_SECTION, type BusSettings, openBus, parseBus } from "./bus_option.ts";
import type { Options } from "./command.ts";
import { type DriverMemorySettings, openDriverMemory, parseDriverMemory } from "./memory_option.ts";
import { type PlaneCommand, planeCommand } from "./plane.ts";

const MAX_DEVICE = 65535;

interface CheckSettings {
  /** Whose rules. */
  readonly side: RuleSide;
  readonly bus: BusSettings;
  readonly device: number;
  /** What is played to a driver side. */
  readonly played: PlayedKind;
  readonly memory: DriverMemorySettings | undefined;
  /** Fault modes to play instead of asking for rules. */
  readonly faults: readonly FaultMode[];
  /** Numbers of rules; all without any. */
  readonly rules: readonly string[];
  readonly json: boolean;
  readonly junit: string | undefined;
}

function ruleOptions(options: Options, side: RuleSide): string[] {
  return options.list("rule").map((text) => {
    const number = text.toUpperCase();
    const rule = RULES.find((rule) => rule.number === number);
    if (rule === undefined) throw new UsageError(`--rule ${text}: docs/wire.md 7 has no such rule`);
    if (!rule.sides.includes(side)) {
      throw new UsageError(`--rule ${text} is not about a ${side} side; see --driver`);
    }
    return number;
  });
}

function faultOptions(options: Options): FaultMode[] {
  return options.list("fault").map((text) => {
    const mode = FAULT_MODES.find((mode) => mode === text);
    if (mode !== undefined) return mode;
    throw new UsageError(`--fault ${text}: the modes are ${FAULT_MODES.join(", ")}`);
  });
}

function playedOption(options: Options, side: RuleSide): PlayedKind {
  const kind = options.choice("as", PLAYED_KINDS);
  if (side === "device" && kind !== undefined) throw new UsageError("--as needs --driver");
  return kind ?? "net";
}

function memoryOption(options: Options, side: RuleSide): DriverMemorySettings | undefined {
  const text = options.text("memory");
  if (text === undefined) return undefined;
  if (side === "driver") throw new UsageError("--memory is for device sides: a driver has its own");
  const memory = parseDriverMemory(text);
  if (memory.kind !== "file") throw new UsageError("--memory takes file=PATH,at=ADDRESS here");
  return memory;
}

function watchBy(tracer: Tracer): Watch {
  return (direction, bytes, message) => {
    const view = new DataView(bytes.buffer);
    if (message !== undefined) tracer.message(direction, message, view, 0, message.size);
    else tracer.malformed(view, 0, bytes.length, "no message");
  };
}

/** See `vmsg check --help`. */
export const checkCommand: PlaneCommand<CheckSettings> = planeCommand({
  name: "check",
  summary: "whether any device side, or driver side, keeps the rules of virtio-msg",
  description:
    "Asks a device side for every rule that can be seen from outside, as a driver would speak to it; with --driver it " +
    "plays a network card, or another device, to a driver side instead. Each rule begins with a device that was reset, or a driver that was " +
    "cut off and comes back. Exit code 1 if one is broken, or none could be tested.",
  options: [
    BUS_OPTION,
    { name: "driver", help: "ask a driver side; this needs a bus of kind linux-user" },
    {
      name: "as",
      value: PLAYED_KINDS.join("|"),
      help: "with --driver: the device that is played (default net)",
    },
    { name: "device", value: "N", default: "0", help: "the number of the device on the bus" },
    {
      name: "memory",
      value: "file=PATH,at=ADDRESS[,size=N]",
      help:
        "memory for virtqueues that the device side knows by the same --memory; its first 128 KiB are " +
        "overwritten. Without it no queue is set up, and rules about queues are not tested",
    },
    { name: "rule", value: "R", repeated: true, help: "ask for this rule only, as in V9" },
    {
      name: "fault",
      value: "MODE",
      repeated: true,
      help: `play a driver, or with --driver a device, on a bad day instead: ${
        FAULT_MODES.join(", ")
      }; the device has to be in use in the end`,
    },
    { name: "json", help: "print a JSON object a rule" },
    { name: "junit", value: "FILE", help: "write the results as JUnit's XML, too" },
  ],
  details: [BUS_SECTION],
  examples: [
    "vmsg check --bus linux-user,socket=lu.sock --memory file=ram,at=0x40000000",
    "vmsg check --bus linux-user,socket=lu.sock,dialect=proto --rule P1 --trace",
    "vmsg check --driver --bus linux-user,socket=lu.sock --junit rules.xml",
    "vmsg check --driver --as blk --bus linux-user,socket=lu.sock --fault torn",
  ],
  parse: (options) => {
    const side = options.flag("driver") ? "driver" : "device";
    const bus = parseBus(options.text("bus")!, side === "driver" ? "device" : "driver");
    if (bus.auto) throw new UsageError("dialect=auto: say which dialect's rules are asked for");
    if (side === "driver" && bus.bus.kind !== "linux-user") {
      throw new UsageError("--driver needs --bus linux-user: on others a driver is not cut off");
    }
    const [rules, faults] = [ruleOptions(options, side), faultOptions(options)];
    if (rules.length > 0 && faults.length > 0) throw new UsageError("give --rule or --fault");
    return {
      side,
      bus,
      rules,
      faults,
      played: playedOption(options, side),
      device: options.wholeNumber("device", 0, MAX_DEVICE)!,
      memory: memoryOption(options, side),
      json: options.flag("json"),
      junit: options.text("junit"),
    };
  },
  open: (settings, context) => {
    const { reactor, log, stack, print } = context;
    const { side, junit, json } = settings;
    const report = junit === undefined
      ? undefined
      : stack.use(openOwnFile(junit, { what: "report" }).fd);
    const ownSide = side === "driver" ? "device" : "driver";
    const bus = stack.use(openBus(settings.bus, ownSide, reactor, log, true));
    const codec = codecFor(settings.bus.dialect, bus.slotSize);
    const place = settings.memory && openDriverMemory(settings.memory, 1, bus, stack);
    if (place !== undefined) {
      if (place.size < RINGS_SIZE) {
        throw new VmsgError("MEMORY", `--memory: ${place.size} bytes, ${RINGS_SIZE} are needed`);
      }
      new Uint8Array(place.memory.buffer, place.offset, RINGS_SIZE).fill(0);
    }
    const tracer = context.tracerFor(bus);
    const watch = tracer && watchBy(tracer);
    const talk = new Dialogue(reactor, bus, codec, settings.device, place, watch);
    const isWanted = ({ number }: Rule) =>
      settings.rules.length === 0 || settings.rules.includes(number);
    const { faults } = settings;
    const rules = faults.length > 0
      ? faults.map((mode) => ruleOfFault(mode, side))
      : rulesFor(side, talk).filter(isWanted);
    if (rules.length === 0) {
      throw new VmsgError("RULES", `dialect ${codec.dialect} has none of the rules asked for`);
    }
    const lines: Line[] = [];
    let isDone = false;
    reactor.spawn(async () => {
      talk.open();
      await askAll(side, rules, talk, (result) => {
        const line = lineOf(result, side, codec.dialect);
        lines.push(line);
        if (json) print(JSON.stringify(line));
        else for (const words of wordsOf(line)) print(words);
      }, PLAYED[settings.played]);
      isDone = true;
      reactor.stop();
    });
    return {
      finish: () => {
        if (!json) print(summaryOf(lines));
        if (report === undefined) return;
        rewriteFile(
          report,
          junitOf(`vmsg check ${side} ${codec.dialect}`, lines),
          `report ${junit}`,
        );
      },
      exitCode: () =>
        isDone && lines.some(({ verdict }) => verdict === "PASS") &&
          lines.every(({ verdict }) => verdict !== "FAIL")
          ? 0
          : 1,
    };
  },
});
