/**
 * What a process knows at the moment, in groups of kind {@link STATE} of its file of counters, so that it can be read
 * while the process runs, and of one that crashed: the status, features and queues of its devices, and the request
 * that has waited longest.
 *
 * Only what changes at a status write, a queue's set-up or a request is here; nothing is written per packet. A
 * counter's high word goes forward only, therefore 64 bits that may become less are two counters.
 */

import { counterShape, noteCounters, retire } from "./counters.ts";

/** The kind of these groups: they are no counters, and are not shown as such. */
export const STATE = "state";

/** Queues of which a process tells, so that the file has room for what counts. */
const MAX_QUEUES = 32;
let queuesLeft = MAX_QUEUES;

const DeviceWords = counterShape("device id", "status", "features 0", "features 1", "queues");
const QueueWords = counterShape(
  "enabled",
  "size",
  "descriptor low",
  "descriptor high",
  "driver low",
  "driver high",
  "device low",
  "device high",
);
const RequestWords = counterShape("open", "kind", "device", "since ms");

type QueueCounters = InstanceType<typeof QueueWords>;

/** Where a queue lies. */
interface Setup {
  readonly size: number;
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
}

const low = (value: number) => value % 2 ** 32;
const high = (value: number) => Math.floor(value / 2 ** 32);

/** The state of one device; dispose gives its room back. */
export class DeviceState implements Disposable {
  readonly #device: InstanceType<typeof DeviceWords>;
  readonly #queues: readonly QueueCounters[];
  #isGone = false;

  /** Of a device in reset. */
  constructor(number: number, deviceId: number, queueCount: number) {
    const count = Math.min(queueCount, queuesLeft);
    queuesLeft -= count;
    const name = `device ${number}`;
    // It goes with the slot and not with what else was made for the device.
    [this.#device, this.#queues] = noteCounters(undefined, () => [
      new DeviceWords(STATE, name),
      Array.from({ length: count }, (_, n) => new QueueWords(STATE, `${name} queue ${n}`)),
    ]);
    this.#device["device id"] = deviceId;
    this.#device.queues = queueCount;
  }

  /** The status, and the features that the driver has written so far. */
  device(status: number, features: Uint32Array): void {
    if (this.#isGone) return;
    this.#device.status = status;
    this.#device["features 0"] = features[0]!;
    this.#device["features 1"] = features[1]!;
  }

  /** A queue was set up, enabled, or stopped. */
  queue(index: number, isEnabled: boolean, setup: Setup): void {
    const words = this.#queues[index];
    if (words === undefined || this.#isGone) return;
    words.enabled = Number(isEnabled);
    words.size = setup.size;
    words["descriptor low"] = low(setup.descriptorAddress);
    words["descriptor high"] = high(setup.descriptorAddress);
    words["driver low"] = low(setup.driverAddress);
    words["driver high"] = high(setup.driverAddress);
    words["device low"] = low(setup.deviceAddress);
    words["device high"] = high(setup.deviceAddress);
  }

  [Symbol.dispose](): void {
    if (this.#isGone) return;
    this.#isGone = true;
    queuesLeft += this.#queues.length;
    for (const group of [this.#device, ...this.#queues]) retire(group);
  }
}

/** What a driver side waits for. */
export class RequestState {
  readonly #words: InstanceType<typeof RequestWords> = new RequestWords(STATE, "requests");

  /** How many are open, and the oldest, by its number in the table of messages and its time on the clock of the machine. */
  open(count: number, oldest?: { kind: number; device: number; sentMs: number }): void {
    this.#words.open = count;
    if (oldest === undefined) return;
    this.#words.kind = oldest.kind;
    this.#words.device = oldest.device;
    this.#words["since ms"] = Math.floor(oldest.sentMs);
  }
}

/** A queue as it was read. */
export interface ReadQueue extends Setup {
  readonly index: number;
  readonly isEnabled: boolean;
}

/** A device as it was read. */
export interface ReadDevice {
  readonly number: number;
  readonly deviceId: number;
  readonly status: number;
  readonly features: readonly number[];
  readonly queueCount: number;
  /** Those that the file tells of. */
  readonly queues: readonly ReadQueue[];
}

/** The requests of a process as they were read. */
export interface ReadRequests {
  readonly open: number;
  readonly kind: number;
  readonly device: number;
  readonly sinceMs: number;
}

/** What the groups of a file say that are state. */
export function readState(
  groups: readonly { kind: string; name: string; counters: readonly Named[] }[],
): { devices: ReadDevice[]; requests: ReadRequests[] } {
  const states = groups.filter(({ kind }) => kind === STATE).map(({ name, counters }) => {
    // A name that is not there counts 0, whoever wrote the file.
    const values = new Map(counters.map(({ name, value }) => [name, value]));
    return { name, at: (of: string) => values.get(of) ?? 0 };
  });
  const address = (at: (of: string) => number, of: string) =>
    at(`${of} low`) + 2 ** 32 * at(`${of} high`);
  const devices = states.flatMap(({ name, at }): ReadDevice[] => {
    const number = /^device (\d+)$/.exec(name)?.[1];
    if (number === undefined) return [];
    const queues = states.flatMap(({ name: other, at }): ReadQueue[] => {
      const index = other.startsWith(`${name} queue `) ? Number(other.slice(name.length + 7)) : NaN;
      if (!Number.isInteger(index)) return [];
      return [{
        index,
        isEnabled: at("enabled") !== 0,
        size: at("size"),
        descriptorAddress: address(at, "descriptor"),
        driverAddress: address(at, "driver"),
        deviceAddress: address(at, "device"),
      }];
    });
    const features = [at("features 0"), at("features 1")];
    const [status, deviceId, queueCount] = [at("status"), at("device id"), at("queues")];
    return [{ number: Number(number), deviceId, status, features, queueCount, queues }];
  });
  const requests = states.filter(({ name }) => name === "requests").map(({ at }) => ({
    open: at("open"),
    kind: at("kind"),
    device: at("device"),
    sinceMs: at("since ms"),
  }));
  return { devices, requests };
}

interface Named {
  readonly name: string;
  readonly value: number;
}
