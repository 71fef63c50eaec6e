/**
 * The proxy hands a ring's kick and call over, and takes them back: whatever a front end and a device side do between
 * two steps, no buffer stays lying and no call is lost.
 *
 * The device is a model of one: it looks at the ring when it is told to, in a turn of its own, and finds all that was put
 * there until then. So is the guest: it looks when it is called, and never otherwise. Each round is a row of random steps from a
 * seed, with random pauses between them; then everybody comes to rest, without another kick.
 */

import { assert, assertEquals } from "@std/assert";
import { clearEventFd, createEventFd, signalEventFd } from "../../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../../../src/linux/fd.ts";
import { allocate } from "../../../src/linux/arena.ts";
import { libc } from "../../../src/linux/libc.ts";
import type { Reactor } from "../../../src/linux/reactor.ts";
import { unixStreamPair } from "../../../src/linux/unix_socket.ts";
import { Request, VRING_NO_FD } from "../../../src/vhost_user/protocol.ts";
import { LEASE_MS } from "../../../src/transport/peer.ts";
import type { QueueSetup } from "../../../src/virtio/device.ts";
import { FakeDevice } from "../../support/fake_device.ts";
import {
  FakeVectors,
  MEMORY_SIZE,
  type ProxyRig,
  type ProxyRigOptions,
  type RawFrontEnd,
  regionBytes,
  u32s,
  USER_ADDRESS,
  withProxy,
} from "../../support/front_end.ts";
import { cleanTest } from "../../support/leaks.ts";
import { Random } from "../../support/mock_driver.ts";
import { FakePins } from "../../support/translated_rig.ts";

const RING = 1;
const STEPS = 60;
/** Long enough for whatever is under way; time is virtual. */
const REST_MS = 40;
const word = allocate(8);

function wasSignalled(fd: Fd): boolean {
  return libc.read(fd.number, word.address, 8) > 0;
}

/** Buffers are numbers that grow: put by the guest, used by the device. */
class RingDevice extends FakeDevice {
  put = 0;
  used = 0;
  runs = false;
  /** Whoever knows how to come back. */
  reactor: Reactor | undefined;
  readonly #task = { run: () => this.#look() };

  override startQueue(index: number, setup: QueueSetup): string | undefined {
    if (index === RING) this.runs = true;
    return super.startQueue(index, setup);
  }

  override stopQueue(index: number): number {
    if (index === RING) this.runs = false;
    return super.stopQueue(index);
  }

  override available(index: number): void {
    super.available(index);
    if (index === RING) this.reactor?.schedule(this.#task);
  }

  override resume(): void {
    super.resume();
    this.reactor?.schedule(this.#task);
  }

  #look(): boolean {
    if (!this.runs || !this.host.mayTouchMemory() || this.used === this.put) return false;
    this.used = this.put;
    this.host.used(RING);
    return false;
  }
}

/** One guest behind a front end. */
class Guest implements Disposable {
  kick = createEventFd();
  /** Undefined: it looks by itself. */
  call: Fd | undefined = createEventFd();
  /** What it has seen come back. */
  seen = 0;
  isEnabled = true;
  #memory = 0;
  readonly #files = [0, 1].map(() => createSealedMemory("vmsg-test", MEMORY_SIZE));

  constructor(readonly front: RawFrontEnd, readonly device: RingDevice) {}

  async start(): Promise<void> {
    await this.front.setUp(this.#files[0]!);
    this.#sendCall();
    this.front.startRing(RING, this.kick);
    await this.front.barrier();
  }

  put(): void {
    this.device.put++;
    signalEventFd(this.kick);
  }

  /** Looks if it is called, or need not be. */
  look(): void {
    if (this.call === undefined || wasSignalled(this.call)) this.seen = this.device.used;
  }

  setCall(call: Fd | undefined): void {
    const old = this.call;
    this.call = call;
    this.#sendCall();
    // As QEMU does behind a mask: once, and never again.
    if (old !== undefined && wasSignalled(old)) this.seen = this.device.used;
    old?.[Symbol.dispose]();
  }

  #sendCall(): void {
    const { call, front } = this;
    const value = RING | (call === undefined ? VRING_NO_FD : 0);
    front.send(Request.SET_VRING_CALL, u32s(value, 0), call === undefined ? [] : [call]);
  }

  setKick(): void {
    this.kick[Symbol.dispose]();
    this.kick = createEventFd();
    this.front.send(Request.SET_VRING_KICK, u32s(RING, 0), [this.kick]);
  }

