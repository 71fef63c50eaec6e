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
 *
 * States: held -> let go -> held ... The kernel may want the function back (unbind, hot-unplug). Then all
 * of it is closed, and BAR2's addresses show private memory, which nobody looks at, until it is back.
 */

import { clearEventFd, createEventFd } from "../linux/eventfd.ts";
import { LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, inodeNumber, openFile, openPath } from "../linux/fd.ts";
import { mapKept, type Mapping, remap } from "../linux/mapping.ts";
import { EPOLLIN, type Reactor, type Timer } from "../linux/reactor.ts";
import type { PciFunction } from "../linux/sysfs.ts";
import {
  MAX_VECTORS,
  VFIO_PCI_INTX_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_REQ_IRQ_INDEX,
  VfioDevice,
} from "../linux/vfio.ts";
import type { Log } from "../observe/log.ts";
import { bindToVfio, VFIO_DRIVER, vfioGroup } from "./binding.ts";
import {
  type EndListener,
  type IvshmemEnd,
  type LentVector,
  Register,
  STOCK_REGISTERS_SIZE,
} from "./end.ts";
import {
  type FunctionMemory,
  functionMemory,
  ivshmemFunction,
  mappedRegisters,
  type Registers,
} from "./function.ts";

const BAR_REGISTERS = 0;
const BAR_MEMORY = 2;
/** How often a function that was let go is looked for. */
const RETRY_MS = 200;

/** How to open a function through VFIO. */
export interface VfioOptions {
  /** Told what is bound. */
  readonly log: Log;
  /** Binds the function to vfio-pci until it is disposed; otherwise it must be bound. */
  readonly bind?: boolean;
  /** Where sysfs is, if not at /sys; for tests. */
  readonly sysfs?: string;
}

/** A function and BAR2. */
interface Opened {
  readonly device: VfioDevice;
  readonly memory: Mapping;
  readonly isDeviceMemory: boolean;
}

/**
 * @param stack owns the function
 * @param owner owns the mapping of BAR2
 * @param former the mapping that becomes this one's; it has its owner
 */
function openFunction(
  pci: PciFunction,
  stack: DisposableStack,
  owner: DisposableStack,
  former?: Mapping,
): Opened {
  const device = stack.use(new VfioDevice(pci, vfioGroup(pci)));
  const combining = mapCombining(pci, former);
  const memory = combining ?? device.map(device.region(BAR_MEMORY), former);
  if (former === undefined) owner.use(memory);
  return { device, memory, isDeviceMemory: combining === undefined };
}

/**
 * BAR2 write-combining, by sysfs: normal memory to an arm64, which VFIO's own uncached mapping is not.
 * The kernel allows it as long as VFIO has not mapped the BAR; undefined where it does not.
 */
