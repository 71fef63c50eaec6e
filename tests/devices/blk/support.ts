/** A disk in front of the mock driver, and requests as a driver makes them. */

import { assert, assertEquals } from "@std/assert";
import { BlkDevice } from "../../../src/devices/blk/blk_device.ts";
import { Disk } from "../../../src/devices/blk/disk.ts";
import type { MakeEngine } from "../../../src/devices/blk/engine.ts";
import { PlainIo } from "../../../src/devices/blk/plain_io.ts";
import type { Reactor } from "../../../src/linux/reactor.ts";
import type { Log } from "../../../src/observe/log.ts";
import { BlkFeature, RingFeature } from "../../../src/virtio/features.ts";
import type { MockElement } from "../../support/mock_driver.ts";
import { BUFFERS, QueueRig } from "../../support/queue_rig.ts";

export const [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES] = [0, 1, 4, 8, 11, 13];
export const [OK, IOERR, UNSUPP] = [0, 1, 2];
/** No status was written. */
export const UNTOUCHED = 0xee;
/** Each request has its own part of memory: header, data, status. */
const PART = 0x4000;
const DATA = 0x100;
export const SECTORS = 256;

export interface DiskRigOptions {
  readonly sectors?: number;
  readonly readonly?: boolean;
  readonly discard?: boolean;
  readonly queues?: number;
  readonly forwarded?: boolean;
  /** Beside those that are always negotiated. */
  readonly features?: readonly number[];
  readonly engine?: "system calls" | ((reactor: Reactor) => MakeEngine);
}

export const WITHOUT_RING: Pick<DiskRigOptions, "engine"> = { engine: "system calls" };

/** The bytes of sector after sector, each of which tells its number. */
export function pattern(sectors: number, from = 0): Uint8Array {
  const bytes = new Uint8Array(sectors * 512);
  for (let i = 0; i < sectors; i++) bytes.fill(1 + (from + i) % 250, i * 512, (i + 1) * 512);
  return bytes;
}

export interface Given {
  readonly head: number | undefined;
  readonly statusAt: number;
  readonly dataAt: number;
}

/** See the head of this file. */
export class DiskRig implements Disposable {
  readonly path: string;
  readonly rig: QueueRig<BlkDevice>;
  readonly warnings: string[] = [];
  #part = 0;

  constructor(options: DiskRigOptions = {}) {
    const { sectors = SECTORS, readonly = false, discard = true, queues = 1, features = [] } =
      options;
    this.path = Deno.makeTempFileSync();
    Deno.truncateSync(this.path, sectors * 512);
    const log = {
      warn: (line: string) => this.warnings.push(line),
      info: () => {},
    } as unknown as Log;
    const make = (reactor: Reactor) => {
      const disk = new Disk({ path: this.path, readonly });
      const { engine } = options;
      const plain: MakeEngine = (done) => new PlainIo(reactor, disk.fd, 64, done);
      const made = typeof engine === "function" ? engine(reactor) : engine && plain;
      return new BlkDevice(reactor, disk, {
        serial: "serial 1",
        discard,
        queues,
        forwarded: options.forwarded ?? false,
        name: "blk",
        ...(made === undefined ? {} : { engine: made }),
      }, log);
    };
    const negotiated = [
      BlkFeature.FLUSH,
      BlkFeature.DISCARD,
      BlkFeature.WRITE_ZEROES,
      RingFeature.INDIRECT_DESC,
      ...features,
    ];
    this.rig = new QueueRig(make, negotiated);
  }

  /** What the file holds. */
  get file(): Uint8Array {
    return Deno.readFileSync(this.path);
  }

  fill(bytes: Uint8Array): void {
    using file = Deno.openSync(this.path, { write: true });
    file.writeSync(bytes);
  }

  /** Offers a request: a header, `out` to be read by the device, `room` to be written, a status. */
  offer(
    type: number,
    sector: number,
    out: Uint8Array = new Uint8Array(),
    room = 0,
    queue = 0,
  ): Given {
    const at = this.#nextPart();
    const { memory } = this.rig;
    memory.write32(at, type);
    memory.write32(at + 4, 0);
    memory.write64(at + 8, BigInt(sector));
    memory.bytes(at + DATA, Math.max(out.length, room)).fill(UNTOUCHED);
    memory.bytes(at + DATA, out.length).set(out);
    const statusAt = at + 0x80;
    memory.bytes(statusAt, 1)[0] = UNTOUCHED;
    const data = (length: number) => length === 0 ? [] : [{ address: at + DATA, length }];
    const read = [{ address: at, length: 16 }, ...data(out.length)];
    return {
      ...this.add(read, [...data(room), { address: statusAt, length: 1 }], queue),
      dataAt: at + DATA,
    };
  }

  #nextPart(): number {
    const at = BUFFERS + PART * this.#part;
    this.#part = (this.#part + 1) % 32;
    return at;
  }

  /** Offers a buffer of any form, whose last byte is the status. */
  add(read: MockElement[], write: MockElement[], queue = 0): Given {
    const { queues, device } = this.rig;
    const head = queues[queue].add(read, write);
    queues[queue].publish();
    device.available(queue);
    const last = write.at(-1);
    return { head, statusAt: last === undefined ? -1 : last.address + last.length - 1, dataAt: 0 };
  }

  /** Lets the device work until a buffer came back; its length. */
  used(queue = 0): { head: number; length: number } {
    for (;;) {
      const used = this.rig.queues[queue].takeUsed();
      if (used !== undefined) return used;
      // Blocks until the disk has done something: an empty turn would say that it never will.
      assert(this.rig.resets.length === 0, this.rig.resets.join());
      this.rig.reactor.turn();
    }
  }

  statusOf({ statusAt }: Given): number {
    return this.rig.memory.bytes(statusAt, 1)[0];
  }

  /** Makes a request and waits for its end. */
  ask(
    type: number,
    sector: number,
    out?: Uint8Array,
    room = 0,
  ): { status: number; length: number; bytes: Uint8Array } {
    const given = this.offer(type, sector, out, room);
    const { head, length } = this.used();
    assertEquals(head, given.head);
    return {
      status: this.statusOf(given),
      length,
      bytes: this.rig.memory.bytes(given.dataAt, room).slice(),
    };
  }

  [Symbol.dispose](): void {
    this.rig[Symbol.dispose]();
    Deno.removeSync(this.path);
  }
}

/** What DISCARD and WRITE_ZEROES are about. */
export function segment(sector: number, sectors: number, flags = 0): Uint8Array {
  const view = new DataView(new ArrayBuffer(16));
  view.setBigUint64(0, BigInt(sector), true);
  view.setUint32(8, sectors, true);
  view.setUint32(12, flags, true);
  return new Uint8Array(view.buffer);
}
