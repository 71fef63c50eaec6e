/**
 * The driver door: what a virtio driver wants, and what the device side has been told of it.
 *
 * Whoever hands us a driver (a vhost-user front end, a register block, a driver of our own) fills in a
 * {@link Wanted} and says when something has changed; a {@link Told} is what the device side knows. The session
 * (session.ts) closes the difference between the two. All addresses are those on the bus.
 */

import type { QueueSetup } from "../virtio/device.ts";
import type { DeviceInfo } from "../transport/remote_device.ts";
import type { RingEvents } from "../transport/remote_private.ts";
import type { OutOfBand, RingOwner, SharedRegion, SharedRing } from "../sharing/sharing.ts";

/** A ring that is described completely and that its driver has enabled. */
export interface WantedRing extends RingOwner {
  /**
   * Where it lies and where it goes on. Asked when the ring is about to start, after FEATURES_OK: a driver of our
   * own makes its ring only then, when nobody works on the last one any more.
   *
   * @throws VmsgError if it lies nowhere
   */
  setup(): QueueSetup;
  /** The device has taken it. A driver of our own gives its first buffers now, not before (rule R32). */
  started?(): void;
  /** What the driver kicks and is called by, where the device side can be given them. */
  readonly events?: RingEvents | undefined;
  /** The device side hears the kick by itself from here on; if not, it is to be heard here again. */
  handedOver?(isSo: boolean): void;
  /** The device works on it no more; it goes on from `base` when it starts again. */
  stopped(base: number): void;
}

/** What a driver wants, as it is now: a session looks at it each time it is told of a change. */
export interface Wanted {
  /** Features that the driver has accepted, in blocks of 32; undefined as long as it has accepted none. */
  readonly features: Uint32Array | undefined;
  /** Its memory. A region that stays is the same object. */
  readonly regions: readonly SharedRegion[];
  /** Its rings that may run as far as each of them is concerned. */
  readonly rings: readonly WantedRing[];
  /** May rings run now: DRIVER_OK, or what stands for it where there is no status. */
  readonly mayRun: boolean;
}

/** A ring that the device works on. */
export interface ToldRing {
  /** Whose it is. */
  readonly wanted: WantedRing;
  /** As the device side gets to see it. */
  readonly shared: SharedRing;
  /** Where the driver's own ring lies. */
  readonly setup: QueueSetup;
  /** What the device side was offered last to be notified by, and what it took of that. */
  events: RingEvents | undefined;
  outOfBand: OutOfBand;
}

/** What the device side has been told, and what it said of itself. */
export class Told {
  /** Known since the device side came; undefined while there is none. */
  info: DeviceInfo | undefined;
  /** Features that the device offers. */
  offers: Uint32Array = new Uint32Array(2);
  /** Features that a driver may be offered. */
  offered: Uint32Array = new Uint32Array(2);
  /** FEATURES_OK was reached with these features. */
  negotiated: Uint32Array | undefined;
  /** DRIVER_OK was set. */
  driverOk = false;
  /** Rings that run, by queue. */
  readonly rings: (ToldRing | undefined)[] = [];
  /** Rings that nobody can say of where they go on; they stay as they are until the driver gives them up. */
  readonly stuck = new Set<number>();

  /** The rings that run, in a list of its own. */
  running(): ToldRing[] {
    return this.rings.filter((ring) => ring !== undefined);
  }

  /** The next start begins with a reset: the driver starts over. */
  forgetSession(): void {
    this.negotiated = undefined;
    this.driverOk = false;
  }
}
