/** The control socket: what clients may do, and that none holds up the loop that it stands in. */

import { assert, assertEquals } from "@std/assert";
import {
  type ControlAnswer,
  ControlSocket,
  MAX_CLIENTS,
  MAX_LINE,
  SILENT_MS,
} from "../../src/cli/control/control_socket.ts";
import { allocate } from "../../src/linux/arena.ts";
import { UsageError, VmsgError } from "../../src/linux/errors.ts";
import { createSealedMemory, type Fd } from "../../src/linux/fd.ts";
import { type Deferred, Reactor } from "../../src/linux/reactor.ts";
import { connectUnix, type UnixStream } from "../../src/linux/unix_socket.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const block = allocate(1 << 16);

class TestClient implements Disposable {
  readonly #stream: UnixStream;
  received = "";
  hasEnded = false;

  constructor(readonly reactor: Reactor, path: string) {
    this.#stream = connectUnix(path)!;
  }

  send(text: string, fds: readonly Fd[] = []): void {
    const bytes = new TextEncoder().encode(text);
    block.bytes.set(bytes);
    assertEquals(this.#stream.send(block.address, bytes.length, fds), bytes.length);
  }

  /** What came until now. */
  look(): string {
    for (;;) {
      const count = this.#stream.receive(block.address, block.bytes.length);
      if (count === 0) this.hasEnded = true;
      if (count <= 0) return this.received;
      this.received += new TextDecoder().decode(block.bytes.subarray(0, count));
    }
  }

  async answer(): Promise<ControlAnswer> {
    for (let i = 0; !this.look().includes("\n"); i++) {
      assert(i < 1000 && !this.hasEnded, `no answer: ${this.received}`);
      await this.reactor.sleep(1);
    }
    const end = this.received.indexOf("\n") + 1;
    const line = this.received.slice(0, end);
    this.received = this.received.slice(end);
    return JSON.parse(line);
  }

  [Symbol.dispose](): void {
    this.#stream[Symbol.dispose]();
  }
}

interface Rig {
  readonly reactor: Reactor;
  readonly path: string;
  readonly lines: string[];
  /** The answer to a line "wait". */
  readonly waiting: Deferred<string>[];
  connect(): TestClient;
}

async function withSocket(body: (rig: Rig) => Promise<void>): Promise<void> {
  await withDirectory(async (directory) => {
    using reactor = new Reactor(new VirtualClock());
    const path = `${directory}/ctl.sock`;
    using _ = { [Symbol.dispose]: () => assertEquals([...Deno.readDirSync(directory)], []) };
    const lines: string[] = [];
    const waiting: Deferred<string>[] = [];
    using stack = new DisposableStack();
    const answer = async (line: string) => {
      lines.push(line);
      if (line === "usage") throw new UsageError("no such word");
      if (line === "fail") throw new VmsgError("NO_DEVICE", "there is none");
      if (line === "bug") throw new TypeError("x is undefined");
      if (line === "long") return "x".repeat(60_000);
      if (line !== "wait") return { line };
      const deferred = reactor.defer<string>();
      waiting.push(deferred);
      return await deferred.promise;
    };
    stack.use(new ControlSocket(reactor, path, {}, answer, (line) => lines.push(line)));
    const connect = () => stack.use(new TestClient(reactor, path));
    await reactor.until(body({ reactor, path, lines, waiting, connect }));
  });
}

const socketTest = (name: string, body: (rig: Rig) => Promise<void>) =>
  cleanTest(`control socket: ${name}`, () => withSocket(body));

socketTest(
  "lines in pieces and together are answered one by one, failures in words",
  async (rig) => {
    const client = rig.connect();
    client.send("on");
    await rig.reactor.sleep(5);
    client.send("e\nusage\nfail\nbug\n");
    assertEquals(await client.answer(), { result: { line: "one" } });
    assertEquals(await client.answer(), { error: { code: "USAGE", message: "no such word" } });
    assertEquals(await client.answer(), { error: { code: "NO_DEVICE", message: "there is none" } });
    const bug = await client.answer();
    assert("error" in bug && bug.error.code === "INTERNAL", JSON.stringify(bug));
    assertEquals(rig.lines, ["one", "usage", "fail", "bug"]);
  },
);

socketTest("the file is this user's alone, and goes with the socket", async ({ path }) => {
  assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
  await Promise.resolve();
});

socketTest("a line that is too long is refused, and its client let go of", async (rig) => {
  for (
    const [text, isRefused] of [["x".repeat(MAX_LINE) + "\n", false], [
      "x".repeat(MAX_LINE + 1),
      true,
    ]] as const
  ) {
    const client = rig.connect();
    client.send(text);
    const answer = await client.answer();
    assertEquals("error" in answer, isRefused);
    client.look();
    assertEquals(client.hasEnded, isRefused);
  }
});

socketTest("who says nothing is let go of; so is who does not end a line", async (rig) => {
  const clients = [rig.connect(), rig.connect()];
  clients[1]!.send("begun");
  await rig.reactor.sleep(SILENT_MS - 1);
  clients[1]!.send(" and on");
  for (const client of clients) client.look();
  assertEquals(clients.map(({ hasEnded }) => hasEnded), [false, false]);
  await rig.reactor.sleep(2);
  for (const client of clients) client.look();
  assertEquals(clients.map(({ hasEnded }) => hasEnded), [true, true]);
});

socketTest("a few are served at a time, the next when one has left", async (rig) => {
  const clients = Array.from({ length: MAX_CLIENTS + 1 }, () => rig.connect());
  await rig.reactor.sleep(1);
  for (const client of clients) client.send("hello\n");
  for (const client of clients.slice(0, MAX_CLIENTS)) await client.answer();
  const last = clients.at(-1)!;
  assertEquals(last.look(), "");
  clients[0]![Symbol.dispose]();
  assertEquals(await last.answer(), { result: { line: "hello" } });
});

socketTest(
  "what takes long makes its client wait and no other; one that left is not missed",
  async (rig) => {
    const [patient, gone, other] = [rig.connect(), rig.connect(), rig.connect()];
    patient.send("wait\nnext\n");
    gone.send("wait\n");
    await rig.reactor.sleep(1);
    gone[Symbol.dispose]();
    other.send("hello\n");
    assertEquals(await other.answer(), { result: { line: "hello" } });
    await rig.reactor.sleep(3 * SILENT_MS);
    assertEquals(rig.lines, ["wait", "wait", "hello"]);
    for (const { resolve } of rig.waiting) resolve("done");
    assertEquals(await patient.answer(), { result: "done" });
    assertEquals(await patient.answer(), { result: { line: "next" } });
  },
);

socketTest("who asks and does not read is let go of; descriptors are closed", async (rig) => {
  const client = rig.connect();
  using fd = createSealedMemory("vmsg-test", 4096);
  client.send("hello\n", [fd, fd]);
  assertEquals(await client.answer(), { result: { line: "hello" } });
  client.send("long\n".repeat(20));
  await rig.reactor.sleep(1000);
  const asked = rig.lines.length;
  assert(asked < 20, `${asked} answers are kept for who reads none`);
  client.look();
  assertEquals(client.hasEnded, true);
});
