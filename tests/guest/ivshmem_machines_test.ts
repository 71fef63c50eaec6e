/**
 * Two machines that share an ivshmem device: `vmsg device` in A, `vmsg driver` in B. Traffic both ways
 * A's card can be reached, and what goes on when a machine or a process ends, stands still or comes
 * back.
 *
 * B's only way out is the card whose device is in A; A's own card is in QEMU's user network, where
 * 10.0.2.2 is this host.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { deviceScript, DRIVER_HUGE_PAGES, driverScript } from "../../scripts/lab/pair.ts";
import { openFile } from "../../src/linux/fd.ts";
import { HUGE_PAGE_SIZE } from "../../src/linux/huge_pages.ts";
import { type Mapping, mapShared } from "../../src/linux/mapping.ts";
import { LEASE_MS } from "../../src/transport/peer.ts";
import { delay } from "../support/processes.ts";
import { BOOT_TIMEOUT_MS, type ControlledMachine, pairTest } from "./pair_support.ts";

/** What B fetches from this host. */
const FETCH_BYTES = 4 << 20;
const PINGS = 20;
/** B's address in A's network; DHCP gives the same. */
const B_ADDRESS = "10.0.2.15";
const A_ADDRESS = "10.0.2.3";
const NICS = [{ netdev: "user" }];

const DEVICE_STARTED = /vmsg device: .*: waiting for a driver side$/;
const DRIVER_CAME = /vmsg device: .*: a vmsg driver side is there$/;
const DRIVER_SILENT = /vmsg device: .*: the driver side is silent/;
const DEVICE_CAME = /vmsg driver: .*: a vmsg device side is there$/;

/** Waits until B has its card, with an address. */
async function isUp(b: ControlledMachine): Promise<void> {
  await b.runUntilDone("ip addr show vm0 2>/dev/null | grep -q 10.0.2.15");
}

/** Message interrupts so far. Vector 0 is the doorbell. */
async function interrupts(machine: ControlledMachine): Promise<number> {
  const line = await machine.run("grep -F 'vfio-msix[0]' /proc/interrupts");
  return Number(line.match(/^ *\d+: +(\d+)/)?.[1]);
}

/** The process id of the machine's vmsg. */
async function vmsgPid(machine: ControlledMachine): Promise<number> {
  const pid = (await machine.run("pidof vmsg")).trim();
  assertMatch(pid, /^\d+$/, `${machine.name} has one vmsg`);
  return Number(pid);
}

