/**
 * Whether one device at the other end is there.
 *
 *     gone --the device side is ready, EVENT_DEVICE ADDED--> there
 *     there --the device side is lost, EVENT_DEVICE REMOVED--> gone
 *     there --GET_DEVICE_INFO says that there is none--> absent --EVENT_DEVICE ADDED--> there
 *     there --a request is late--> recovering --status 0, and 0 is read--> there
 *
 * Its users are told `lost` and `ready` ({@link RemotePresence.listen}). A device that does not answer is reset, and
 * if it does not even answer that, again every {@link RECOVERY_MS}: it may have been started anew, where nobody tells.
 * Of a vmsg device side all is set up anew: to it a new epoch is the reset. Where nobody may tell that a device came, one that is absent
 * is asked for every {@link LOOK_MS}.
 */

import { VmsgError } from "../linux/errors.ts";
import { type Fields, Kind, type Message } from "../message/message.ts";
import { type Asker, type PeerListener, PeerLost, type Requests } from "./requests.ts";

/** How long a device that does not answer a reset is left alone. */
const RECOVERY_MS = 5000;
const LOOK_MS = 1000;

/** See the head of this file. */
export abstract class RemotePresence implements Asker {
  #state: "gone" | "there" | "absent" | "recovering";
  /** The device side has said that it took it away, and not yet that it is there again. */
  isRemoved = false;
  /** How often it was lost while the device side was not. */
  #losses = 0;
  readonly #listeners: PeerListener[] = [];

  /** A driver side makes one for each number it is asked for. */
  constructor(readonly side: Requests, readonly number: number) {
    this.#state = side.isReady ? "there" : "gone";
  }

  /** Status 0, complete when 0 was read back. */
  abstract reset(): Promise<void>;

  /** Forgets what a device said that is gone. */
  protected abstract forget(): void;

  /** Can it be used? */
  get isReady(): boolean {
    return this.#state === "there";
  }

  /** The device side has said that there is none. */
  get isAbsent(): boolean {
    return this.#state === "absent";
  }

  get mayAsk(): boolean {
    return this.#state !== "gone";
  }

  get session(): number {
    return this.#losses;
  }

  /**
   * For whoever remembers what it was told: it may have gone between its answer and the line that waited for that.
   *
   * @throws PeerLost if it is not the one of that session any more
   */
  checkSession(session: number): void {
    if (session !== this.session) throw new PeerLost("the device side is gone");
  }

  /** Adds a listener; it is called for what happens from now on. */
  listen(listener: PeerListener): void {
    this.#listeners.push(listener);
  }

  /** It is there, as the side says, which may say so twice; one that is being recovered comes when that is done. */
  arrived(): void {
    if (this.#state === "there" || this.#state === "recovering") return;
    this.#state = "there";
    this.isRemoved = false;
    for (const listener of this.#listeners) listener.ready();
  }

  /** It is gone, alone or with its side; that may be said twice as well. */
  left(reason: string): void {
    const wasThere = this.#state === "there";
    this.#state = "gone";
    this.#losses++;
    this.forget();
    this.side.requests.lose(this, reason);
    if (wasThere) this.#listeners.forEach((listener) => listener.lost(reason));
  }

  /** EVENT_DEVICE REMOVED. */
  removed(): void {
    this.isRemoved = true;
    this.left("the device was removed");
  }

  /** The device side was asked, and has none; what whoever asked is told. */
  protected absent(): PeerLost {
    const reason = `the device side has no device ${this.number}`;
    if (this.#state === "there") {
      this.side.complain(`${reason}: waiting for it`);
      this.left(reason);
      this.#state = "absent";
      if (this.side.peer !== "vmsg") this.side.reactor.spawn(() => this.#lookForIt());
    }
    return new PeerLost(reason);
  }

  async #lookForIt(): Promise<void> {
    const { session } = this;
    for (;;) {
      await this.side.reactor.sleep(LOOK_MS);
      if (session !== this.session || this.#state !== "absent") return;
      try {
        const asked = this.request(Kind.GET_DEVICE_INFO, {}, ({ deviceId }) => deviceId !== 0);
        if (await asked) return this.arrived();
      } catch (error) {
        if (!(error instanceof PeerLost)) throw error;
      }
    }
  }

  late({ message }: PeerLost): void {
    if (this.#state !== "there") return;
    if (this.side.peer === "vmsg") return this.side.replaced(message);
    this.side.complain(`device ${this.number}: ${message}: it is reset`);
    this.left(message);
    this.#state = "recovering";
    this.side.reactor.spawn(() => this.#recover());
  }

  async #recover(): Promise<void> {
    const { session } = this;
    while (session === this.session) {
      try {
        await this.reset();
        this.#state = "gone";
        return this.arrived();
      } catch (error) {
        if (!(error instanceof VmsgError)) throw error;
      }
      await this.side.reactor.sleep(RECOVERY_MS);
    }
  }

  /** See {@link OpenRequests.request}. */
  protected request<T = void>(
    kind: Kind,
    fields: Fields,
    read?: (answer: Message) => T,
  ): Promise<T> {
    return this.side.requests.request(this, kind, fields, read);
  }
}
