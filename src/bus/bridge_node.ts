/**
 * /dev/virtio-msg-bridge, the device node of Linux's user-space bridge (docs/wire.md 4.7): whoever opens it and attaches is the
 * device side of one endpoint. There is nothing to read or to write: requests are ioctls, messages go through rings in a
 * memfd, poll tells that the session is at fault, mmap gives windows of the driver's memory.
 *
 * {@link BridgeNode} is what a bus needs of it; bridge_socket.ts is the same over a socket, for kernels that have no such node.
 */

import { allocate, type Block } from "../linux/arena.ts";
import { type LinuxError, VmsgError } from "../linux/errors.ts";
import { Fd, O_CLOEXEC, O_RDWR } from "../linux/fd.ts";
import { check, cString, errno, libc, linuxError } from "../linux/libc.ts";
import { mapShared } from "../linux/mapping.ts";
import type { MappedPart } from "../linux/memory_file.ts";
import { EPOLLERR, EPOLLHUP, type Reactor } from "../linux/reactor.ts";
import { BRIDGE_ENTRIES, BRIDGE_RING, BRIDGE_SLOT } from "./bridge_ring.ts";

/** Where it is. */
export const BRIDGE_PATH = "/dev/virtio-msg-bridge";

/** Bits 16 to 29 of a request's number are the size of its argument. */
const ATTACH = 0xc0a8b900;
const DETACH = 0x0000b901;
const RESOLVE_ENDPOINT = 0xc058b90a;
const RELEASE_ENDPOINT = 0x4010b90b;

/** Bytes of the argument of a request. */
export function argumentSize(request: number): number {
  return request >>> 16 & 0x3fff;
}

/** The largest of them. */
export const MAX_ARGUMENT: number = argumentSize(ATTACH);
const BUS_NAME = 16, BUS_ID = 48;
const FLAG_CREATE = 1, FLAG_ONLINE = 1, ABI = 1;
/** Where each ring begins: a page's start. */
export const BRIDGE_RING_OFFSETS = { tx: 0, rx: Math.ceil(BRIDGE_RING / 4096) * 4096 } as const;
/** Bytes of the memory for both rings. */
export const BRIDGE_RINGS: number = 2 * BRIDGE_RING_OFFSETS.rx;

/** Which endpoint. */
export interface BridgeEndpoint {
  /** "loopback", "ffa". */
  readonly name: string;
  /** Which of that name's; may be empty. */
  readonly id: string;
  /** One that is not there yet may come. */
  readonly create: boolean;
}

/** The descriptors of a session. */
export interface BridgeFds {
  readonly ring: Fd;
  readonly kick: Fd;
  readonly call: Fd;
}

/** What ATTACH tells. */
export interface BridgeCaps {
  readonly isOnline: boolean;
  /** Is it what is spoken here? A kernel of before mid 2026 counts no epochs; of one that is offline nothing is told. */
  readonly isKnown: boolean;
  /** The largest message; 0 where the endpoint is offline. */
  readonly maxMessage: number;
  readonly epoch: bigint;
}

/** An open node. Requests throw LinuxError. */
export abstract class BridgeNode implements Disposable {
  /** Where it is, for people. */
  abstract readonly path: string;
  /**
   * Is the kernel of this machine behind it? As they are in 2026, one whose endpoint is offline does not survive that the
   * node is detached or closed.
   */
  abstract readonly isKernel: boolean;
  readonly #argument: Block = allocate(MAX_ARGUMENT);
  #handle = 0;

  /** Is somebody there to be asked? */
  abstract readonly isOpen: boolean;
  /** Asks for it; `opened` is called when {@link isOpen}, perhaps at once, and again whenever it is anew. */
  abstract open(opened: () => void): void;
  /** Sends a request with its argument, which then is what came back; 0 or an errno. */
  protected abstract request(number: number, argument: Block, fds: readonly Fd[]): number;
  /** Maps a window of the driver's memory. @throws LinuxError, VmsgError, RangeError */
  abstract map(offset: number, length: number): MappedPart;
  /**
   * Listens while a session is attached.
   *
   * @param faulted the session is at fault: nothing goes through any more
   * @param gone nobody is there any more
   */
  abstract watch(faulted: () => void, gone: () => void): void;
  /** Listens no more. */
  abstract unwatch(): void;
  abstract [Symbol.dispose](): void;

