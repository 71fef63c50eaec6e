/**
 * The control queue from the driver's side (VIRTIO 1.2, 5.1.6.5): one command at a time, and what became of it.
 *
 *     command page   0 u8 class, 1 u8 command, 2 u16 data      behind it: u8 ack, which the device writes
 */

import type { Deferred, Reactor } from "../../linux/reactor.ts";
import { PAGE_SIZE } from "../../linux/mapping.ts";
import type { QueueSetup } from "../../virtio/device.ts";
import type { Place } from "../../virtio/place.ts";
import { type DriverRing, openDriverRing, type RingTerms } from "../../virtio/queue/mod.ts";
import type { WantedRing } from "../wanted.ts";

const ENTRIES = 4;
const [CLASS_MQ, VQ_PAIRS_SET] = [4, 0];
const COMMAND_SIZE = 4;
const [DONE, UNSET] = [0, 0xff];

/** A page for the ring, and one for the command. */
export const COMMANDS_SIZE: number = 2 * PAGE_SIZE;

/** See the head of this file. */
export class DriverCommands {
  #queue: DriverRing | undefined;
  #outcome: Deferred<boolean> | undefined;
  readonly #view: DataView;

  /** @param available tells the device of a command */
  constructor(
    readonly reactor: Reactor,
    readonly place: Place,
    readonly available: (queue: number) => void,
  ) {
    this.#view = new DataView(place.memory.buffer, place.offset + PAGE_SIZE, COMMAND_SIZE + 1);
  }

  /** Its ring, as wanted of a device whose control queue is this one. */
  ring(index: number, terms: RingTerms): WantedRing {
    return {
      index,
      setup: () => this.#makeQueue(terms),
      stopped: () => {},
      call: () => this.#used(),
      fail: () => {},
    };
  }

  #makeQueue(terms: RingTerms): QueueSetup {
    this.lost();
    // Its table would be behind the ring's page.
    const queue = openDriverRing({ place: this.place, size: ENTRIES, ...terms, indirect: false });
    this.#queue = queue;
    const { size, descriptorAddress, driverAddress, deviceAddress } = queue;
    return { size, descriptorAddress, driverAddress, deviceAddress, base: 0 };
  }

  #used(): void {
    const queue = this.#queue;
    if (queue === undefined || this.#outcome === undefined) return;
    if (queue.nextUsed()) this.#end(this.#view.getUint8(COMMAND_SIZE) === DONE);
    else if (queue.broken !== undefined) this.#end(false);
  }

  #end(done: boolean): void {
    this.#outcome?.resolve(done);
    this.#outcome = undefined;
  }

  /** The device is gone, and with it what it was asked. */
  lost(): void {
    this.#end(false);
  }

  /** Has frames received on so many pairs; false if the device refuses, or is gone. */
  async setPairs(queue: number, count: number): Promise<boolean> {
    this.#view.setUint8(0, CLASS_MQ);
    this.#view.setUint8(1, VQ_PAIRS_SET);
    this.#view.setUint16(2, count, true);
    this.#view.setUint8(COMMAND_SIZE, UNSET);
    const at = this.place.at + PAGE_SIZE;
    const addresses = Float64Array.of(at, at + COMMAND_SIZE);
    const outcome = this.#outcome = this.reactor.defer<boolean>();
    const ring = this.#queue!;
    ring.add(addresses, Uint32Array.of(COMMAND_SIZE, 1), 1, 1, 0);
    ring.wantCalls();
    if (ring.publish()) this.available(queue);
    return await outcome.promise;
  }
}
