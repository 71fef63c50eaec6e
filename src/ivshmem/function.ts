/**
 * What both ways to an ivshmem PCI function (vfio_end.ts, sysfs_end.ts) have in common: which functions
 * they take, the registers in BAR0, and BAR2 as nothing but memory.
 *
 * Registers are plain loads and stores of 32 bits. Atomics would do for loads but not for stores: what
 * they compile to reads before it writes, and reading has effects. A load whose value nobody wants could
 * be left out by the compiler, so loads go through an Atomics load.
 */

import { VmsgError } from "../linux/errors.ts";
import { findPciFunctions, pciAddress, PciFunction, SYSFS } from "../linux/sysfs.ts";
import { fullFence, loadAcquire32, type MappedMemory } from "../memory/mod.ts";
import { IVSHMEM_DEVICE, IVSHMEM_VENDOR } from "./end.ts";

/** The bytes of BAR0 that have registers. */
export const REGISTERS_SIZE = 16;

/** The shared memory of a function as nothing but memory, until it is disposed. */
export interface FunctionMemory extends MappedMemory, Disposable {
  /** For log lines, as in "ivshmem 0000:00:02.0". */
  readonly description: string;
  /** As {@link import("./end.ts").IvshmemEnd.isDeviceMemory}. */
  readonly isDeviceMemory: boolean;
}

/** Mapped memory of a function as {@link FunctionMemory}, which disposes of `owner`. */
export function functionMemory(
  pci: PciFunction,
  memory: MappedMemory,
  isDeviceMemory: boolean,
  owner: Disposable,
): FunctionMemory {
  return {
    description: `ivshmem ${pci.address}`,
    address: memory.address,
    get buffer() {
      return memory.buffer;
    },
    size: memory.size,
    file: memory.file,
    isDeviceMemory,
    [Symbol.dispose]: () => owner[Symbol.dispose](),
  };
}

/**
 * Finds an ivshmem function.
 *
 * @param address as the user gave it
 * @param sysfs where sysfs is
 * @throws UsageError for no address; VmsgError NO_PCI_FUNCTION, NOT_IVSHMEM
 */
export function ivshmemFunction(address: string, sysfs: string = SYSFS): PciFunction {
  const pci = new PciFunction(pciAddress(address), sysfs);
  if (!pci.exists) {
    throw new VmsgError(
      "NO_PCI_FUNCTION",
      `there is no PCI function ${pci.address}: vmsg doctor lists those of ivshmem`,
    );
  }
  const { vendor, device } = pci;
  if (vendor === IVSHMEM_VENDOR && device === IVSHMEM_DEVICE) return pci;
  const ids = [vendor, device].map((id) => id.toString(16).padStart(4, "0")).join(":");
  throw new VmsgError(
    "NOT_IVSHMEM",
    `PCI function ${pci.address} is ${ids} and not ivshmem (1af4:1110): ` +
      "vmsg doctor lists those of ivshmem",
  );
}

/** All ivshmem functions of this machine. */
export function ivshmemFunctions(sysfs: string = SYSFS): PciFunction[] {
  return findPciFunctions(IVSHMEM_VENDOR, IVSHMEM_DEVICE, sysfs);
}

/** Can it ring and be rung (ivshmem-doorbell), or is it memory only (ivshmem-plain)? */
export function hasDoorbell(pci: PciFunction): boolean {
  return (pci.bars[1]?.size ?? 0) > 0;
}

/** The registers in BAR0. */
export interface Registers {
  /** Reads the 32 bits at an offset. */
  read(offset: number): number;
  /** Writes them, after everything that was stored before. */
  write(offset: number, value: number): void;
}

/** Registers in mapped memory, `byteOffset` in it. */
export function mappedRegisters(memory: MappedMemory, byteOffset = 0): Registers {
  const words = new Uint32Array(memory.buffer, byteOffset, REGISTERS_SIZE / 4);
  return {
    read: (offset) => loadAcquire32(words, offset >> 2),
    write(offset, value) {
      fullFence();
      words[offset >> 2] = value;
    },
  };
}
