/** One guest's front end comes, goes and sends what it should not; the other guest goes on being answered. */

import { assert } from "@std/assert";
import { Request } from "../../src/vhost_user/protocol.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory, F_SEAL_GROW, F_SEAL_SHRINK, Fd } from "../../src/linux/fd.ts";
import { check, cString, libc } from "../../src/linux/libc.ts";
import { MEMORY_SIZE, regionBytes, u32s, waitUntil } from "../support/front_end.ts";
import { processTest } from "../support/processes.ts";
import { withTwoGuests } from "../support/two_guests.ts";

const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;

/** ADD_MEM_REG's payload. */
const oneRegion = (at: number, size: number) =>
  new Uint8Array([...u32s(0, 0), ...regionBytes(at, size, 0x7f00_0000_0000 + at, at)]);

/** A sealed memfd of holes, larger than the machine. */
function sparse(size: number): Fd {
  const number = libc.memfd_create(cString("vmsg-test"), MFD_ALLOW_SEALING);
  const fd = new Fd(check(number, "memfd_create"));
  check(libc.ftruncate(fd.number, BigInt(size)), "ftruncate");
  check(libc.fcntl(fd.number, F_ADD_SEALS, BigInt(F_SEAL_SHRINK | F_SEAL_GROW)), "seal");
  return fd;
}

processTest(
  "two guests: what one front end does wrong does not disturb the other",
  (vmsg) =>
    withTwoGuests(vmsg, async (guests) => {
      await guests.attack(async (a) => {
        using memory = createSealedMemory("vmsg-test", MEMORY_SIZE);
        using kick = createEventFd();
        const frontEnd = a.connect();
        await frontEnd.setUp(memory);
        frontEnd.startRing(0, kick);
        await frontEnd.barrier();
        frontEnd.send(Request.SET_MEM_TABLE, new Uint8Array(3));
        await guests.proxy.waitFor(/given up/);
      });
      await guests.answered();
    }),
);

processTest(
  "two guests: one shows memory without end, the other is answered and comes again",
  (vmsg) =>
    withTwoGuests(vmsg, async (guests) => {
      // Holes, which cost whoever shows them nothing: 64 TiB, half of an address space.
      const TEBI = 2 ** 40;
      using memory = sparse(64 * TEBI);
      await guests.attack(async (a) => {
        for (const regions of [1, 8]) {
          const frontEnd = a.connect();
          await frontEnd.ask(Request.GET_FEATURES);
          frontEnd.send(Request.SET_PROTOCOL_FEATURES, u32s(1 << 15, 0));
          const size = 8 * TEBI;
          for (let i = 0; i < regions && !frontEnd.hungUp; i++) {
            try {
              frontEnd.send(Request.ADD_MEM_REG, oneRegion(i * size, size), [memory]);
            } catch {
              // It hung up at one before.
              break;
            }
          }
          await waitUntil(a.reactor, () => frontEnd.hungUp);
          await a.reactor.sleep(300);
        }
        // Within the limits all is as always.
        using usual = createSealedMemory("vmsg-test", MEMORY_SIZE);
        const frontEnd = a.connect();
        await frontEnd.setUp(usual);
      });
      await guests.answered();
      for (const process of [guests.proxy, guests.device]) {
        const status = Deno.readTextFileSync(`/proc/${process.pid}/status`);
        const kilobytes = Number(/^VmSize:\s+(\d+) kB/m.exec(status)![1]);
        assert(kilobytes * 1024 < TEBI, `${kilobytes} kB of address space`);
      }
      await guests.proxy.waitFor(/\(--memory-limit\)/);
      const refused = guests.proxy.stderr.filter((line) => line.includes("(--memory-limit)"));
      assert(refused.length >= 1 && refused.length <= 2, refused.join("\n"));
    }),
);
