/**
 * VFIO: a PCI function of this machine in the hands of this process.
 *
 * A function belongs to an IOMMU group, /dev/vfio/N, which one process has at a time; the group goes
 * into a container, /dev/vfio/vfio, which holds the IOMMU's mappings. Functions of one group that are
 * opened in the same thread share both. Where the kernel allows functions without an IOMMU (not
 * Debian's), the group is /dev/vfio/noiommu-N.
 *
 * The structures are handed over in one block, each with its size first. Requests are
 * _IO(';', 100 + n), plain numbers.
 *
 * Source: linux/vfio.h; Documentation/driver-api/vfio.rst.
 */

import { allocate } from "./arena.ts";
import { MONOTONIC, pause } from "./clock.ts";
import { linuxErrno, LinuxError, VmsgError } from "./errors.ts";
import { Fd, openFile } from "./fd.ts";
import { check, errno, libc } from "./libc.ts";
import { mapKept, type Mapping, PAGE_SIZE, remap } from "./mapping.ts";
import { groupFunctions, type PciFunction } from "./sysfs.ts";

const VFIO_CHECK_EXTENSION = 0x3b65n;
const VFIO_SET_IOMMU = 0x3b66n;
const VFIO_GROUP_GET_STATUS = 0x3b67n;
const VFIO_GROUP_SET_CONTAINER = 0x3b68n;
const VFIO_GROUP_GET_DEVICE_FD = 0x3b6an;
const VFIO_DEVICE_GET_REGION_INFO = 0x3b6cn;
const VFIO_DEVICE_GET_IRQ_INFO = 0x3b6dn;
const VFIO_DEVICE_SET_IRQS = 0x3b6en;
const VFIO_IOMMU_MAP_DMA = 0x3b71n;
const VFIO_IOMMU_UNMAP_DMA = 0x3b72n;

const VFIO_TYPE1_IOMMU = 1n;
const VFIO_TYPE1V2_IOMMU = 3n;
const VFIO_NOIOMMU_IOMMU = 8n;

const VFIO_GROUP_FLAGS_VIABLE = 1;
const VFIO_REGION_INFO_FLAG_MMAP = 4;
const VFIO_IRQ_SET_DATA_NONE = 0x01;
const VFIO_IRQ_SET_DATA_EVENTFD = 0x04;
const VFIO_IRQ_SET_ACTION_UNMASK = 0x10;
const VFIO_IRQ_SET_ACTION_TRIGGER = 0x20;
const VFIO_DMA_MAP_FLAG_READ = 1;
const VFIO_DMA_MAP_FLAG_WRITE = 2;

const VFIO_PCI_CONFIG_REGION_INDEX = 7;

/** Interrupts of a PCI function, see {@link VfioDevice.setEventFds}. */
export const VFIO_PCI_INTX_IRQ_INDEX = 0;
/** As above. */
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
/** Not the function's: the kernel asks for it, for an unbind or hot-unplug that waits until it is closed. */
export const VFIO_PCI_REQ_IRQ_INDEX = 4;

/** The most vectors {@link VfioDevice.setEventFds} takes. */
export const MAX_VECTORS = 64;

const PCI_COMMAND = 4;
const PCI_COMMAND_MEMORY = 0x2;
const PCI_COMMAND_MASTER = 0x4;

const GROUP_STATUS_SIZE = 8;
const REGION_INFO_SIZE = 32;
const IRQ_INFO_SIZE = 16;
const IRQ_SET_SIZE = 20;
const IRQ_SET_START = 12;
const DMA_MAP_SIZE = 32;
const DMA_UNMAP_SIZE = 24;

/** The first IO address given to pinned memory; what lies below may be reserved for interrupts. */
const FIRST_IOVA = 0x1_0000_0000n;

const CONTAINER_PATH = "/dev/vfio/vfio";

const EACCES = linuxErrno("EACCES");
const EPERM = linuxErrno("EPERM");
const EBUSY = linuxErrno("EBUSY");
const ENOENT = linuxErrno("ENOENT");
const ENODEV = linuxErrno("ENODEV");
const ENOMEM = linuxErrno("ENOMEM");

/** Whatever structure is handed over; the longest is an irq_set with its eventfds. */
const argument = allocate(IRQ_SET_SIZE + 4 * MAX_VECTORS);

/** Begins a structure: zero but for its size, u32 argsz, which is always first. */
function begin(size: number): DataView {
  argument.bytes.fill(0);
  argument.view.setUint32(0, size, true);
  return argument.view;
}

