/**
 * An ivshmem PCI function through sysfs alone: the way for machines without vfio.
 *
 * The function has no driver (its attribute `enable` has it decode memory) or uio_pci_generic. Its BARs
 * are the files resource0 and resource2; resource2_wc is the latter write-combining, far faster where
 * the processor is the one that decides, and normal memory to an arm64. A byte of resource0 is locked,
 * so that two processes do not use one end.
 *
 * Without a driver nothing interrupts, and who uses the end looks by itself. uio_pci_generic gives
 * INTx, which only the prototype's patched device has: the file /dev/uioN counts interrupts, and the
 * kernel turns INTx off in the command register each time.
 *
 * A kernel with IO_STRICT_DEVMEM maps nothing of a function that vfio-pci has.
 *
 * Source: Documentation/PCI/sysfs-pci.rst, Documentation/driver-api/uio-howto.rst.
 */

import { allocate } from "../linux/arena.ts";
import { EAGAIN, linuxErrno, LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, openFile, tryLockByte } from "../linux/fd.ts";
import { check, errno, libc } from "../linux/libc.ts";
import { mapKept, type Mapping, mapShared, PAGE_SIZE } from "../linux/mapping.ts";
import { EPOLLIN, type Reactor } from "../linux/reactor.ts";
import { directoryNames, type PciFunction, writeAttribute } from "../linux/sysfs.ts";
import type { Log } from "../observe/log.ts";
import { type EndListener, type IvshmemEnd, Register } from "./end.ts";
import {
  type FunctionMemory,
  functionMemory,
  ivshmemFunction,
  mappedRegisters,
  type Registers,
  REGISTERS_SIZE,
} from "./function.ts";
import { VFIO_DRIVER } from "./binding.ts";

const UIO_DRIVER = "uio_pci_generic";
const O_NONBLOCK = 0o4000;
const ENOENT = linuxErrno("ENOENT");
const EACCES = linuxErrno("EACCES");
const EPERM = linuxErrno("EPERM");

/**
 * The command register in the configuration space. It is written whole: QEMU (7.2) does not look whether
 * an interrupt is pending if only its upper byte is, which has the bit.
 */
const PCI_COMMAND = 4;
const PCI_COMMAND_INTX_DISABLE = 0x400;

/** The byte of resource0 that whoever uses the end has locked. */
const LOCK_BYTE = 0;

/** What is read from /dev/uioN, a count of 32 bits, and the command register. */
const count = allocate(4);
const command = allocate(2);

/** How to open a function through sysfs. */
export interface SysfsEndOptions {
  /** Told if it has no interrupts. */
  readonly log: Log;
  /** Where sysfs is, if not at /sys; for tests. */
  readonly sysfs?: string;
}

/** How to map a function's memory through sysfs. */
export interface SysfsMemoryOptions {
  /** False maps it uncached; otherwise write-combining, where the kernel can. */
  readonly writeCombining?: boolean;
  /** Where sysfs is, if not at /sys; for tests. */
  readonly sysfs?: string;
}

function isForbidden(error: unknown): boolean {
  return error instanceof LinuxError && [EACCES, EPERM].includes(error.errno);
}

function openResource(pci: PciFunction, name: string): Fd {
  try {
    return openFile(`${pci.path}/${name}`);
  } catch (error) {
    if (!isForbidden(error)) throw error;
    throw new VmsgError(
      "NO_PERMISSION",
      `ivshmem ${pci.address}: ${pci.path}/${name} may not be opened: be root, or have root give ` +
        "you that file",
    );
  }
}

/** Has an idle function decode memory; undone when the stack is. */
function enable(pci: PciFunction, stack: DisposableStack): void {
  const { driver } = pci;
  if (driver === UIO_DRIVER) return;
  if (driver !== undefined) {
    const advice = driver === VFIO_DRIVER
      ? "use it through vfio, or unbind it"
      : `unbind it: echo ${pci.address} > ${pci.path}/driver/unbind`;
    throw new VmsgError(
      "FUNCTION_BUSY",
      `ivshmem ${pci.address} is bound to ${driver}, so sysfs may not map it: ${advice}`,
    );
  }
  // The kernel counts, so each user takes back its own.
  const file = `${pci.path}/enable`;
  try {
    writeAttribute(file, "1");
    stack.defer(() => disable(pci));
  } catch (error) {
    if (!isForbidden(error)) throw error;
    // The kernel lets root write it only, whoever has the file; root may have done so before.
    if (Number(pci.attribute("enable") ?? 0) > 0) return;
    const advice = `be root, or have root do it: echo 1 > ${file}`;
    throw new VmsgError("NO_PERMISSION", `ivshmem ${pci.address} may not be enabled: ${advice}`);
  }
}

/** Fails if a driver has come meanwhile; the function is that driver's then. */
function disable(pci: PciFunction): void {
  try {
    writeAttribute(`${pci.path}/enable`, "0");
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
  }
}

/** The file of BAR2 that suits, and what mapping it means. */
function openMemoryFile(
  pci: PciFunction,
  writeCombining: boolean,
): { fd: Fd; isDeviceMemory: boolean } {
  if (writeCombining) {
    try {
      return { fd: openResource(pci, "resource2_wc"), isDeviceMemory: false };
    } catch (error) {
      if (!(error instanceof LinuxError) || error.errno !== ENOENT) throw error;
    }
  }
  return { fd: openResource(pci, "resource2"), isDeviceMemory: true };
}

function mapMemory(
  pci: PciFunction,
  writeCombining: boolean,
  stack: DisposableStack,
): { memory: Mapping; isDeviceMemory: boolean } {
  const { fd, isDeviceMemory } = openMemoryFile(pci, writeCombining);
  const memory = stack.use(mapKept({ fd, offset: 0 }, pci.bars[2]!.size, fd));
  return { memory, isDeviceMemory };
}

