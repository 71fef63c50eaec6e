/**
 * The cards of one domain under Xen: `vmsg proxy --xen` in Dom0.
 *
 * Theory of operation. A domain has a name and comes and goes; xenstored tells of it. While it is there a
 * {@link DomainModel} serves its cards (domain_model.ts), and when it is gone all that is let go of, and the next one
 * of that name is waited for.
 *
 *     waiting --a domain of that name, built--> serving --it is gone--> waiting
 *
 * A domain is built when xenstored has it introduced: it may run already, but has not looked for its cards. On arm64
 * libxl has given each card an address and an interrupt, and says them in a back end directory; on x86 they are
 * those of our ACPI tables (acpi.ts). What libxl expects of a back end is two of its states: 2 (InitWait) when a
 * card is served, for which libxl 4.17 waits, and 6 (Closed) as soon as libxl has written 5 (Closing).
 */

import { LinuxError, VmsgError } from "../../linux/errors.ts";
import type { Reactor, Timer } from "../../linux/reactor.ts";
import type { Log } from "../../observe/log.ts";
import type { Sharing } from "../../sharing/sharing.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import type { Xenstore } from "../../xen/xenstore.ts";
import { REGISTERS_SIZE } from "../mmio/registers.ts";
import { X86_BASE, X86_IRQ } from "./acpi.ts";
import { DomainModel, type PlacedCard } from "./domain_model.ts";

const HAS_ACPI = Deno.build.arch === "x86_64";
/** Of libxl 4.17 (a disk whose back end is a program of its own), and of 4.18 and later. */
const BACK_ENDS = ["virtio_disk", "virtio"].map((kind) => `/local/domain/0/backend/${kind}`);
const INTRODUCED = "@introduceDomain";
const RELEASED = "@releaseDomain";

/** How often something is looked at again that nobody tells of. */
const RETRY_MS = 1000;

const INIT_WAIT = "2";
const CLOSING = "5";
const CLOSED = "6";

/** A card of `--xen`. */
export interface XenCard {
  /** The device number on the bus. */
  readonly device: number;
  /** Guest-physical address of its registers; undefined: as the domain is told. */
  readonly base: number | undefined;
  /** Its interrupt: a shared one on arm64, a pin of the IOAPIC on x86. */
  readonly irq: number | undefined;
}

/** What a server is made of. */
export interface XenServerOptions {
  readonly reactor: Reactor;
  readonly log: Log;
  readonly store: Xenstore;
  /** Name or number. */
  readonly domain: string;
  readonly cards: readonly (XenCard & {
    readonly remote: RemoteDevice;
    readonly sharing: Sharing;
  })[];
  /** Where states are kept. */
  readonly directory: string;
}

/** See the head of this file. */
export class XenServer implements Disposable {
  #model: DomainModel | undefined;
  /** A domain that cannot be served: it is not tried again, unless it was another process's. */
  #refused: number | undefined;
  readonly #retry: Timer;
  /** Something has changed; looked at one after another. */
  #isLooking = false;
  #looksAgain = false;
  #isOver = false;
  #toldWaiting = "";
  /** Nothing was served or waited for yet. */
  #isFirst = true;

  constructor(readonly options: XenServerOptions) {
    for (const { remote } of options.cards) {
      remote.listen({
        ready: () => this.#model?.deviceReady(remote),
        lost: () => this.#model?.deviceLost(remote),
      });
    }
    this.#retry = options.reactor.timer(() => this.#look());
    options.reactor.spawn(() => this.#begin());
  }

  /** Is it the other's domain, too? */
  get #name(): string {
    return `domain ${this.options.domain}`;
  }

