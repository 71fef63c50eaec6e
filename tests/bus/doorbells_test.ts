/** Doorbells by eventfd: agreed, heard, taken over from the socket and lost with it; and what a hostile peer sends as one. */

import { assert, assertEquals } from "@std/assert";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd, fileIdentity } from "../../src/linux/fd.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { UnixStream } from "../../src/linux/unix_socket.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import { everyKind } from "../support/descriptor_kinds.ts";
import { inProcessBus, type InProcessPair } from "../../src/bus/in_process_bus.ts";
import { cleanTest } from "../support/leaks.ts";
import { RawPeer } from "../support/raw_peer.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const V1 = codecFor("v1");

interface Rig {
  readonly reactor: Reactor;
  readonly pair: InProcessPair;
  readonly driver: RawPeer;
  readonly device: RawPeer;
}

function rigOf(stack: DisposableStack): Rig {
  const reactor = stack.use(new Reactor(new VirtualClock()));
  const pair = stack.use(inProcessBus(reactor));
  const driver = new RawPeer(reactor, pair.driver, V1);
  const device = new RawPeer(reactor, pair.device, V1);
  driver.open();
  device.open();
  return { reactor, pair, driver, device };
}

/** Both sides ring by eventfds. */
function changedOver(stack: DisposableStack): Rig {
  const rig = rigOf(stack);
  const ordinal = rig.pair.driver.offerDoorbells();
  rig.reactor.turn();
  assert(rig.pair.device.takeDoorbells(ordinal));
  rig.pair.driver.useDoorbells();
  return rig;
}

/** Counts what is sent on sockets meanwhile. */
function countSent(stack: DisposableStack): () => number {
  const { send } = UnixStream.prototype;
  stack.defer(() => UnixStream.prototype.send = send);
  let count = 0;
  UnixStream.prototype.send = function (...args) {
    count++;
    return send.apply(this, args);
  };
  return () => count;
}

cleanTest("doorbells: messages both ways, again and again, nothing on the socket", async () => {
  using stack = new DisposableStack();
  const { reactor, driver, device } = changedOver(stack);
  const sent = countSent(stack);
  await reactor.until((async () => {
    for (let n = 0; n < 300; n++) {
      driver.send(Kind.EVENT_AVAIL, (m) => m.index = n);
      assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, n);
      device.send(Kind.EVENT_USED, (m) => m.index = n);
      assertEquals((await driver.nextOf(Kind.EVENT_USED)).index, n);
    }
  })());
  assertEquals(sent(), 0);
});

cleanTest("doorbells: a message may be heard before the byte with its descriptor", () => {
  using stack = new DisposableStack();
  const { pair } = changedOver(stack);
  using memory = createSealedMemory("vmsg-test", 4096);
  const ordinal = pair.driver.sendFd(memory);
  // No turn in between: the byte is in the socket.
  using taken = pair.device.takeFd(ordinal);
  assert(taken !== undefined && fileIdentity(taken) === fileIdentity(memory));
});

cleanTest("doorbells: what was said last comes before the end of file", () => {
  using stack = new DisposableStack();
  const { reactor, pair, driver, device } = changedOver(stack);
  driver.send(Kind.EVENT_AVAIL, (m) => m.index = 7);
  pair.driver[Symbol.dispose]();
  reactor.turn();
  assertEquals(device.messages.map(({ index }) => index), [7]);
  assertEquals(device.detachReasons.length, 1);
});

cleanTest(
  "doorbells: a peer found gone while a descriptor is looked for is gone after the message",
  () => {
    using stack = new DisposableStack();
    const { reactor, pair, device } = changedOver(stack);
    using memory = createSealedMemory("vmsg-test", 4096);
    const ordinal = pair.driver.sendFd(memory);
    pair.driver[Symbol.dispose]();
    // As a handler does, which goes on to answer.
    using taken = pair.device.takeFd(ordinal);
    assert(taken !== undefined);
    assertEquals(pair.device.takeFd(ordinal + 1), undefined);
    assertEquals(device.detachReasons, []);
    reactor.turn();
    assertEquals(device.detachReasons.length, 1);
  },
);

cleanTest("doorbells: the next peer is rung by the socket until it has agreed, too", async () => {
  using stack = new DisposableStack();
  const { reactor, pair, driver, device } = changedOver(stack);
  pair.attachAgain();
  const sent = countSent(stack);
  await reactor.until((async () => {
    driver.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
    assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, 1);
  })());
  assertEquals(sent(), 1);
  const ordinal = pair.driver.offerDoorbells();
  reactor.turn();
  assert(pair.device.takeDoorbells(ordinal));
});

cleanTest("doorbells: two vmsg sides agree on them by themselves, and only once", async () => {
  using stack = new DisposableStack();
  const reactor = stack.use(new Reactor(new VirtualClock()));
  const pair = stack.use(inProcessBus(reactor));
  const lines: string[] = [];
  const log = createLog("test", "debug", (line) => lines.push(line));
  const device = stack.use(new DeviceSide({ reactor, bus: pair.device, codec: V1, log }));
  const driver = stack.use(new DriverSide({ reactor, bus: pair.driver, codec: V1, log }));
  device.open();
  driver.open();
  await reactor.until(reactor.sleep(1000));
  assertEquals(lines.filter((line) => line.includes("doorbells are eventfds")).length, 1);
  const sent = countSent(stack);
  // The heartbeat goes on.
  const before = driver.counters.received;
  await reactor.until(reactor.sleep(2000));
  assert(driver.counters.received > before && driver.peer === "vmsg");
  assertEquals(sent(), 0);
});

Deno.test("doorbells: what is no eventfd that counts is refused, and the socket goes on ringing", async () => {
  const directory = Deno.makeTempDirSync({ prefix: "vmsg-test-" });
  try {
    await using kinds = await everyKind(directory, 4096);
    for (const [kind, fd] of kinds.fds) {
      for (const which of [0, 1]) await offer(kind, fd, which);
    }
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

/** Offers a descriptor as one of the two, whose description is the peer's as well. */
async function offer(kind: string, fd: Fd, which: number): Promise<void> {
  using stack = new DisposableStack();
  const { reactor, pair, driver, device } = rigOf(stack);
  using good = createEventFd();
  const fds = which === 0 ? [fd, good] : [good, fd];
  const [ordinal] = fds.map((each) => pair.driver.sendFd(each));
  reactor.turn();
  assertEquals(pair.device.takeDoorbells(ordinal!), /^(full )?eventfd$/.test(kind), kind);
  await reactor.until((async () => {
    driver.send(Kind.EVENT_AVAIL, (m) => m.index = 5);
    assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, 5, kind);
    // A full count neither blocks who rings, nor wakes for ever who listens.
    for (let n = 0; n < 3; n++) device.send(Kind.EVENT_USED);
    await reactor.sleep(1);
  })());
}
