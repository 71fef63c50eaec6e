/**
 * Where links of this machine's processes stand, told from their files of counters: what has to be so before devices are spoken of
 * (both sides run, messages arrive and are understood, the driver wants a number that there is), step by step; then of each
 * device the steps of bring_up.ts, and what follows DRIVER_OK (kick, call), which is counted also where no message says it.
 *
 * Two processes are the ends of a link if they have the same queue files mapped, or else buses of the same name. An end on
 * another machine, or of another implementation, is not known: what only it could tell is taken to be fine.
 */

import type { Kind } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { BringUp, type MissingStep, type Verdict } from "./bring_up.ts";
import type { Instance } from "./figures.ts";
import { type ReadDevice, type ReadRequests, readState } from "./state.ts";

/** A process, and what /proc says of it. */
export interface Process extends Instance {
  /** By a signal or a debugger. */
  readonly isStopped: boolean;
  /** The queue file that it has mapped, if any. */
  readonly queueFile: string | undefined;
}

/** One end of a link. */
class End {
  readonly who: string;
  readonly bus: string;
  readonly devices: readonly ReadDevice[];
  readonly requests: readonly ReadRequests[];
  readonly isDriver: boolean;
  readonly #counters: ReadonlyMap<string, number>;

  constructor(readonly process: Process) {
    const { subcommand, pid, groups } = process;
    this.who = `process ${pid} (vmsg ${subcommand})`;
    this.isDriver = subcommand !== "device";
    const bus = groups.find(({ kind }) => kind === "bus");
    this.bus = bus?.name ?? "";
    this.#counters = new Map(bus?.counters.map(({ name, value }) => [name, value]));
    ({ devices: this.devices, requests: this.requests } = readState(groups));
  }

  of(counter: string): number {
    return this.#counters.get(counter) ?? 0;
  }

  /** How often it rang, and was rung; undefined where a doorbell is not counted. */
  get doorbell(): { rings: number; interrupts: number } | undefined {
    const group = this.process.groups.find(({ kind }) => kind === "doorbell");
    const at = (wanted: string) => group?.counters.find(({ name }) => name === wanted)?.value ?? 0;
    return group && { rings: at("rings"), interrupts: at("interrupts") };
  }

  /** What each network driver of ours got, by the number of its device. */
  get drivers(): [number: number, received: number][] {
    return this.process.groups.filter(({ kind }) => kind === "driver").map(({ name, counters }) => [
      Number(name.replace("device ", "")),
      counters.find(({ name }) => name === "received")?.value ?? 0,
    ]);
  }

  text(): string {
    const { isStopped, isRunning } = this.process;
    const state = isStopped ? "stopped" : isRunning ? "running" : "ended";
    const causes = [...this.#counters].filter(([name, count]) =>
      count > 0 && name !== "sent" && name !== "received"
    );
    const bell = this.doorbell;
    return [
      `${this.who} ${state}`,
      `${this.of("sent")} sent`,
      `${this.of("received")} received`,
      ...causes.map(([cause, count]) => `${cause} ${count}`),
      ...(bell ? [`doorbell rung ${bell.rings}, interrupts ${bell.interrupts}`] : []),
    ].join(", ");
  }
}

interface Ends {
  readonly driver: End | undefined;
  readonly device: End | undefined;
}

type Step = readonly [
  what: (ends: Ends) => string | false | undefined,
  owes: MissingStep["owes"],
  likely: string,
];

/** A request that waits for so long is late. */
const LATE_MS = 1000;
const MUTE =
  "the sides are not on the same bus (socket=, name=), or over ivshmem interrupts do not arrive: is MSI-X enabled, " +
  "is peer= the other side's id? With poll it looks without them";

const times = (count: number) => count === 1 ? "once" : `${count} times`;
const ended = (end: End | undefined) => end?.process.isRunning === false && `${end.who} has ended`;
const stopped = (end: End | undefined) => end?.process.isStopped && `${end.who} is stopped`;

