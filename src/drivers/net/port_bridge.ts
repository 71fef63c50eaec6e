/**
 * Joins a user-space driver to a network port: `vmsg driver --tap` gives this machine's kernel a network
 * card whose device is elsewhere.
 *
 * Frames go through in both directions as they are, virtio-net header first. What the device may leave undone in
 * frames for its driver, the kernel behind the TAP does, and the other way round; so the features the driver
 * accepts are those of the port seen in a mirror. While the driver is down the TAP is not read.
 */

import { NET_HEADER_SIZE, NUM_BUFFERS_OFFSET } from "../../virtio/net_header.ts";
import type { Reactor, Task } from "../../linux/reactor.ts";
import type { IovecList } from "../../memory/mod.ts";
import { hasFeature, NetFeature } from "../../virtio/features.ts";
import type { NetworkPort, PortQueue } from "../../network/port.ts";
import type { NetDriver, NetDriverListener } from "./net_driver.ts";

const BATCH = 64;

/** An offload of frames to the device, and the same of frames from it. */
const MIRROR: readonly (readonly [number, number])[] = [
  [NetFeature.CSUM, NetFeature.GUEST_CSUM],
  [NetFeature.HOST_TSO4, NetFeature.GUEST_TSO4],
  [NetFeature.HOST_TSO6, NetFeature.GUEST_TSO6],
  [NetFeature.HOST_ECN, NetFeature.GUEST_ECN],
  [NetFeature.HOST_USO, NetFeature.GUEST_USO4],
  [NetFeature.HOST_USO, NetFeature.GUEST_USO6],
];

/** The features of a port as a driver has to negotiate them. */
export function mirrored(features: readonly number[]): number[] {
  const other = new Set<number>();
  for (const [host, guest] of MIRROR) {
    if (features.includes(host)) other.add(guest);
    if (features.includes(guest)) other.add(host);
  }
  return [...other];
}

/** See the head of this file. */
export class PortBridge implements NetDriverListener, Disposable {
  readonly #tasks: readonly Task[];
  readonly #queues: readonly PortQueue[];
  #driver!: NetDriver;

  constructor(
    readonly reactor: Reactor,
    readonly port: NetworkPort,
    readonly print: (line: string) => void,
  ) {
    this.#queues = port.queues ?? [port];
    this.#tasks = this.#queues.map((_, i) => ({ run: () => this.#transmit(i) }));
  }

  use(driver: NetDriver): void {
    this.#driver = driver;
    this.port.open({
      readable: (queue = 0) => this.writable(queue),
      writable: (queue = 0) => driver.resume(queue),
      // A driver has no way to tell its device that the wire behind it was cut.
      link: () => {},
    });
  }

  up(): void {
    const { accepted, features } = this.#driver;
    const words = new Uint32Array(accepted.length);
    const taken = MIRROR.flat().filter((bit) => hasFeature(accepted, bit));
    for (const bit of mirrored(taken)) words[bit >> 5] |= 1 << (bit & 31);
    this.port.setFeatures?.(words);
    this.port.setMac?.(this.#driver.mac);
    this.print(`${this.port.description}: connected; features ${features.join(" ")}`);
    this.pairs(1);
  }

  pairs(count: number): void {
    this.port.setQueues?.(count);
    for (const task of this.#tasks) this.reactor.schedule(task);
  }

  down(reason: string): void {
    this.print(`${this.port.description}: ${reason}`);
  }

  frame(frame: IovecList, pair: number): boolean {
    return this.#queues[pair]!.send(frame);
  }

  writable(pair: number): void {
    this.reactor.schedule(this.#tasks[pair]!);
  }

  #transmit(index: number): boolean {
    if (!this.#driver.isUp) return false;
    const port = this.#queues[index]!;
    const driver = this.#driver.pairs[index]!;
    for (let i = 0; i < BATCH; i++) {
      if (port.nextLength() === 0 || !driver.claim()) return false;
      const { buffer } = driver;
      const length = port.receive(buffer, 0);
      if (length < NET_HEADER_SIZE) return false;
      // Meant for receivers; a transmitted frame has 0 there (5.1.6.2.1).
      buffer.setUint16(NUM_BUFFERS_OFFSET, 0);
      driver.send(length);
    }
    return true;
  }

  [Symbol.dispose](): void {
    this.port[Symbol.dispose]();
  }
}