  enable(): void {
    this.isEnabled = !this.isEnabled;
    this.front.send(Request.SET_VRING_ENABLE, u32s(RING, this.isEnabled ? 1 : 0));
  }

  setMemory(): void {
    this.#memory ^= 1;
    const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 0);
    const table = new Uint8Array([...u32s(1, 0), ...region]);
    this.front.send(Request.SET_MEM_TABLE, table, [this.#files[this.#memory]!]);
  }

  async restart(): Promise<void> {
    await this.front.ask(Request.GET_VRING_BASE, u32s(RING, 0));
    const { device } = this;
    assert(!device.runs);
    // From the answer on nobody hears it and nobody calls.
    if (this.call !== undefined) clearEventFd(this.call);
    device.host.used(RING);
    device.takeCalls();
    signalEventFd(this.kick);
    await this.front.barrier();
    assertEquals(device.takeCalls().filter((name) => name.startsWith("available")), []);
    assert(this.call === undefined || !wasSignalled(this.call));
    this.isEnabled = true;
    this.front.startRing(RING, this.kick);
  }

  [Symbol.dispose](): void {
    for (const fd of [...this.#files, this.kick, this.call]) fd?.[Symbol.dispose]();
  }
}

async function round(rig: ProxyRig<RingDevice>, random: Random): Promise<void> {
  const { device, reactor, driverSide } = rig;
  using front = rig.connect();
  using guest = new Guest(front, device);
  device.reactor = reactor;
  await guest.start();
  const steps: readonly (() => void | Promise<void>)[] = [
    ...Array(8).fill(() => guest.put()),
    ...Array(3).fill(() => guest.look()),
    () => guest.setCall(createEventFd()),
    () => guest.setCall(undefined),
    () => guest.setKick(),
    () => guest.enable(),
    () => guest.setMemory(),
    () => guest.restart(),
    () => driverSide.replaced("the test"),
  ];
  for (let n = 0; n < STEPS; n++) {
    await random.pick(steps)();
    if (random.chance(0.4)) await reactor.sleep(random.below(3));
    if (random.chance(0.1)) await front.barrier();
  }
  if (!guest.isEnabled) guest.enable();
  await front.barrier();
  await reactor.sleep(REST_MS);
  guest.look();
  assert(device.runs);
  assertEquals(device.used, device.put, "a kick was lost");
  assertEquals(guest.seen, device.put, "a call was lost");
}

/** All of the guest's memory in one piece of the RAM that the device side sees. */
const RUNS = [{ offset: 0, physical: 0x1_4000_0000, length: MEMORY_SIZE }];

const WAYS: Record<string, () => ProxyRigOptions<RingDevice>> = {
  "in band": () => ({ notifiesInBand: true }),
  "out of band": () => ({}),
  "in band, calls by an interrupt": () => ({
    direct: new FakePins(),
    runs: RUNS,
    vectors: new FakeVectors(1),
  }),
};

for (const [way, options] of Object.entries(WAYS)) {
  cleanTest(
    `notifications ${way}: none is lost, whatever changes meanwhile`,
    () =>
      withProxy<RingDevice>(async (rig) => {
        const seed = Random.seed();
        for (let n = 0; n < 60; n++) {
          const random = new Random(seed + n);
          await round(rig, random).catch((error) => {
            throw new Error(
              `SEED=${seed + n}: ${error.message}; ${rig.lines.slice(-5).join(" | ")}`,
              { cause: error },
            );
          });
        }
      }, { device: new RingDevice(), ...options() }),
  );
}

for (const [way, options] of Object.entries(WAYS)) {
  cleanTest(
    `notifications ${way}: the device side is replaced between an answer and whoever waits for it`,
    async () => {
      let answers = 1;
      for (let lost = 1; lost <= answers; lost++) {
        answers = 0;
        const rig = options();
        await withProxy<RingDevice>(async ({ connect, device, driverSide, lines, reactor }) => {
          const { requests } = driverSide;
          const request: typeof requests.request = requests.request.bind(requests);
          requests.request = async (...asked) => {
            const answer = await request(...asked);
            if (++answers === lost) driverSide.replaced("the test");
            return answer;
          };
          using front = connect();
          using guest = new Guest(front, device);
          device.reactor = reactor;
          await guest.start();
          for (const call of [undefined, createEventFd()]) {
            guest.setCall(call);
            guest.put();
            await reactor.sleep(REST_MS);
          }
          guest.look();
          const where = `answer ${lost}: ${lines.join(" | ")}`;
          assertEquals([device.used, guest.seen], [2, 2], where);
          await front.ask(Request.GET_VRING_BASE, u32s(RING, 0));
          assertEquals(rig.vectors?.lent.size ?? 0, 0, where);
          assertEquals(
            lines.filter((line) => /refuse|error|needs a reset|broken/.test(line)),
            [],
            where,
          );
        }, { device: new RingDevice(), ...rig });
      }
      assert(answers > 10);
    },
  );
}

cleanTest(
  "notifications out of band: behind the lease a kick is for nothing, and nobody is called",
  () =>
    withProxy<RingDevice>(async (rig) => {
      const { device, reactor } = rig;
      using front = rig.connect();
      using guest = new Guest(front, device);
      device.reactor = reactor;
      await guest.start();
      guest.put();
      await reactor.sleep(REST_MS);
      guest.look();
      assertEquals([device.used, guest.seen], [1, 1]);
      // As if the proxy stood still.
      rig.silence();
      await reactor.sleep(2 * LEASE_MS);
      clearEventFd(guest.call!);
      guest.put();
      await reactor.sleep(REST_MS);
      assertEquals(device.used, 1);
      assert(!wasSignalled(guest.call!));
    }, { device: new RingDevice() }),
);

cleanTest(
  "notifications in band, calls by an interrupt: without a message, by whichever eventfd",
  () => {
    const vectors = new FakeVectors(1);
    return withProxy<RingDevice>(async (rig) => {
      const { device, reactor, driverSide, wait } = rig;
      using front = rig.connect();
      using guest = new Guest(front, device);
      device.reactor = reactor;
      await guest.start();
      await wait(() => vectors.lent.size === 1);
      await reactor.sleep(REST_MS);
      const used = driverSide.counters;
      const round = async () => {
        clearEventFd(guest.call!);
        const before = vectors.rings[1] ?? 0;
        guest.put();
        await wait(() => wasSignalled(guest.call!));
        assertEquals(vectors.rings[1], before + 1);
      };
      await round();
      // As QEMU masks one: the device side is told nothing.
      guest.setCall(createEventFd());
      await front.barrier();
      await round();
      // A driver that wants no calls costs no interrupt; the next one that does has it.
      guest.setCall(undefined);
      await wait(() => vectors.lent.size === 0);
      guest.setCall(createEventFd());
      await wait(() => vectors.lent.size === 1);
      await reactor.sleep(REST_MS);
      await round();
      // What is no eventfd is called in band.
      const [ours, theirs] = unixStreamPair();
      using _ours = ours;
      guest.setCall(theirs.fd);
      await wait(() => vectors.lent.size === 0);
      guest.put();
      await wait(() => device.used === device.put);
      await reactor.sleep(REST_MS);
      assert(ours.receive(word.address, 8) > 0);
      await front.ask(Request.GET_VRING_BASE, u32s(RING, 0));
      assertEquals(used.malformed, 0);
    }, { device: new RingDevice(), direct: new FakePins(), runs: RUNS, vectors });
  },
);

cleanTest(
  "notifications in band, calls by an interrupt: rings without one are called by messages",
  () => {
    const vectors = new FakeVectors(1);
    return withProxy(async (rig) => {
      const { device, wait, memory, kick } = rig;
      using frontEnd = rig.connect();
      using calls = new DisposableStack();
      const fds = [0, 1].map(() => calls.use(createEventFd()));
      await frontEnd.setUp(memory);
      for (const [queue, call] of fds.entries()) {
        frontEnd.send(Request.SET_VRING_CALL, u32s(queue, 0), [call]);
        frontEnd.startRing(queue, kick);
      }
      await wait(() => device.calls.includes("start 1") && vectors.lent.size === 1);
      await rig.reactor.sleep(REST_MS);
      for (const fd of fds) clearEventFd(fd);
      vectors.rings.length = 0;
      for (const queue of [0, 1]) device.host.used(queue);
      await wait(() => wasSignalled(fds[1]!));
      assert(wasSignalled(fds[0]!));
      assertEquals(vectors.rings, [, 1]);
      // The one that stops leaves it to the next.
      await frontEnd.ask(Request.GET_VRING_BASE, u32s(0, 0));
      assertEquals(vectors.lent.size, 0);
    }, { direct: new FakePins(), runs: RUNS, vectors });
  },
);