/** It knows of no other side, and has heard none. */
function alone(end: End | undefined, other: End | undefined, side: string): string | undefined {
  if (end === undefined || other !== undefined || end.of("received") > 0) return undefined;
  const bell = end.doorbell;
  const said = bell !== undefined && bell.rings > 0 && bell.interrupts === 0
    ? `it rang the doorbell ${times(bell.rings)}, and took no interrupt`
    : `it has sent ${end.of("sent")} messages`;
  return `no ${side} side: ${end.who} has heard of none; ${said}`;
}

function unread(from: End | undefined, to: End | undefined): string | undefined {
  if (!from || !to || from.of("sent") === 0 || to.of("received") > 0) return undefined;
  const bells = from.doorbell && to.doorbell &&
    `: doorbell rung ${times(from.doorbell.rings)}, ${
      to.doorbell.interrupts || "no"
    } interrupts taken`;
  return `${from.who} sent ${from.of("sent")} messages, ${to.who} read none${bells ?? ""}`;
}

function foreign(end: End | undefined): string | undefined {
  if (end === undefined) return undefined;
  const [all, bad] = [end.of("received"), end.of("malformed")];
  // One now and then is a fault of another kind.
  if (bad === 0 || 2 * bad < all) return undefined;
  return `${end.who} understood only ${all - bad} of ${all} messages`;
}

/** A number that the driver side wants and the device side does not have. */
function wrongNumber({ device, driver }: Ends): string | undefined {
  if (device === undefined || driver === undefined) return undefined;
  const numbers = device.devices.map(({ number }) => number);
  const wanted = [
    ...driver.drivers.map(([number]) => number),
    ...driver.requests.filter(({ open }) => open > 0).map(({ device }) => device),
  ].find((number) => !numbers.includes(number));
  if (wanted === undefined) return undefined;
  return `there is no device ${wanted}: the device side has ${numbers.join(", ") || "none"}`;
}

/** In order; each is asked only if those before it are fine. */
const STEPS: readonly Step[] = [
  [({ device }) => ended(device), "device side", "it was killed, or crashed: start it again"],
  [({ driver }) => ended(driver), "driver side", "it was killed, or crashed: start it again"],
  [({ device }) => stopped(device), "device side", "SIGSTOP or a debugger: kill -CONT"],
  [({ driver }) => stopped(driver), "driver side", "SIGSTOP or a debugger: kill -CONT"],
  [
    ({ device, driver }) => alone(driver, device, "device"),
    "device side",
    `it is not there, ${MUTE}`,
  ],
  [
    ({ device, driver }) => alone(device, driver, "driver"),
    "driver side",
    `it is not there, ${MUTE}`,
  ],
  [
    // A driver side speaks first.
    ({ device, driver }) =>
      device && driver && driver.of("sent") === 0 && driver.of("received") === 0 &&
      `${driver.who} has not found ${device.who}: it has sent nothing`,
    "driver side",
    MUTE,
  ],
  [({ device, driver }) => unread(driver, device), "device side", MUTE],
  [
    ({ device, driver }) => foreign(device) ?? foreign(driver),
    "either side",
    "they speak different dialects: give both the same one (--bus ...,dialect=)",
  ],
  [({ device, driver }) => unread(device, driver), "driver side", MUTE],
  [
    wrongNumber,
    "driver side",
    "numbers are the order of the device side's options, from 0, or their number=: compare it with device=",
  ],
  [
    ({ device, driver }) =>
      device && driver && driver.of("sent") > 0 && driver.of("received") === 0 &&
      `${device.who} has answered none of ${driver.of("sent")} messages of ${driver.who}`,
    "device side",
    "it heeds none of them, for the causes that are counted; often they speak different dialects (--bus ...,dialect=)",
  ],
];

/** What follows DRIVER_OK and only counters tell. */
function notified(
  { number, deviceId, queues }: ReadDevice,
  driver: End | undefined,
): MissingStep | undefined {
  const running = queues.filter(({ isEnabled }) => isEnabled);
  if (running.length > 0 && running.every(({ kicks }) => kicks === 0)) {
    return {
      step: "no queue was ever kicked",
      owes: "driver side",
      likely: "the driver has nothing to do (is its interface up?), or its kicks get lost",
    };
  }
  // A network card calls for what came in queues of even numbers.
  const calls = running.filter(({ index }) => deviceId !== 1 || index % 2 === 0)
    .reduce((sum, { calls = 0 }) => sum + calls, 0);
  if (calls === 0 || driver?.drivers.find(([of]) => of === number)?.[1] !== 0) return undefined;
  return {
    step: `the driver was called ${times(calls)} and took nothing`,
    owes: "driver side",
    likely: "its interrupt does not arrive: over ivshmem, is MSI-X enabled there, is peer= its id?",
  };
}

