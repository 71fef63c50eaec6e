/**
 * Peers that nobody announces (two machines that share memory): the bus is attached from the start, and
 * who comes, goes or follows whom is found out by what is said, and by silence.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { linuxErrno } from "../../src/linux/errors.ts";
import { mapAnonymous, type Mapping } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, MEMORY_SEGMENT, MEMORY_WINDOW } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import type { MemoryRegion } from "../../src/memory/mod.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { LEASE_MS } from "../../src/transport/peer.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import { EPOCH } from "../support/device_rig.ts";
import { FAKE_DEVICE_ID, FakeDevice } from "../support/fake_device.ts";
import { cleanTest } from "../support/leaks.ts";
import { type PageLink, pageLink } from "../support/page_link.ts";
import { type Fill, RawPeer } from "../support/raw_peer.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** The device side says so after 1 s. */
const SILENT_MS = 1100;
const SEGMENT_START = 8192;
const MEMORY_SIZE = 1 << 20;

/** A device side at one end, and whoever plays the driver side at the other. */
interface Rig {
  readonly reactor: Reactor;
  readonly link: PageLink;
  readonly side: DeviceSide;
  readonly device: FakeDevice;
  readonly clock: VirtualClock;
  readonly lines: string[];
  /** A driver side comes, in a dialect; it takes over from the one before. */
  come(dialect?: Dialect): RawPeer;
}

interface RigOptions {
  readonly detect?: boolean;
  readonly fixed?: (memory: Mapping) => MemoryRegion[];
}

async function withUnnoticed(
  body: (rig: Rig) => Promise<void>,
  options: RigOptions = {},
): Promise<void> {
  const clock = new VirtualClock();
  using reactor = new Reactor(clock);
  using link = pageLink(reactor, {}, MEMORY_SIZE);
  using ram = mapAnonymous(1 << 20);
  const lines: string[] = [];
  using side = new DeviceSide({
    reactor,
    bus: link.device,
    codec: codecFor("v1"),
    detect: options.detect ? [codecFor("proto")] : [],
    log: createLog("test", "debug", (line) => lines.push(line.replace("test: ", ""))),
  });
  const device = new FakeDevice();
  side.add(0, device, options.fixed?.(ram) ?? []);
  side.open();
  const come = (dialect: Dialect = "v1") => {
    const peer = new RawPeer(reactor, link.driver, codecFor(dialect));
    peer.open();
    return peer;
  };
  await reactor.until(body({ reactor, link, side, device, clock, lines, come }));
}

function hello(peer: RawPeer, own: number, theirs = 0, nonce = 0) {
  return peer.ask(Kind.HELLO, (m) => {
    m.epoch = own;
    m.peerEpoch = theirs;
    m.nonce = nonce;
    m.version = PRIVATE_VERSION;
  });
}

/** Two HELLOs make a vmsg. */
async function greet(peer: RawPeer, epoch = EPOCH): Promise<void> {
  const first = await hello(peer, epoch);
  await hello(peer, epoch, first.epoch, first.nonce);
}

/** ADD_MEMORY without a descriptor; its errno. */
async function add(
  peer: RawPeer,
  from: number,
  address: number,
  length: number,
  offset: number,
  fill: Fill = () => {},
): Promise<number> {
  const answer = await peer.ask(Kind.ADD_MEMORY, (m) => {
    m.epoch = EPOCH;
    m.flags = from;
    m.address = address;
    m.length = length;
    m.offset = offset;
    fill(m);
  });
  return answer.result;
}

async function remove(peer: RawPeer, address: number, length: number): Promise<number> {
  const answer = await peer.ask(Kind.REMOVE_MEMORY, (m) => {
    m.epoch = EPOCH;
    m.address = address;
    m.length = length;
  });
  return answer.result;
}

const windowsOf = ({ device }: Rig) =>
  device.host.memory.windows.map(({ at, size }) => [at, size]).sort(([a], [b]) => a! - b!);

/** One window at 0x10000, of the last part of the memory. */
const ONE_WINDOW = (memory: Mapping): MemoryRegion[] => [
  { at: 0x10000, size: 0x4000, memory, offset: 0x8000 },
];

// --- who is there --------------------------------------------------------------------------------