/** The page of BAR0, which may begin within it. */
function mapRegisters(pci: PciFunction, fd: Fd, stack: DisposableStack): Registers {
  const start = pci.bars[0]!.start % PAGE_SIZE;
  return mappedRegisters(stack.use(mapShared(fd.number, PAGE_SIZE)), start);
}

/**
 * The own id of a function if reading it changes nothing: it must be enabled already, and no driver's.
 */
export function readOwnId(pci: PciFunction): number | undefined {
  if (pci.driver !== undefined || Number(pci.attribute("enable") ?? 0) === 0) return undefined;
  if ((pci.bars[0]?.size ?? 0) < REGISTERS_SIZE) return undefined;
  try {
    using stack = new DisposableStack();
    using fd = openResource(pci, "resource0");
    return mapRegisters(pci, fd, stack).read(Register.IV_POSITION) & 0xffff;
  } catch (error) {
    if (error instanceof VmsgError) return undefined;
    throw error;
  }
}

/** INTx of a function by uio_pci_generic. */
interface Uio {
  readonly device: Fd;
  readonly config: Fd;
}

/** Opens uio's files if the function has an interrupt there. */
function openUio(pci: PciFunction, stack: DisposableStack): Uio | undefined {
  if (pci.driver !== UIO_DRIVER) return undefined;
  const name = directoryNames(`${pci.path}/uio`)[0];
  if (name === undefined) return undefined;
  const device = stack.use(openFile(`/dev/${name}`, O_NONBLOCK));
  // Without an interrupt reading is an error (EIO); with one that has not come, EAGAIN.
  const read = libc.read(device.number, count.address, 4);
  if (read < 0 && errno() !== EAGAIN) return undefined;
  return { device, config: stack.use(openResource(pci, "config")) };
}

class SysfsEnd implements IvshmemEnd {
  readonly description: string;
  readonly id: number;
  readonly isDeviceMemory: boolean;
  readonly peers = undefined;
  readonly memory: Mapping;
  readonly #stack: DisposableStack;
  readonly #registers: Registers;
  readonly #uio: Uio | undefined;

  constructor(address: string, options: SysfsEndOptions) {
    using stack = new DisposableStack();
    const pci = ivshmemFunction(address, options.sysfs);
    this.description = `ivshmem ${pci.address}`;
    const registers = stack.use(openResource(pci, "resource0"));
    if (!tryLockByte(registers, LOCK_BYTE)) {
      throw new VmsgError(
        "FUNCTION_BUSY",
        `ivshmem ${pci.address} is in use by another process: end that first`,
      );
    }
    enable(pci, stack);
    this.#registers = mapRegisters(pci, registers, stack);
    const { memory, isDeviceMemory } = mapMemory(pci, true, stack);
    this.memory = memory;
    this.isDeviceMemory = isDeviceMemory;
    this.id = this.#registers.read(Register.IV_POSITION) & 0xffff;
    this.#uio = openUio(pci, stack);
    if (this.#uio === undefined) {
      options.log.debug(`${this.description} has no interrupts without vfio`);
    } else {
      this.#registers.write(Register.INTERRUPT_MASK, 0xffff_ffff);
      this.#letThrough(this.#uio);
    }
    this.#stack = stack.move();
  }

  get interrupts(): boolean {
    return this.#uio !== undefined;
  }

  #letThrough({ config }: Uio): void {
    const { address, view } = command;
    const what = `let interrupts of ${this.description} through`;
    check(libc.pread(config.number, address, 2, BigInt(PCI_COMMAND)), what);
    view.setUint16(0, view.getUint16(0, true) & ~PCI_COMMAND_INTX_DISABLE, true);
    check(libc.pwrite(config.number, address, 2, BigInt(PCI_COMMAND)), what);
  }

  open(reactor: Reactor, listener: EndListener): void {
    const uio = this.#uio;
    if (uio === undefined) return;
    reactor.watch(uio.device, EPOLLIN, () => {
      libc.read(uio.device.number, count.address, 4);
      this.#registers.read(Register.INTERRUPT_STATUS);
      listener.rung();
      this.#letThrough(uio);
    });
    this.#stack.defer(() => reactor.unwatch(uio.device));
  }

  ring(peer: number): void {
    this.ringVector(peer, 0);
  }

  ringVector(peer: number, vector: number): void {
    this.#registers.write(Register.DOORBELL, ((peer << 16) | vector) >>> 0);
  }

  pin(_address: bigint, _size: number): undefined {
    return undefined;
  }

  readonly pinHandles: readonly Fd[] = [];

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/**
 * Opens an ivshmem function through sysfs.
 *
 * @param address its PCI address, as in "0000:00:10.0"
 * @throws VmsgError FUNCTION_BUSY, NO_PERMISSION, and those of function.ts
 */
export function openSysfsEnd(address: string, options: SysfsEndOptions): IvshmemEnd {
  return new SysfsEnd(address, options);
}

/**
 * Opens only the shared memory of a function, as memory; through sysfs. Any number of processes can.
 *
 * @throws VmsgError FUNCTION_BUSY if a driver has it, NO_PERMISSION, and those of function.ts
 */
export function openSysfsMemory(
  address: string,
  options: SysfsMemoryOptions = {},
): FunctionMemory {
  using stack = new DisposableStack();
  const pci = ivshmemFunction(address, options.sysfs);
  enable(pci, stack);
  const { memory, isDeviceMemory } = mapMemory(pci, options.writeCombining ?? true, stack);
  return functionMemory(pci, memory, isDeviceMemory, stack.move());
}
