import { assert, assertEquals, assertThrows } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { createSealedMemory, fileIdentity } from "../../src/linux/fd.ts";
import { libc } from "../../src/linux/libc.ts";
import {
  connectUnix,
  listenUnix,
  MAX_FDS,
  type UnixStream,
  unixStreamPair,
} from "../../src/linux/unix_socket.ts";
import { leaveSocket } from "../support/left_socket.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

const out = allocate(256);
const into = allocate(256);

function send(
  stream: UnixStream,
  bytes: readonly number[],
  fds: Parameters<UnixStream["send"]>[2] = [],
) {
  out.bytes.set(bytes);
  return stream.send(out.address, bytes.length, fds);
}

function receive(stream: UnixStream, length = 256): number[] {
  const received = stream.receive(into.address, length);
  return received <= 0 ? [received] : [...into.bytes.subarray(0, received)];
}

function closeFds(stream: UnixStream): void {
  for (const fd of stream.fds.splice(0)) fd[Symbol.dispose]();
}

cleanTest("streams: bytes both ways, nothing there, end of file", () => {
  const [a, b] = unixStreamPair();
  using _a = a;
  assertEquals(receive(b), [-1]);
  assertEquals(send(a, [1, 2, 3]), 3);
  assertEquals(send(b, [9]), 1);
  assertEquals(receive(b, 2), [1, 2]);
  assertEquals(receive(b), [3]);
  assertEquals(receive(a), [9]);
  b[Symbol.dispose]();
  assertEquals(receive(a), [0]);
  assertEquals(send(a, [1]), -1, "the peer is gone, and no SIGPIPE came");
});

cleanTest("streams: what was sent before the end of file still arrives", () => {
  const [a, b] = unixStreamPair();
  using _b = b;
  send(a, [5]);
  a[Symbol.dispose]();
  assertEquals(receive(b), [5]);
  assertEquals(receive(b), [0]);
});

cleanTest("streams: a full socket takes nothing and says so", () => {
  const [a, b] = unixStreamPair();
  using _a = a;
  using _b = b;
  let taken = 0;
  let sent = 0;
  do taken += sent = a.send(out.address, 256); while (sent > 0 && taken < 1 << 26);
  assertEquals(sent, 0);
  while (receive(b)[0] !== -1);
  assertEquals(a.send(out.address, 1), 1);
});

cleanTest("descriptors: arrive as the same files, in order, close-on-exec", () => {
  const [a, b] = unixStreamPair();
  using _a = a;
  using _b = b;
  using first = createSealedMemory("vmsg-test", 4096);
  using second = createSealedMemory("vmsg-test", 8192);
  assertEquals(send(a, [7], [first, second]), 1);
  assertEquals(receive(b), [7]);
  assertEquals(b.fds.map(fileIdentity), [fileIdentity(first), fileIdentity(second)]);
  for (const fd of b.fds) {
    const info = Deno.readTextFileSync(`/proc/self/fdinfo/${fd.number}`);
    assert((parseInt(/flags:\s*(\d+)/.exec(info)![1]!, 8) & 0o2000000) !== 0);
  }
  closeFds(b);
});

cleanTest("descriptors: belong to their byte, and two messages' are never mixed", () => {
  const [a, b] = unixStreamPair();
  using _a = a;
  using _b = b;
  using first = createSealedMemory("vmsg-test", 4096);
  using second = createSealedMemory("vmsg-test", 8192);
  send(a, [1, 2]);
  send(a, [3], [first]);
  send(a, [4], [second]);
  send(a, [5]);
  const seen: [number, string][] = [];
  for (let bytes = receive(b); bytes[0] !== -1; bytes = receive(b)) {
    assert(b.fds.length <= 1);
    // Bytes before and after may come with it, but never past the next descriptor.
    for (const fd of b.fds) seen.push([bytes.includes(3) ? 3 : 4, fileIdentity(fd)]);
    assert(!(bytes.includes(3) && bytes.includes(4)));
    closeFds(b);
  }
  assertEquals(seen, [[3, fileIdentity(first)], [4, fileIdentity(second)]]);
});

cleanTest("descriptors: as many as the protocol knows, more are our own error", () => {
  const [a, b] = unixStreamPair();
  using _a = a;
  using _b = b;
  using fd = createSealedMemory("vmsg-test", 4096);
  send(a, [1], new Array(MAX_FDS).fill(fd));
  receive(b);
  assertEquals([b.fds.length, b.truncated], [MAX_FDS, false]);
  closeFds(b);
  assertThrows(() => send(a, [1], new Array(MAX_FDS + 1).fill(fd)), Error, "9 descriptors");
});