/** Something to fetch, on this host's loopback. */
class FileServer implements AsyncDisposable {
  readonly #bytes = new Uint8Array(FETCH_BYTES);
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor() {
    for (let at = 0; at < FETCH_BYTES; at += 65536) {
      crypto.getRandomValues(this.#bytes.subarray(at, at + 65536));
    }
    this.#server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {} },
      () => new Response(this.#bytes),
    );
  }

  get port(): number {
    return this.#server.addr.port;
  }

  async digest(): Promise<string> {
    return new Uint8Array(await crypto.subtle.digest("SHA-256", this.#bytes)).toHex();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

/** Pings, counts interrupts, fetches a file and compares it. */
async function traffic(what: string, a: ControlledMachine, b: ControlledMachine): Promise<void> {
  assertMatch(await b.run("pings 3 10.0.2.2"), / 3 packets received/);
  // Where a machine stands still, many of them have one interrupt: one round of three counts.
  for (let round = 1, few = true; few; round++) {
    const before = [await interrupts(a), await interrupts(b)];
    // In one second, so that the heartbeat's ten do not do.
    const pinged = await b.run(`counted PINGED ping -c ${PINGS} -i 0.05 10.0.2.2`);
    const after = [await interrupts(a), await interrupts(b)];
    // Another ping may run beside it.
    const [, sent, answered] = /^PINGED (\d+) sent, (\d+) answered$/m.exec(pinged)!;
    assert(Number(sent) >= PINGS);
    assertEquals(answered, sent);
    const grown = after.map((count, index) => count - before[index]!);
    console.log(
      `${what}: ${pinged.match(/round-trip .*/)?.[0]}; interrupts of ${PINGS} pings in A and B: ` +
        grown.join(", "),
    );
    few = grown.some((count) => count <= 0.75 * PINGS);
    assert(!few || round < 3, `interrupts in A and B: ${grown}`);
  }
  await using server = new FileServer();
  const startMs = performance.now();
  const fetched = await b.run(`wget -q -O - http://10.0.2.2:${server.port}/ | sha256sum`);
  const seconds = (performance.now() - startMs) / 1000;
  assertEquals(fetched.split(" ")[0], await server.digest());
  console.log(`${what}: ${FETCH_BYTES >> 20} MiB in ${seconds.toFixed(1)} s`);
}

pairTest("ivshmem machines: traffic by bridge, then by packet socket in a new A", async (test) => {
  const { startA, startB, kind } = test;
  const b = startB({ script: driverScript({ then: "" }), hugePages: DRIVER_HUGE_PAGES });
  let a = await startA({ script: deviceScript({ kind, net: "bridge" }), nics: NICS });
  const driver = await b;
  await Promise.all([a.booted(), driver.booted()]);
  await isUp(driver);
  const lease = await driver.machine.waitFor(/^LEASE /, BOOT_TIMEOUT_MS);
  assertEquals(lease, `LEASE ${B_ADDRESS}/24 router=10.0.2.2`);
  await traffic("bridge", a, driver);
  const pid = await vmsgPid(driver);
  await driver.run("ping 10.0.2.2 >/tmp/ping.log 2>&1 &");

  // A new machine, which is another peer of the ivshmem server; B is not touched.
  await a[Symbol.asyncDispose]();
  a = await startA({ script: deviceScript({ kind, net: "packet" }), nics: NICS });
  await a.booted();
  await driver.runUntilDone("ping -c 1 -W 5 10.0.2.2");
  await traffic("packet", a, driver);
  assertEquals(await vmsgPid(driver), pid);
  await driver.hasSaid(DEVICE_CAME, 2);
});

pairTest("ivshmem machines: each process is killed, and A is reset", async (test) => {
  const { startA, startB, kind } = test;
  const device = deviceScript({ kind, net: "bridge" });
  const starting = startA({ script: device, nics: NICS, reboots: true });
  const b = await startB({ script: driverScript({ then: "" }), hugePages: DRIVER_HUGE_PAGES });
  const a = await starting;
  await Promise.all([a.booted(), b.booted()]);
  await isUp(b);
  await b.runUntilDone("ping -c 1 -W 5 10.0.2.2");
  const reachesB = () => a.runUntilDone(`ping -c 1 -W 5 ${B_ADDRESS}`);
  const reachesHost = () => b.runUntilDone("ping -c 1 -W 5 10.0.2.2");

  // B's process is killed under pings from A.
  await a.run(`ip addr add ${A_ADDRESS}/24 dev br0`);
  await reachesB();
  const devicePid = await vmsgPid(a);
  await a.run(`ping -i 0.1 ${B_ADDRESS} >/tmp/ping.log 2>&1 &`);
  const { lineCount } = a.machine;
  await b.kill("vmsg");
  await a.machine.waitFor(DRIVER_SILENT, BOOT_TIMEOUT_MS, lineCount);
  assert((await a.try(`ping -c 1 -W 1 ${B_ADDRESS}`)).code !== 0, "nobody should answer");
  const came = a.machine.lineCount;
  await b.run("rm -f /tmp/driver.log; sh /tmp/start.sh >/dev/console 2>&1 &");
  await a.machine.waitFor(DRIVER_CAME, BOOT_TIMEOUT_MS, came);
  await reachesB();
  assertEquals(await vmsgPid(a), devicePid);

  // A's process is killed under pings from B.
  await isUp(b);
  const driverPid = await vmsgPid(b);
  await b.run("ping -i 0.1 10.0.2.2 >/tmp/ping.log 2>&1 &");
  await a.kill("vmsg");
  assert((await b.try("ping -c 1 -W 1 10.0.2.2")).code !== 0, "nobody should answer");
  await a.run("sh /tmp/start.sh >/dev/console 2>&1 &");
  await reachesHost();
  assertEquals(await vmsgPid(b), driverPid);

  // A is reset, B goes on and pings.
  await a.reset();
  await reachesHost();
  assertEquals(await vmsgPid(b), driverPid);
  // At the boot, at B's and A's new process, and at A's new boot. B's is reset in the test below.
  await b.hasSaid(DEVICE_CAME, 4);
  await a.hasSaid(DEVICE_STARTED, 3);
  assertEquals(a.count(DEVICE_STARTED), 3);
});

/**
 * What A's process may be late by: it looks at the lease, and may stand still before its last store.
 */
const LATE_MS = 1500;
/** How long B's memory is watched after B was stopped: a device without a lease would write until the end of it. */
const WATCH_MS = 2400;
/** Stops that are followed by `cont`, and those that are followed by a reset. */
const STOPS = 2;
const RESETS = Deno.env.get("VMSG_GUEST_FULL") === "1" ? 20 : 1;
const MOST_STOPS = 2 * (STOPS + RESETS);

/** The driver's memory in B, as seen from this host, and whether anybody writes to it. */
class WatchedMemory implements Disposable {
  readonly #stack = new DisposableStack();
  readonly #pages: { readonly now: Uint32Array; readonly before: Uint32Array }[];

  /** @param places offsets of the huge pages in the file */
  constructor(file: string, places: readonly number[]) {
    using fd = openFile(file);
    this.#pages = places.map((place) => {
      const mapping: Mapping = this.#stack.use(mapShared(fd.number, HUGE_PAGE_SIZE, place));
      const now = new Uint32Array(mapping.buffer);
      return { now, before: now.slice() };
    });
  }

  /** Has it changed since the last look? */
  look(): boolean {
    let changed = false;
    for (const { now, before } of this.#pages) {
      let i = 0;
      while (i < now.length && now[i] === before[i]) i++;
      if (i === now.length) continue;
      before.set(now);
      changed = true;
    }
    return changed;
  }

  /** Looks for a while. */
  async watch(durationMs: number): Promise<Watched> {
    const startMs = performance.now();
    let [changes, lastMs, longestMs] = [0, 0, 0];
    this.look();
    for (let previous = startMs; previous - startMs < durationMs;) {
      await delay(2);
      const now = performance.now();
      // It changed after the previous look began.
      if (this.look()) [changes, lastMs] = [changes + 1, previous - startMs];
      longestMs = Math.max(longestMs, performance.now() - previous);
      previous = now;
    }
    return { changes, lastMs, longestMs };
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

interface Watched {
  /** Looks that found a change. */
  readonly changes: number;
  /** From the start to the look before the one that found the last change. */
  readonly lastMs: number;
  /** The longest time between two looks. */
  readonly longestMs: number;
}

/** Where the driver's huge pages are in B's memory, by the kernel's word. */
async function hugePages(b: ControlledMachine): Promise<number[]> {
  const pid = await vmsgPid(b);
  const pagemap = `/proc/${pid}/pagemap`;
  const entries = await b.run([
    `range=$(grep -m 1 memfd:vmsg-driver /proc/${pid}/maps | cut -d " " -f 1)`,
    "at=$((0x${range%-*})); end=$((0x${range#*-}))",
    "while [ $at -lt $end ]",
    `do dd if=${pagemap} bs=8 skip=$((at / 4096)) count=1 2>/dev/null | xxd -p`,
    `at=$((at + ${HUGE_PAGE_SIZE}))`,
    "done",
  ].join("; "));
  const places = entries.trim().split("\n").map((hex) => {
    const entry = new DataView(Uint8Array.fromHex(hex).buffer).getBigUint64(0, true);
    return Number(entry & ((1n << 55n) - 1n)) * 4096;
  });
  assert(places.length > 0 && places.every((place) => place > 0), entries);
  return places;
}

pairTest("ivshmem machines: no write into a machine that stands still", async (test) => {
  const { pair, startA, startB, kind } = test;
  const starting = startA({ script: deviceScript({ kind, net: "tap" }) });
  const script = driverScript({ address: `${B_ADDRESS}/24`, then: "" });
  const b = await startB({ script, hugePages: DRIVER_HUGE_PAGES, reboots: true });
  const a = await starting;
  await Promise.all([a.booted(), b.booted()]);
  const reachesB = async () => {
    await isUp(b);
    await a.runUntilDone(`ping -c 1 -W 5 ${B_ADDRESS}`);
  };
  await reachesB();
  const devicePid = await vmsgPid(a);
  // Slow enough that B's receive buffers, 256, last longer than the lease.
  await a.run(`while :; do ping -i 0.01 ${B_ADDRESS}; sleep 0.1; done >/dev/null 2>&1 &`);

  let seen = 0;
  // The lease lasts for 50 to 150 ms after a stop, so a few changes each are usual; where A's machine stood still just then, there is none.
  const isEnough = () => seen >= STOPS + RESETS;
  for (let round = 0; round < STOPS + RESETS || (!isEnough() && round < MOST_STOPS); round++) {
    const resets = round >= STOPS && round < STOPS + RESETS;
    const driverPid = await vmsgPid(b);
    const came = a.count(DRIVER_CAME);
    using memory = new WatchedMemory(pair.memoryFile, await hugePages(b));
    // One that was without an answer for long may be slow.
    await a.run("killall ping; sleep 0.5");
    await b.machine.qmp("stop");
    // From here on nobody but A writes there.
    const watching = memory.watch(WATCH_MS);
    const { lineCount } = b.machine;
    if (resets) await b.machine.qmp("system_reset");
    const { changes, lastMs, longestMs } = await watching;
    console.log(
      `stop ${round + 1}${resets ? ", reset" : ""}: ${changes} changes, the last after ` +
        `${lastMs.toFixed(0)} ms; looked every ${longestMs.toFixed(0)} ms or sooner`,
    );
    seen += changes;
    assert(lastMs <= LEASE_MS + LATE_MS, `written ${lastMs} ms after the stop`);
    await b.machine.qmp("cont");
    if (resets) await b.booted(lineCount);
    await reachesB();
    if (!resets) assertEquals(await vmsgPid(b), driverPid);
    await a.hasSaid(DRIVER_CAME, came + (resets ? 1 : 0));
  }
  assert(isEnough(), `${seen} changes in all: there was no flood`);
  assertEquals(await vmsgPid(a), devicePid);
  assertEquals(a.count(DEVICE_STARTED), 1);
});
