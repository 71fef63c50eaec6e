import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { type Clock, MONOTONIC } from "../../src/linux/clock.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, Fd, openFile } from "../../src/linux/fd.ts";
import { libc } from "../../src/linux/libc.ts";
import { PeerEvent } from "../../src/linux/peer_event.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { connectUnix, type UnixStream, unixStreamPair } from "../../src/linux/unix_socket.ts";
import { sendMessage } from "../../src/ivshmem/protocol.ts";
import {
  MAX_PEERS,
  openServerEnd,
  ServerEnd,
  SETUP_TIMEOUT_MS,
} from "../../src/ivshmem/server_end.ts";
import { storeRelease32 } from "../../src/memory/mod.ts";
import { everyKind, fillEventFd } from "../support/descriptor_kinds.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { leaveSocket } from "../support/left_socket.ts";
import { processTest } from "../support/processes.ts";
import { countOf, keptLog, PATIENT, wait, withServer } from "./support.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const F_SETFL = 4;
const scratch = allocate(64);

/** Says what it was told. */
class Told {
  rings = 0;
  readonly news: string[] = [];
  rung(): void {
    this.rings++;
  }
  joined(peer: number): void {
    this.news.push(`+${peer}`);
  }
  left(peer: number): void {
    this.news.push(`-${peer}`);
  }
}

/** A server by hand: its end of the stream. */
class ScriptedServer implements Disposable {
  readonly stream: UnixStream;
  readonly client: UnixStream;
  readonly #stack = new DisposableStack();

  constructor() {
    [this.stream, this.client] = unixStreamPair();
    this.#stack.use(this.stream);
  }

  own<T extends Disposable>(value: T): T {
    return this.#stack.use(value);
  }

  eventFd(): Fd {
    return this.own(createEventFd());
  }

  say(value: number, fd?: Fd): this {
    assertEquals(sendMessage(this.stream, { value, fd, sent: 0 }), "sent");
    return this;
  }

