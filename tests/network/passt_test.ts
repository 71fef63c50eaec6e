/** passt: the framing against a peer of our own, and the real program where it is installed. */

import {
  assert,
  assertEquals,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import type { Fd } from "../../src/linux/fd.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { listenUnix, type UnixStream } from "../../src/linux/unix_socket.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { PasstPort } from "../../src/network/passt.ts";
import { PasstProcess } from "../../src/network/passt_process.ts";
import { TapPort } from "../../src/network/tap.ts";
import { processTest, until } from "../support/processes.ts";
import {
  bytes,
  ENDS_LATER,
  ethernet,
  GuestMemory,
  ip,
  keepingLog,
  Listener,
  Namespace,
  networkTest,
  Relay,
  takeFrame,
  Tcp,
  turnUntil,
} from "./support.ts";

/** The other side of a passt socket, a few bytes at a time if need be. */
class Peer implements Disposable {
  readonly #block = mapAnonymous(1 << 20);
  readonly bytes: Uint8Array = new Uint8Array(this.#block.buffer);

  constructor(readonly stream: UnixStream) {}

  send(data: Uint8Array): void {
    this.bytes.set(data);
    assertEquals(this.stream.send(this.#block.address, data.length), data.length);
  }

  receive(length = 1 << 20): Uint8Array {
    const received = this.stream.receive(this.#block.address, length);
    return this.bytes.slice(0, Math.max(0, received));
  }

  [Symbol.dispose](): void {
    this.stream[Symbol.dispose]();
    this.#block[Symbol.dispose]();
  }
}

function framed(...frames: Uint8Array[]): Uint8Array {
  return Uint8Array.from(
    frames.flatMap((f) => [0, f.length >> 16, f.length >> 8 & 255, f.length & 255, ...f]),
  );
}

Deno.test("passt: frames are put together from whatever pieces come", async () => {
  const directory = Deno.makeTempDirSync();
  using _removed = { [Symbol.dispose]: () => Deno.removeSync(directory, { recursive: true }) };
  using reactor = new Reactor();
  using listening = listenUnix(`${directory}/s`);
  using port = new PasstPort({ socket: `${directory}/s` }, reactor, keepingLog([]));
  using peer = new Peer(listening.accept()!);
  using memory = new GuestMemory();
  const listener = new Listener();
  port.open(listener);
  assertEquals(listener.links, [true]);
  const frames = [60, 14, 1514, 65550].map((n) => ethernet("020000000002", "020000000001", n));
  const stream = framed(...frames);
  const got: Uint8Array[] = [];
  // One byte, then more and more at a time.
  for (let at = 0, size = 1; at < stream.length; at += size, size = Math.ceil(size * 1.3)) {
    const reads = listener.reads;
    peer.send(stream.subarray(at, at + size));
    await turnUntil(reactor, () => listener.reads > reads, "bytes");
    for (let frame; (frame = takeFrame(port, memory)) !== undefined;) got.push(frame);
  }
  assertEquals(got, frames);
  // The header of a received frame asks for nothing and says one buffer.
  peer.send(framed(frames[0], frames[1], frames[2]));
  await turnUntil(reactor, () => port.nextLength() === 72, "a frame");
  port.discard();
  memory.bytes.fill(0xee);
  assertEquals(port.receive(memory.buffer(0, 4096, [7]), 0), 26);
  assertEquals(memory.bytes.slice(0, 12), bytes("0000 0000 0000 0000 0000 0100"));
  assertEquals(takeFrame(port, memory), frames[2]);
  assertEquals(port.counters.received, 7);
});

Deno.test("passt: a full socket keeps the rest of a frame, in order", async () => {
  const directory = Deno.makeTempDirSync();
  using _removed = { [Symbol.dispose]: () => Deno.removeSync(directory, { recursive: true }) };
  using reactor = new Reactor();
  using listening = listenUnix(`${directory}/s`);
  using port = new PasstPort({ socket: `${directory}/s` }, reactor, keepingLog([]));
  using peer = new Peer(listening.accept()!);
  using memory = new GuestMemory();
  const listener = new Listener();
  port.open(listener);
  const frame = ethernet("020000000002", "020000000001", 60_001);
  let sent = 0;
  const got: number[] = [];
  for (let round = 1; round <= 3; round++) {
    while (port.send(memory.frame(frame, [12, 1000, 30_000]))) sent++;
    await turnUntil(
      reactor,
      () => {
        got.push(...peer.receive(50_000));
        return listener.writes === round;
      },
      "room",
    );
  }
  await turnUntil(
    reactor,
    () => {
      got.push(...peer.receive());
      return got.length >= sent * 60_005;
    },
    "the rest",
  );
  assertEquals(got.length, sent * 60_005);
  for (let i = 0; i < sent; i++) {
    const part = got.slice(i * 60_005, (i + 1) * 60_005);
    assertEquals(part.slice(0, 4), [0, 0, 60_001 >> 8, 60_001 & 255]);
    assert(part.slice(4).every((byte, at) => byte === frame[at]), `frame ${i}`);
  }
});

Deno.test("passt: nonsense ends the connection, and another begins", async () => {
  const directory = Deno.makeTempDirSync();
  using _removed = { [Symbol.dispose]: () => Deno.removeSync(directory, { recursive: true }) };
  using reactor = new Reactor();
  using listening = listenUnix(`${directory}/s`);
  const log: string[] = [];
  using port = new PasstPort({ socket: `${directory}/s` }, reactor, keepingLog(log));
  using memory = new GuestMemory();
  const listener = new Listener();
  port.open(listener);
  {
    using peer = new Peer(listening.accept()!);
    const frame = ethernet("020000000002", "020000000001", 60);
    peer.send(Uint8Array.from([...framed(frame), 0xff, 0xff, 0xff, 0xff]));
    await turnUntil(reactor, () => listener.reads > 0, "a frame");
    assertEquals(takeFrame(port, memory), frame);
    assertEquals(listener.links, [true, false]);
    assertEquals(takeFrame(port, memory), undefined);
    assertEquals(port.send(memory.frame(frame)), true);
    assertEquals(port.counters.lost, 1);
  }
  await turnUntil(reactor, () => listener.links.length === 3, "a new connection");
  listening.accept()![Symbol.dispose]();
  await turnUntil(reactor, () => listener.links.length === 4, "its end");
  assertEquals(listener.links, [true, false, true, false]);
  assertEquals(log.map((line) => line.replace(directory, "D")), [
    "passt at D/s sent a length that no frame has",
    "passt at D/s is back",
    "passt at D/s ended the connection",
  ]);
});

Deno.test("passt: nobody listens", () => {
  using reactor = new Reactor();
  const error = assertThrows(
    () => new PasstPort({ socket: "/nowhere/s" }, reactor, keepingLog([])),
    VmsgError,
  );
  assertEquals(
    error.message,
    "nobody listens on /nowhere/s: start passt --socket /nowhere/s first",
  );
});

/** Somewhere for passt to run: an interface with a default route, and loopback. */
function routedNamespace(): Namespace {
  const namespace = new Namespace();
  ip("link add up0 type veth peer name up1");
  ip("link set up0 up");
  ip("link set up1 up");
  ip("addr add 192.0.2.2/24 dev up0");
  ip("route add default via 192.0.2.1");
  return namespace;
}

const ADDRESSES = ["-4", "-a", "10.9.0.2", "-n", "24", "-g", "10.9.0.1", "-D", "none"];

/** Has the passt that was started for `body` end, and waits for that. */
async function withPasst(
  args: readonly string[],
  body: (passt: PasstPort, reactor: Reactor, log: string[]) => Promise<void>,
  loopback = false,
): Promise<void> {
  using reactor = new Reactor();
  let ended = false;
  const log: string[] = [];
  const passt = new PasstPort({ args, loopback }, reactor, keepingLog(log));
  const noted = passt.process!.gone.then(() => void (ended = true));
  try {
    await body(passt, reactor, log);
  } finally {
    passt[Symbol.dispose]();
    await turnUntil(reactor, () => ended, "passt's end");
    await noted;
  }
}

networkTest(
  "passt: a TCP connection to the host's loopback, where it is wanted",
  ["ip", "passt"],
  async () => {
    using _host = routedNamespace();
    await withPasst(ADDRESSES, async (passt, reactor, log) => {
      using server = Tcp.listen("127.0.0.1", 8080);
      using _guest = new Namespace();
      using tap = new TapPort({ address: "10.9.0.2/24" }, reactor);
      const relay = new Relay(reactor, [tap, passt]);
      using client = Tcp.connect("10.9.0.1", 8080);
      let accepted: Fd | undefined;
      const request = new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n");
      client.buffer.set(request);
      await turnUntil(reactor, () => client.write(0, request.length) > 0, "a connection");
      await turnUntil(reactor, () => (accepted ??= server.accept()) !== undefined, "accept");
      let length = 0;
      await turnUntil(reactor, () => (length = server.read(4096, accepted)) > 0, "the request");
      assertEquals(
        new TextDecoder().decode(server.buffer.subarray(0, length)).slice(0, 5),
        "GET /",
      );
      // 300 kB back, which is more than socket buffers hold.
      let sent = 0;
      let got = 0;
      await turnUntil(
        reactor,
        () => {
          if (sent < 300_000) {
            sent += Math.max(0, server.write(0, Math.min(20_000, 300_000 - sent), accepted));
          }
          got += Math.max(0, client.read(65536));
          return got === 300_000;
        },
        "the answer",
      );
      accepted![Symbol.dispose]();
      assertEquals(log, []);
      relay.dispose();
    }, true);
  },
);

/** A frame that opens a TCP connection; passt looks at no sums. */
function syn(to: string, port: number): Uint8Array {
  const [ports, rest] = [port, port].map((n) => n.toString(16).padStart(4, "0"));
  const tcp = `${rest} ${ports} 00000001 00000000 5002 ffff 0000 0000`;
  const [head, source] = to.length === 8
    ? ["0800 4500 0028 0000 4000 40 06 0000", "0a090002"]
    : ["86dd 6000 0000 0014 06 40", "fd09 0000 0000 0000 0000 0000 0000 0002"];
  return bytes(`ffffffffffff 020000000001 ${head} ${source} ${to} ${tcp}`);
}

/** Where a frame may go that is meant for the host's loopback, and where that is. */
const LOOPBACKS: readonly [string, string][] = [
  ["0a090001", "127.0.0.1"],
  ["7f000002", "127.0.0.2"],
  ["00000000", "127.0.0.1"],
  ["00000000 00000000 0000ffff 7f000003", "127.0.0.3"],
];

for (const loopback of [false, true]) {
  const what = `passt: with loopback=${loopback ? "on" : "off"} who forges frames`;
  networkTest(
    `${what} ${loopback ? "reaches" : "does not reach"} it`,
    ["ip", "passt"],
    async () => {
      using _host = routedNamespace();
      ip("addr add fd09::2/64 dev up0");
      ip("route add default via fd09::1");
      const both = ["-a", "10.9.0.2", "-n", "24", "-g", "10.9.0.1", "-D", "none"];
      const body = async (passt: PasstPort, reactor: Reactor) => {
        using memory = new GuestMemory();
        using stack = new DisposableStack();
        passt.open(new Listener());
        const servers = LOOPBACKS.map(([, at], i) => stack.use(Tcp.listen(at, 8080 + i)));
        // What anybody reaches comes last, so that the others have had their time.
        const control = stack.use(Tcp.listen("192.0.2.2", 9000));
        LOOPBACKS.forEach(([to], i) =>
          passt.send(memory.frame(syn(to.replaceAll(" ", ""), 8080 + i)))
        );
        passt.send(memory.frame(syn("c0000202", 9000)));
        const came = (server: Tcp) => {
          const fd = server.accept();
          if (fd !== undefined) stack.use(fd);
          return fd !== undefined;
        };
        await turnUntil(reactor, () => came(control), "a connection that is nothing special");
        const wanted = LOOPBACKS.map(() => loopback);
        const seen = LOOPBACKS.map(() => false);
        const look = () => servers.forEach((server, i) => seen[i] ||= came(server));
        await turnUntil(reactor, () => (look(), seen.join() === wanted.join()), "those wanted");
        assertEquals(seen, wanted);
        assertEquals(passt.counters.lost, loopback ? 0 : LOOPBACKS.length - 1);
      };
      await withPasst(both, body, loopback);
    },
  );
}

networkTest("passt: it answers ARP and DHCP", ["ip", "passt"], async () => {
  using _host = routedNamespace();
  await withPasst(ADDRESSES, async (passt, reactor) => {
    using memory = new GuestMemory();
    passt.open(new Listener());
    const mac = "020000000001";
    passt.send(memory.frame(bytes(`ffffffffffff ${mac} 0806 0001 0800 06 04 0001
    ${mac} 0a090002 000000000000 0a090001`)));
    let frame: Uint8Array | undefined;
    const next = () => (frame = takeFrame(passt, memory)) !== undefined;
    await turnUntil(reactor, next, "an ARP reply");
    assertEquals(frame!.slice(12, 14), bytes("0806"));
    assertEquals(frame!.slice(20, 22), bytes("0002"));
    // DISCOVER with a zero UDP checksum: "not computed".
    const discover = "01010600 12345678 0000 8000" + "00".repeat(16) + mac + "00".repeat(202) +
      "63825363 350101 ff" + "00".repeat(60);
    const udp = discover.replace(/\s/g, "").length / 2 + 8;
    const u16 = (n: number) => n.toString(16).padStart(4, "0");
    passt.send(
      memory.frame(bytes(`ffffffffffff ${mac} 0800 4500 ${u16(udp + 20)} 0000 0000 40 11 0000
    00000000 ffffffff 0044 0043 ${u16(udp)} 0000 ${discover}`)),
    );
    await turnUntil(reactor, next, "an offer");
    // The BOOTP reply's yiaddr.
    assertEquals(frame!.slice(14 + 20 + 8, 14 + 20 + 9), bytes("02"));
    assertEquals(frame!.slice(14 + 20 + 8 + 16, 14 + 20 + 8 + 20), bytes("0a090002"));
  });
});

networkTest("passt: what it says when it cannot start is told", ["passt"], async () => {
  using _host = new Namespace();
  await withPasst(["-i", "nosuch0"], async (passt, reactor, log) => {
    const listener = new Listener();
    passt.open(listener);
    await turnUntil(reactor, () => log.length > 0, "its end");
    assertEquals(
      log[0].replace(/\d+/, "N"),
      "passt N ended with exit status 1: Invalid interface name nosuch0: No such device; " +
        "it is started again in 1 s",
    );
    assertEquals(listener.links.at(-1), false);
  });
});

networkTest("passt: of those that have ended no descriptor is left", ["passt"], async () => {
  using _host = new Namespace();
  const count = () => [...Deno.readDirSync("/proc/self/fd")].length;
  const before = count();
  const pids: number[] = [];
  for (let n = 0; n < 20; n++) {
    const passt = new PasstProcess(["-i", "nosuch0"]);
    pids.push(passt.pid);
    passt.stream[Symbol.dispose]();
    await until(() => passt.end() !== undefined);
    assertStringIncludes(passt.end()!, "ended with exit status 1: Invalid interface name");
    await until(() => passt.isGone);
  }
  // One of an earlier test's may still have been open when they were counted.
  await until(() => count() <= before);
  assertEquals(pids.filter((pid) => isThere(pid)), [], "zombies");
});

networkTest(
  "passt: one that is killed is started again, and the link is down meanwhile",
  ["passt"],
  async () => {
    using _host = routedNamespace();
    await withPasst(ADDRESSES, async (passt, reactor, log) => {
      const listener = new Listener();
      passt.open(listener);
      const first = passt.process!.pid;
      await turnUntil(reactor, () => isRunning(first), "its start");
      Deno.kill(first, "SIGKILL");
      await turnUntil(reactor, () => listener.links.length === 3, "the next one");
      assertEquals(listener.links, [true, false, true]);
      assertNotEquals(passt.process!.pid, first);
      assertEquals(log.map((line) => line.replace(/passt \d+/, "passt N")), [
        "passt N was ended by signal 9; it is started again in 1 s",
        "passt N was started",
      ]);
    });
  },
);

processTest(
  "passt: one that looks at nothing any more is gone when its device was killed",
  async (vmsg) => {
    const device = await vmsg.start("device", "--bus", "linux-user,socket=s", "--net", "passt");
    await device.waitFor(/waiting for the driver side/);
    let found: number[] = [];
    await until(() => (found = passts(device.pid)).length > 0);
    const passt = found[0]!;
    // As one that reads the end of a connection again and again.
    Deno.kill(passt, "SIGSTOP");
    await device.end("SIGKILL");
    await until(() => !isRunning(passt));
  },
  ENDS_LATER,
);

function isThere(pid: number): boolean {
  try {
    return Deno.statSync(`/proc/${pid}`).isDirectory;
  } catch {
    return false;
  }
}

/** Is there such a process? One that has ended and is not asked for is none. */
function isRunning(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) Z/.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
  } catch {
    return false;
  }
}

/** The passt processes that a process has started, on any of its threads, and that have begun to be one. */
function passts(pid: number): number[] {
  // Threads and children come and go while they are looked at.
  const read = (name: string) => {
    try {
      return Deno.readTextFileSync(`/proc/${name}`);
    } catch {
      return "";
    }
  };
  const threads = [...Deno.readDirSync(`/proc/${pid}/task`)].map(({ name }) => name);
  const children = threads.flatMap((thread) => read(`${pid}/task/${thread}/children`).split(" "));
  const isPasst = (child: string) => child !== "" && read(`${child}/comm`).startsWith("passt");
  return children.filter(isPasst).map(Number);
}
