import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { Side } from "../../src/bus/bus.ts";
import { LinuxUserBus, type LinuxUserOptions } from "../../src/bus/linux_user.ts";
import { SpscQueue } from "../../src/bus/spsc_queue.ts";
import { allocate } from "../../src/linux/arena.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { openFile, resizeFile, tryLockByte } from "../../src/linux/fd.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { type Clock, MONOTONIC } from "../../src/linux/clock.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { connectUnix, listenUnix, type UnixStream } from "../../src/linux/unix_socket.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind } from "../../src/message/message.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { RawPeer } from "../support/raw_peer.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const FILE_SIZE = 262272;
const MODES = {
  v1: { lock: true, discardOnAttach: true, ringPerMessage: false },
  proto: { lock: false, discardOnAttach: false, ringPerMessage: true },
} as const;

interface Rig {
  readonly reactor: Reactor;
  readonly directory: string;
  readonly lines: string[];
  /** Makes an end and opens it; closed after the test at the latest. */
  open(side: Side, options?: Partial<LinuxUserOptions> & { dialect?: "v1" | "proto" }): RawPeer;
  /** Waits, in turns of a millisecond, until something is so. */
  wait(condition: () => boolean): Promise<void>;
}

/** How long anything is waited for: of the reactor's time, and long enough where that is the real one. */
const TIMEOUT_MS = 60_000;

/** @param clock the real one where another process is in it */
function withRig(
  body: (rig: Rig) => Promise<void>,
  clock: Clock = new VirtualClock(),
): Promise<void> {
  return withDirectory(async (directory) => {
    using reactor = new Reactor(clock);
    using stack = new DisposableStack();
    const lines: string[] = [];
    const rig: Rig = {
      reactor,
      directory,
      lines,
      open(side, { dialect = "v1", ...options } = {}) {
        const bus = stack.use(
          new LinuxUserBus(side, reactor, {
            name: "test",
            directory,
            socket: `${directory}/socket`,
            listen: side === "device",
            wait: true,
            reset: false,
            ...MODES[dialect],
            log: (line) => lines.push(line),
            ...options,
          }),
        );
        const peer = new RawPeer(reactor, bus, codecFor(dialect));
        peer.open();
        return peer;
      },
      async wait(condition) {
        const endMs = reactor.now() + TIMEOUT_MS;
        while (!condition()) {
          if (reactor.now() > endMs) throw new Error(`never so: ${condition}`);
          await reactor.sleep(1);
        }
      },
    };
    await reactor.until(body(rig));
  });
}

const bothAttached = (a: RawPeer, b: RawPeer) => () => a.bus.isAttached && b.bus.isAttached;

function filesOf(directory: string) {
  return ["driver", "device"].map((side) => `${directory}/queue-test-${side}`);
}

/** The peer of the prototype: maps the files, and rings with whatever bytes it likes. */
class Prototype implements Disposable {
  readonly #stack = new DisposableStack();
  readonly outgoing: SpscQueue;
  readonly incoming: SpscQueue;
  readonly stream: UnixStream;
  readonly #bytes = allocate(256);

  constructor(directory: string, side: Side, stream: UnixStream) {
    this.stream = this.#stack.use(stream);
    const queues = filesOf(directory).map((path) => {
      using fd = openFile(path);
      return this.#stack.use(mapShared(fd.number, FILE_SIZE));
    }).map((mapping) => new SpscQueue(mapping, 0, FILE_SIZE));
    const [driver, device] = queues;
    [this.outgoing, this.incoming] = side === "driver" ? [driver!, device!] : [device!, driver!];
    this.outgoing.attachProducer();
    this.incoming.attachConsumer(false);
  }

  /** An EVENT_AVAIL or EVENT_USED of `proto`. */
  event(id: number, queue: number): void {
    const at = this.outgoing.claim();
    for (let i = 0; i < 64; i++) this.outgoing.view.setUint8(at + i, 0xaa);
    for (let i = 0; i < 40; i++) this.outgoing.view.setUint8(at + i, 0);
    this.outgoing.view.setUint8(at + 1, id);
    this.outgoing.view.setUint8(at + 4, queue);
    this.outgoing.publish();
  }

