/**
 * An ivshmem PCI function through VFIO: the way with interrupts.
 *
 * BAR0 has the registers, BAR2 is the shared memory, both are mapped. A stock device (revision 1) rings
 * by MSI-X, one eventfd a vector. The prototype's patched device is told by its BAR0 of 4096 bytes: there
 * INTx is used, which the kernel masks until the status is read (which clears it) and INTx let through
 * again. ivshmem-plain has neither and is memory only.
 *
 * VFIO maps BAR2 uncached; sysfs maps it write-combining, which is faster where the processor is the one
 * that decides, and is used where the kernel lets it be.
 */

import { clearEventFd, createEventFd } from "../linux/eventfd.ts";
import { LinuxError } from "../linux/errors.ts";
import { type Fd, openFile } from "../linux/fd.ts";
import { mapKept, type Mapping } from "../linux/mapping.ts";
import { EPOLLIN, type Reactor } from "../linux/reactor.ts";
import type { PciFunction } from "../linux/sysfs.ts";
import {
  MAX_VECTORS,
  VFIO_PCI_INTX_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VfioDevice,
} from "../linux/vfio.ts";
import type { Log } from "../observe/log.ts";
import { bindToVfio, vfioGroup } from "./binding.ts";
import { type EndListener, type IvshmemEnd, Register, STOCK_REGISTERS_SIZE } from "./end.ts";
import {
  type FunctionMemory,
  functionMemory,
  ivshmemFunction,
  mappedRegisters,
  type Registers,
} from "./function.ts";

const BAR_REGISTERS = 0;
const BAR_MEMORY = 2;

/** How to open a function through VFIO. */
export interface VfioOptions {
  /** Told what is bound. */
  readonly log: Log;
  /** Binds the function to vfio-pci until it is disposed; otherwise it must be bound. */
  readonly bind?: boolean;
  /** Where sysfs is, if not at /sys; for tests. */
  readonly sysfs?: string;
}

/** A function, the binding under it, and BAR2; `stack` owns them. */
interface Opened {
  readonly pci: PciFunction;
  readonly device: VfioDevice;
  readonly memory: Mapping;
  readonly isDeviceMemory: boolean;
}

function openFunction(address: string, options: VfioOptions, stack: DisposableStack): Opened {
  const pci = ivshmemFunction(address, options.sysfs);
  if (options.bind === true) stack.use(bindToVfio(pci, options.log));
  const device = stack.use(new VfioDevice(pci, vfioGroup(pci)));
  const combining = mapCombining(pci);
  const memory = stack.use(combining ?? device.map(device.region(BAR_MEMORY)));
  return { pci, device, memory, isDeviceMemory: combining === undefined };
}

/**
 * BAR2 write-combining, by sysfs: normal memory to an arm64, which VFIO's own uncached mapping is not.
 * The kernel allows it as long as VFIO has not mapped the BAR; undefined where it does not.
 */
function mapCombining(pci: PciFunction): Mapping | undefined {
  try {
    const fd = openFile(`${pci.path}/resource${BAR_MEMORY}_wc`);
    return mapKept({ fd, offset: 0 }, pci.bars[BAR_MEMORY]!.size, fd);
  } catch (error) {
    if (error instanceof LinuxError) return undefined;
    throw error;
  }
}

/** Registers of a function that shares its page with others cannot be mapped. */
function openRegisters(device: VfioDevice, stack: DisposableStack): Registers {
  const region = device.region(BAR_REGISTERS);
  if (region.mappable) return mappedRegisters(stack.use(device.map(region)));
  return {
    read: (offset) => device.read32(region, offset),
    write: (offset, value) => device.write32(region, offset, value),
  };
}

/** How a function interrupts. */
type Interrupts = "msix" | "intx" | "none";

function interruptsOf(device: VfioDevice): Interrupts {
  const patched = device.region(BAR_REGISTERS).size > STOCK_REGISTERS_SIZE;
  if (patched && device.interruptCount(VFIO_PCI_INTX_IRQ_INDEX) > 0) return "intx";
  return device.interruptCount(VFIO_PCI_MSIX_IRQ_INDEX) > 0 ? "msix" : "none";
}

class VfioEnd implements IvshmemEnd {
  readonly description: string;
  readonly id: number;
  readonly isDeviceMemory: boolean;
  readonly peers = undefined;
  readonly memory: Mapping;
  readonly #stack: DisposableStack;
  readonly #device: VfioDevice;
  readonly #registers: Registers;
  readonly #kind: Interrupts;
  readonly #eventFds: readonly Fd[];

  constructor(address: string, options: VfioOptions) {
    using stack = new DisposableStack();
    const { pci, device, memory, isDeviceMemory } = openFunction(address, options, stack);
    this.isDeviceMemory = isDeviceMemory;
    this.description = `ivshmem ${pci.address}`;
    this.#device = device;
    this.memory = memory;
    this.#registers = openRegisters(device, stack);
    this.id = this.#registers.read(Register.IV_POSITION) & 0xffff;
    this.#kind = interruptsOf(device);
    this.#eventFds = this.#enableInterrupts(stack);
    this.#stack = stack.move();
  }

  get interrupts(): boolean {
    return this.#kind !== "none";
  }

  #enableInterrupts(stack: DisposableStack): Fd[] {
    if (this.#kind === "none") return [];
    const index = this.#kind === "intx" ? VFIO_PCI_INTX_IRQ_INDEX : VFIO_PCI_MSIX_IRQ_INDEX;
    const count = Math.min(this.#device.interruptCount(index), MAX_VECTORS);
    const fds = Array.from({ length: count }, () => stack.use(createEventFd()));
    this.#device.setEventFds(index, fds);
    if (this.#kind === "intx") this.#registers.write(Register.INTERRUPT_MASK, 0xffff_ffff);
    return fds;
  }

  open(reactor: Reactor, listener: EndListener): void {
    for (const fd of this.#eventFds) {
      reactor.watch(fd, EPOLLIN, () => this.#interrupted(fd, listener));
      this.#stack.defer(() => reactor.unwatch(fd));
    }
  }

  #interrupted(fd: Fd, listener: EndListener): void {
    clearEventFd(fd);
    if (this.#kind === "msix") {
      listener.rung();
      return;
    }
    this.#registers.read(Register.INTERRUPT_STATUS);
    listener.rung();
    this.#device.unmask(VFIO_PCI_INTX_IRQ_INDEX);
  }

  ring(peer: number): void {
    this.#registers.write(Register.DOORBELL, (peer << 16) >>> 0);
  }

  pin(address: bigint, size: number): Disposable | undefined {
    return this.#device.pin(address, size);
  }

  get pinHandles(): readonly Fd[] {
    return this.#device.pinHandles;
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/**
 * Opens an ivshmem function through VFIO.
 *
 * @param address its PCI address, as in "0000:00:10.0"
 * @throws VmsgError of function.ts, binding.ts and src/linux/vfio.ts
 */
export function openVfioEnd(address: string, options: VfioOptions): IvshmemEnd {
  return new VfioEnd(address, options);
}

/** Opens only the shared memory of a function, as memory; through VFIO, see {@link openVfioEnd}. */
export function openVfioMemory(address: string, options: VfioOptions): FunctionMemory {
  using stack = new DisposableStack();
  const { pci, memory, isDeviceMemory } = openFunction(address, options, stack);
  return functionMemory(pci, memory, isDeviceMemory, stack.move());
}
