/**
 * What serves the cards of one domain while it is there: an ioreq server, in it the registers of each card and on
 * x86 an IOAPIC, and the domain's memory, mapped when the first queue is to run.
 *
 * Ends. A domain that is gone: the device side is left reset, then memory is unmapped, without which Xen keeps it.
 * A process that is told to end, and one that is killed, leave the registers in a file (state_file.ts); the domain
 * goes on with the next process. Between them processors that ask the cards of one that was killed wait. Those of one
 * that was ended are not there on x86: reads are ones, which drivers take for a needless interrupt. On arm64 an
 * access that nobody answers is an abort, which no driver survives, so there they wait, too.
 */

import { VmsgError } from "../../linux/errors.ts";
import type { Reactor, Timer } from "../../linux/reactor.ts";
import type { Log } from "../../observe/log.ts";
import type { SharedRegion, Sharing } from "../../sharing/sharing.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { type IoRange, type IoreqServer, openIoreqServer } from "../../xen/ioreq_server.ts";
import { ForeignMemory } from "../../xen/privcmd.ts";
import { MmioDriver } from "../mmio/mmio_driver.ts";
import { REGISTERS_SIZE, type RegisterState } from "../mmio/registers.ts";
import { Ioapic, IOAPIC_PINS } from "./ioapic.ts";
import { StateFile } from "./state_file.ts";

const IS_X86 = Deno.build.arch === "x86_64";
/** Where a domain's memory is: what does not fit into the first range is in the second. */
const RAM = IS_X86
  ? [{ at: 0, size: 0xf000_0000 }, { at: 0x1_0000_0000, size: 2 ** 40 }]
  : [{ at: 0x4000_0000, size: 0xc000_0000 }, { at: 0x2_0000_0000, size: 2 ** 40 }];
/** A domain that has not looked at a card for so long will not. */
const LOOKED_AT_MS = 60_000;

/** A card, and where the domain finds it. */
export interface PlacedCard {
  readonly device: number;
  readonly base: number;
  readonly irq: number;
  /** Its back end directory in xenstore, if it has one. */
  readonly path: string | undefined;
  readonly remote: RemoteDevice;
  readonly sharing: Sharing;
}

/** What a model is made of. */
export interface DomainModelOptions {
  readonly reactor: Reactor;
  readonly log: Log;
  readonly domain: number;
  /** For people. */
  readonly name: string;
  /** Which domain it is, see {@link StateFile}. */
  readonly vm: string;
  /** In bytes. */
  readonly memorySize: number;
  readonly cards: readonly PlacedCard[];
  readonly directory: string;
}

/** See the head of this file. */
export class DomainModel implements Disposable {
  readonly domain: number;
  readonly #server: IoreqServer;
  readonly #file: StateFile;
  readonly #ioapic: Ioapic | undefined;
  readonly #drivers = new Map<RemoteDevice, MmioDriver>();
  readonly #stack: DisposableStack;
  #memory: Promise<readonly SharedRegion[]> | undefined;
  readonly #hint: Timer;
  #isOver = false;

