/**
 * The bridge's bus and a device side at a node in this process: what becomes of a session. Time is virtual. What real descriptors
 * and another process bring is in bridge_process_test.ts.
 */

import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { linuxErrno, VmsgError } from "../../src/linux/errors.ts";
import { Kind } from "../../src/message/message.ts";
import { FakeDevice } from "../support/fake_device.ts";
import {
  add,
  del,
  DRIVER_OK,
  inWords,
  LATE,
  local,
  type MemoryBridgeRig,
  memoryBridgeTest as bridgeTest,
  NEEDS_RESET,
  offline,
  online,
  PAGE,
} from "../support/memory_bridge_rig.ts";

const PUBLISHED = ["RESET of 1", "DEV of 1 0", `DEV of 1 ${LATE}`, "COMMIT of 1 2"];
const again = (epoch: number) => PUBLISHED.map((line) => line.replace("of 1", `of ${epoch}`));

bridgeTest(
  "devices are published at once, added in the session, removed with another",
  async (rig) => {
    rig.side.open();
    assertEquals([await rig.said(), rig.node.kicks()], [PUBLISHED, 1]);
    rig.side.add(2, new FakeDevice());
    const three = ["RESET of 1", "DEV of 1 0", "DEV of 1 2", "DEV of 1 5", "COMMIT of 1 3"];
    assertEquals(await rig.said(), three);
    assertEquals(rig.node.asked, ["RESOLVE", "ATTACH"]);
    await rig.side.remove(2);
    assertEquals([await rig.said(), rig.node.asked.slice(2)], [PUBLISHED, ["DETACH", "ATTACH"]]);
    assertEquals(rig.side.freeNumber((number) => number < 31 && number !== LATE), 31);
    assertEquals(rig.side.freeNumber((number) => number < 32), -1, "the loopback has 32");
  },
);

bridgeTest(
  "offline from the start, online, offline, online: each epoch anew, silence between",
  async (rig) => {
    rig.node.epoch = 0n;
    rig.side.open();
    assertEquals(await rig.said(), []);
    rig.node.put(online(1));
    assertEquals(await rig.said(), PUBLISHED);
    await rig.bringUp(0);
    rig.node.kicks();
    rig.node.put(offline(1));
    assertEquals([await rig.said(), rig.side.status(0)], [[], 0]);
    rig.device.host.used(0);
    rig.device.host.configChanged();
    rig.ask(Kind.GET_DEVICE_INFO, 0);
    rig.node.put(add(1, 0, PAGE), offline(1), offline(7));
    assertEquals([await rig.said(100), rig.node.kicks()], [[], 0]);
    rig.node.put(online(2));
    assertEquals([await rig.said(), rig.node.asked], [again(2), ["RESOLVE", "ATTACH"]]);
    // Of an epoch that is over nothing is done.
    rig.node.put(add(1, 0, PAGE, 1), add(2, 0, PAGE, 3), offline(1));
    assertEquals([await rig.said(), rig.bus.isAttached], [[], true]);
  },
);

bridgeTest(
  "what is left unread when the endpoint goes is not left to the next epoch",
  async (rig) => {
    rig.side.open();
    await rig.said();
    rig.ask(Kind.GET_DEVICE_INFO, 0);
    await rig.reactor.sleep(0.1);
    rig.node.put(offline(1));
    await rig.reactor.sleep(0.1);
    rig.node.epoch = 2n;
    rig.node.put(online(2));
    assertEquals(await rig.said(), again(2));
    assertEquals(rig.node.asked, ["RESOLVE", "ATTACH", "DETACH", "ATTACH"]);
  },
);

bridgeTest(
  "faults that follow one another have pauses between them, up to half a minute",
  async (rig) => {
    rig.side.open();
    const pauses: number[] = [];
    for (let i = 0; i < 8; i++) {
      assertEquals(await rig.said(), PUBLISHED, `${i}`);
      const startMs = rig.reactor.now();
      const { length } = rig.node.asked;
      rig.node.faulted();
      while (rig.node.asked.length < length + 2) await rig.reactor.sleep(50);
      assertEquals(rig.node.asked.slice(length), ["DETACH", "ATTACH"]);
      pauses.push(Math.round((rig.reactor.now() - startMs) / 1000));
    }
    assertEquals(pauses, [0, 1, 2, 4, 8, 16, 30, 30]);
    await rig.said(31_000);
    rig.node.faulted();
    assertEquals(await rig.said(), PUBLISHED, "a session that held is no part of it");
  },
);

