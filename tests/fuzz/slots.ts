/**
 * Slots into the device side, in every dialect and in virtual time: a driver side's session, sound in parts, whose
 * messages come changed, twice, out of order, too late or as mere bytes, with any descriptors beside them. Behind the
 * device side are a network card, a device that answers late or never, and one that is left alone.
 *
 * Nothing is thrown through the reactor; every message that comes back can be read; nothing is written to memory
 * that no message granted, nor to the queues' own in front of a segment; descriptors and timers are as many afterwards
 * as before; few lines are said. In the end a sound driver side is served by the device that was left alone.
 */

import { assert, assertEquals } from "@std/assert";
import type { BusListener, SharedSegment } from "../../src/bus/bus.ts";
import type { StreamBus } from "../../src/bus/stream_bus.ts";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { rngDevice } from "../../src/devices/rng.ts";
import { createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../../src/linux/fd.ts";
import { mapAnonymous, mapShared, PAGE_SIZE } from "../../src/linux/mapping.ts";
import type { Reactor } from "../../src/linux/reactor.ts";
import type { Codec, Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import {
  type Fields,
  Kind,
  MEMORY_SEGMENT,
  MEMORY_WINDOW,
  Message,
  NOTIFIER_CALL,
  NOTIFIER_KICK,
  QUEUE_ENABLED,
} from "../../src/message/message.ts";
import { kindName } from "../../src/message/table.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { SteeredPort } from "../../src/network/steered_port.ts";
import { createLog, withoutRepeats } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import type { DeviceModel } from "../../src/virtio/device.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { LateDevice } from "../support/late_device.ts";
import { MockDriver, MockMemory, type Random } from "../support/mock_driver.ts";
import { mutate, noise, putSlot, SLOT } from "./bytes.ts";
import type { Fuzzer } from "./fuzzer.ts";
import { assertFew, Holdings, RoundReactor } from "./round_reactor.ts";

const DIALECTS: readonly Dialect[] = ["v1", "v1", "v1", "v1", "v1-2025", "rfc", "rfc-q", "proto"];
/** Device numbers: the network card, the late one, and the one that is left alone. */
const CARD = 0, LATE = 1, ALONE = 5;
const SLOTS = 64;
const AT = 0x4000_0000, SIZE = 0x8000;
/** {@link MockMemory}'s guard in front of its window, and so the window's offset in the file. */
const GUARD = PAGE_SIZE;
const FILE_SIZE = SIZE + 2 * GUARD;
const FIXED_AT = 0x9000_0000;
/** Longer than a device may take for an answer, and the longest lease. */
const CALM_MS = 5000;
/** A device that outlives the sides it is put in: what it allocated for good serves all rounds. */
function lasting<Model extends DeviceModel>(model: Model): Model {
  const dispose = () => {
    for (let index = 0; index < model.queueCount; index++) model.stopQueue(index);
  };
  return Object.defineProperty(model, Symbol.dispose, { value: dispose });
}

/** A driver side's memory in a file, with a ring that asks a device for something. */
class GuestFile implements Disposable {
  readonly file: Fd = createSealedMemory("vmsg-fuzz", FILE_SIZE);
  readonly memory = new MockMemory(
    [{ at: AT, size: SIZE }],
    0,
    (size) => mapShared(this.file.number, size),
  );
  readonly queue = new MockDriver(this.memory, { size: 16 });

  /** Offers one buffer, half to read and half to write. */
  offer(): void {
    const at = this.queue.end;
    const [read, write] = [{ address: at, length: 64 }, { address: at + 64, length: 64 }];
    this.queue.add(this.queue.free % 2 === 0 ? [read] : [], [write]);
    this.queue.publish();
  }

  get rings(): Fields {
    const { descriptorAddress, driverAddress, deviceAddress, size } = this.queue;
    return { descriptorAddress, driverAddress, deviceAddress, queueSize: size };
  }

  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
    this.file[Symbol.dispose]();
  }
}

/** The driver end of a bus, without a transport. */
class Peer implements BusListener {
  isAttached = false;
  readonly answers: Message[] = [];
  theirs = 0;
  nonce = 0;
  token = 1;
  /** Descriptors that were sent, by ordinal. */
  readonly sent: Fd[] = [];

  constructor(
    readonly reactor: Reactor,
    readonly bus: StreamBus,
    readonly codec: Codec,
    /** What else the device side may take us to speak. */
    readonly others: readonly Codec[],
    readonly epoch: number,
  ) {}

  attached(): void {
    this.isAttached = true;
  }

  detached(): void {
    this.isAttached = false;
  }

  received(slot: DataView): void {
    const message = new Message();
    const read = [this.codec, ...this.others].some((codec) =>
      codec.decode(slot, 0, message) === undefined
    );
    assert(read, "the device side sent what is no message");
    if (message.kind === Kind.HELLO) ({ epoch: this.theirs, nonce: this.nonce } = message);
    if (this.answers.push(message) > SLOTS) this.answers.shift();
  }

  /** A message as this dialect has it, in bytes. */
  bytes(kind: Kind, fields: Fields): DataView {
    const message = new Message();
    message.reset(kind, false);
    message.say({ epoch: this.epoch, ...fields });
    message.device = fields.device ?? 0;
    message.token = fields.token ?? (this.codec.answered(kind) ? this.token++ & 0xffff : 0);
    const view = new DataView(new ArrayBuffer(SLOT));
    this.codec.encode(message, view, 0);
    return view;
  }

  put(bytes: DataView): boolean {
    return putSlot(this.bus, bytes);
  }

  sendFd(fd: Fd): number {
    const ordinal = this.bus.sendFd(fd);
    if (ordinal >= 0) this.sent[ordinal] = fd;
    return Math.max(ordinal, 0);
  }

  /** Says hello, if the dialect knows it. */
  hello(): DataView {
    const { theirs: peerEpoch, nonce } = this;
    return this.bytes(Kind.HELLO, { peerEpoch, nonce, version: PRIVATE_VERSION });
  }

  /** Asks and waits for the answer; in dialects without tokens for any of that kind. */
  async ask(kind: Kind, fields: Fields = {}): Promise<Message> {
    const bytes = kind === Kind.HELLO ? this.hello() : this.bytes(kind, fields);
    this.answers.length = 0;
    const { token } = this;
    const endMs = this.reactor.now() + CALM_MS;
    while (!this.put(bytes)) {
      assert(this.reactor.now() < endMs, "the device side takes no messages");
      await this.reactor.sleep(1);
    }
    const isIt = (answer: Message) =>
      answer.kind === kind && answer.response &&
      (!this.codec.conduct.hasTokens || answer.token === ((token - 1) & 0xffff));
    for (;;) {
      const answer = this.answers.find(isIt);
      if (answer !== undefined || !this.codec.answered(kind)) return answer ?? new Message();
      assert(this.reactor.now() < endMs, `${kindName(kind)} was not answered`);
      await this.reactor.sleep(1);
    }
  }
}

/** What a sound session says, step by step, about one device. */
function script(
  peer: Peer,
  device: number,
  guest: GuestFile,
  random: Random,
  eventOf: () => Fd,
): (() => DataView)[] {
  const say = (kind: Kind, fields: Fields = {}) => () =>
    peer.codec.has(kind)
      ? peer.bytes(kind, { device, memoryDevice: device, ...fields })
      : peer.bytes(Kind.GET_DEVICE_STATUS, { device });
  const hello = () => peer.codec.has(Kind.HELLO) ? peer.hello() : say(Kind.GET_DEVICE_INFO)();
  const addMemory = (flags: number, offset: number, address = AT, length = SIZE) => () => {
    const ordinal = flags === 0 ? peer.sendFd(guest.file) : 0;
    return say(Kind.ADD_MEMORY, { flags, ordinal, address, length, offset })();
  };
  const notifier = () => {
    const flags = random.pick([0, NOTIFIER_KICK, NOTIFIER_KICK | NOTIFIER_CALL, random.below(8)]);
    const fds = peer.codec.has(Kind.SET_NOTIFIER) ? flags & 3 : 0;
    const [ordinal] = [fds & 1, fds & 2].flatMap((isSent) => isSent ? peer.sendFd(eventOf()) : []);
    return say(Kind.SET_NOTIFIER, { index, flags, ordinal: ordinal ?? 0 })();
  };
  const status = (status: number) => say(Kind.SET_DEVICE_STATUS, { status });
  const queue = (index: number) =>
    say(Kind.SET_VQUEUE, { index, flags: QUEUE_ENABLED, ...guest.rings });
  const index = random.below(2);
  const memory = random.pick([
    [addMemory(0, GUARD)],
    [addMemory(0, GUARD)],
    [addMemory(MEMORY_WINDOW, AT)],
    [addMemory(MEMORY_SEGMENT, PAGE_SIZE)],
    // The used ring would be where the bus's queues are.
    [
      addMemory(MEMORY_SEGMENT, PAGE_SIZE, AT, 2 * PAGE_SIZE),
      addMemory(MEMORY_SEGMENT, 0, AT + 2 * PAGE_SIZE, PAGE_SIZE),
    ],
  ]);
  return [
    hello,
    hello,
    say(Kind.GET_DEVICES, { count: 64 }),
    say(Kind.IOMMU_ENABLE, { state: random.below(2) }),
    say(Kind.GET_DEVICE_INFO),
    status(0),
    status(3),
    say(Kind.GET_DEVICE_FEATURES, { count: 2 }),
    say(Kind.SET_DRIVER_FEATURES, { count: 2, words: [random.pick([0, 0x3000_0000]), 1] }),
    status(0xb),
    ...memory,
    say(Kind.GET_CONFIG, { offset: random.below(8), length: 4 }),
    say(Kind.SET_CONFIG, { offset: 0, length: 4, bytes: [1, 2, 3, 4] }),
    say(Kind.SET_VQUEUE_STATE, {
      index,
      base: random.pick([0, 0, 1, 0xffff]),
      flags: random.pick([0, 1]),
    }),
    queue(index),
    queue(index ^ 1),
    say(Kind.GET_VQUEUE, { index }),
    status(0xf),
    say(Kind.EVENT_AVAIL, { index }),
    hello,
    notifier,
    say(Kind.EVENT_AVAIL, { index: index ^ 1 }),
    notifier,
    say(Kind.IOMMU_TRANSLATE, { address: AT, physicalAddress: FIXED_AT, prot: 3 }),
    say(Kind.PING, { data: 1 }),
    say(Kind.GET_SHM),
    say(Kind.STOP_VQUEUE, { index }),
    queue(index),
    say(Kind.RESET_VQUEUE, { index }),
    say(Kind.IOMMU_INVALIDATE),
    say(Kind.REMOVE_MEMORY, { address: AT, length: SIZE }),
    status(0),
  ];
}

const open: Fuzzer["open"] = async (use) => {
  using reactor = new RoundReactor();
  using port = new SteeredPort(new ResponderPort({}, reactor), 2, reactor);
  const mac = Uint8Array.of(0x52, 0x54, 0, 0x12, 0x34, 0x56);
  const card = lasting(new NetDevice(reactor, port, { mac, mtu: 1500, pairs: 2 }));
  const alone = lasting(rngDevice(reactor));
  using event = createEventFd();
  using small = createSealedMemory("vmsg-fuzz-small", PAGE_SIZE);
  const said: string[] = [];
  const log = withoutRepeats(createLog("fuzz", "info", (line) => said.push(line)), reactor);
  const holdings = new Holdings();
  let messages = 0, lines = 0, worked = 0, served = 0;

  const session = async (random: Random, peer: Peer, late: LateDevice, guest: GuestFile) => {
    const malice = random.pick([0, 0.02, 0.1, 0.5]);
    let isGranted = false;
    const eventOf = () => random.chance(malice) ? random.pick([small, guest.file]) : event;
    const scripts = [CARD, CARD, LATE].map((device) =>
      script(peer, device, guest, random, eventOf)
    );
    const main = random.pick(scripts);
    for (let steps = 10 + random.below(100), position = 0; steps > 0 && peer.isAttached; steps--) {
      const steps = random.chance(malice) ? random.pick(scripts) : main;
      if (position >= steps.length || random.chance(malice)) position = random.below(steps.length);
      const bytes = random.chance(malice / 4) ? noise(random) : steps[position++]();
      if (random.chance(malice)) mutate(bytes, random, [AT, AT + SIZE, AT + random.below(SIZE)]);
      if (random.chance(malice / 4)) peer.sendFd(random.pick([event, small, guest.file]));
      isGranted ||= peer.codec.has(Kind.ADD_MEMORY) && grants(peer, bytes, guest);
      for (let n = random.chance(malice / 4) ? 1 + random.below(40) : 1; n > 0; n--) {
        if (peer.put(bytes)) messages++;
      }
      if (random.chance(0.5)) guest.offer();
      if (random.chance(0.3)) signalEventFd(event);
      late.isLate = random.chance(0.5);
      if (late.isAsked && random.chance(0.5)) {
        if (random.chance(0.8)) late.answer();
        else late.fail("it says so");
      }
      const calm = random.chance(0.02) ? random.pick([300, CALM_MS]) : random.below(3);
      if (calm > 0) await reactor.sleep(calm);
    }
    late.isLate = false;
    if (late.isAsked) late.answer();
    await reactor.sleep(CALM_MS);
    return isGranted;
  };

  /** The device that was left alone works for a driver side that comes now. */
  const assertServes = async (peer: Peer, fixed: MockMemory) => {
    using own = new GuestFile();
    const device = ALONE;
    const isVmsg = peer.codec.has(Kind.HELLO);
    if (!isVmsg) await peer.ask(Kind.GET_DEVICE_INFO, { device });
    else {
      await peer.ask(Kind.HELLO);
      // Until its own epoch is named, the device side answers nothing else.
      await peer.ask(Kind.HELLO);
      const ordinal = peer.sendFd(own.file);
      const grant = { memoryDevice: device, ordinal, address: AT, length: SIZE, offset: GUARD };
      const { result } = await peer.ask(Kind.ADD_MEMORY, grant);
      assertEquals(result, 0, "memory was refused");
    }
    const queue = isVmsg ? own.queue : new MockDriver(fixed, { size: 16 });
    const { descriptorAddress, driverAddress, deviceAddress } = queue;
    for (const status of [0, 3]) await peer.ask(Kind.SET_DEVICE_STATUS, { device, status });
    await peer.ask(Kind.SET_DRIVER_FEATURES, { device, count: 2, words: [0, 1] });
    await peer.ask(Kind.SET_DEVICE_STATUS, { device, status: 0xb });
    const areas = { descriptorAddress, driverAddress, deviceAddress, queueSize: 16 };
    await peer.ask(Kind.SET_VQUEUE, { device, index: 0, flags: QUEUE_ENABLED, ...areas });
    await peer.ask(Kind.SET_DEVICE_STATUS, { device, status: 0xf });
    queue.add([], [{ address: queue.end, length: 16 }]);
    queue.publish();
    peer.put(peer.bytes(Kind.EVENT_AVAIL, { device, index: 0 }));
    await reactor.sleep(20);
    assertEquals(queue.takeUsed()?.length, 16, "the device that was left alone does not work");
    await peer.ask(Kind.SET_DEVICE_STATUS, { device, status: 0 });
    served++;
  };

  const round = async (random: Random) => {
    const startMs = reactor.now();
    said.length = 0;
    {
      using stack = new DisposableStack();
      const codec = codecFor(random.pick(DIALECTS));
      const guest = stack.use(new GuestFile());
      const fixed = stack.use(new MockMemory([{ at: FIXED_AT, size: SIZE }]));
      const segment = random.chance(0.3) ? stack.use(mapAnonymous(16 * PAGE_SIZE)) : undefined;
      const shared: SharedSegment | undefined = segment && { memory: segment, start: PAGE_SIZE };
      const pair = stack.use(inProcessBus(reactor, undefined, SLOTS, shared));
      const detect = random.chance(0.2) ? [...new Set(DIALECTS)].map((d) => codecFor(d)) : [];
      const late = new LateDevice(reactor);
      const side = stack.use(
        new DeviceSide({
          reactor,
          bus: pair.device,
          codec: detect.length > 0 ? codecFor("v1") : codec,
          detect,
          log,
          confined: random.chance(0.1),
        }),
      );
      const { memory, windows: [{ offset }] } = fixed;
      const regions = [{ at: FIXED_AT, size: SIZE, memory, offset }];
      const own = { at: AT, size: SIZE, memory: guest.memory.memory, offset: GUARD };
      side.add(CARD, card, [own]);
      side.add(LATE, late, [own]);
      side.add(ALONE, alone, regions);
      const peer = new Peer(reactor, pair.driver, codec, detect, 1 + random.u32());
      side.open();
      peer.bus.open(peer);
      const isConfined = side.options.confined === true;
      const isGranted = await session(random, peer, late, guest);
      const queues = new Uint8Array(segment?.buffer ?? new ArrayBuffer(PAGE_SIZE), 0, PAGE_SIZE);
      assert(queues.every((byte) => byte === 0), "the queues' own memory was written");
      if (!isGranted) guest.memory.checkGuards();
      if (guest.queue.usedIndex !== 0) worked++;
      fixed.checkGuards();
      if (!isConfined) {
        const first = detect.length > 0 ? codecFor("v1") : codec;
        const next = new Peer(reactor, pair.driver, first, [], 2 ** 33 + random.u32());
        pair.driver.open(next);
        pair.attachAgain();
        await assertServes(next, fixed);
      }
    }
    await reactor.sleep(CALM_MS);
    lines += said.length;
    assertFew(said, reactor.now() - startMs);
    holdings.check();
  };
  await use({
    round: (random) => reactor.round(() => round(random)),
    finish: () =>
      holdings.finish(
        `${messages} messages, ${lines} lines, a ring used ${worked} times, served ${served} times after it`,
      ),
  });
};

/** Does a slot grant other memory of the file than the guest's window? */
function grants(peer: Peer, bytes: DataView, guest: GuestFile): boolean {
  const message = new Message();
  if (peer.codec.decode(bytes, 0, message) !== undefined) return false;
  const { kind, response, offset, length, flags, ordinal } = message;
  if (kind !== Kind.ADD_MEMORY || response) return false;
  // Other memory than the file's.
  if (flags !== 0) return false;
  return peer.sent[ordinal] === guest.file && (offset !== GUARD || length !== SIZE);
}

/** See the head of this file. */
export const SLOT_FUZZERS: readonly Fuzzer[] = [
  { name: "slots", what: "any session into the device side, in every dialect", open },
];
