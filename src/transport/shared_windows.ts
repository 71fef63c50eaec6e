/**
 * Memory that a kernel shows, window by window, to all devices of its bus (bus/bus.ts, KernelBus). The bus maps and unmaps it;
 * here it is put where each device finds it, and taken away again.
 */

import { linuxErrno } from "../linux/errors.ts";
import type { MemoryRegion } from "../memory/mod.ts";
import type { DeviceContext } from "./device_context.ts";
import type { DeviceSlot } from "./device_slot.ts";
import type { SlotMemory } from "./slot_memory.ts";

const ENOMEM = linuxErrno("ENOMEM");

/** See the head of this file. */
export class SharedWindows {
  readonly #windows = new Set<MemoryRegion>();
  /** Of all, in bytes. */
  #size = 0;

  constructor(readonly owner: Pick<DeviceContext, "quota" | "complain">) {}

  /** Shows a window to these devices, which are all. @returns 0, or an errno, and nothing has changed */
  add(window: MemoryRegion, slots: readonly DeviceSlot[]): number {
    const { quota, complain } = this.owner;
    // Their number is the bus's to limit: none of them is a file.
    const refusal = quota.refusal([this.#size + window.size], [window.size]);
    if (refusal !== undefined) {
      complain(`the kernel is refused ${refusal} (--memory-limit)`);
      return ENOMEM;
    }
    const shown: SlotMemory[] = [];
    for (const { tables } of slots) {
      const result = tables.lend(window);
      if (result !== 0) {
        for (const one of shown) one.drop(one.table(window.at)!);
        return result;
      }
      shown.push(tables);
    }
    quota.mapped(window.size);
    this.#size += window.size;
    this.#windows.add(window);
    return 0;
  }

  /** One more device is there. */
  showTo({ tables }: DeviceSlot): void {
    for (const window of this.#windows) tables.lend(window);
  }

  /** Takes a window from all devices; `done` is called when none looks at it any more. */
  remove(window: MemoryRegion, slots: readonly DeviceSlot[], done: () => void): void {
    this.#windows.delete(window);
    let waiting = 1;
    const gone = () => {
      if (--waiting > 0) return;
      this.owner.quota.unmapped(window.size);
      this.#size -= window.size;
      done();
    };
    for (const slot of slots) {
      waiting++;
      slot.takeBack(window, gone);
    }
    gone();
  }
}