function late(device: number, driver: End | undefined, nowMs: number): MissingStep | undefined {
  const request = driver?.requests.find((one) =>
    one.open > 0 && one.device === device && nowMs - one.sinceMs >= LATE_MS
  );
  if (request === undefined) return undefined;
  const seconds = ((nowMs - request.sinceMs) / 1000).toFixed(1);
  return {
    step: `${kindName(request.kind as Kind)} has waited ${seconds} s for its answer`,
    owes: "device side",
    likely: "the device hangs, or what is behind it (its back end, its image): its log says more",
  };
}

function deviceVerdict(device: ReadDevice, driver: End | undefined, nowMs: number): Verdict {
  const { number, deviceId, status, features } = device;
  const queues = device.queues.filter(({ size }) => size > 0);
  // As messages would have said it.
  const state = new BringUp(`dev ${number}`);
  state.see({ message: "GET_DEVICE_INFO", sort: "answer", fields: { deviceId } });
  if (features.some((word) => word !== 0)) state.see({ message: "SET_DRIVER_FEATURES" });
  state.see({ message: "EVENT_CONFIG", fields: { status } });
  for (const { index, size } of queues) {
    state.see({ message: "SET_VQUEUE", fields: { index, queueSize: size } });
  }
  if (queues.some(({ kicks }) => kicks === undefined)) state.see({ message: "SET_NOTIFIER" });
  const sum = (of: "kicks" | "calls") => queues.reduce((sum, queue) => sum + (queue[of] ?? 0), 0);
  state.rung(sum("kicks"), sum("calls"));
  const stuck = late(number, driver, nowMs) ?? state.missing() ?? notified(device, driver);
  return { subject: `dev ${number} ${state.kind}`, seen: state.seen(), stuck };
}

function linksOf(processes: readonly Process[]): Ends[] {
  const links: { driver?: End; device?: End; queueFile: string | undefined }[] = [];
  // Those that run say more of their bus, and take the places before those that are gone.
  const sorted = processes.filter(({ groups }) => groups.some(({ kind }) => kind === "bus"))
    .toSorted((a, b) => Number(b.isRunning) - Number(a.isRunning));
  for (const process of sorted) {
    const end = new End(process);
    const side = end.isDriver ? "driver" : "device";
    const { queueFile } = process;
    const link = links.find((link) => {
      const isSame = queueFile !== undefined && link.queueFile !== undefined
        ? queueFile === link.queueFile
        : (link.driver ?? link.device)!.bus === end.bus;
      return isSame && link[side] === undefined;
    });
    if (link !== undefined) link[side] = end;
    // What is gone and was replaced is of no interest.
    else if (process.isRunning || !links.some((link) => link[side]?.bus === end.bus)) {
      links.push({ [side]: end, queueFile });
    }
  }
  return links.map(({ driver, device }) => ({ driver, device }));
}

/** Where each link of these processes stands, and each of its devices. @param nowMs on the clock of the machine */
export function diagnoseProcesses(processes: readonly Process[], nowMs: number): Verdict[] {
  return linksOf(processes).flatMap((ends) => {
    const { driver, device } = ends;
    const subject = (driver ?? device)!.bus;
    const seen = [driver, device].flatMap((end) => end ? [end.text()] : []).join("; ");
    for (const [what, owes, likely] of STEPS) {
      const step = what(ends);
      if (step) return [{ subject, seen, stuck: { step, owes, likely } }];
    }
    const devices = device?.devices ?? [];
    return [
      { subject, seen, stuck: undefined },
      ...devices.map((one) => deviceVerdict(one, driver, nowMs)),
    ];
  });
}
