/**
 * `vmsg bridge`: the devices of one bus, each offered on another one.
 *
 * Theory of operation. On bus A this is the driver side, on bus B the device side; a device of A is a {@link CarriedDevice} of B
 * for as long as it is what it was:
 *
 *     unknown --it is there, and says what it is--> carried --removed on A, or another device has come--> unknown
 *                                                   carried --A is lost--> waiting --the same device is there--> carried
 *
 * One that is removed on A is removed on B. While A is only lost, as its process is started anew, B keeps the device and its driver
 * waits; what comes must have all that was offered (description.ts), or the driver of B is told that its device is gone and
 * that another has come.
 *
 * Without a list of numbers each device is carried that A has, under its own number, also one that comes later. B is opened when it is
 * known what there is: a driver side finds all of the devices, or none.
 */

import { VmsgError } from "../../linux/errors.ts";
import { checkDeviceNumber } from "../../bus/bus.ts";
import type { Reactor } from "../../linux/reactor.ts";
import type { MemoryRegion } from "../../memory/mod.ts";
import { limitedLog, type Log } from "../../observe/log.ts";
import type { DeviceSide } from "../../transport/device_side.ts";
import { listDevices } from "../../transport/discovery.ts";
import type { DriverSide, PeerListener } from "../../transport/driver_side.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { PeerLost } from "../../transport/requests.ts";
import { CarriedDevice } from "./carried_device.ts";
import { type ConfigSizeOf, describe, type Description, mayStandIn } from "./description.ts";
import type { Shares } from "./shares.ts";

/** Devices of A that are asked for at first. */
const MAX_KNOWN = 1024;

/** What one is made of. */
export interface CarrierOptions {
  readonly reactor: Reactor;
  /** Of bus A. */
  readonly from: DriverSide;
  /** Of bus B. */
  readonly to: DeviceSide;
  readonly log: Log;
  /** Which devices are carried, and their numbers on B; all of them, under the same, unless given. */
  readonly numbers: ReadonlyMap<number, number> | undefined;
  /** Memory that a driver side of B has which cannot announce any. */
  readonly windows: readonly MemoryRegion[];
  readonly configSizeOf: ConfigSizeOf;
  /** How devices get to see the memory of B's driver side, and how many may. */
  readonly shares: Shares;
}

/** A device number of A. */
interface Place {
  readonly device: RemoteDevice;
  /** On B. */
  readonly as: number;
  /** What is done about it, one thing after the other. */
  last: Promise<void>;
  /** The look that has not begun yet; one is enough, however much happens until then. */
  next: Promise<void> | undefined;
  /** Among those that are carried. */
  position: number | undefined;
  carried: { readonly model: CarriedDevice; readonly description: Description } | undefined;
  /** In which of its sessions the device was looked at. */
  seen: number | undefined;
}

/** See the head of this file. */
export class Carrier implements PeerListener, Disposable {
  readonly #places = new Map<number, Place>();
  #isOpen = false;
  #isOver = false;
  readonly #positions = new Set<number>();
  /** Both can be had of us as often as the devices' side likes. */
  readonly #tell: (line: string) => void;
  readonly #complain: (line: string) => void;

  /** Nothing is carried before A's device side is there. @throws VmsgError NUMBER_TAKEN for one that B cannot have */
  constructor(readonly options: CarrierOptions) {
    const { from, to, numbers, log, reactor } = options;
    this.#tell = limitedLog(log.info, reactor);
    this.#complain = limitedLog(log.warn, reactor);
    for (const [number, as] of numbers ?? []) {
      checkDeviceNumber(to.options.bus, as);
      this.#placeOf(number);
    }
    if (numbers === undefined) from.onDevice = (number) => this.#look(this.#placeOf(number));
    from.listen(this);
  }

