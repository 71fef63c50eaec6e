/**
 * A device side whose devices come and go, answer late or never, while a driver side asks them anything and is now and then
 * replaced. Each request has one answer at most, EVENT_DEVICE tells of comings and goings in their order, a device is
 * disposed of once, and nothing of a driver side's memory stays mapped behind it.
 */

import { assert, assertEquals } from "@std/assert";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { DEVICE_ADDED, Kind, type Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { ANSWER_LIMIT_MS } from "../../src/transport/conversation.ts";
import { EPOCH, type Rig, RINGS, withForeign, withVmsg } from "../support/device_rig.ts";
import { LateDevice } from "../support/late_device.ts";
import { held, leftBehind } from "../support/leaks.ts";
import type { Random } from "../support/mock_driver.ts";
import type { Fuzzer } from "./fuzzer.ts";

const STEPS = 60;
/** Few, so that one is often the same again; 0 and 5 are the rig's. */
const NUMBERS = [1, 2, 3];
const KINDS = [
  ...[Kind.GET_DEVICE_INFO, Kind.GET_CONFIG, Kind.SET_CONFIG, Kind.SET_DEVICE_STATUS],
  ...[
    Kind.GET_VQUEUE,
    Kind.SET_VQUEUE,
    Kind.SET_VQUEUE,
    Kind.RESET_VQUEUE,
    Kind.SET_DRIVER_FEATURES,
  ],
];
const STATUSES = [0, 3, 0xb, 0xf];

class Round {
  readonly #present = new Map<number, LateDevice>();
  readonly #all: LateDevice[] = [];
  readonly #leaving = new Set<number>();
  /** Tokens that may be answered. */
  readonly #open = new Set<number>();
  /** What EVENT_DEVICE has said last. */
  readonly #said = new Map<number, number>();
  #ordinal = 0;
  #epoch = EPOCH;
  answers = 0;
  events = 0;

  constructor(readonly rig: Rig, readonly random: Random, readonly isVmsg: boolean) {
    rig.peer.onMessage = (message) => this.#came(message);
  }

  #came(message: Message): boolean {
    const { kind, response, token, number, state } = message;
    if (kind === Kind.EVENT_DEVICE) {
      this.events++;
      assertEquals([message.device, token], [0, 0]);
      if (state === DEVICE_ADDED) {
        assert(this.#said.get(number) !== DEVICE_ADDED, `${number} twice`);
      }
      this.#said.set(number, state);
    } else if (response && kind !== Kind.HELLO) {
      this.answers++;
      assert(this.#open.delete(token), `an answer that nobody waits for: ${kind}`);
    }
    return kind === Kind.HELLO;
  }

  async run(): Promise<void> {
    const { rig, random } = this;
    const steps = [
      this.#add,
      this.#add,
      this.#remove,
      this.#ask,
      this.#ask,
      this.#ask,
      this.#answer,
    ];
    steps.push(this.#answer, this.#late, this.#pass, this.#memory);
    for (let step = 0; step < STEPS; step++) {
      if (random.chance(0.02) && this.isVmsg) await this.#replace();
      else random.pick(steps).call(this);
      if (random.chance(0.5)) await rig.reactor.sleep(random.below(3));
    }
    for (const number of this.#present.keys()) this.#leave(number);
    while (this.#leaving.size > 0) await rig.reactor.sleep(ANSWER_LIMIT_MS / 4);
    await rig.reactor.sleep(2 * ANSWER_LIMIT_MS);
    for (const { fake, host } of this.#all) {
      assertEquals(fake.calls.filter((call) => call === "dispose").length, 1);
      assertEquals(host.memory.windows.length, 0);
    }
  }

  #add(): void {
    const number = this.random.pick(NUMBERS);
    const { side, reactor } = this.rig;
    if (this.#present.has(number) || this.#leaving.has(number) || side.restMs(number) > 0) return;
    const device = new LateDevice(reactor);
    this.#all.push(device);
    this.#present.set(number, device);
    side.add(number, device);
  }

  #remove(): void {
    const number = this.random.pick(NUMBERS);
    if (this.#present.has(number)) this.#leave(number);
  }

  #leave(number: number): void {
    this.#present.delete(number);
    this.#leaving.add(number);
    this.rig.side.remove(number).then(() => this.#leaving.delete(number));
  }

  #ask(): void {
    const { random, rig: { peer } } = this;
    const kind = random.pick(KINDS);
    const token = peer.send(kind, (m) => {
      m.device = random.pick(NUMBERS);
      m.index = random.below(4);
      m.status = random.pick(STATUSES);
      m.length = random.below(8);
      m.count = kind === Kind.SET_DRIVER_FEATURES ? 2 : 0;
      m.words[1] = 1;
      Object.assign(m, { flags: QUEUE_ENABLED, queueSize: 64, ...RINGS });
    });
    this.#open.add(token);
  }

  #memory(): void {
    const { random, rig: { peer } } = this;
    if (!this.isVmsg) return;
    using fd = createSealedMemory("vmsg-test", 0x4000);
    peer.bus.sendFd(fd);
    const token = peer.send(Kind.ADD_MEMORY, (m) => {
      const ordinal = this.#ordinal++;
      const memoryDevice = random.pick(NUMBERS);
      const address = 0x1000 + 0x4000 * random.below(2);
      Object.assign(m, { epoch: this.#epoch, memoryDevice, ordinal, address, length: 0x4000 });
    });
    this.#open.add(token);
  }

  #answer(): void {
    for (const device of this.#all) if (device.isAsked && this.random.chance(0.7)) device.answer();
  }

  #late(): void {
    for (const device of this.#all) device.isLate = this.random.chance(0.5);
  }

  /** Time enough for devices to hang. */
  #pass(): void {
    if (this.random.chance(0.2)) this.rig.clock.nowMs += ANSWER_LIMIT_MS / 2;
  }

  /** Another driver side: what the last one asked is forgotten. */
  async #replace(): Promise<void> {
    this.#epoch++;
    // A device that is busy holds up the answer, and is let answer.
    for (const device of this.#all) {
      device.isLate = false;
      if (device.isAsked) device.answer();
    }
    await this.rig.reactor.sleep(1);
    await this.rig.greet(this.#epoch);
    this.#said.clear();
    this.#open.clear();
  }
}

export const ARRIVAL_FUZZERS: readonly Fuzzer[] = [{
  name: "arrivals",
  what: "devices that come and go under requests, and answer late",
  open: async (use) => {
    const before = held();
    const reached = { answers: 0, events: 0 };
    await use({
      round: async (random) => {
        const isVmsg = random.chance(0.5);
        await (isVmsg ? withVmsg : withForeign)(async (rig) => {
          const round = new Round(rig, random, isVmsg);
          await round.run();
          reached.answers += round.answers;
          reached.events += round.events;
        });
        assertEquals(leftBehind(before), []);
      },
      finish: () => `${reached.answers} answers, ${reached.events} arrivals`,
    });
  },
}];
