/** `vmsg driver --count`: it ends, also where a device side is never understood. */

import { assertEquals, assertRejects } from "@std/assert";
import { NetDriver } from "../../../src/drivers/net/net_driver.ts";
import { Pinger } from "../../../src/drivers/net/pinger.ts";
import { VmsgError } from "../../../src/linux/errors.ts";
import { mapAnonymous } from "../../../src/linux/mapping.ts";
import type { Dialect } from "../../../src/message/codec.ts";
import { createLog } from "../../../src/observe/log.ts";
import { knownMemory } from "../../../src/sharing/driver_memory.ts";
import { withDriverSide } from "../../support/driver_rig.ts";
import { cleanTest } from "../../support/leaks.ts";
import { DIALECTS } from "../../../src/message/message.ts";

/** A driver whose device side takes everything and says nothing; how long it went on. */
async function goesOn(dialect: Dialect, count: number): Promise<number> {
  using memory = mapAnonymous(16 << 20);
  let lastMs = 0;
  await withDriverSide(async ({ reactor, side, peer }) => {
    peer.onMessage = () => false;
    const options = { target: "10.0.2.2", address: "10.0.2.15", throughputMs: 0, intervalMs: 1 };
    const pinger = new Pinger(reactor, { ...options, count, print: () => {} });
    const log = createLog("test", "error", () => {});
    const shared = { memory: knownMemory(memory, 0x4000_0000) };
    using driver = new NetDriver(reactor, side, 0, pinger, log, shared);
    pinger.use(driver);
    reactor.spawn(async () => void await pinger.run());
    const startMs = reactor.now();
    for (; lastMs < 60_000; lastMs = reactor.now() - startMs) await reactor.sleep(100);
  }, { dialect, answersHello: false });
  return lastMs;
}

for (const dialect of DIALECTS) {
  cleanTest(
    `pinger: a device side that says nothing of ${dialect} ends one who counts`,
    async () => {
      await assertRejects(() => goesOn(dialect, 3), VmsgError, `no answer that is ${dialect}`);
    },
  );
}

cleanTest("pinger: who does not count waits for ever", async () => {
  assertEquals(await goesOn("v1", Infinity) >= 60_000, true);
});