  #ask(number: number, what: string, fds: readonly Fd[] = []): void {
    const failure = this.request(number, this.#argument, fds);
    if (failure !== 0) throw linuxError(failure, `${this.path}: ${what}`);
  }

  /** Finds the endpoint. */
  resolve({ name, id, create }: BridgeEndpoint): void {
    const { bytes, view } = this.#argument;
    bytes.fill(0);
    new TextEncoder().encodeInto(name, bytes.subarray(0, BUS_NAME - 1));
    new TextEncoder().encodeInto(id, bytes.subarray(BUS_NAME, BUS_NAME + BUS_ID - 1));
    view.setUint32(68, create ? FLAG_CREATE : 0, true);
    this.#ask(RESOLVE_ENDPOINT, `endpoint ${name}${id === "" ? "" : ` ${id}`}`);
    this.#handle = view.getUint32(64, true);
  }

  /** Begins a session with rings at {@link BRIDGE_RING_OFFSETS}. */
  attach({ ring, kick, call }: BridgeFds): BridgeCaps {
    const { bytes, view } = this.#argument;
    bytes.fill(0);
    view.setUint32(0, this.#handle, true);
    [ring, kick, call].forEach((fd, i) => view.setInt32(8 + 4 * i, fd.number, true));
    view.setUint32(20, BRIDGE_SLOT, true);
    for (const [at, offset] of [[24, BRIDGE_RING_OFFSETS.tx], [56, BRIDGE_RING_OFFSETS.rx]]) {
      view.setBigUint64(at!, BigInt(offset!), true);
      view.setBigUint64(at! + 8, BigInt(BRIDGE_RING), true);
      view.setUint32(at! + 16, BRIDGE_ENTRIES, true);
      view.setUint32(at! + 20, BRIDGE_SLOT, true);
    }
    this.#ask(ATTACH, "attach", [ring, kick, call]);
    const epoch = view.getBigUint64(120, true);
    return {
      maxMessage: view.getUint32(96, true),
      isOnline: (view.getUint32(100, true) & FLAG_ONLINE) !== 0,
      isKnown: view.getUint32(88, true) === ABI && epoch > 0n,
      epoch,
    };
  }

  /** Ends the session. */
  detach(): void {
    this.#ask(DETACH, "detach");
  }

  /** Lets go of the endpoint. */
  release(): void {
    this.#argument.bytes.fill(0);
    this.#argument.view.setUint32(0, this.#handle, true);
    this.#ask(RELEASE_ENDPOINT, "release the endpoint");
  }
}

const [NOT_THERE, DENIED] = [["ENOENT", "ENODEV", "ENXIO"], ["EACCES", "EPERM"]];

/** The node of this machine's kernel. */
export class DeviceNode extends BridgeNode {
  override readonly isKernel = true;
  override readonly isOpen = true;
  readonly #fd: Fd;
  #isWatched = false;

  /** Opens it; throws VmsgError NO_BRIDGE where there is none. */
  constructor(readonly reactor: Reactor, override readonly path: string) {
    super();
    try {
      const number = libc.open(cString(path), O_RDWR | O_CLOEXEC, 0);
      this.#fd = new Fd(check(number, `open ${path}`));
    } catch (error) {
      const { code } = error as LinuxError;
      const problem = NOT_THERE.includes(code)
        ? `not there (${code}): the kernel needs CONFIG_VIRTIO_MSG_BRIDGE, and its modules loaded`
        : `not this user's to open (${code}): be given it, or be root`;
      if (![...NOT_THERE, ...DENIED].includes(code)) throw error;
      throw new VmsgError("NO_BRIDGE", `${path} is ${problem}`);
    }
  }

  override open(opened: () => void): void {
    opened();
  }

  protected override request(number: number, { address }: Block): number {
    return libc.ioctl(this.#fd.number, BigInt(number), address) < 0 ? errno() : 0;
  }

  override map(offset: number, length: number): MappedPart {
    return { memory: mapShared(this.#fd.number, length, offset), offset: 0, size: length };
  }

  override watch(faulted: () => void): void {
    this.#isWatched = true;
    this.reactor.watch(this.#fd, EPOLLERR | EPOLLHUP, () => {
      // It stays so until the next session: once is enough.
      this.unwatch();
      faulted();
    });
  }

  override unwatch(): void {
    if (this.#isWatched) this.reactor.unwatch(this.#fd);
    this.#isWatched = false;
  }

  override [Symbol.dispose](): void {
    this.unwatch();
    this.#fd[Symbol.dispose]();
  }
}
