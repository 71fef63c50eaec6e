/**
 * The guest that asks all the time: a Worker of two_guests.ts, so that whatever the test does meanwhile, also if
 * it stands still, is not counted as silence of vmsg's.
 *
 * It is a front end that behaves, with a network card's two rings in memory of its own. A round is one GET_CONFIG and one
 * frame: an ARP request through ring 1, whose answer must come through ring 0. A frame may be lost where a device side
 * begins anew; it is sent again, and the round is not over before it is answered.
 */

import { signalEventFd } from "../../src/linux/eventfd.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { CONFIG_HEADER, Request } from "../../src/vhost_user/protocol.ts";
import { FEATURES, MEMORY_SIZE, RawFrontEnd, u32s } from "./front_end.ts";
import { MockDriver, MockMemory } from "./mock_driver.ts";

/** What it says after each round, or once when it has come to its end. */
export type SecondGuestWord =
  | { readonly kind: "round"; readonly ms: number }
  | { readonly kind: "ended"; readonly problem: string | undefined };

/** MockMemory keeps a page of guard bytes in front of its window and one behind. */
const GUARD_SIZE = 4096;
const RING_SIZE = 64;
/** Where {@link RawFrontEnd.startRing} looks for ring n. */
const ringAt = (index: number) => 0x4000 * index + 0x1000;
const SENT_AT = 0x8000;
const RECEIVED_AT = 0x1_0000;
const BUFFER_SIZE = 2048;
/** virtio_net_hdr, all of it with VERSION_1. */
const NET_HEADER = 12;
const AGAIN_MS = 500;
const CONFIG_SIZE = 8;

// RFC 826: who has 10.0.2.2, asked by 02:00:00:00:00:0b.
const MAC = [2, 0, 0, 0, 0, 0x0b];
const ARP = [0, 1, 8, 0, 6, 4, 0, 1, ...MAC, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2];
const FRAME = [255, 255, 255, 255, 255, 255, ...MAC, 8, 6, ...ARP];

async function ask(reactor: Reactor, socket: string, goesOn: () => boolean): Promise<void> {
  using file = createSealedMemory("second-guest", MEMORY_SIZE + 2 * GUARD_SIZE);
  using memory = new MockMemory(
    [{ at: 0, size: MEMORY_SIZE }],
    0,
    (size) => mapShared(file.number, size),
  );
  using kick = createEventFd();
  using frontEnd = new RawFrontEnd(reactor, socket);
  const [received, sent] = [0, 1].map((n) =>
    new MockDriver(memory, { size: RING_SIZE, at: ringAt(n) })
  );
  memory.bytes(SENT_AT, NET_HEADER + FRAME.length).set(FRAME, NET_HEADER);

  const offerBuffer = (n: number) =>
    received!.add([], [{ address: RECEIVED_AT + n * BUFFER_SIZE, length: BUFFER_SIZE }]);
  /** Takes what came; true if something did. */
  const take = () => {
    for (let n = 0;; n++) {
      if (received!.takeUsed() === undefined) return n > 0;
      offerBuffer(0);
      received!.publish();
    }
  };
  const frame = async () => {
    take();
    for (let sentMs = -Infinity; goesOn();) {
      while (sent!.takeUsed() !== undefined);
      if (reactor.now() - sentMs > AGAIN_MS && sent!.free > 0) {
        sent!.add([{ address: SENT_AT, length: NET_HEADER + FRAME.length }], []);
        sent!.publish();
        signalEventFd(kick);
        sentMs = reactor.now();
      }
      if (take()) return;
      await reactor.sleep(1);
    }
  };

  await frontEnd.setUp(file, FEATURES, GUARD_SIZE);
  for (let n = 0; n < 4; n++) offerBuffer(n);
  received!.publish();
  for (const index of [0, 1]) frontEnd.startRing(index, kick);
  while (goesOn()) {
    const startMs = reactor.now();
    const question = new Uint8Array([...u32s(0, CONFIG_SIZE, 0), ...new Uint8Array(CONFIG_SIZE)]);
    const answer = await frontEnd.ask(Request.GET_CONFIG, question);
    if (answer.getUint32(CONFIG_HEADER, true) === 0) throw new Error("the configuration is empty");
    await frame();
    say({ kind: "round", ms: reactor.now() - startMs });
  }
}

interface WorkerScope {
  onmessage: (event: MessageEvent<string | undefined>) => void;
  postMessage(word: SecondGuestWord): void;
}

const scope = globalThis as unknown as WorkerScope;
const say = (word: SecondGuestWord) => scope.postMessage(word);

let isWanted = true;
scope.onmessage = async ({ data: socket }) => {
  if (socket === undefined) return void (isWanted = false);
  let problem: string | undefined;
  try {
    using reactor = new Reactor();
    await reactor.until(ask(reactor, socket, () => isWanted));
  } catch (error) {
    problem = String(error);
  }
  say({ kind: "ended", problem });
};
