/**
 * A peer of its own process for server_end_test.ts: answers each ring of peer N with a ring, after it has
 * copied the word at 0 of the memory to the word at 64. Lives until it is killed.
 */

import { openServerEnd, type ServerEnd } from "../../src/ivshmem/server_end.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { loadAcquire32, storeRelease32 } from "../../src/memory/mod.ts";
import { createLog } from "../../src/observe/log.ts";
import { PATIENT } from "./support.ts";

const [path = "", peer = "0"] = Deno.args;
const log = createLog("child", "info", (line) => console.error(line));
const reactor = new Reactor();
const end: ServerEnd = openServerEnd(path, { log, clock: PATIENT });
const words = new Uint32Array(end.memory.buffer);
const other = Number(peer);
end.open(reactor, {
  rung() {
    storeRelease32(words, 16, loadAcquire32(words, 0));
    end.ring(other);
  },
  joined() {},
  left() {},
});
console.log(`peer ${end.id} of ${[...end.peers].join(" ")}`);
await reactor.run();
