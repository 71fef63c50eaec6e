/** How long a device side takes to answer is counted, by kind of request, also where a device answers later. */

import { assert, assertEquals } from "@std/assert";
import { Kind } from "../../src/message/message.ts";
import { CounterMemory, countIn } from "../../src/observe/counters.ts";
import { LATENCY, type LatencyRead, readLatency } from "../../src/observe/latency.ts";
import { readCounters } from "../../src/observe/read_counters.ts";
import { withVmsg } from "../support/device_rig.ts";
import { LateDevice } from "../support/late_device.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

const LATE = 7;

/** What a process has counted, by the kind of request. */
async function latenciesIn(memory: CounterMemory): Promise<Map<string, LatencyRead>> {
  const found = new Map<string, LatencyRead>();
  await withDirectory((directory) => {
    const path = `${directory}/device.1`;
    Deno.writeFileSync(path, new Uint8Array(memory.buffer));
    for (const { kind, name, counters } of readCounters(path).groups) {
      if (kind === LATENCY) found.set(name.replace("answering ", ""), readLatency(counters));
    }
  });
  return found;
}

cleanTest(
  "answer times: each kind has its own, and a request that waits waits from when it came",
  async () => {
    const memory = new CounterMemory(new ArrayBuffer(65536), "device", 1, 1.7e12);
    countIn(memory);
    let late!: LateDevice;
    try {
      await withVmsg(async ({ peer, reactor, quiet }) => {
        const get = (m: { device: number; offset: number; length: number }) => {
          m.device = LATE;
          m.offset = 0;
          m.length = 2;
        };
        for (let n = 0; n < 3; n++) await peer.ask(Kind.GET_CONFIG, get);
        late.isLate = true;
        // The second waits for the first, and is answered at once when that is.
        peer.send(Kind.GET_CONFIG, get);
        peer.send(Kind.GET_DEVICE_INFO, (m) => m.device = LATE);
        await reactor.sleep(300);
        late.isLate = false;
        late.answer();
        await reactor.sleep(1);
        peer.messages.length = 0;
        await quiet();
      }, { models: [[LATE, (reactor) => late = new LateDevice(reactor)]] });
    } finally {
      countIn(undefined);
    }
    const latencies = await latenciesIn(memory);
    const config = latencies.get("GET_CONFIG")!;
    assertEquals(config.count, 4);
    assert(config.p50Us <= 1024, `three at once: ${config.p50Us} us`);
    assert(config.longestUs >= 300_000 && config.longestUs < 310_000, `${config.longestUs} us`);
    const info = latencies.get("GET_DEVICE_INFO")!;
    assertEquals(info.count, 1);
    assert(info.longestUs >= 300_000 && info.longestUs < 310_000, `${info.longestUs} us`);
    assert(latencies.get("HELLO")!.count > 0 && latencies.get("PING")!.count > 0);
  },
);
