/**
 * Front ends that send what they should not, or go away when they should not. Whatever they do ends
 * their own connection at most: the proxy serves the next one.
 */

import { assert, assertEquals } from "@std/assert";
import { MONOTONIC, pause } from "../../../src/linux/clock.ts";
import { createEventFd, signalEventFd } from "../../../src/linux/eventfd.ts";
import { openFile } from "../../../src/linux/fd.ts";
import { unixStreamPair } from "../../../src/linux/unix_socket.ts";
import { Request } from "../../../src/vhost_user/protocol.ts";
import {
  MEMORY_SIZE,
  type ProxyRig,
  type RawFrontEnd,
  regionBytes,
  u32s,
  USER_ADDRESS,
  withProxy,
} from "../../support/front_end.ts";
import { cleanTest } from "../../support/leaks.ts";
import { PATIENCE_MS } from "../../support/processes.ts";

/** A well-behaved front end is served: its ring starts, and stops when it goes. */
async function assertServes(rig: ProxyRig): Promise<void> {
  rig.device.takeCalls();
  using front = rig.connect();
  await front.setUp(rig.memory);
  front.startRing(0, rig.kick);
  await rig.wait(() => rig.device.calls.includes("start 0"));
  front[Symbol.dispose]();
  await rig.wait(() => rig.device.calls.includes("stop 0"));
}

/** The descriptors of this process; another test's may still be closed meanwhile. */
const openDescriptors = () => [...Deno.readDirSync("/proc/self/fd")].length;

/** Waits until there are no more of them than that. What is of no kind we know is closed by another thread, in its own time. */
async function closed({ reactor }: ProxyRig, count: number): Promise<void> {
  const endMs = MONOTONIC.now() + PATIENCE_MS;
  while (openDescriptors() > count) {
    assert(MONOTONIC.now() < endMs, "descriptors were left behind");
    pause(1);
    await reactor.sleep(0);
  }
}

const O_PATH = 0o10000000;

type Attack = (front: RawFrontEnd, rig: ProxyRig) => void;

/** How it is attacked; each ends the connection. */
const ATTACKS: Readonly<Record<string, Attack>> = {
  "nine descriptors with one message": (front) => {
    using stack = new DisposableStack();
    const fds = Array.from({ length: 9 }, () => stack.use(createEventFd()));
    front.send(Request.SET_OWNER, new Uint8Array(), fds);
  },
  "nine descriptors with the parts of one message": (front) => {
    using stack = new DisposableStack();
    const fds = Array.from({ length: 5 }, () => stack.use(createEventFd()));
    front.sendBytes(u32s(Request.SET_OWNER, 1), fds);
    front.sendBytes(u32s(0), fds.slice(1));
  },
  "memory as kick, which cannot be watched": (front, { memory }) =>
    front.send(Request.SET_VRING_KICK, u32s(0, 0), [memory]),
  "an O_PATH descriptor as call": (front) => {
    using file = openFile("/dev/null", O_PATH);
    front.send(Request.SET_VRING_CALL, u32s(0, 0), [file]);
  },
  "a kick that hangs up": (front) => {
    const [a, b] = unixStreamPair();
    front.send(Request.SET_VRING_KICK, u32s(0, 0), [a.fd]);
    a[Symbol.dispose]();
    b[Symbol.dispose]();
  },
  "an eventfd as memory": (front) => {
    using file = createEventFd();
    const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 0);
    front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [file]);
  },
  "a region larger than its file": (front, { memory }) => {
    const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 1);
    front.send(Request.ADD_MEM_REG, new Uint8Array([...u32s(0, 0), ...region]), [memory]);
  },
  "a region of no bytes": (front, { memory }) => {
    const region = regionBytes(0, 0, USER_ADDRESS, 0);
    front.send(Request.ADD_MEM_REG, new Uint8Array([...u32s(0, 0), ...region]), [memory]);
  },
  "overlapping regions": (front, { memory }) => {
    const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 0);
    const table = new Uint8Array([...u32s(2, 0), ...region, ...region]);
    front.send(Request.SET_MEM_TABLE, table, [memory, memory]);
  },
  "a table of 2^32 - 1 regions": (front) =>
    front.send(Request.SET_MEM_TABLE, u32s(0xffff_ffff, 0, 0, 0)),
  "ring 16 of a device with two": (front) => front.send(Request.SET_VRING_NUM, u32s(16, 64)),
  "half a message and no more": (front) => front.sendBytes(u32s(Request.SET_OWNER, 1)),
  "ring 129": (front) => front.send(Request.SET_VRING_NUM, u32s(129, 64)),
  "ring 2^32 - 1": (front) => front.send(Request.GET_VRING_BASE, u32s(0xffff_ffff, 0)),
  "a ring of 2^32 - 1 entries": (front) => front.send(Request.SET_VRING_NUM, u32s(0, 0xffff_ffff)),
  "a short payload": (front) => front.send(Request.SET_VRING_ADDR, u32s(0, 0)),
  "a payload of 2^32 - 1 bytes": (front) => front.sendBytes(u32s(1, 1, 0xffff_ffff)),
  "an unknown request": (front) => front.send(77, new Uint8Array()),
  "a ring larger than the device's": (front, { kick, memory }) => {
    const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 0);
    front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [memory]);
    front.send(Request.SET_FEATURES, u32s(0, 1));
    front.startRing(0, kick, 0, 512);
  },
  "a ring outside the memory": (front, { kick }) => {
    front.send(Request.SET_MEM_TABLE, u32s(0, 0));
    front.send(Request.SET_FEATURES, u32s(0, 1));
    front.startRing(0, kick);
  },
};

