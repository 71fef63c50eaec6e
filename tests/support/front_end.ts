/**
 * A vhost-user front end under a test's control: it sends any request, right or wrong, with any
 * descriptors, and sees what comes back. And a proxy for it: the server on a socket of a fresh
 * directory, over an in-process bus.
 */

import { inProcessBus, type InProcessPair } from "../../src/bus/in_process_bus.ts";
import type { LentVector } from "../../src/ivshmem/end.ts";
import { createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, Fd } from "../../src/linux/fd.ts";
import { allocate } from "../../src/linux/arena.ts";
import { check, libc } from "../../src/linux/libc.ts";
import { mapAnonymous, mapShared, PAGE_SIZE } from "../../src/linux/mapping.ts";
import type { PhysicalRun } from "../../src/linux/page_map.ts";
import { EPOLLIN, Reactor } from "../../src/linux/reactor.ts";
import { kindOf } from "../../src/linux/received_fd.ts";
import { connectUnix, type UnixStream } from "../../src/linux/unix_socket.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog, withoutRepeats } from "../../src/observe/log.ts";
import { openSharing } from "../../src/sharing/mode.ts";
import { Pages, type PagesBus, type PagesMemory } from "../../src/sharing/pages.ts";
import { FLAG_VERSION, HEADER_SIZE, Request } from "../../src/vhost_user/protocol.ts";
import { VhostUserServer } from "../../src/drivers/vhost_user/server.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { FakeDevice } from "./fake_device.ts";
import { withDirectory } from "./leaks.ts";
import { VirtualClock } from "./virtual_clock.ts";

/** How long an answer or a condition may take, of which virtual time costs nothing. */
const TIMEOUT_MS = 60_000;
/** Where the guest's memory lies for the front end. */
export const USER_ADDRESS = 0x7f00_0000_0000;
/** How much of it there is. */
export const MEMORY_SIZE = 0x10_0000;
/** VIRTIO_F_VERSION_1 and the protocol features' bit, as GET_FEATURES' halves. */
export const FEATURES: readonly [number, number] = [0x4000_0000, 1];

/** More descriptors than any message may bring. */
const MAX_FDS = 16;
const F_DUPFD_CLOEXEC = 1030;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;

// struct msghdr, iovec and cmsghdr as in src/linux/unix_socket.ts, which sends at most 8 descriptors.
const header = allocate(56);
const vector = allocate(16);
const control = allocate(16 + 4 * MAX_FDS);
const outgoing = allocate(8192);
const incoming = allocate(8192);

/** Waits until something is so; to be awaited inside `reactor.until`. */
export async function waitUntil(
  reactor: Reactor,
  condition: () => boolean,
  timeoutMs = TIMEOUT_MS,
): Promise<void> {
  const endMs = reactor.now() + timeoutMs;
  while (!condition()) {
    if (reactor.now() > endMs) throw new Error(`never so: ${condition}`);
    await reactor.sleep(1);
  }
}

/** The payload of one region, as ADD_MEM_REG and SET_MEM_TABLE have it. */
export function regionBytes(guest: number, size: number, user: number, offset: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(32));
  [guest, size, user, offset].forEach((value, i) => view.setBigUint64(8 * i, BigInt(value), true));
  return new Uint8Array(view.buffer);
}