cleanTest(
  "unnoticed: a vmsg driver side with another epoch replaces the one before",
  () =>
    withUnnoticed(async (rig) => {
      const { come, lines, device } = rig;
      assertEquals(lines, ["device end: waiting for a driver side"]);
      const first = come();
      await greet(first);
      assertEquals(lines.slice(1), ["device end: a vmsg driver side is there"]);
      assertEquals(await add(first, MEMORY_SEGMENT, SEGMENT_START, 4096, SEGMENT_START), 0);
      const { status } = await first.ask(Kind.SET_DEVICE_STATUS, (m) => m.status = 3);
      assertEquals([status, windowsOf(rig)], [3, [[SEGMENT_START, 4096]]]);
      const second = come();
      const answer = await hello(second, EPOCH + 1);
      assertEquals(windowsOf(rig), []);
      assertEquals(device.host.mayTouchMemory(), false);
      await hello(second, EPOCH + 1, answer.epoch, answer.nonce);
      assertEquals((await second.ask(Kind.GET_DEVICE_STATUS)).status, 0);
      assertEquals(lines.slice(2), ["device end: a vmsg driver side is there"]);
    }),
);

cleanTest(
  "unnoticed: a foreign driver side is one only after a vmsg has been silent",
  () =>
    withUnnoticed(async (rig) => {
      const { come, reactor, lines, device } = rig;
      const first = come();
      await greet(first);
      const { epoch } = await hello(first, EPOCH);
      // The vmsg itself asks this, too.
      await first.ask(Kind.GET_DEVICE_INFO);
      assertEquals([windowsOf(rig), lines.length], [[], 2]);
      await reactor.sleep(SILENT_MS);
      assertMatch(lines.at(-1)!, /the driver side is silent, its memory is not touched meanwhile$/);
      const foreign = come();
      assertEquals((await foreign.ask(Kind.GET_DEVICE_INFO)).deviceId, FAKE_DEVICE_ID);
      assertEquals(lines.at(-1), "device end: a driver side is there");
      assertEquals(windowsOf(rig), [[0x10000, 0x4000]]);
      await foreign.ask(Kind.SET_DEVICE_STATUS, (m) => m.status = 7);
      assert(device.host.mayTouchMemory(), "it needs no lease");
      // The vmsg comes back after all: it has to begin again, with a device side of another epoch.
      const again = come();
      const answer = await hello(again, EPOCH, epoch);
      assert(answer.epoch !== epoch);
      assertEquals(windowsOf(rig), []);
      assertEquals(device.host.mayTouchMemory(), false);
    }, { fixed: ONE_WINDOW }),
);

cleanTest("unnoticed: a vmsg follows a foreign driver side", () =>
  withUnnoticed(async (rig) => {
    const { come, lines } = rig;
    const foreign = come();
    await foreign.ask(Kind.GET_DEVICE_INFO);
    await foreign.ask(Kind.SET_DEVICE_STATUS, (m) => m.status = 7);
    assertEquals(windowsOf(rig), [[0x10000, 0x4000]]);
    const vmsg = come();
    await greet(vmsg);
    assertEquals(windowsOf(rig), []);
    assertEquals((await vmsg.ask(Kind.GET_DEVICE_STATUS)).status, 0);
    assertEquals(await add(vmsg, MEMORY_WINDOW, 0x5000, 0x1000, 0x11000), 0);
    assertEquals(lines.slice(1), [
      "device end: a driver side is there",
      "device end: a vmsg driver side is there",
    ]);
  }, { fixed: ONE_WINDOW }));

cleanTest(
  "unnoticed: with dialect=auto each that comes may speak another dialect",
  () =>
    withUnnoticed(async (rig) => {
      const { come, lines, link } = rig;
      const told = () => lines.splice(0).map((line) => line.replace("device end: ", ""));
      told();
      const vmsg = come("v1");
      await greet(vmsg);
      assertEquals(told(), ["a vmsg driver side is there"]);
      const prototype = come("proto");
      assertEquals((await prototype.ask(Kind.GET_DEVICE_INFO)).deviceId, FAKE_DEVICE_ID);
      assertEquals(told(), ["the driver side speaks proto", "a driver side is there"]);
      assertEquals([windowsOf(rig), link.device.ringPerMessage], [[[0x10000, 0x4000]], true]);
      const next = come("v1");
      await greet(next, EPOCH + 1);
      assertEquals(told(), ["the driver side speaks v1", "a vmsg driver side is there"]);
      assertEquals([windowsOf(rig), link.device.ringPerMessage], [[], false]);
      // Nonsense is no dialect.
      next.putBytes([0xff, 0xff, 1, 2, 3]);
      assertEquals((await next.ask(Kind.GET_DEVICE_STATUS)).status, 0);
      assertEquals(told().length, 1);
    }, { detect: true, fixed: ONE_WINDOW }),
);

cleanTest(
  "unnoticed: a vmsg that another dialect replaced finds another device side when it goes on",
  () =>
    withUnnoticed(async ({ come }) => {
      const vmsg = come("v1");
      const before = await hello(vmsg, EPOCH);
      await hello(vmsg, EPOCH, before.epoch, before.nonce);
      await come("proto").ask(Kind.GET_DEVICE_INFO);
      const after = await hello(come("v1"), EPOCH, before.epoch, before.nonce);
      assert(after.epoch !== before.epoch, "so it replays");
    }, { detect: true, fixed: ONE_WINDOW }),
);

