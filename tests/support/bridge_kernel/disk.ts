/** The driver of a disk: reads, writes and flushes, with the data in one buffer or in as many as wanted. */

import { Driver, EVENT_IDX, INDIRECT_DESC, type Plan } from "./driver.ts";
import type { Buffer } from "./pool.ts";
import type { Session } from "./session.ts";

const DISK = 2;
const FLUSH = 1n << 9n;
const READ = 0, WRITE = 1, DO_FLUSH = 4;
export const SECTOR = 512;

export class Disk {
  private constructor(readonly driver: Driver, readonly sectors: number) {}

  static async open(session: Session, dev: number, plan: Partial<Plan> = {}): Promise<Disk> {
    const features = FLUSH | EVENT_IDX | INDIRECT_DESC;
    const driver = new Driver(session, dev, { deviceId: DISK, features, queues: [0], ...plan });
    await driver.bringUp();
    const config = await driver.readConfig(0, 8);
    return new Disk(driver, Number(new DataView(config.buffer).getBigUint64(0, true)));
  }

  /** Writes bytes at a sector; `at` is memory that has room for them, else the pool's. */
  async write(sector: number, bytes: Uint8Array, at?: readonly Buffer[]): Promise<void> {
    const data = at ?? [await this.driver.pool.take(bytes.length)];
    let done = 0;
    for (const { address, length } of data) {
      this.driver.session.owner.memory.write(address, bytes.subarray(done, done + length));
      done += length;
    }
    await this.#request(WRITE, sector, data, []);
    if (at === undefined) await this.driver.pool.give(data[0]!);
  }

  async read(
    sector: number,
    length: number,
    at?: readonly Buffer[],
  ): Promise<Uint8Array<ArrayBuffer>> {
    const data = at ?? [await this.driver.pool.take(length)];
    await this.#request(READ, sector, [], data);
    const bytes = new Uint8Array(length);
    let done = 0;
    for (const { address, length } of data) {
      bytes.set(this.driver.session.owner.memory.read(address, length), done);
      done += length;
    }
    if (at === undefined) await this.driver.pool.give(data[0]!);
    return bytes;
  }

  async flush(): Promise<void> {
    await this.#request(DO_FLUSH, 0, [], []);
  }

  async #request(
    type: number,
    sector: number,
    readable: readonly Buffer[],
    writable: readonly Buffer[],
  ): Promise<void> {
    const { pool, session, features } = this.driver;
    const head = await pool.take(64);
    const header = { address: head.address, length: 16 };
    const status = { address: head.address + 16, length: 1 };
    const bytes = new Uint8Array(17);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, type, true);
    view.setBigUint64(8, BigInt(sector), true);
    bytes[16] = 0xff;
    session.owner.memory.write(head.address, bytes);
    const isIndirect = (features & INDIRECT_DESC) !== 0n;
    const table = isIndirect
      ? await pool.take(16 * (2 + readable.length + writable.length))
      : undefined;
    const elements = { readable: [header, ...readable], writable: [...writable, status] };
    const written = await this.driver.transfer(0, elements, table);
    const [result] = session.owner.memory.read(status.address, 1);
    const expected = 1 + writable.reduce((sum, { length }) => sum + length, 0);
    if (result !== 0 || written !== expected) {
      throw new Error(`request ${type} at ${sector}: status ${result}, ${written} bytes written`);
    }
    await pool.give(head);
    if (table !== undefined) await pool.give(table);
  }
}
