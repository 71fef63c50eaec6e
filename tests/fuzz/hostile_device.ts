/**
 * A device side that does what it likes, into a proxy in this process and in virtual time, in each of the modes:
 * it answers soundly, or changed, late, twice, in another order, as another epoch, or not at all; it says things that
 * nobody asked for; it writes any used elements and any words into the rings that it is given. A sound front end talks
 * to the proxy meanwhile.
 *
 * Nothing is thrown through the reactor; in confined mode nothing of the guest's memory changes but what it lent for
 * writing; nothing is left behind. When a sound device side comes, the front end is answered or sent away, and
 * the next one is served.
 */

import { assert, assertEquals } from "@std/assert";
import type { BusListener, SharedSegment } from "../../src/bus/bus.ts";
import { rngDevice } from "../../src/devices/rng.ts";
import { Request } from "../../src/drivers/vhost_user/protocol.ts";
import { VhostUserServer } from "../../src/drivers/vhost_user/server.ts";
import { createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../../src/linux/fd.ts";
import { mapAnonymous, mapShared, PAGE_SIZE } from "../../src/linux/mapping.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import type { Codec } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, KIND_COUNT, Message } from "../../src/message/message.ts";
import { createLog, withoutRepeats } from "../../src/observe/log.ts";
import { openSharing } from "../../src/sharing/mode.ts";
import { Pages } from "../../src/sharing/pages.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import { FEATURES, MADE_UP, MEMORY_SIZE, RawFrontEnd, u32s } from "../support/front_end.ts";
import { inProcessBus, type InProcessPair } from "../support/in_process_bus.ts";
import { withDirectory } from "../support/leaks.ts";
import { MockDriver, MockMemory, type Random } from "../support/mock_driver.ts";
import { SetQueues } from "../support/raw_peer.ts";
import { FakePins } from "../support/translated_rig.ts";
import { mutate, noise, putSlot, SLOT } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { assertFew, Holdings, RoundReactor } from "./round_reactor.ts";

/** How the device side gets to see the guest's memory. */
export type Mode = "descriptors" | "confined" | "direct";

/** MockMemory's guard, and so where its window begins in the file. */
const GUARD = PAGE_SIZE;
const RINGS = [0, 1];
/** As RawFrontEnd.startRing has it. */
const ringAt = (index: number) => 0x4000 * index + 0x1000;
/** The guest's buffers, a page each: what is read, and what may be written. */
const BUFFERS = 0x1_0000, COUNT = 64, LENT_AT = 2048, LENT = 1000;
const SHOWN = 0x11, WRITTEN = 0x22, SECRET = 0x5e;
/** How long the device side is hostile; what the front end has asked may wait for the next one. */
const HOSTILE_MS = 30_000;
/** Then all is done in the time of a few requests that are not answered. */
const PATIENCE_MS = HOSTILE_MS + 30_000;
/** What the front end asks at most. */
const MAX_STEPS = 12;
const RNG = 4;

/** The guest of a front end: memory in a file, two rings, buffers in them. */
export class Guest implements Disposable {
  readonly file: Fd = createSealedMemory("vmsg-fuzz-guest", MEMORY_SIZE + 2 * GUARD);
  readonly memory = new MockMemory(
    [{ at: 0, size: MEMORY_SIZE }],
    0,
    (size) => mapShared(this.file.number, size),
  );
  readonly rings: readonly MockDriver[] = RINGS.map((index) =>
    new MockDriver(this.memory, { size: 64, at: ringAt(index) })
  );
  readonly kick: Fd = createEventFd();
  #offered = 0;

  constructor() {
    this.memory.bytes(BUFFERS, COUNT * PAGE_SIZE).fill(SECRET);
  }

  /** Offers a buffer on one of the rings, if there is one left, and kicks. */
  offer(index: number): void {
    const ring = this.rings[index]!;
    if (this.#offered < COUNT && ring.free >= 2) {
      const at = BUFFERS + PAGE_SIZE * this.#offered++;
      this.memory.bytes(at, LENT).fill(SHOWN);
      this.memory.bytes(at + LENT_AT, LENT).fill(WRITTEN);
      ring.add([{ address: at, length: LENT }], [{ address: at + LENT_AT, length: LENT }]);
      ring.publish();
    }
    signalEventFd(this.kick);
  }

  /** Of the buffers' memory only what was lent has changed, and nothing around all of it. */
  check(): void {
    this.memory.checkGuards();
    for (let n = 0; n < this.#offered; n++) {
      this.memory.bytes(BUFFERS + PAGE_SIZE * n + LENT_AT, LENT).fill(WRITTEN);
    }
    const bytes = this.memory.bytes(BUFFERS, COUNT * PAGE_SIZE);
    const odd = bytes.findIndex((byte) => byte !== SECRET && byte !== SHOWN && byte !== WRITTEN);
    assert(odd < 0, `byte ${odd} of the guest's was not lent`);
  }

  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
    this.file[Symbol.dispose]();
    this.kick[Symbol.dispose]();
  }
}