  ring(...bytes: number[]): void {
    this.#bytes.bytes.set(bytes);
    this.stream.send(this.#bytes.address, bytes.length);
  }

  /** All notification bytes that have come. */
  heard(): number[] {
    const heard: number[] = [];
    for (;;) {
      const count = this.stream.receive(this.#bytes.address, 256);
      if (count <= 0) return heard;
      heard.push(...this.#bytes.bytes.subarray(0, count));
    }
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

cleanTest(
  "linux-user 4.2: names, size and mode of the queue files",
  () =>
    withRig(({ open, directory }) => {
      open("device");
      for (const path of filesOf(directory)) {
        const { size, mode } = Deno.statSync(path);
        assertEquals([size, mode! & 0o777], [FILE_SIZE, 0o600]);
      }
      assertEquals([...Deno.readDirSync(directory)].map(({ name }) => name).sort(), [
        "queue-test-device",
        "queue-test-driver",
        "socket",
      ]);
      return Promise.resolve();
    }),
);

for (const first of ["driver", "device"] as const) {
  for (const listener of ["driver", "device"] as const) {
    cleanTest(
      `linux-user: ${first} first, ${listener} listens, both find each other`,
      () =>
        withRig(async ({ open, wait, lines, directory }) => {
          const sides = first === "driver"
            ? ["driver", "device"] as const
            : ["device", "driver"] as const;
          const [a, b] = sides.map((side) => open(side, { listen: side === listener }));
          await wait(bothAttached(a!, b!));
          a!.send(Kind.PING, (m) => m.data = 5);
          assertEquals((await b!.nextOf(Kind.PING)).data, 5);
          b!.send(Kind.PING, (m) => m.data = 6);
          assertEquals((await a!.nextOf(Kind.PING)).data, 6);
          const waits = `linux-user bus ${directory}/socket: waiting for the `;
          assert(lines.includes(`${waits}${first === "driver" ? "device" : "driver"} side`));
          assert(lines.length <= 2, "each side says once that it waits");
        }),
    );
  }
}

cleanTest(
  "linux-user: the same role twice is refused, the first one stays whole",
  () =>
    withRig(async ({ open, wait }) => {
      const device = open("device");
      const driver = open("driver");
      await wait(bothAttached(driver, device));
      for (const side of ["driver", "device"] as const) {
        const error = assertThrows(() => open(side), VmsgError, `the ${side} side already`);
        assertEquals(error.code, "BUS_IN_USE");
      }
      driver.send(Kind.PING, (m) => m.data = 1);
      assertEquals((await device.nextOf(Kind.PING)).data, 1);
      // The refused ones hold no lock: a role is free as soon as its owner is gone.
      driver.bus[Symbol.dispose]();
      await wait(() => !device.bus.isAttached);
      const again = open("driver");
      await wait(bothAttached(again, device));
    }),
);

cleanTest(
  "linux-user: a second peer is turned away, and harms nobody",
  () =>
    withRig(async ({ open, wait, directory, lines, reactor }) => {
      const device = open("device");
      const driver = open("driver");
      await wait(bothAttached(driver, device));
      for (let n = 0; n < 5; n++) {
        using second = connectUnix(`${directory}/socket`);
        await reactor.sleep(2);
        assertEquals(second!.receive(allocate(16).address, 1), 0, "closed at once");
      }
      assertEquals(
        lines.filter((line) => line.includes("turned a second driver side away")).length,
        5,
      );
      driver.send(Kind.PING, (m) => m.data = 2);
      assertEquals((await device.nextOf(Kind.PING)).data, 2);
      assertEquals([device.attachments, driver.attachments], [1, 1]);
    }),
);

cleanTest(
  "linux-user: a client that says nothing makes room for the next, after a while",
  () =>
    withRig(async ({ open, wait, directory, lines, reactor }) => {
      const device = open("device");
      using idle = connectUnix(`${directory}/socket`);
      await wait(() => device.bus.isAttached);
      // It rings, but there is no message.
      idle!.send(allocate(16).address, 1);
      const driver = open("driver");
      await reactor.sleep(4000);
      assertEquals(device.attachments, 1);
      await wait(() => device.attachments === 2 && driver.bus.isAttached);
      assertEquals(idle!.receive(allocate(16).address, 1), 0, "closed");
      assertEquals(device.detachReasons, ["it said nothing, and another one is there"]);
      // Who has spoken keeps its place, however long ago.
      driver.send(Kind.PING, (m) => m.data = 3);
      assertEquals((await device.nextOf(Kind.PING)).data, 3);
      await reactor.sleep(60_000);
      using second = connectUnix(`${directory}/socket`);
      await reactor.sleep(2);
      assertEquals(second!.receive(allocate(16).address, 1), 0, "closed at once");
      assertEquals(device.attachments, 2);
      assert(lines.some((line) => line.includes("turned a second driver side away")));
    }),
);

cleanTest(
  "linux-user: clients that come and go attach rarely, and keep nobody out",
  () =>
    withRig(async ({ open, wait, directory, reactor }) => {
      const device = open("device");
      // Gone before they are seen, and gone as soon as they are let in.
      for (let n = 0; n < 100; n++) connectUnix(`${directory}/socket`)?.[Symbol.dispose]();
      await reactor.sleep(1);
      assertEquals(device.attachments, 0);
      const endMs = reactor.now() + 2000;
      while (reactor.now() < endMs) {
        using _stream = connectUnix(`${directory}/socket`);
        await reactor.sleep(1);
      }
      assert(device.attachments > 3 && device.attachments < 45, `${device.attachments} times`);
      const driver = open("driver");
      await wait(bothAttached(driver, device));
      driver.send(Kind.PING, (m) => m.data = 4);
      assertEquals((await device.nextOf(Kind.PING)).data, 4);
    }),
);

cleanTest(
  "linux-user v1: who holds the files' lock is named, and not waited for for ever",
  () =>
    withRig(({ open, directory }) => {
      open("device").bus[Symbol.dispose]();
      using hostile = openFile(filesOf(directory)[0]!);
      assertEquals(tryLockByte(hostile, 0), true);
      const startMs = MONOTONIC.now();
      const error = assertThrows(() => open("device"), VmsgError, "has locked");
      assertEquals(error.code, "BUS_IN_USE");
      assertMatch(error.message, new RegExp(`process ${Deno.pid} has locked ${directory}/queue-`));
      assert(MONOTONIC.now() - startMs < TIMEOUT_MS);
      return Promise.resolve();
    }),
);

cleanTest(
  "linux-user v1: whoever is alone empties the files",
  () =>
    withRig(async ({ open, directory }) => {
      for (const path of filesOf(directory)) {
        Deno.writeFileSync(path, new Uint8Array(FILE_SIZE).fill(0xee));
      }
      open("device");
      for (const path of filesOf(directory)) {
        assertEquals(Deno.readFileSync(path).every((byte) => byte === 0), true);
      }
      await Promise.resolve();
    }),
);

cleanTest(
  "linux-user v1: whoever is not alone leaves the files alone, also with reset",
  () =>
    withRig(async ({ open, wait, directory }) => {
      const device = open("device");
      const driver = open("driver");
      await wait(bothAttached(driver, device));
      driver.send(Kind.PING);
      await device.next();
      driver.bus[Symbol.dispose]();
      await wait(() => !device.bus.isAttached);
      const before = Deno.readFileSync(filesOf(directory)[0]!);
      assertEquals(before[0], 1, "the head of the driver's queue");
      const again = open("driver", { reset: true });
      assertEquals(Deno.readFileSync(filesOf(directory)[0]!), before);
      await wait(bothAttached(again, device));
      again.send(Kind.PING, (m) => m.data = 3);
      assertEquals((await device.nextOf(Kind.PING)).data, 3);
    }),
);

cleanTest(
  "linux-user: files of another size are refused, and keep it; empty ones were just made",
  () =>
    withRig(({ open, directory }) => {
      const [driver, device] = filesOf(directory);
      const make = (path: string, size: number) =>
        Deno.writeFileSync(path, new Uint8Array(size), { mode: 0o600 });
      make(driver!, 0);
      for (const size of [100, FILE_SIZE + 64]) {
        make(device!, size);
        assertThrows(() => open("device"), VmsgError, `has ${size} bytes, not ${FILE_SIZE}`);
        assertEquals(Deno.statSync(device!).size, size);
      }
      make(device!, 0);
      open("device");
      for (const path of [driver!, device!]) assertEquals(Deno.statSync(path).size, FILE_SIZE);
      return Promise.resolve();
    }),
);

cleanTest(
  "linux-user v1: leftovers of a dead peer are discarded on attach",
  () =>
    withRig(async ({ open, wait, directory }) => {
      const device = open("device");
      const driver = open("driver");
      await wait(bothAttached(driver, device));
      driver.bus[Symbol.dispose]();
      await wait(() => !device.bus.isAttached);
      // What a process writes in its last moment, unannounced.
      {
        using fd = openFile(filesOf(directory)[0]!);
        using mapping = mapShared(fd.number, FILE_SIZE);
        const queue = new SpscQueue(mapping, 0, FILE_SIZE);
        queue.attachProducer();
        for (let n = 0; n < 10; n++) {
          queue.claim();
          queue.publish();
        }
      }
      const again = open("driver");
      await wait(bothAttached(again, device));
      again.send(Kind.PING, (m) => m.data = 9);
      // Ten empty slots would be nonsense to RawPeer, which throws.
      assertEquals((await device.nextOf(Kind.PING)).data, 9);
      assertEquals(device.attachments, 2);
    }),
);

cleanTest(
  "linux-user: a peer that closes is waited for, whoever listens",
  () =>
    withRig(async ({ open, wait, lines }) => {
      for (const listens of ["driver", "device"] as const) {
        const dialect = "v1";
        let device = open("device", { dialect, listen: listens === "device" });
        const driver = open("driver", { dialect, listen: listens === "driver" });
        await wait(bothAttached(driver, device));
        for (let round = 0; round < 2; round++) {
          lines.length = 0;
          device.bus[Symbol.dispose]();
          await wait(() => !driver.bus.isAttached);
          assertEquals(
            lines.filter((line) => line.endsWith("waiting for the device side")).length,
            1,
          );
          device = open("device", { dialect, listen: listens === "device" });
          await wait(bothAttached(driver, device));
          driver.send(Kind.PING, (m) => m.data = round);
          assertEquals((await device.nextOf(Kind.PING)).data, round);
        }
        assertEquals([driver.attachments, driver.detachReasons.length], [3, 2]);
        driver.bus[Symbol.dispose]();
        device.bus[Symbol.dispose]();
      }
    }),
);

cleanTest(
  "linux-user: wait=off fails at once when nobody is there",
  () =>
    withRig(async ({ open }) => {
      const error = assertThrows(() => open("driver", { wait: false }), VmsgError, "wait=off");
      assertEquals(error.code, "NOBODY_THERE");
      await Promise.resolve();
    }),
);

cleanTest(
  "linux-user: wait=off is fine when somebody is there",
  () =>
    withRig(async ({ open, wait }) => {
      const device = open("device");
      const driver = open("driver", { wait: false });
      assertEquals(driver.bus.isAttached, true);
      await wait(() => device.bus.isAttached);
    }),
);

cleanTest(
  "linux-user: a path that is taken is an error, and nothing of the bus stays",
  () =>
    withRig(async ({ open, directory, wait }) => {
      using _other = listenUnix(`${directory}/socket`);
      assertEquals(assertThrows(() => open("device"), VmsgError).code, "SOCKET_IN_USE");
      await wait(() => true);
    }),
);

cleanTest(
  "linux-user proto: no locks, queues as found, 0xED for every message (P11)",
  () =>
    withRig(async ({ open, wait, directory }) => {
      // What the peer left there before anybody listened.
      for (const path of filesOf(directory)) {
        using fd = openFile(path, 0o100);
        resizeFile(fd, FILE_SIZE);
      }
      {
        using early = listenUnix(`${directory}/early`);
        using peer = new Prototype(directory, "driver", connectUnix(early.path)!);
        peer.event(0x11, 1);
        peer.event(0x11, 2);
      }
      const device = open("device", { dialect: "proto" });
      using peer = new Prototype(directory, "driver", connectUnix(`${directory}/socket`)!);
      await wait(() => device.bus.isAttached);
      // Found in the queue, and no byte announced it to us.
      assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, 1);
      assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, 2);
      // Any bytes, several messages for one, none for none.
      peer.ring(0, 1, 2, 3);
      peer.event(0x11, 3);
      peer.event(0x11, 4);
      peer.ring(0x55);
      assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, 3);
      assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, 4);
      peer.ring(...new Array(250).fill(0xff));
      peer.event(0x11, 5);
      peer.ring(0xed);
      assertEquals((await device.nextOf(Kind.EVENT_AVAIL)).index, 5);
      peer.heard();
      for (let n = 0; n < 3; n++) device.send(Kind.EVENT_USED, (m) => m.index = n);
      assertEquals(peer.heard(), [0xed, 0xed, 0xed]);
      const slot = new Uint32Array(16);
      for (let n = 0; n < 3; n++) {
        assertEquals(peer.incoming.receive(slot), true);
        assertEquals([...new Uint8Array(slot.buffer, 0, 6)], [0, 0x12, 0, 0, n, 0]);
      }
      // No lock: a second process of the same role would not be refused.
      open("device", { dialect: "proto", socket: `${directory}/other` });
    }),
);

cleanTest(
  "linux-user proto: what the next peer has queued is not taken for the last one's",
  () =>
    withRig(async ({ open, wait, directory }) => {
      const device = open("device", { dialect: "proto" });
      const connect = () => new Prototype(directory, "driver", connectUnix(`${directory}/socket`)!);
      const heard: [index: number, attachment: number][] = [];
      device.onMessage = ({ index }) => void heard.push([index, device.attachments]);
      using first = connect();
      await wait(() => device.bus.isAttached);
      first.event(0x11, 1);
      first.ring(0xed);
      await wait(() => heard.length === 1);
      // All of it before the device looks again.
      first.ring(0xed);
      first[Symbol.dispose]();
      using second = connect();
      second.event(0x11, 2);
      second.ring(0xed);
      await wait(() => heard.length === 2);
      assertEquals(heard, [[1, 1], [2, 2]]);
    }),
);

cleanTest(
  "linux-user proto: reset empties the queues, without cutting them off",
  () =>
    withRig(async ({ open, wait, directory }) => {
      for (const path of filesOf(directory)) {
        Deno.writeFileSync(path, new Uint8Array(FILE_SIZE).fill(0));
      }
      using early = listenUnix(`${directory}/early`);
      using living = new Prototype(directory, "driver", connectUnix(early.path)!);
      living.event(0x11, 1);
      const inode = Deno.statSync(filesOf(directory)[0]!).ino;
      const device = open("device", { dialect: "proto", reset: true });
      assertEquals(Deno.statSync(filesOf(directory)[0]!).ino, inode);
      assertEquals(living.outgoing.view.getUint32(0, true), 0);
      assertEquals(living.outgoing.view.getUint8(128 + 1), 0, "mapped memory is still there");
      using _stream = connectUnix(`${directory}/socket`);
      await wait(() => device.bus.isAttached);
      assertEquals(device.messages, []);
    }),
);

cleanTest(
  "linux-user: a process that is killed is replaced by the next one",
  async () => {
    const ended: Promise<unknown>[] = [];
    await withRig(async ({ open, wait, directory }) => {
      const driver = open("driver");
      const script = new URL("./linux_user_child.ts", import.meta.url);
      const config = new URL("../../deno.json", import.meta.url).pathname;
      const spawn = () =>
        new Deno.Command(Deno.execPath(), {
          args: ["run", "--quiet", "--allow-all", "--config", config, script.pathname, directory],
          stdin: "null",
        }).spawn();
      for (let round = 1; round <= 2; round++) {
        const child = spawn();
        ended.push(child.status);
        try {
          await wait(() => driver.bus.isAttached);
          // Each side drops what it finds when it attaches, and nobody knows when the other one did: what is
          // said meanwhile may be lost, and is said again.
          let isAnswered = false;
          driver.onMessage = ({ kind, response, data }) => {
            assertEquals([kind, response, data], [Kind.PING, true, round]);
            isAnswered = true;
          };
          let looks = 0;
          await wait(() => {
            if (looks++ % 100 === 0) driver.send(Kind.PING, (m) => m.data = round);
            return isAnswered;
          });
        } finally {
          child.kill("SIGKILL");
        }
        await wait(() => !driver.bus.isAttached);
        assertEquals(driver.detachReasons.length, round);
      }
    }, MONOTONIC);
    // Deno waits for them in its own loop, which stands still in the reactor's.
    await Promise.all(ended);
  },
);
