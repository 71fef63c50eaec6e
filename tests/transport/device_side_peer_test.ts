/** The device side and who is at the other end: HELLO, lease, memory, stopping and going on (docs/wire.md 6). */

import { assert, assertEquals } from "@std/assert";
import { linuxErrno } from "../../src/linux/errors.ts";
import { createSealedMemory, type Fd, openFile } from "../../src/linux/fd.ts";
import { mapAnonymous, mapShared } from "../../src/linux/mapping.ts";
import { unixStreamPair } from "../../src/linux/unix_socket.ts";
import { MemoryQuota } from "../../src/memory/mod.ts";
import { Kind, MEMORY_SEGMENT } from "../../src/message/message.ts";
import { LEASE_MS } from "../../src/transport/peer.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import { EPOCH, getQueue, type Rig, UNSET, withSide, withVmsg } from "../support/device_rig.ts";
import { everyKind } from "../support/descriptor_kinds.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import type { Fill } from "../support/raw_peer.ts";

// --- who is there --------------------------------------------------------------------------------

cleanTest(
  "peers: unknown - HELLO - greeted - HELLO that names our epoch - vmsg",
  () =>
    withSide(async ({ hello, peer, side, ask, quiet }) => {
      const first = await hello(EPOCH, 0, 0);
      assertEquals([first.peerEpoch, first.version], [EPOCH, PRIVATE_VERSION]);
      assert(first.epoch !== 0 && Number.isSafeInteger(first.epoch) && first.nonce !== 0);
      // Greeted: all but HELLO is dropped.
      const dropped = side.counters.dropped;
      const kinds = [
        Kind.GET_DEVICE_INFO,
        Kind.GET_DEVICES,
        Kind.PING,
        Kind.SET_DEVICE_STATUS,
        Kind.EVENT_AVAIL,
        Kind.ADD_MEMORY,
        Kind.STOP_VQUEUE,
      ];
      for (const kind of kinds) peer.send(kind, (m) => m.epoch = EPOCH);
      // Neither a wrong epoch nor a wrong nonce makes a vmsg.
      for (
        const [epoch, nonce] of [[first.epoch + 1, first.nonce], [first.epoch, first.nonce ^ 1], [
          first.epoch,
          0,
        ]]
      ) {
        await hello(EPOCH, epoch!, nonce!);
        peer.send(Kind.PING);
      }
      const second = await hello(EPOCH, first.epoch, first.nonce);
      assertEquals([second.epoch, side.counters.dropped], [
        first.epoch,
        dropped + kinds.length + 3,
      ]);
      assert(second.nonce !== first.nonce);
      assertEquals((await ask(Kind.STOP_VQUEUE)).result, linuxErrno("ENOENT"));
      await quiet();
    }),
);

for (const kind of [Kind.GET_DEVICE_INFO, Kind.GET_DEVICES]) {
  const name = kind === Kind.GET_DEVICES ? "GET_DEVICES" : "GET_DEVICE_INFO";
  cleanTest(
    `peers: whose first message is ${name} is foreign, for whom HELLO is nothing`,
    () =>
      withSide(async ({ peer, device, quiet, setStatus }) => {
        await peer.ask(kind);
        peer.send(Kind.HELLO, (m) => {
          m.epoch = EPOCH;
          m.version = PRIVATE_VERSION;
        });
        for (const kind of [Kind.ADD_MEMORY, Kind.REMOVE_MEMORY, Kind.STOP_VQUEUE]) peer.send(kind);
        await quiet();
        // No lease for a foreign peer.
        await setStatus(0x7);
        assertEquals(device.host.mayTouchMemory(), true);
      }),
  );
}

cleanTest(
  "peers: anything else as first message is from an earlier process, and dropped",
  () =>
    withSide(async ({ peer, side, device, greet, quiet }) => {
      const kinds = [
        Kind.SET_DEVICE_STATUS,
        Kind.EVENT_AVAIL,
        Kind.SET_VQUEUE,
        Kind.GET_DEVICE_STATUS,
        Kind.PING,
        Kind.ADD_MEMORY,
      ];
      for (const kind of kinds) peer.send(kind, (m) => m.status = 7);
      await greet();
      await quiet();
      assertEquals([side.counters.dropped, device.calls], [kinds.length, []]);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0);
    }),
);

