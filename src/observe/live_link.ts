/**
 * Where links of this machine's processes stand, told from their files of counters: what has to be so before devices are spoken of
 * (both sides run, messages arrive and are understood, the driver wants a number that there is), step by step; then of each
 * device the steps of bring_up.ts, and what follows DRIVER_OK (kick, use, call), which is counted also where no message says it,
 * and is in the rings.
 *
 * Much that stands still is seen only by looking twice: a side that sends and is not read, a message queue that stays full,
 * buffers that are not used. So there may be an earlier look to compare with.
 *
 * Two processes are the ends of a link if they have the same queue files mapped, or else buses of the same name. An end on
 * another machine, or of another implementation, is not known: what only it could tell is taken to be fine.
 */

import type { Kind } from "../message/message.ts";
import { kindName } from "../message/table.ts";
import { BAD_STATUS, BringUp, DRIVER_OK } from "./bring_up.ts";
import { bridgeSeen, type BridgeStand, bridgeStep } from "./bridge_stand.ts";
import type { Instance } from "./figures.ts";
import {
  type ReadBridge,
  type ReadDevice,
  type ReadPeer,
  type ReadRequests,
  readState,
} from "./state.ts";
import type { MissingStep, Verdict } from "./verdict.ts";

/** A process, and what /proc says of it. */
export interface Process extends Instance {
  /** By a signal or a debugger. */
  readonly isStopped: boolean;
  /** The queue file that it has mapped, if any. */
  readonly queueFile: string | undefined;
  /** Of its devices' queues, see {@link ringName}; only what could be read. */
  readonly rings: ReadonlyMap<string, RingState>;
}

/** A ring as it was. */
export interface RingState {
  /** Buffers that are the device's to use; undefined where that is not exact. */
  readonly pending: number | undefined;
  /** The device's place; the same twice: it used none meanwhile. */
  readonly used: string;
  /** Nothing was ever made available, or used. */
  readonly isUntouched: boolean;
  /** What cannot be right. */
  readonly problem: string | undefined;
}

/** How a queue's ring is called in {@link Process.rings}. */
export const ringName = (device: number, queue: number): string => `${device} ${queue}`;

/** One end of a link. */
class End {
  readonly who: string;
  readonly bus: string;
  readonly devices: readonly ReadDevice[];
  readonly requests: readonly ReadRequests[];
  readonly peers: readonly ReadPeer[];
  readonly bridge: ReadBridge | undefined;
  readonly isDriver: boolean;
  readonly #counters: ReadonlyMap<string, number>;

  /** @param before the same process as it was earlier */
  constructor(readonly process: Process, readonly before: End | undefined) {
    const { subcommand, pid, groups } = process;
    this.who = `process ${pid} (vmsg ${subcommand})`;
    this.isDriver = subcommand !== "device";
    const bus = groups.find(({ kind }) => kind === "bus");
    this.bus = bus?.name ?? "";
    this.#counters = new Map(bus?.counters.map(({ name, value }) => [name, value]));
    const state = readState(groups);
    ({ devices: this.devices, requests: this.requests, peers: this.peers } = state);
    this.bridge = state.bridges[0];
  }

  of(counter: string): number {
    return this.#counters.get(counter) ?? 0;
  }

  /** How much that has grown since the earlier look; undefined without one. */
  grown(counter: string): number | undefined {
    return this.before && this.of(counter) - this.before.of(counter);
  }

  /** How often it rang, and was rung; undefined where a doorbell is not counted. */
  get doorbell(): { rings: number; interrupts: number } | undefined {
    const group = this.process.groups.find(({ kind }) => kind === "doorbell");
    const at = (wanted: string) => group?.counters.find(({ name }) => name === wanted)?.value ?? 0;
    return group && { rings: at("rings"), interrupts: at("interrupts") };
  }

  /** What each network driver of ours got, undefined of other drivers, by the number of its device. */
  get drivers(): [number: number, received: number | undefined][] {
    return this.process.groups.filter(({ kind }) => kind === "driver").map(({ name, counters }) => [
      Number(name.replace("device ", "")),
      counters.find(({ name }) => name === "received")?.value,
    ]);
  }

  /** What a proxy's front ends are for, and how often somebody connected. */
  get frontEnds(): { device: number; name: string; connections: number }[] {
    return this.process.groups.flatMap(({ kind, name, counters }) => {
      const device = kind === "front end" ? /^of device (\d+), /.exec(name) : null;
      if (device === null) return [];
      const connections = counters.find(({ name }) => name === "connections")?.value ?? 0;
      return [{ device: Number(device[1]), name: name.slice(device[0].length), connections }];
    });
  }

