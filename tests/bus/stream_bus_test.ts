import { assert, assertEquals, assertThrows } from "@std/assert";
import { RECEIVE_BUDGET } from "../../src/bus/bus.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { SpscQueue, spscSize } from "../../src/bus/spsc_queue.ts";
import { MAX_WAITING_FDS, StreamBus } from "../../src/bus/stream_bus.ts";
import { allocate } from "../../src/linux/arena.ts";
import { createSealedMemory, fileIdentity } from "../../src/linux/fd.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { unixStreamPair } from "../../src/linux/unix_socket.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, Message } from "../../src/message/message.ts";
import { cleanTest } from "../support/leaks.ts";
import { RawPeer } from "../support/raw_peer.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const V1 = codecFor("v1");

interface Rig {
  readonly reactor: Reactor;
  readonly driver: RawPeer;
  readonly device: RawPeer;
}

async function withBus(
  body: (rig: Rig) => void | Promise<void>,
  options = { discardOnAttach: false, ringPerMessage: false },
  capacity = 64,
): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor, options, capacity);
  const driver = new RawPeer(reactor, pair.driver, V1);
  const device = new RawPeer(reactor, pair.device, V1);
  driver.open();
  device.open();
  await body({ reactor, driver, device });
}

cleanTest(
  "bus: messages both ways, in order",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        for (let n = 0; n < 10; n++) driver.send(Kind.EVENT_AVAIL, (m) => m.index = n);
        device.send(Kind.EVENT_USED, (m) => m.index = 77);
        for (let n = 0; n < 10; n++) assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, n);
        assertEquals((await driver.nextOf(Kind.EVENT_USED)).index, 77);
      })())
    ),
);

cleanTest(
  "bus: a slot tail is zero, whatever the slot held before (B16)",
  () =>
    withBus(({ driver }) => {
      const { view } = driver.bus;
      for (let at = 128; at < view.byteLength; at++) view.setUint8(at, 0xff);
      driver.send(Kind.EVENT_AVAIL);
      const tail = new Uint8Array(view.buffer, view.byteOffset + 128 + 16, 48);
      assertEquals([...tail], new Array(48).fill(0));
    }),
);

cleanTest("bus: claim gives -1 when full, and leaves what is reserved", () =>
  withBus(
    ({ driver: { bus } }) => {
      for (let n = 0; n < 5; n++) {
        assert(bus.claim(2) >= 0);
        bus.send();
      }
      // 7 fit, 5 are in, 2 are free.
      assertEquals([bus.claim(2), bus.claim(3)], [-1, -1]);
      assert(bus.claim(1) >= 0);
      bus.send();
      assertEquals(bus.claim(1), -1);
      assert(bus.claim() >= 0);
      bus.send();
      assertEquals(bus.claim(), -1);
      assertThrows(() => bus.send(), Error, "send without claim");
      assertThrows(() => bus.sendWithNext(), Error, "send without claim");
    },
    undefined,
    8,
  ));

cleanTest(
  "bus: one doorbell a turn, or one a message for peers of the prototype (P11)",
  async () => {
    for (const [ringPerMessage, bytes] of [[false, 1], [true, 5]] as const) {
      using reactor = new Reactor(new VirtualClock());
      using pair = inProcessBus(reactor, { discardOnAttach: false, ringPerMessage });
      const driver = new RawPeer(reactor, pair.driver, V1);
      const device = new RawPeer(reactor, pair.device, V1);
      driver.open();
      let rings = 0;
      // Counts at the place where a subclass rings.
      const bus = pair.driver as unknown as { ring(): void };
      const ring = bus.ring.bind(bus);
      bus.ring = () => {
        rings++;
        ring();
      };
      device.open();
      await reactor.until((async () => {
        for (let n = 0; n < 5; n++) driver.send(Kind.EVENT_AVAIL);
        for (let n = 0; n < 5; n++) await device.next();
      })());
      assertEquals(rings, bytes);
    }
  },
);

cleanTest("bus: a flood is received in batches, other work comes in between", () => {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor, undefined, 1024);
  const driver = new RawPeer(reactor, pair.driver, V1);
  driver.open();
  let received = 0;
  const batches: number[] = [];
  pair.device.open({
    attached() {},
    detached() {},
    received: () => received++,
  });
  for (let n = 0; n < 1000; n++) driver.send(Kind.EVENT_AVAIL);
  const watch = {
    run: () => {
      batches.push(received);
      return received < 1000;
    },
  };
  reactor.schedule(watch);
  while (received < 1000) reactor.turn();
  assert(batches.length >= 2, "everything in one turn");
  batches.reduce((before, now) => {
    // The doorbell's batch and the task's batch may fall into one turn.
    assert(now - before <= 2 * RECEIVE_BUDGET, `${now - before} messages in one turn`);
    return now;
  }, 0);
});

cleanTest("bus: what is found at the attach is used without a doorbell, or discarded", async () => {
  for (const discardOnAttach of [false, true]) {
    using reactor = new Reactor(new VirtualClock());
    using pair = inProcessBus(reactor, { discardOnAttach, ringPerMessage: false });
    const driver = new RawPeer(reactor, pair.driver, V1);
    const device = new RawPeer(reactor, pair.device, V1);
    driver.open();
    const silent = pair.driver as unknown as { ring(): void };
    const { ring } = silent;
    silent.ring = () => {};
    driver.send(Kind.EVENT_AVAIL, (m) => m.index = 1);
    device.open();
    await reactor.until((async () => {
      if (discardOnAttach) {
        silent.ring = ring;
        driver.send(Kind.EVENT_AVAIL, (m) => m.index = 2);
      }
      assertEquals((await device.next()).index, discardOnAttach ? 2 : 1);
    })());
  }
});