cleanTest(
  "peers: a HELLO of another version is not answered, and said",
  () =>
    withSide(async ({ peer, hello, lines }) => {
      peer.send(Kind.HELLO, (m) => {
        m.epoch = EPOCH;
        m.version = PRIVATE_VERSION + 1;
      });
      await hello(EPOCH, 0, 0);
      assertEquals(peer.messages, []);
      assert(lines.some((line) => line.includes("another version (2)")));
    }),
);

cleanTest(
  "peers: a new epoch resets, unmaps and greets again; the same epoch keeps",
  () =>
    withVmsg(async (rig) => {
      const { peer, device, greet, hello, negotiate, setQueue, setStatus, side, ask, quiet } = rig;
      using fd = createSealedMemory("vmsg-test", 8192);
      peer.bus.sendFd(fd);
      const added = await ask(Kind.ADD_MEMORY, (m) => {
        m.address = 0x10_0000;
        m.length = 8192;
      });
      assertEquals(added.result, 0);
      await negotiate();
      await setQueue(0);
      await setStatus(0xf);
      device.takeCalls();
      const same = await hello(EPOCH, 0, 0);
      assertEquals(device.calls, []);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0xf);
      assertEquals(device.host.memory.windows.length, 1);

      const other = await hello(EPOCH + 1, same.epoch, same.nonce);
      assertEquals([device.takeCalls(), device.host.memory.windows.length], [["stop 0"], 0]);
      assertEquals(other.peerEpoch, EPOCH + 1);
      assertEquals(device.host.mayTouchMemory(), false);
      // A nonce that was issued to the old one is worth nothing.
      const dropped = side.counters.dropped;
      peer.send(Kind.GET_DEVICE_STATUS);
      await hello(EPOCH + 1, other.epoch, same.nonce);
      assertEquals(side.counters.dropped, dropped + 1);
      await greet(EPOCH + 1);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0);
      assertEquals(await getQueue(rig, 0), UNSET);
      await quiet();
    }),
);

cleanTest(
  "peers: more memory of one device than its limit is refused, others and what was taken back are not",
  () =>
    withVmsg(async ({ peer, ask, device, fifth, lines }) => {
      using fd = createSealedMemory("vmsg-test", 1 << 20);
      let ordinal = 0;
      const add = async (at: number, length: number, memoryDevice = 0) => {
        peer.bus.sendFd(fd);
        const { result } = await ask(Kind.ADD_MEMORY, (m) => {
          Object.assign(m, { ordinal: ordinal++, address: at, length, memoryDevice });
        });
        return result;
      };
      const ENOMEM = linuxErrno("ENOMEM");
      for (let i = 0; i < 100; i++) assertEquals(await add(0, 3 * 8192), ENOMEM);
      assertEquals(lines.filter((line) => line.includes("--memory-limit")).length, 1);
      assertEquals([await add(0, 8192), await add(0x10_0000, 8192)], [0, 0]);
      // Its bytes, its regions; then those of all.
      assertEquals(await add(0x20_0000, 1), ENOMEM);
      assertEquals([await add(0, 8192, 5), await add(0x10_0000, 8192, 5)], [0, ENOMEM]);
      const gone = await ask(Kind.REMOVE_MEMORY, (m) => m.length = 8192);
      assertEquals([gone.result, await add(0x10_0000, 8192, 5)], [0, 0]);
      const windows = [device, fifth].map(({ host }) => host.memory.windows.map(({ at }) => at));
      assertEquals(windows, [[0x10_0000], [0, 0x10_0000]]);
    }, { quota: new MemoryQuota({ size: 16384, regions: 2, total: 3 * 8192, pinned: 0 }) }),
);

cleanTest(
  "peers: a request that names an old epoch is refused with ESTALE",
  () =>
    withVmsg(async ({ peer, device, ask }) => {
      using fd = createSealedMemory("vmsg-test", 4096);
      peer.bus.sendFd(fd);
      const kinds = [
        Kind.ADD_MEMORY,
        Kind.REMOVE_MEMORY,
        Kind.STOP_VQUEUE,
        Kind.SET_VQUEUE_STATE,
      ];
      for (const kind of kinds) {
        const answer = await ask(kind, (m) => {
          m.epoch = EPOCH + 1;
          m.length = 4096;
        });
        assertEquals(answer.result, linuxErrno("ESTALE"));
      }
      assertEquals([device.calls, device.host.memory.windows.length], [[], 0]);
    }),
);

