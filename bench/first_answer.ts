/**
 * How quick a fresh `vmsg device` answers: the independent peer of tests/interop is started again and again against
 * a process that is new each time, and each request of its bring-up is timed. The peer of the prototype aborts when an
 * answer takes about 50 ms. Processor time is the device's own, whatever else the machine does.
 *
 * The device listens and is asleep when the peer comes; or the peer comes the moment it can (--eager), or the peer
 * listens (--peer-first).
 *
 *     deno run -A bench/first_answer.ts [--starts 200] [--dialect proto] [--trace] [--eager | --peer-first] [--exe FILE]
 */

import { parseArgs } from "@std/cli/parse-args";
import {
  DriverPeer,
  type Form,
  linuxUserWire,
  type PeerMemory,
} from "../tests/interop/proto_peer.ts";

const AT = 0x4000_0000;
const SIZE = 1 << 20;

const options = parseArgs(Deno.args, {
  string: ["starts", "dialect", "exe"],
  boolean: ["trace", "eager", "peer-first"],
  default: { starts: "200", dialect: "proto" },
});
const form: Form = options.dialect === "auto" ? "proto" : options.dialect as Form;

/** Processor time of all threads of a process, in ms. */
function processorMs(pid: number): number {
  let ns = 0;
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    ns += Number(Deno.readTextFileSync(`/proc/${pid}/task/${name}/schedstat`).split(" ")[0]);
  }
  return ns / 1e6;
}

function startDevice(directory: string): Deno.ChildProcess {
  const main = new URL("../src/main.ts", import.meta.url).pathname;
  const [command, first] = options.exe === undefined
    ? [Deno.execPath(), ["run", "-A", main]]
    : [options.exe, []];
  const listens = options["peer-first"] ? ",listen=off" : "";
  const bus = `linux-user,socket=${directory}/lu.sock,dir=${directory},dialect=${options.dialect}`;
  return new Deno.Command(command, {
    args: [
      ...first,
      ...["device", "--bus", bus + listens, "--memory", `file=${directory}/ram,at=${AT}`],
      ...options.trace ? ["--trace"] : [],
    ],
    stdout: "null",
    stderr: "piped",
  }).spawn();
}

/** Waits until the device says that it listens; what it says later is read and dropped. */
async function untilItListens(device: Deno.ChildProcess): Promise<void> {
  const reader = device.stderr.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; !/waiting for the driver side/.test(text);) {
    const { value, done } = await reader.read();
    if (done) throw new Error(`the device ended: ${text}`);
    text += value;
  }
  (async () => {
    while (!(await reader.read()).done);
  })();
}

/** Connects as soon as somebody listens. */
async function connect(directory: string, path: string, memory: PeerMemory): Promise<DriverPeer> {
  for (;;) {
    try {
      return await DriverPeer.connect(form, directory, path, memory);
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}

/** One start: the time of each answer, and the processor time of the first. */
async function measure(directory: string) {
  Deno.writeFileSync(`${directory}/ram`, new Uint8Array(SIZE));
  const memory = { path: `${directory}/ram`, size: SIZE, at: AT };
  const path = `${directory}/lu.sock`;
  let device: Deno.ChildProcess;
  let peer: DriverPeer;
  if (options["peer-first"]) {
    using listener = Deno.listen({ transport: "unix", path });
    device = startDevice(directory);
    const socket = await listener.accept() as Deno.UnixConn;
    peer = DriverPeer.on(form, linuxUserWire(directory, socket), memory);
  } else {
    device = startDevice(directory);
    const listens = untilItListens(device);
    if (!options.eager) await listens;
    peer = await connect(directory, path, memory);
  }
  try {
    peer.patienceUs = 100;
    // It is asleep, as after a while.
    const isAtOnce = options.eager || options["peer-first"];
    if (!isAtOnce) await new Promise((resolve) => setTimeout(resolve, 20));
    const before = processorMs(device.pid);
    await peer.ask("info", 0, () => {});
    const processor = processorMs(device.pid) - before;
    await peer.bringUp();
    return { latencies: peer.latenciesMs.slice(), processor, aborts: peer.aborts };
  } finally {
    peer[Symbol.dispose]();
    device.kill("SIGKILL");
    await device.status;
    if (options["peer-first"]) await device.stderr.cancel();
  }
}

function line(what: string, values: number[]): void {
  values.sort((a, b) => a - b);
  const at = (share: number) =>
    values[Math.min(values.length - 1, Math.floor(share * values.length))];
  const text = [0.5, 0.99, 1].map((share) => at(share)!.toFixed(2)).join(" / ");
  console.log(`${what}: p50 / p99 / max ${text} ms`);
}

const first: number[] = [], rest: number[] = [], processor: number[] = [];
const lost: string[] = [];
for (let start = 0; start < Number(options.starts); start++) {
  const directory = Deno.makeTempDirSync({ prefix: "vmsg-bench-" });
  try {
    const found = await measure(directory);
    first.push(found.latencies[0]!);
    rest.push(Math.max(...found.latencies.slice(1)));
    processor.push(found.processor);
    lost.push(...found.aborts);
  } catch (error) {
    lost.push(`start ${start}: ${error}`);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}
console.log(`${first.length} starts, ${options.dialect}${options.trace ? ", --trace" : ""}`);
line("first answer", first);
line("slowest later answer of a bring-up", rest);
line("processor time for the first answer", processor);
console.log(`lost or wrong: ${lost.length}${lost.map((text) => `\n  ${text}`).join("")}`);
