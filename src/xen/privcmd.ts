/**
 * /dev/xen/privcmd: what Dom0 asks of the hypervisor, as far as a device model needs it.
 *
 * Operations of a device model are handed over as a structure of 32 bytes, u32 operation first, in a list of one
 * buffer. Which there are, and that the layouts are the same on x86-64 and arm64, was found by running them.
 * One descriptor serves one domain: {@link Privcmd.restrict} has the kernel refuse all others.
 *
 * Source: xen/include/public/hvm/dm_op.h, linux include/uapi/xen/privcmd.h (numbers and layouts).
 */

import { allocate } from "../linux/arena.ts";
import { linuxErrno, LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, openFile } from "../linux/fd.ts";
import { check, libc } from "../linux/libc.ts";
import { mapAnonymous, type Mapping, mapShared, PAGE_SIZE, remap } from "../linux/mapping.ts";

/** The device file. */
export const PRIVCMD_PATH = "/dev/xen/privcmd";

const IOCTL_DM_OP = 0x0010_5005n;
const IOCTL_MMAP_RESOURCE = 0x0020_5007n;
const IOCTL_MMAPBATCH_V2 = 0x0020_5004n;
const IOCTL_RESTRICT = 0x0002_5006n;

const OP_CREATE_IOREQ_SERVER = 1;
const OP_GET_IOREQ_SERVER_INFO = 2;
const OP_MAP_IO_RANGE = 3;
const OP_SET_IOREQ_SERVER_STATE = 5;
const OP_DESTROY_IOREQ_SERVER = 6;
const OP_INJECT_MSI = 14;
const OP_SET_IRQ_LEVEL = 19;
const OP_NR_VCPUS = 20;

const NO_GFNS = 1;
const MEMORY_SPACE = 1;
const RESOURCE_IOREQ_SERVER = 0;
/** Of the resource: page 0 is for buffered requests. */
const IOREQ_PAGE = 1n;

const ENOSYS = linuxErrno("ENOSYS");
const EOPNOTSUPP = linuxErrno("EOPNOTSUPP");
const EEXIST = linuxErrno("EEXIST");

/** Pages that one call maps; whoever maps many has the loop turn between the calls. */
const BATCH_PAGES = 4096;

const operation = allocate(32);
// {u64 address, u64 size} of the operation
const buffers = allocate(16);
// u16 domain, u16 number of buffers, pointer @8; also what the other calls take
const argument = allocate(40);

/** Domain 0 has this file once the module xen_privcmd is there; @throws VmsgError NO_XEN */
function open(): Fd {
  try {
    return openFile(PRIVCMD_PATH);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    throw new VmsgError(
      "NO_XEN",
      `${error.message}: --xen works in Dom0 of Xen, as root, with the module xen_privcmd`,
    );
  }
}

/** Consecutive pages of a domain, by where they lie in a {@link ForeignMemory}. */
export interface ForeignRun {
  /** Guest-physical, in bytes. */
  readonly at: number;
  /** In the mapping. */
  readonly offset: number;
  readonly size: number;
}

/** A device model's hold of one domain. */
export class Privcmd implements Disposable {
  readonly fd: Fd = open();

  /** @param domain its number */
  constructor(readonly domain: number) {}