  /** Is nobody on its bus? Told by a device side. */
  get isAlone(): boolean {
    return this.peers.some(({ state }) => state === "none");
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
  "is peer= the other side's id? With poll it looks without them. Over shm and ivshmem, is the layout the same?";
const HANGS =
  "it hangs, is stopped, or does not see the doorbell: with ivshmem, are interrupts on?";

const times = (count: number) => count === 1 ? "once" : `${count} times`;
const ended = (end: End | undefined) => end?.process.isRunning === false && `${end.who} has ended`;
const stopped = (end: End | undefined) => end?.process.isStopped && `${end.who} is stopped`;

/** It knows of no other side, and has heard none. */
function alone(end: End | undefined, other: End | undefined, side: string): string | undefined {
  // The other side of a bridge is a kernel.
  if (end === undefined || other !== undefined || end.bridge !== undefined) return undefined;
  if (end.isAlone && end.of("received") > 0) return `no ${side} side: ${end.who} waits for one`;
  if (end.of("received") > 0) return undefined;
  const bell = end.doorbell;
  const said = bell !== undefined && bell.rings > 0 && bell.interrupts === 0
    ? `it rang the doorbell ${times(bell.rings)}, and took no interrupt`
    : `it has sent ${end.of("sent")} messages`;
  return `no ${side} side: ${end.who} has heard of none; ${said}`;
}

function unread(from: End | undefined, to: End | undefined): string | undefined {
  if (!from || !to) return undefined;
  const isNever = from.of("sent") > 0 && to.of("received") === 0;
  const sent = isNever ? from.of("sent") : to.grown("received") === 0 ? from.grown("sent") ?? 0 : 0;
  if (sent <= 0) return undefined;
  const bells = from.doorbell && to.doorbell &&
    `: doorbell rung ${times(from.doorbell.rings)}, ${
      to.doorbell.interrupts || "no"
    } interrupts taken`;
  const what = `${sent}${isNever ? "" : " more"} messages`;
  return `${from.who} sent ${what}, ${to.who} read none${bells ?? ""}`;
}

function full(from: End | undefined): string | undefined {
  if (from === undefined || (from.grown("full") ?? 0) <= 0 || from.grown("sent") !== 0) {
    return undefined;
  }
  return `${from.who} finds no room for a message: the other side does not read what came`;
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
    ...driver.frontEnds.map(({ device }) => device),
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
  [({ driver }) => full(driver), "device side", HANGS],
  [({ device }) => full(device), "driver side", HANGS],
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
function untaken({ number, deviceId, queues }: ReadDevice, driver: End | undefined) {
  // A network card calls for what came in queues of even numbers.
  const calls = queues.filter(({ index, isEnabled }) =>
    isEnabled && (deviceId !== NET || index % 2 === 0)
  ).reduce((sum, { calls = 0 }) => sum + calls, 0);
  if (calls === 0 || driver?.drivers.find(([of]) => of === number)?.[1] !== 0) return undefined;
  return {
    step: `the driver was called ${times(calls)} and took nothing`,
    owes: "driver side",
    likely: "its interrupt does not arrive: over ivshmem, is MSI-X enabled there, is peer= its id?",
  } as const;
}

const NET = 1;
/** Devices (net, console, vsock) whose queues of even numbers are for what comes, which may be nothing. */
const RECEIVERS = [NET, 3, 19];
/** Those (blk, rng, scsi, fs) that have to do all that they are asked. */
const WORKERS = [2, 4, 8, 26];

/** What the rings of a device say that runs. */
function ringStep(
  { number, deviceId, queues, status }: ReadDevice,
  { process, before }: End,
): MissingStep | undefined {
  if ((status & (DRIVER_OK | BAD_STATUS)) !== DRIVER_OK) return undefined;
  for (const { index, isEnabled, kicks, calls } of queues) {
    const name = ringName(number, index);
    const ring = process.rings.get(name);
    if (!isEnabled || ring === undefined) continue;
    const queue = `queue ${index}`;
    if (ring.problem !== undefined) {
      return {
        step: `${queue} makes no sense: ${ring.problem}`,
        owes: "either side",
        likely: MEMORY,
      };
    }
    if (ring.isUntouched && kicks !== undefined && kicks > 0 && calls === 0) {
      const step = `${queue} was kicked ${times(kicks)}, and is empty where the device looks`;
      return { step, owes: "either side", likely: MEMORY };
    }
    const isOwed = WORKERS.includes(deviceId) || (RECEIVERS.includes(deviceId) && index % 2 === 1);
    const was = before?.process.rings.get(name);
    if (!isOwed || !ring.pending || !was?.pending || was.used !== ring.used) continue;
    const wait = `${ring.pending} buffers wait in ${queue}`;
    if (kicks === 0) {
      const likely = "the kick gets lost between the guest and its front end, or is not sent";
      return { step: `${wait}, and it was never kicked`, owes: "driver side", likely };
    }
    const likely =
      "the device hangs, or what is behind it (back end, image, port); or a later kick was lost";
    return { step: `${wait}, and none is used`, owes: "device side", likely };
  }
  return undefined;
}

const MEMORY =
  "the sides do not look at the same memory: compare file, at= and hole= of --memory with the memory of the guest";

function unconnected({ number, status }: ReadDevice, driver: End | undefined) {
  const front = driver?.frontEnds.find(({ device }) => device === number);
  if (front === undefined || front.connections > 0 || status !== 0) return undefined;
  return {
    step: `nobody has connected to the front end's socket: ${front.name}`,
    owes: "driver side",
    likely: "the guest is not started, or its QEMU has another path= in -chardev",
  } as const;
}

function idle({ status }: ReadDevice): MissingStep | undefined {
  if (status !== 0) return undefined;
  return {
    step: "the device is in reset: nobody drives it",
    owes: "driver side",
    likely:
      "the guest has no driver for this kind (modprobe), has not come so far, or is shut down",
  };
}

function refusal({ refused, queues }: ReadDevice): MissingStep | undefined {
  if (refused === 0 || queues.some(({ isEnabled }) => isEnabled)) return undefined;
  return {
    step: `SET_VQUEUE came, and was refused ${times(refused)}`,
    owes: "device side",
    likely:
      "it sees no memory where the rings are (--memory, at=), or the queue is too large: its log says why",
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

function deviceVerdict(device: ReadDevice, { driver, device: end }: Ends, nowMs: number): Verdict {
  const { number, deviceId, status, features, sinceMs } = device;
  const queues = device.queues.filter(({ size }) => size > 0);
  // As messages would have said it.
  const state = new BringUp(`dev ${number}`);
  state.see({ message: "GET_DEVICE_INFO", sort: "answer", fields: { deviceId } });
  if (features.some((word) => word !== 0)) state.see({ message: "SET_DRIVER_FEATURES" });
  state.see({ message: "EVENT_CONFIG", fields: { status }, time: sinceMs / 1000 });
  for (const { index, size } of queues) {
    state.see({ message: "SET_VQUEUE", fields: { index, queueSize: size } });
  }
  if (queues.some(({ kicks }) => kicks === undefined)) state.see({ message: "SET_NOTIFIER" });
  const sum = (of: "kicks" | "calls") => queues.reduce((sum, queue) => sum + (queue[of] ?? 0), 0);
  state.rung(sum("kicks"), sum("calls"));
  const stuck = late(number, driver, nowMs) ?? unconnected(device, driver) ?? idle(device) ??
    refusal(device) ??
    ringStep(device, end!) ??
    state.missing(nowMs / 1000) ?? untaken(device, driver);
  return { subject: `dev ${number} ${state.kind}`, seen: state.seen(), stuck };
}

/** Of a process at a kernel's bridge, as its bus or the second of its two. */
function bridgeVerdict(end: End | undefined, nowMs: number): Verdict | undefined {
  if (end?.bridge === undefined || !end.process.isRunning || end.process.isStopped) {
    return undefined;
  }
  const { state, sinceMs, published, windows, refused, open, waitsSinceMs, tx, awake } = end.bridge;
  const was = end.before?.bridge?.tx;
  const stand: BridgeStand = {
    state,
    ageS: (nowMs - sinceMs) / 1000,
    published,
    isAsked: awake > 0,
    unread: was !== undefined && was.cons === tx.cons && was.prod !== was.cons
      ? (tx.prod - tx.cons) >>> 0
      : 0,
    ...{ windows, refused },
    waitsS: open === 0 ? 0 : (nowMs - waitsSinceMs) / 1000,
  };
  const { pid } = end.process;
  return {
    subject: `process ${pid}, kernel's bridge`,
    seen: bridgeSeen(stand),
    stuck: bridgeStep(stand),
  };
}

function linksOf(processes: readonly Process[], before: readonly Process[]): Ends[] {
  const links: { driver?: End; device?: End; queueFile: string | undefined }[] = [];
  // Those that run say more of their bus, and take the places before those that are gone.
  const sorted = processes.filter(({ groups }) => groups.some(({ kind }) => kind === "bus"))
    .toSorted((a, b) => Number(b.isRunning) - Number(a.isRunning));
  for (const process of sorted) {
    const was = before.find(({ path, startMs }) =>
      path === process.path && startMs === process.startMs
    );
    const end = new End(process, was && new End(was, undefined));
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

/**
 * Where each link of these processes stands, and each of its devices.
 *
 * @param nowMs on the clock of the machine
 * @param before what was read earlier, if that was done
 */
export function diagnoseProcesses(
  processes: readonly Process[],
  nowMs: number,
  before: readonly Process[] = [],
): Verdict[] {
  return linksOf(processes, before).flatMap((ends) => {
    const { driver, device } = ends;
    const subject = (driver ?? device)!.bus;
    const seen = [driver, device].flatMap((end) => end ? [end.text()] : []).join("; ");
    const bridges = [driver, device].flatMap((end) => bridgeVerdict(end, nowMs) ?? []);
    const isStuck = bridges.some(({ stuck }) => stuck !== undefined);
    for (const [what, owes, likely] of STEPS) {
      const step = what(ends);
      if (step) return [{ subject, seen, stuck: { step, owes, likely } }];
    }
    // Nobody can drive what the kernel does not see.
    const devices = isStuck ? [] : device?.devices ?? [];
    return [
      { subject, seen, stuck: undefined },
      ...bridges,
      ...devices.map((one) => deviceVerdict(one, ends, nowMs)),
    ];
  });
}
