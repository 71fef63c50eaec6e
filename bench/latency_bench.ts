/**
 * How soon the device side answers: one request at a time over the linux-user bus, between two processes.
 *
 *     deno task bench:latency [--quick] [--rounds=N] [--json] [--compare] [v1] [proto]
 *
 * The other process is `vmsg device` as a user starts it, with the responder behind its card; this one is a
 * driver side that sends GET_DEVICE_STATUS at 1 kHz, from the moment the request is in its slot to the moment
 * the answer is read from its own. Both wake-ups are in it. Measured idle, and while the driver in this process
 * sends frames as fast as they are taken and then receives as many: on the same card, by the same two
 * threads.
 *
 * The twin is two C processes with queues of the same form, once with a socket to ring (as the prototype's bus has) and
 * once with eventfds, at the same rate and on the same processors; all take turns.
 *
 * A driver side that waits for an answer stands still, and the prototype QEMU aborts after about 3 ms, so
 * the slow ones matter: p99, and how many took longer than that.
 */

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
import { Pinger } from "../src/drivers/net/pinger.ts";
import { DriverSide } from "../src/transport/driver_side.ts";
import { startTwin, type Twin } from "./harness.ts";
import { isQuick, isSelected, rounds } from "./options.ts";
import { Bench, HERE, pin, THERE } from "./processes.ts";
import { Report, type RowOptions } from "./report.ts";

const REQUESTS = isQuick ? 100 : 2000;
const INTERVAL_MS = 1;
/** Requests before those that count; code is compiled meanwhile. */
const WARM_UP = isQuick ? 50 : 500;
/** After this time the prototype's driver side gives up. */
const ABORT_MS = 3;
const MEMORY_SIZE = 64 << 20;
const MEMORY_AT = 0x4000_0000;
/** A device side that does not come, or does not answer any more, must not hang the run. */
const PATIENCE_MS = 120_000;
const US: RowOptions = { unit: "us" };
const BESIDE_C: RowOptions = { ...US, target: 2.5 };
const TWINS = [["socket", "C pair, a socket"], ["doorbell", "C pair, eventfds"]] as const;
const IDLE = `answer to GET_DEVICE_STATUS at ${1000 / INTERVAL_MS} Hz`;
const FLOODED = "the same while frames go out and in";
const RATE: RowOptions = { unit: "1000/s", more: true };
const report = new Report("latency");
/** Answers that came after the prototype's patience, of all. */
let late = 0, all = 0;

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

function addTimes(row: string, subject: string, timesMs: Float64Array): void {
  report.add(row, row === IDLE ? BESIDE_C : US, subject, timesMs.map((ms) => ms * 1000));
  late += timesMs.filter((ms) => ms > ABORT_MS).length;
  all += timesMs.length;
}

/** What a device side and its driver side are started with. */
interface Setting {
  readonly dialect: Dialect;
  readonly bench: Bench;
  /** Memory that both know, where the dialect cannot announce it. */
  readonly memory: Fd | undefined;
}

/** Starts `vmsg device`, runs `body` with a driver side, ends both. */
async function withDevice(
  { dialect, bench, memory }: Setting,
  body: (rig: Rig, driverOf: (pinger: Pinger) => NetDriver) => Promise<void>,
): Promise<void> {
  const { directory } = bench;
  const socket = `${directory}/lu.sock`;
  const bus = `linux-user,socket=${socket},dir=${directory},dialect=${dialect}`;
  const args = ["device", "--bus", bus, "--log-level", "warn"];
  if (memory !== undefined) {
    args.push("--memory", `file=/proc/${Deno.pid}/fd/${memory.number},at=${MEMORY_AT}`);
  }
  await bench.vmsg(args, THERE);
  using stack = new DisposableStack();
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
  await using bench = await Bench.open();
  // `proto` cannot announce memory: both sides know a file.
  using memory = dialect === "proto" ? createSealedMemory("vmsg-bench", MEMORY_SIZE) : undefined;
  await withDevice({ dialect, bench, memory }, async (rig, driverOf) => {
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
    addTimes(IDLE, `vmsg, ${dialect}`, await ask(rig, REQUESTS));
    const flood = pinger.run();
    addTimes(FLOODED, `vmsg, ${dialect}`, await ask(rig, REQUESTS));
    const { toDevice, fromDevice } = await flood;
    report.add("frames out", RATE, `vmsg, ${dialect}`, [toDevice!.framesPerSecond / 1000]);
    report.add("frames in", RATE, `vmsg, ${dialect}`, [fromDevice!.framesPerSecond / 1000]);
  });
}

async function measureTwins(twin: Twin): Promise<void> {
  for (const [order, subject] of TWINS) {
    const ns = await twin.measure(`${order} ${INTERVAL_MS * 1000} ${HERE} ${THERE}`, 1, REQUESTS);
    report.add(IDLE, US, subject, ns.map((time) => time / 1000));
  }
}

if (import.meta.main) {
  await using twin = await startTwin("pair");
  // This thread is the driver side; the compiler's are not.
  if (HERE >= 0) pin(Deno.pid, HERE, "thread");
  for (let round = 0; round < rounds; round++) {
    if (twin !== undefined) await measureTwins(twin);
    for (const dialect of ["v1", "proto"] as const) {
      if (isSelected(dialect)) await measure(dialect);
    }
  }
  report.note(`${late} of ${all} answers took longer than ${ABORT_MS} ms`);
  report.finish();
}
