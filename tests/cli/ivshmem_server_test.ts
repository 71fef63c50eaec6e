/** `vmsg ivshmem-server` as a user meets it. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { openServerEnd } from "../../src/ivshmem/server_end.ts";
import { allocate } from "../../src/linux/arena.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { connectUnix, type UnixStream, unixStreamPair } from "../../src/linux/unix_socket.ts";
import { MAX_CLIENTS } from "../../src/ivshmem/server.ts";
import { countOf, keptLog, RawClient } from "../ivshmem/support.ts";
import { PATIENT } from "../support/patient_clock.ts";
import { delay, processTest, until, VMSG_COMMAND } from "../support/processes.ts";

const onSocket = (...more: string[]) => ["ivshmem-server", "--socket", "iv.sock", ...more];

const COMPLAINTS: readonly [string[], number, RegExp][] = [
  [["ivshmem-server"], 2, /--socket PATH is missing/],
  [["ivshmem-server", "--socket"], 2, /--socket needs PATH/],
  [onSocket("--frob"), 2, /unknown option --frob; see: vmsg ivshmem-server --help/],
  [onSocket("more"), 2, /unexpected argument more/],
  [onSocket("--size", "large"), 2, /--size: size is a number of bytes such as .*, not large/],
  [onSocket("--size", "3M"), 2, /--size 3M: the memory has a power of two .*, not 3145728/],
  [
    onSocket("--size", "2K"),
    2,
    /--size 2K: the memory has a power of two .* from 4K to 64G, not 2048/,
  ],
  [onSocket("--size", "128G"), 2, /--size 128G: the memory has a power of two/],
  [onSocket("--vectors", "65"), 2, /--vectors takes a whole number from 0 to 64, not 65/],
  [onSocket("--vectors=-1"), 2, /--vectors takes a whole number from 0 to 64, not -1/],
  [onSocket("--log-level", "loud"), 2, /--log-level is one of error, .*, not loud/],
  [["ivshmem-server", "--socket", "no/iv.sock"], 1, /no\/iv.sock: No such file .*ENOENT/],
  [["ivshmem-server", "--socket", "file"], 1, /socket path file is a file that is no socket/],
  [["ivshmem-server", "--socket", "a".repeat(120)], 1, /has 120 bytes, Linux allows 107/],
  [onSocket("--file", "no/memory"), 1, /open no\/memory: No such file .*ENOENT/],
  [
    onSocket("--file", "file", "--size", "4K"),
    1,
    /memory file file has 5000 bytes, not 4096/,
  ],
  [
    onSocket("--file", "/dev/null"),
    1,
    /memory file \/dev\/null is no file: remove it or name another/,
  ],
];

processTest("cli: ivshmem-server says in one line what is wrong", async (vmsg) => {
  await Deno.writeFile(`${vmsg.directory}/file`, new Uint8Array(5000));
  for (const [args, code, pattern] of COMPLAINTS) {
    const ended = await vmsg.run(...args);
    const what = `vmsg ${args.join(" ")}`;
    assertEquals([ended.stderr.length, ended.stdout, ended.code], [1, [], code], what);
    assertMatch(ended.stderr[0]!, pattern, what);
  }
  assertEquals(vmsg.files(), ["file"]);
});

processTest(
  "cli: ivshmem-server tells joins and leaves, and ends without a trace",
  async (vmsg) => {
    const server = await vmsg.start(...onSocket("--size", "0x10000", "--vectors", "1"));
    await server.waitFor(/iv.sock: 65536 bytes \(sealed\), 1 vector; waiting for peers/);
    {
      using end = openServerEnd(`${vmsg.directory}/iv.sock`, { log: keptLog([]), clock: PATIENT });
      assertEquals([end.id, end.memory.size], [0, 65536]);
      await server.waitFor(/peer 0 joined, 1 in all/);
    }
    await server.waitFor(/peer 0 left, 0 in all/);
    const taken = await vmsg.run(...onSocket());
    assertEquals(taken.code, 1);
    assertMatch(taken.stderr.join("\n"), /^vmsg: socket iv.sock is in use by another process$/);
    assertEquals((await server.end("SIGTERM")).code, 0);
    assertEquals(vmsg.files(), []);
  },
);

processTest("cli: ivshmem-server --trace says what it says", async (vmsg) => {
  const server = await vmsg.start(...onSocket("--vectors", "1", "--trace"));
  await server.waitFor(/waiting for peers/);
  const open = () =>
    openServerEnd(`${vmsg.directory}/iv.sock`, { log: keptLog([]), clock: PATIENT });
  {
    using _first = open();
    open()[Symbol.dispose]();
    await server.waitFor(/-> peer 0: peer 1 is gone/);
  }
  assertEquals((await server.end("SIGTERM")).code, 0);
  const traced = server.stderr.map((line) => /->.*/.exec(line)?.[0]).filter((line) => line);
  assertEquals(traced, [
    "-> peer 0: version 0",
    "-> peer 0: its id is 0",
    "-> peer 0: the memory",
    "-> peer 0: a vector of its own",
    "-> peer 0: a vector of peer 1",
    "-> peer 1: version 0",
    "-> peer 1: its id is 1",
    "-> peer 1: the memory",
    "-> peer 1: a vector of peer 0",
    "-> peer 1: a vector of its own",
    "-> peer 0: peer 1 is gone",
  ]);
});

