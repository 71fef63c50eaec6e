/**
 * Who is at the other end of a device side's bus (docs/wire.md 6).
 *
 * The first message after an attach decides:
 *
 *     unknown --HELLO--> greeted --HELLO that names our epoch--> vmsg
 *     unknown --GET_DEVICE_INFO, GET_DEVICES--> foreign
 *
 * Where the dialect knows no HELLO, any request makes the first peer foreign: this process may have been restarted
 * under it. All else that comes while unknown, and everything but HELLO while greeted, is dropped: it was meant
 * for an earlier process.
 * A HELLO with another epoch is a new peer: queues stop, memory is unmapped, status becomes 0, then it
 * is answered. Until the devices have done so no HELLO is answered; it is said again soon.
 *
 * The lease. Each answer to HELLO carries a fresh nonce, the next HELLO returns it. Memory of a vmsg peer
 * is touched until {@link LEASE_MS} after the nonce that came back was *issued*, so a driver side that
 * stands still (a paused machine, a dead kernel) is left alone in time. A stall of this process between
 * that check and the last store of a batch is not covered.
 *
 * The grant. A machine that is paused does not count the time, and its lease holds when it goes on. So a driver side that
 * can (HELLO's capabilities) keeps a word that names its epoch, and takes it back before it lets memory go. It is
 * looked at with the lease, and stands closer to the stores: no clock has to be right.
 *
 * A bus whose driver side is a kernel's own knows who that is, and that it is foreign.
 *
 * A bus that notices no peers (two machines) is attached once; there a driver side that comes, vmsg or
 * not, is known by its first message alone, and one that goes by its silence.
 */

import type { Timer } from "../linux/reactor.ts";
import { Kind } from "../message/message.ts";
import { limitedLog } from "../observe/log.ts";
import { PeerState, type PeerStateName } from "../observe/state.ts";
import type { Terms } from "../virtio/device.ts";
import type { DeviceContext } from "./device_context.ts";
import {
  capabilitiesOf,
  CAPABILITY_GRANT,
  grantOf,
  PRIVATE_VERSION,
  randomEpoch,
  randomNonce,
} from "./epoch.ts";

/** How long a returned nonce lets the device side touch memory, from when the nonce was issued. */
export const LEASE_MS = 250;
/** Nonces that may still come back. */
const NONCES = 8;
/** How long a vmsg driver side may be silent before we say so; it speaks every 100 ms. */
const SILENCE_MS = 1000;
/** Lines about driver sides that come. */
const TOLD_PER_SECOND = 10;

/** What follows for the devices. */
export interface PeerOwner {
  /** The peer is new or gone: nothing of the old one's memory is touched from here on. */
  startOver(): void;
  /** Have all devices let go of what an earlier peer gave them? */
  hasStartedOver(): boolean;
  /** The peer has memory and cannot announce it. */
  showForeignMemory(): void;
  /** The lease was renewed. */
  resume(): void;
}

/** What a peer needs of its side. */
type PeerContext = Pick<DeviceContext, "reactor" | "link" | "log" | "complain">;

/** See the head of this file. */
export class Peer implements Disposable {
  #state: PeerStateName = "none";
  /** This side's epoch. */
  ownEpoch = 0;
  /** The epoch of a vmsg peer; 0 if none is known. */
  epoch = 0;
  /** A driver side was seen to go. */
  #isSuccessor = false;
  #leaseEndMs = 0;
  /** What the driver side has to grant; undefined if it keeps no grant. */
  #grant: number | undefined;
  readonly #nonces = new Float64Array(NONCES);
  readonly #issuedMs = new Float64Array(NONCES);
  #nextNonce = 0;
  /** Goes off when a vmsg driver side has not been heard for a while. */
  readonly #silence: Timer;
  readonly #seen: PeerState;
  #isSilent = false;
  /** Says who comes, which a driver side can have us say with each message. */
  readonly tell: (line: string) => void;

  constructor(readonly options: PeerContext, readonly owner: PeerOwner) {
    this.#silence = options.reactor.timer(() => this.#tellSilence());
    this.tell = limitedLog(options.log.info, options.reactor, 1000, TOLD_PER_SECOND);
    this.#seen = new PeerState(options.reactor);
    this.state = "none";
  }

  /** Which of the states it is in; "none" while nobody is attached. */
  get state(): PeerStateName {
    return this.#state;
  }

  set state(state: PeerStateName) {
    if (state === this.#state && state !== "none") return;
    this.#state = state;
    this.#seen.is(state);
  }

  /** Somebody is there. */
  attached(): void {
    const { link: { bus }, log } = this.options;
    this.state = bus.kernel === undefined ? "unknown" : "foreign";
    this.ownEpoch = randomEpoch();
    this.epoch = 0;
    const what = bus.noticesPeers ? "the driver side is there" : "waiting for a driver side";
    log.info(`${bus.description}: ${what}`);
  }

  /** Nobody is there any more. */
  detached(reason: string): void {
    this.options.log.info(`${this.options.link.bus.description}: ${reason}`);
    this.state = "none";
    this.#isSuccessor = this.options.link.bus.noticesPeers;
    this.#stopListening();
    this.#startOver();
  }

  #stopListening(): void {
    this.#silence.cancel();
    this.#isSilent = false;
  }

