/**
 * A virtio console (VIRTIO 1.3, section 5.3): port 0 is the guest's console, others are bytes with a name for
 * programs (/dev/virtio-ports/NAME).
 *
 * Theory of operation. A port has a queue for each direction, the device has two more for what is said of ports:
 *
 *     driver: DEVICE_READY                    device: PORT_ADD for each port
 *     driver: PORT_READY                      device: CONSOLE_PORT and RESIZE, or PORT_NAME; PORT_OPEN
 *     device: RESIZE, PORT_OPEN               when a window's size changes; when somebody comes or goes
 *     driver: PORT_OPEN                       a program has opened its end or closed it
 *
 * A driver without MULTIPORT has port 0 alone, and its size in the configuration. A device that goes on where another one
 * was finds a driver that has said all this before: its ports are taken for open.
 *
 * A buffer to be sent stays the device's while its end has no room. Stopped meanwhile it is given back whole: what
 * was written of it comes twice.
 */

import { allocate } from "../../linux/arena.ts";
import type { Reactor } from "../../linux/reactor.ts";
import { counterShape } from "../../observe/counters.ts";
import { type Answer, type DeviceHost, goesOn, type QueueSetup } from "../../virtio/device.ts";
import { ConsoleFeature, DEVICE_CONSOLE } from "../../virtio/features.ts";
import { Chain, type DeviceQueue } from "../../virtio/queue/mod.ts";
import { type Batch, BATCH_COUNTERS, QueueDevice, take } from "../queue_device.ts";
import type { ConsoleEnd } from "./console_end.ts";

/** Queues of port 0, of control, and the first of port 1. */
const CONTROL_OUT = 2, CONTROL_IN = 3, FIRST_OF_OTHERS = 4;
/** struct virtio_console_config: u16 columns, rows, u32 max_nr_ports, emerg_wr */
const CONFIG_SIZE = 12;

/** struct virtio_console_control: u32 id, u16 event, u16 value; a name or a size may follow. */
const CONTROL_SIZE = 8;
const Event = {
  DEVICE_READY: 0,
  PORT_ADD: 1,
  PORT_READY: 3,
  CONSOLE_PORT: 4,
  RESIZE: 5,
  PORT_OPEN: 6,
  PORT_NAME: 7,
} as const;

/** Messages that wait for a driver's buffers; one that makes no room is not told more. */
const MOST_MESSAGES = 64;

/** One port. */
export interface ConsolePort {
  readonly end: ConsoleEnd;
  /** Of a port for programs; the console has none. */
  readonly name?: string;
}

interface OpenPort extends ConsolePort {
  readonly id: number;
  /** Has the driver said that it knows the port? */
  isKnown: boolean;
  /** Does a program of the guest read what comes? */
  isListening: boolean;
  /** What is being written, and the bytes of it that are left. */
  readonly sending: Chain;
  isSending: boolean;
}

const ConsoleCounters = counterShape(...BATCH_COUNTERS, "received", "sent");

/** See the head of this file. */
export class ConsoleDevice extends QueueDevice {
  declare readonly counters: InstanceType<typeof ConsoleCounters>;
  readonly #ports: readonly OpenPort[];
  readonly #chain = new Chain();
  readonly #message = allocate(256);
  /** For the driver, oldest first. */
  readonly #messages: Uint8Array[] = [];

