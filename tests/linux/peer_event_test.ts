/** Signals by descriptors that peers gave, full and without O_NONBLOCK: whatever blocks here would block for ever. */

import { assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { Fd } from "../../src/linux/fd.ts";
import { check, libc } from "../../src/linux/libc.ts";
import { PeerEvent } from "../../src/linux/peer_event.ts";
import { kindOf } from "../../src/linux/received_fd.ts";
import { everyKind, fillEventFd } from "../support/descriptor_kinds.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

/** The same description, as a peer has it. */
const again = (fd: Fd) => new Fd(check(libc.fcntl(fd.number, 0, 0n), "dup"));

cleanTest("peer event: a full count without O_NONBLOCK takes signals, and can be taken out", () => {
  using fd = new Fd(check(libc.eventfd(0, 0), "eventfd"));
  using event = new PeerEvent(again(fd), "signal", "call");
  fillEventFd(fd);
  for (let i = 0; i < 1000; i++) event.signal();
  assertEquals([event.clear(), event.clear()], [true, false]);
  event.signal();
  assertEquals([event.clear(), event.clear()], [true, false]);
});

cleanTest("peer event: each signal is one", () => {
  using fd = createEventFd();
  using event = new PeerEvent(again(fd), "signal", "call");
  for (let i = 0; i < 5000; i++) {
    event.signal();
    assertEquals(event.clear(), true);
  }
  event.signal();
  clearEventFd(fd);
  assertEquals(event.clear(), false);
  signalEventFd(fd);
  assertEquals(event.clear(), true);
});

/** What each kind is, and who takes it. */
const EXPECTED: Readonly<Record<string, string>> = {
  "eventfd": "eventfd, signal, wait",
  "full eventfd": "eventfd, signal, wait",
  "full semaphore": "eventfd, signal",
  "blocking socket": "unix stream socket, signal",
  "sealed memfd": "memory",
  "unsealed memfd": "memory",
  "huge-page memfd": "memory",
  "regular file": "memory",
};

Deno.test("kinds: each is what it is, and nothing else is signalled or waited for", () =>
  withDirectory(async (directory) => {
    await using kinds = await everyKind(directory, 1 << 20);
    for (const [name, fd] of kinds.fds) {
      const takes = (["signal", "wait"] as const).filter((direction) => {
        try {
          // It is not disposed: the descriptor stays the table's.
          new PeerEvent(fd, direction, "it");
          return true;
        } catch (error) {
          assertThrows(
            () => {
              throw error;
            },
            VmsgError,
            "it is",
          );
          return false;
        }
      });
      assertEquals([kindOf(fd), ...takes].join(", "), EXPECTED[name] ?? "other", name);
    }
  }));