/**
 * How long a group that another process has open is asked for: one that was killed leaves its pins behind
 * for a moment (pin_holder.ts).
 */
const BUSY_MS = 1000;
const BUSY_RETRY_MS = 20;

/** Opens a file; one that is busy is tried again for a while, which blocks. */
function openPatiently(path: string): Fd {
  const endMs = MONOTONIC.now() + BUSY_MS;
  for (;;) {
    try {
      return openFile(path);
    } catch (error) {
      const isBusy = error instanceof LinuxError && error.errno === EBUSY;
      if (!isBusy || MONOTONIC.now() > endMs) throw error;
      pause(BUSY_RETRY_MS);
    }
  }
}

/** Opens a device file of VFIO; errors say what to do about them. */
function openVfioFile(path: string, pci: PciFunction): Fd {
  try {
    return openPatiently(path);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    const at = `PCI function ${pci.address}: ${path}`;
    if (error.errno === EBUSY) {
      throw new VmsgError("FUNCTION_BUSY", `${at} is in use by another process: end that first`);
    }
    if (error.errno === EACCES || error.errno === EPERM) {
      throw new VmsgError(
        "NO_PERMISSION",
        `${at} may not be opened: be root, or have root give you that file`,
      );
    }
    if (error.errno === ENOENT || error.errno === ENODEV) {
      throw new VmsgError(
        "NO_VFIO",
        `${at} is not there: load the modules vfio_iommu_type1 and vfio-pci (modprobe); ` +
          "a container must be given /dev/vfio",
      );
    }
    throw error;
  }
}

