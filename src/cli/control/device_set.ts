/**
 * The devices of a device side: those it begins with, and those that come and go while it runs.
 *
 * What is asked is done one after the other; a device that is slow to go makes who asks wait, and nobody else. A device
 * that cannot be opened leaves nothing behind. When a device is gone its number rests (transport/arrivals.ts); who
 * wants just that one waits for it.
 */

import { checkDeviceNumber } from "../../bus/bus.ts";
import { VmsgError } from "../../linux/errors.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import type { DeviceSide } from "../../transport/device_side.ts";
import { MAX_DEVICES, openDevice, parseDevice } from "../device_option.ts";
import type { DeviceContext, OpenDevice } from "../device_kinds/device_kind.ts";
import { vhostUserKind } from "../device_kinds/vhost_user.ts";
import type { Chosen } from "../kinds.ts";
import { Lifetime } from "../lifetime.ts";
import type { ControlRequest } from "./request.ts";

/** How long a disk that another process has is tried, and a number that rests is waited for. */
const PATIENCE_MS = 3000;
const LOOK_MS = 50;

/** A device as `list` shows it. */
export interface DeviceReport {
  readonly number: number;
  readonly kind: string;
  readonly description: string;
  /** The device status that its driver has set. */
  readonly status: number;
  readonly counters: object;
}

interface Entry {
  readonly kind: string;
  readonly device: OpenDevice;
  readonly lifetime: Lifetime;
  /** The side has it, and disposes of it. */
  isShown: boolean;
}

/** See the head of this file. */
export class DeviceSet implements Disposable {
  readonly #entries = new Map<number, Entry>();
  /** What was asked last. */
  #last: Promise<unknown> = Promise.resolve();

  /** @param windows memory that a driver side has which cannot announce any */
  constructor(
    readonly side: DeviceSide,
    readonly context: Omit<DeviceContext, "number" | "mayBlock">,
    readonly windows: readonly MemoryRegion[],
  ) {}

  /** Opens a device; {@link begin} shows it. @param mayBlock nobody is served yet */
  open(number: number, wanted: Chosen, mayBlock: boolean): Entry {
    this.#assertServable(number, wanted);
    const lifetime = new Lifetime();
    try {
      const context = { ...this.context, number, mayBlock };
      const device = lifetime.during(() => openDevice(wanted, context));
      const entry = { kind: wanted.kind, device, lifetime, isShown: false };
      this.#entries.set(number, entry);
      return entry;
    } catch (error) {
      lifetime[Symbol.dispose]();
      throw error;
    }
  }