  /** Version, id 5, memory. */
  greet(size = 4096): this {
    return this.say(0).say(5).say(-1, this.own(createSealedMemory("vmsg-test", size)));
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

function endOn(server: ScriptedServer, lines: string[] = [], clock?: Clock): ServerEnd {
  return new ServerEnd(server.client, "x.sock", { log: keptLog(lines), clock: clock ?? MONOTONIC });
}

cleanTest(
  "server end: id, memory, peers, rings, joins and leaves",
  () =>
    withServer({ size: 8192 }, async ({ server, socket, join, wait, reactor }) => {
      const other = await join();
      // In one process the server has to have its turn before the end waits for it.
      const stream = connectUnix(socket)!;
      await wait(() => server.peers.length === 2);
      const lines: string[] = [];
      using end = new ServerEnd(stream, "iv.sock", { log: keptLog(lines) });
      assertEquals(end.description, "ivshmem server iv.sock");
      assertEquals([end.id, end.interrupts, end.isDeviceMemory], [1, true, false]);
      assertEquals([end.memory.size, end.pin(end.memory.address, 4096)], [8192, undefined]);
      assertEquals([...end.peers], [0]);

      const told = new Told();
      end.open(reactor, told);
      assertEquals(told.news, ["+0"]);
      assertThrows(() => end.open(reactor, told), Error, "twice");
      other.read();
      end.ring(0);
      end.ring(0);
      end.ring(77);
      assertEquals(other.fds.get(0)!.map(countOf), [2, 0]);
      for (const [vector, rings] of [[0, 1], [1, 2]] as const) {
        other.ring(1, vector);
        await wait(() => told.rings === rings);
      }
      end.ring(1);
      await wait(() => told.rings === 3);

      const third = await join();
      await wait(() => end.peers.has(2));
      end.ring(2);
      assertEquals(countOf(third.fds.get(2)![0]!), 1);
      other[Symbol.dispose]();
      await wait(() => !end.peers.has(0));
      end.ring(0);
      assertEquals(told.news, ["+0", "+2", "-0"]);
      await reactor.sleep(10);
      assertEquals([told.rings, lines], [3, []]);
    }),
);

cleanTest(
  "server end: it goes on when the server is gone",
  () =>
    withServer({}, async ({ server, socket, join, wait, reactor }) => {
      const other = await join();
      const stream = connectUnix(socket)!;
      await wait(() => server.peers.length === 2);
      const lines: string[] = [];
      using end = new ServerEnd(stream, "iv.sock", { log: keptLog(lines) });
      const told = new Told();
      end.open(reactor, told);
      await wait(() => other.read() === 7);
      server[Symbol.dispose]();
      await wait(() => lines.length > 0);
      assertEquals(lines, [
        "warn: ivshmem server iv.sock is gone: joins and leaves are no longer noticed",
      ]);
      end.ring(0);
      assertEquals(countOf(other.fds.get(0)![0]!), 1);
      other.ring(1);
      await wait(() => told.rings === 1);
      assertEquals(new Uint8Array(end.memory.buffer)[0], 0);
      assertEquals(told.news, ["+0"]);
    }),
);

cleanTest("server end: a server without vectors rings nobody", () => {
  using server = new ScriptedServer();
  server.greet();
  using end = endOn(server);
  assertEquals([end.interrupts, end.id, end.peers.size], [false, 5, 0]);
  end.ring(5);
});

cleanTest("server end: peers in front of the memory, as QEMU takes them too", () => {
  using server = new ScriptedServer();
  using memory = createSealedMemory("vmsg-test", 4096);
  using fd = createEventFd();
  server.say(0).say(5).say(9, fd).say(-1, memory).say(5, fd);
  using end = endOn(server);
  assertEquals([...end.peers], [9]);
});

const eventFd = (server: ScriptedServer) => server.eventFd();

const BAD_SETUPS: readonly [string, (server: ScriptedServer) => void, RegExp][] = [
  ["closed at once", () => {}, /^ivshmem server x.sock closed the connection: it may be full$/],
  ["version 1", (s) => s.say(1), /is none, or of another version: it begins with 1, not 0/],
  ["text", (s) => s.stream.send(scratch.address, 9), /it begins with \d+, not 0/],
  ["half a version", (s) => s.stream.send(scratch.address, 4), /closed the connection/],
  ["version only", (s) => s.say(0), /closed the connection/],
  ["id -1", (s) => s.say(0).say(-1), /gave us the id -1, they end at 65535/],
  ["id 65536", (s) => s.say(0).say(65536), /gave us the id 65536/],
  ["id 2^40", (s) => s.say(0).say(2 ** 40), /gave us the id 1099511627776/],
  ["no memory", (s) => s.say(0).say(5), /closed the connection/],
  ["memory without", (s) => s.say(0).say(5).say(-1), /sent no memory where it had to/],
  ["a peer -2", (s) => s.say(0).say(5).say(-2, eventFd(s)), /sent the id -2/],
  ["a leave of 65536", (s) => s.say(0).say(5).say(65536), /sent the id 65536/],
  ["our own leave", (s) => s.say(0).say(5).say(5), /says that we are gone/],
  ["two memories", (s) => s.greet().greet(), /says that we are gone|sent the id|second memory/],
  [
    "a memory of 100 bytes",
    (s) => s.greet(100),
    /^ivshmem server x.sock: its memory has less than 4096 bytes$/,
  ],
  [
    "an eventfd as memory",
    (s) => s.say(0).say(5).say(-1, eventFd(s)),
    /^ivshmem server x.sock: its memory cannot be mapped: the memory is no memfd .* but eventfd/,
  ],
  [
    "a file as doorbell",
    (s) => s.greet().say(9, s.own(openFile("/dev/null"))),
    /sent something that does not work: the doorbell of peer 9 is no eventfd, but \/dev\/null$/,
  ],
  [
    "a socket as vector",
    (s) => s.greet().say(5, s.stream.fd),
    /does not work: vector 0 is no eventfd, but unix stream socket$/,
  ],
  [
    "two descriptors",
    (s) => {
      const [a, b] = [s.eventFd(), s.eventFd()];
      s.say(0).say(5).stream.send(scratch.address, 8, [a, b]);
    },
    /sent two file descriptors with one number/,
  ],
];

cleanTest("server end: servers that are none, in one line", () => {
  scratch.bytes.set(new TextEncoder().encode("HTTP/1.1 400 Bad Request"));
  for (const [name, script, pattern] of BAD_SETUPS) {
    const server = new ScriptedServer();
    script(server);
    server[Symbol.dispose]();
    const error = assertThrows(() => endOn(server), VmsgError);
    assertMatch(error.message, pattern, name);
    assert(!error.message.includes("\n"), name);
    assert(["IVSHMEM_SERVER", "MEMORY"].includes(error.code), name);
  }
});

/** A clock that goes on by `stepMs` each time it is read: time passes while a thread blocks. */
function stepping(stepMs: number): Clock {
  let nowMs = 0;
  return { now: () => nowMs += stepMs };
}

cleanTest("server end: a server that says nothing has two seconds", () => {
  assertEquals(SETUP_TIMEOUT_MS, 2000);
  using server = new ScriptedServer();
  // All but a millisecond passes before it waits.
  const late = stepping(SETUP_TIMEOUT_MS - 1);
  assertThrows(() => endOn(server, [], late), VmsgError, "said nothing");
});

cleanTest("server end: a server that talks without end is not listened to for ever", () => {
  const clock = () => stepping(SETUP_TIMEOUT_MS / 100);
  {
    using server = new ScriptedServer();
    server.say(0).say(5);
    for (let i = 0; i < 200; i++) server.say(100 + i);
    assertThrows(() => endOn(server, [], clock()), VmsgError, "gave us no memory");
  }
  using server = new ScriptedServer();
  server.greet();
  for (let i = 0; i < 200; i++) server.say(100 + i);
  assertThrows(() => endOn(server, [], clock()), VmsgError, "no vector, and was never quiet");
});

cleanTest("server end: nobody there", () =>
  withDirectory((directory) => {
    const open = (name: string) => openServerEnd(`${directory}/${name}`, { log: keptLog([]) });
    for (const name of ["none", "file", "left"]) {
      if (name === "file") Deno.writeTextFileSync(`${directory}/file`, "");
      if (name === "left") leaveSocket(`${directory}/left`);
      const error = assertThrows(() => open(name), VmsgError, `nobody listens on ${directory}/`);
      assertEquals((error as VmsgError).code, "NOBODY_THERE");
      assertMatch(error.message, /: start vmsg ivshmem-server --socket \S+ first$/);
    }
    assertThrows(() => open("x".repeat(120)), VmsgError, "Linux allows 107");
  }));

const BAD_NEWS: readonly [string, (server: ScriptedServer) => void, RegExp][] = [
  ["id -2", (s) => s.say(-2, eventFd(s)), /sent the id -2/],
  ["id 65536", (s) => s.say(65536, eventFd(s)), /sent the id 65536/],
  ["leave of -3", (s) => s.say(-3), /sent the id -3/],
  ["a second memory", (s) => s.say(-1, eventFd(s)), /sent a second memory/],
  ["our leave", (s) => s.say(5), /says that we are gone/],
  ["two", (s) => s.stream.send(scratch.address, 8, [eventFd(s), eventFd(s)]), /two file desc/],
  ["end in the middle", (s) => (s.stream.send(scratch.address, 3), s[Symbol.dispose]()), /is gone/],
];

cleanTest("server end: a server gone mad is left, in one line, and the end goes on", async () => {
  for (const [name, script, pattern] of BAD_NEWS) {
    using reactor = new Reactor(new VirtualClock());
    using server = new ScriptedServer();
    const [own, peer] = [server.eventFd(), server.eventFd()];
    server.greet().say(9, peer).say(5, own);
    const lines: string[] = [];
    using end = endOn(server, lines);
    const told = new Told();
    end.open(reactor, told);
    script(server);
    await reactor.until((async () => {
      await wait(reactor, () => lines.length > 0);
      if (!name.startsWith("end")) {
        signalEventFd(own);
        await wait(reactor, () => told.rings === 1);
        end.ring(9);
        assertEquals(countOf(peer), 1);
      }
    })());
    assertEquals(lines.length, 1, name);
    assertMatch(lines[0]!, pattern, name);
    assertMatch(lines[0]!, /^warn: .*: joins and leaves are no longer noticed$/, name);
    assertEquals(told.news, ["+9"]);
  }
});

cleanTest("server end: a peer that never reads its doorbell, a socket, does not stop us", () => {
  using server = new ScriptedServer();
  const [a, b] = unixStreamPair();
  using _b = b;
  server.greet().say(9, server.own(a.fd)).say(5, server.eventFd());
  using end = endOn(server);
  // The flag is the description's, and so the peer's.
  libc.fcntl(a.fd.number, F_SETFL, 0n);
  for (let i = 0; i < 10_000; i++) end.ring(9);
});

cleanTest(
  "server end: a count that runs over is one ring more, and not the end of a vector",
  async () => {
    using reactor = new Reactor(new VirtualClock());
    using server = new ScriptedServer();
    const vector = server.eventFd();
    server.greet().say(5, vector);
    const lines: string[] = [];
    using end = endOn(server, lines);
    const told = new Told();
    end.open(reactor, told);
    await reactor.until((async () => {
      // One peer fills it, and another one's ring comes from its kernel.
      fillEventFd(vector);
      using ringer = new PeerEvent(new Fd(libc.fcntl(vector.number, 0, 0n)), "signal", "vector");
      ringer.signal();
      await wait(reactor, () => told.rings === 1);
      ringer.signal();
      await wait(reactor, () => told.rings === 2);
    })());
    assertEquals(lines, []);
  },
);

cleanTest("server end: surplus vectors and peers are not kept", async () => {
  using reactor = new Reactor(new VirtualClock());
  using server = new ScriptedServer();
  const fd = server.eventFd();
  server.greet();
  for (let i = 0; i < 70; i++) server.say(9, fd);
  for (let i = 0; i < 70; i++) server.say(5, fd);
  const lines: string[] = [];
  using end = endOn(server, lines);
  const told = new Told();
  end.open(reactor, told);
  await reactor.until((async () => {
    for (let id = 100; id < 100 + MAX_PEERS; id++) {
      server.say(id, fd);
      await wait(reactor, () => end.peers.size === id - 98 || lines.length > 0);
    }
  })());
  assertEquals(end.peers.size, MAX_PEERS);
  assertEquals(told.news.length, MAX_PEERS);
  assertMatch(lines.join("\n"), /^warn: .* has more than 1024 peers: joins and leaves are no/);
});

cleanTest("server end: a listener may dispose of the end", async () => {
  for (const when of ["joined", "left", "rung"] as const) {
    using reactor = new Reactor(new VirtualClock());
    using server = new ScriptedServer();
    const own = server.eventFd();
    server.greet().say(9, own).say(5, own);
    const end = endOn(server);
    let calls = 0;
    const listener = { rung() {}, joined() {}, left() {} };
    end.open(reactor, listener);
    listener[when] = () => {
      calls++;
      end[Symbol.dispose]();
    };
    server.say(10, own).say(11, own).say(9).say(10);
    if (when === "rung") signalEventFd(own);
    await reactor.until(wait(reactor, () => calls > 0));
    await reactor.until(reactor.sleep(2));
    assertEquals(calls, 1);
  }
});

processTest("server end: ten ends that come at once are all let in", async (vmsg) => {
  const server = await vmsg.start("ivshmem-server", "--socket", "iv.sock", "--vectors", "1");
  await server.waitFor(/waiting for peers/);
  using stack = new DisposableStack();
  const path = `${vmsg.directory}/iv.sock`;
  const ends = Array.from(
    { length: 10 },
    () => stack.use(openServerEnd(path, { log: keptLog([]), clock: PATIENT })),
  );
  assertEquals(ends.map(({ id }) => id), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

processTest("server end: two processes ring each other through one server", async (vmsg) => {
  const server = await vmsg.start("ivshmem-server", "--socket", "iv.sock", "--size", "64K");
  await server.waitFor(/waiting for peers/);
  const socket = `${vmsg.directory}/iv.sock`;
  using reactor = new Reactor();
  const lines: string[] = [];
  using end = openServerEnd(socket, { log: keptLog(lines), clock: PATIENT });
  const words = new Uint32Array(end.memory.buffer);
  const told = new Told();
  end.open(reactor, told);
  const script = new URL("./server_end_child.ts", import.meta.url).pathname;
  const config = new URL("../../deno.json", import.meta.url).pathname;
  const run = ["run", "--quiet", "--allow-all", "--config", config, script];
  const child = await vmsg.startProgram(Deno.execPath(), ...run, socket, `${end.id}`);
  const waitForPeer = (isThere: boolean) =>
    reactor.until(wait(reactor, () => end.peers.has(1) === isThere));
  await waitForPeer(true);
  await child.waitFor(/^peer 1 of 0$/);

  const tookUs: number[] = [];
  for (let i = 1; i <= 5000; i++) {
    const { rings } = told;
    const startMs = reactor.now();
    storeRelease32(words, 0, i);
    end.ring(1);
    while (told.rings === rings) reactor.turn();
    tookUs.push((reactor.now() - startMs) * 1000);
    assertEquals(words[16], i);
  }
  tookUs.sort((a, b) => a - b);
  const [p50, p99] = [0.5, 0.99].map((part) =>
    tookUs[Math.floor(part * tookUs.length)]!.toFixed(1)
  );
  console.log(
    `ivshmem doorbell between two processes, there and back: p50 ${p50} us, p99 ${p99} us`,
  );

  child.kill("SIGKILL");
  await waitForPeer(false);
  assertEquals(told.news, ["+1", "-1"]);
  assertEquals((await server.end("SIGTERM")).code, 0);
  await reactor.until(wait(reactor, () => lines.length > 0));
  assertMatch(lines.join(), /is gone: joins and leaves are no longer noticed$/);
});

Deno.test("server end: no kind of descriptor as memory or vector stops or ends us", () =>
  withDirectory(async (directory) => {
    await using kinds = await everyKind(directory, 1 << 20);
    for (const [kind, fd] of kinds.fds) {
      for (const value of [-1, 5, 9]) {
        using server = new ScriptedServer();
        if (value === -1) server.say(0).say(5).say(-1, fd).say(5, server.eventFd());
        else server.greet().say(value, fd).say(5, server.eventFd());
        try {
          using end = endOn(server);
          for (let i = 0; i < 100; i++) end.ring(9);
          end.ring(5);
        } catch (error) {
          assert(error instanceof VmsgError, `${kind} as ${value}: ${error}`);
        }
      }
    }
  }));