bridgeTest(
  "a kernel whose endpoint is offline is asked for nothing more, and not left at once",
  async (rig) => {
    rig.side.open();
    await rig.said();
    assertEquals(rig.bus.mayEnd(), true);
    rig.node.put(offline(1));
    await rig.said();
    rig.node.faulted();
    await rig.said(100_000);
    assertEquals(rig.node.asked, ["RESOLVE", "ATTACH"]);
    assertEquals([rig.bus.mayEnd(), rig.bus.mayEnd()], [false, true]);
    assertMatch(rig.lines.at(-1)!, /is offline: the node is kept open, .* a second signal ends/);
    rig.side[Symbol.dispose]();
    rig.bus[Symbol.dispose]();
    assertEquals(rig.node.asked, ["RESOLVE", "ATTACH", "close"]);
  },
);

/** What ends a session, or begins another one. */
const ENDS: Readonly<Record<string, (rig: MemoryBridgeRig) => unknown>> = {
  "a fault": ({ node }) => node.faulted(),
  "a device that is removed": ({ side }) => void side.remove(0),
  "a driver side that breaks the rules": ({ bus }) => bus.drop("it breaks the rules"),
};

for (const [what, end] of Object.entries(ENDS)) {
  bridgeTest(`${what} when ENDPOINT_OFFLINE lies there unread: no DETACH, no kick`, async (rig) => {
    rig.side.open();
    await rig.said();
    rig.node.kicks();
    rig.node.put(offline(1));
    end(rig);
    await rig.reactor.sleep(100);
    assertEquals([rig.node.asked, rig.node.kicks()], [["RESOLVE", "ATTACH"], 0]);
    assertEquals(rig.bus.isOffline, true);
  });
}

bridgeTest(
  "ENDPOINT_OFFLINE of an epoch that is over holds nothing up while it lies there",
  async (rig) => {
    rig.side.open();
    await rig.said();
    rig.node.put(offline(1), online(2));
    await rig.said();
    await rig.bringUp(0);
    rig.node.kicks();
    rig.node.put(offline(1));
    assertEquals(rig.bus.isOffline, false);
    rig.device.host.used(0);
    await rig.said();
    assertEquals(rig.node.kicks(), 1);
    rig.node.put(offline(1));
    rig.node.faulted();
    await rig.reactor.sleep(100);
    assertEquals(rig.node.asked, ["RESOLVE", "ATTACH", "DETACH", "ATTACH"]);
  },
);

bridgeTest("the end when ENDPOINT_OFFLINE lies there unread, and nothing is rung", async (rig) => {
  rig.side.open();
  await rig.said();
  await rig.bringUp(0);
  rig.node.kicks();
  rig.node.put(offline(1));
  rig.device.host.used(0);
  assertEquals(rig.bus.mayEnd(), false);
  await rig.said();
  assertEquals(rig.node.kicks(), 0);
  rig.side[Symbol.dispose]();
  rig.bus[Symbol.dispose]();
  assertEquals(rig.node.asked, ["RESOLVE", "ATTACH", "close"]);
});

bridgeTest("where no kernel is, a fault while offline is a fault", async (rig) => {
  rig.side.open();
  await rig.said();
  rig.node.put(offline(1));
  await rig.said();
  assertEquals(rig.bus.mayEnd(), true);
  rig.node.faulted();
  assertEquals([await rig.said(), rig.node.asked.slice(2)], [PUBLISHED, ["DETACH", "ATTACH"]]);
  rig.side[Symbol.dispose]();
  rig.bus[Symbol.dispose]();
  assertEquals(rig.node.asked.slice(4), ["DETACH", "RELEASE", "close"]);
}, false);