/** A payload of u32 values. */
export function u32s(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

/** See the head of this file. */
export class RawFrontEnd implements Disposable {
  readonly stream: UnixStream;
  /** The back end has closed the connection. */
  hungUp = false;
  #received = new Uint8Array();

  /** @param timeoutMs how long a reply may take */
  constructor(readonly reactor: Reactor, path: string, readonly timeoutMs = TIMEOUT_MS) {
    const stream = connectUnix(path);
    if (stream === undefined) throw new Error("nobody listens");
    this.stream = stream;
    reactor.watch(stream.fd, EPOLLIN, () => this.#ready());
  }

  #ready(): void {
    const count = this.stream.receive(incoming.address, incoming.bytes.length);
    if (count === 0) return this.#ended();
    if (count > 0) {
      this.#received = new Uint8Array([...this.#received, ...incoming.bytes.subarray(0, count)]);
    }
  }

  #ended(): void {
    if (!this.hungUp) this.reactor.unwatch(this.stream.fd);
    this.hungUp = true;
  }

  /** Sends bytes as they are. */
  sendBytes(bytes: Uint8Array, fds: readonly Fd[] = []): void {
    outgoing.bytes.set(bytes);
    vector.view.setBigUint64(0, outgoing.address, true);
    vector.view.setBigUint64(8, BigInt(bytes.length), true);
    header.view.setBigUint64(16, vector.address, true);
    header.view.setBigUint64(24, 1n, true);
    const controlLength = fds.length === 0 ? 0 : 16 + 4 * fds.length;
    header.view.setBigUint64(32, control.address, true);
    header.view.setBigUint64(40, BigInt(controlLength), true);
    control.view.setBigUint64(0, BigInt(controlLength), true);
    control.view.setInt32(8, SOL_SOCKET, true);
    control.view.setInt32(12, SCM_RIGHTS, true);
    fds.forEach((fd, i) => control.view.setInt32(16 + 4 * i, fd.number, true));
    check(libc.sendmsg(this.stream.fd.number, header.address, 0), "sendmsg");
  }

  /** Sends one request. The descriptors stay the caller's. */
  send(request: number, payload: Uint8Array, fds: readonly Fd[] = [], flags = 0): void {
    const header = u32s(request, FLAG_VERSION | flags, payload.length);
    this.sendBytes(new Uint8Array([...header, ...payload]), fds);
  }

  /** The payload of the next reply. */
  async reply(request: number): Promise<DataView> {
    const size = () =>
      this.#received.length < HEADER_SIZE
        ? HEADER_SIZE
        : HEADER_SIZE + new DataView(this.#received.buffer).getUint32(8, true);
    const isThere = () => this.hungUp || this.#received.length >= size();
    await waitUntil(this.reactor, isThere, this.timeoutMs);
    if (this.hungUp) throw new Error("the back end hung up");
    const whole = this.#received.slice(0, size());
    this.#received = this.#received.slice(size());
    const got = new DataView(whole.buffer).getUint32(0, true);
    if (got !== request) throw new Error(`reply to ${got} instead of ${request}`);
    return new DataView(whole.buffer, HEADER_SIZE);
  }

  /** Sends a request and waits for its reply. */
  ask(
    request: number,
    payload: Uint8Array = new Uint8Array(),
    fds: readonly Fd[] = [],
  ): Promise<DataView> {
    this.send(request, payload, fds);
    return this.reply(request);
  }

  /** All requests so far have been handled. */
  async barrier(): Promise<void> {
    await this.ask(Request.GET_PROTOCOL_FEATURES);
  }

  /** Negotiates features and shares one region at guest address 0. */
  async setUp(memory: Fd, features = FEATURES, fileOffset = 0): Promise<void> {
    await this.ask(Request.GET_FEATURES);
    this.send(Request.SET_PROTOCOL_FEATURES, u32s(1 << 9, 0));
    this.send(Request.SET_FEATURES, u32s(...features));
    const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, fileOffset);
    this.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [memory]);
    await this.barrier();
  }

  /** Describes a ring, in the three pages behind `at`, and enables it; it starts. */
  startRing(index: number, kick: Fd, base = 0, size = 64, at = 0x4000 * index): void {
    const addresses = new DataView(new ArrayBuffer(40));
    addresses.setUint32(0, index, true);
    [0x1000, 0x3000, 0x2000].forEach((page, i) =>
      addresses.setBigUint64(8 + 8 * i, BigInt(USER_ADDRESS + at + page), true)
    );
    this.send(Request.SET_VRING_NUM, u32s(index, size));
    this.send(Request.SET_VRING_BASE, u32s(index, base));
    this.send(Request.SET_VRING_ADDR, new Uint8Array(addresses.buffer));
    this.send(Request.SET_VRING_KICK, u32s(index, 0), [kick]);
    this.send(Request.SET_VRING_ENABLE, u32s(index, 1));
  }

  [Symbol.dispose](): void {
    this.#ended();
    this.stream[Symbol.dispose]();
  }
}

/** Interrupts as those of an ivshmem function are: rung by the device side, and signal what they were lent to. */
export class FakeVectors {
  readonly lent: Map<number, Fd | undefined> = new Map();
  /** How often each was rung. */
  readonly rings: number[] = [];

  /** @param count how many there are, 1 and up */
  constructor(readonly count: number) {}

  connect({ driver, device }: InProcessPair): void {
    const lendVector = (event: Fd) => this.#lend(event);
    const ringVector = (vector: number) => {
      this.rings[vector] = (this.rings[vector] ?? 0) + 1;
      const event = this.lent.get(vector);
      if (event !== undefined) signalEventFd(event);
    };
    Object.assign(driver, { carriesFds: false, lendVector });
    Object.assign(device, { carriesFds: false, ringVector });
  }

  #lend(event: Fd): LentVector | undefined {
    const numbers = Array.from({ length: this.count }, (_, n) => n + 1);
    const number = numbers.find((one) => !this.lent.has(one));
    if (number === undefined) return undefined;
    // As the kernel, it has the event whoever closes the descriptor.
    const lendTo = (fd: Fd): boolean => {
      this.#takeBack(number);
      this.lent.set(number, undefined);
      if (kindOf(fd) !== "eventfd") return false;
      this.lent.set(number, new Fd(check(libc.fcntl(fd.number, F_DUPFD_CLOEXEC, 0n), "dup")));
      return true;
    };
    const lent = { number, lendTo, [Symbol.dispose]: () => this.#takeBack(number) };
    if (lendTo(event)) return lent;
    this.#takeBack(number);
    return undefined;
  }

  #takeBack(number: number): void {
    this.lent.get(number)?.[Symbol.dispose]();
    this.lent.delete(number);
  }
}

