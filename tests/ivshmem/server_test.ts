import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import {
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  fileSeals,
  fileSize,
  openFile,
  resizeFile,
} from "../../src/linux/fd.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { connectUnix, unixStreamPair } from "../../src/linux/unix_socket.ts";
import { MAX_ID, MessageReader, sendMessage } from "../../src/ivshmem/protocol.ts";
import { IvshmemServer, MAX_CLIENTS, memorySizeProblem } from "../../src/ivshmem/server.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { leaveSocket } from "../support/left_socket.ts";
import { countOf, keptLog, RawClient, wait, withServer } from "./support.ts";

const into = allocate(256);

cleanTest("protocol: numbers there and back, in pieces, with and without descriptors", () => {
  const [a, b] = unixStreamPair();
  using _a = a;
  using _b = b;
  using reader = new MessageReader(b);
  using fd = createEventFd();
  assertEquals(reader.read(), "nothing");
  for (const value of [0, -1, 65535, -2, 2 ** 40 + 7, -(2 ** 40)]) {
    assertEquals(sendMessage(a, { value, fd: undefined, sent: 0 }), "sent");
  }
  // A descriptor in the middle of others without: only its own message has it.
  assertEquals(sendMessage(a, { value: 7, fd, sent: 0 }), "sent");
  assertEquals(sendMessage(a, { value: 8, fd: undefined, sent: 0 }), "sent");
  for (const value of [0, -1, 65535, -2, 2 ** 40 + 7, -(2 ** 40), 7, 8]) {
    assertEquals([reader.read(), reader.value], ["message", value]);
    const came = reader.takeFd();
    assertEquals(came !== undefined, value === 7);
    came?.[Symbol.dispose]();
  }
  into.bytes.set([1, 2, 3, 4, 5, 0, 0, 0]);
  for (let i = 0; i < 8; i++) {
    assertEquals(reader.read(), "nothing");
    a.send(into.address + BigInt(i), 1, i === 3 ? [fd] : []);
  }
  assertEquals([reader.read(), reader.value], ["message", 0x05_0403_0201]);
  // It came with a byte in the middle, and nobody takes it.
  a.send(into.address, 2, [fd]);
  a[Symbol.dispose]();
  assertEquals(reader.read(), "closed");
});

cleanTest("protocol: two descriptors with one number, and lost ones, are refused", () => {
  for (const counts of [[2, 0], [1, 1], [8, 0]]) {
    const [a, b] = unixStreamPair();
    using _a = a;
    using _b = b;
    using reader = new MessageReader(b);
    using fd = createEventFd();
    for (const count of counts) a.send(into.address, 4, new Array(count).fill(fd));
    assertEquals(reader.read(), "bad");
  }
});

cleanTest(
  "server 5.2: what each of two clients is told, byte by byte",
  () =>
    withServer({ vectors: 1 }, async ({ connect, wait, server }) => {
      connect();
      await wait(() => server.peers.length === 1);
      const { stream } = connect();
      await wait(() => server.peers.length === 2);
      const bytes: string[] = [];
      for (let received = 0; received >= 0;) {
        received = stream.receive(into.address, 8);
        if (received < 0) break;
        assertEquals(received, 8);
        const hex = [...into.bytes.subarray(0, 8)].map((byte) =>
          byte.toString(16).padStart(2, "0")
        );
        bytes.push(hex.join(" ") + " fd".repeat(stream.fds.length));
        for (const fd of stream.fds) fd[Symbol.dispose]();
      }
      assertEquals(bytes, [
        "00 00 00 00 00 00 00 00",
        "01 00 00 00 00 00 00 00",
        "ff ff ff ff ff ff ff ff fd",
        "00 00 00 00 00 00 00 00 fd",
        "01 00 00 00 00 00 00 00 fd",
      ]);
    }),
);