for (const [name, attack] of Object.entries(ATTACKS)) {
  cleanTest(`proxy: ${name} ends the connection, and nothing else`, () =>
    withProxy(async (rig) => {
      await rig.wait(() => rig.driverSide.isReady);
      const before = openDescriptors();
      const front = rig.connect();
      attack(front, rig);
      // Some have to be waited for.
      await rig.reactor.sleep(10_100);
      await rig.wait(() => front.hungUp);
      front[Symbol.dispose]();
      await closed(rig, before);
      await assertServes(rig);
      const { connections, refused } = rig.server.counters;
      assertEquals([connections, refused], [2, 1], "what was sent is the reason, not that it left");
    }));
}

cleanTest(
  "proxy: an unused ring of no entries, also beyond the device's, is ignored",
  () =>
    withProxy(async (rig) => {
      using front = rig.connect();
      await front.setUp(rig.memory);
      // DPDK virtio_user with queues=2, for which there is no pair.
      for (const index of [2, 3]) front.startRing(index, rig.kick, 0, 0);
      front.startRing(0, rig.kick);
      await rig.wait(() => rig.device.calls.includes("start 0"));
      await front.barrier();
      assertEquals([front.hungUp, rig.device.calls.includes("start 3")], [false, false]);
    }),
);

cleanTest(
  "proxy: one more front end is turned away, and one that says nothing in time",
  () =>
    withProxy(async (rig) => {
      const said = (text: string) => rig.lines.filter((line) => line.includes(text)).length;
      await rig.wait(() => rig.driverSide.isReady);
      // Those that say nothing stand in nobody's way.
      const silent = Array.from({ length: 4 }, () => rig.connect());
      await rig.reactor.sleep(10);
      using front = rig.connect();
      await front.setUp(rig.memory);
      const second = rig.connect();
      second.send(Request.GET_FEATURES, new Uint8Array());
      await rig.wait(() => second.hungUp);
      assertEquals(said("one more front end is turned away"), 1);
      await rig.reactor.sleep(8000);
      await rig.reactor.sleep(3000);
      assertEquals(silent.map(({ hungUp }) => hungUp), [true, true, true, true]);
      assertEquals(said("said nothing for 10 s"), 4);
      await front.barrier();
      // One that speaks while the one before leaves is served.
      const next = rig.connect();
      next.send(Request.GET_FEATURES, new Uint8Array());
      await rig.reactor.sleep(300);
      front[Symbol.dispose]();
      assertEquals((await next.reply(Request.GET_FEATURES)).byteLength, 8);
      next[Symbol.dispose]();
      await assertServes(rig);
    }),
);

