/**
 * Every kind of descriptor in every role in which a front end hands one over. Whatever it is, the other guest goes on
 * being answered, and when the front ends are gone neither process holds anything of theirs.
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, Fd, resizeFile } from "../../src/linux/fd.ts";
import { check, cString, libc } from "../../src/linux/libc.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { Request } from "../../src/vhost_user/protocol.ts";
import { everyKind } from "../support/descriptor_kinds.ts";
import {
  MEMORY_SIZE,
  type RawFrontEnd,
  regionBytes,
  u32s,
  USER_ADDRESS,
  waitUntil,
} from "../support/front_end.ts";
import { processTest, until } from "../support/processes.ts";
import { type Attack, withTwoGuests } from "../support/two_guests.ts";

/** Where {@link RawFrontEnd.startRing} puts the available ring of ring 1. */
const AVAILABLE = 0x4000 + 0x2000;

/** A front end whose ring 1 has more buffers than it can hold: the device wants a reset, and both call and error are told. */
async function runBroken(front: RawFrontEnd, request: number, fd: Fd): Promise<void> {
  using memory = createSealedMemory("vmsg-test", MEMORY_SIZE);
  using guest = mapShared(memory.number, MEMORY_SIZE);
  using kick = createEventFd();
  await front.setUp(memory);
  front.send(request, u32s(1, 0), [fd]);
  new DataView(guest.buffer).setUint16(AVAILABLE + 2, 1, true);
  front.startRing(1, kick);
  signalEventFd(kick);
  await front.barrier();
  new DataView(guest.buffer).setUint16(AVAILABLE + 2, 30_000, true);
  signalEventFd(kick);
}

/** A ring that runs, whose eventfds the device side has, gets another kick or call: so has the device side. */
async function runNotified(front: RawFrontEnd, request: number, fd: Fd): Promise<void> {
  using memory = createSealedMemory("vmsg-test", MEMORY_SIZE);
  using guest = mapShared(memory.number, MEMORY_SIZE);
  using kick = createEventFd();
  using call = createEventFd();
  await front.setUp(memory);
  front.send(Request.SET_VRING_CALL, u32s(1, 0), [call]);
  front.startRing(1, kick);
  await front.barrier();
  front.send(request, u32s(1, 0), [fd]);
  await front.barrier();
  // Buffers of no length are used, and called for.
  const view = new DataView(guest.buffer);
  for (let n = 1; n <= 3; n++) {
    view.setUint16(AVAILABLE + 2, n, true);
    signalEventFd(request === Request.SET_VRING_KICK ? fd : kick);
    await front.barrier();
  }
}

const CUT_OFF = /memory that a peer shares was cut off/;

/** What is done with the descriptor. */
const ROLES: Readonly<Record<string, (front: RawFrontEnd, fd: Fd) => Promise<void> | void>> = {
  memory: async (front, fd) => {
    using kick = createEventFd();
    await front.setUp(fd);
    front.startRing(0, kick);
    signalEventFd(kick);
  },
  kick: async (front, fd) => {
    using memory = createSealedMemory("vmsg-test", MEMORY_SIZE);
    await front.setUp(memory);
    front.startRing(0, fd);
  },
  call: (front, fd) => runBroken(front, Request.SET_VRING_CALL, fd),
  "notifier, its kick": (front, fd) => runNotified(front, Request.SET_VRING_KICK, fd),
  "notifier, its call": (front, fd) => runNotified(front, Request.SET_VRING_CALL, fd),
  error: (front, fd) => runBroken(front, Request.SET_VRING_ERR, fd),
  "back-end channel": (front, fd) => front.send(Request.SET_BACKEND_REQ_FD, new Uint8Array(), [fd]),
  "a region that is added": (front, fd) => {
    const region = regionBytes(0, MEMORY_SIZE, USER_ADDRESS, 0);
    front.send(Request.ADD_MEM_REG, new Uint8Array([...u32s(0, 0), ...region]), [fd]);
  },
};

