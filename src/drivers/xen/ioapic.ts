/**
 * The interrupt controller for devices that a PVH domain on x86 lacks: an IOAPIC of ours, edges only.
 *
 * The domain programs a redirection entry for each pin, and an interrupt goes to it as a message with what that says
 * (82093AA, 3.2). An edge that comes while its pin is masked is kept until it is not.
 */

import type { IoRange } from "../../xen/ioreq_server.ts";

/** Where IOAPICs are on a PC, and what the tables of acpi.ts say. */
export const IOAPIC_ADDRESS = 0xfec0_0000;
/** As many as everybody has. */
export const IOAPIC_PINS = 24;

const VERSION = 0x11;
/** Of an entry's lower half: vector and delivery mode; the others are levels, and what we are told. */
const MESSAGE_BITS = 0x7ff;
const LOGICAL_DESTINATION = 1 << 11;
const MASKED = 1 << 16;
const MESSAGE_ADDRESS = 0xfee0_0000;

/** Its entries, two words each; what another process needs to go on. */
export type IoapicState = number[];

/** See the head of this file. */
export class Ioapic implements IoRange {
  readonly start = IOAPIC_ADDRESS;
  readonly size = 0x1000;
  #index = 0;
  readonly #waiting = new Set<number>();

  /**
   * @param send gives the domain an interrupt
   * @param keep the entries have changed
   */
  constructor(
    readonly send: (address: number, data: number) => void,
    readonly keep: () => void,
    readonly entries: IoapicState = Array.from({ length: IOAPIC_PINS }, () => [MASKED, 0]).flat(),
  ) {}

  read(offset: number): number {
    if (offset === 0) return this.#index;
    if (offset !== 0x10) return 0;
    if (this.#index === 1) return ((IOAPIC_PINS - 1) << 16) | VERSION;
    return this.entries[this.#index - 0x10] ?? 0;
  }

  write(offset: number, _size: number, value: number): void {
    if (offset === 0) this.#index = value & 0xff;
    const entry = this.#index - 0x10;
    if (offset !== 0x10 || this.entries[entry] === undefined) return;
    this.entries[entry] = value;
    this.keep();
    const pin = entry >> 1;
    if (this.#waiting.delete(pin)) this.raise(pin);
  }

  /** An edge at a pin. */
  raise(pin: number): void {
    const low = this.entries[2 * pin]!;
    if ((low & MASKED) !== 0) {
      this.#waiting.add(pin);
      return;
    }
    const destination = this.entries[2 * pin + 1]! >>> 24;
    const mode = (low & LOGICAL_DESTINATION) !== 0 ? 4 : 0;
    this.send(MESSAGE_ADDRESS + (destination << 12) + mode, low & MESSAGE_BITS);
  }
}
