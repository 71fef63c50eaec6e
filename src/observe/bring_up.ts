/**
 * Where a bring-up stands, told from what was said: the steps that a driver takes with a device (VIRTIO 1.3, 3.1.1, and the first
 * buffers after them), who owes each, and what usually is the reason when it does not come.
 *
 * It reads the objects that a trace gives as JSON (trace.ts). The chart marks what is missing, `vmsg doctor` explains it.
 */

import { QUEUE_ENABLED } from "../message/message.ts";
import { DEVICE_KINDS, statusNames } from "../message/text.ts";
import { bridgeSeen, bridgeStep, BridgeWatch } from "./bridge_stand.ts";
import type { Line, MissingStep, Verdict } from "./verdict.ts";

const DRIVER = 2;
const FEATURES_OK = 8;
export const DRIVER_OK = 4;
/** By the device. */
const NEEDS_RESET = 0x40;
/** DEVICE_NEEDS_RESET, and FAILED by the driver. */
export const BAD_STATUS = 0xc0;
/** An answer that takes longer than that, in seconds, is said to be missing; one that was cut off with the capture is not. */
const PATIENCE_S = 1;

/** Devices whose drivers have something for them from the start: net, blk, console, rng, vsock. */
const BUSY_KINDS = [1, 2, 3, 4, 19];

/** What a driver did with a device since it was reset. */
class Life {
  /** All bits that the status ever had, as one of both sides said. */
  everStatus = 0;
  hasFeatures = false;
  wantsFeatures = false;
  /** The driver wrote FEATURES_OK, and the device's next word on it was without. */
  isRefused = false;
  hasQueue = false;
  /** Queues that were to be enabled, and of those which were not when asked. */
  readonly enabled = new Set<number>();
  readonly refused = new Set<number>();
  isOutOfBand = false;
  kicks = 0;
  calls = 0;
  /** When DRIVER_OK was first seen, and the first kick. */
  runsFromS = Infinity;
  kickedFromS = Infinity;
}

/** What a device was seen to be and to do. */
export class BringUp {
  kind = "";
  status = 0;
  isKnown = false;
  #isAsked = false;
  #isThere = false;
  #isBusyKind = false;
  #askedQueue = false;
  #memoryProblem = "";
  #life = new Life();
  /** What there was to say of the last driver that had begun, when it reset the device. */
  #before: { readonly step: MissingStep | undefined; readonly seen: string } | undefined;
  /** When it was reset, until it says that it is. */
  #resetFromS = Infinity;
  #nowS = 0;
  readonly #queues = new Map<number, string>();

  constructor(readonly name: string) {}

  see({ message = "", sort, fields = {}, time, words = "" }: Line): void {
    const value = (name: string) => Number(fields[name] ?? 0);
    const isAnswer = sort === "answer";
    const life = this.#life;
    this.#nowS = time ?? this.#nowS;
    if (message === "GET_DEVICE_INFO") {
      this.#isAsked = true;
      if (!isAnswer) return;
      this.isKnown = true;
      const id = value("deviceId");
      this.#isThere = id !== 0;
      this.#isBusyKind = BUSY_KINDS.includes(id);
      this.kind = DEVICE_KINDS.get(id) ?? `id ${id}`;
    } else if (message === "SET_DRIVER_FEATURES") life.hasFeatures = true;
    else if (/_DEVICE_STATUS$|^EVENT_CONFIG$/.test(message) && "status" in fields) {
      this.#seeStatus(value("status"), message === "SET_DEVICE_STATUS" && !isAnswer);
    } else if (message === "GET_VQUEUE" && isAnswer) {
      this.#askedQueue = true;
      // Only some dialects say whether it is enabled.
      if (value("flags") & QUEUE_ENABLED) life.refused.delete(value("index"));
      else if ("flags" in fields && life.enabled.has(value("index"))) {
        life.refused.add(value("index"));
      }
    } else if (message === "SET_VQUEUE" && !isAnswer) {
      life.hasQueue = true;
      const isEnabled = (Number(fields.flags ?? QUEUE_ENABLED) & QUEUE_ENABLED) !== 0;
      if (!isEnabled) return;
      life.enabled.add(value("index"));
      this.#queues.set(value("index"), `set up, size ${value("queueSize")}`);
    } else if (/^(RESET|STOP)_VQUEUE$/.test(message) && !isAnswer) {
      this.#queues.set(value("index"), "stopped");
      life.enabled.delete(value("index"));
      life.refused.delete(value("index"));
    } else if (message === "ADD_MEMORY" && isAnswer) {
      this.#memoryProblem = value("result") === 0 ? "" : words;
    } else if (message === "SET_NOTIFIER") life.isOutOfBand = true;
    else if (message === "EVENT_AVAIL") this.rung(1, 0);
    else if (message === "EVENT_USED") this.rung(0, 1);
  }

