/** A guest's side of a socket device, written from VIRTIO 1.3, section 5.10, over the mock driver; and host programs. */

import { assert, assertEquals } from "@std/assert";
import { VsockDevice } from "../../../src/devices/vsock/vsock_device.ts";
import { allocate } from "../../../src/linux/arena.ts";
import {
  connectUnix,
  listenUnix,
  type UnixListener,
  type UnixStream,
} from "../../../src/linux/unix_socket.ts";
import { createLog } from "../../../src/observe/log.ts";
import type { MockElement } from "../../support/mock_driver.ts";
import { BUFFERS, QueueRig } from "../../support/queue_rig.ts";

export const RX = 0, TX = 1, EVENT = 2;
export const REQUEST = 1, RESPONSE = 2, RST = 3, SHUTDOWN = 4, RW = 5;
export const CREDIT_UPDATE = 6, CREDIT_REQUEST = 7;
export const CID = 42, HOST = 2, HEADER = 44;
/** What the device grants, and what this guest does. */
export const GRANT = 128 << 10, ROOM = 1 << 20;
export const GUEST_PORT = 5000, HOST_PORT = 1234;

export interface Packet {
  readonly srcCid: bigint;
  readonly dstCid: bigint;
  readonly srcPort: number;
  readonly dstPort: number;
  readonly type: number;
  readonly op: number;
  readonly flags: number;
  readonly bufAlloc: number;
  readonly fwdCnt: number;
  /** What the header says, unless it is the payload's. */
  readonly len?: number | undefined;
  readonly payload: Uint8Array;
}

const NOTHING = new Uint8Array();
/** From a program of the guest to one of the host. */
export const OURS: Packet = {
  srcCid: BigInt(CID),
  dstCid: BigInt(HOST),
  srcPort: GUEST_PORT,
  dstPort: HOST_PORT,
  type: 1,
  op: RW,
  flags: 0,
  bufAlloc: ROOM,
  fwdCnt: 0,
  payload: NOTHING,
};

export function encode(packet: Packet): Uint8Array {
  const bytes = new Uint8Array(HEADER + packet.payload.length);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, packet.srcCid, true);
  view.setBigUint64(8, packet.dstCid, true);
  view.setUint32(16, packet.srcPort, true);
  view.setUint32(20, packet.dstPort, true);
  view.setUint32(24, packet.len ?? packet.payload.length, true);
  view.setUint16(28, packet.type, true);
  view.setUint16(30, packet.op, true);
  view.setUint32(32, packet.flags, true);
  view.setUint32(36, packet.bufAlloc, true);
  view.setUint32(40, packet.fwdCnt, true);
  bytes.set(packet.payload, HEADER);
  return bytes;
}

function decode(bytes: Uint8Array): Packet {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const len = view.getUint32(24, true);
  assertEquals(bytes.length, HEADER + len, "a packet is as long as it says");
  return {
    srcCid: view.getBigUint64(0, true),
    dstCid: view.getBigUint64(8, true),
    srcPort: view.getUint32(16, true),
    dstPort: view.getUint32(20, true),
    type: view.getUint16(28, true),
    op: view.getUint16(30, true),
    flags: view.getUint32(32, true),
    bufAlloc: view.getUint32(36, true),
    fwdCnt: view.getUint32(40, true),
    payload: bytes.slice(HEADER),
  };
}

/** Where a packet to be sent lies; buffers to receive are behind it. */
const SEND_AT = BUFFERS, RECEIVE_AT = BUFFERS + 0x2_8000, BUFFER = 0x1000;
/** What {@link Guest.fill} sends at once: nothing that buffers are a multiple of. */
const PIECE = 0x3ffb;
const scratch = allocate(256 << 10);

export interface GuestOptions {
  readonly base?: number;
  readonly started?: readonly number[];
  /** The header's size, in a segment of its own, as Linux has it up to 6.2; 0: as from 6.3 on. */
  readonly cut?: number;
  readonly forwarded?: boolean;
}

/** See the head of this file. */
export class Guest implements Disposable {
  readonly directory = Deno.makeTempDirSync();
  readonly prefix = `${this.directory}/vsock`;
  readonly warnings: string[] = [];
  readonly rig: QueueRig<VsockDevice>;
  readonly #rooms = new Map<number, number>();
  #buffers = 0;

  constructor(readonly options: GuestOptions = {}) {
    const { base, started, forwarded = false } = options;
    const log = createLog("test", "warn", (line) => this.warnings.push(line));
    const device = { cid: CID, prefix: this.prefix, forwarded, name: "vsock" };
    this.rig = new QueueRig((reactor) => new VsockDevice(reactor, device, log), [], started, base);
  }

