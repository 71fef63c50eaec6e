/** The prototype as a device, played from its recorded session: bytes in, bytes out. */

import { assert } from "@std/assert";
import type { Bus, BusListener } from "../../src/bus/bus.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import { Status } from "../../src/virtio/features.ts";
import {
  ANSWERED,
  exchanges,
  hex,
  idOf,
  MESSAGE_SIZE,
  payload,
  readRecording,
} from "./recording.ts";

const TIMEOUT_MS = 30_000;
const exchanged = exchanges(readRecording());

/** The other end of the bus: bytes in, bytes out. */
export class BytePeer implements BusListener {
  /** What came and was not taken. */
  readonly messages: Uint8Array[] = [];
  /** Takes what comes, instead of {@link messages}. */
  onMessage: ((bytes: Uint8Array) => void) | undefined;

  constructor(readonly reactor: Reactor, readonly bus: Bus) {}

  open(): void {
    this.bus.open(this);
  }

  attached(): void {}

  detached(): void {}

  discarded(): void {
    throw new Error("in dialect proto the queues are used as found");
  }

  received(slot: DataView): void {
    const bytes = Uint8Array.from({ length: MESSAGE_SIZE }, (_, i) => slot.getUint8(i));
    if (this.onMessage !== undefined) this.onMessage(bytes);
    else this.messages.push(bytes);
  }

  put(bytes: Uint8Array): void {
    const offset = this.bus.claim();
    assert(offset >= 0, "the queue is full");
    for (let i = 0; i < MESSAGE_SIZE; i++) this.bus.view.setUint8(offset + i, bytes[i] ?? 0);
    // QEMU leaves there what was there.
    for (let i = MESSAGE_SIZE; i < 64; i++) this.bus.view.setUint8(offset + i, 0xaa);
    this.bus.send();
  }

  async next(): Promise<Uint8Array> {
    await wait(this.reactor, () => this.messages.length > 0);
    return this.messages.shift()!;
  }
}

/** Waits until something is so. */
export async function wait(reactor: Reactor, condition: () => boolean): Promise<void> {
  const endMs = reactor.now() + TIMEOUT_MS;
  while (!condition()) {
    if (reactor.now() > endMs) throw new Error(`never so: ${condition}`);
    await reactor.sleep(0);
  }
}

/** The prototype as a device: it answers with what the recording has for a request of this kind. */
export class RecordedAnswers {
  readonly requests: Uint8Array[] = [];
  #status = 0;
  /** What would have made QEMU abort. */
  readonly aborts: string[] = [];

  constructor(readonly peer: BytePeer) {
    peer.onMessage = (bytes) => this.#take(bytes);
  }

  #take(bytes: Uint8Array): void {
    this.requests.push(bytes);
    const id = idOf(bytes);
    const fields = payload(bytes);
    if (bytes[0] !== 0) this.aborts.push(`type ${bytes[0]}`);
    if (id === 0x0a) this.#status = fields.getUint32(0, true);
    if (id === 0x11 && (this.#status & Status.DRIVER_OK) === 0) this.aborts.push("early kick (P8)");
    if (!ANSWERED.includes(id)) return;
    if (id === 0x05) return this.peer.put(answerTo(bytes));
    if (id === 0x06) return this.#config(bytes);
    const same = exchanged.find(({ request, answer }) =>
      hex(request) === hex(bytes) &&
      (id !== 0x09 || payload(answer!).getUint32(0, true) === this.#status)
    );
    if (same === undefined) {
      this.aborts.push(`QEMU never got ${hex(bytes)}`);
      return;
    }
    this.peer.put(same.answer!);
  }

  /** The recorded guest read single bytes; what they were is what more of them are. */
  #config(bytes: Uint8Array): void {
    const [offset, size] = [payload(bytes).getUint16(0, true), payload(bytes).getUint8(3)];
    if (![1, 2, 4].includes(size)) this.aborts.push(`GET_CONFIG of ${size} bytes (P4)`);
    const answer = answerTo(bytes);
    for (let i = 0; i < size; i++) {
      const read = exchanged.find(({ request }) => {
        const fields = payload(request);
        return idOf(request) === 0x06 && fields.getUint16(0, true) === offset + i;
      });
      answer[8 + i] = read?.answer?.[8] ?? 0;
    }
    this.peer.put(answer);
  }
}

/** A request as its own answer. */
export function answerTo(request: Uint8Array): Uint8Array {
  const answer = request.slice();
  answer[0] = 1;
  return answer;
}