processTest("cli: ivshmem-server --trace leaves nothing out, however much it is", async (vmsg) => {
  const quiet = ["--log-level", "error"];
  const server = await vmsg.start(...onSocket("--vectors", "64", "--trace", ...quiet));
  // It says nothing, and its socket's file is there a moment before it listens.
  let stream: UnixStream | undefined;
  await until(() => (stream = connectUnix(`${vmsg.directory}/iv.sock`)) !== undefined);
  const clients = [new RawClient(stream!), connect(vmsg.directory)];
  // Version, id and memory for each; each one's vectors for both.
  const count = 2 * 3 + 2 * 2 * 64;
  const read = () => clients.reduce((sum, client) => sum + client.read(), 0);
  await until(() => read() === count);
  const traced = () => server.stderr.filter((line) => line.startsWith("-> peer"));
  await until(() => traced().length === count);
  for (const client of clients) client[Symbol.dispose]();
});

processTest("cli: ivshmem-server replaces one that was killed, and keeps a file", async (vmsg) => {
  // Where memory is: what is elsewhere, peers do not take.
  const directory = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "vmsg-test-" });
  using _directory = { [Symbol.dispose]: () => Deno.removeSync(directory, { recursive: true }) };
  const args = onSocket("--size", "4K", "--file", `${directory}/memory`);
  for (let round = 1; round <= 2; round++) {
    const server = await vmsg.start(...args);
    await server.waitFor(/4096 bytes \(.*memory\), 2 vectors/);
    using end = openServerEnd(`${vmsg.directory}/iv.sock`, { log: keptLog([]), clock: PATIENT });
    const bytes = new Uint8Array(end.memory.buffer);
    assertEquals(bytes[0], round - 1);
    bytes[0] = round;
    await server.end("SIGKILL");
  }
  assertEquals(vmsg.files(), ["iv.sock"]);
});

/** A client that is connected, and let in if the server can. */
function connect(directory: string): RawClient {
  const stream = connectUnix(`${directory}/iv.sock`);
  if (stream === undefined) throw new Error("nobody listens");
  return new RawClient(stream);
}

/** Version, id and memory: all that a client is told where there are no vectors. */
const LIST_LENGTH = 3;
const CANNOT_ACCEPT = /cannot accept a connection/;

