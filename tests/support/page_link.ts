/** Two ends of a bus of two pages, in one process and one piece of anonymous memory. */

import type { BusListener, Side } from "../../src/bus/bus.ts";
import { PageBus, type PageBusOptions } from "../../src/bus/page_bus.ts";
import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
import type { Reactor } from "../../src/linux/reactor.ts";

/** An end; it rings the other one by a task of their reactor. */
export class LinkedPageBus extends PageBus {
  readonly description: string;
  /** How often it rang. */
  rings = 0;
  /** Who is rung. */
  other: LinkedPageBus | undefined;
  readonly #heard = { run: () => (this.rung(), false) };

  constructor(side: Side, reactor: Reactor, options: PageBusOptions) {
    super(side, reactor, options);
    this.description = `${side} end`;
  }

  override open(listener: BusListener): void {
    super.open(listener);
    this.attach();
  }

  /** Who is at the other end, by the name in its queue. */
  get named(): number {
    return this.namedPeer;
  }

  /** Looks at its queue, as if it had been rung. */
  look(): void {
    this.rung();
  }

  protected override ring(): void {
    this.rings++;
    if (this.other !== undefined) this.reactor.schedule(this.other.#heard);
  }
}

/** Both ends and their memory. */
export interface PageLink extends Disposable {
  readonly memory: Mapping;
  readonly driver: LinkedPageBus;
  readonly device: LinkedPageBus;
}

/** What can differ from an unnamed link of ordinary memory. */
export type PageLinkOptions = Partial<Omit<PageBusOptions, "memory" | "where" | "id">> & {
  readonly id?: number;
};

/** Makes one end. */
export function pageBus(
  side: Side,
  reactor: Reactor,
  memory: Mapping,
  { id = side === "driver" ? 1 : 0, ...options }: PageLinkOptions = {},
): LinkedPageBus {
  return new LinkedPageBus(side, reactor, {
    memory,
    where: "bus test",
    offset: 0,
    isDeviceMemory: false,
    reset: false,
    named: false,
    id: () => id,
    discardOnAttach: false,
    ringPerMessage: false,
    ...options,
  });
}

/**
 * Makes both ends.
 *
 * @param size of the memory in bytes
 */
export function pageLink(
  reactor: Reactor,
  options: PageLinkOptions = {},
  size = 1 << 20,
): PageLink {
  using stack = new DisposableStack();
  const memory = stack.use(mapAnonymous(size));
  const driver = stack.use(pageBus("driver", reactor, memory, options));
  const device = stack.use(pageBus("device", reactor, memory, options));
  driver.other = device;
  device.other = driver;
  const owner = stack.move();
  return { memory, driver, device, [Symbol.dispose]: () => owner.dispose() };
}
