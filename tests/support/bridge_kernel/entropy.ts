/** The driver of an entropy device: what a hwrng reads. */

import { Driver, EVENT_IDX, type Plan } from "./driver.ts";
import type { Session } from "./session.ts";

const ENTROPY = 4;

export class Entropy {
  private constructor(readonly driver: Driver) {}

  static async open(session: Session, dev: number, plan: Partial<Plan> = {}): Promise<Entropy> {
    const whole = { deviceId: ENTROPY, features: EVENT_IDX, queues: [0], ...plan };
    const driver = new Driver(session, dev, whole);
    await driver.bringUp();
    return new Entropy(driver);
  }

  /** Random bytes, as many as the device gave. */
  async read(length: number): Promise<Uint8Array<ArrayBuffer>> {
    const { pool, session } = this.driver;
    const buffer = await pool.take(length);
    const written = await this.driver.transfer(0, { readable: [], writable: [buffer] });
    const bytes = session.owner.memory.read(buffer.address, written);
    await pool.give(buffer);
    return bytes;
  }
}