processTest("cli: ivshmem-server out of descriptors waits instead of spinning", async (vmsg) => {
  // Without vectors a client costs one descriptor, so the one that is too many stays at the door.
  const command = [...VMSG_COMMAND, ...onSocket("--vectors", "0")].join(" ");
  const server = await vmsg.startProgram("sh", "-c", `ulimit -n 80; exec ${command}`);
  await server.waitFor(/waiting for peers/);
  using stack = new DisposableStack();
  const attempts = () => server.stderr.filter((line) => CANNOT_ACCEPT.test(line));
  const clients: RawClient[] = [];
  let startMs = 0;
  while (attempts().length === 0) {
    // Before the attempts begin, whenever they are seen.
    startMs = performance.now();
    assert(clients.length < MAX_CLIENTS, "the server is never out of descriptors");
    const client = stack.use(connect(vmsg.directory));
    clients.push(client);
    await until(() => client.read() === LIST_LENGTH || attempts().length > 0);
  }
  let last = clients.pop()!;
  // The first ten are said as they come: a loop without pauses would be through them at once.
  while (attempts().length < 6) {
    await delay(10);
    // A descriptor that the runtime gave back lets one more in.
    if (last.read() === LIST_LENGTH) {
      assert(clients.push(last) < MAX_CLIENTS, "the server does not stay out of descriptors");
      last = stack.use(connect(vmsg.directory));
    }
  }
  assertEquals(attempts().slice(0, 6).filter((line) => line.includes("more)")), []);
  assert(performance.now() - startMs > 200, "it does not pause");
  // When there is room again it lets the next one in.
  for (const client of clients.splice(0, 3)) client[Symbol.dispose]();
  await until(() => last.read() === LIST_LENGTH);
});

/** Not even root may have more descriptors under way than its limit, without these two capabilities. */
function asUser(limit: number, ...args: string[]): [string, string, string] {
  const drop = "-sys_resource,-sys_admin";
  const user = Deno.uid() === 0 ? ["setpriv", `--bounding-set=${drop}`, `--inh-caps=${drop}`] : [];
  const command = [...user, ...VMSG_COMMAND, ...onSocket(...args)].join(" ");
  return ["sh", "-c", `ulimit -n ${limit}; exec ${command}`];
}

processTest("cli: ivshmem-server and clients that read nothing keep nobody out", async (vmsg) => {
  const server = await vmsg.startProgram(...asUser(600, "--vectors", "8"));
  await server.waitFor(/waiting for peers/);
  using stack = new DisposableStack();
  // To tell them all would be 9000 descriptors under way, of 600.
  const silent: RawClient[] = [];
  for (let count = 1; count <= 45; count++) {
    silent.push(stack.use(connect(vmsg.directory)));
    await server.waitFor(new RegExp(`, ${count} in all`));
  }
  const newcomers = [1, 2].map(() => stack.use(connect(vmsg.directory)));
  const [a, b] = newcomers as [RawClient, RawClient];
  await until(
    () => (a.read(), b.read(), a.fds.get(46)?.length === 8 && b.fds.get(46)?.length === 8),
  );
  a.ring(46, 5);
  assertEquals(countOf(b.fds.get(46)![5]!), 1);
  assertEquals(server.stderr.filter((line) => /dropped|full/.test(line)), []);
  for (const { isClosed } of silent) assertEquals(isClosed, false);
});

processTest(
  "cli: ivshmem-server says why it cannot send descriptors, and does when it can",
  async (vmsg) => {
    const server = await vmsg.startProgram(...asUser(150, "--vectors", "8"));
    await server.waitFor(/waiting for peers/);
    using client = connect(vmsg.directory);
    await until(() => client.read() === LIST_LENGTH + 8);
    // Another process of the same user has sent more than the server's limit, and nobody reads it.
    const hogs = new DisposableStack();
    const byte = allocate(1);
    const fd = hogs.use(createEventFd());
    for (let count = 0; count < 200; count += 8) {
      const [from, to] = unixStreamPair();
      hogs.use(to);
      hogs.use(from).send(byte.address, 1, new Array(8).fill(fd));
    }
    using late = connect(vmsg.directory);
    await server.waitFor(/full, peer \d has to wait: .* \(ETOOMANYREFS\): raise .* \(ulimit -n\)/);
    hogs.dispose();
    const learned = (reader: RawClient, id: number) => (
      reader.read(), reader.fds.get(id)?.length === 8
    );
    await until(() => learned(client, 1) && learned(late, 0) && learned(late, 1));
    client.ring(1, 2);
    assertEquals(countOf(late.fds.get(1)![2]!), 1);
  },
);