  /** Notifications, also those that no message shows. */
  rung(kicks: number, calls: number): void {
    const life = this.#life;
    if (kicks > 0) life.kickedFromS = Math.min(life.kickedFromS, this.#nowS);
    life.kicks += kicks;
    life.calls += calls;
  }

  #seeStatus(status: number, isDrivers: boolean): void {
    if (isDrivers && status === 0) this.#reset();
    this.status = status;
    // The device says that it is reset, or the driver does not wait for that.
    if (isDrivers !== (status === 0)) this.#resetFromS = Infinity;
    // Until then what is read is what the driver before has left.
    if (this.#resetFromS !== Infinity) return;
    const life = this.#life;
    if (isDrivers) life.wantsFeatures = (status & FEATURES_OK) !== 0;
    else if (life.wantsFeatures) life.isRefused = (status & FEATURES_OK) === 0;
    life.everStatus |= status;
    if ((status & DRIVER_OK) !== 0) life.runsFromS = Math.min(life.runsFromS, this.#nowS);
  }

  #reset(): void {
    if ((this.#life.everStatus & DRIVER) !== 0) {
      this.#before = { step: this.missing(), seen: this.seen() };
    }
    this.#life = new Life();
    this.#queues.clear();
    this.#resetFromS = Math.min(this.#resetFromS, this.#nowS);
  }

  /** The first step that was never taken; undefined if the driver runs, or ran. @param endS when nothing more was seen */
  missing(endS = this.#nowS): MissingStep | undefined {
    const life = this.#life;
    const ever = (bit: number) => (life.everStatus & bit) !== 0;
    const isLong = (sinceS: number) => endS - sinceS >= PATIENCE_S;
    const isReset = this.status === 0 || !isLong(this.#resetFromS);
    // What it did since is nothing that could be stuck.
    if (isReset && this.#before !== undefined && !ever(DRIVER)) return this.#before.step;
    const isSilent = life.kicks > 0 && life.calls === 0 && isLong(life.kickedFromS);
    const isQuiet = life.kicks === 0 && life.calls === 0 && isLong(life.runsFromS);
    const names = statusNames(this.status).join(" ");
    const refused = [...life.refused].join(", ");
    // A capture may begin when all is set up.
    const isFromStart = this.#isAsked || this.isKnown;
    const isLater = !isFromStart && (life.everStatus !== 0 || life.kicks + life.calls > 0);
    const steps: [boolean, MissingStep["owes"], string, string][] = [
      [
        isFromStart || isLater,
        "driver side",
        "GET_DEVICE_INFO never came",
        "what came is of another dialect (--bus ...,dialect=), or the capture began later than the driver side",
      ],
      [
        this.isKnown || isLater,
        "device side",
        "no answer to GET_DEVICE_INFO",
        "its process is not there, stands still, or speaks another dialect (--bus ...,dialect=): vmsg top shows what runs",
      ],
      [
        this.#isThere || isLater,
        "device side",
        "GET_DEVICE_INFO says that there is no device of this number",
        "the device side has it not yet, or the driver side wants another number: compare their options",
      ],
      [
        this.#memoryProblem === "" || ever(DRIVER_OK),
        "device side",
        `memory was refused: ${this.#memoryProblem}`,
        "its log says why: it has other memory there (--memory), takes a segment only (--confined), or has taken all it may",
      ],
      [
        isReset,
        "device side",
        `the reset is not finished: the status is still ${names}`,
        "the device hangs, or what is behind it: its log says more",
      ],
      [
        ever(DRIVER) || isLater,
        "driver side",
        "the driver never set DRIVER: nobody drives the device",
        "the guest has no driver for this kind (modprobe), or its front end has not connected to the proxy's socket, or it " +
        "does not understand the answer to GET_DEVICE_INFO (another dialect)",
      ],
      [
        (this.status & NEEDS_RESET) === 0,
        "device side",
        `the status is ${names}`,
        "the device has given up: its log says why (often rings or buffers lie where it sees no memory), and what comes next is a reset",
      ],
      [
        life.hasFeatures || isLater,
        "driver side",
        "SET_DRIVER_FEATURES never came",
        "the driver gave up when it saw what is offered: the guest's log (dmesg) says why",
      ],
      [
        !life.isRefused,
        "device side",
        "the device took FEATURES_OK back: it refuses what the driver accepted",
        "SET_DRIVER_FEATURES accepts what was not offered, or leaves out what the device needs: compare it with GET_DEVICE_FEATURES",
      ],
      [
        ever(FEATURES_OK) || isLater,
        "driver side",
        "FEATURES_OK was never set",
        "the driver stopped in the middle of its features: the guest's log says why",
      ],
      [
        life.hasQueue || isLater,
        "driver side",
        "SET_VQUEUE never came: no queue was set up",
        this.#askedQueue
          ? "the device has answered GET_VQUEUE: its queues may be too small, or memory for the rings is not shared"
          : "the driver stopped before its queues: the guest's log says why",
      ],
      [
        refused === "",
        "device side",
        `SET_VQUEUE came, and queue ${refused} is not enabled: the device refused it`,
        "it does not see memory where the rings are (--memory, at=), or the queue is too large: its log says why",
      ],
      [
        (this.status & BAD_STATUS) === 0,
        "driver side",
        `the status is ${names}`,
        "the driver has given up: the guest's log says why, and what comes next is a reset",
      ],
      [
        ever(DRIVER_OK) || isLater,
        "driver side",
        "DRIVER_OK was never set",
        "the driver failed between its queues and the end: the guest's log says why",
      ],
      [
        life.isOutOfBand || !this.#isBusyKind || !isQuiet,
        "driver side",
        "no queue was ever kicked",
        "the driver has nothing to do (is its interface up?), or its kicks get lost",
      ],
      [
        // A network card may have nothing to give back: no frame came, and who sends may want no notification.
        life.isOutOfBand || this.kind === "net" || !isSilent,
        "device side",
        `EVENT_AVAIL came ${life.kicks} times, EVENT_USED never`,
        "the device does not see the rings, or what it works with does not answer: is the memory shared (--confined if not)?",
      ],
    ];
    const [, owes, step, likely] = steps.find(([isTaken]) => !isTaken) ?? [];
    return step === undefined ? undefined : { step, owes: owes!, likely: likely! };
  }

  /** What was seen, in a line. */
  seen(): string {
    const status = statusNames(this.status).join(" ") || "reset";
    const { everStatus, isOutOfBand, kicks, calls } = this.#life;
    if (everStatus === 0 && this.#before) return `${this.#before.seen}, then status ${status}`;
    const rung = isOutOfBand
      ? "notifications out of band, which a capture does not see"
      : `EVENT_AVAIL ${kicks}, EVENT_USED ${calls}`;
    return `status ${status}, ${this.#queues.size} queues, ${rung}`;
  }

  text(): string {
    const status = this.status === 0 ? "reset" : statusNames(this.status).join(" ");
    const queues = [...this.#queues].sort(([a], [b]) => a - b)
      .map(([index, text]) => `  queue ${index}: ${text}`);
    return [`${this.name} ${this.kind}: ${status}`, ...queues].join("\n");
  }
}

/** Where each device of a trace stands, and its buses if that is where it ends. @param json its lines as JSON, as many as there are */
export function diagnose(json: Iterable<string>): Verdict[] {
  const devices = new Map<string, BringUp>();
  const requests = new Requests();
  const watches = new Map<string | undefined, BridgeWatch>();
  let messages = 0, malformed = 0, endS = 0, isBridgesLast = false;
  for (const text of json) {
    const line: Line = JSON.parse(text);
    endS = Math.max(endS, line.time ?? 0);
    if (line.malformed !== undefined) malformed++;
    if (line.message !== undefined) messages++;
    if (requests.see(line)) {
      // What was asked before both sides knew each other was dropped.
      const start = line.bus === undefined ? "dev " : `${line.bus} dev `;
      for (const { name, isKnown } of devices.values()) {
        if (name.startsWith(start) && !isKnown) devices.delete(name);
      }
    }
    const isBridges = BridgeWatch.isAbout(line);
    if (isBridges && !watches.has(line.bus)) watches.set(line.bus, new BridgeWatch());
    watches.get(line.bus)?.see(line);
    if ((line.message ?? line.note ?? line.malformed) !== undefined) isBridgesLast = isBridges;
    if (line.message === undefined || aboutDevice(line) === undefined) continue;
    const name = subjectOf(line);
    const device = devices.get(name) ?? new BringUp(name);
    devices.set(name, device);
    device.see(line);
  }
  const unanswered = requests.unanswered();
  const bridges = [...watches].map(([name, watch]): Verdict => {
    // A capture may end with what was said last, and nobody knows how long ago that is.
    const stand = watch.at(isBridgesLast ? Infinity : endS);
    const subject = `${name ?? ""} bridge`.trim();
    return { subject, seen: bridgeSeen(stand), stuck: bridgeStep(stand) };
  });
  const verdicts = [...devices.values()].map((device): Verdict => {
    const stuck = notAnswered(unanswered.get(device.name)) ?? device.missing(endS);
    return { subject: `${device.name} ${device.kind}`.trim(), seen: device.seen(), stuck };
  });
  const seen = `${messages} messages, ${malformed} not understood`;
  const buses = [...unanswered].filter(([subject]) => !devices.has(subject))
    .map(([subject, line]): Verdict => ({ subject, seen, stuck: notAnswered(line) }));
  // What it waits for itself is said there.
  const told = [...watches.keys()].map((name) => `${name ?? ""} bus`.trim());
  const others = buses.filter(({ subject }) => !told.includes(subject));
  if (bridges.some(({ stuck }) => stuck !== undefined)) return [...bridges, ...verdicts];
  const all = [...bridges, ...others, ...verdicts];
  const isSound = devices.size > 0 && all.every(({ stuck }) => stuck === undefined);
  // One that is dropped while others are understood holds nobody up.
  const bus = isSound ? undefined : busProblem(messages, malformed, all.length);
  return bus === undefined ? all : [{ subject: "bus", seen, stuck: bus }, ...all];
}

/** Requests without an answer that are kept, more than a trace names at its end. */
const MAX_REQUESTS = 1 << 16;

/** What is asked, until it is answered. */
class Requests {
  readonly #open = new Map<string, Line>();
  /** By subject: the number of the last answer, and the first heartbeat since one was answered. */
  readonly #answers = new Map<string, number>();
  readonly #heartbeats = new Map<string, Line | undefined>();
  /** Those that the trace names. */
  readonly #named: string[] = [];
  #last: Line = {};

  /** True of the first answer to a heartbeat, by which two vmsg sides know each other. */
  see(line: Line): boolean {
    const { bus, message, sort, number = 0, request, unanswered } = line;
    if (unanswered !== undefined) this.#named.push(`${bus} ${unanswered}`);
    if (message === undefined) return false;
    this.#last = line;
    const subject = subjectOf(line);
    if (message === "HELLO") {
      const isKnown = this.#heartbeats.has(subject);
      // It goes by itself: one who never answered it may be no vmsg.
      if (sort === "answer") this.#heartbeats.set(subject, undefined);
      else if (isKnown && !this.#heartbeats.get(subject)) this.#heartbeats.set(subject, line);
      if (isKnown || sort !== "answer") return false;
      for (const [name, asked] of this.#open) if (asked.bus === bus) this.#open.delete(name);
      return true;
    }
    if (sort === "answer") {
      this.#answers.set(subject, number);
      this.#open.delete(`${bus} ${request}`);
    } else if (sort === "request") {
      this.#open.set(`${bus} ${number}`, line);
      if (this.#open.size > MAX_REQUESTS) this.#open.delete(this.#open.keys().next().value!);
    }
    return false;
  }

  /** The first request of each subject that was not answered, if nothing of that subject was answered later. */
  unanswered(): Map<string, Line> {
    const isOld = ({ time = 0 }: Line) => (this.#last.time ?? 0) - time >= PATIENCE_S;
    const found = new Map<string, Line>();
    for (const request of this.#named.flatMap((name) => this.#open.get(name) ?? [])) {
      const subject = subjectOf(request);
      const isOver = (this.#answers.get(subject) ?? 0) > (request.number ?? 0);
      if (isOver || found.has(subject)) continue;
      if (isOld(request) || request === this.#last) found.set(subject, request);
    }
    for (const [subject, request] of this.#heartbeats) {
      if (request !== undefined && isOld(request) && !found.has(subject)) {
        found.set(subject, request);
      }
    }
    return found;
  }
}

function aboutDevice({ device, fields }: Line): unknown {
  return fields?.memoryDevice ?? device;
}

function subjectOf(line: Line): string {
  const about = aboutDevice(line);
  return `${line.bus ?? ""} ${about === undefined ? "bus" : `dev ${about}`}`.trim();
}

function notAnswered(request: Line | undefined): MissingStep | undefined {
  if (request === undefined) return undefined;
  return {
    step: request.message === "HELLO"
      ? "the heartbeat (HELLO) is not answered any more"
      : `${request.words} was never answered`,
    owes: "device side",
    likely:
      "its process is not there, stands still (vmsg top shows what runs), speaks another dialect, or does not see the doorbell: with ivshmem, are interrupts on?",
  };
}

function busProblem(
  messages: number,
  malformed: number,
  subjects: number,
): MissingStep | undefined {
  if (malformed > 0) {
    return {
      step: `${malformed} messages are not understood`,
      owes: "either side",
      likely: "the sides speak different dialects: give both the same one (--bus ...,dialect=)",
    };
  }
  if (messages === 0) {
    return {
      step: "no message came",
      owes: "either side",
      likely: "only one side runs, or they are not on the same bus: compare their --bus options",
    };
  }
  if (subjects > 0) return undefined;
  return {
    step: "no device was asked for",
    owes: "either side",
    likely:
      "the driver side has no guest so far (nobody has connected to its front end), or looks for devices and finds none: vmsg ctl list",
  };
}