cleanTest(
  "server: joins, rings and leaves of three peers with two vectors",
  () =>
    withServer({}, async ({ join, wait, server, lines, reactor }) => {
      const a = await join();
      assertEquals(a.news(), "0 0 -1+ 0+ 0+");
      const b = await join();
      assertEquals(b.news(), "0 1 -1+ 0+ 0+ 1+ 1+");
      assertEquals(a.news(), "1+ 1+");
      const c = await join();
      assertEquals(c.news(), "0 2 -1+ 0+ 0+ 1+ 1+ 2+ 2+");
      assertEquals([a.news(), b.news()], ["2+ 2+", "2+ 2+"]);

      a.ring(2, 1);
      b.ring(2, 1);
      b.ring(0, 0);
      c.ring(0, 0);
      c.ring(2, 0);
      assertEquals(c.fds.get(2)!.map(countOf), [1, 2]);
      assertEquals(a.fds.get(0)!.map(countOf), [2, 0]);
      assertEquals(b.fds.get(1)!.map(countOf), [0, 0]);

      b[Symbol.dispose]();
      await wait(() => server.peers.length === 2);
      assertEquals([a.news(), c.news()], ["1", "1"]);
      // A freed id is not given again.
      const d = await join();
      assertEquals(d.news(), "0 3 -1+ 0+ 0+ 2+ 2+ 3+ 3+");
      await reactor.sleep(5);
      assertEquals([a.news(), c.news()], ["3+ 3+", "3+ 3+"]);
      assertEquals(lines.map((line) => line.replace(/^.*iv\.sock: /, "")), [
        "65536 bytes (sealed), 2 vectors; waiting for peers",
        "peer 0 joined, 1 in all",
        "peer 1 joined, 2 in all",
        "peer 2 joined, 3 in all",
        "peer 1 left, 2 in all",
        "peer 3 joined, 3 in all",
      ]);
    }),
);

cleanTest(
  "server: ids begin again after the last, and leave out who is there",
  () =>
    // The last is 65535 otherwise; the way there is the same, and took 65536 clients.
    withServer({ vectors: 0, lastId: 255 }, async ({ connect, server, wait }) => {
      connect();
      await wait(() => server.peers.length === 1);
      for (let id = 1; id <= 255; id++) {
        const client = connect();
        await wait(() => server.peers.length === 2);
        assertEquals(server.peers, [0, id]);
        client[Symbol.dispose]();
        await wait(() => server.peers.length === 1);
      }
      connect();
      await wait(() => server.peers.length === 2);
      // 0 has been there all the time.
      assertEquals(server.peers, [0, 1]);
    }),
);

Deno.test("server: ids are 16 bits wide, and always more than clients", () => {
  assertEquals(MAX_ID, 65535);
  using reactor = new Reactor();
  const options = { socket: "/nowhere/s", size: 4096, vectors: 0, log: keptLog([]) };
  for (const lastId of [MAX_CLIENTS - 1, MAX_ID + 1, NaN]) {
    assertThrows(() => new IvshmemServer(reactor, { ...options, lastId }), Error, "ids up to");
  }
});

cleanTest(
  "server: without vectors nobody hears of others",
  () =>
    withServer({ vectors: 0 }, async ({ join, wait, server }) => {
      const a = await join();
      const b = await join();
      assertEquals([a.news(), b.news()], ["0 0 -1+", "0 1 -1+"]);
      b[Symbol.dispose]();
      await wait(() => server.peers.length === 1);
      assertEquals(a.news(), "");
    }),
);

cleanTest(
  "server: whatever a client says, it is dropped and the others are told",
  () =>
    withServer({ vectors: 1 }, async ({ join, wait, lines }) => {
      const a = await join();
      for (const [id, fds] of [[1, 0], [2, 1], [3, 8]] as const) {
        const b = await join();
        a.news();
        using fd = createEventFd();
        b.stream.send(into.address, 1 + id * 8, new Array(fds).fill(fd));
        await wait(() => a.read() > 0);
        assertEquals(a.news(), `${id}`);
        b.read();
        assert(b.isClosed);
        assertMatch(
          lines.at(-1)!,
          /^warn: .*: peer \d sent something, which no client does, and was dropped, 1 in all$/,
        );
      }
    }),
);