cleanTest(
  "proxy: one that leaves on hearing of the queues is told of, and not for ever",
  () =>
    withProxy(async (rig) => {
      for (let i = 0; i < 100; i++) {
        using front = rig.connect();
        await front.ask(Request.GET_FEATURES);
        await front.ask(Request.GET_QUEUE_NUM);
      }
      const told = rig.lines.filter((line) => line.includes("has queues=1: perhaps it wants more"));
      assert(told.length >= 1 && told.length <= 15, rig.lines.join("\n"));
      await assertServes(rig);
    }),
);

cleanTest("proxy: a front end may go at any request", () =>
  withProxy(async (rig) => {
    for (let requests = 0; requests < 12; requests++) {
      using front = rig.connect();
      const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 0);
      const steps = [
        () => front.send(Request.GET_FEATURES, new Uint8Array()),
        () => front.send(Request.SET_FEATURES, u32s(0, 1)),
        () =>
          front.send(Request.SET_MEM_TABLE, new Uint8Array([...u32s(1, 0), ...region]), [
            rig.memory,
          ]),
        () => front.startRing(0, rig.kick),
        () => front.startRing(1, rig.kick),
        () => signalEventFd(rig.kick),
        () => front.send(Request.SET_STATUS, u32s(0xf, 0)),
        () => front.send(Request.GET_VRING_BASE, u32s(0, 0)),
        () => front.send(Request.GET_VRING_BASE, u32s(0, 0)),
        () => front.send(Request.SET_MEM_TABLE, u32s(0, 0)),
        () => front.send(Request.SET_STATUS, u32s(0, 0)),
      ];
      for (const step of steps.slice(0, requests)) step();
      await rig.reactor.sleep(requests % 3);
    }
    await rig.wait(() => rig.driverSide.isReady);
    await assertServes(rig);
  }));

cleanTest(
  "proxy: one that hangs up while its kicked ring starts does not end the proxy",
  () =>
    withProxy(async (rig) => {
      const front = rig.connect();
      await front.setUp(rig.memory);
      // Ring 1 stays disabled, so only the kick starts ring 0, beside the requests.
      const addresses = new DataView(new ArrayBuffer(40));
      addresses.setUint32(0, 1, true);
      front.send(Request.SET_VRING_NUM, u32s(1, 64));
      front.send(Request.SET_VRING_ADDR, new Uint8Array(addresses.buffer));
      front.send(Request.SET_VRING_KICK, u32s(1, 0), [rig.kick]);
      front.startRing(0, rig.kick);
      await front.barrier();
      assert(!rig.device.calls.includes("start 0"));
      signalEventFd(rig.kick);
      await rig.wait(() => rig.device.calls.includes("accept"));
      front[Symbol.dispose]();
      await assertServes(rig);
    }),
);

cleanTest(
  "proxy: a kick that was given before its addresses starts nothing, and is not lost",
  () =>
    withProxy(async (rig) => {
      const front = rig.connect();
      await front.setUp(rig.memory);
      front.send(Request.SET_VRING_KICK, u32s(0, 0), [rig.kick]);
      signalEventFd(rig.kick);
      await front.barrier();
      assertEquals(rig.device.takeCalls(), []);
      front.startRing(0, rig.kick);
      await rig.wait(() => rig.device.calls.includes("available 0"));
      rig.device.host!.used(0);
      await rig.wait(() => rig.server.counters.calls > 0);
      const { connections, messages, kicks, calls, refused } = rig.server.counters;
      assertEquals([connections, kicks, calls, refused], [1, 1, 1, 0]);
      assert(messages > 5, `${messages}`);
    }, { notifiesInBand: true }),
);