cleanTest("descriptors: a peer that sends more than that is seen as truncated", () => {
  const [a, b] = unixStreamPair();
  using _a = a;
  using _b = b;
  using fd = createSealedMemory("vmsg-test", 4096);
  const count = MAX_FDS + 2;
  const header = allocate(56), vector = allocate(16), control = allocate(16 + 4 * count);
  vector.view.setBigUint64(0, out.address, true);
  vector.view.setBigUint64(8, 1n, true);
  header.view.setBigUint64(16, vector.address, true);
  header.view.setBigUint64(24, 1n, true);
  header.view.setBigUint64(32, control.address, true);
  header.view.setBigUint64(40, BigInt(16 + 4 * count), true);
  control.view.setBigUint64(0, BigInt(16 + 4 * count), true);
  control.view.setInt32(8, 1, true);
  control.view.setInt32(12, 1, true);
  for (let i = 0; i < count; i++) control.view.setInt32(16 + 4 * i, fd.number, true);
  assertEquals(libc.sendmsg(a.fd.number, header.address, 0), 1);
  receive(b);
  assertEquals([b.fds.length, b.truncated], [MAX_FDS, true]);
  closeFds(b);
  send(a, [1]);
  receive(b);
  assertEquals([b.fds.length, b.truncated], [0, false], "the next one starts clean");
});

cleanTest(
  "listen and connect: nobody there, somebody there, path removed at the end",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/socket`;
      assertEquals(connectUnix(path), undefined);
      {
        using listener = listenUnix(path);
        assertEquals(listener.accept(), undefined);
        using client = connectUnix(path);
        using server = listener.accept();
        assert(client !== undefined && server !== undefined);
        send(client!, [4]);
        assertEquals(receive(server!), [4]);
      }
      assertThrows(() => Deno.statSync(path), Deno.errors.NotFound);
      assertEquals(connectUnix(path), undefined);
    }),
);

cleanTest(
  "listen: a path that is in use is refused, the one who has it keeps it",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/socket`;
      using _listener = listenUnix(path);
      assertEquals(assertThrows(() => listenUnix(path), VmsgError).code, "SOCKET_IN_USE");
      using client = connectUnix(path);
      assert(client !== undefined);
    }),
);

cleanTest(
  "listen: a socket file that a killed process left is replaced",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/socket`;
      leaveSocket(path);
      assertEquals(connectUnix(path), undefined, "refused: the file is there and nobody listens");
      using _listener = listenUnix(path);
      using client = connectUnix(path);
      assert(client !== undefined);
    }),
);

cleanTest(
  "listen: a listener with a full backlog is in use, and is not bothered",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/socket`;
      using stack = new DisposableStack();
      const listener = stack.use(listenUnix(path));
      const inUse = () => assertThrows(() => listenUnix(path), VmsgError, "is in use by another");
      inUse();
      assertEquals(listener.accept(), undefined, "nobody has connected to find it out");
      for (let client; (client = connectUnix(path)) !== undefined;) stack.use(client);
      inUse();
    }),
);

cleanTest(
  "listen: a listener that knows no locks is in use, also with a full backlog",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/socket`;
      using stack = new DisposableStack();
      const foreign = stack.use(listenUnix(`${path}-before`));
      // Another directory entry, whose lock is that of the other directory.
      Deno.mkdirSync(`${directory}/elsewhere`);
      Deno.linkSync(`${path}-before`, `${directory}/elsewhere/socket`);
      const inUse = () =>
        assertThrows(() => listenUnix(`${directory}/elsewhere/socket`), VmsgError, "is in use by");
      inUse();
      foreign.accept()?.[Symbol.dispose]();
      for (let client; (client = connectUnix(foreign.path)) !== undefined;) stack.use(client);
      inUse();
    }),
);

cleanTest(
  "listen: the socket of a successor is not removed",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/socket`;
      const first = listenUnix(path);
      Deno.removeSync(path);
      using _second = listenUnix(path);
      first[Symbol.dispose]();
      using client = connectUnix(path);
      assert(client !== undefined);
    }),
);

cleanTest(
  "listen: who starts at the same time is waited for, but not for ever",
  () =>
    withDirectory((directory) => {
      using other = Deno.openSync(directory);
      other.lockSync(true);
      assertThrows(() => listenUnix(`${directory}/socket`), VmsgError, "holds a lock on the dir");
      other.unlockSync();
      using _listener = listenUnix(`${directory}/socket`);
    }),
);

cleanTest("listen: a file that is no socket is not removed", () =>
  withDirectory((directory) => {
    const path = `${directory}/notes.txt`;
    Deno.writeTextFileSync(path, "precious");
    const error = assertThrows(() => listenUnix(path), VmsgError, "no socket");
    assertEquals(error.code, "SOCKET_PATH");
    assertEquals(Deno.readTextFileSync(path), "precious");
  }));

cleanTest(
  "socket paths: 107 bytes are the limit, counted as UTF-8",
  () =>
    withDirectory((directory) => {
      const longest = `${directory}/`.padEnd(107, "x");
      using _listener = listenUnix(longest);
      using client = connectUnix(longest);
      assert(client !== undefined);
      const umlauts = `${directory}/${"ä".repeat((108 - directory.length) / 2 | 0)}`;
      for (const path of [longest + "x", umlauts]) {
        assert(path.length <= 108);
        for (const call of [listenUnix, connectUnix]) {
          assertEquals(assertThrows(() => call(path), VmsgError).code, "SOCKET_PATH");
        }
      }
    }),
);

cleanTest("connect: an error that waiting does not cure is thrown", () => {
  const error = assertThrows(() => connectUnix("/dev/null/socket"), VmsgError);
  assertEquals(error.code, "ENOTDIR");
});