cleanTest(
  "unnoticed: all of --memory does not make a region at address 0 be forgotten",
  () =>
    withUnnoticed(async (rig) => {
      const peer = rig.come();
      await greet(peer);
      assertEquals(await add(peer, MEMORY_WINDOW, 0, 0x1000, 0x10000), 0);
      assertEquals(await add(peer, MEMORY_WINDOW, 0, 0, 0), linuxErrno("EEXIST"));
      assertEquals(windowsOf(rig), [[0, 0x1000]]);
      await hello(rig.come(), EPOCH + 1);
      assertEquals(windowsOf(rig), []);
    }, { fixed: ONE_WINDOW }),
);

cleanTest(
  "unnoticed: silence is told once, and that the driver side is heard again",
  () =>
    withUnnoticed(async ({ come, reactor, lines, device, clock }) => {
      const peer = come();
      await greet(peer);
      await peer.ask(Kind.SET_DEVICE_STATUS, (m) => m.status = 7);
      assert(device.host.mayTouchMemory());
      clock.advance(LEASE_MS);
      assertEquals(device.host.mayTouchMemory(), false);
      await reactor.sleep(2 * SILENT_MS);
      assertEquals(lines.filter((line) => line.includes("is silent")).length, 1);
      device.takeCalls();
      const { epoch, nonce } = await hello(peer, EPOCH);
      assertEquals(lines.at(-1), "device end: the driver side is heard again");
      await hello(peer, EPOCH, epoch, nonce);
      assertEquals(device.takeCalls(), ["resume"]);
      assert(device.host.mayTouchMemory());
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 7);
    }),
);

// --- memory without descriptors ------------------------------------------------------------------

cleanTest(
  "unnoticed: ADD_MEMORY of the segment, within it and behind the queues",
  () =>
    withUnnoticed(async (rig) => {
      const { come, device, link } = rig;
      const peer = come();
      await greet(peer);
      const segment = (address: number, length: number, offset: number) =>
        add(peer, MEMORY_SEGMENT, address, length, offset);
      const [invalid, exists] = [linuxErrno("EINVAL"), linuxErrno("EEXIST")];
      assertEquals(await segment(0x1000, 4096, SEGMENT_START - 4096), invalid, "a queue");
      assertEquals(await segment(0x1000, MEMORY_SIZE, SEGMENT_START), invalid, "beyond the end");
      assertEquals(await segment(0x1000, 0, SEGMENT_START), invalid, "nothing");
      assertEquals(await segment(0x1000, 4096, 2 ** 52), invalid, "far beyond the end");
      assertEquals(await segment(0x100_0000, 4096, SEGMENT_START + 8192), 0);
      assertEquals(await segment(0x100_0800, 4096, SEGMENT_START), exists);
      assertEquals(windowsOf(rig), [[0x100_0000, 4096]]);
      // It is that memory and no other.
      new Uint8Array(link.memory.buffer)[SEGMENT_START + 8192 + 5] = 0x77;
      const { view } = device.host.memory.windows[0]!;
      assertEquals(view.getUint8(5), 0x77);
      assertEquals(await remove(peer, 0x100_0000, 8192), linuxErrno("ENOENT"));
      assertEquals(await remove(peer, 0x100_0000, 4096), 0);
      assertEquals(windowsOf(rig), []);
    }),
);

/** RAM with a hole, as --memory low=,hole= makes it: 0 to 0x8000, and 0x20000 to 0x28000. */
const AROUND_A_HOLE = (memory: Mapping): MemoryRegion[] => [
  { at: 0, size: 0x8000, memory, offset: 0 },
  { at: 0x20000, size: 0x4000, memory, offset: 0x8000 },
  { at: 0x24000, size: 0x4000, memory, offset: 0x40000 },
];