cleanTest(
  "proxy: descriptors of a half message are closed with the connection",
  () =>
    withProxy(async (rig) => {
      // The two sides' doorbells are no descriptors of the front end's.
      await rig.reactor.sleep(100);
      const before = openDescriptors();
      const front = rig.connect();
      front.sendBytes(u32s(Request.SET_MEM_TABLE, 1), [rig.memory]);
      await rig.reactor.sleep(5);
      front[Symbol.dispose]();
      await closed(rig, before);
    }),
);

cleanTest(
  "proxy: features that change under a running ring stop it and start it again",
  () =>
    withProxy(async (rig) => {
      const front = rig.connect();
      await front.setUp(rig.memory);
      front.startRing(0, rig.kick);
      await rig.wait(() => rig.device.calls.includes("resume"));
      rig.device.takeCalls();
      rig.device.base = 9;
      front.send(Request.SET_FEATURES, u32s(1, 1));
      front.send(Request.SET_VRING_ENABLE, u32s(0, 1));
      await front.barrier();
      const calls = rig.device.takeCalls().filter((call) => !call.startsWith("available"));
      assertEquals(calls, ["stop 0", "accept", "start 0", "resume"]);
      assertEquals(rig.device.setups.at(-1)!.base, 9);
      // Logging of dirty pages is no feature of the device's.
      front.send(Request.SET_FEATURES, u32s(1 | 1 << 26, 1));
      front.send(Request.SET_VRING_ENABLE, u32s(0, 1));
      await front.barrier();
      assertEquals(rig.device.takeCalls(), []);
    }),
);

cleanTest(
  "proxy: a kick of the driver before does not start the next one's rings",
  () =>
    withProxy(async (rig) => {
      const front = rig.connect();
      await front.setUp(rig.memory);
      using other = createEventFd();
      front.send(Request.SET_VRING_KICK, u32s(0, 0), [rig.kick]);
      signalEventFd(rig.kick);
      await front.barrier();
      front.startRing(0, rig.kick);
      front.startRing(1, other);
      await rig.wait(() => rig.device.calls.includes("start 1"));
      for (const index of [0, 1]) front.send(Request.SET_VRING_ENABLE, u32s(index, 0));
      await front.barrier();
      rig.device.takeCalls();
      front.send(Request.SET_VRING_ENABLE, u32s(0, 1));
      await front.barrier();
      assertEquals(rig.device.takeCalls(), []);
      front.send(Request.SET_VRING_ENABLE, u32s(1, 1));
      await rig.wait(() => rig.device.calls.includes("start 1"));
    }),
);

cleanTest(
  "proxy: GET_VRING_BASE twice, before and after everything else",
  () =>
    withProxy(async (rig) => {
      const front = rig.connect();
      const base = async () => {
        const reply = await front.ask(Request.GET_VRING_BASE, u32s(0, 0));
        return [reply.getUint32(0, true), reply.getUint32(4, true)];
      };
      assertEquals(await base(), [0, 0]);
      await front.setUp(rig.memory);
      front.startRing(0, rig.kick, 5);
      await rig.wait(() => rig.device.calls.includes("start 0"));
      rig.device.base = 8;
      assertEquals([await base(), await base()], [[0, 8], [0, 8]]);
    }),
);

cleanTest(
  "proxy: shutting down with a front end says nothing of waiting for another",
  () =>
    withProxy(async (rig) => {
      const front = rig.connect();
      await front.setUp(rig.memory);
      rig.lines.length = 0;
      rig.server[Symbol.dispose]();
      await rig.reactor.sleep(5);
      assertEquals(rig.lines, []);
    }),
);

cleanTest(
  "proxy: a front end that comes again and again does not fill the log",
  () =>
    withProxy(async (rig) => {
      await rig.wait(() => rig.driverSide.isReady);
      for (let i = 0; i < 50; i++) {
        using front = rig.connect();
        front.send(77, new Uint8Array());
        await rig.wait(() => front.hungUp);
      }
      assert(rig.lines.length < 50, `${rig.lines.length} lines`);
      await assertServes(rig);
    }),
);
