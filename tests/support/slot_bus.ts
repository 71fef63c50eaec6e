/** A bus whose slots are as large as one likes, between two halves of one process: nothing but arrays. */

import type { Bus, BusListener, Side } from "../../src/bus/bus.ts";
import type { Fd } from "../../src/linux/fd.ts";
import type { Reactor } from "../../src/linux/reactor.ts";

/** One end; it is attached as soon as it is open, and never full. */
export class SlotBus implements Bus {
  readonly description = "slots";
  readonly carriesFds = false;
  readonly noticesPeers = true;
  readonly segment: undefined;
  readonly pinHandles: readonly Fd[] = [];
  readonly silenceHint = "";
  ringPerMessage = false;
  isPaused = false;
  isAttached = false;
  readonly view: DataView<ArrayBuffer>;
  peer: SlotBus | undefined;
  #listener: BusListener | undefined;
  readonly #arrived: Uint8Array<ArrayBuffer>[] = [];
  readonly #deliver = {
    run: (): boolean => {
      for (const bytes of this.#arrived.splice(0)) {
        this.#listener?.received(new DataView(bytes.buffer));
      }
      return false;
    },
  };

  constructor(readonly side: Side, readonly reactor: Reactor, readonly slotSize: number) {
    this.view = new DataView(new ArrayBuffer(slotSize));
  }

  open(listener: BusListener): void {
    this.#listener = listener;
    this.isAttached = true;
    listener.attached();
  }

  claim(): number {
    return this.isAttached ? 0 : -1;
  }

  send(): void {
    this.peer?.take(new Uint8Array(this.view.buffer.slice(0)));
  }

  sendWithNext(): void {
    this.send();
  }

  /** A message of the other end's. */
  take(bytes: Uint8Array<ArrayBuffer>): void {
    this.#arrived.push(bytes);
    this.reactor.schedule(this.#deliver);
  }

  pin(): undefined {
    return undefined;
  }

  sendFd(): number {
    return -1;
  }

  takeFd(): undefined {
    return undefined;
  }

  drop(): void {}

  readonly granted = 0;
  readonly grantAddress = 0n;

  grant(): void {}

  resume(): void {}

  [Symbol.dispose](): void {
    this.isAttached = false;
  }
}

/** Both ends. */
export function slotBuses(
  reactor: Reactor,
  slotSize: number,
): { readonly driver: SlotBus; readonly device: SlotBus } {
  const driver = new SlotBus("driver", reactor, slotSize);
  const device = new SlotBus("device", reactor, slotSize);
  driver.peer = device;
  device.peer = driver;
  return { driver, device };
}
