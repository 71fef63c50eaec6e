/** One guest's front end comes, goes and sends what it should not; the other guest goes on being answered. */

import { Request } from "../../src/drivers/vhost_user/protocol.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import { MEMORY_SIZE } from "../support/front_end.ts";
import { processTest } from "../support/processes.ts";
import { withTwoGuests } from "../support/two_guests.ts";

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