  #run(number: number, fill: (view: DataView) => void = () => {}): number {
    operation.bytes.fill(0);
    operation.view.setUint32(0, number, true);
    fill(operation.view);
    buffers.view.setBigUint64(0, operation.address, true);
    buffers.view.setBigUint64(8, 32n, true);
    argument.bytes.fill(0);
    argument.view.setUint16(0, this.domain, true);
    argument.view.setUint16(2, 1, true);
    argument.view.setBigUint64(8, buffers.address, true);
    return libc.ioctl(this.fd.number, IOCTL_DM_OP, argument.address);
  }

  #must(what: string, number: number, fill?: (view: DataView) => void): void {
    check(this.#run(number, fill), `domain ${this.domain}: ${what}`);
  }

  /** How many processors the domain has. @throws VmsgError NO_IOREQ if Xen cannot do any of this */
  processors(): number {
    try {
      this.#must("number of processors", OP_NR_VCPUS);
    } catch (error) {
      const lacks = error instanceof LinuxError && [ENOSYS, EOPNOTSUPP].includes(error.errno);
      if (!lacks) throw error;
      throw new VmsgError(
        "NO_IOREQ",
        "this Xen has no ioreq servers: on arm64 it must be built with CONFIG_IOREQ_SERVER=y " +
          "(docs/two-machines.md)",
      );
    }
    return operation.view.getUint32(8, true);
  }

  /** Makes an ioreq server without buffered requests; its number. */
  createServer(): number {
    this.#must("create an ioreq server", OP_CREATE_IOREQ_SERVER);
    return operation.view.getUint16(12, true);
  }

  /** Maps the page of synchronous requests, 32 bytes per processor; this also sets it up. */
  mapServer(server: number): Mapping {
    this.#must("look at the ioreq server", OP_GET_IOREQ_SERVER_INFO, (view) => {
      view.setUint16(8, server, true);
      view.setUint16(10, NO_GFNS, true);
    });
    using stack = new DisposableStack();
    const page = stack.use(mapShared(this.fd.number, PAGE_SIZE));
    argument.bytes.fill(0);
    argument.view.setUint16(0, this.domain, true);
    argument.view.setUint32(4, RESOURCE_IOREQ_SERVER, true);
    argument.view.setUint32(8, server, true);
    argument.view.setUint32(12, Number(IOREQ_PAGE), true);
    argument.view.setBigUint64(16, 1n, true);
    argument.view.setBigUint64(24, page.address, true);
    const result = libc.ioctl(this.fd.number, IOCTL_MMAP_RESOURCE, argument.address);
    check(result, `domain ${this.domain}: map the ioreq page`);
    stack.move();
    return page;
  }

  /** Has accesses to [start, start + size) come to the server; false if it has them already, in part. */
  mapRange(server: number, start: number, size: number): boolean {
    const result = this.#run(OP_MAP_IO_RANGE, (view) => {
      view.setUint16(8, server, true);
      view.setUint32(12, MEMORY_SPACE, true);
      view.setBigUint64(16, BigInt(start), true);
      view.setBigUint64(24, BigInt(start + size - 1), true);
    });
    try {
      check(result, `domain ${this.domain}: take addresses from 0x${start.toString(16)}`);
      return true;
    } catch (error) {
      if (error instanceof LinuxError && error.errno === EEXIST) return false;
      throw error;
    }
  }

  /** Switches the server on. */
  enableServer(server: number): void {
    this.#must("switch the ioreq server on", OP_SET_IOREQ_SERVER_STATE, (view) => {
      view.setUint16(8, server, true);
      view.setUint8(10, 1);
    });
  }

  /** Switches it off: accesses that come now are nobody's. */
  disableServer(server: number): void {
    this.#run(OP_SET_IOREQ_SERVER_STATE, (view) => view.setUint16(8, server, true));
  }

  /** Ends the server; one of a domain that is gone is gone, too. */
  destroyServer(server: number): void {
    this.#run(OP_DESTROY_IOREQ_SERVER, (view) => view.setUint16(8, server, true));
  }

  /** x86: raises an interrupt by message. A domain that is gone has no use for it. */
  injectMsi(address: number, data: number): void {
    this.#run(OP_INJECT_MSI, (view) => {
      view.setUint32(8, data, true);
      view.setUint32(16, address, true);
    });
  }

  /** arm64: the level of a shared interrupt. */
  setIrqLevel(irq: number, level: boolean): void {
    this.#run(OP_SET_IRQ_LEVEL, (view) => {
      view.setUint32(8, irq, true);
      view.setUint8(12, level ? 1 : 0);
    });
  }

  /** From here on this descriptor is good for this domain only. */
  restrict(): void {
    argument.view.setUint16(0, this.domain, true);
    const result = libc.ioctl(this.fd.number, IOCTL_RESTRICT, argument.address);
    check(result, `restrict ${PRIVCMD_PATH} to domain ${this.domain}`);
  }

  [Symbol.dispose](): void {
    this.fd[Symbol.dispose]();
  }
}

/**
 * A piece of a domain's memory, mapped at one place, batch by batch. Pages that the domain does not have leave holes
 * that must not be touched.
 */
export class ForeignMemory implements Disposable {
  readonly mapping: Mapping;
  /** What is there, in ascending order. */
  readonly runs: ForeignRun[] = [];
  #next = 0;

  /**
   * @param at guest-physical address of the first byte
   * @param size in bytes; both whole pages
   */
  constructor(
    readonly privcmd: Pick<Privcmd, "fd" | "domain">,
    readonly at: number,
    readonly size: number,
  ) {
    this.mapping = mapAnonymous(size);
  }

  /**
   * Maps one more batch.
   *
   * @returns false when there is no more to map
   * @throws LinuxError if the domain is gone
   */
  mapMore(): boolean {
    const pages = Math.min(BATCH_PAGES, (this.size - this.#next) / PAGE_SIZE);
    if (pages === 0) return false;
    const { privcmd: { fd, domain }, mapping, at } = this;
    const address = mapping.address + BigInt(this.#next);
    // The kernel fills a mapping of its file as a whole, and once.
    remap({ ...mapping, address, size: pages * PAGE_SIZE }, fd.number);
    using lists = mapAnonymous(pages * 12);
    const frames = new BigUint64Array(lists.buffer, 0, pages);
    const errors = new Int32Array(lists.buffer, pages * 8, pages);
    const first = BigInt((at + this.#next) / PAGE_SIZE);
    for (let i = 0; i < pages; i++) frames[i] = first + BigInt(i);
    argument.bytes.fill(0);
    argument.view.setUint32(0, pages, true);
    argument.view.setUint16(4, domain, true);
    argument.view.setBigUint64(8, address, true);
    argument.view.setBigUint64(16, lists.address, true);
    argument.view.setBigUint64(24, lists.address + BigInt(pages * 8), true);
    const result = libc.ioctl(fd.number, IOCTL_MMAPBATCH_V2, argument.address);
    // ENOENT: some of them are not there.
    if (result < 0 && errors.every((error) => error === 0)) {
      check(result, `map memory of domain ${domain}`);
    }
    for (let i = 0; i < pages; i++) if (errors[i] === 0) this.#add(this.#next + i * PAGE_SIZE);
    this.#next += pages * PAGE_SIZE;
    return true;
  }

  #add(offset: number): void {
    const last = this.runs.at(-1);
    if (last !== undefined && last.offset + last.size === offset) {
      this.runs[this.runs.length - 1] = { ...last, size: last.size + PAGE_SIZE };
    } else {
      this.runs.push({ at: this.at + offset, offset, size: PAGE_SIZE });
    }
  }

  [Symbol.dispose](): void {
    this.mapping[Symbol.dispose]();
  }
}