cleanTest(
  "unnoticed: ADD_MEMORY of what --memory shows, in one window or several",
  () =>
    withUnnoticed(async (rig) => {
      const { come, device, lines } = rig;
      const peer = come();
      await greet(peer);
      const fixed = (address: number, length: number, from: number) =>
        add(peer, MEMORY_WINDOW, address, length, from);
      const [fault, invalid, exists] = ["EFAULT", "EINVAL", "EEXIST"].map(linuxErrno);
      assertEquals(windowsOf(rig), [], "a vmsg is shown what it names only");
      assertEquals(await fixed(0x40000, 0x1000, 0x8000), fault, "in the hole");
      assertEquals(await fixed(0x40000, 0x2000, 0x7000), fault, "into the hole");
      assertEquals(await fixed(0x40000, 0x9000, 0x20000), fault, "beyond the end");
      assertEquals(await fixed(0x40000, 0, 0), invalid);
      assertEquals(windowsOf(rig), [], "what was refused leaves nothing");
      assertMatch(lines.at(-1)!, /memory is at 0x\w+ to 0x\w+ of its machine, which no --memory/);

      // Over the border of two windows that do not lie side by side in memory.
      assertEquals(await fixed(0x40000, 0x6000, 0x21000), 0);
      assertEquals(windowsOf(rig), [[0x40000, 0x3000], [0x43000, 0x3000]]);
      assertEquals(await fixed(0x45000, 0x1000, 0), exists);
      // The second half is in the way, so the first goes again.
      assertEquals(await fixed(0x3f000, 0x2000, 0x23000), exists);
      assertEquals(windowsOf(rig), [[0x40000, 0x3000], [0x43000, 0x3000]]);
      assertEquals(await fixed(0x10000, 0x1000, 0x7000), 0);
      const fifth = await add(peer, MEMORY_WINDOW, 0, 1, 0, (m) => m.memoryDevice = 4);
      assertEquals(fifth, linuxErrno("ENODEV"));
      const stale = await add(peer, MEMORY_WINDOW, 0, 1, 0, (m) => m.epoch = EPOCH - 1);
      assertEquals(stale, linuxErrno("ESTALE"));

      device.host.memory.windows.find(({ at }) => at === 0x43000)!.view.setUint8(7, 0x55);
      assertEquals(await remove(peer, 0x43000, 0x3000), linuxErrno("ENOENT"), "a part");
      assertEquals(await remove(peer, 0x40000, 0x6000), 0);
      assertEquals(windowsOf(rig), [[0x10000, 0x1000]]);
      assertEquals(await fixed(0x50000, 0x4000, 0x24000), 0);
      const again = device.host.memory.windows.find(({ at }) => at === 0x50000)!;
      assertEquals(again.view.getUint8(7), 0x55);
      // From the middle of a window on.
      assertEquals(await fixed(0x60000, 0x1000, 0x22000), 0);
      assertEquals(await fixed(0x70000, 0x4000, 0x20000), 0);
      const [part, whole] = [0x60000, 0x70000].map((wanted) =>
        device.host.memory.windows.find(({ at }) => at === wanted)!.view
      );
      part!.setUint8(3, 0x33);
      assertEquals(whole!.getUint8(0x2003), 0x33);
    }, { fixed: AROUND_A_HOLE }),
);

cleanTest(
  "unnoticed: a device side without --memory says what it is lacking",
  () =>
    withUnnoticed(async ({ come, lines }) => {
      const peer = come();
      await greet(peer);
      const result = await add(peer, MEMORY_WINDOW, 0x40000, 0x1000, 0x1_2345_6000);
      assertEquals(result, linuxErrno("EFAULT"));
      assertEquals(
        lines.at(-1),
        "device 0: the driver side's memory is at 0x123456000 to 0x123457000 of its machine, " +
          "give --memory to see it",
      );
    }),
);

// --- the driver side -----------------------------------------------------------------------------

cleanTest("unnoticed: a driver side without HELLO asks until somebody answers", async () => {
  using reactor = new Reactor(new VirtualClock());
  using link = pageLink(reactor);
  const lines: string[] = [];
  const events: string[] = [];
  using side = new DriverSide({
    reactor,
    bus: link.driver,
    codec: codecFor("proto"),
    log: createLog("test", "info", (line) => lines.push(line)),
  });
  side.listen({ ready: () => events.push("ready"), lost: () => events.push("lost") });
  side.open();
  // Nobody is there yet; then somebody comes who empties the queues.
  await reactor.until(reactor.sleep(150));
  assertEquals([side.peer, side.isReady], ["probing", false]);
  new Uint8Array(link.memory.buffer, 0, SEGMENT_START).fill(0);
  const peer = new RawPeer(reactor, link.device, codecFor("proto"));
  peer.open();
  const probe = await reactor.until(peer.nextOf(Kind.GET_DEVICE_INFO));
  await reactor.until(peer.nextOf(Kind.GET_DEVICE_INFO));
  assertEquals([events, side.peer], [[], "probing"]);
  peer.reply(probe, (m) => {
    m.deviceId = FAKE_DEVICE_ID;
    m.maxQueues = 1;
  });
  await reactor.until(reactor.sleep(10));
  assertEquals([events, side.peer], [["ready"], "foreign"]);
  peer.messages.length = 0;
  await reactor.until(reactor.sleep(250));
  assertEquals(peer.messages, [], "it is not asked any more");
});