/** Descriptors of a process, and what it has mapped of files of the test's. */
function heldBy(pid: number): { fds: number; maps: number } {
  const fds = [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
  const maps = Deno.readTextFileSync(`/proc/${pid}/maps`).split("\n")
    .filter((line) => /vmsg-test|hugepage|fuse/.test(line)).length;
  return { fds, maps };
}

async function play(attack: Attack, role: keyof typeof ROLES, fd: Fd): Promise<void> {
  using front = attack.connect();
  try {
    await ROLES[role]!(front, fd);
    await front.barrier();
    // Long enough for what was accepted to be used.
    await attack.reactor.sleep(20);
  } catch (error) {
    assert(/hung up|EPIPE|ECONNRESET/.test(String(error)), String(error));
  }
}

processTest(
  "two guests: no kind of descriptor in any role disturbs the other, and nothing of it stays",
  (vmsg) =>
    withTwoGuests(vmsg, async (guests) => {
      const processes = { proxy: guests.proxy.pid, device: guests.device.pid };
      // The first that is closed elsewhere starts threads that stay.
      const held = () => Object.values(processes).map(heldBy);
      let before = held();
      {
        await using kinds = await everyKind(vmsg.directory, MEMORY_SIZE);
        await guests.attack((attack) => play(attack, "memory", kinds.fds.get("sealed memfd")!));
        await guests.answered(1);
        // All of the first one's is given back by then.
        await guests.proxy.waitFor(/; waiting for a front end/);
        await until(() => held().every(({ maps }) => maps === 0));
        before = held();
        for (const role of Object.keys(ROLES)) {
          for (const [kind, fd] of kinds.fds) {
            await guests.attack((attack) => play(attack, role, fd));
            await guests.answered(1).catch((error) => {
              throw new Error(`${kind} as ${role}: ${error.message}`);
            });
          }
        }
      }
      await guests.answered();
      const isBack = () =>
        held().every(({ fds, maps }, i) => fds <= before[i]!.fds && maps <= before[i]!.maps);
      await until(isBack).catch(() => assertEquals(held(), before));
    }),
);

/** As {@link processTest}, where there is a guard (memory_guard.ts): elsewhere both sides end, as docs/security.md has it. */
const guardedTest: typeof processTest = (name, fn) => {
  if (Deno.build.arch === "x86_64") processTest(name, fn);
  else Deno.test.ignore(name, () => {});
};

guardedTest(
  "two guests: memory that is cut off under running rings is one guest's own loss",
  (vmsg) =>
    withTwoGuests(vmsg, async (guests) => {
      await guests.attack(async ({ connect, reactor }) => {
        using memory = new Fd(check(libc.memfd_create(cString("vmsg-test"), 0), "memfd_create"));
        resizeFile(memory, MEMORY_SIZE);
        using kick = createEventFd();
        const front = connect();
        await front.setUp(memory);
        for (const index of [0, 1]) front.startRing(index, kick);
        await front.barrier();
        resizeFile(memory, 0);
        const isTold = () => guests.device.stderr.some((line) => CUT_OFF.test(line));
        await waitUntil(reactor, () => (signalEventFd(kick), isTold()));
        for (let i = 0; i < 20; i++) {
          signalEventFd(kick);
          await reactor.sleep(5);
        }
      });
      await guests.answered();
    }),
);

processTest(
  "two guests: with --memory-files sealed memory without seals is refused",
  (vmsg) =>
    withTwoGuests(vmsg, async (guests) => {
      await guests.attack(async ({ connect }) => {
        using memory = new Fd(check(libc.memfd_create(cString("vmsg-test"), 0), "memfd_create"));
        resizeFile(memory, MEMORY_SIZE);
        await assertRejects(() => connect().setUp(memory));
      });
      await guests.proxy.waitFor(/the memory can be cut off: --memory-files sealed wants seals/);
      await guests.answered(1);
    }, { proxy: ["--memory-files", "sealed"] }),
);

guardedTest("a queue file that is cut off ends neither side", async (vmsg) => {
  const bus = ["--bus", "linux-user,socket=lu.sock"];
  const device = await vmsg.start("device", ...bus, "--device", "net,responder");
  const proxy = await vmsg.start("proxy", ...bus, "--vhost-user", "socket=a.sock");
  await proxy.waitFor(/a vmsg device side is there/);
  for (const side of ["driver", "device"]) {
    Deno.truncateSync(`${vmsg.directory}/queue-linux-user-${side}`, 0);
  }
  for (const process of [device, proxy]) {
    await process.waitFor(CUT_OFF);
    assertEquals((await process.end("SIGTERM")).code, 0);
  }
});