cleanTest(
  "peers: when the driver side goes, its memory goes, and windows of the command line stay",
  async () => {
    using own = mapAnonymous(4096);
    await withVmsg(async ({ peer, device, ask, reactor, negotiate, setQueue, lines }) => {
      device.host.memory.add(0, 4096, own);
      using fd = createSealedMemory("vmsg-test", 4096);
      peer.bus.sendFd(fd);
      await ask(Kind.ADD_MEMORY, (m) => {
        m.address = 0x10_0000;
        m.length = 4096;
      });
      await negotiate();
      await setQueue(0);
      device.takeCalls();
      assertEquals(device.host.memory.windows.length, 2);
      peer.bus.drop("test");
      while (device.host.memory.windows.length > 1) await reactor.sleep(1);
      assertEquals(device.host.memory.windows[0]!.at, 0);
      assertEquals(device.takeCalls(), ["stop 0"]);
      assert(lines.some((line) => line.includes("closed the connection")));
    });
  },
);

// --- lease ---------------------------------------------------------------------------------------

cleanTest(
  "lease: what is told for other threads ends when that of this one does, and changes with the status",
  () =>
    withVmsg(async ({ device, peer, clock, hello, greet, negotiate, setStatus }) => {
      const agrees = (may: boolean) => {
        const { untilMs } = device.told!;
        assertEquals([clock.nowMs < untilMs, device.host.mayTouchMemory()], [may, may]);
      };
      await negotiate();
      agrees(false);
      await setStatus(0xf);
      clock.nowMs = 5000;
      await greet();
      agrees(true);
      assertEquals(device.told!.untilMs, 5000 + LEASE_MS);
      clock.nowMs = 5251;
      agrees(false);
      await greet();
      agrees(true);
      device.host.needsReset("test");
      agrees(false);
      await peer.nextOf(Kind.EVENT_CONFIG);
      await setStatus(0);
      await negotiate();
      await setStatus(0xf);
      await greet();
      agrees(true);
      await setStatus(0);
      agrees(false);
      await negotiate();
      await setStatus(0xf);
      agrees(true);
      // Another driver side.
      await hello(EPOCH + 1, 0, 0);
      agrees(false);
    }),
);

cleanTest(
  "lease: ends 250 ms after the nonce that came back was issued; a HELLO resumes",
  () =>
    // A message that is handled takes a turn or two, much less than the millisecond that is left here.
    withVmsg(async ({ device, clock, hello, greet, negotiate, setStatus }) => {
      assertEquals(LEASE_MS, 250);
      await negotiate();
      await setStatus(0xf);
      device.takeCalls();
      clock.nowMs = 5000;
      const issued = await hello(EPOCH, 0, 0);
      assertEquals(device.host.mayTouchMemory(), false, "the old lease is long over");
      clock.nowMs = 5100;
      const next = await hello(EPOCH, issued.epoch, issued.nonce);
      assertEquals(device.takeCalls(), ["resume"], "it had asked, and was told no");
      clock.nowMs = 5249.9;
      assertEquals(device.host.mayTouchMemory(), true);
      clock.nowMs = 5251;
      assertEquals(device.host.mayTouchMemory(), false, "from the issue, not from the return");
      // An old nonce gives nothing new.
      await hello(EPOCH, issued.epoch, issued.nonce);
      assertEquals([device.host.mayTouchMemory(), device.takeCalls()], [false, []]);
      // The one of 5100 lasts to 5350.
      await hello(EPOCH, next.epoch, next.nonce);
      assertEquals([device.host.mayTouchMemory(), device.takeCalls()], [true, ["resume"]]);
      clock.nowMs = 5351;
      assertEquals(device.host.mayTouchMemory(), false);
      await greet();
      assertEquals(device.takeCalls(), ["resume"]);
      assertEquals(device.host.mayTouchMemory(), true);
      await hello(EPOCH, 0, 0);
      assertEquals(device.takeCalls(), [], "resumed once");
    }),
);