cleanTest(
  "bus: the peer's farewell detaches, then nothing can be claimed",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        driver.bus[Symbol.dispose]();
        assertEquals(driver.bus.claim(), -1, "a closed bus gives no slot either");
        assertEquals(driver.detachReasons, [], "whoever closes knows it");
        await reactor.sleep(0);
        while (device.bus.isAttached) await reactor.sleep(1);
        assertEquals(device.detachReasons, ["the other side closed the connection"]);
        assertEquals(device.bus.claim(), -1);
      })())
    ),
);

cleanTest(
  "bus: drop tells the listener once, and the peer sees the end",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        device.bus.drop("it broke the rules");
        device.bus.drop("again");
        assertEquals(device.detachReasons, ["it broke the rules"]);
        while (driver.bus.isAttached) await reactor.sleep(1);
        assertEquals(driver.detachReasons, ["the other side closed the connection"]);
      })())
    ),
);

cleanTest(
  "bus: dropped by the listener in the middle of a batch, the rest is not delivered",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        let count = 0;
        device.onMessage = () => {
          if (++count === 2) device.bus.drop("enough");
        };
        for (let n = 0; n < 5; n++) driver.send(Kind.EVENT_AVAIL);
        while (device.bus.isAttached) await reactor.sleep(1);
        await reactor.sleep(1);
        assertEquals(count, 2);
      })())
    ),
);

cleanTest(
  "descriptors: by ordinal, each once, there when their message arrives",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        using files = new DisposableStack();
        const fds = [0, 1, 2].map(() => files.use(createSealedMemory("vmsg-test", 4096)));
        for (const [n, fd] of fds.entries()) {
          assertEquals(driver.bus.sendFd(fd), n);
          driver.send(Kind.ADD_MEMORY, (m) => m.ordinal = n);
        }
        for (let n = 0; n < 3; n++) await device.nextOf(Kind.ADD_MEMORY);
        for (const n of [2, 0, 1]) {
          using fd = device.bus.takeFd(n);
          assertEquals(fd && fileIdentity(fd), fileIdentity(fds[n]!));
          assertEquals(device.bus.takeFd(n), undefined);
        }
        assertEquals(device.bus.takeFd(3), undefined);
      })())
    ),
);

cleanTest(
  "descriptors: those without a message are closed with the attachment",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        using fd = createSealedMemory("vmsg-test", 4096);
        for (let n = 0; n < 5; n++) driver.bus.sendFd(fd);
        driver.send(Kind.EVENT_AVAIL);
        await device.next();
        // cleanTest counts what is left when both ends are gone.
      })())
    ),
);

cleanTest(
  "descriptors: more than may wait end the attachment, and none is leaked",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        using fd = createSealedMemory("vmsg-test", 4096);
        for (let n = 0; n < MAX_WAITING_FDS; n++) assertEquals(driver.bus.sendFd(fd), n);
        driver.send(Kind.EVENT_AVAIL);
        await device.next();
        assertEquals(device.bus.isAttached, true);
        driver.bus.sendFd(fd);
        while (device.bus.isAttached) await reactor.sleep(1);
        assertEquals(device.detachReasons, [
          "the other side sent a file descriptor that nobody asked for",
        ]);
      })())
    ),
);

cleanTest(
  "descriptors: one or eight sent to a driver side are closed and end the attachment",
  () => {
    for (const count of [1, 8]) {
      using reactor = new Reactor(new VirtualClock());
      const [ours, theirs] = unixStreamPair();
      using peer = theirs;
      const size = spscSize(4);
      const memory = { address: 0n, buffer: new ArrayBuffer(2 * size), size: 2 * size };
      class TestBus extends StreamBus {
        readonly description = "test";
        protected override disconnected(): void {}
        start(): void {
          this.connected(ours);
        }
      }
      const options = { discardOnAttach: true, ringPerMessage: false };
      const queue = (at: number) => new SpscQueue(memory, at, size);
      using bus = new TestBus("driver", reactor, options, queue(0), queue(size));
      const listener = new RawPeer(reactor, bus, V1);
      listener.open();
      bus.start();
      using fd = createSealedMemory("vmsg-test", 4096);
      peer.send(allocate(16).address, 1, new Array(count).fill(fd));
      reactor.turn();
      assertEquals(listener.detachReasons, [
        "the other side sent a file descriptor that nobody asked for",
      ]);
    }
  },
);

cleanTest(
  "bus: a peer that writes bytes without end and publishes nothing does no harm",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        const bell = driver.bus as unknown as { ring(): void };
        for (let n = 0; n < 5000; n++) bell.ring();
        driver.send(Kind.EVENT_AVAIL, (m) => m.index = 3);
        assertEquals((await device.next()).index, 3);
        assertEquals(device.messages, []);
      })())
    ),
);

cleanTest(
  "bus: a hostile head moves nothing, later messages arrive",
  () =>
    withBus(({ reactor, driver, device }) =>
      reactor.until((async () => {
        const message = new Message();
        message.reset(Kind.EVENT_AVAIL, false);
        const head = driver.bus.view;
        head.setUint32(0, 0xffff_ffff, true);
        (driver.bus as unknown as { ring(): void }).ring();
        await reactor.sleep(1);
        assertEquals(device.messages, []);
        driver.put(message);
        await device.nextOf(Kind.EVENT_AVAIL);
      })())
    ),
);