  /** @param ports the console, then others with names; the device owns their ends */
  constructor(reactor: Reactor, ports: readonly ConsolePort[], name: string = "console") {
    const batches: Batch[] = ports.flatMap((_, id): Batch[] => [
      (queue, budget) => this.#receive(this.#ports[id]!, queue, budget),
      (queue, budget) => this.#send(this.#ports[id]!, queue, budget),
    ]);
    batches.splice(CONTROL_OUT, 0, (queue) => this.#tell(queue), (queue, budget) => {
      return this.#hear(queue, budget);
    });
    super(reactor, {
      deviceId: DEVICE_CONSOLE,
      features: [ConsoleFeature.SIZE, ConsoleFeature.MULTIPORT],
      config: new Uint8Array(CONFIG_SIZE),
      queues: batches,
      counters: new ConsoleCounters("device", name),
    });
    new DataView(this.config.buffer).setUint32(4, ports.length, true);
    this.#ports = ports.map((port, id) => ({
      ...port,
      id,
      isKnown: false,
      isListening: false,
      sending: new Chain(),
      isSending: false,
    }));
  }

  override connect(host: DeviceHost): void {
    super.connect(host);
    for (const port of this.#ports) {
      port.end.open({
        readable: () => this.wake(receiveQueue(port.id)),
        writable: () => this.wake(receiveQueue(port.id) + 1),
        changed: () => this.#changed(port),
      });
    }
  }

  /** Starts over as a console that was reset. */
  override acceptFeatures(words: Uint32Array): boolean {
    this.#messages.length = 0;
    for (const port of this.#ports) port.isKnown = port.isListening = false;
    return super.acceptFeatures(words);
  }

  override startQueue(index: number, setup: QueueSetup): string | undefined {
    // One that has introduced its ports knows them itself.
    const isNew = !this.#ports.some(({ isKnown }) => isKnown);
    if (index === CONTROL_IN && isNew && goesOn(setup)) {
      for (const port of this.#ports) {
        port.isKnown = port.isListening = true;
        this.#changed(port);
      }
    }
    return super.startQueue(index, setup);
  }

  override stopQueue(index: number): Answer<number> {
    for (const port of this.#ports) if (index === receiveQueue(port.id) + 1) port.isSending = false;
    return super.stopQueue(index);
  }

  // --- bytes -------------------------------------------------------------------------------------

  #receive(port: OpenPort, queue: DeviceQueue, budget: number): boolean {
    // Without control nobody says whether somebody listens; a console always does.
    if (port.name !== undefined && !port.isListening) return false;
    const chain = this.#chain;
    for (let i = 0; i < budget; i++) {
      if (!take(queue, chain)) return false;
      const count = chain.writable.length === 0 ? 0 : port.end.read(chain.writable);
      if (count === 0) {
        if (chain.writable.length > 0) {
          queue.rewind(1);
          return false;
        }
      }
      this.counters.received += count;
      queue.complete(chain.head, count);
    }
    return true;
  }

  #send(port: OpenPort, queue: DeviceQueue, budget: number): boolean {
    const { sending, end } = port;
    for (let i = 0; i < budget; i++) {
      if (!port.isSending && !take(queue, sending)) return false;
      port.isSending = true;
      const { readable } = sending;
      if (readable.length > 0) {
        const count = end.write(readable);
        if (count === 0) return false;
        this.counters.sent += count;
        readable.skip(count);
        if (readable.length > 0) continue;
      }
      port.isSending = false;
      queue.complete(sending.head, 0);
    }
    return true;
  }

  // --- control -----------------------------------------------------------------------------------

  #say(id: number, event: number, value: number, more: Uint8Array = new Uint8Array()): void {
    if (!this.has(ConsoleFeature.MULTIPORT) || this.#messages.length >= MOST_MESSAGES) return;
    const bytes = new Uint8Array(CONTROL_SIZE + more.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, id, true);
    view.setUint16(4, event, true);
    view.setUint16(6, value, true);
    bytes.set(more, CONTROL_SIZE);
    this.#messages.push(bytes);
    this.wake(CONTROL_OUT);
  }

  #tell(queue: DeviceQueue): boolean {
    const { bytes, address } = this.#message;
    while (this.#messages.length > 0) {
      if (!take(queue, this.#chain)) return false;
      const message = this.#messages.shift()!;
      bytes.set(message);
      const { writable, head } = this.#chain;
      queue.complete(head, writable.copyIn(0, address, message.length));
    }
    return false;
  }

  #hear(queue: DeviceQueue, budget: number): boolean {
    const { address, view } = this.#message;
    for (let i = 0; i < budget; i++) {
      if (!take(queue, this.#chain)) return false;
      const length = this.#chain.readable.copyOut(0, address, CONTROL_SIZE);
      queue.complete(this.#chain.head, 0);
      // What is too short says nothing.
      if (length < CONTROL_SIZE) continue;
      const [event, value] = [view.getUint16(4, true), view.getUint16(6, true)];
      if (event === Event.DEVICE_READY) {
        if (value === 1) { for (const { id } of this.#ports) this.#say(id, Event.PORT_ADD, 1); }
        continue;
      }
      const port = this.#ports[view.getUint32(0, true)];
      if (port === undefined) continue;
      if (event === Event.PORT_READY && value === 1) this.#introduce(port);
      if (event === Event.PORT_OPEN) {
        port.isListening = value === 1;
        this.wake(receiveQueue(port.id));
      }
    }
    return true;
  }

  #introduce(port: OpenPort): void {
    const { id, name } = port;
    port.isKnown = true;
    if (name === undefined) this.#say(id, Event.CONSOLE_PORT, 1);
    else this.#say(id, Event.PORT_NAME, 1, new TextEncoder().encode(name));
    this.#changed(port);
  }

  #changed({ id, name, end, isKnown }: OpenPort): void {
    const size = new Uint8Array(4);
    const view = new DataView(size.buffer);
    view.setUint16(0, end.columns, true);
    view.setUint16(2, end.rows, true);
    const hasSize = end.columns > 0 && end.rows > 0;
    if (id === 0 && hasSize && size.some((byte, i) => this.config[i] !== byte)) {
      this.config.set(size);
      this.host.configChanged();
    }
    if (!isKnown) return;
    if (name === undefined && hasSize) this.#say(id, Event.RESIZE, 0, size);
    // A console's output never waits for somebody to look at it.
    this.#say(id, Event.PORT_OPEN, name === undefined || end.isOpen ? 1 : 0);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    for (const { end } of this.#ports) end[Symbol.dispose]();
  }
}

function receiveQueue(id: number): number {
  return id === 0 ? 0 : FIRST_OF_OTHERS + 2 * (id - 1);
}