cleanTest(
  "lease: a nonce older than the last eight does not count any more",
  () =>
    withVmsg(async ({ device, hello, setStatus, clock }) => {
      await setStatus(0x7);
      clock.advance(LEASE_MS);
      const old = await hello(EPOCH, 0, 0);
      for (let n = 0; n < 8; n++) await hello(EPOCH, 0, 0);
      await hello(EPOCH, old.epoch, old.nonce);
      assertEquals(device.host.mayTouchMemory(), false);
    }),
);

cleanTest(
  "lease: requests are answered without it",
  () =>
    withVmsg(async ({ device, clock, setStatus, peer }) => {
      await setStatus(0x7);
      clock.advance(10_000);
      assertEquals(device.host.mayTouchMemory(), false);
      assertEquals((await peer.ask(Kind.GET_DEVICE_STATUS)).status, 0x7);
    }),
);

// --- memory --------------------------------------------------------------------------------------

/** ADD_MEMORY with or without a descriptor; the errno's number. */
function adder({ peer, ask }: Rig) {
  let ordinal = 0;
  return async (
    fd: Fd | undefined,
    address: number,
    length: number,
    offset = 0,
    fill: Fill = () => {},
  ) => {
    if (fd !== undefined) peer.bus.sendFd(fd);
    const answer = await ask(Kind.ADD_MEMORY, (m) => {
      m.ordinal = fd === undefined ? 999 : ordinal++;
      m.address = address;
      m.length = length;
      m.offset = offset;
      fill(m);
    });
    return answer.result;
  };
}

cleanTest(
  "ADD_MEMORY: mapped when it is answered, at any offset, per device",
  () =>
    withVmsg(async (rig) => {
      const { device, fifth } = rig;
      const add = adder(rig);
      using fd = createSealedMemory("vmsg-test", 3 * 4096);
      using ours = mapShared(fd.number, 3 * 4096);
      const bytes = new Uint8Array(ours.buffer);
      bytes[4096 + 100] = 0x42;
      assertEquals(await add(fd, 0x10_0000, 4096, 4096 + 90), 0);
      const window = device.host.memory.find(0x10_0000, 4096)!;
      assertEquals(window.view.getUint8(10), 0x42);
      window.view.setUint8(11, 0x43);
      assertEquals(bytes[4096 + 101], 0x43);
      // The same address on another device is another memory.
      assertEquals(fifth.host.memory.windows.length, 0);
      assertEquals(await add(fd, 0x10_0000, 4096, 0, (m) => m.memoryDevice = 5), 0);
      assertEquals(fifth.host.memory.find(0x10_0000, 1)!.view.getUint8(10), 0);
    }),
);

cleanTest(
  "ADD_MEMORY U5: what cannot be is refused, and the descriptor closed",
  () =>
    withVmsg(async (rig) => {
      const { device } = rig;
      const add = adder(rig);
      const errno = (name: string) => linuxErrno(name);
      using fd = createSealedMemory("vmsg-test", 8192);
      const MAX = Number.MAX_SAFE_INTEGER;
      assertEquals(await add(undefined, 0, 4096), errno("EBADF"));
      for (
        const [address, length, offset] of [
          [0, 0, 0],
          [0, 8193, 0],
          [0, 4096, 4097],
          [0, 1, 8192],
          [0, 4096, MAX],
          [0, MAX, 0],
          [MAX, 4096, 0],
          [2 ** 53, 4096, 0],
          [2 ** 64, 4096, 0],
          [0, 2 ** 63, 0],
          [0, 4096, 2 ** 63],
        ]
      ) {
        assertEquals(
          await add(fd, address!, length!, offset!),
          // More than any machine has is too much whatever the file is.
          errno(length === MAX ? "ENOMEM" : "EINVAL"),
          `${address} ${length}`,
        );
      }
      assertEquals(await add(fd, 0, 4096, 0, (m) => m.memoryDevice = 3), errno("ENODEV"));
      assertEquals(await add(fd, 0x1000, 4096), 0);
      assertEquals(await add(fd, 0x1fff, 1), errno("EEXIST"));
      assertEquals(await add(fd, 0, 8192), errno("EEXIST"));
      // Confined mode's segment brings none, and there is none here.
      assertEquals(
        await add(undefined, 0, 4096, 0, (m) => m.flags = MEMORY_SEGMENT),
        errno("EBADF"),
      );
      assertEquals(device.host.memory.windows.map(({ at, size }) => [at, size]), [[0x1000, 4096]]);
    }),
);