function mapCombining(pci: PciFunction, former?: Mapping): Mapping | undefined {
  try {
    const fd = openFile(`${pci.path}/resource${BAR_MEMORY}_wc`);
    if (former === undefined) return mapKept({ fd, offset: 0 }, pci.bars[BAR_MEMORY]!.size, fd);
    using file = fd;
    remap(former, file.number);
    return former;
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
const INDEX_OF = { msix: VFIO_PCI_MSIX_IRQ_INDEX, intx: VFIO_PCI_INTX_IRQ_INDEX };

function interruptsOf(device: VfioDevice): Interrupts {
  const patched = device.region(BAR_REGISTERS).size > STOCK_REGISTERS_SIZE;
  if (patched && device.interruptCount(VFIO_PCI_INTX_IRQ_INDEX) > 0) return "intx";
  return device.interruptCount(VFIO_PCI_MSIX_IRQ_INDEX) > 0 ? "msix" : "none";
}

/** Undefined for one that is gone. */
function inodeOf({ path }: PciFunction): bigint | undefined {
  using directory = openPath(path);
  return directory === undefined ? undefined : inodeNumber(directory);
}

/** What is closed when the function is let go; `stack` owns it. */
interface Held {
  readonly stack: DisposableStack;
  readonly device: VfioDevice;
  readonly registers: Registers;
  readonly kind: Interrupts;
  readonly eventFds: readonly Fd[];
  /** Vectors that signal others. */
  readonly lent: Set<number>;
  /** Signalled when the kernel wants the function back. */
  readonly request: Fd | undefined;
}

class VfioEnd implements IvshmemEnd {
  readonly description: string;
  readonly isDeviceMemory: boolean;
  readonly peers = undefined;
  readonly memory: Mapping;
  /** What outlives the function: the binding, and addresses for BAR2. */
  readonly #stack: DisposableStack;
  readonly #pci: PciFunction;
  #binding: Disposable | undefined;
  #id: number;
  #held: Held | undefined;
  #reactor: Reactor | undefined;
  #listener: EndListener | undefined;
  #retry: Timer | undefined;
  /** Of its directory: another one is another function, plugged in since. */
  #inode: bigint | undefined;

  constructor(address: string, readonly options: VfioOptions) {
    using stack = new DisposableStack();
    this.#pci = ivshmemFunction(address, options.sysfs);
    this.#inode = inodeOf(this.#pci);
    this.description = `ivshmem ${this.#pci.address}`;
    // Undone last: whoever unbinds a function that is open waits for ever.
    stack.defer(() => this.#binding?.[Symbol.dispose]());
    if (options.bind === true) this.#binding = bindToVfio(this.#pci, options.log);
    const [held, { memory, isDeviceMemory }] = this.#hold(stack);
    stack.defer(() => this.#held?.stack.dispose());
    this.memory = memory;
    this.isDeviceMemory = isDeviceMemory;
    this.#held = held;
    this.#id = held.registers.read(Register.IV_POSITION) & 0xffff;
    this.#stack = stack.move();
  }

  get id(): number {
    return this.#id;
  }

  get interrupts(): boolean {
    return this.#held?.kind !== "none";
  }

  /** Opens the function; its memory stays when it is let go, because others have views of it. */
  #hold(owner: DisposableStack, former?: Mapping): [Held, Opened] {
    using stack = new DisposableStack();
    const opened = openFunction(this.#pci, stack, owner, former);
    const { device } = opened;
    const registers = openRegisters(device, stack);
    const kind = interruptsOf(device);
    const eventFds = (index: number) => {
      const count = Math.min(device.interruptCount(index), MAX_VECTORS);
      const fds = Array.from({ length: count }, () => stack.use(createEventFd()));
      if (count > 0) device.setEventFds(index, fds);
      return fds;
    };
    const vectors = kind === "none" ? [] : eventFds(INDEX_OF[kind]);
    const [request] = eventFds(VFIO_PCI_REQ_IRQ_INDEX);
    if (kind === "intx") registers.write(Register.INTERRUPT_MASK, 0xffff_ffff);
    return [{
      stack: stack.move(),
      device,
      registers,
      kind,
      eventFds: vectors,
      lent: new Set(),
      request,
    }, opened];
  }

  open(reactor: Reactor, listener: EndListener): void {
    this.#reactor = reactor;
    this.#listener = listener;
    this.#retry = reactor.timer(() => this.#comeBack());
    this.#stack.defer(() => reactor.dropTimer(this.#retry!));
    this.#watch(this.#held!);
  }

  #watch(held: Held): void {
    const reactor = this.#reactor!;
    const watch = (fd: Fd, ready: () => void) => {
      reactor.watch(fd, EPOLLIN, ready);
      held.stack.defer(() => reactor.unwatch(fd));
    };
    for (const fd of held.eventFds) watch(fd, () => this.#interrupted(fd, held));
    if (held.request !== undefined) watch(held.request, () => this.#letGo(held));
  }

  #interrupted(fd: Fd, { kind, registers, device }: Held): void {
    clearEventFd(fd);
    if (kind === "intx") registers.read(Register.INTERRUPT_STATUS);
    this.#listener?.rung();
    // The listener may have disposed of this end meanwhile.
    if (kind === "intx" && this.#held !== undefined) device.unmask(VFIO_PCI_INTX_IRQ_INDEX);
  }

  /** The kernel wants the function back; whoever unbinds it waits until nothing of it is open or mapped. */
  #letGo(held: Held): void {
    if (held.device.isPinning) {
      const why = "with memory pinned by it: ended, start again when it is back";
      const error = new VmsgError("FUNCTION_GONE", `${this.description} ${ASKED} ${why}`);
      return this.#reactor!.fail(error);
    }
    this.#listener?.away?.(`the function ${ASKED} and was let go; waiting for it`);
    this.#held = undefined;
    remap(this.memory, undefined);
    held.stack.dispose();
    this.#retry!.arm(RETRY_MS);
  }

  /** It is back when it is bound to vfio-pci again; one that was unplugged is bound as at the start. */
  #comeBack(): void {
    const { options: { bind, log }, memory } = this;
    const pci = this.#pci;
    this.#retry!.arm(RETRY_MS);
    if (!pci.exists) return;
    try {
      if (bind === true && inodeOf(pci) !== this.#inode) this.#binding = bindToVfio(pci, log);
      this.#inode = inodeOf(pci);
      if (pci.driver !== VFIO_DRIVER || pci.bars[BAR_MEMORY]!.size !== memory.size) return;
      [this.#held] = this.#hold(this.#stack, memory);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      // Half of it must not stay, or it could not be taken away again.
      remap(memory, undefined);
      return log.debug(error.message);
    }
    this.#id = this.#held.registers.read(Register.IV_POSITION) & 0xffff;
    this.#retry!.cancel();
    this.#watch(this.#held);
    this.#listener?.back?.();
  }

  ring(peer: number): void {
    this.ringVector(peer, 0);
  }

  ringVector(peer: number, vector: number): void {
    this.#held?.registers.write(Register.DOORBELL, ((peer << 16) | vector) >>> 0);
  }

  lendVector(event: Fd): LentVector | undefined {
    const held = this.#held;
    if (held === undefined || held.kind !== "msix") return undefined;
    const number = held.eventFds.findIndex((_, n) => n > 0 && !held.lent.has(n));
    if (number < 0) return undefined;
    const lendTo = (fd: Fd): boolean => {
      try {
        held.device.setEventFds(VFIO_PCI_MSIX_IRQ_INDEX, [fd], number);
        return true;
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        // The kernel has taken the vector from whoever had it.
        held.device.setEventFds(VFIO_PCI_MSIX_IRQ_INDEX, [held.eventFds[number]!], number);
        return false;
      }
    };
    if (!lendTo(event)) return undefined;
    held.lent.add(number);
    return {
      number,
      lendTo,
      [Symbol.dispose]: () => {
        // A function that was let go has none any more. (Who is lent one has memory pinned, and ends then.)
        if (this.#held === held && held.lent.delete(number)) lendTo(held.eventFds[number]!);
      },
    };
  }

  pin(address: bigint, size: number): Disposable | undefined {
    return this.#held?.device.pin(address, size);
  }

  get pinHandles(): readonly Fd[] {
    return this.#held?.device.pinHandles ?? [];
  }

  [Symbol.dispose](): void {
    this.#listener = undefined;
    this.#stack.dispose();
    this.#held = undefined;
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

const ASKED = "was asked for by the kernel (unbind or hot-unplug)";

/**
 * Opens only the shared memory of a function, as memory; through VFIO, see {@link openVfioEnd}.
 *
 * @param reactor fails when the kernel wants the function back, who waits until we have ended: rings lie in it
 */
export function openVfioMemory(
  address: string,
  options: VfioOptions,
  reactor?: Reactor,
): FunctionMemory {
  using stack = new DisposableStack();
  const pci = ivshmemFunction(address, options.sysfs);
  if (options.bind === true) stack.use(bindToVfio(pci, options.log));
  const { device, memory, isDeviceMemory } = openFunction(pci, stack, stack);
  if (reactor !== undefined && device.interruptCount(VFIO_PCI_REQ_IRQ_INDEX) > 0) {
    const request = stack.use(createEventFd());
    device.setEventFds(VFIO_PCI_REQ_IRQ_INDEX, [request]);
    const why = `ivshmem ${pci.address} ${ASKED}: ended, start again when it is back`;
    reactor.watch(request, EPOLLIN, () => reactor.fail(new VmsgError("FUNCTION_GONE", why)));
    stack.defer(() => reactor.unwatch(request));
  }
  return functionMemory(pci, memory, isDeviceMemory, stack.move());
}
