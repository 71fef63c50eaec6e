/**
 * The door between a network device and where its frames go to and come from.
 *
 * A frame crosses it as the guest's own memory: a {@link IovecList} that begins with the virtio-net
 * header (VIRTIO 1.2, 5.1.6, 12 bytes), ready for one writev or readv. The header is passed on unchanged,
 * so that whoever can do offloads (a TAP) gets them, and whoever cannot (the responder) sees a plain one.
 */

import type { IovecList } from "../memory/mod.ts";

/** Who uses a port: the device, which works in its own task. Queues are counted from 0, which is meant unless given. */
export interface PortListener {
  /** Frames for the guest may be there. */
  readable(queue?: number): void;
  /** A frame that was refused may be sent now. */
  writable(queue?: number): void;
  /** The network behind the port is there, or is not. */
  link(up: boolean): void;
}

/** One way for frames in either direction. Nothing here blocks or throws for what a frame contains. */
export interface PortQueue {
  /**
   * Sends one frame of the guest, header first. A frame that makes no sense is dropped and counts as
   * sent.
   *
   * @returns false if there is no room now: keep the frame until {@link PortListener.writable}
   */
  send(frame: IovecList): boolean;
  /** Room that the next frame for the guest needs, header included; 0 when there is none. */
  nextLength(): number;
  /**
   * Writes the next frame, header first, into the segments from `first` on, which have room for
   * {@link nextLength} bytes. The header says that one buffer holds it (num_buffers).
   *
   * @returns its length with header, 0 when there was none after all
   */
  receive(into: IovecList, first: number): number;
  /** Drops the next frame, which no buffer of the guest can hold. */
  discard(): void;
}

/** Where frames go to and come from. */
export interface NetworkPort extends PortQueue, Disposable {
  /** For log lines. */
  readonly description: string;
  /**
   * Feature bits of the network device (VIRTIO 1.2, 5.1.3) that this port makes possible: checksum and
   * segmentation offloads in either direction. A port that looks at every frame itself has none.
   */
  readonly features: readonly number[];
  /**
   * The features the driver accepted, or a smaller set of guest offloads it chose later: what frames
   * for the guest may ask of it from here on.
   *
   * @param words feature bits in blocks of 32
   */
  setFeatures?(words: Uint32Array): void;
  /** A driver starts: what the one before it asked for, such as a stream of datagrams, ends. */
  startOver?(): void;
  /** Gives the interface behind the port an address, where it is one and has none of its own. */
  setMac?(mac: Uint8Array): void;
  /** Starts; frames may come from here on. */
  open(listener: PortListener): void;
  /**
   * Its queues where it has several, one for each queue pair of a card; the port's own methods are those of the first. A
   * flow's frames for the guest come from the queue on which the guest sent that flow last (VIRTIO 1.2, 5.1.6.5.5).
   */
  readonly queues?: readonly PortQueue[] | undefined;
  /** How many queues are in use from here on, the first ones; 1 at the beginning. */
  setQueues?(count: number): void;
}
