/**
 * A virtio socket device (VIRTIO 1.3, section 5.10): streams between programs of the guest and programs of this machine,
 * which see Unix sockets (host_sockets.ts).
 *
 * Theory of operation. What the guest sends is judged packet by packet; a payload goes to the connection's socket at once
 * (host_stream.ts). What is to be said is not kept as packets: a connection remembers that it has something to say
 * (connection.ts) and stands in a queue, each once. For every buffer of the guest the first of them says one packet, made then, and
 * stands in line anew if it has more. So a connection has its turn however much another one has to send, and nothing is
 * queued that could grow. Only RST packets are kept as such (resets.ts).
 *
 * A connection dies with its device, and its sockets are closed. A device that goes on where another one was, and so under a driver
 * that may have connections, tells it that they are gone (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET). In confined and direct mode
 * rings are copies that always begin, and only in `v1` is it said that the driver's go on: there every driver is told, which says nothing
 * new to one that begins as well.
 *
 * Hostile drivers. A packet without a whole header, or of a context that is not the guest's, is dropped. Whatever fits no
 * connection, or not the state it is in, is answered by RST, which ends the connection: also data without credit. Connecting
 * costs system calls, so few requests are in a batch.
 */

import { allocate } from "../../linux/arena.ts";
import type { Fd } from "../../linux/fd.ts";
import { fillRandom } from "../../linux/random.ts";
import type { Reactor, Timer } from "../../linux/reactor.ts";
import type { IovecList } from "../../memory/mod.ts";
import { counterShape } from "../../observe/counters.ts";
import type { Log } from "../../observe/log.ts";
import { goesOn, type QueueSetup } from "../../virtio/device.ts";
import { DEVICE_VSOCK, VsockFeature } from "../../virtio/features.ts";
import { Chain, type DeviceQueue } from "../../virtio/queue/mod.ts";
import {
  HOST_CID,
  VSOCK_EVENT_SIZE,
  VSOCK_STREAM,
  VSOCK_TRANSPORT_RESET,
  VsockHeader,
  VsockOp,
  VsockShutdown,
} from "../../virtio/vsock.ts";
import { BATCH_COUNTERS, QueueDevice, take } from "../queue_device.ts";
import { type Connection, Due, State } from "./connection.ts";
import { ConnectionTable } from "./connection_table.ts";
import { Greeting, HostSockets, sayConnected } from "./host_sockets.ts";
import { HostStream } from "./host_stream.ts";
import { Payload } from "./payload.ts";
import { Resets } from "./resets.ts";

/** Queues; the third is for events. */
const RX = 0, TX = 1;

/** A power of two; each has a backlog. */
const MOST_CONNECTIONS = 512;
/** Of a backlog, which is the guest's credit: two of Linux's largest packets. */
const BACKLOG = 128 << 10;
/** A packet has to fit into its queue's part of a segment, in confined mode, and is no longer than the credit. */
const FORWARDED_BACKLOG = 32 << 10;
/** How much of a batch a request to connect is. */
const CONNECT_CHARGE = 64;

/** How long is waited: for a host program's first line, for the guest to answer, for either to have all. */
const GREETING_MS = 60_000;
const ANSWER_MS = 10_000;
const END_MS = 60_000;
const LOOK_MS = 1000;

/** Ports of host programs that connect: as many from here on. */
const FIRST_PORT = 1 << 30;
const BOTH = VsockShutdown.RECEIVE | VsockShutdown.SEND;

/** What the device is. */
export interface VsockDeviceOptions {
  /** The guest's context id, from 3 on. */
  readonly cid: number;
  /** Where the host's sockets are. */
  readonly prefix: string;
  /** Do packets come through confined or direct mode? */
  readonly forwarded: boolean;
  /** What its counters are called. */
  readonly name: string;
}

const VsockCounters = counterShape(
  ...BATCH_COUNTERS,
  "connections",
  "refused",
  "dropped",
  "received",
  "sent",
);

function configOf(cid: number): Uint8Array {
  const config = new DataView(new ArrayBuffer(8));
  config.setUint32(0, cid, true);
  return new Uint8Array(config.buffer);
}