/** How a rig differs from the usual one. */
export interface ProxyRigOptions<Device> {
  /** Instead of the usual fake device. */
  readonly device?: Device;
  /** Confined mode, with a segment of so many bytes. */
  readonly confined?: number;
  /** Direct mode, with pins that are made up. */
  readonly direct?: PagesBus;
  /** Bytes of guests' memory that direct mode may pin. */
  readonly pinLimit?: number;
  /** Where the guest's memory lies in the RAM that the device side sees; it sees none of it unless given. */
  readonly runs?: readonly PhysicalRun[];
  /** The bus lends so many interrupts, and carries no descriptors. */
  readonly vectors?: FakeVectors;
  /** Called where direct mode waits until the device side writes no more. */
  readonly waitForSilence?: () => void;
  /** How long an answer of the device side may take. */
  readonly requestTimeoutMs?: number;
  /** No notification is out of band. */
  readonly notifiesInBand?: boolean;
}

/** A proxy with our device side behind it. */
export interface ProxyRig<Device = FakeDevice> {
  readonly reactor: Reactor;
  readonly device: Device;
  readonly deviceSide: DeviceSide;
  readonly driverSide: DriverSide;
  /** Where the server listens. */
  readonly path: string;
  readonly server: VhostUserServer;
  readonly lines: string[];
  /** In direct mode. */
  readonly pages: Pages | undefined;
  /** From here on the device side takes no message. */
  silence(): void;
  /** The guest's memory, and an eventfd that serves as kick. */
  readonly memory: Fd;
  readonly kick: Fd;
  /** Makes a front end, which the rig closes. */
  connect(): RawFrontEnd;
  wait(condition: () => boolean): Promise<void>;
}

/** A "huge page" of ordinary memory, and every page at the address it has in this process. */
export const MADE_UP: Omit<PagesMemory, "waitForSilence"> = {
  allocate(size) {
    const mapping = mapAnonymous(size);
    const runs = [{ offset: 0, physical: 0x4000_0000, length: size }];
    return { mapping, runs, [Symbol.dispose]: () => mapping[Symbol.dispose]() };
  },
  // A process would end some time after the test.
  hold: () => ({ [Symbol.dispose]: () => {} }),
  locate: (address, size) => [{ offset: 0, physical: Number(address), length: size }],
};

/** Runs a test's body in the reactor of a fresh rig. */
export async function withProxy<Device extends FakeDevice = FakeDevice>(
  body: (rig: ProxyRig<Device>) => Promise<void>,
  options: ProxyRigOptions<Device> = {},
): Promise<void> {
  await withDirectory(async (directory) => {
    using stack = new DisposableStack();
    const reactor = stack.use(new Reactor(new VirtualClock()));
    const pair = stack.use(inProcessBus(reactor));
    options.vectors?.connect(pair);
    const codec = codecFor("v1");
    const lines: string[] = [];
    const log = withoutRepeats(createLog("test", "info", (line) => lines.push(line)), reactor);
    const quiet = createLog("test", "error", () => {});
    const memory = stack.use(createSealedMemory("vmsg-test", MEMORY_SIZE));
    const kick = stack.use(createEventFd());
    const deviceSide = stack.use(
      new DeviceSide({
        reactor,
        bus: pair.device,
        codec,
        log: quiet,
        confined: options.confined !== undefined,
      }),
    );
    const device = options.device ?? new FakeDevice() as Device;
    const { runs } = options;
    const ram = stack.use(
      runs === undefined ? mapAnonymous(PAGE_SIZE) : mapShared(memory.number, MEMORY_SIZE),
    );
    const fixed = (runs ?? [{ offset: 0, physical: 0, length: PAGE_SIZE }]).map((
      { offset, physical, length },
    ) => ({ at: physical, size: length, memory: ram, offset }));
    deviceSide.add(0, device, fixed);
    const { requestTimeoutMs, direct, notifiesInBand } = options;
    const driverSide = stack.use(
      new DriverSide({
        reactor,
        bus: pair.driver,
        codec,
        log: quiet,
        requestTimeoutMs,
        notifiesInBand,
      }),
    );
    const path = `${directory}/vu.sock`;
    const source = { kind: "listen", socket: path } as const;
    const { waitForSilence = () => {} } = options;
    const locate: PagesMemory["locate"] = (address, size) =>
      runs === undefined ? MADE_UP.locate(address, size, PAGE_SIZE) : [...runs];
    const pages = direct &&
      new Pages(direct, 1, log, { ...MADE_UP, locate, waitForSilence }, options.pinLimit);
    const confined = options.confined === undefined ? undefined : { size: options.confined };
    const bus = pair.driver;
    const mode = stack.use(
      openSharing({ reactor, bus, side: driverSide, confined, deviceCount: 1, log, pages }),
    );
    const sharing = mode.forDevice(driverSide.device(0), 0);
    const server = stack.use(
      new VhostUserServer(reactor, driverSide, { source, device: 0 }, log, sharing),
    );
    deviceSide.open();
    driverSide.open();
    await reactor.until(body({
      reactor,
      device,
      deviceSide,
      driverSide,
      path,
      server,
      lines,
      pages,
      silence: () => deviceSide.received = () => {},
      memory,
      kick,
      connect: () => stack.use(new RawFrontEnd(reactor, path)),
      wait: (condition) => waitUntil(reactor, condition),
    }));
  });
}
