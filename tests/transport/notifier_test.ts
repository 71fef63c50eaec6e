/** Notifications out of band at the device side: heard, signalled, refused, and gone before the answer that says so. */

import { assert, assertEquals } from "@std/assert";
import { linuxErrno } from "../../src/linux/errors.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../../src/linux/fd.ts";
import { allocate } from "../../src/linux/arena.ts";
import { libc } from "../../src/linux/libc.ts";
import { unixStreamPair } from "../../src/linux/unix_socket.ts";
import { Kind, NOTIFIER_CALL, NOTIFIER_KICK, NOTIFIER_VECTOR } from "../../src/message/message.ts";
import { everyKind } from "../support/descriptor_kinds.ts";
import { EPOCH, type Rig, withVmsg } from "../support/device_rig.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

const BOTH = NOTIFIER_KICK | NOTIFIER_CALL;
const [EBADF, EINVAL, ENOENT] = (["EBADF", "EINVAL", "ENOENT"] as const).map(linuxErrno);
const word = allocate(8);

/** Was it signalled since the last time? */
function wasSignalled(fd: Fd): boolean {
  return libc.read(fd.number, word.address, 8) > 0;
}

/** SET_NOTIFIER with descriptors; the errno that is answered. */
async function set(rig: Rig, index: number, flags: number, ...fds: Fd[]): Promise<number> {
  const ordinal = fds.length === 0 ? 0 : rig.peer.bus.sendFd(...fds);
  return (await rig.ask(Kind.SET_NOTIFIER, (m) => Object.assign(m, { index, flags, ordinal })))
    .result;
}

interface Notified extends Rig {
  readonly kick: Fd;
  readonly call: Fd;
  /** Asserts that the kick is heard by queue 1, or is not. */
  hears(isSo: boolean): Promise<void>;
}

/** Queue 1 runs with its own kick and call. */
function withNotifier(body: (rig: Notified) => Promise<void>) {
  return withVmsg(async (rig) => {
    using kick = createEventFd();
    using call = createEventFd();
    await start(rig);
    assertEquals(await set(rig, 1, BOTH, kick, call), 0);
    // Nobody kicks again for what was there before.
    assertEquals(rig.device.takeCalls(), ["available 1"]);
    await body({
      ...rig,
      kick,
      call,
      async hears(isSo) {
        rig.device.takeCalls();
        signalEventFd(kick);
        await rig.reactor.sleep(1);
        assertEquals(rig.device.takeCalls(), isSo ? ["available 1"] : []);
      },
    });
  });
}

async function start(rig: Rig): Promise<void> {
  await rig.negotiate();
  await rig.setQueue(1);
  await rig.setStatus(0xf);
  rig.device.takeCalls();
}

cleanTest(
  "notifier: each kick is heard once, and the call signalled, without a message",
  () =>
    withNotifier(async ({ device, call, hears, quiet, peer, ask }) => {
      for (let n = 0; n < 3; n++) {
        await hears(true);
        device.host.used(1);
        assert(wasSignalled(call));
      }
      await quiet();
      // The other queues are in band as before, and so is a kick that comes that way all the same.
      await ask(Kind.SET_VQUEUE);
      device.host.used(0);
      assertEquals((await peer.nextOf(Kind.EVENT_USED)).index, 0);
      peer.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
      await quiet();
      assertEquals(device.takeCalls(), ["available 1"]);
    }),
);

cleanTest(
  "notifier: a socket is called by a byte, and a driver that wants no call is told nothing",
  () =>
    withVmsg(async (rig) => {
      await start(rig);
      using kick = createEventFd();
      const [ours, theirs] = unixStreamPair();
      using _ours = ours;
      using _theirs = theirs;
      assertEquals(await set(rig, 1, BOTH, kick, theirs.fd), 0);
      rig.device.host.used(1);
      assertEquals(ours.receive(word.address, 8), 8);
      assertEquals(await set(rig, 1, NOTIFIER_KICK, kick), 0);
      rig.device.host.used(1);
      assertEquals(ours.receive(word.address, 8), -1);
      await rig.quiet();
    }),
);

/** What ends it, and the reply to that. */
const ENDS: Readonly<Record<string, (rig: Notified) => Promise<unknown>>> = {
  "flags 0": (rig) => set(rig, 1, 0),
  STOP_VQUEUE: async ({ peer }) => {
    const fill = { index: 1, epoch: EPOCH, token: 9 };
    peer.send(Kind.STOP_VQUEUE, (m) => Object.assign(m, fill));
    // Told in band, before the answer.
    assertEquals((await peer.nextOf(Kind.EVENT_USED)).index, 1);
    assertEquals((await peer.nextOf(Kind.STOP_VQUEUE)).result, 0);
  },
  "status 0": ({ setStatus }) => setStatus(0),
  "another epoch": ({ greet }) => greet(77),
  detach: async ({ peer, reactor }) => {
    peer.bus.drop("the test");
    await reactor.sleep(1);
  },
  "a new one that is refused": async (rig) => {
    using memory = createSealedMemory("vmsg-test", 4096);
    assertEquals(await set(rig, 1, BOTH, memory, rig.call), EINVAL);
  },
};