/** A group and its container. */
class VfioGroup {
  users = 0;
  readonly group: Fd;
  readonly #container: Fd;
  readonly #hasIommu: boolean;
  /** While any process has these open, what is pinned stays so. */
  get handles(): readonly Fd[] {
    return [this.group, this.#container];
  }

  /** IO addresses in use, in ascending order. */
  readonly #mapped: { readonly iova: bigint; readonly size: bigint }[] = [];

  constructor(readonly name: string, pci: PciFunction) {
    using stack = new DisposableStack();
    this.#container = stack.use(openVfioFile(CONTAINER_PATH, pci));
    const { fd, hasIommu } = openGroup(name, pci);
    this.group = stack.use(fd);
    this.#hasIommu = hasIommu;

    const status = begin(GROUP_STATUS_SIZE);
    const gotten = libc.ioctl(this.group.number, VFIO_GROUP_GET_STATUS, argument.address);
    check(gotten, `status of IOMMU group ${name}`);
    if ((status.getUint32(4, true) & VFIO_GROUP_FLAGS_VIABLE) === 0) throw notViable(name, pci);

    argument.view.setInt32(0, this.#container.number, true);
    const joined = libc.ioctl(this.group.number, VFIO_GROUP_SET_CONTAINER, argument.address);
    check(joined, `put IOMMU group ${name} into a container`);
    check(
      libc.ioctl(this.#container.number, VFIO_SET_IOMMU, this.#chooseIommu()),
      `set the IOMMU of group ${name}`,
    );
    stack.move();
  }

  #chooseIommu(): bigint {
    if (!this.#hasIommu) return VFIO_NOIOMMU_IOMMU;
    const supported = libc.ioctl(this.#container.number, VFIO_CHECK_EXTENSION, VFIO_TYPE1V2_IOMMU);
    return supported > 0 ? VFIO_TYPE1V2_IOMMU : VFIO_TYPE1_IOMMU;
  }

  /** The IO address, or undefined without an IOMMU. */
  pin(address: bigint, size: number): bigint | undefined {
    if (!this.#hasIommu) return undefined;
    const { iova, index } = this.#gap(BigInt(size));
    const view = begin(DMA_MAP_SIZE);
    view.setUint32(4, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, true);
    view.setBigUint64(8, address, true);
    view.setBigUint64(16, iova, true);
    view.setBigUint64(24, BigInt(size), true);
    const result = libc.ioctl(this.#container.number, VFIO_IOMMU_MAP_DMA, argument.address);
    if (result < 0 && errno() === ENOMEM) {
      throw new VmsgError(
        "PIN",
        `cannot pin ${size} bytes of memory: raise the limit for locked memory (ulimit -l), ` +
          "or be root",
      );
    }
    check(result, `pin ${size} bytes of memory`);
    this.#mapped.splice(index, 0, { iova, size: BigInt(size) });
    return iova;
  }

  /** The lowest free IO address, and its place among those in use. */
  #gap(size: bigint): { iova: bigint; index: number } {
    let iova = FIRST_IOVA;
    for (const [index, next] of this.#mapped.entries()) {
      if (iova + size <= next.iova) return { iova, index };
      iova = next.iova + next.size;
    }
    return { iova, index: this.#mapped.length };
  }

  unpin(iova: bigint, size: number): void {
    const view = begin(DMA_UNMAP_SIZE);
    view.setBigUint64(8, iova, true);
    view.setBigUint64(16, BigInt(size), true);
    libc.ioctl(this.#container.number, VFIO_IOMMU_UNMAP_DMA, argument.address);
    this.#mapped.splice(this.#mapped.findIndex((mapped) => mapped.iova === iova), 1);
  }

  close(): void {
    this.group[Symbol.dispose]();
    this.#container[Symbol.dispose]();
  }
}

/** A group without an IOMMU has another name; only one of the two is there. */
function openGroup(name: string, pci: PciFunction): { fd: Fd; hasIommu: boolean } {
  try {
    return { fd: openVfioFile(`/dev/vfio/${name}`, pci), hasIommu: true };
  } catch (error) {
    if (!(error instanceof VmsgError) || error.code !== "NO_VFIO") throw error;
    try {
      return { fd: openPatiently(`/dev/vfio/noiommu-${name}`), hasIommu: false };
    } catch (second) {
      if (second instanceof LinuxError && second.errno === ENOENT) throw error;
      throw second;
    }
  }
}

function notViable(name: string, pci: PciFunction): VmsgError {
  const others = groupFunctions(name, pci.sysfs)
    .filter(({ driver }) => driver !== undefined && driver !== "vfio-pci")
    .map(({ address, driver }) => `${address} (${driver})`);
  return new VmsgError(
    "GROUP_NOT_VIABLE",
    `PCI function ${pci.address} shares IOMMU group ${name} with functions that drivers use: ` +
      `unbind ${others.join(", ")}, or give the function a slot of its own`,
  );
}

/** The groups this thread has open, by name: a second open would be refused. */
const groups = new Map<string, VfioGroup>();

function enterGroup(name: string, pci: PciFunction): VfioGroup {
  const group = groups.get(name) ?? new VfioGroup(name, pci);
  groups.set(name, group);
  group.users++;
  return group;
}

function leaveGroup(group: VfioGroup): void {
  group.users--;
  if (group.users > 0) return;
  groups.delete(group.name);
  group.close();
}

/** A part of a function: a base address register, or its configuration space. */
export interface VfioRegion {
  /** In bytes; 0 if the function does not have it. */
  readonly size: number;
  /** Where it lies in the device's file. */
  readonly offset: number;
  /** Can it be mapped? */
  readonly mappable: boolean;
}

/** A function opened through VFIO. */
export class VfioDevice implements Disposable {
  readonly #group: VfioGroup;
  readonly #fd: Fd;
  /** What is pinned, and how to let it go. */
  readonly #pinned = new Set<Disposable>();
  #open = true;

  /**
   * Opens a function that is bound to vfio-pci, and lets it decode memory and send interrupts.
   *
   * @param group its IOMMU group
   * @throws VmsgError NO_VFIO, FUNCTION_BUSY, GROUP_NOT_VIABLE, NO_PERMISSION
   */
  constructor(readonly pci: PciFunction, group: string) {
    using stack = new DisposableStack();
    this.#group = stack.adopt(enterGroup(group, pci), leaveGroup);
    argument.bytes.fill(0);
    new TextEncoder().encodeInto(pci.address, argument.bytes);
    const { number } = this.#group.group;
    const device = libc.ioctl(number, VFIO_GROUP_GET_DEVICE_FD, argument.address);
    this.#fd = stack.use(new Fd(check(device, `open PCI function ${pci.address} through vfio`)));
    this.#enable();
    stack.move();
  }

  /** Without bus mastering MSI-X is dropped without a word. */
  #enable(): void {
    const config = this.region(VFIO_PCI_CONFIG_REGION_INDEX);
    const at = config.offset + PCI_COMMAND;
    this.#transfer(libc.pread, at, 2, "read the command register");
    const command = argument.view.getUint16(0, true);
    argument.view.setUint16(0, command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, true);
    this.#transfer(libc.pwrite, at, 2, "write the command register");
  }

  #transfer(call: typeof libc.pread, offset: number, size: number, what: string): void {
    const done = call(this.#fd.number, argument.address, size, BigInt(offset));
    check(done, `${what} of PCI function ${this.pci.address}`);
    if (done !== size) {
      throw new Error(`${what} of PCI function ${this.pci.address}: ${done} bytes`);
    }
  }

  /** What a region is like: 0 to 5 are the base address registers. */
  region(index: number): VfioRegion {
    const view = begin(REGION_INFO_SIZE);
    view.setUint32(8, index, true);
    const result = libc.ioctl(this.#fd.number, VFIO_DEVICE_GET_REGION_INFO, argument.address);
    check(result, `region ${index} of PCI function ${this.pci.address}`);
    return {
      size: Number(view.getBigUint64(16, true)),
      offset: Number(view.getBigUint64(24, true)),
      mappable: (view.getUint32(4, true) & VFIO_REGION_INFO_FLAG_MMAP) !== 0,
    };
  }

  /** Maps all of a region, a small one as a page; with `former` at the addresses of its mapping before. */
  map(region: VfioRegion, former?: Mapping): Mapping {
    if (former !== undefined) {
      remap(former, this.#fd.number, region.offset);
      return former;
    }
    const size = Math.ceil(region.size / PAGE_SIZE) * PAGE_SIZE;
    // The descriptor is the device's, which outlives its mappings.
    return mapKept({ fd: this.#fd, offset: region.offset }, size);
  }

  /** Reads 32 bits of a region that cannot be mapped. */
  read32(region: VfioRegion, offset: number): number {
    this.#transfer(libc.pread, region.offset + offset, 4, "read a register");
    return argument.view.getUint32(0, true);
  }

  /** Writes 32 bits of a region that cannot be mapped. */
  write32(region: VfioRegion, offset: number, value: number): void {
    argument.view.setUint32(0, value, true);
    this.#transfer(libc.pwrite, region.offset + offset, 4, "write a register");
  }

  /** How many interrupts of a kind there are: MSI-X vectors, or 1 for INTx. */
  interruptCount(index: number): number {
    const view = begin(IRQ_INFO_SIZE);
    view.setUint32(8, index, true);
    const result = libc.ioctl(this.#fd.number, VFIO_DEVICE_GET_IRQ_INFO, argument.address);
    // A function without any has no such index.
    return result < 0 ? 0 : view.getUint32(12, true);
  }

  /** Has interrupts of a kind, from the `first` on, signal one eventfd each; at most {@link MAX_VECTORS}. */
  setEventFds(index: number, fds: readonly Fd[], first = 0): void {
    if (fds.length > MAX_VECTORS) throw new Error(`${fds.length} eventfds`);
    const flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    const view = beginIrqSet(index, flags, fds.length, 4 * fds.length);
    view.setUint32(IRQ_SET_START, first, true);
    fds.forEach((fd, i) => view.setInt32(IRQ_SET_SIZE + 4 * i, fd.number, true));
    this.#setIrqs("set the interrupts");
  }

  /** Lets INTx through again: the kernel masks it each time. */
  unmask(index: number): void {
    beginIrqSet(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 1, 0);
    this.#setIrqs("unmask the interrupt");
  }

  #setIrqs(what: string): void {
    const result = libc.ioctl(this.#fd.number, VFIO_DEVICE_SET_IRQS, argument.address);
    check(result, `${what} of PCI function ${this.pci.address}`);
  }

  /**
   * Pins memory of this process by mapping it for the device, until what is returned is disposed, or the
   * device is closed.
   *
   * @returns undefined without an IOMMU
   */
  pin(address: bigint, size: number): Disposable | undefined {
    const iova = this.#group.pin(address, size);
    if (iova === undefined) return undefined;
    const pin = {
      [Symbol.dispose]: () => {
        if (this.#pinned.delete(pin)) this.#group.unpin(iova, size);
      },
    };
    this.#pinned.add(pin);
    return pin;
  }

  /** Is memory pinned through this function? */
  get isPinning(): boolean {
    return this.#pinned.size > 0;
  }

  /** What is pinned outlives this process as long as another one has these descriptors. */
  get pinHandles(): readonly Fd[] {
    return this.#group.handles;
  }

  /** Closes the function. Its mappings must be gone by now, they hold it open. */
  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    for (const pin of this.#pinned) pin[Symbol.dispose]();
    this.#fd[Symbol.dispose]();
    leaveGroup(this.#group);
  }
}

function beginIrqSet(index: number, flags: number, count: number, dataSize: number): DataView {
  const view = begin(IRQ_SET_SIZE + dataSize);
  view.setUint32(4, flags, true);
  view.setUint32(8, index, true);
  view.setUint32(IRQ_SET_START, 0, true);
  view.setUint32(16, count, true);
  return view;
}