  /** What a kernel that shows its memory itself cannot be given. */
  #assertServable(number: number, { kind }: Chosen): void {
    const { bus } = this.side.options;
    checkDeviceNumber(bus, number);
    if (bus.kernel === undefined) return;
    // The node would stay open in another process, and with it the kernel's devices.
    if (kind === vhostUserKind.name) {
      const what = "a vhost-user back end cannot be given the kernel's memory";
      throw new VmsgError("WRONG_KIND", `${bus.description}: ${what}: use a device of vmsg's own`);
    }
  }

  /** Shows a device to the driver side, unless it is gone. */
  #show(number: number, entry: Entry): void {
    if (this.#entries.get(number) !== entry) return;
    // The side owns it from here on, also if it fails.
    entry.isShown = true;
    try {
      entry.lifetime.during(() => this.side.add(number, entry.device.model, this.windows));
    } catch (error) {
      this.#forget(number, entry);
      throw error;
    }
  }

  #forget(number: number, { device, lifetime, isShown }: Entry): void {
    this.#entries.delete(number);
    if (!isShown) device.model[Symbol.dispose]();
    lifetime[Symbol.dispose]();
  }

  /** Shows all devices when it is known what they are, then calls `then`: a driver side finds all of them, or none. */
  begin(then: () => void): void {
    const entries = [...this.#entries];
    const show = () => {
      for (const [number, entry] of entries) this.#show(number, entry);
      then();
    };
    if (entries.every(([, { device }]) => device.ready === undefined)) return show();
    this.context.reactor.spawn(async () => {
      for (const [number, entry] of entries) await this.#isReady(number, entry, Infinity);
      show();
    });
  }

  /** Does what was asked, after what was asked before. @throws VmsgError */
  ask(request: ControlRequest): Promise<unknown> {
    const answer = this.#last.then(() => this.#answer(request));
    this.#last = answer.catch(() => {});
    return answer;
  }

  async #answer(request: ControlRequest): Promise<unknown> {
    switch (request.verb) {
      case "add":
        return await this.#addLater(request.device, request.number);
      case "remove":
        return await this.#remove(request.number);
      case "link":
        return this.#need(request.number, "link", "network card")(request.up);
      case "resize":
        return this.#need(request.number, "refresh", "disk")();
      case "list":
        return this.list();
    }
  }

  async #addLater(text: string, wanted: number | undefined): Promise<object> {
    if (this.#entries.size >= MAX_DEVICES) {
      throw new VmsgError("TOO_MANY", `there are ${MAX_DEVICES} devices: remove one first`);
    }
    const number = wanted ?? this.side.freeNumber((number) => this.#entries.has(number));
    if (this.#entries.has(number)) {
      throw new VmsgError(
        "NUMBER_TAKEN",
        `device number ${number} is taken: remove it, or take another`,
      );
    }
    const chosen = parseDevice(text, number);
    const { log, reactor } = this.context;
    const endMs = reactor.now() + PATIENCE_MS;
    while (this.side.restMs(number) > 0) {
      if (reactor.now() > endMs) {
        throw new VmsgError(
          "NUMBER_RESTS",
          `the driver side was not told yet that the last device ${number} is gone: take another number`,
        );
      }
      await reactor.sleep(LOOK_MS);
    }
    const entry = await this.#openUntil(endMs, () => this.open(number, chosen, false));
    const { description } = entry.device;
    if (!await this.#isReady(number, entry, endMs)) {
      this.#forget(number, entry);
      throw new VmsgError("NOBODY_THERE", `${description}: nobody is there`);
    }
    this.#show(number, entry);
    log.info(`device ${number} was added: ${description}`);
    return { number, description };
  }

  /** Others may be about to let go of a disk. */
  async #openUntil(endMs: number, open: () => Entry): Promise<Entry> {
    const { reactor } = this.context;
    for (;;) {
      try {
        return open();
      } catch (error) {
        const isInUse = error instanceof VmsgError && error.code === "DISK_IN_USE";
        if (!isInUse || reactor.now() > endMs) throw error;
      }
      await reactor.sleep(LOOK_MS);
    }
  }

  /** Waits until it is known what it is; true if that is so in time, and it was not removed. */
  async #isReady(number: number, entry: Entry, endMs: number): Promise<boolean> {
    const { reactor } = this.context;
    const { ready } = entry.device;
    let isReady = ready === undefined;
    ready?.then(() => isReady = true);
    const isHere = () => this.#entries.get(number) === entry;
    while (!isReady && isHere() && reactor.now() < endMs) await reactor.sleep(LOOK_MS);
    return isReady && isHere();
  }

  async #remove(number: number): Promise<void> {
    const entry = this.#entry(number);
    if (entry.isShown) await this.side.remove(number);
    this.#forget(number, entry);
    this.context.log.info(`device ${number} was removed: ${entry.device.description}`);
  }

  #entry(number: number): Entry {
    const entry = this.#entries.get(number);
    if (entry === undefined) throw new VmsgError("NO_DEVICE", `there is no device ${number}`);
    return entry;
  }

  #need<What extends "link" | "refresh">(number: number, what: What, kind: string) {
    const can = this.#entry(number).device[what];
    if (can === undefined) throw new VmsgError("WRONG_KIND", `device ${number} is no ${kind}`);
    return can as NonNullable<OpenDevice[What]>;
  }

  /** All devices, by number. */
  list(): DeviceReport[] {
    const entries = [...this.#entries].sort(([a], [b]) => a - b);
    return entries.map(([number, { kind, device: { description, counters = {} }, isShown }]) => ({
      number,
      kind,
      description,
      status: isShown ? this.side.status(number) : 0,
      counters,
    }));
  }

  [Symbol.dispose](): void {
    for (const { device, isShown } of this.#entries.values()) {
      if (!isShown) device.model[Symbol.dispose]();
    }
  }
}
