/**
 * Where translated queues lie: one huge page of this machine for each device number.
 *
 * A huge page is one piece of RAM, so rings in it lie in one piece too, and the device side that sees this
 * machine's RAM finds them by their physical address like any buffer. A vmsg device side is told once, for
 * each device number, that bus addresses are addresses of its `--memory` as they are.
 */

import type { Bus } from "../../bus/bus.ts";
import { allocateHugePages, HUGE_PAGE_SIZE, type HugePages } from "../../linux/huge_pages.ts";
import { MEMORY_WINDOW } from "../../message/message.ts";
import { type RemoteDevice, RequestRefused } from "../../transport/driver_side.ts";
import { VmsgError } from "../../linux/errors.ts";
import type { ShadowPlace } from "../confined/shadow_queue.ts";
import { PhysicalMap } from "./physical_map.ts";

const PART_ALIGNMENT = 4096;

/** See the head of this file. */
export class RingPages implements Disposable {
  /** Where the guests' memory lies. */
  readonly physical: PhysicalMap;
  readonly #stack: DisposableStack;
  readonly #pages: readonly HugePages[];

  /**
   * Takes the huge pages.
   *
   * @param deviceCount how many device numbers there are
   * @throws VmsgError HUGE_PAGES if there are none
   */
  constructor(bus: Bus, deviceCount: number) {
    using stack = new DisposableStack();
    this.physical = new PhysicalMap(bus);
    this.#pages = Array.from({ length: deviceCount }, () => {
      const page = stack.use(allocateHugePages(HUGE_PAGE_SIZE));
      const pin = bus.pin(page.mapping.address, page.mapping.size);
      if (pin !== undefined) stack.use(pin);
      return page;
    });
    this.#stack = stack.move();
  }

  /** Tells a vmsg device side how addresses are meant; another takes them so anyway. */
  async announce(device: RemoteDevice): Promise<void> {
    if (device.side.peer !== "vmsg") return;
    try {
      await device.addSharedMemory(MEMORY_WINDOW, 0, 0, 0);
    } catch (error) {
      if (!(error instanceof RequestRefused)) throw error;
      throw new VmsgError(
        "NO_MEMORY",
        `${error.message}: the device side does not see this machine's memory: give vmsg device ` +
          "--memory pci=ADDRESS,at=ADDRESS, or both sides --confined",
        { cause: error },
      );
    }
  }

  /** The part of one queue. */
  part(position: number, queueCount: number, queue: number): ShadowPlace {
    const { mapping, runs } = this.#pages[position];
    const size = Math.floor(mapping.size / queueCount / PART_ALIGNMENT) * PART_ALIGNMENT;
    return { memory: mapping, busAddress: runs[0].physical, offset: queue * size, size };
  }

  /** Gives the huge pages back; the device side must have let go before. */
  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}
