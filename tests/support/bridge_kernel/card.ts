/** The driver of a network card, and just enough of a host behind it: ARP, and ICMP echo. */

import { Driver, EVENT_IDX, type Plan } from "./driver.ts";
import type { Buffer } from "./pool.ts";
import type { Session } from "./session.ts";

const CARD = 1;
const MAC = 1n << 5n, STATUS = 1n << 16n;
const RX = 0, TX = 1;
/** Of the header before each frame. */
const HEADER = 12;
const MAX_FRAME = 1526;
const GUEST = [10, 0, 2, 15], HOST = [10, 0, 2, 2];
const BROADCAST = [255, 255, 255, 255, 255, 255];

function checksum(bytes: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += bytes[i]! * 256 + (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

function word(value: number): number[] {
  return [value >>> 8 & 0xff, value & 0xff];
}

export class Card {
  readonly mac: number[] = [];
  readonly received: Uint8Array[] = [];
  #hostMac: number[] | undefined;
  #sequence = 0;

  private constructor(readonly driver: Driver) {}

  /** @param buffers how many receive buffers are posted; as many as fit unless said */
  static async open(
    session: Session,
    dev: number,
    plan: Partial<Plan> = {},
    buffers = Infinity,
  ): Promise<Card> {
    const features = MAC | STATUS | EVENT_IDX;
    const driver = new Driver(session, dev, {
      deviceId: CARD,
      features,
      queues: [RX, TX],
      ...plan,
    });
    await driver.bringUp();
    const card = new Card(driver);
    // As virtio-net does: byte by byte.
    card.mac.push(...await driver.readConfig(0, 6, 1));
    for (let i = 0; i < buffers && driver.queue(RX).room > 0; i++) {
      card.#post(await driver.pool.take(MAX_FRAME));
    }
    driver.kick(RX);
    return card;
  }

  #post(buffer: Buffer): void {
    const { driver } = this;
    driver.queue(RX).add({ readable: [], writable: [buffer] }).then((length) => {
      const bytes = driver.session.owner.memory.read(buffer.address, length);
      this.received.push(bytes.slice(HEADER));
      this.#post(buffer);
      driver.kick(RX);
    }).catch(() => {
      // The device is gone, and whoever waits for a frame learns of it.
    });
  }

  /** The link's state as the configuration has it. */
  async isUp(): Promise<boolean> {
    const [low] = await this.driver.readConfig(6, 2);
    return (low! & 1) !== 0;
  }

  async send(frame: readonly number[]): Promise<void> {
    const buffer = await this.driver.pool.take(HEADER + frame.length);
    const bytes = new Uint8Array(HEADER + frame.length);
    bytes.set(frame, HEADER);
    this.driver.session.owner.memory.write(buffer.address, bytes);
    await this.driver.transfer(TX, { readable: [buffer], writable: [] });
    await this.driver.pool.give(buffer);
  }

  /** The next frame of those that came for which it is so; the others are dropped. */
  async #next(wanted: (frame: Uint8Array) => boolean, what: string): Promise<Uint8Array> {
    let found: Uint8Array | undefined;
    await this.driver.session.owner.until(() => {
      while (found === undefined && this.received.length > 0) {
        const frame = this.received.shift()!;
        if (wanted(frame)) found = frame;
      }
      return found !== undefined;
    }, what);
    return found!;
  }

  async #resolveHost(): Promise<number[]> {
    const question = [0, 1, 8, 0, 6, 4, 0, 1, ...this.mac, ...GUEST, 0, 0, 0, 0, 0, 0, ...HOST];
    await this.send([...BROADCAST, ...this.mac, 8, 6, ...question]);
    const answer = await this.#next(
      (frame) => frame[12] === 8 && frame[13] === 6 && frame[21] === 2,
      "an ARP answer",
    );
    return [...answer.slice(22, 28)];
  }

  /** Pings the host; the answer has to have what was sent. */
  async ping(size = 56): Promise<void> {
    this.#hostMac ??= await this.#resolveHost();
    const sequence = this.#sequence++ & 0xffff;
    const data = Array.from({ length: size }, (_, i) => (i * 7 + sequence) & 0xff);
    const echo = (sum: number) => [8, 0, ...word(sum), 0x12, 0x34, ...word(sequence), ...data];
    const icmp = echo(checksum(echo(0)));
    const ip = (sum: number) => [
      0x45,
      0,
      ...word(20 + icmp.length),
      ...[0, 0, 0, 0, 64, 1],
      ...word(sum),
      ...GUEST,
      ...HOST,
    ];
    const packet = [...ip(checksum(ip(0))), ...icmp];
    await this.send([...this.#hostMac, ...this.mac, 8, 0, ...packet]);
    const answer = await this.#next(
      (frame) => frame[23] === 1 && frame[34] === 0 && frame[40]! * 256 + frame[41]! === sequence,
      `the answer to ping ${sequence}`,
    );
    const back = [...answer.slice(42, 42 + size)];
    if (back.join() !== data.join()) throw new Error(`ping ${sequence} came back as ${back}`);
  }
}