cleanTest("ADD_MEMORY: a descriptor of another kind is refused", () =>
  withVmsg(async (rig) => {
    const add = adder(rig);
    const [a, b] = unixStreamPair();
    using _a = a;
    using _b = b;
    using zero = openFile("/dev/zero");
    for (const fd of [a.fd, zero]) assertEquals(await add(fd, 0, 4096), linuxErrno("EINVAL"));
    using file = createSealedMemory("vmsg-test", 100);
    assertEquals(await add(file, 0, 101), linuxErrno("EINVAL"), "beyond the end is a SIGBUS");
    assertEquals(await add(file, 0, 100), 0);
  }));

Deno.test("ADD_MEMORY: no kind of descriptor stops the device side, those of memory are taken", () =>
  withDirectory(async (directory) => {
    await using kinds = await everyKind(directory, 1 << 20);
    await withVmsg(async (rig) => {
      const add = adder(rig);
      let address = 0;
      for (const [kind, fd] of kinds.fds) {
        const taken = /memfd|regular/.test(kind);
        const expected = taken ? 0 : linuxErrno("EINVAL");
        assertEquals(await add(fd, address += 1 << 24, 4096), expected, kind);
      }
    });
  }));

cleanTest(
  "REMOVE_MEMORY: exactly what was added, not under a running queue, and then it is gone",
  () =>
    withVmsg(async (rig) => {
      const { ask, device, negotiate, setQueue } = rig;
      const add = adder(rig);
      const remove = async (address: number, length: number, number = 0) =>
        (await ask(Kind.REMOVE_MEMORY, (m) => {
          m.memoryDevice = number;
          m.address = address;
          m.length = length;
        })).result;
      using fd = createSealedMemory("vmsg-test", 8192);
      await add(fd, 0x1000, 8192);
      assertEquals(await remove(0x1000, 4096), linuxErrno("ENOENT"));
      assertEquals(await remove(0x2000, 4096), linuxErrno("ENOENT"));
      assertEquals(await remove(0x1000, 8192, 5), linuxErrno("ENOENT"));
      assertEquals(await remove(0x1000, 8192, 4), linuxErrno("ENODEV"));
      await negotiate();
      await setQueue(1);
      assertEquals(await remove(0x1000, 8192), linuxErrno("EBUSY"));
      assertEquals(device.host.memory.windows.length, 1);
      assertEquals((await ask(Kind.STOP_VQUEUE, (m) => m.index = 1)).result, 0);
      const { buffer } = device.host.memory.windows[0]!;
      assertEquals(await remove(0x1000, 8192), 0);
      assertEquals([buffer.byteLength, device.host.memory.windows.length], [0, 0]);
      assertEquals(await remove(0x1000, 8192), linuxErrno("ENOENT"));
      assertEquals(await add(fd, 0x1000, 4096), 0);
    }),
);

cleanTest("memory windows survive status 0", () =>
  withVmsg(async (rig) => {
    using fd = createSealedMemory("vmsg-test", 4096);
    await adder(rig)(fd, 0x1000, 4096);
    await rig.setStatus(0);
    assertEquals(rig.device.host.memory.windows.length, 1);
  }));

// --- stopping and going on -----------------------------------------------------------------------

cleanTest(
  "STOP_VQUEUE: EVENT_USED, then the answer with the base, then EVENT_AVAIL is nothing",
  () =>
    withVmsg(async (rig) => {
      const { peer, ask, device, negotiate, setQueue, setStatus, quiet } = rig;
      await negotiate();
      await setQueue(1);
      await setStatus(0xf);
      device.takeCalls();
      device.base = 0xfffe;
      device.usedAtStop.add(1);
      const token = peer.send(Kind.STOP_VQUEUE, (m) => {
        m.epoch = EPOCH;
        m.index = 1;
      });
      const used = await peer.nextOf(Kind.EVENT_USED);
      const answer = await peer.nextOf(Kind.STOP_VQUEUE);
      assertEquals([used.index, used.device], [1, 0]);
      assertEquals([answer.token, answer.result, answer.base, answer.index], [token, 0, 0xfffe, 1]);
      assertEquals(device.takeCalls(), ["stop 1"]);
      assertEquals(await getQueue(rig, 1), UNSET);
      peer.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
      await quiet();
      assertEquals(device.takeCalls(), []);
      for (const index of [1, 0, 3, 0xffff_ffff]) {
        assertEquals(
          (await ask(Kind.STOP_VQUEUE, (m) => m.index = index)).result,
          linuxErrno("ENOENT"),
        );
      }
      const absent = await ask(Kind.STOP_VQUEUE, (m) => m.memoryDevice = 4);
      assertEquals(absent.result, linuxErrno("ENODEV"));
    }),
);

