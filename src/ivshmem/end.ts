/**
 * One end of an ivshmem link: shared memory, an id, and a way to ring other ends.
 *
 * An end is a PCI function of this machine (vfio_end.ts, sysfs_end.ts) or a process that is a peer of an
 * ivshmem server itself (server_end.ts). Whoever uses it gets all of the shared memory, rings peers by
 * their ids, and is told when it is rung. Rings coalesce and can be lost: one to a peer that is not there,
 * or not set up for interrupts yet, does nothing, and nobody can find that out. So a ring only says
 * "look", and who rings says it again until it sees an effect.
 *
 * Source: qemu docs/specs/ivshmem-spec.rst; docs/wire.md 5.
 */

import type { Fd } from "../linux/fd.ts";
import type { Reactor } from "../linux/reactor.ts";
import type { MappedMemory } from "../memory/mod.ts";

/** The PCI ids of an ivshmem function. */
export const IVSHMEM_VENDOR = 0x1af4;
/** The device id, see {@link IVSHMEM_VENDOR}. */
export const IVSHMEM_DEVICE = 0x1110;

/** Registers in BAR0; 32 bits, little-endian, only accessed whole (docs/wire.md 5.1). */
export const Register = {
  /** Which causes interrupt; only the prototype's patched device and revision 0 know it. */
  INTERRUPT_MASK: 0x00,
  /** Reading clears it; as above. */
  INTERRUPT_STATUS: 0x04,
  /** This end's id. */
  IV_POSITION: 0x08,
  /** Written: the peer's id in the upper 16 bits, the vector in the lower. */
  DOORBELL: 0x0c,
} as const;

/** BAR0 of a stock device. The prototype's patched device, which has INTx, has 4096. */
export const STOCK_REGISTERS_SIZE = 256;

/** Who uses an end. */
export interface EndListener {
  /** This end was rung, or may have been. */
  rung(): void;
  /** Another end is there; only where {@link IvshmemEnd.peers} is known. */
  joined(peer: number): void;
  /** It is gone. */
  left(peer: number): void;
  /** The end can do nothing for a while: its memory is not shared. Only where a function can be taken away. */
  away?(reason: string): void;
  /** It can again. */
  back?(): void;
  /** Should the memory be another one: from which byte on its content is taken along, if at all. */
  readonly keptFrom?: number | undefined;
}

/** A vector of an end's own that signals somebody else's eventfd, until it is disposed. */
export interface LentVector extends Disposable {
  /** What a peer has to ring; not 0, which is the end's. */
  readonly number: number;
  /** Has it signal another one from here on; false, and it signals nobody but the end, if that is no eventfd. */
  lendTo(event: Fd): boolean;
}

/** See the head of this file. */
export interface IvshmemEnd extends Disposable {
  /** For log lines, as in "ivshmem 0000:00:02.0". */
  readonly description: string;
  /** This end's own id, 0 to 65535. 0 may also mean that a PCI function has no id. */
  readonly id: number;
  /** All of the shared memory. It lives as long as the end. */
  readonly memory: MappedMemory;
  /** False if nothing tells this end that it was rung: it has to look by itself. */
  readonly interrupts: boolean;
  /** Is the memory a device's, where only aligned accesses are sure to work (arm64)? */
  readonly isDeviceMemory: boolean;
  /** Who else is there, or undefined where nobody can tell (a PCI function). */
  readonly peers: ReadonlySet<number> | undefined;
  /** Starts to tell the listener; once. */
  open(reactor: Reactor, listener: EndListener): void;
  /** Rings vector 0 of a peer. */
  ring(peer: number): void;
  /** Rings any vector of a peer; only a function can. */
  ringVector?(peer: number, vector: number): void;
  /**
   * Has a vector signal an eventfd by itself: the kernel does it, nobody of ours wakes. Only vfio can.
   *
   * @returns undefined if none is left, or that is no eventfd
   */
  lendVector?(event: Fd): LentVector | undefined;
  /**
   * Keeps memory of this process where it is in physical memory, until what is returned or the end is
   * disposed; undefined where there is no means to (only vfio has).
   *
   * @param address page-aligned, of this process
   * @param size in bytes, whole pages
   */
  pin(address: bigint, size: number): Disposable | undefined;
  /** Descriptors that keep what is pinned so, in whichever process they are open; none without vfio. */
  readonly pinHandles: readonly Fd[];
}