cleanTest(
  "server: the memory is sealed, zero, and the same for all",
  () =>
    withServer({ size: 1 << 20 }, async ({ join }) => {
      const [a, b] = [await join(), await join()];
      const memories = [a, b].map((client) => client.fds.get(-1)![0]!);
      for (const memory of memories) {
        assertEquals(fileSize(memory), 1 << 20);
        assertEquals(fileSeals(memory), F_SEAL_GROW | F_SEAL_SHRINK);
      }
      using one = mapShared(memories[0]!.number, 1 << 20);
      using other = mapShared(memories[1]!.number, 1 << 20);
      assert(new Uint8Array(other.buffer).every((byte) => byte === 0));
      new Uint8Array(one.buffer)[4097] = 42;
      assertEquals(new Uint8Array(other.buffer)[4097], 42);
    }),
);

cleanTest(
  "server: a memory file is made, used as it is, and keeps its size",
  () =>
    withDirectory(async (directory) => {
      using reactor = new Reactor();
      // Where memory is; what a peer sends from elsewhere is closed by another thread.
      const shared = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "vmsg-test-" });
      using _shared = { [Symbol.dispose]: () => Deno.removeSync(shared, { recursive: true }) };
      const file = `${shared}/memory`;
      const open = (size: number, path = file) =>
        new IvshmemServer(reactor, {
          socket: `${directory}/s`,
          size,
          vectors: 1,
          file: path,
          log: keptLog([]),
        });
      {
        using _server = open(8192);
        assertEquals(Deno.statSync(file).size, 8192);
      }
      Deno.writeTextFileSync(file, "kept", { append: true });
      for (const size of [8192, 16384]) {
        assertThrows(() => open(size), VmsgError, `has 8196 bytes, not ${size}`);
        assertEquals(Deno.statSync(file).size, 8196);
      }
      {
        using fd = openFile(file);
        resizeFile(fd, 8192);
      }
      {
        using _server = open(8192);
        using client = new RawClient(connectUnix(`${directory}/s`)!);
        await reactor.until(wait(reactor, () => client.read() === 4));
        assertEquals(fileSize(client.fds.get(-1)![0]!), 8192);
      }
      // What is none; and none of them left a socket.
      assertThrows(() => open(4096, "/dev/null"), VmsgError, "is no file");
      assertThrows(() => open(4096, `${directory}/no/memory`), VmsgError, "ENOENT");
      assertEquals([...Deno.readDirSync(directory)], []);
    }),
);

Deno.test("server: sizes are powers of two", () => {
  for (const size of [4096, 8192, 1 << 20, 1 << 30, 2 ** 31, 2 ** 35, 2 ** 36]) {
    assertEquals(memorySizeProblem(size), undefined);
  }
  for (
    const size of [0, -4096, 1, 2048, 4097, 12288, 2 ** 35 + 1, 2 ** 37, NaN, Infinity, 4096.5]
  ) {
    assertMatch(memorySizeProblem(size)!, /power of two of bytes from 4K to 64G, not/);
  }
});

cleanTest(
  "server: a socket that was left is replaced, one in use is not",
  () =>
    withServer({}, async ({ socket, reactor, join, directory }) => {
      const options = { size: 4096, vectors: 1, log: keptLog([]) };
      assertThrows(
        () => new IvshmemServer(reactor, { socket, ...options }),
        VmsgError,
        "is in use by another process",
      );
      await join();
      const left = `${directory}/left.sock`;
      leaveSocket(left);
      using _server = new IvshmemServer(reactor, { socket: left, ...options });
      using _client = new RawClient(connectUnix(left)!);
    }),
);

cleanTest(
  "server: one client too many is turned away",
  () =>
    withServer({ vectors: 1 }, async ({ join, connect, wait, server, lines }) => {
      const first = await join();
      for (let i = 1; i < MAX_CLIENTS; i++) await join();
      const late = connect();
      await wait(() => (late.read(), late.isClosed));
      assertEquals(late.messages, []);
      assertEquals(server.peers.length, MAX_CLIENTS);
      assertMatch(lines.at(-1)!, /^warn: .*: full, turned a client away: 64 are there already$/);
      first[Symbol.dispose]();
      await wait(() => server.peers.length === MAX_CLIENTS - 1);
      assertEquals((await join()).news().slice(0, 5), "0 64 ");
    }),
);