bridgeTest("no event goes out before a device's first status write of the epoch", async (rig) => {
  rig.side.open();
  await rig.said();
  rig.device.host.used(0);
  rig.ask(Kind.GET_DEVICE_INFO, 0);
  assertEquals([await rig.said(), rig.bus.earlyEvents], [["GET_DEVICE_INFO"], 1]);
  rig.ask(Kind.SET_DEVICE_STATUS, 0, { status: 0 });
  // A status write to a number that is no device's opens nothing.
  rig.ask(Kind.SET_DEVICE_STATUS, 9, { status: 0 });
  await rig.said();
  rig.device.host.used(0);
  rig.late.host.used(0);
  assertEquals([await rig.said(), rig.bus.earlyEvents], [["EVENT_USED"], 2]);
});

bridgeTest(
  "windows are shown to all devices, and answered when they are there and when they are gone",
  async (rig) => {
    rig.side.open();
    await rig.said();
    rig.node.put(add(1, 0x10_0000, 4 * PAGE), add(2, 0x20_0000, PAGE));
    assertEquals(await rig.said(), ["ADDED 1 0", "ADDED 2 0"]);
    const seen = () => rig.late.host.regions.map(({ at, size }) => [at, size]);
    assertEquals(seen(), [[0x10_0000, 4 * PAGE], [0x20_0000, PAGE]]);
    const third = new FakeDevice();
    rig.side.add(7, third);
    assertEquals(third.host.regions.length, 2, "also to one that comes later");
    await rig.said();
    // What cannot be: over another, not whole pages, larger than what is mapped, none at all, the same once more.
    const { EEXIST, EINVAL } = { EEXIST: -linuxErrno("EEXIST"), EINVAL: -linuxErrno("EINVAL") };
    rig.node.put(
      ...[add(3, 0x10_3000, PAGE), add(4, 0x30_0001, PAGE), add(5, 0x30_0000, PAGE, 1, 0)],
      ...[add(6, 0x30_0000, 0), add(2, 0x40_0000, PAGE), add(8, 2 ** 53, PAGE), del(99), del(2)],
    );
    assertEquals(await rig.said(), [
      ...[`ADDED 3 ${EEXIST}`, `ADDED 4 ${EINVAL}`, `ADDED 5 ${EINVAL}`, `ADDED 6 ${EINVAL}`],
      ...[`ADDED 2 ${EEXIST}`, `ADDED 8 ${EINVAL}`, "DELETED 99 0", "DELETED 2 0"],
    ]);
    assertEquals(seen(), [[0x10_0000, 4 * PAGE]]);
    const { mappings } = rig.node;
    const isMapped = () => mappings.map(({ buffer }) => buffer.byteLength > 0);
    assertEquals(isMapped(), [true, false, false]);
    rig.node.put(offline(1));
    await rig.said();
    assertEquals([seen(), isMapped()], [[], [false, false, false]]);
  },
);

bridgeTest(
  "rings that are taken away under a queue: it is stopped first, and the device needs a reset",
  async (rig) => {
    rig.side.open();
    await rig.said();
    rig.node.put(add(1, 0x10_0000, 3 * PAGE), add(2, 0x20_0000, PAGE));
    await rig.said();
    await rig.bringUp(0);
    rig.device.takeCalls();
    rig.node.put(del(2));
    assertEquals([await rig.said(), rig.device.takeCalls()], [["DELETED 2 0"], []]);
    rig.node.put(del(1));
    assertEquals([await rig.said(), rig.device.takeCalls()], [["DELETED 1 0", "EVENT_CONFIG"], [
      "stop 0",
    ]]);
    assertEquals(rig.side.status(0), DRIVER_OK | NEEDS_RESET);
  },
);

bridgeTest(
  "a device that does not let go is waited for, but not for ever; answers keep their order",
  async (rig) => {
    rig.side.open();
    await rig.said();
    rig.node.put(add(1, 0x10_0000, 3 * PAGE), add(2, 0x20_0000, PAGE));
    await rig.said();
    await rig.bringUp(LATE);
    rig.late.isLate = true;
    const [rings] = rig.node.mappings;
    new Uint8Array(rings!.buffer).fill(7);
    rig.node.put(del(1), del(2), add(3, 0x30_0000, PAGE));
    assertEquals([await rig.said(), rig.late.asked], [["EVENT_CONFIG"], ["stop 0"]]);
    assertEquals(await rig.said(3900), []);
    assertEquals(await rig.said(200), ["DELETED 1 0", "DELETED 2 0", "ADDED 3 0"]);
    // It may go on looking, but no longer at the kernel's memory.
    assertEquals([rings!.buffer.byteLength, new Uint8Array(rings!.buffer)[0]], [3 * PAGE, 0]);
    rig.late.answer();
    await rig.said();
    assertEquals(rings!.buffer.byteLength, 0);
  },
);

