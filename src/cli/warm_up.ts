/**
 * A data plane that carries frames for itself while it waits for others'.
 *
 * Code is fast when it has run some hundred times, and with several objects: what was compiled for one set of them is
 * thrown away at the first call with another. So circuits are opened one after another, each a driver side and a device
 * side of the classes that serve a peer later, over a bus of this process. A ping goes round in it again and again:
 *
 *     here -> socket -> driver -> in-process bus -> device -> responder, or socket -> ... -> here
 *
 * A device side's peers are mostly guests with a TAP, whose notifications are out of band (linux/notifier.ts). So where
 * there are devices every other circuit has those, and a queue of a TAP in front of the socket.
 *
 * All of this is done by the reactor's own turns. What comes for others meanwhile is looked at in each, so that it
 * waits for one ping at most, some 0.1 ms, and once for the pages that are forgotten, 2 to 5 ms. It is over when {@link BUDGET_MS} are, or as soon as somebody is there who counts on
 * an answer. A circuit is closed when it has been at rest: then no task of the loop has any part of it.
 */

import { inProcessBus } from "../bus/in_process_bus.ts";
import { NetDevice } from "../devices/net/net_device.ts";
import { NetDriver } from "../drivers/net/net_driver.ts";
import { PortBridge } from "../drivers/net/port_bridge.ts";
import { LinuxError } from "../linux/errors.ts";
import { createEventFd, signalEventFd } from "../linux/eventfd.ts";
import type { Fd } from "../linux/fd.ts";
import { mapAnonymous, type Mapping } from "../linux/mapping.ts";
import { forgetProgramPages, trimHeaps } from "../linux/program_pages.ts";
import { EPOLLET, EPOLLIN, type Reactor, type Timer } from "../linux/reactor.ts";
import { unixDatagramPair } from "../linux/unix_socket.ts";
import { IovecList, MemoryWindow } from "../memory/mod.ts";
import { codecFor } from "../message/codecs.ts";
import { FrameDescriptor } from "../network/frame_descriptor.ts";
import type { NetworkPort, PortListener } from "../network/port.ts";
import { EtherType, parseMac, writeEthernetHeader } from "../network/protocols/ethernet.ts";
import { writeEchoRequest } from "../network/protocols/icmp.ts";
import { parseIpv4Address } from "../network/protocols/ipv4.ts";
import { ResponderPort } from "../network/responder_port.ts";
import { TapQueue } from "../network/tap_queue.ts";
import { uncounted } from "../observe/counters.ts";
import { createLog } from "../observe/log.ts";
import { DeviceSide } from "../transport/device_side.ts";
import { DriverSide } from "../transport/driver_side.ts";
import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../virtio/net_header.ts";

/** For how long, by the reactor's clock; on a machine with nothing else to do it takes less. */
const BUDGET_MS = 500;
const CIRCUITS = 4;
/** Of one circuit. V8's last compiler takes up what was called 3000 times. */
const PINGS = 1000;
/** Nothing of a circuit is under way after that. */
const REST_MS = 1;
const ROOM = 2048;
const PING_SIZE = 56;
const MTU = 1500;
const RESPONDER_MAC = parseMac("52:55:0a:00:02:02");
const MAC = parseMac("52:54:00:76:6d:00");
const BUS_OPTIONS = { discardOnAttach: true, ringPerMessage: false };

/** Frames through a socket, as through a TAP. */
class SocketPort implements NetworkPort {
  readonly description = "warm-up";
  readonly features = [];
  readonly #frames: FrameDescriptor;

  constructor(readonly fd: Fd, reactor: Reactor) {
    this.#frames = new FrameDescriptor(fd, reactor);
  }

  open(listener: PortListener): void {
    this.#frames.open(listener);
  }

  send(frame: IovecList): boolean {
    return this.#frames.write(frame.address, frame.count);
  }

  nextLength(): number {
    return this.#frames.readable ? ROOM : 0;
  }

