/**
 * What a process knows at the moment, in groups of kind {@link STATE} of its file of counters, so that it can be read
 * while the process runs, and of one that crashed: the status, features and queues of its devices, where the memory is
 * that their rings lie in, when the driver side was heard, and the request that has waited longest.
 *
 * Only what changes at a status write, a queue's set-up, a notification, a heartbeat or a request is here; nothing is
 * written per packet. Times are CLOCK_MONOTONIC's: they mean something until the machine is started anew. A
 * counter's high word goes forward only, therefore 64 bits that may become less are two counters.
 */

import type { Clock } from "../linux/clock.ts";
import { fileIdentity } from "../linux/fd.ts";
import { fileAt } from "../linux/process_files.ts";
import type { MemoryRegion } from "../memory/mod.ts";
import { type Counters, counterShape, countingAsNow, noteCounters, retire } from "./counters.ts";

/** The kind of these groups: they are no counters, and are not shown as such. */
export const STATE = "state";

/** Queues of which a process tells, so that the file has room for what counts. */
const MAX_QUEUES = 32;
let queuesLeft = MAX_QUEUES;

/** The same of pieces of memory: a front end may have 509, QEMU has two to eight. */
const MAX_REGIONS = 32;
let regionsLeft = MAX_REGIONS;

const DeviceWords = counterShape(
  "device id",
  "status",
  "features 0",
  "features 1",
  "queues",
  "since ms",
  "refused",
  "leaves place",
);
const QueueWords = counterShape(
  "enabled",
  "size",
  "descriptor low",
  "descriptor high",
  "driver low",
  "driver high",
  "device low",
  "device high",
  "since ms",
  "kicks",
  "calls",
  "unseen",
);
const REGION_NUMBERS = ["at", "size", "address", "offset", "file system", "file"] as const;
const RegionWords = counterShape(
  ...REGION_NUMBERS.flatMap((name) => [`${name} low`, `${name} high`] as const),
);
const PeerWords = counterShape("state", "since ms", "heard ms");
const BridgeWords = counterShape(
  ...["state", "since ms", "sessions", "faults", "epoch", "is published", "published"] as const,
  "awake",
  ...["windows", "bytes low", "bytes high", "refused", "open", "waits since ms"] as const,
  ...["tx prod", "tx cons", "rx prod", "rx cons"] as const,
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

/** Where a device is: in this process, or at the other end of its bus. */
type Where = "here" | "remote";

const nameOf = (number: number, where: Where) =>
  `${where === "remote" ? "remote " : ""}device ${number}`;

/** The state of one device; dispose gives its room back. */
export class DeviceState implements Disposable {
  readonly #device: InstanceType<typeof DeviceWords>;
  /** None of a device that is gone: what was theirs may be another's. */
  #queues: readonly QueueCounters[];
  #isGone = false;

  /**
   * Of a device in reset.
   *
   * @param leavesPlace whether it leaves in a packed ring where it is (virtio/packed/position.ts)
   */
  constructor(
    number: number,
    deviceId: number,
    queueCount: number,
    readonly clock: Clock,
    { where = "here", leavesPlace = true }: { where?: Where; leavesPlace?: boolean } = {},
  ) {
    const count = Math.min(queueCount, queuesLeft);
    queuesLeft -= count;
    const name = nameOf(number, where);
    // It goes with the slot and not with what else was made for the device.
    [this.#device, this.#queues] = noteCounters(undefined, () => [
      new DeviceWords(STATE, name),
      Array.from({ length: count }, (_, n) => new QueueWords(STATE, `${name} queue ${n}`)),
    ]);
    this.#device["device id"] = deviceId;
    this.#device.queues = queueCount;
    this.#device["leaves place"] = Number(leavesPlace);
  }

  /** The status, and the features that the driver has written so far. */
  device(status: number, features: Uint32Array): void {
    if (this.#isGone) return;
    if (this.#device.status !== status) this.#device["since ms"] = Math.floor(this.clock.now());
    this.#device.status = status;
    this.#device["features 0"] = features[0]!;
    this.#device["features 1"] = features[1]!;
    if (status === 0) this.#device.refused = 0;
  }

  /** A queue was not set up as the driver wanted it. */
  refused(): void {
    if (!this.#isGone) this.#device.refused++;
  }

  /** A queue was set up, enabled, or stopped. */
  queue(index: number, isEnabled: boolean, setup: Setup): void {
    const words = this.#queues[index];
    if (words === undefined) return;
    words.enabled = Number(isEnabled);
    words.size = setup.size;
    words["descriptor low"] = low(setup.descriptorAddress);
    words["descriptor high"] = high(setup.descriptorAddress);
    words["driver low"] = low(setup.driverAddress);
    words["driver high"] = high(setup.driverAddress);
    words["device low"] = low(setup.deviceAddress);
    words["device high"] = high(setup.deviceAddress);
    words["since ms"] = Math.floor(this.clock.now());
    if (!isEnabled) words.kicks = words.calls = words.unseen = 0;
  }

  /** The driver said that buffers are available in a queue. */
  kicked(index: number): void {
    const words = this.#queues[index];
    if (words !== undefined) words.kicks++;
  }

  /** The driver was told that buffers were used. */
  called(index: number): void {
    const words = this.#queues[index];
    if (words !== undefined) words.calls++;
  }

  /** From here on kicks and calls may go past this process, or this thread of it. */
  unseen(index: number): void {
    const words = this.#queues[index];
    if (words !== undefined) words.unseen = 1;
  }

  [Symbol.dispose](): void {
    if (this.#isGone) return;
    this.#isGone = true;
    queuesLeft += this.#queues.length;
    for (const group of [this.#device, ...this.#queues]) retire(group);
    this.#queues = [];
  }
}

/** Which memory of the driver side's a device sees. */
export class MemoryState {
  readonly #name: string;
  readonly #counting = countingAsNow();
  readonly #shown: { readonly region: MemoryRegion; readonly words: Counters<string> }[] = [];

  /** Of the device of this number; none so far. */
  constructor(number: number, where: Where = "here") {
    this.#name = `${nameOf(number, where)} memory`;
  }

  /** All there is from now on. What stays where it was costs nothing: a front end may tell of 509, one by one. */
  show(regions: readonly MemoryRegion[]): void {
    const changed = this.#shown.findIndex(({ region }, n) => region !== regions[n]);
    const kept = changed < 0 ? this.#shown.length : changed;
    const gone = this.#shown.splice(kept);
    gone.forEach(({ words }) => retire(words));
    regionsLeft += gone.length;
    const fresh = regions.slice(kept, kept + regionsLeft);
    regionsLeft -= fresh.length;
    fresh.forEach((region, n) => {
      const make = () => regionWords(`${this.#name} ${kept + n}`, region);
      this.#shown.push({ region, words: this.#counting(() => noteCounters(undefined, make)) });
    });
  }
}

/** Files behind regions that are shown: finding one takes longer than a window may take that comes while frames flow. */
const files = new WeakMap<MemoryRegion, { readonly identity: string; readonly offset: number }>();

function fileBehind(region: MemoryRegion, address: number) {
  const known = files.get(region);
  if (known !== undefined) return known;
  const { fd, fileOffset } = region;
  // Memory that came without a file that is open has one all the same, unless it is anonymous.
  const found = fd === undefined
    ? fileAt(address) ?? { identity: "0:0", offset: 0 }
    : { identity: fileIdentity(fd), offset: fileOffset ?? 0 };
  files.set(region, found);
  return found;
}

function regionWords(name: string, region: MemoryRegion) {
  const words = new RegionWords(STATE, name);
  const { at, size, memory, offset } = region;
  const address = Number(memory.address) + offset;
  const behind = fileBehind(region, address);
  const [device, inode] = behind.identity.split(":");
  const numbers = {
    at,
    size,
    address,
    offset: behind.offset,
    "file system": Number(device),
    file: Number(inode),
  };
  for (const name of REGION_NUMBERS) {
    words[`${name} low`] = low(numbers[name]);
    words[`${name} high`] = high(numbers[name]);
  }
  return words;
}

/** The states of transport/peer.ts. */
export const PEER_STATES = ["none", "unknown", "greeted", "vmsg", "foreign"] as const;
/** One of them. */
export type PeerStateName = typeof PEER_STATES[number];

/** What a device side knows of the other end of its bus. */
export class PeerState {
  readonly #words: InstanceType<typeof PeerWords> = new PeerWords(STATE, "driver side");

  constructor(readonly clock: Clock) {}

  /** It came into this state. */
  is(state: PeerStateName): void {
    this.#words.state = PEER_STATES.indexOf(state);
    this.#words["since ms"] = Math.floor(this.clock.now());
  }

  /** It gave a sign of life. */
  heard(): void {
    this.#words["heard ms"] = Math.floor(this.clock.now());
  }
}

/** The states of a kernel's bridge. */
export const BRIDGE_STATES = ["none", "offline", "online"] as const;

/** What a device side knows of the kernel's bridge (bus/bridge.ts), in words that it sets when they change, but for the cursors: once a turn. */
export class BridgeState {
  readonly words: InstanceType<typeof BridgeWords> = new BridgeWords(STATE, "bridge");

  constructor(readonly clock: Clock) {}

  /** It came into this state, or anew into it. */
  is(state: typeof BRIDGE_STATES[number], epoch = 0n): void {
    this.words.state = BRIDGE_STATES.indexOf(state);
    this.words["since ms"] = Math.floor(this.clock.now());
    this.words.epoch = Number(BigInt.asUintN(32, epoch));
    this.words["is published"] = this.words.published = 0;
    this.words.awake = this.words.refused = 0;
  }

  published(count: number): void {
    this.words["is published"] = 1;
    this.words.published = count;
  }

  /** Windows that are mapped, their bytes, requests that wait for their answer and the oldest's time. */
  windows(count: number, bytes: number, open: number, sinceMs: number): void {
    this.words.windows = count;
    this.words["bytes low"] = low(bytes);
    this.words["bytes high"] = high(bytes);
    this.words.open = open;
    this.words["waits since ms"] = Math.floor(sinceMs);
  }
}

/** A kernel's bridge as it was read. */
export interface ReadBridge {
  readonly state: typeof BRIDGE_STATES[number];
  readonly sinceMs: number;
  /** How many there were, and how many the kernel faulted. */
  readonly sessions: number;
  readonly faults: number;
  readonly epoch: number;
  /** Devices; undefined: none were published so far. */
  readonly published: number | undefined;
  /** Devices whose status the kernel has written since. */
  readonly awake: number;
  readonly windows: number;
  readonly bytes: number;
  readonly refused: number;
  /** Requests for windows that are not answered, and since when. */
  readonly open: number;
  readonly waitsSinceMs: number;
  /** The ring to the kernel, as it was when this side last looked, and the one from it. */
  readonly tx: { readonly prod: number; readonly cons: number };
  readonly rx: { readonly prod: number; readonly cons: number };
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
  readonly sinceMs: number;
  /** How often each side notified the other since the queue was set up; undefined where that goes past the process. */
  readonly kicks: number | undefined;
  readonly calls: number | undefined;
}

/** A piece of memory as it was read. */
export interface ReadRegion {
  /** Bus address of the first byte. */
  readonly at: number;
  readonly size: number;
  /** Where it is in the process. */
  readonly address: number;
  /** As fileIdentity says it; "0:0" where no file is known. */
  readonly file: string;
  /** In that file. */
  readonly offset: number;
}

/** A device as it was read. */
export interface ReadDevice {
  readonly number: number;
  readonly deviceId: number;
  readonly status: number;
  readonly features: readonly number[];
  readonly queueCount: number;
  readonly sinceMs: number;
  /** How often a queue was not set up as the driver wanted it, since the reset. */
  readonly refused: number;
  /** In a packed ring: where it is. */
  readonly leavesPlace: boolean;
  /** Those that the file tells of. */
  readonly queues: readonly ReadQueue[];
  readonly memory: readonly ReadRegion[];
}

/** The other end of a device side's bus as it was read. */
export interface ReadPeer {
  readonly state: PeerStateName;
  readonly sinceMs: number;
  /** 0: not yet, or it has no heartbeat. */
  readonly heardMs: number;
}

/** What a process says. */
export interface ReadState {
  readonly devices: readonly ReadDevice[];
  /** What it told devices at the other end. */
  readonly remote: readonly ReadDevice[];
  readonly peers: readonly ReadPeer[];
  readonly requests: readonly ReadRequests[];
  readonly bridges: readonly ReadBridge[];
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
): ReadState {
  const states = groups.filter(({ kind }) => kind === STATE).map(({ name, counters }) => {
    // A name that is not there counts 0, whoever wrote the file.
    const values = new Map(counters.map(({ name, value }) => [name, value]));
    const at = (of: string) => values.get(of) ?? 0;
    return { name, at, wide: (of: string) => at(`${of} low`) + 2 ** 32 * at(`${of} high`) };
  });
  const named = (pattern: RegExp) =>
    states.flatMap((state) => {
      const match = pattern.exec(state.name);
      return match === null ? [] : [{ ...state, number: Number(match[1]) }];
      // One may be where another was before.
    }).sort((a, b) => a.number - b.number);
  const device = ({ name, number, at }: ReturnType<typeof named>[number]) => ({
    number,
    deviceId: at("device id"),
    status: at("status"),
    features: [at("features 0"), at("features 1")],
    queueCount: at("queues"),
    sinceMs: at("since ms"),
    refused: at("refused"),
    leavesPlace: at("leaves place") !== 0,
    queues: named(new RegExp(`^${name} queue (\\d+)$`)).map(({ number, at, wide }) => ({
      index: number,
      isEnabled: at("enabled") !== 0,
      size: at("size"),
      descriptorAddress: wide("descriptor"),
      driverAddress: wide("driver"),
      deviceAddress: wide("device"),
      sinceMs: at("since ms"),
      kicks: at("unseen") !== 0 ? undefined : at("kicks"),
      calls: at("unseen") !== 0 ? undefined : at("calls"),
    })),
    memory: named(new RegExp(`^${name} memory (\\d+)$`)).map(({ wide }) => ({
      at: wide("at"),
      size: wide("size"),
      address: wide("address"),
      file: `${wide("file system")}:${wide("file")}`,
      offset: wide("offset"),
    })),
  });
  const devices = named(/^device (\d+)$/).map(device);
  const remote = named(/^remote device (\d+)$/).map(device);
  const peers = named(/^driver side$/).map(({ at }) => ({
    state: PEER_STATES[at("state")] ?? "unknown",
    sinceMs: at("since ms"),
    heardMs: at("heard ms"),
  }));
  const requests = named(/^requests$/).map(({ at }) => ({
    open: at("open"),
    kind: at("kind"),
    device: at("device"),
    sinceMs: at("since ms"),
  }));
  const ring = (name: string, at: (of: string) => number) => ({
    prod: at(`${name} prod`),
    cons: at(`${name} cons`),
  });
  const bridges = named(/^bridge$/).map(({ at, wide }) => ({
    state: BRIDGE_STATES[at("state")] ?? "none",
    sinceMs: at("since ms"),
    sessions: at("sessions"),
    faults: at("faults"),
    epoch: at("epoch"),
    published: at("is published") !== 0 ? at("published") : undefined,
    awake: at("awake"),
    windows: at("windows"),
    bytes: wide("bytes"),
    refused: at("refused"),
    open: at("open"),
    waitsSinceMs: at("waits since ms"),
    tx: ring("tx", at),
    rx: ring("rx", at),
  }));
  return { devices, remote, peers, requests, bridges };
}

interface Named {
  readonly name: string;
  readonly value: number;
}
