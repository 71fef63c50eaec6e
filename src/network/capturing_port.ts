/**
 * A port whose frames are captured, in both directions: one interface of a capture (observe/capture_file.ts).
 *
 * The wrapped port works as before; what it sent or received is copied. A frame is captured as it crosses the port,
 * without its virtio-net header: with offloads it may be as large as 64 KiB, and its checksum not filled in yet.
 */

import type { IovecList } from "../memory/mod.ts";
import type { CaptureFile, CaptureInterface } from "../observe/capture_file.ts";
import { LINKTYPE_ETHERNET } from "../observe/pcapng.ts";
import { NET_HEADER_SIZE } from "../virtio/net_header.ts";
import type { NetworkPort, PortListener, PortQueue } from "./port.ts";

/** See the head of this file. */
export class CapturingPort implements NetworkPort {
  readonly description: string;
  readonly features: readonly number[];
  readonly queues: readonly PortQueue[] | undefined;
  readonly #first: PortQueue;
  readonly #interface: CaptureInterface;

  /**
   * Adds an interface to the file, which stays the caller's.
   *
   * @param port is disposed with this one
   * @param name of the interface, as in "net0"
   */
  constructor(readonly port: NetworkPort, readonly file: CaptureFile, name: string) {
    const { description } = port;
    this.description = `${description}, captured in ${file.path}`;
    this.features = port.features;
    this.queues = port.queues?.map((queue) => this.#watched(queue));
    this.#first = this.queues?.[0] ?? this.#watched(port);
    this.#interface = file.add({ linkType: LINKTYPE_ETHERNET, name, description });
  }

  setFeatures(words: Uint32Array): void {
    this.port.setFeatures?.(words);
  }

  startOver(): void {
    this.port.startOver?.();
  }

  setMac(mac: Uint8Array): void {
    this.port.setMac?.(mac);
  }

  open(listener: PortListener): void {
    this.port.open(listener);
  }

  setQueues(count: number): void {
    this.port.setQueues?.(count);
  }

  #watched(queue: PortQueue): PortQueue {
    return {
      send: (frame) => {
        if (!queue.send(frame)) return false;
        this.#capture(frame, frame.length, 0);
        return true;
      },
      nextLength: () => queue.nextLength(),
      receive: (into, first) => {
        const length = queue.receive(into, first);
        if (length > 0) this.#capture(into, length, first);
        return length;
      },
      discard: () => queue.discard(),
    };
  }

  send(frame: IovecList): boolean {
    return this.#first.send(frame);
  }

  nextLength(): number {
    return this.#first.nextLength();
  }

  receive(into: IovecList, first: number): number {
    return this.#first.receive(into, first);
  }

  discard(): void {
    this.#first.discard();
  }

  #capture(frame: IovecList, length: number, first: number): void {
    const size = length - NET_HEADER_SIZE;
    if (size <= 0) return;
    const { file } = this;
    const kept = file.keptOf(size);
    const at = this.#interface.claim(kept, size);
    if (at >= 0) frame.copyOut(NET_HEADER_SIZE, file.address + BigInt(at), kept, first);
  }

  [Symbol.dispose](): void {
    this.port[Symbol.dispose]();
  }
}