  async #begin(): Promise<void> {
    const { store } = this.options;
    for (const path of [INTRODUCED, RELEASED]) await store.watch(path, () => this.#look());
    for (const path of BACK_ENDS) await store.watch(path, (changed) => this.#backEnd(changed));
  }

  #backEnd(path: string): void {
    if (path.endsWith("/state")) this.options.reactor.spawn(() => this.#answerClosing(path));
    else if (this.#model === undefined) this.#look();
  }

  /** libxl is about to take a card away, and waits to be told that it is not used. */
  async #answerClosing(path: string): Promise<void> {
    const { store, log } = this.options;
    const [, domain] = /\/(\d+)\/\d+\/state$/.exec(path) ?? [];
    if (Number(domain) !== this.#model?.domain || await store.read(path) !== CLOSING) return;
    log.debug(`${this.#name}: ${path} is closed`);
    await store.write(path, CLOSED);
  }

  #look(): void {
    this.#looksAgain = true;
    if (this.#isLooking || this.#isOver) return;
    this.#isLooking = true;
    this.options.reactor.spawn(async () => {
      while (this.#looksAgain && !this.#isOver) {
        this.#looksAgain = false;
        await this.#lookOnce();
      }
      this.#isLooking = false;
    });
  }

  async #lookOnce(): Promise<void> {
    const { store, log } = this.options;
    if (this.#model !== undefined) {
      if (await store.hasDomain(this.#model.domain)) return;
      log.info(`${this.#name} (${this.#model.domain}) is gone`);
      const model = this.#model;
      await model.end();
      this.#model = undefined;
    }
    const domain = await this.#find();
    if (domain !== this.#refused) this.#refused = undefined;
    if (domain === undefined) return this.#tell("waiting for it");
    if (domain === this.#refused) return;
    const places = await this.#places(domain);
    if (places === undefined) return this.#tell("waiting for its virtio devices in xenstore");
    await this.#serve(domain, places);
  }

  #tell(state: string, say: (line: string) => void = this.options.log.info): void {
    this.#isFirst = false;
    if (state === this.#toldWaiting) return;
    this.#toldWaiting = state;
    if (state !== "") say(`${this.#name}: ${state}`);
  }

  async #find(): Promise<number | undefined> {
    const { store, domain } = this.options;
    const numbers = /^\d+$/.test(domain) ? [domain] : await store.list("/local/domain");
    for (const number of numbers) {
      if (number === "0" || !await store.hasDomain(Number(number))) continue;
      const name = await store.read(`/local/domain/${number}/name`);
      if (number === domain || name === domain) return Number(number);
    }
    return undefined;
  }

  /** Where each card is; undefined while libxl has not said so. */
  async #places(domain: number): Promise<PlacedCard[] | undefined> {
    const told = await this.#backEnds(domain);
    const places: PlacedCard[] = [];
    for (const [position, card] of this.options.cards.entries()) {
      const { base, irq, path } = told[position] ?? {};
      const isTold = base !== undefined && base !== 0;
      if (!isTold && !HAS_ACPI && (card.base === undefined || card.irq === undefined)) {
        return undefined;
      }
      places.push({
        ...card,
        base: card.base ?? (isTold ? base : X86_BASE + position * REGISTERS_SIZE),
        irq: card.irq ?? (isTold ? irq! : X86_IRQ + position),
        path,
      });
    }
    return places;
  }

  /** The domain's virtio devices as libxl has put them into xenstore, in its order. */
  async #backEnds(domain: number): Promise<{ base: number; irq: number; path: string }[]> {
    const { store } = this.options;
    const found: { base: number; irq: number; path: string }[] = [];
    for (const kind of BACK_ENDS) {
      for (const device of await store.list(`${kind}/${domain}`)) {
        const path = `${kind}/${domain}/${device}`;
        const [base, irq] = [await store.read(`${path}/base`), await store.read(`${path}/irq`)];
        if (base === undefined || irq === undefined) continue;
        // libxl 4.20 writes an address in hexadecimal, with or without 0x in front.
        const isHex = kind.endsWith("virtio") && !base.startsWith("0x");
        found.push({ base: Number(isHex ? `0x${base}` : base), irq: Number(irq), path });
      }
    }
    return found.sort((a, b) => a.base - b.base);
  }

  async #serve(domain: number, cards: PlacedCard[]): Promise<void> {
    const { reactor, log, store, directory } = this.options;
    const [vm, target] = [
      await store.read(`/local/domain/${domain}/vm`) ?? "",
      await store.read(`/local/domain/${domain}/memory/target`),
    ];
    const name = this.#name;
    if (this.#isOver) return;
    // It is written before a domain runs, and taken away as it goes.
    if (!/^\d+$/.test(target ?? "")) return this.#retry.arm(RETRY_MS);
    const memorySize = Number(target) * 1024;
    try {
      const options = { reactor, log, domain, name, vm, memorySize, cards, directory };
      this.#model = new DomainModel(options);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      const isGone = error instanceof LinuxError && !await store.hasDomain(domain);
      if (isGone || this.#isOver) return;
      // The first one is what was asked for: a command that cannot do it ends.
      if (this.#isFirst) throw error;
      this.#tell(error.message, log.error);
      if (error.code === "DOMAIN_SERVED") return this.#retry.arm(RETRY_MS);
      this.#refused = domain;
      return;
    }
    this.#tell("");
    for (const { path } of cards) {
      if (path !== undefined) await store.write(`${path}/state`, INIT_WAIT);
    }
  }

  [Symbol.dispose](): void {
    this.#isOver = true;
    this.options.reactor.dropTimer(this.#retry);
    this.#model?.[Symbol.dispose]();
    this.#model = undefined;
  }
}
