/**
 * How soon the device side answers: one request at a time over the linux-user bus, between two processes.
 *
 *     deno task bench:latency [--quick]
 *
 * The other process is `vmsg device` as a user starts it, with the responder behind its card; this one is a
 * driver side that sends GET_DEVICE_STATUS at 1 kHz, from the moment the request is in its slot to the moment
 * the answer is read from its own. Both wake-ups are in it. Measured idle, and while the driver in this process
 * sends frames as fast as they are taken and then receives as many: on the same card, by the same two
 * threads.
 *
 * A driver side that waits for an answer stands still, and the prototype QEMU aborts after about 3 ms, so
 * the slow ones matter: p99, the longest, and how many took longer than that.
 */

import { fromFileUrl } from "@std/path";
import { LinuxUserBus } from "../src/bus/linux_user.ts";
import { createSealedMemory, type Fd } from "../src/linux/fd.ts";
import { mapShared } from "../src/linux/mapping.ts";
import { Reactor } from "../src/linux/reactor.ts";
import type { Dialect } from "../src/message/codec.ts";
import { codecFor } from "../src/message/codecs.ts";
import { Kind } from "../src/message/message.ts";
import { createLog } from "../src/observe/log.ts";
import { knownMemory } from "../src/sharing/driver_memory.ts";
import { NetDriver } from "../src/drivers/net/net_driver.ts";
import { Pinger, type PingResult, type Throughput } from "../src/drivers/net/pinger.ts";
import { DriverSide } from "../src/transport/driver_side.ts";
import { isQuick, isSelected, loadLine, quantile } from "./harness.ts";

const REQUESTS = isQuick ? 100 : 2000;
const INTERVAL_MS = 1;
/** Requests before those that count; code is compiled meanwhile. */
const WARM_UP = isQuick ? 50 : 500;
/** After this time the prototype's driver side gives up. */
const ABORT_MS = 3;
const MEMORY_SIZE = 64 << 20;
const MEMORY_AT = 0x4000_0000;
/** A device side that does not come, or does not answer any more, must not hang the run. */
const PATIENCE_MS = 20_000;
const NAME_WIDTH = 28;

/** A driver side and what is needed to ask it. */
interface Rig {
  readonly reactor: Reactor;
  readonly side: DriverSide;
}

/** Sends `count` requests, each when its time has come and the one before is answered; in ms. */
async function ask({ reactor, side }: Rig, count: number): Promise<Float64Array> {
  const timesMs = new Float64Array(count);
  let dueMs = performance.now();
  for (let n = 0; n < count; n++) {
    dueMs = Math.max(dueMs + INTERVAL_MS, performance.now());
    await reactor.sleep(dueMs - performance.now());
    const sentMs = performance.now();
    await side.requests.request(side.device(0), Kind.GET_DEVICE_STATUS, {}, () => {
      timesMs[n] = performance.now() - sentMs;
    });
  }
  return timesMs;
}

function report(name: string, timesMs: Float64Array, flood?: PingResult): void {
  const sorted = timesMs.toSorted();
  const us = (share: number) => (quantile(sorted, share) * 1000).toFixed(0).padStart(6);
  const late = sorted.filter((ms) => ms > ABORT_MS).length;
  const thousands = (rate: Throughput | undefined) => Math.round(rate!.framesPerSecond / 1000);
  const rates = flood && `${thousands(flood.toDevice)} / ${thousands(flood.fromDevice)}`;
  const columns = [name.padEnd(NAME_WIDTH), us(0.5), us(0.99), us(1)];
  columns.push(`${late} of ${sorted.length}`.padStart(9), rates ?? "none");
  console.log(columns.join(" | "));
}

/** What a device side and its driver side are started with. */
interface Setting {
  readonly dialect: Dialect;
  /** Of the queue files and the socket. */
  readonly directory: string;
  /** Memory that both know, where the dialect cannot announce it. */
  readonly memory: Fd | undefined;
}