/** See the head of this file. */
export class HostileDevice implements BusListener {
  /** Answers that were sent. */
  answers = 0;
  readonly #queues = new SetQueues();
  readonly #rings = new Map<number, Message>();
  readonly #used: number[] = [];
  #epoch: number;
  #nonce = 0;
  #isOver = false;

  /**
   * @param malice of each message and ring
   * @param rings finds the memory of a ring by the bus address that the device was told
   */
  constructor(
    readonly reactor: Reactor,
    readonly pair: Pick<InProcessPair, "device">,
    readonly codec: Codec,
    readonly random: Random,
    readonly malice: number,
    readonly rings: (address: number, length: number) => DataView | undefined,
  ) {
    this.#epoch = 1 + random.u32();
  }

  attached(): void {}
  detached(): void {}

  /** From here on it says and does nothing. */
  end(): void {
    this.#isOver = true;
  }

  received(slot: DataView): void {
    if (this.#isOver) return;
    const request = new Message();
    const malformed = this.codec.decode(slot, 0, request);
    assertEquals(malformed, undefined, "the driver side sent what is no message");
    const { random, malice } = this;
    if (request.kind === Kind.EVENT_AVAIL) {
      if (random.chance(0.8)) this.touch();
      return;
    }
    if (request.kind === Kind.SET_VQUEUE) {
      this.#rings.set(request.index, request);
      this.#used[request.index] = 0;
    }
    if (!this.codec.answered(request.kind) || random.chance(malice / 2)) return;
    const bytes = this.#answer(request);
    if (random.chance(malice)) mutate(bytes, random);
    const times = random.chance(malice / 2) ? 2 : 1;
    const delayMs = random.chance(malice / 2) ? random.pick([1, 10, 200, 4990, 5010]) : 0;
    if (delayMs === 0) return this.#put(bytes, times);
    this.reactor.spawn(async () => {
      await this.reactor.sleep(delayMs);
      this.#put(bytes, times);
    });
  }

  #put(bytes: DataView, times = 1): void {
    for (; times > 0 && !this.#isOver; times--) putSlot(this.pair.device, bytes);
    this.answers++;
  }

  #encode(message: Message): DataView {
    const view = new DataView(new ArrayBuffer(SLOT));
    this.codec.encode(message, view, 0);
    return view;
  }