  receive(into: IovecList, first: number): number {
    return this.#frames.read(into.addressFrom(first), into.count - first);
  }

  discard(): void {
    this.#frames.discard();
  }

  [Symbol.dispose](): void {
    this.#frames[Symbol.dispose]();
    this.fd[Symbol.dispose]();
  }
}

/** The same of a card, by the class that serves it at a TAP. */
class TapPort extends SocketPort {
  readonly queues: readonly TapQueue[];

  constructor(fd: Fd, reactor: Reactor) {
    super(fd, reactor);
    const queue = new TapQueue(fd, reactor, "");
    queue.room = ROOM;
    this.queues = [queue];
  }

  override open({ readable, writable }: PortListener): void {
    this.queues[0]!.open({ readable: () => readable(0), writable: () => writable(0) });
  }

  override [Symbol.dispose](): void {
    this.queues[0]![Symbol.dispose]();
  }
}

/** A driver that kicks and is called by eventfds, as a guest. */
class KickingDriver extends NetDriver {
  #kicks: readonly Fd[] = [];

  /** Hands the eventfds over when the device is there; `stack` closes them. */
  useEvents(stack: DisposableStack): void {
    const { reactor } = this;
    const { rings } = this.pairs[0]!;
    this.#kicks = rings.map(() => stack.use(createEventFd()));
    for (const [i, ring] of rings.entries()) {
      const call = stack.use(createEventFd());
      reactor.watch(call, EPOLLIN | EPOLLET, () => ring.call());
      stack.defer(() => reactor.unwatch(call));
      Object.assign(ring, { events: { kick: this.#kicks[i], call } });
    }
  }

  override available(queue: number): void {
    const kick = this.#kicks[queue];
    if (kick === undefined) super.available(queue);
    else signalEventFd(kick);
  }
}

/** A driver side, a device side, and one ping that goes round. */
class Circuit implements Disposable {
  isResting = false;
  /** Pings that came back. */
  pings = 0;
  readonly #stack: DisposableStack;
  readonly #ping = new IovecList(1);
  readonly #room = new IovecList(1);

  /**
   * @param isOutOfBand are kicks and calls eventfds?
   * @param cameBack is told how often the ping did
   * @param failed is told if it never will: there are no descriptors left, say
   */
  constructor(
    reactor: Reactor,
    hasResponder: boolean,
    isOutOfBand: boolean,
    cameBack: (pings: number) => void,
    failed: () => void,
  ) {
    using stack = new DisposableStack();
    const log = createLog("", "error", () => {});
    const codec = codecFor("v1");
    const sockets = (Card = SocketPort) => {
      const [end, other] = unixDatagramPair();
      return [stack.use(new SocketPort(end!, reactor)), stack.use(new Card(other!, reactor))];
    };
    this.#fill(stack.use(mapAnonymous(2 * ROOM)));
    const bus = stack.use(inProcessBus(reactor, BUS_OPTIONS));
    const device = stack.use(new DeviceSide({ reactor, bus: bus.device, codec, log }));
    const driver = stack.use(new DriverSide({ reactor, bus: bus.driver, codec, log }));
    const [here, there] = sockets();
    const bridge = new PortBridge(reactor, there!, () => {});
    const Driver = isOutOfBand ? KickingDriver : NetDriver;
    const card = stack.use(new Driver(reactor, driver, 0, bridge, log));
    if (card instanceof KickingDriver) card.useEvents(stack);
    card.failed = failed;
    bridge.use(card);
    const [echo, port] = hasResponder
      ? [undefined, new ResponderPort({}, reactor)]
      : sockets(isOutOfBand ? TapPort : SocketPort);
    device.add(0, new NetDevice(reactor, port!, { mac: MAC, mtu: MTU }));
    if (echo !== undefined) this.#open(echo as SocketPort, () => true);
    this.#open(here!, () => {
      cameBack(++this.pings);
      return !this.isResting;
    });
    device.open();
    driver.open();
    // It waits in the socket until the driver is up.
    here!.send(this.#ping);
    this.#stack = stack.move();
  }

  #fill(memory: Mapping): void {
    const window = new MemoryWindow(0, memory.size, memory, 0);
    this.#room.push(window, ROOM, ROOM);
    const slot = new Uint8Array(memory.buffer, NET_HEADER_SIZE, ROOM - NET_HEADER_SIZE);
    const by = { mac: MAC, address: parseIpv4Address("10.0.2.15"), slot };
    writeEthernetHeader(slot, RESPONDER_MAC, 0, MAC, EtherType.IPV4);
    const length = writeEchoRequest(by, parseIpv4Address("10.0.2.2"), PING_SIZE, 1, 1);
    // As of a port: a frame in one buffer.
    window.view.setUint16(NUM_BUFFERS_OFFSET, 1, true);
    this.#ping.push(window, 0, NET_HEADER_SIZE + length);
  }

  /** Has an end of a socket answer each frame with the ping, as long as it shall. */
  #open(port: SocketPort, shallGoOn: () => boolean): void {
    const readable = () => {
      if (port.receive(this.#room, 0) > 0 && shallGoOn()) port.send(this.#ping);
    };
    port.open({ readable, writable() {}, link() {} });
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/** See the head of this file. */
export class WarmUp implements Disposable {
  /** Pings that came back. */
  pings = 0;
  /** After its end: when what it leaves has been given back. */
  atRest: Promise<void> = Promise.resolve();
  readonly #timer: Timer;
  readonly #endMs: number;
  #circuit: Circuit | undefined;
  #opened = 0;

  /**
   * Begins at once, and ends by itself. It is a courtesy: a process without descriptors or memory for it does without.
   *
   * @param isOver is there somebody by now who is not to wait?
   * @param hasDevices does this process serve devices?
   */
  constructor(
    readonly reactor: Reactor,
    readonly isOver: () => boolean,
    readonly hasDevices = false,
  ) {
    this.#timer = reactor.timer(() => this.#next());
    this.#endMs = reactor.now() + BUDGET_MS;
    this.#next();
  }

  /** Is it not over yet? */
  get isRunning(): boolean {
    return this.#circuit !== undefined;
  }

  /** The circuit's time is over: it is to come to rest; or it has: the next one is opened, while there is time. */
  #next(): void {
    const { reactor } = this;
    if (this.#circuit?.isResting === false) {
      this.#circuit.isResting = true;
      return this.#timer.arm(REST_MS);
    }
    this.#close();
    if (reactor.now() >= this.#endMs || this.isOver() || this.#opened === CIRCUITS) {
      this.atRest = trimHeaps();
      return;
    }
    // What compiling has touched goes; what frames need is touched again by the last circuit.
    if (this.#opened === CIRCUITS - 1) forgetProgramPages();
    const hasResponder = this.#opened++ % 2 === 0;
    try {
      uncounted(() => {
        this.#circuit = new Circuit(
          reactor,
          hasResponder,
          !hasResponder && this.hasDevices,
          (pings) => this.#cameBack(pings),
          () => this.#giveUp(),
        );
      });
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      return;
    }
    this.#timer.arm(Math.min(BUDGET_MS / CIRCUITS, this.#endMs - reactor.now()));
  }

  #cameBack(pings: number): void {
    this.pings++;
    if (this.#circuit!.isResting || pings < PINGS && !this.isOver()) return;
    this.#next();
  }

  /** There is no other circuit. */
  #giveUp(): void {
    this.#opened = CIRCUITS;
    if (this.#circuit?.isResting === false) this.#next();
  }

  #close(): void {
    this.#circuit?.[Symbol.dispose]();
    this.#circuit = undefined;
  }

  [Symbol.dispose](): void {
    this.#close();
    this.reactor.dropTimer(this.#timer);
  }
}
