/**
 * What may be asked of a device side that runs: the words and options of `vmsg ctl`, parsed by who asks, so that what is
 * wrong is told at once, and by who is asked, who trusts nobody.
 */

import { UsageError } from "../../linux/errors.ts";
import { type CommandText, type Options, parseOptions } from "../command.ts";
import { DEVICE_OPTIONS, DEVICE_SECTION, parseDevice } from "../device_option.ts";
import { PORT_SECTION } from "../port_option.ts";

const MAX_NUMBER = 0xffff;

/** One request; `device` of `add` is a value of `--device`. */
export type ControlRequest =
  | { readonly verb: "add"; readonly device: string; readonly number: number | undefined }
  | { readonly verb: "remove" | "resize"; readonly number: number }
  | { readonly verb: "link"; readonly number: number; readonly up: boolean }
  | { readonly verb: "list" };

/** What `vmsg ctl` prints of each. */
const VERBS = {
  add:
    "one more --device or --net, with the number given or one that was not used yet; its number is printed",
  remove: "take device N away; who drives it is told when nothing of it is touched any more",
  link: "the carrier of network card N: its driver is told",
  resize: "look at the size of disk N again: its driver is told",
  list: "what devices there are",
} as const;

/** All but what it does. */
export const CONTROL_TEXT: CommandText = {
  name: "ctl",
  summary: "adds, removes and lists the devices of a device side that runs",
  description:
    "Speaks to a `vmsg device --control PATH`. Paths of files are as that process sees them.",
  operands: "PATH add|remove N|link N up|down|resize N|list",
  options: [
    ...DEVICE_OPTIONS.map((option) => ({
      ...option,
      help: `with add: ${option.help.split(";")[0]}`,
    })),
    { name: "number", value: "N", help: "with add: the device's number on the bus" },
    { name: "json", help: "print JSON instead of lines" },
  ],
  details: [
    {
      title: "What can be asked",
      rows: Object.entries(VERBS).map(([term, text]) => ({ term, text })),
    },
    DEVICE_SECTION,
    PORT_SECTION,
  ],
  examples: [
    "vmsg device --bus linux-user,socket=lu.sock --control ctl.sock",
    "vmsg ctl ctl.sock add --device blk,file=disk.img",
    "vmsg ctl ctl.sock add --net tap=tap1 --number 3",
    "vmsg ctl ctl.sock link 3 down",
    "vmsg ctl ctl.sock remove 3",
  ],
};

/** The request of options whose operands begin with the verb. */
export function requestOf(options: Options, [verb, ...rest]: readonly string[]): ControlRequest {
  if (verb === undefined || !Object.hasOwn(VERBS, verb)) {
    const verbs = Object.keys(VERBS).join(", ");
    throw new UsageError(
      `${verb ?? "what to do"}: one of ${verbs} is expected; see: vmsg ctl --help`,
    );
  }
  const wants = { add: 0, list: 0, remove: 1, resize: 1, link: 2 }[verb as keyof typeof VERBS];
  if (rest.length !== wants) {
    throw new UsageError(
      `${verb} takes ${wants} arguments, not ${rest.length}; see: vmsg ctl --help`,
    );
  }
  const devices = options.list("device");
  const number = options.wholeNumber("number", 0, MAX_NUMBER);
  if (verb === "add") {
    if (devices.length !== 1) throw new UsageError("add takes one --device or --net at a time");
    parseDevice(devices[0]!, number ?? 0);
    return { verb, device: devices[0]!, number };
  }
  if (devices.length > 0 || number !== undefined) {
    throw new UsageError(`--device, --net and --number go with add, not with ${verb}`);
  }
  if (verb === "list") return { verb };
  if (verb !== "link") return { verb: verb as "remove" | "resize", number: numberOf(rest[0]!) };
  if (rest[1] !== "up" && rest[1] !== "down") {
    throw new UsageError(`link N is up or down, not ${rest[1]}`);
  }
  return { verb, number: numberOf(rest[0]!), up: rest[1] === "up" };
}

function numberOf(text: string): number {
  const number = Number(text);
  if (/^\d+$/.test(text) && number <= MAX_NUMBER) return number;
  throw new UsageError(`a device number is a whole number from 0 to ${MAX_NUMBER}, not ${text}`);
}

/** The request of a line of the control socket: a JSON array of what stands behind `vmsg ctl PATH`. */
export function parseLine(line: string): ControlRequest {
  const words = wordsOf(line);
  if (!Array.isArray(words) || !words.every((word) => typeof word === "string")) {
    throw new UsageError('a request is a line with a JSON array of strings, as in ["remove","3"]');
  }
  const options = parseOptions(CONTROL_TEXT, words);
  return requestOf(options, options.operands);
}

function wordsOf(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
