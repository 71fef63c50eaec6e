/**
 * Direct mode: where guests' memory lies in this machine's RAM; and rings for the device where it cannot work on the guest's own
 * (direct.ts), in huge pages of this machine, one for each device number.
 *
 * A huge page is one piece of RAM, so rings in it lie in one piece too, and the device side that sees this
 * machine's RAM finds them by their physical address like any buffer. A vmsg device side is told once, for
 * each device number, that bus addresses are addresses of its `--memory` as they are.
 *
 * At the end the other machine may be writing still, if it was not asked to stop: then nothing is let go before its
 * lease has run out, which nobody renews any more.
 */

import type { Bus } from "../bus/bus.ts";
import { allocateHugePages, HUGE_PAGE_SIZE, type HugePages } from "../linux/huge_pages.ts";
import { physicalRuns } from "../linux/page_map.ts";
import { holdPins } from "../linux/pin_holder.ts";
import { startProgramsLater } from "../linux/programs.ts";
import { MEMORY_WINDOW } from "../message/message.ts";
import type { Log } from "../observe/log.ts";
import type { PeerListener } from "../transport/driver_side.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import { VmsgError } from "../linux/errors.ts";
import type { DeviceQueue } from "../virtio/queue/mod.ts";
import { tellRegion } from "./descriptors.ts";
import { divide, type RingPart } from "./division.ts";
import type { ForwardingPlace, OpenTerms } from "./forwarding.ts";
import { PhysicalMap } from "./physical_map.ts";
import { SILENCE_MS, waitForSilence } from "./silence.ts";
import type { SharedRegion } from "./sharing.ts";
import { TranslatedQueue } from "./translated_queue.ts";

/** What pins, and what keeps it so when we are killed. */
export type PagesBus = Pick<Bus, "pin" | "pinHandles" | "description">;

/** Where huge pages, places, silence and who outlives us come from; the kernel, except in tests. */
export interface PagesMemory {
  /** As {@link allocateHugePages}. */
  readonly allocate: typeof allocateHugePages;
  /** As {@link physicalRuns}. */
  readonly locate: typeof physicalRuns;
  /** As {@link waitForSilence}. */
  readonly waitForSilence: typeof waitForSilence;
  /** As {@link holdPins}. */
  readonly hold: (...args: Parameters<typeof holdPins>) => Disposable | undefined;
}

const OF_THE_KERNEL: PagesMemory = {
  allocate: allocateHugePages,
  locate: physicalRuns,
  waitForSilence,
  hold: holdPins,
};

/** See the head of this file. */
export class Pages implements ForwardingPlace, PeerListener, Disposable {
  /** Where the guests' memory lies. */
  readonly physical: PhysicalMap;
  readonly #stack: DisposableStack;
  readonly #pages: readonly HugePages[];
  readonly #bus: PagesBus;
  #holder: Disposable | undefined;
  #holderTried = false;

  /**
   * Takes the huge pages.
   *
   * @param deviceCount how many device numbers there are
   * @param pinLimit how many bytes of guests' memory may be pinned
   * @throws VmsgError HUGE_PAGES if there are none
   */
  constructor(
    bus: PagesBus,
    deviceCount: number,
    readonly log: Log,
    readonly memory: PagesMemory = OF_THE_KERNEL,
    pinLimit?: number,
  ) {
    using stack = new DisposableStack();
    // A holder of pins.
    startProgramsLater();
    this.#bus = bus;
    this.physical = new PhysicalMap(bus, memory.locate, pinLimit);
    this.#pages = Array.from({ length: deviceCount }, () => {
      const page = stack.use(memory.allocate(HUGE_PAGE_SIZE));
      const pin = bus.pin(page.mapping.address, page.mapping.size);
      if (pin !== undefined) stack.use(pin);
      return page;
    });
    this.#stack = stack.move();
  }

  /** Tells a vmsg device side how addresses are meant; another takes them so anyway. */
  announce(device: RemoteDevice): Promise<void> {
    // Of no length: all of its `--memory`.
    const { mapping: memory } = this.#pages[0]!;
    return tellRegion(device, {
      memory,
      offset: 0,
      at: 0,
      size: 0,
      from: MEMORY_WINDOW,
      fileOffset: 0,
      advice: "the device side does not see this machine's memory: give vmsg device " +
        "--memory pci=ADDRESS,at=ADDRESS, or both sides --confined",
    });
  }

  /** @throws VmsgError HUGE_PAGES if there are more rings than pages in a huge one */
  divide(
    _device: RemoteDevice,
    position: number,
    queues: readonly number[],
  ): ReadonlyMap<number, RingPart> {
    const { mapping, runs } = this.#pages[position]!;
    const share = { memory: mapping, offset: 0, size: mapping.size, at: runs[0]!.physical };
    // Only rings lie here, no buffers, so all take the same.
    const parts = divide(share, queues, undefined, 0);
    for (const { size } of parts.values()) {
      if (size > 0) continue;
      throw new VmsgError("HUGE_PAGES", `${queues.length} queues do not fit into a huge page`);
    }
    return parts;
  }

  open(queue: DeviceQueue, part: RingPart, terms: OpenTerms): TranslatedQueue {
    return new TranslatedQueue(queue, this.physical, part, terms);
  }

  /** Pins a region of a guest's, which rings may use from here on, and says where it lies. */
  addRegion(region: SharedRegion): void {
    const before = this.physical.runsOf(region);
    this.physical.add(region);
    if (before.length > 0) return;
    const { length } = this.physical.runsOf(region);
    const { at, size } = region;
    this.log.info(
      `${size} bytes of the guest's memory at 0x${at.toString(16)} lie in ` +
        `${length} ${
          length === 1 ? "piece" : "pieces"
        } and are pinned (${this.physical.pinned} in all)`,
    );
    this.#hold();
  }

  removeRegion(region: SharedRegion): void {
    this.physical.remove(region);
  }

  /** From the first guest on, somebody holds what is pinned if we are killed. */
  #hold(): void {
    if (this.#holderTried) return;
    this.#holderTried = true;
    this.#holder = this.memory.hold(this.#bus.pinHandles, SILENCE_MS);
    if (this.#holder !== undefined) return;
    this.log.warn(
      "no /bin/sh: if this process is killed, the device side may write for a moment to memory that " +
        "others get",
    );
  }

  /** A device side is there, which knows of no memory yet. */
  ready(): void {
    this.physical.trust();
  }

  /** Whoever served a driver says what the device side may still touch. */
  lost(): void {}

  doubt(): void {
    this.physical.doubt();
  }

  /** Gives the huge pages back, when the device side touches nothing any more. */
  [Symbol.dispose](): void {
    if (this.physical.inDoubt) this.memory.waitForSilence();
    this.physical[Symbol.dispose]();
    this.#stack.dispose();
    this.#holder?.[Symbol.dispose]();
    this.#holder = undefined;
  }
}