cleanTest(
  "server: who does not read for a while gets it all later, in order",
  () =>
    withServer({ vectors: 8 }, async ({ connect, join, wait, server }) => {
      const slow = connect();
      await wait(() => server.peers.length === 1);
      // More than a socket takes: 50 newcomers of 8 vectors; 20 leave again.
      const others: RawClient[] = [];
      for (let i = 0; i < 50; i++) others.push(await join());
      for (const other of others.splice(20, 20)) other[Symbol.dispose]();
      await wait(() => server.peers.length === 31);
      // As it was said, by a model that knows nothing of queues.
      const known = new Map<number, number>();
      await wait(() => {
        slow.read();
        for (const message of slow.messages.splice(0)) {
          const id = parseInt(message);
          if (message.endsWith("+")) known.set(id, (known.get(id) ?? 0) + 1);
          else known.delete(id);
        }
        return known.get(50) === 8;
      });
      const ids = [...Array(51).keys()].filter((id) => id < 21 || id > 40);
      assertEquals([...known.keys()].filter((id) => id > 0), ids.filter((id) => id > 0));
      for (const id of ids) assertEquals(known.get(id), 8, `vectors of ${id}`);
      // And its doorbells work.
      slow.ring(50, 7);
      assertEquals(countOf(others.at(-1)!.fds.get(50)![7]!), 1);
    }),
);

cleanTest(
  "server: who never reads is sent little, and goes when its place is wanted",
  () =>
    withServer({ vectors: 8 }, async ({ connect, join, wait, server, lines, reactor }) => {
      const first = await join();
      const silent: RawClient[] = [];
      while (silent.length < MAX_CLIENTS - 2) {
        silent.push(connect());
        await wait(() => server.peers.length === 1 + silent.length);
      }
      const second = await join();
      assertEquals(server.peers.length, MAX_CLIENTS);
      // Too early to say of anybody that it does not read.
      const late = connect();
      await wait(() => (late.read(), late.isClosed));
      assertMatch(lines.at(-1)!, /^warn: .*: full, turned a client away: 64 are there already$/);
      // Those who read go on all the while, and later.
      await wait(() => (first.read(), first.fds.get(63)?.length === 8));
      first.ring(63, 7);
      assertEquals(countOf(second.fds.get(63)![7]!), 1);
      await reactor.sleep(6000);
      const next = connect();
      await wait(() => (next.read(), next.fds.get(64)?.length === 8));
      assertEquals(server.peers, [0, 63, 64]);
      assertEquals(
        lines.filter((line) => line.includes("does not read and was dropped")).length,
        62,
      );
      await wait(() => (first.read(), first.fds.get(64)?.length === 8));
      first.ring(64, 3);
      assertEquals(countOf(next.fds.get(64)![3]!), 1);
      for (const client of silent) await wait(() => (client.read(), client.isClosed));
      // What the socket had taken: of a list of hundreds a few.
      for (const { messages } of silent.slice(10)) assert(messages.length < 12, messages.join(" "));
    }),
);

cleanTest(
  "server: clients that come and go at once do no harm",
  () =>
    withServer({}, async ({ socket, join, wait, server, reactor }) => {
      const watcher = await join();
      let came = 0;
      for (let i = 0; i < 200; i++) {
        using stream = connectUnix(socket);
        if (stream !== undefined) came++;
        if (i % 4 === 3) await reactor.sleep(0);
      }
      // Those in front of it have been let in by then.
      const last = await join();
      await wait(() => server.peers.length === 2);
      assertEquals(server.peers, [0, came + 1]);
      const known = new Set<number>();
      await wait(() => {
        watcher.read();
        for (const message of watcher.messages.splice(0)) {
          if (message.endsWith("+")) known.add(parseInt(message));
          else if (parseInt(message) > 0) assert(known.delete(parseInt(message)), message);
        }
        return known.has(came + 1);
      });
      assertEquals([...known].filter((id) => id >= 0), server.peers);
      watcher.ring(came + 1);
      assertEquals(countOf(last.fds.get(came + 1)![0]!), 1);
    }),
);
