/** xenstore as the kernel passes it on, with a socket in the place of /dev/xen/xenbus. */

import { assertEquals } from "@std/assert";
import { Reactor } from "../../src/linux/reactor.ts";
import { type UnixStream, unixStreamPair } from "../../src/linux/unix_socket.ts";
import { allocate } from "../../src/linux/arena.ts";
import { libc } from "../../src/linux/libc.ts";
import { Xenstore } from "../../src/xen/xenstore.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const buffer = allocate(8192);

/** Plays xenstored: takes what was asked, and says something. */
class Daemon {
  constructor(readonly stream: UnixStream) {}

  /** The messages since the last time: type, request and body. */
  asked(): { type: number; request: number; body: string }[] {
    const length = libc.read(this.stream.fd.number, buffer.address, 8192);
    const found = [];
    for (let at = 0; at < length;) {
      const [type, request, , size] = [0, 4, 8, 12].map((o) => buffer.view.getUint32(at + o, true));
      const body = new TextDecoder().decode(buffer.bytes.slice(at + 16, at + 16 + size!));
      found.push({ type: type!, request: request!, body });
      at += 16 + size!;
    }
    return found;
  }

  /** @param cut writes only so many bytes of it, from `from` on */
  say(type: number, request: number, body: string, from = 0, cut = Infinity): void {
    const bytes = new TextEncoder().encode(body);
    [type, request, 0, bytes.length].forEach((word, i) => buffer.view.setUint32(4 * i, word, true));
    buffer.bytes.set(bytes, 16);
    const length = Math.min(16 + bytes.length, cut) - from;
    libc.write(this.stream.fd.number, buffer.address + BigInt(from), length);
  }
}

function storeTest(
  name: string,
  body: (store: Xenstore, daemon: Daemon, reactor: Reactor) => Promise<void>,
): void {
  cleanTest(name, async () => {
    using reactor = new Reactor(new VirtualClock());
    const [ours, theirs] = unixStreamPair();
    using peer = theirs;
    using store = new Xenstore(reactor, ours.fd);
    await reactor.until(body(store, new Daemon(peer), reactor));
  });
}

storeTest("xenstore: questions, and answers in any order", async (store, daemon) => {
  const read = store.read("/local/domain/1/name");
  const list = store.list("/local/domain");
  const written = store.write("/a", "2");
  const isThere = store.hasDomain(1);
  assertEquals(daemon.asked(), [
    { type: 2, request: 1, body: "/local/domain/1/name\0" },
    { type: 1, request: 2, body: "/local/domain\0" },
    { type: 11, request: 3, body: "/a\x002" },
    { type: 17, request: 4, body: "1\0" },
  ]);
  daemon.say(17, 4, "T\0");
  daemon.say(1, 2, "0\x001\0");
  daemon.say(2, 1, "domu");
  daemon.say(11, 3, "OK\0");
  assertEquals(await Promise.all([read, list, written, isThere]), ["domu", ["0", "1"], true, true]);
});

storeTest("xenstore: errors, empty answers, and those nobody asked for", async (store, daemon) => {
  const answers = [
    store.read("/no"),
    store.list("/no"),
    store.list("/empty"),
    store.write("/no", ""),
  ];
  const gone = store.hasDomain(9);
  daemon.say(16, 1, "ENOENT\0");
  daemon.say(16, 2, "ENOENT\0");
  daemon.say(2, 77, "who?");
  daemon.say(1, 3, "");
  daemon.say(16, 4, "EACCES\0");
  daemon.say(17, 5, "F\0");
  assertEquals(await Promise.all([...answers, gone]), [undefined, [], [], false, false]);
});

storeTest(
  "xenstore: watch events come by themselves, and in pieces",
  async (store, daemon, reactor) => {
    const seen: string[] = [];
    const watching = store.watch("@introduceDomain", (path) => seen.push(path));
    assertEquals(daemon.asked().map(({ body }) => body), ["@introduceDomain\0@introduceDomain\0"]);
    daemon.say(4, 1, "OK\0");
    await watching;
    daemon.say(15, 0, "@introduceDomain\0@introduceDomain\0");
    daemon.say(15, 0, "/other\0of nobody\0");
    for (let from = 0; from < 50; from += 7) {
      daemon.say(15, 0, "@introduceDomain\0@introduceDomain\0", from, from + 7);
      await reactor.sleep(1);
    }
    assertEquals(seen, ["@introduceDomain", "@introduceDomain"]);
  },
);
