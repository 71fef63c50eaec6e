/** The thread of a queue pair, for tests: as src/cli/worker.ts has it, without giving up what the tests may do. */

/// <reference lib="deno.worker" />

import { type PairLine, PairThread } from "../../../src/devices/net/pair_line.ts";
import { Reactor } from "../../../src/linux/reactor.ts";

self.onmessage = async ({ data }: MessageEvent<PairLine>) => {
  using reactor = new Reactor();
  new PairThread(data, reactor);
  self.postMessage("started");
  await reactor.run();
  self.postMessage("ended");
  self.close();
};