  ready(): void {
    this.options.reactor.spawn(async () => {
      if (this.options.numbers === undefined) await this.#discover();
      await Promise.all([...this.#places.values()].map((place) => this.#look(place)));
      this.#open();
    });
  }

  lost(): void {}

  #open(): void {
    if (this.#isOpen || this.#isOver) return;
    this.#isOpen = true;
    const { to, log } = this.options;
    if (![...this.#places.values()].some(({ carried }) => carried !== undefined)) {
      log.info(`${this.#bus}: there is no device yet`);
    }
    to.open();
  }

  get #bus(): string {
    return this.options.from.link.bus.description;
  }

  async #discover(): Promise<void> {
    const { from } = this.options;
    try {
      // A dialect that has no word for it has one device.
      const numbers = await listDevices(from, MAX_KNOWN) ?? [0];
      for (const number of numbers) this.#placeOf(number);
    } catch (error) {
      if (!(error instanceof PeerLost)) throw error;
      if (from.isReady) this.options.log.warn(`${this.#bus}: ${error.message}: device 0 is tried`);
      this.#placeOf(0);
    }
  }

  #placeOf(number: number): Place {
    const { from, numbers } = this.options;
    const known = this.#places.get(number);
    if (known !== undefined) return known;
    const device = from.device(number);
    const place: Place = {
      device,
      as: numbers?.get(number) ?? number,
      last: Promise.resolve(),
      next: undefined,
      position: undefined,
      carried: undefined,
      seen: undefined,
    };
    this.#places.set(number, place);
    device.listen({
      ready: () => this.#look(place),
      lost: () => {
        place.carried?.model.deviceLost();
        this.#look(place);
      },
    });
    return place;
  }

  /** Has a device looked at, after what is under way; resolves when that is done. */
  #look(place: Place): Promise<void> {
    if (place.next !== undefined) return place.next;
    place.last = place.next = place.last.then(() => {
      place.next = undefined;
      return this.#lookAt(place);
    }).catch((error) => {
      if (error instanceof PeerLost || this.#isOver) return;
      if (!(error instanceof VmsgError)) throw error;
      this.#complain(`device ${place.device.number} is not carried: ${error.message}`);
    });
    // It has the reactor wait for it, and end with what is no failure of a peer's.
    const { last } = place;
    this.options.reactor.spawn(() => last);
    return last;
  }

  /** A device's position among those that are carried; undefined if there are too many. */
  #positionOf(place: Place): number | undefined {
    const { limit } = this.options.shares;
    for (let free = 0; place.position === undefined && free < limit; free++) {
      if (this.#positions.has(free)) continue;
      this.#positions.add(free);
      place.position = free;
    }
    return place.position;
  }

  async #lookAt(place: Place): Promise<void> {
    const { device, as } = place;
    if (this.#isOver) return;
    if (!device.isReady) {
      if (device.isRemoved || device.isAbsent) await this.#remove(place);
      return;
    }
    const { session } = device;
    if (place.seen === session) return;
    const { shares, configSizeOf, reactor, to, log, windows } = this.options;
    checkDeviceNumber(to.options.bus, as);
    const position = this.#positionOf(place);
    if (position === undefined) {
      const what = `device ${device.number} is not carried: at most ${shares.limit} are`;
      return this.#complain(`${what} (--limit)`);
    }
    const share = shares.of(device, position);
    const description = await describe(device, share.sharing, configSizeOf);
    device.checkSession(session);
    place.seen = session;
    if (place.carried !== undefined) {
      if (mayStandIn(description, place.carried.description)) {
        return await place.carried.model.deviceReady();
      }
      this.#complain(`device ${device.number} is another one than before`);
      await this.#takeAway(place);
    }
    while (to.restMs(as) > 0) await reactor.sleep(to.restMs(as));
    if (this.#isOver) return;
    device.checkSession(session);
    const model = new CarriedDevice({ reactor, device, share, description, log });
    place.carried = { model, description };
    to.add(as, model, windows);
    this.#tell(
      `device ${device.number} (device id ${description.deviceId}) is carried${
        as === device.number ? "" : ` as ${as}`
      }`,
    );
    await model.deviceReady();
  }

  async #remove(place: Place): Promise<void> {
    place.seen = undefined;
    await this.#takeAway(place);
    if (place.position === undefined) return;
    this.#positions.delete(place.position);
    place.position = undefined;
    // There may be one that had none.
    for (const other of this.#places.values()) {
      if (other.position === undefined && other.device.isReady) this.#look(other);
    }
  }

  async #takeAway(place: Place): Promise<void> {
    if (place.carried === undefined) return;
    place.carried = undefined;
    this.#tell(`device ${place.device.number} is gone`);
    await this.options.to.remove(place.as);
  }

  /** Looks at nothing any more; the devices are the device side's to end. */
  [Symbol.dispose](): void {
    this.#isOver = true;
    this.options.from.onDevice = undefined;
  }
}