/** Starts `vmsg device`, runs `body` with a driver side, ends both. */
async function withDevice(
  { dialect, directory, memory }: Setting,
  body: (rig: Rig, driverOf: (pinger: Pinger) => NetDriver) => Promise<void>,
): Promise<void> {
  const root = (path: string) => fromFileUrl(new URL(`../${path}`, import.meta.url));
  const socket = `${directory}/lu.sock`;
  const bus = `linux-user,socket=${socket},dir=${directory},dialect=${dialect}`;
  const args = ["run", "--quiet", "--no-check", "--allow-all", "--config", root("deno.json")];
  args.push(root("src/main.ts"), "device", "--bus", bus, "--log-level", "warn");
  if (memory !== undefined) {
    args.push("--memory", `file=/proc/${Deno.pid}/fd/${memory.number},at=${MEMORY_AT}`);
  }
  await using stack = new AsyncDisposableStack();
  const child = new Deno.Command(Deno.execPath(), { args, stdin: "null" }).spawn();
  stack.defer(async () => {
    try {
      child.kill("SIGTERM");
    } catch { /* it has ended */ }
    await child.status;
  });
  const reactor = stack.use(new Reactor());
  const codec = codecFor(dialect);
  const isV1 = dialect === "v1";
  const log = createLog("bench", "warn", (line) => console.error(line));
  const end = stack.use(
    new LinuxUserBus("driver", reactor, {
      name: "linux-user",
      directory,
      socket,
      listen: false,
      wait: true,
      reset: false,
      lock: isV1,
      discardOnAttach: isV1,
      ringPerMessage: !isV1,
      log: () => {},
    }),
  );
  const side = stack.use(new DriverSide({ reactor, bus: end, codec, log }));
  const patience = reactor.timer(() => reactor.fail(new Error("the device side hangs")));
  patience.arm(PATIENCE_MS);
  const shared = memory === undefined
    ? undefined
    : knownMemory(stack.use(mapShared(memory.number, MEMORY_SIZE)), MEMORY_AT);
  const driverOf = (pinger: Pinger) =>
    stack.use(new NetDriver(reactor, side, 0, pinger, log, { memory: shared }));
  await reactor.until(body({ reactor, side }, driverOf));
  patience.cancel();
}

/** Idle and flooded, in one dialect. */
async function measure(dialect: Dialect): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "vmsg-bench-" });
  try {
    // `proto` cannot announce memory: both sides know a file.
    using memory = dialect === "proto" ? createSealedMemory("vmsg-bench", MEMORY_SIZE) : undefined;
    await withDevice({ dialect, directory, memory }, async (rig, driverOf) => {
      const pinger = new Pinger(rig.reactor, {
        target: "10.0.2.2",
        address: "10.0.2.15",
        count: 1,
        intervalMs: 1,
        // Both directions together last as long as the requests.
        throughputMs: REQUESTS * INTERVAL_MS / 2,
        print: () => {},
      });
      const driver = driverOf(pinger);
      pinger.use(driver);
      rig.side.open();
      while (!driver.isUp) await rig.reactor.sleep(5);
      await ask(rig, WARM_UP);
      report(`${dialect}, idle`, await ask(rig, REQUESTS));
      const flood = pinger.run();
      const times = await ask(rig, REQUESTS);
      report(`${dialect}, frames in and out`, times, await flood);
    });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

if (import.meta.main) {
  console.log(`\n${loadLine()}`);
  const title = "answer to GET_DEVICE_STATUS".padEnd(NAME_WIDTH);
  console.log(`${title} | p50 us |    p99 |    max |    > 3 ms | 1000 frames/s out / in`);
  console.log(
    "-".repeat(NAME_WIDTH) + "-|--------|--------|--------|-----------|----------------------",
  );
  for (const dialect of ["v1", "proto"] as const) {
    if (isSelected(dialect)) await measure(dialect);
  }
}