  #answer(request: Message): DataView {
    const { random, malice } = this;
    const answer = new Message();
    answer.reset(request.kind, true);
    answer.device = request.device;
    answer.token = request.token;
    const { index, count, offset, length, status, generation } = request;
    answer.say({ index, count, offset, length, generation, bytes: request.bytes });
    answer.say({ deviceId: RNG, featureBlocks: 2, configSize: 24, maxQueues: 2, status });
    if (request.kind === Kind.GET_DEVICE_FEATURES) answer.words[1] = 1;
    if (random.chance(malice)) this.#epoch = 1 + random.u32();
    answer.say({ epoch: this.#epoch, peerEpoch: request.epoch, nonce: ++this.#nonce });
    answer.version = PRIVATE_VERSION;
    this.#queues.answer(request, answer);
    return this.#encode(answer);
  }

  /** Says something by itself, or touches the rings. */
  act(): void {
    const { random, codec } = this;
    if (this.#isOver) return;
    if (random.chance(0.5)) return this.touch();
    const message = new Message();
    message.reset(random.pick([Kind.EVENT_USED, Kind.EVENT_USED, Kind.EVENT_CONFIG]), false);
    message.index = random.below(3);
    message.generation = random.below(10);
    message.status = 0xf | (random.chance(this.malice) ? 0x40 : 0);
    const bytes = random.chance(this.malice / 2) ? noise(random) : this.#encode(message);
    if (random.chance(this.malice / 2)) mutate(bytes, random);
    if (random.chance(this.malice / 8)) {
      // An answer to nothing.
      const answer = new Message();
      answer.reset(random.below(KIND_COUNT) as Kind, true);
      answer.token = random.below(0x1_0000);
      if (codec.answered(answer.kind)) return this.#put(this.#encode(answer));
    }
    this.#put(bytes);
  }

  /** Uses what was offered, or what was not, and writes any word of the rings. */
  touch(): void {
    const { random, malice } = this;
    for (const [index, told] of this.#rings) {
      const { queueSize: size } = told;
      const available = this.rings(told.driverAddress, 6 + 2 * size);
      const used = this.rings(told.deviceAddress, 6 + 8 * size);
      if (available === undefined || used === undefined) continue;
      let next = this.#used[index] ?? 0;
      for (let n = 0; n < 8 && next !== available.getUint16(2, true); n++) {
        const at = 4 + 8 * (next % size);
        const head = available.getUint16(4 + 2 * (next % size), true);
        used.setUint32(at, random.chance(malice / 4) ? random.below(size + 1) : head, true);
        used.setUint32(at + 4, random.chance(malice / 4) ? random.u32() : random.below(2), true);
        next = (next + 1) & 0xffff;
      }
      if (random.chance(malice / 8)) next = random.u32() & 0xffff;
      this.#used[index] = next;
      used.setUint16(2, next, true);
      if (random.chance(malice / 4)) {
        used.setUint16(2 * random.below(used.byteLength / 2), random.u32() & 0xffff, true);
      }
      const event = new Message();
      event.reset(Kind.EVENT_USED, false);
      event.index = index;
      this.#put(this.#encode(event));
    }
  }
}

/** A proxy for a device number of an in-process bus. */
interface Proxy {
  readonly pair: InProcessPair;
  readonly side: DriverSide;
  readonly sound: DeviceSide;
  readonly socket: string;
  readonly said: string[];
  readonly codec: Codec;
  readonly rings: (guest: Guest) => (address: number, length: number) => DataView | undefined;
}

function viewIn(buffer: ArrayBuffer, base: number) {
  return (address: number, length: number): DataView | undefined => {
    const at = address - base;
    return at >= 0 && at + length <= buffer.byteLength
      ? new DataView(buffer, at, length)
      : undefined;
  };
}

function openProxy(
  reactor: Reactor,
  stack: DisposableStack,
  mode: Mode,
  socket: string,
): Proxy {
  const isConfined = mode === "confined";
  const memory = isConfined ? stack.use(mapAnonymous(1 << 20)) : undefined;
  const segment: SharedSegment | undefined = memory && { memory, start: PAGE_SIZE };
  const pair = stack.use(inProcessBus(reactor, undefined, 64, segment));
  const codec = codecFor("v1");
  const said: string[] = [];
  const log = withoutRepeats(createLog("fuzz", "info", (line) => said.push(line)), reactor);
  const side = stack.use(new DriverSide({ reactor, bus: pair.driver, codec, log }));
  let page: ArrayBuffer | undefined;
  const allocate: typeof MADE_UP.allocate = (size) => {
    const made = MADE_UP.allocate(size);
    page = made.mapping.buffer;
    return made;
  };
  const pages = mode === "direct"
    ? new Pages(new FakePins(), 1, log, { ...MADE_UP, allocate, waitForSilence: () => {} })
    : undefined;
  const confined = isConfined ? { size: undefined } : undefined;
  const sharing = stack.use(
    openSharing({ reactor, bus: pair.driver, side, confined, deviceCount: 1, log, pages }),
  );
  const device = sharing.forDevice(side.device(0), 0);
  const source = { kind: "listen", socket } as const;
  stack.use(new VhostUserServer(reactor, side, { source, device: 0 }, log, device));
  const sound = stack.use(
    new DeviceSide({ reactor, bus: pair.device, codec, log, confined: isConfined }),
  );
  // In direct mode the sound device side sees this process's memory at its own addresses.
  const ram = mode === "direct" ? stack.use(mapAnonymous(PAGE_SIZE)) : undefined;
  sound.add(
    0,
    rngDevice(reactor),
    ram && [{ at: 0, size: PAGE_SIZE, memory: ram, offset: 0 }],
  );
  side.open();
  pair.device.open({ attached() {}, detached() {}, received() {} });
  return {
    pair,
    side,
    sound,
    socket,
    said,
    codec,
    rings: ({ memory: guest }) => {
      if (memory !== undefined) return viewIn(memory.buffer, 0);
      if (page !== undefined) return viewIn(page, MADE_UP_PHYSICAL);
      return viewIn(guest.memory.buffer, -GUARD);
    },
  };
}

/** Where {@link MADE_UP} has the huge page. */
const MADE_UP_PHYSICAL = 0x4000_0000;

function opener(mode: Mode): Fuzzer["open"] {
  return (use) =>
    withDirectory(async (directory) => {
      using reactor = new RoundReactor();
      using stack = new DisposableStack();
      const proxy = openProxy(reactor, stack, mode, `${directory}/a.sock`);
      await reactor.until(reactor.sleep(100));
      const holdings = new Holdings();
      let answers = 0, asked = 0, served = 0, sentAway = 0;

      /** What the front end asks is answered in time, or it is sent away; true if it was answered. */
      const ask = async (front: RawFrontEnd, what: string, request: () => Promise<unknown>) => {
        asked++;
        try {
          await request();
        } catch (error) {
          const state = `${what}: ${error}\n${proxy.said.slice(-5).join("\n")}`;
          assert(front.hungUp, `neither answered nor sent away: ${state}`);
          return false;
        }
        return true;
      };

      /** One session of the front end, as long as it is served. */
      const talk = async (front: RawFrontEnd, guest: Guest, device: HostileDevice) => {
        const { random } = device;
        if (!await ask(front, "the set-up", () => front.setUp(guest.file, FEATURES, GUARD))) return;
        const steps = 1 + random.below(MAX_STEPS);
        for (let step = 0; step < steps && !front.hungUp; step++) {
          const index = random.below(2);
          switch (random.below(8)) {
            case 0:
            case 1:
              front.startRing(index, guest.kick, guest.rings[index]!.seen);
              break;
            case 2:
              if (
                !await ask(
                  front,
                  "GET_VRING_BASE",
                  () => front.ask(Request.GET_VRING_BASE, u32s(index, 0)),
                )
              ) return;
              break;
            case 3:
              front.send(Request.SET_VRING_ENABLE, u32s(index, random.below(2)));
              break;
            case 4: {
              const question = new Uint8Array([...u32s(0, 8, 0), ...new Uint8Array(8)]);
              if (
                !await ask(front, "GET_CONFIG", () => front.ask(Request.GET_CONFIG, question))
              ) return;
              break;
            }
            case 5:
              front.send(Request.SET_FEATURES, u32s(...FEATURES));
              break;
            default:
              guest.offer(index);
          }
          device.act();
          await reactor.sleep(random.below(20));
        }
        await ask(front, "a barrier", () => front.barrier());
      };

      /** A new front end is served by the sound device side that has come. */
      const assertServes = async () => {
        using guest = new Guest();
        using front = new RawFrontEnd(reactor, proxy.socket, PATIENCE_MS);
        const wait = async (what: string, isSo: () => boolean) => {
          const endMs = reactor.now() + PATIENCE_MS;
          while (!isSo()) {
            assert(!front.hungUp && reactor.now() < endMs, `not so in the end: ${what}`);
            await reactor.sleep(1);
          }
        };
        const isUp = await ask(front, "the set-up", () => front.setUp(guest.file, FEATURES, GUARD));
        assert(isUp, `the next front end is sent away:\n${proxy.said.slice(-5).join("\n")}`);
        const [ring] = guest.rings;
        if (mode === "direct") {
          // The sound device side sees none of this memory: the proxy is answered, no ring runs.
          await ask(front, "a barrier", () => front.barrier());
          return void served++;
        }
        front.startRing(0, guest.kick);
        guest.offer(0);
        await wait("the ring works", () => ring!.takeUsed() !== undefined);
        served++;
      };

      const round = async (random: Random) => {
        const startMs = reactor.now();
        proxy.said.length = 0;
        {
          using guest = new Guest();
          const malice = random.pick([0, 0.02, 0.1, 0.4]);
          const rings = proxy.rings(guest);
          const { pair, codec } = proxy;
          const device = new HostileDevice(reactor, pair, codec, random, malice, rings);
          pair.device.open(device);
          pair.attachAgain();
          using front = new RawFrontEnd(reactor, proxy.socket, PATIENCE_MS);
          const talked = talk(front, guest, device);
          await Promise.race([talked, reactor.sleep(HOSTILE_MS)]);
          device.end();
          proxy.sound.open();
          pair.attachAgain();
          await talked;
          answers += device.answers;
          if (front.hungUp) sentAway++;
          front[Symbol.dispose]();
          await reactor.sleep(20);
          if (mode === "confined") guest.check();
          else guest.memory.checkGuards();
        }
        await assertServes();
        await reactor.sleep(PATIENCE_MS);
        assertFew(proxy.said, reactor.now() - startMs);
        holdings.check();
      };
      const reached = () =>
        `${asked} questions, ${answers} answers, ${sentAway} front ends sent away, ${served} served`;
      await use({
        round: (random) => reactor.round(() => round(random)),
        finish: () => holdings.finish(reached()),
      });
    });
}

const MODES: readonly Mode[] = ["descriptors", "confined", "direct"];

/** See the head of this file. */
export const HOSTILE_DEVICE_FUZZERS: readonly Fuzzer[] = MODES.map((mode) => ({
  name: `device-${mode}`,
  what: `a hostile device side into a proxy (${mode})`,
  open: opener(mode),
}));