cleanTest(
  "STOP_VQUEUE: with room for one message that is the answer, EVENT_USED follows",
  () =>
    withVmsg(async ({ peer, device, negotiate, setQueue, reactor, side }) => {
      await negotiate();
      await setQueue(0);
      device.usedAtStop.add(0);
      const incoming = peer.bus as unknown as { rung(): void };
      const { rung } = incoming;
      incoming.rung = () => {};
      // 31 fit: 30 answers, and one place is left.
      for (let n = 0; n < 30; n++) peer.send(Kind.PING);
      await reactor.sleep(2);
      peer.send(Kind.STOP_VQUEUE, (m) => m.epoch = EPOCH);
      await reactor.sleep(2);
      assertEquals(side.counters.unansweredFull, 0);
      incoming.rung = rung;
      incoming.rung();
      await reactor.sleep(5);
      const kinds = peer.messages.splice(0).map(({ kind }) => kind).filter((kind) =>
        kind !== Kind.PING
      );
      assertEquals(kinds, [Kind.STOP_VQUEUE, Kind.EVENT_USED]);
    }, { capacity: 32 }),
);

cleanTest(
  "SET_VQUEUE_STATE: after FEATURES_OK, on an unset queue, for the next SET_VQUEUE only",
  () =>
    withVmsg(async (rig) => {
      const { ask, device, negotiate, setQueue, setStatus } = rig;
      const setState = async (index: number, base: number, number = 0) =>
        (await ask(Kind.SET_VQUEUE_STATE, (m) => {
          m.memoryDevice = number;
          m.index = index;
          m.base = base;
        })).result;
      const nextBase = async (index: number) => {
        await setQueue(index);
        return device.setups.at(-1)!.base;
      };
      assertEquals(await setState(0, 5), linuxErrno("EPROTO"), "before FEATURES_OK");
      await negotiate();
      assertEquals(await setState(3, 5), linuxErrno("ENOENT"));
      assertEquals(await setState(0, 5, 4), linuxErrno("ENODEV"));
      assertEquals(await setState(0, 5), 0);
      assertEquals(await nextBase(0), 5);
      assertEquals(await setState(0, 6), linuxErrno("EBUSY"), "it runs");
      await ask(Kind.STOP_VQUEUE);
      assertEquals(await nextBase(0), 0, "consumed");
      await ask(Kind.STOP_VQUEUE);
      // Stop clears it.
      await setState(1, 9);
      await setQueue(1);
      await ask(Kind.STOP_VQUEUE, (m) => m.index = 1);
      assertEquals(await nextBase(1), 0);
      // Status 0 clears it.
      assertEquals(await setState(2, 9), 0);
      await setStatus(0);
      await negotiate();
      assertEquals(await nextBase(2), 0);
      // Also when the start fails, it is consumed.
      await setState(0, 9);
      device.startProblem = "no";
      await setQueue(0);
      device.startProblem = undefined;
      assertEquals(await nextBase(0), 0);
    }),
);

cleanTest(
  "SET_VQUEUE_STATE: a new epoch clears it",
  () =>
    withVmsg(async ({ ask, negotiate, greet, setQueue, device }) => {
      await negotiate();
      await ask(Kind.SET_VQUEUE_STATE, (m) => m.base = 9);
      await greet(EPOCH + 1);
      await negotiate();
      await setQueue(0);
      assertEquals(device.setups.at(-1)!.base, 0);
    }),
);

cleanTest("dispose stops queues, unmaps, disposes the models", async () => {
  let calls: string[] = [];
  await withVmsg(async (rig) => {
    using fd = createSealedMemory("vmsg-test", 4096);
    await adder(rig)(fd, 0x1000, 4096);
    await rig.negotiate();
    await rig.setQueue(2);
    rig.device.takeCalls();
    calls = rig.device.calls;
  });
  assertEquals(calls, ["stop 2", "dispose"]);
});