  #startOver(): void {
    this.#leaseEndMs = 0;
    this.#nonces.fill(0);
    this.owner.startOver();
  }

  /** Another driver side has come unnoticed. Should the former one be here after all, it has to replay. */
  replaced(): void {
    this.#startOver();
    this.epoch = 0;
    this.ownEpoch = randomEpoch();
    this.state = "unknown";
  }

  /** May memory of the peer be touched at this moment? */
  leaseHolds(): boolean {
    if (this.state === "foreign") return true;
    const { reactor, link: { bus } } = this.options;
    return this.state === "vmsg" && reactor.now() < this.#leaseEndMs &&
      (this.#grant === undefined || bus.granted === this.#grant);
  }

  /** The same for other threads; renewed with each HELLO. */
  get terms(): Terms {
    if (this.state === "foreign") return { untilMs: Infinity };
    const number = this.#grant;
    const grant = number === undefined
      ? undefined
      : { address: this.options.link.bus.grantAddress, number };
    return { untilMs: this.state === "vmsg" ? this.#leaseEndMs : 0, grant };
  }

  /**
   * A message came, which may be the first of a driver side and then tells who it is.
   *
   * @returns is it to be handled?
   */
  admits(kind: Kind): boolean {
    if (this.state === "unknown" || this.#mayBeAnother) this.#introduce(kind);
    return kind === Kind.HELLO || this.state === "vmsg" || this.state === "foreign";
  }

  /** A silent vmsg may have been followed by a driver side that says no HELLO. */
  get #mayBeAnother(): boolean {
    return this.#isSilent && this.state !== "foreign" && !this.options.link.bus.noticesPeers;
  }

  #introduce(kind: Kind): void {
    if (kind === Kind.HELLO) {
      if (this.state === "unknown") this.state = "greeted";
      return;
    }
    const isFirst = kind === Kind.GET_DEVICE_INFO || kind === Kind.GET_DEVICES;
    // What is found before the first request of a successor was left by the driver side that is gone.
    if (!isFirst && (this.#isSuccessor || this.options.link.codec.has(Kind.HELLO))) return;
    if (this.state !== "unknown") this.replaced();
    this.#stopListening();
    this.#tellCame("a driver side");
    this.state = "foreign";
    this.owner.showForeignMemory();
  }

  /** Where nobody else has told that a driver side came. */
  #tellCame(who: string): void {
    const { bus } = this.options.link;
    if (!bus.noticesPeers) this.tell(`${bus.description}: ${who} is there`);
  }

  /** Answers the HELLO in hand. */
  hello(): void {
    const { link, complain } = this.options;
    const { epoch, peerEpoch, nonce, version, capabilities } = link.in;
    if (version !== PRIVATE_VERSION) {
      complain(`the driver side is a vmsg of another version (${version})`);
      return link.drop("out of turn");
    }
    // Where peers come unnoticed, a vmsg may follow a foreign one.
    if (this.state === "foreign" && link.bus.noticesPeers) return link.drop("out of turn");
    if (epoch !== this.epoch || this.state === "foreign") {
      this.#startOver();
      this.epoch = epoch;
      this.state = "greeted";
      this.#tellCame("a vmsg driver side");
    }
    this.#grant = (capabilities & CAPABILITY_GRANT) === 0 ? undefined : grantOf(epoch);
    this.#heard();
    if (!this.owner.hasStartedOver()) return link.drop("out of turn");
    if (peerEpoch === this.ownEpoch && this.#renewLease(nonce)) this.state = "vmsg";
    const out = link.answer();
    out.epoch = this.ownEpoch;
    out.peerEpoch = epoch;
    out.nonce = this.#issueNonce();
    out.version = PRIVATE_VERSION;
    out.capabilities = capabilities & capabilitiesOf(link.bus);
    link.send();
    this.owner.resume();
  }

  #heard(): void {
    this.#seen.heard();
    this.#silence.arm(SILENCE_MS);
    if (!this.#isSilent) return;
    this.#isSilent = false;
    const { link: { bus }, log } = this.options;
    log.info(`${bus.description}: the driver side is heard again`);
  }

  #tellSilence(): void {
    this.#isSilent = true;
    const { link: { bus }, log } = this.options;
    log.warn(`${bus.description}: the driver side is silent, its memory is not touched meanwhile`);
  }

  #issueNonce(): number {
    const i = this.#nextNonce;
    this.#nextNonce = (i + 1) % NONCES;
    this.#nonces[i] = randomNonce();
    this.#issuedMs[i] = this.options.reactor.now();
    return this.#nonces[i];
  }

  #renewLease(nonce: number): boolean {
    const i = this.#nonces.indexOf(nonce);
    if (nonce === 0 || i < 0) return false;
    this.#leaseEndMs = Math.max(this.#leaseEndMs, this.#issuedMs[i] + LEASE_MS);
    return true;
  }

  /** Nobody is listened to any more. */
  [Symbol.dispose](): void {
    this.state = "none";
    this.options.reactor.dropTimer(this.#silence);
  }
}