bridgeTest(
  "a session that ends is followed by one when its memory is let go, or must be",
  async (rig) => {
    await rig.holdMemory();
    rig.node.faulted();
    assertEquals([await rig.said(100).catch(() => []), rig.node.asked.slice(2)], [[], ["DETACH"]]);
    rig.letGo();
    assertEquals([await rig.said(), rig.node.asked.slice(2)], [PUBLISHED, ["DETACH", "ATTACH"]]);
  },
);

bridgeTest(
  "an epoch that is over before the last one's memory is let go never begins",
  async (rig) => {
    await rig.holdMemory();
    rig.node.put(offline(1));
    await rig.said();
    rig.node.put(online(2), offline(2));
    await rig.said();
    rig.node.kicks();
    rig.letGo();
    assertEquals([await rig.said(100), rig.node.kicks(), rig.bus.isAttached], [[], 0, false]);
    rig.node.put(online(3));
    assertEquals(await rig.said(), again(3));
  },
);

bridgeTest("no session begins when memory is let go because everything ends", async (rig) => {
  await rig.holdMemory();
  rig.node.faulted();
  await rig.reactor.sleep(1);
  rig.side[Symbol.dispose]();
  rig.bus[Symbol.dispose]();
  assertEquals(rig.node.asked, ["RESOLVE", "ATTACH", "DETACH", "RELEASE", "close"]);
});

bridgeTest(
  "more requests for windows than a kernel has open begin another session",
  async (rig) => {
    await rig.holdMemory();
    rig.node.put(del(1));
    for (let sent = 1; rig.node.asked.length === 2; sent += 64) {
      assertEquals(sent < 2000, true, "it takes any number");
      rig.node.put(...Array.from({ length: 64 }, (_, i) => del(1000 + sent + i)));
      await rig.reactor.sleep(1);
    }
    assertEquals(rig.node.asked.slice(2), ["DETACH"]);
    rig.letGo();
    await rig.reactor.sleep(1);
    assertEquals(rig.node.asked.slice(2), ["DETACH", "ATTACH"]);
  },
);

bridgeTest("a ring that is full: answers and devices wait for room, none is lost", async (rig) => {
  rig.side.open();
  await rig.said();
  for (let i = 0; i < 256; i++) {
    rig.ask(Kind.GET_DEVICE_INFO, 0);
    if (i % 64 === 63) await rig.reactor.sleep(1);
  }
  rig.node.put(add(1, 0x10_0000, PAGE));
  rig.side.add(6, new FakeDevice());
  await rig.reactor.sleep(50);
  assertEquals(rig.node.take(255).length, 255);
  assertEquals(await rig.said(50), [
    "GET_DEVICE_INFO",
    "RESET of 1",
    "DEV of 1 0",
    "DEV of 1 5",
    "DEV of 1 6",
    "COMMIT of 1 3",
    "ADDED 1 0",
  ]);
});

bridgeTest(
  "an endpoint that goes while answers wait for room is heard of all the same",
  async (rig) => {
    rig.side.open();
    await rig.said();
    for (let i = 0; i < 400; i++) {
      rig.ask(Kind.GET_DEVICE_INFO, 0);
      if (i % 64 === 63) await rig.reactor.sleep(1);
    }
    assertEquals(rig.bus.isPaused, true);
    rig.node.put(offline(1));
    await rig.reactor.sleep(50);
    assertEquals([rig.bus.isAttached, rig.bus.isPaused], [false, false]);
  },
);

bridgeTest(
  "a cursor that was set back is stored again within moments, and the kernel kicked",
  async (rig) => {
    rig.side.open();
    await rig.reactor.sleep(1);
    rig.node.kicks();
    rig.node.header("tx")[0] = 1;
    await rig.reactor.sleep(20);
    assertEquals([rig.node.header("tx")[0], rig.node.kicks()], [4, 1]);
    rig.node.take();
    await rig.reactor.sleep(100);
    assertEquals(
      [rig.bus.tx.restored, rig.node.kicks()],
      [1, 0],
      "and nobody looks when all is read",
    );
  },
);