/** See the head of this file. */
export class VsockDevice extends QueueDevice {
  declare readonly counters: InstanceType<typeof VsockCounters>;
  readonly #cid: number;
  readonly #table: ConnectionTable;
  readonly #sockets: HostSockets;
  readonly #resets = new Resets();
  /** Those that have something to say, a ring. */
  readonly #ready: Connection[] = new Array(MOST_CONNECTIONS);
  #readyFrom = 0;
  #readyCount = 0;
  readonly #chain = new Chain();
  readonly #payload = new Payload();
  readonly #header = allocate(VsockHeader.SIZE);
  readonly #timer: Timer;
  #nextPort: number;
  /** Has no queue run since the device began? */
  #isFresh = true;
  #owesReset: boolean;

  /** Listens at once. */
  constructor(reactor: Reactor, readonly options: VsockDeviceOptions, log: Log) {
    super(reactor, {
      deviceId: DEVICE_VSOCK,
      features: [VsockFeature.STREAM, VsockFeature.NO_IMPLIED_STREAM],
      config: configOf(options.cid),
      queues: [
        (queue, budget) => this.#tell(queue, budget),
        (queue, budget) => this.#hear(queue, budget),
        (queue) => this.#tellReset(queue),
      ],
      counters: new VsockCounters("device", options.name),
    });
    this.#cid = options.cid;
    this.#owesReset = options.forwarded;
    this.#sockets = new HostSockets(reactor, options.prefix, log, (fd) => this.#greet(fd));
    this.#table = new ConnectionTable(
      MOST_CONNECTIONS,
      options.forwarded ? FORWARDED_BACKLOG : BACKLOG,
    );
    this.#timer = reactor.timer(() => this.#lookForOverdue());
    // A guest may remember connections of a predecessor's.
    const { address, view } = allocate(4);
    fillRandom(address, 4);
    this.#nextPort = FIRST_PORT | view.getUint32(0, true) & (FIRST_PORT - 1);
  }

  override startQueue(index: number, setup: QueueSetup): string | undefined {
    if (this.#isFresh && goesOn(setup)) this.#owesReset = true;
    return super.startQueue(index, setup);
  }

  /** The driver starts over, or is gone: nobody is at the guest's end of anything. */
  reset(): void {
    for (const connection of this.#table.all) this.#release(connection);
    this.#resets.clear();
    this.#isFresh = true;
    this.#owesReset = this.options.forwarded;
  }

  #tellReset(queue: DeviceQueue): boolean {
    this.#isFresh = false;
    if (!this.#owesReset || !take(queue, this.#chain)) return false;
    this.#header.view.setUint32(0, VSOCK_TRANSPORT_RESET, true);
    const { writable, head } = this.#chain;
    queue.complete(head, writable.copyIn(0, this.#header.address, VSOCK_EVENT_SIZE));
    this.#owesReset = false;
    return false;
  }

  // --- host programs -----------------------------------------------------------------------------

  #greet(fd: Fd): void {
    const connection = this.#table.take();
    if (connection === undefined) return fd[Symbol.dispose]();
    const greeting = new Greeting();
    const stream = this.#streamOf(connection, fd, () => {
      if (connection.state === State.GREETING) this.#listen(connection, greeting);
      else this.#changed(connection);
    });
    connection.begin(State.GREETING, stream);
    this.#await(connection, GREETING_MS);
    this.#sockets.hold(this.#table.isFull);
  }

  #streamOf(connection: Connection, fd: Fd, changed: () => void): HostStream {
    return new HostStream(this.reactor, fd, connection.backlog, { changed });
  }

  #listen(connection: Connection, greeting: Greeting): void {
    const guestPort = greeting.read(connection.stream);
    if (guestPort === undefined) return;
    if (guestPort < 0) return this.#release(connection);
    let hostPort: number;
    do {
      hostPort = this.#nextPort;
      this.#nextPort = FIRST_PORT | (hostPort + 1) & (FIRST_PORT - 1);
    } while (this.#table.find(hostPort, guestPort) !== undefined);
    this.#table.add(connection, hostPort, guestPort);
    connection.state = State.REQUESTED;
    connection.due = Due.REQUEST;
    this.#await(connection, ANSWER_MS);
    this.#line(connection);
  }

  /** Something is new at a connection's socket. */
  #changed(connection: Connection): void {
    const { stream, state } = connection;
    if (state === State.REQUESTED && stream.isGone) return this.#abort(connection);
    if (state === State.FLUSHING && stream.waiting === 0) return this.#release(connection);
    if (state >= State.OPEN && connection.owesCredit) connection.due |= Due.CREDIT;
    this.#line(connection);
  }

  #await(connection: Connection, delayMs: number): void {
    connection.deadlineMs = this.reactor.now() + delayMs;
    if (!this.#timer.armed) this.#timer.arm(LOOK_MS);
  }

  #lookForOverdue(): void {
    const nowMs = this.reactor.now();
    let isAwaiting = false;
    for (const connection of this.#table.all) {
      if (connection.deadlineMs <= nowMs && !this.#resets.isFull) this.#abort(connection);
      isAwaiting ||= connection.deadlineMs !== Infinity;
    }
    if (isAwaiting) this.#timer.arm(LOOK_MS);
  }

  /** Ends a connection; the guest is told if it knows of it. There must be room for that. */
  #abort(connection: Connection): void {
    const { state, hostPort, guestPort } = connection;
    const isKnown = state !== State.GREETING && state !== State.FLUSHING &&
      (connection.due & Due.REQUEST) === 0;
    if (isKnown && !this.#resets.isFull) {
      this.#resets.push(HOST_CID, hostPort, guestPort, VSOCK_STREAM);
      this.wake(RX);
    }
    this.#release(connection);
  }

  #release(connection: Connection): void {
    this.#table.release(connection);
    this.#sockets.hold(false);
  }

  // --- what the guest says -----------------------------------------------------------------------

  #hear(queue: DeviceQueue, budget: number): boolean {
    const { readable } = this.#chain;
    for (let i = 0; i < budget; i++) {
      // Each packet may need an answer.
      if (this.#resets.isFull || !take(queue, this.#chain)) return false;
      if (this.#packet(readable)) queue.charge(CONNECT_CHARGE);
      queue.complete(this.#chain.head, 0);
    }
    return true;
  }

  /** @returns whether it was a request to connect */
  #packet(packet: IovecList): boolean {
    const { address, view } = this.#header;
    const { SIZE, SRC_CID, DST_CID, SRC_PORT, DST_PORT, TYPE, OP } = VsockHeader;
    const isWhole = packet.copyOut(0, address, SIZE) === SIZE;
    const isOurs = view.getUint32(SRC_CID, true) === this.#cid &&
      view.getUint32(SRC_CID + 4, true) === 0 && view.getUint32(DST_CID + 4, true) === 0;
    if (!isWhole || !isOurs) {
      this.counters.dropped++;
      return false;
    }
    const cid = view.getUint32(DST_CID, true);
    const hostPort = view.getUint32(DST_PORT, true);
    const guestPort = view.getUint32(SRC_PORT, true);
    const op = view.getUint16(OP, true);
    const type = view.getUint16(TYPE, true);
    const connection = cid === HOST_CID && type === VSOCK_STREAM
      ? this.#table.find(hostPort, guestPort)
      : undefined;
    if (connection !== undefined) this.#understand(connection, op, packet);
    else if (op === VsockOp.REQUEST && cid === HOST_CID && type === VSOCK_STREAM) {
      this.#connect(hostPort, guestPort);
      return true;
    } else if (op !== VsockOp.RST) {
      this.counters.refused++;
      this.#resets.push(cid, hostPort, guestPort, type);
      this.wake(RX);
    }
    return false;
  }

  #connect(hostPort: number, guestPort: number): void {
    const fd = this.#table.isFull ? undefined : this.#sockets.connect(hostPort);
    if (fd === undefined) {
      this.counters.refused++;
      this.#resets.push(HOST_CID, hostPort, guestPort, VSOCK_STREAM);
      return this.wake(RX);
    }
    const connection = this.#table.take()!;
    const stream = this.#streamOf(connection, fd, () => this.#changed(connection));
    connection.begin(State.OPEN, stream);
    this.#table.add(connection, hostPort, guestPort);
    this.#sockets.hold(this.#table.isFull);
    this.counters.connections++;
    connection.due = Due.RESPONSE;
    this.#noteCredit(connection);
    this.#line(connection);
  }

  #noteCredit(connection: Connection): void {
    const { view } = this.#header;
    connection.guestRoom = view.getUint32(VsockHeader.BUF_ALLOC, true);
    connection.guestTaken = view.getUint32(VsockHeader.FWD_CNT, true);
    connection.hasAsked = false;
  }

  /** A packet of a connection. */
  #understand(connection: Connection, op: number, packet: IovecList): void {
    this.#noteCredit(connection);
    switch (op) {
      case VsockOp.RST:
        return this.#release(connection);
      case VsockOp.RESPONSE:
        if (connection.state !== State.REQUESTED) return this.#abort(connection);
        connection.state = State.OPEN;
        connection.deadlineMs = Infinity;
        this.counters.connections++;
        sayConnected(connection.stream, connection.hostPort);
        break;
      case VsockOp.RW:
        if (!this.#receive(connection, packet)) return this.#abort(connection);
        break;
      case VsockOp.SHUTDOWN:
        if (connection.state === State.REQUESTED) return this.#abort(connection);
        if (this.#isShutDown(connection)) return;
        break;
      case VsockOp.CREDIT_REQUEST:
        connection.due |= Due.CREDIT;
        break;
      case VsockOp.CREDIT_UPDATE:
        break;
      default:
        return this.#abort(connection);
    }
    this.#line(connection);
  }

  /** @returns false for what may not come */
  #receive(connection: Connection, packet: IovecList): boolean {
    const { stream, state, guestShut } = connection;
    const length = this.#header.view.getUint32(VsockHeader.LEN, true);
    if (state === State.REQUESTED || (guestShut & VsockShutdown.SEND) !== 0) return false;
    if (length > packet.length - VsockHeader.SIZE) return false;
    if (length === 0) return true;
    this.#payload.select(packet, length);
    if (this.#payload.length < length || !stream.write(packet, this.#payload)) return false;
    this.counters.sent += length;
    if (connection.owesCredit) connection.due |= Due.CREDIT;
    return true;
  }

  /** The guest's SHUTDOWN. @returns true if that was all */
  #isShutDown(connection: Connection): boolean {
    const { stream, hostPort, guestPort } = connection;
    const before = connection.guestShut;
    const flags = before | this.#header.view.getUint32(VsockHeader.FLAGS, true) & BOTH;
    connection.guestShut = flags;
    if (flags === BOTH) {
      this.#resets.push(HOST_CID, hostPort, guestPort, VSOCK_STREAM);
      this.wake(RX);
      if (stream.waiting === 0) this.#release(connection);
      else {
        this.#table.remove(connection);
        connection.state = State.FLUSHING;
        connection.due = 0;
        this.#await(connection, END_MS);
      }
      return true;
    }
    const fresh = flags & ~before;
    if ((fresh & VsockShutdown.SEND) !== 0) stream.finish();
    if ((fresh & VsockShutdown.RECEIVE) !== 0) stream.stopReading();
    return false;
  }

  // --- what the guest is told --------------------------------------------------------------------

  /** Stands in line if it has something to say. */
  #line(connection: Connection): void {
    if (connection.isQueued || !connection.isReady) return;
    connection.isQueued = true;
    const at = (this.#readyFrom + this.#readyCount++) & (MOST_CONNECTIONS - 1);
    this.#ready[at] = connection;
    this.wake(RX);
  }

  #nextInLine(): Connection {
    const connection = this.#ready[this.#readyFrom]!;
    this.#readyFrom = (this.#readyFrom + 1) & (MOST_CONNECTIONS - 1);
    this.#readyCount--;
    connection.isQueued = false;
    return connection;
  }

  #tell(queue: DeviceQueue, budget: number): boolean {
    const { writable } = this.#chain;
    let isHeld = false;
    for (let i = 0; i < budget && (this.#resets.count > 0 || this.#readyCount > 0); i++) {
      if (!isHeld) {
        if (!take(queue, this.#chain)) return false;
        if (writable.length <= VsockHeader.SIZE) {
          queue.refuse(`buffer ${this.#chain.head} has no room for a packet`);
          return false;
        }
      }
      const said = this.#resets.count > 0 ? this.#sayReset() : this.#say(this.#nextInLine());
      isHeld = said === 0;
      if (!isHeld) queue.complete(this.#chain.head, said);
    }
    if (isHeld) queue.rewind(1);
    return this.#resets.count > 0 || this.#readyCount > 0;
  }

  #sayReset(): number {
    const { cids, hostPorts, guestPorts, types, first, isFull } = this.#resets;
    const { view } = this.#header;
    this.#fill(VsockOp.RST, hostPorts[first], guestPorts[first], 0);
    view.setUint32(VsockHeader.SRC_CID, cids[first], true);
    view.setUint16(VsockHeader.TYPE, types[first], true);
    this.#resets.shift();
    if (isFull) this.wake(TX);
    return this.#write();
  }

  /** Says one thing of a connection. @returns the packet's size, 0 if there is nothing to say */
  #say(connection: Connection): number {
    const { due, state } = connection;
    let size = 0;
    if ((due & Due.REQUEST) !== 0) size = this.#sayWord(connection, VsockOp.REQUEST, Due.REQUEST);
    else if ((due & Due.RESPONSE) !== 0) {
      size = this.#sayWord(connection, VsockOp.RESPONSE, Due.RESPONSE);
    } else {
      if (connection.mayRead) size = this.#send(connection);
      if (size === 0 && state === State.OPEN) size = this.#sayShut(connection);
      if (size === 0 && (connection.due & Due.CREDIT) !== 0) {
        size = this.#sayWord(connection, VsockOp.CREDIT_UPDATE, Due.CREDIT);
      }
    }
    this.#line(connection);
    return size;
  }

  /** What the host program has sent, as far as the guest has room. */
  #send(connection: Connection): number {
    const { credit } = connection;
    if (credit === 0) {
      if (connection.hasAsked) return 0;
      connection.hasAsked = true;
      return this.#sayWord(connection, VsockOp.CREDIT_REQUEST, 0);
    }
    this.#payload.select(this.#chain.writable, credit);
    const length = connection.stream.read(this.#payload);
    if (length === 0) return 0;
    connection.sent = (connection.sent + length) >>> 0;
    this.counters.received += length;
    this.#fillFor(connection, VsockOp.RW, length);
    return this.#write() + length;
  }

  #sayShut(connection: Connection): number {
    const { shut } = connection;
    if (shut === connection.saidShut) return 0;
    connection.saidShut = shut;
    this.#fillFor(connection, VsockOp.SHUTDOWN, 0);
    this.#header.view.setUint32(VsockHeader.FLAGS, shut, true);
    if (shut === BOTH) {
      connection.state = State.CLOSING;
      connection.stream[Symbol.dispose]();
      this.#await(connection, END_MS);
    }
    return this.#write();
  }

  #sayWord(connection: Connection, op: number, done: number): number {
    connection.due &= ~done;
    this.#fillFor(connection, op, 0);
    return this.#write();
  }

  /** The header of a packet of a connection, which says what credit the guest has. */
  #fillFor(connection: Connection, op: number, length: number): void {
    const { stream, backlog, hostPort, guestPort } = connection;
    const { view } = this.#header;
    this.#fill(op, hostPort, guestPort, length);
    view.setUint32(VsockHeader.BUF_ALLOC, backlog.size, true);
    view.setUint32(VsockHeader.FWD_CNT, stream.taken, true);
    connection.toldTaken = stream.taken;
    connection.due &= ~Due.CREDIT;
  }

  #fill(op: number, hostPort: number, guestPort: number, length: number): void {
    const { bytes, view } = this.#header;
    bytes.fill(0);
    view.setUint32(VsockHeader.SRC_CID, HOST_CID, true);
    view.setUint32(VsockHeader.DST_CID, this.#cid, true);
    view.setUint32(VsockHeader.SRC_PORT, hostPort, true);
    view.setUint32(VsockHeader.DST_PORT, guestPort, true);
    view.setUint32(VsockHeader.LEN, length, true);
    view.setUint16(VsockHeader.TYPE, VSOCK_STREAM, true);
    view.setUint16(VsockHeader.OP, op, true);
  }

  /** Writes the header to the guest's buffer. @returns its size */
  #write(): number {
    return this.#chain.writable.copyIn(0, this.#header.address, VsockHeader.SIZE);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.reactor.dropTimer(this.#timer);
    this.#sockets[Symbol.dispose]();
    this.#table[Symbol.dispose]();
  }
}