for (const [name, end] of Object.entries(ENDS)) {
  cleanTest(`notifier: ${name} ends it before it is answered`, () =>
    withNotifier(async (rig) => {
      const { device, call, hears } = rig;
      device.usedAtStop.add(1);
      await end(rig);
      // What was used last is told in band, if to anybody.
      assert(!wasSignalled(call));
      await hears(false);
      device.host.used(1);
      assert(!wasSignalled(call));
    }));
}

cleanTest(
  "notifier: a vector is rung for each call, kicks are messages, and it ends as all do",
  () =>
    withVmsg(async (rig) => {
      const { device, peer, quiet, side: { options: { bus } } } = rig;
      const rung: number[] = [];
      await start(rig);
      assertEquals(await set(rig, 1, NOTIFIER_VECTOR), EINVAL, "not on this bus");
      Object.assign(bus, { ringVector: (vector: number) => rung.push(vector) });
      const setVector = (index: number, flags: number, ordinal: number) =>
        rig.ask(Kind.SET_NOTIFIER, (m) => Object.assign(m, { index, flags, ordinal }))
          .then(({ result }) => result);
      assertEquals(await setVector(0, NOTIFIER_VECTOR, 2), ENOENT);
      assertEquals(await setVector(1, NOTIFIER_VECTOR, 0x1_0000), EINVAL);
      assertEquals(await setVector(1, NOTIFIER_VECTOR, 2), 0);
      device.takeCalls();
      device.host.used(1);
      await quiet();
      assertEquals(rung, [2]);
      peer.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
      await quiet();
      assertEquals(device.takeCalls(), ["available 1"]);
      device.usedAtStop.add(1);
      await ENDS.STOP_VQUEUE!(rig as Notified);
      assertEquals(rung, [2]);
    }),
);

cleanTest(
  "notifier: RESET_VQUEUE ends it",
  () =>
    withVmsg(async (rig) => {
      using kick = createEventFd();
      using call = createEventFd();
      await rig.negotiate(0x101);
      await rig.setQueue(1);
      assertEquals(await set(rig, 1, BOTH, kick, call), 0);
      await rig.peer.ask(Kind.RESET_VQUEUE, (m) => m.index = 1);
      rig.device.takeCalls();
      signalEventFd(kick);
      await rig.reactor.sleep(1);
      assertEquals(rig.device.takeCalls(), []);
    }, { device: { features: [0, 0x101] } }),
);

cleanTest(
  "notifier: another takes its place, whose kick may have been signalled before",
  () =>
    withNotifier(async (rig) => {
      const { kick, call, device, hears } = rig;
      using other = createEventFd();
      signalEventFd(other);
      assertEquals(await set(rig, 1, BOTH, other, call), 0);
      await rig.reactor.sleep(1);
      await hears(false);
      clearEventFd(kick);
      device.host.used(1);
      assert(wasSignalled(call));
    }),
);

cleanTest(
  "notifier: what cannot be is refused, and nothing of it kept",
  () =>
    withVmsg(async (rig) => {
      using kick = createEventFd();
      using call = createEventFd();
      assertEquals(await set(rig, 1, BOTH, kick, call), ENOENT);
      await start(rig);
      for (const index of [0, 2, 3, 0xffff_ffff]) {
        assertEquals(await set(rig, index, BOTH, kick, call), ENOENT);
      }
      assertEquals(await set(rig, 1, NOTIFIER_CALL, call), EINVAL);
      assertEquals(await set(rig, 1, BOTH | 4, kick, call), EINVAL);
      assertEquals(await set(rig, 1, BOTH, kick), EBADF);
      assertEquals(await set(rig, 1, BOTH), EBADF);
      // Of a device that is not there, and of an earlier epoch.
      const fill = {
        index: 1,
        flags: BOTH,
        memoryDevice: 9,
        ordinal: rig.peer.bus.sendFd(kick, call),
      };
      assert((await rig.ask(Kind.SET_NOTIFIER, (m) => Object.assign(m, fill))).result !== 0);
      const stale = { ...fill, epoch: 1, ordinal: rig.peer.bus.sendFd(kick, call) };
      assert((await rig.ask(Kind.SET_NOTIFIER, (m) => Object.assign(m, stale))).result !== 0);
      rig.device.host.used(1);
      assertEquals((await rig.peer.nextOf(Kind.EVENT_USED)).index, 1);
    }),
);

Deno.test("notifier: every kind of descriptor as kick and as call is taken or refused, and blocks nobody", () =>
  withDirectory(async (directory) => {
    await using kinds = await everyKind(directory, 4096);
    await withVmsg(async (rig) => {
      await start(rig);
      using good = createEventFd();
      for (const [kind, fd] of kinds.fds) {
        const isEvent = /^(full )?eventfd$/.test(kind);
        assertEquals(await set(rig, 1, BOTH, fd, good), isEvent ? 0 : EINVAL, kind);
        const mayBeCalled = isEvent || /full semaphore|blocking socket/.test(kind);
        assertEquals(await set(rig, 1, BOTH, good, fd), mayBeCalled ? 0 : EINVAL, kind);
        for (let n = 0; n < 3; n++) rig.device.host.used(1);
        if (!mayBeCalled) assertEquals((await rig.peer.nextOf(Kind.EVENT_USED)).index, 1);
        await rig.quiet();
      }
    });
  }));