bridgeTest("frames that are no kernel's change nothing", async (rig) => {
  rig.side.open();
  await rig.said();
  const short = add(1, 0, PAGE);
  short[6] = 71;
  const frames = [
    short,
    local(0xc5, 48, 0, [1]),
    local(0x03, 12, 5, []),
    local(0x02, 12, 5, []),
    local(0x90, 64, 3, []),
  ];
  rig.node.put(...frames, new Uint8Array(128), new Uint8Array(128).fill(0xff));
  assertEquals([await rig.said(), rig.bus.isAttached], [[], true]);
  rig.ask(Kind.GET_DEVICE_INFO, 0);
  assertEquals(await rig.said(), ["GET_DEVICE_INFO"]);
});

for (
  const [errno, code, text] of [
    ["EBUSY", "BUS_IN_USE", /has a device side already: end that one/],
    ["ENODEV", "NO_BRIDGE", /the kernel has no such endpoint \(ENODEV\): load its module/],
    ["ENOTTY", "NO_BRIDGE", /memory is no virtio-msg bridge \(ENOTTY\)/],
    ["EINVAL", "EINVAL", /memory: attach: Invalid argument \(EINVAL\)/],
  ] as const
) {
  bridgeTest(`${errno} at the first attach ends the run, later it is tried again`, async (rig) => {
    rig.node.refusal = linuxErrno(errno);
    assertMatch(assertThrows(() => rig.side.open(), VmsgError).message, text);
    assertEquals(assertThrows(() => rig.node.opened(), VmsgError).code, code);
    rig.node.refusal = 0;
    rig.node.opened();
    assertEquals(await rig.said(), PUBLISHED);
    rig.node.refusal = linuxErrno(errno);
    rig.node.faulted();
    await rig.reactor.sleep(5000);
    rig.node.refusal = 0;
    await rig.reactor.sleep(10_000);
    assertEquals(rig.node.take().map(inWords), PUBLISHED);
  });
}

bridgeTest("a bridge of another time is told from one whose endpoint is offline", async (rig) => {
  const { node } = rig;
  const assertRefused = (caps: { abi: number; epoch: bigint }, open: () => void) => {
    Object.assign(node, { ...caps, isOnline: true });
    const { message } = assertThrows(open, VmsgError);
    assertMatch(message, /memory is the bridge of a kernel of another time: one as of mid 2026/);
    assertEquals(node.asked.splice(0), ["RESOLVE", "ATTACH", "DETACH"]);
  };
  assertRefused({ abi: 1, epoch: 0n }, () => rig.side.open());
  assertRefused({ abi: 2, epoch: 1n }, () => node.opened());
  Object.assign(node, { abi: 0, epoch: 0n, isOnline: false });
  node.opened();
  node.put(online(1));
  assertEquals(await rig.said(), PUBLISHED);
});

bridgeTest("an endpoint with smaller messages, as ffa, gets no larger answers", async (rig) => {
  const answer = async () => {
    rig.ask(Kind.GET_DEVICE_FEATURES, 0, { count: 31 });
    await rig.reactor.sleep(0.1);
    return rig.node.take().map((hex) => hex.length / 2);
  };
  rig.node.limit = 104;
  rig.side.open();
  await rig.said();
  assertEquals(await answer(), [104]);
  for (const [epoch, limit, most] of [[2, 79, 72], [3, 4096, 128]] as const) {
    rig.node.put(offline(epoch - 1), online(epoch, limit));
    await rig.said();
    assertEquals(await answer(), [most]);
  }
});

bridgeTest("an endpoint whose messages are too small is not used", async (rig) => {
  rig.node.limit = 71;
  assertMatch(
    assertThrows(() => rig.side.open(), VmsgError).message,
    /of 71 bytes .* 72 are needed/,
  );
  assertEquals(rig.node.asked, ["RESOLVE", "ATTACH", "DETACH"]);
  rig.node.limit = 128;
  rig.node.epoch = 0n;
  rig.node.opened();
  rig.node.put(online(1, 71));
  assertEquals([await rig.said(), rig.bus.isAttached], [[], false]);
});