  /** @throws VmsgError if the domain cannot be served */
  constructor(readonly options: DomainModelOptions) {
    const { reactor, domain, name, log, vm, cards, directory } = options;
    this.domain = domain;
    using stack = new DisposableStack();
    this.#file = stack.use(new StateFile(directory, domain));
    const left = this.#file.read(vm);
    // What is made for a domain that is gone meanwhile is nobody's.
    using unused = new DisposableStack();
    if (left === undefined) unused.defer(() => this.#file.remove());
    this.#server = stack.use(openIoreqServer(reactor, domain, left?.server));
    this.#hint = reactor.timer(() => this.#nobodyLooked());
    stack.defer(() => reactor.dropTimer(this.#hint));
    if (IS_X86) {
      const { privcmd } = this.#server.parts;
      const send = (address: number, data: number) => privcmd.injectMsi(address, data);
      this.#ioapic = new Ioapic(send, () => this.#keep(), left?.ioapic);
      this.#take(this.#ioapic, left?.server !== undefined);
    }
    for (const card of cards) {
      const driver = stack.use(this.#driver(card, left?.cards[card.device]));
      this.#drivers.set(card.remote, driver);
      this.#take(
        {
          start: card.base,
          size: REGISTERS_SIZE,
          read: (offset, size) => {
            this.#hint.cancel();
            return driver.registers.read(offset, size);
          },
          write: (offset, size, value) => driver.registers.write(offset, size, value),
        },
        left?.server !== undefined,
      );
    }
    this.#keep();
    this.#server.serve();
    this.#stack = stack.move();
    unused.move();
    if (left === undefined) this.#hint.arm(LOOKED_AT_MS);
    const how = left === undefined ? "serving" : "going on with";
    for (const { device, base, irq } of cards) {
      const place = `0x${base.toString(16)}, interrupt ${irq}`;
      log.info(`${name} (${domain}): ${how} device ${device} at ${place}`);
    }
  }

  #take(range: IoRange, isOurs: boolean): void {
    if (this.#server.add(range, isOurs)) return;
    const at = `0x${range.start.toString(16)}`;
    throw new VmsgError(
      "BASE_TAKEN",
      `${this.options.name}: two cards are at ${at}: give each its own base= and irq=`,
    );
  }

  #driver(card: PlacedCard, state: RegisterState | undefined): MmioDriver {
    const { reactor, log, name } = this.options;
    const { remote: device, sharing, irq } = card;
    const host = {
      map: () => this.#memory ??= this.#map(),
      interrupt: (asserted: boolean) => {
        if (this.#isOver) return;
        if (this.#ioapic === undefined) this.#server.parts.privcmd.setIrqLevel(irq, asserted);
        else if (asserted) this.#ioapic.raise(irq % IOAPIC_PINS);
      },
      keep: () => this.#keep(),
    };
    return new MmioDriver({ reactor, device, sharing, log, host, name: `${name}'s`, state });
  }

  #nobodyLooked(): void {
    const { log, name } = this.options;
    const advice = IS_X86
      ? "does its initrd begin with what vmsg xen-acpi writes?"
      : "has its configuration a virtio device (docs/two-machines.md)?";
    log.info(`${name} has not looked at its cards yet: ${advice}`);
  }

  #keep(isOver = false): void {
    if (this.#isOver) return;
    const cards: Record<number, RegisterState> = {};
    for (const [{ number }, { registers }] of this.#drivers) cards[number] = registers.state;
    const server = isOver ? undefined : this.#server.parts.id;
    this.#file.write({
      vm: this.options.vm,
      server,
      ioapic: this.#ioapic?.entries ?? [],
      cards,
    });
  }

  /** Maps all of the domain's memory, and lets the loop turn meanwhile. */
  async #map(): Promise<readonly SharedRegion[]> {
    const { reactor, memorySize, name, log } = this.options;
    const regions: SharedRegion[] = [];
    const startMs = reactor.now();
    let left = memorySize;
    for (const { at, size } of RAM) {
      if (left <= 0) break;
      const memory = new ForeignMemory(this.#server.parts.privcmd, at, Math.min(left, size));
      this.#stack.use(memory);
      while (memory.mapMore()) {
        await reactor.sleep(0);
        if (this.#isOver) throw new VmsgError("DOMAIN_GONE", `${name} is gone`);
      }
      for (const { at, offset, size } of memory.runs) {
        regions.push({ at, offset, size, memory: memory.mapping });
        left -= size;
      }
    }
    const mib = (bytes: number) => Math.round(bytes / 2 ** 20);
    const tookMs = Math.round(reactor.now() - startMs);
    log.debug(
      `${name}: mapped ${mib(memorySize - left)} of ${mib(memorySize)} MiB in ${tookMs} ms`,
    );
    return regions;
  }

  /** A card's device side is there. */
  deviceReady(device: RemoteDevice): void {
    this.#drivers.get(device)?.ready();
  }

  /** It is gone. */
  deviceLost(device: RemoteDevice): void {
    this.#drivers.get(device)?.lost();
  }

  /** The domain is gone: nothing of it is left. */
  async end(): Promise<void> {
    this.#isOver = true;
    for (const driver of this.#drivers.values()) await driver.end();
    this.#file.remove();
    this.#stack.dispose();
  }

  /** Leaves the domain to the next process. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#keep(IS_X86);
    this.#isOver = true;
    // They give back what is used, in memory that is there as long.
    for (const driver of this.#drivers.values()) driver[Symbol.dispose]();
    if (!IS_X86) this.#server.leave();
    this.#stack.dispose();
  }
}