  /** Makes room for so many packets. */
  room(count: number, size = BUFFER): void {
    const { memory, queues, device } = this.rig;
    for (let i = 0; i < count; i++) {
      const at = RECEIVE_AT + BUFFER * (this.#buffers++ % 64);
      memory.bytes(at, BUFFER).fill(0xee);
      const head = queues[RX].add([], this.#pieces(at, size))!;
      this.#rooms.set(head, at);
    }
    queues[RX].publish();
    device.available(RX);
  }

  #pieces(address: number, length: number): MockElement[] {
    const { cut = 0 } = this.options;
    if (cut === 0 || cut >= length) return [{ address, length }];
    return [{ address, length: cut }, { address: address + cut, length: length - cut }];
  }

  /** How many there is room for. */
  get rooms(): number {
    return this.rig.queues[RX].size - this.rig.queues[RX].free;
  }

  /** Sends one packet; the device takes it unless it waits for room. */
  send(packet: Partial<Packet>): boolean {
    return this.sendBytes(encode({ ...OURS, ...packet }));
  }

  sendBytes(bytes: Uint8Array): boolean {
    const { memory, queues, device } = this.rig;
    memory.bytes(SEND_AT, bytes.length).set(bytes);
    queues[TX].add(this.#pieces(SEND_AT, bytes.length), []);
    queues[TX].publish();
    device.available(TX);
    this.rig.settle();
    return queues[TX].takeUsed() !== undefined;
  }

  /** What the device has said since. */
  heard(): Packet[] {
    this.rig.settle();
    const packets: Packet[] = [];
    for (;;) {
      const used = this.rig.queues[RX].takeUsed();
      if (used === undefined) return packets;
      packets.push(decode(this.rig.memory.bytes(this.#rooms.get(used.head)!, used.length)));
    }
  }

  /** The same in brief. */
  ops(): string[] {
    return this.heard().map(({ op, dstPort, flags }) =>
      `${op} ${dstPort}${flags ? ` ${flags}` : ""}`
    );
  }

  listen(port: number): UnixListener {
    return listenUnix(`${this.prefix}_${port}`);
  }

  /** A program of the guest connects to one that listens. */
  connect(listener: UnixListener, packet: Partial<Packet> = {}): UnixStream {
    assert(this.send({ op: REQUEST, ...packet }));
    const stream = listener.accept();
    if (stream === undefined) throw new Error("nobody connected");
    return stream;
  }

  /** A host program connects to a port of the guest, which has not answered. */
  dial(line = `CONNECT ${GUEST_PORT}\n`): UnixStream {
    const stream = connectUnix(this.prefix)!;
    write(stream, line);
    this.rig.settle();
    return stream;
  }

  /**
   * Sends {@link pattern}, of which so much was sent and handed on, until the host program, which does not read, has kept the device from
   * handing on what it granted.
   *
   * @returns how much was sent now
   */
  fill(sent = 0, taken = 0): number {
    while (sent - taken + PIECE <= GRANT) {
      assert(this.send({ payload: pattern(sent, PIECE) }));
      sent += PIECE;
      for (const { fwdCnt } of this.heard()) taken = fwdCnt;
      this.room(1);
    }
    return sent;
  }

  /** The host program reads {@link pattern} from one byte to another, or somewhat further. @returns to where */
  drain(stream: UnixStream, from: number, to: number): number {
    while (from < to) {
      const bytes = readBytes(stream);
      assert(bytes?.length !== 0, "it has ended");
      const wanted = pattern(from, bytes?.length ?? 0);
      // assertEquals would say what is different, at great length.
      assert(bytes?.every((byte, i) => byte === wanted[i]) ?? true, "other bytes");
      from += wanted.length;
      this.rig.settle();
    }
    return from;
  }

  [Symbol.dispose](): void {
    this.rig[Symbol.dispose]();
    Deno.removeSync(this.directory, { recursive: true });
  }
}

export const bytesOf = (text: string) => new TextEncoder().encode(text);
export const textOf = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** How much of it the socket took. */
export function writeBytes(stream: UnixStream, bytes: Uint8Array): number {
  scratch.bytes.set(bytes);
  return stream.send(scratch.address, bytes.length);
}

export function write(stream: UnixStream, text: string): void {
  assertEquals(writeBytes(stream, bytesOf(text)), text.length);
}

/** What has come: "" for an end, undefined for nothing yet. */
export function read(stream: UnixStream): string | undefined {
  const bytes = readBytes(stream);
  return bytes && textOf(bytes);
}

export function readBytes(stream: UnixStream): Uint8Array | undefined {
  const count = stream.receive(scratch.address, scratch.bytes.length);
  return count < 0 ? undefined : scratch.bytes.slice(0, count);
}

/** So many bytes that are unlike one another. */
export function pattern(from: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => ((from + i) * 7 + ((from + i) >> 8)) & 0xff);
}
