/**
 * Two kernels and a virtual wire: `vmsg driver --tap` in one network namespace, `vmsg device` in another,
 * and the kernels' own ping and TCP across. Needs root; VMSG_NET_TESTS=required fails without it.
 *
 * The captures are read by tshark, see tests/support/capture.ts.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { assertSound, isPartial, readFrames } from "../support/capture.ts";
import { type HeldNamespace, namespacesTest } from "../support/namespaces.ts";
import { answersIn, assertNoneLostSince, sinceReturn } from "../support/pings.ts";
import { delay, PATIENCE_MS, until, VMSG_COMMAND, type VmsgProcess } from "../support/processes.ts";
import { readCounters } from "../../src/observe/read_counters.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const NEAR = { tap: "eth1", address: "10.77.0.1", address6: "fd77::1" };
const FAR = { tap: "tap0", address: "10.77.0.2", address6: "fd77::2" };
/** The largest frame of an MTU of 1500, and one that only segmentation offload makes. */
const MTU_FRAME = 1514;
const LARGE_FRAME = 60_000;
/** The longest time a restart may take, with a busy machine and TCP's own waiting. */
const MAX_GAP_MS = PATIENCE_MS;

const startDriver = (near: HeldNamespace, more = "") =>
  near.startVmsg("driver", ...BUS, "--tap", `${NEAR.tap},address=${NEAR.address}/24${more}`);
const startDevice = (far: HeldNamespace, more = "") =>
  far.startVmsg("device", ...BUS, "--net", `tap=${FAR.tap},address=${FAR.address}/24${more}`);

async function connected(driver: VmsgProcess, after = 0): Promise<void> {
  await driver.waitFor(/tap eth1: connected/, PATIENCE_MS, after);
}

/** Both ends, connected. */
async function startBoth(
  near: HeldNamespace,
  far: HeldNamespace,
  { nearMore = "", farMore = "" } = {},
): Promise<{ driver: VmsgProcess; device: VmsgProcess }> {
  const device = await startDevice(far, farMore);
  const driver = await startDriver(near, nearMore);
  await connected(driver);
  return { driver, device };
}

async function assertTidy(near: HeldNamespace, ...processes: VmsgProcess[]): Promise<void> {
  for (const process of processes) assertEquals((await process.end("SIGTERM")).code, 0);
  const left = near.processes.files().filter((name) => name.endsWith(".sock"));
  assertEquals(left, []);
}

/**
 * Every ping of a round is answered. For the answer to the last one ping waits twice as long as the longest took, whatever
 * `-W` says, which is not enough on a busy machine: therefore one round of five.
 */
async function assertPings(from: HeldNamespace, to: string, count = 50): Promise<void> {
  const all = new RegExp(`${count} packets transmitted, ${count} received`);
  let said = "";
  for (let round = 0; round < 5 && !all.test(said); round++) {
    said = (await from.run(`ping -q -c ${count} -i 0.005 -W 10 ${to}`)).stdout.join("\n");
  }
  assertMatch(said, all);
}

interface Throughput {
  readonly megabits: number;
  readonly retransmits: number;
}

/** TCP by iperf3 from one namespace to the other. */
async function iperf(
  from: HeldNamespace,
  to: HeldNamespace,
  address: string,
  amount: string,
): Promise<Throughput> {
  const server = await to.start("iperf3", "--server", "--one-off", "--forceflush");
  await server.waitFor(/^Server listening/);
  const { stdout } = await from.run(`iperf3 --client ${address} --json ${amount}`);
  await server.ended();
  const { sum_sent, sum_received } = JSON.parse(stdout.join("\n")).end;
  return {
    megabits: Math.round(sum_received.bits_per_second / 1e6),
    retransmits: sum_sent.retransmits,
  };
}

namespacesTest(
  "tap: two kernels ping each other and move TCP",
  ["ping", "iperf3"],
  async (a, b) => {
    const { driver, device } = await startBoth(a, b);
    await assertPings(a, FAR.address);
    await assertPings(b, NEAR.address);
    await a.run(`ip address add ${NEAR.address6}/64 dev ${NEAR.tap} nodad`);
    await b.run(`ip address add ${FAR.address6}/64 dev ${FAR.tap} nodad`);
    await assertPings(a, FAR.address6);
    await assertPings(b, NEAR.address6);
    for (
      const [what, from, to, address] of [
        ["to the device", a, b, FAR.address],
        ["from the device", b, a, NEAR.address],
        ["to the device, IPv6", a, b, FAR.address6],
      ] as const
    ) {
      // Far below what it does, far above what a queue that stalls would give. Where processes are not scheduled in
      // time TCP repeats what was not lost, and waits for it: once more.
      let best = 0;
      for (let round = 0; round < 5 && best <= 10; round++) {
        const { megabits, retransmits } = await iperf(from, to, address, "--time 2");
        console.log(`tap to tap, TCP ${what}: ${megabits} Mbit/s, ${retransmits} retransmits`);
        best = Math.max(best, megabits);
      }
      assert(best > 10, `${best} Mbit/s`);
    }
    await assertTidy(a, driver, device);
  },
);

namespacesTest(
  "tap: frames of 64 KiB cross whole, and tshark finds their capture sound",
  ["ping", "iperf3", "tshark"],
  async (a, b) => {
    const { driver, device } = await startBoth(a, b, { farMore: ",pcap=frames.pcap" });
    await assertPings(a, FAR.address, 5);
    const path = `${a.processes.directory}/frames.pcap`;
    // The driver's side has the card's own address.
    const isFrom = (frame: Uint8Array, first: number) => frame[6] === first;
    const hasLarge = (first: number) =>
      readFrames(path).some((frame) => isFrom(frame, first) && frame.length > LARGE_FRAME);
    // How much TCP puts into a frame depends on how fast it goes: on a machine that is busy, once more.
    for (let round = 0; round < 10 && !(hasLarge(0x52) && hasLarge(0xfe)); round++) {
      await iperf(a, b, FAR.address, "--bytes 16M");
      await iperf(b, a, NEAR.address, "--bytes 16M");
      // Until all of it is in the file.
      await delay(100);
    }
    await iperf(a, b, FAR.address, "--udp --bitrate 200M --bytes 500K");
    await assertTidy(a, driver, device);
    const frames = readFrames(path);
    for (const [what, first] of [["to", 0x52], ["from", 0xfe]] as const) {
      const lengths = frames.filter((frame) => isFrom(frame, first)).map(({ length }) => length);
      const large = lengths.filter((length) => length > MTU_FRAME).length;
      const longest = Math.max(...lengths);
      console.log(
        `${what} the device: ${large} of ${lengths.length} frames > 1514, up to ${longest}`,
      );
      assert(longest > LARGE_FRAME, `the longest frame ${what} the device has ${longest} bytes`);
    }
    const { protocols, goodChecksums, badChecksums } = await assertSound(path, { partial: true });
    console.log(
      `${frames.length} frames, ${badChecksums.length} with a partial checksum; good: ` +
        JSON.stringify(goodChecksums),
    );
    for (const name of ["ARP", "ICMP", "TCP", "UDP"]) assert(protocols.has(name), name);
    assert(frames.some((frame) => frame.length > MTU_FRAME && isPartial(frame)));
  },
);

for (const side of ["driver", "device", "both"] as const) {
  namespacesTest(
    `tap: offloads=off on ${side === "both" ? "both sides" : `the ${side} side`}`,
    ["ping", "iperf3", "tshark"],
    async (a, b) => {
      const { driver, device } = await startBoth(a, b, {
        nearMore: side === "device" ? "" : ",offloads=off",
        farMore: `,pcap=frames.pcap${side === "driver" ? "" : ",offloads=off"}`,
      });
      const [{ text }] = driver.lines.filter(({ text }) => text.includes("connected")) as [
        VmsgProcess["lines"][0],
      ];
      assert(!/CSUM|TSO|USO/.test(text), text);
      await assertPings(a, FAR.address);
      const out = await iperf(a, b, FAR.address, "--bytes 16M");
      const back = await iperf(b, a, NEAR.address, "--bytes 16M");
      console.log(`offloads=off (${side}): ${out.megabits} and ${back.megabits} Mbit/s`);
      await assertTidy(a, driver, device);
      const path = `${a.processes.directory}/frames.pcap`;
      const longest = Math.max(...readFrames(path).map(({ length }) => length));
      assertEquals(longest, MTU_FRAME);
      await assertSound(path, { partial: false });
    },
  );
}

/** Frames by each queue of a TAP, in both directions, as the latest process of that subcommand counts them. */
function framesByQueue(directory: string, subcommand: string): number[] {
  const [latest] = [...Deno.readDirSync(`${directory}/vmsg`)]
    .map(({ name }) => readCounters(`${directory}/vmsg/${name}`))
    .filter((one) => one.subcommand === subcommand)
    .sort((x, y) => y.startMs - x.startMs);
  const queues = latest!.groups.filter(({ name }) => /^tap \S+( queue|$)/.test(name));
  return queues.flatMap(({ counters }) =>
    ["sent", "received"].map((name) => counters.find((counter) => counter.name === name)!.value)
  );
}

namespacesTest(
  "tap: several queue pairs share streams, also with a device that has fewer or more, and is killed",
  ["ping", "iperf3"],
  async (a, b) => {
    const { directory } = a.processes;
    const start = (from: HeldNamespace, ...args: string[]) =>
      from.start("env", `XDG_RUNTIME_DIR=${directory}`, ...VMSG_COMMAND, ...args);
    const startDevice = (queues: number) =>
      start(
        b,
        "device",
        ...BUS,
        "--net",
        `tap=${FAR.tap},address=${FAR.address}/24,queues=${queues}`,
      );
    let device = await startDevice(2);
    const near = `${NEAR.tap},address=${NEAR.address}/24,queues=2`;
    const driver = await start(a, "driver", ...BUS, "--tap", near);
    await connected(driver);
    const assertUsed = async (pairs: number, queues: number) => {
      await assertPings(a, FAR.address);
      const before = [framesByQueue(directory, "driver"), framesByQueue(directory, "device")];
      await iperf(a, b, FAR.address, "--bytes 8M --parallel 12");
      await iperf(b, a, NEAR.address, "--bytes 8M --parallel 12");
      const after = [framesByQueue(directory, "driver"), framesByQueue(directory, "device")];
      const used = after.map((counts, side) => counts.map((count, i) => count > before[side]![i]!));
      const expected = (count: number) =>
        Array.from({ length: 2 * count }, (_, i) => i < 2 * pairs);
      assertEquals(used, [expected(2), expected(queues)], JSON.stringify([before, after]));
    };
    await assertUsed(2, 2);
    for (const [queues, pairs] of [[1, 1], [4, 2]] as const) {
      const { length } = driver.lines;
      await device.end("SIGKILL");
      device = await startDevice(queues);
      await connected(driver, length);
      await assertUsed(pairs, queues);
    }
    await assertTidy(a, driver, device);
  },
);

async function startPing(from: HeldNamespace, to: string): Promise<VmsgProcess> {
  const ping = await from.start("ping", "-i", "0.02", "-W", "1", to);
  await ping.waitFor(/icmp_seq=20 /);
  return ping;
}

/** Goes on, and nothing is lost after it is back; ends the ping. */
async function assertGoesOn(ping: VmsgProcess, what: string): Promise<void> {
  const sinceMs = performance.now();
  const answers = () => answersIn(ping.lines);
  await until(() => sinceReturn(answers(), sinceMs).length >= 50);
  await ping.end("SIGINT");
  const { gapMs, lost } = assertNoneLostSince(answers(), sinceMs);
  console.log(`${what}: gap ${gapMs} ms, ${lost} pings of 20 ms lost in it`);
  assert(gapMs < MAX_GAP_MS, `${what}: a gap of ${gapMs} ms`);
}

namespacesTest("tap: either side is killed under a running ping", ["ping"], async (a, b) => {
  let { driver, device } = await startBoth(a, b);
  for (const [from, to] of [[a, FAR.address], [b, NEAR.address]] as const) {
    const direction = from === a ? "ping to the device's kernel" : "ping from the device's kernel";
    {
      // The interface goes with the device; the ping's own kernel gets another, of the same address.
      await using ping = await startPing(from, to);
      const { length } = driver.lines;
      await device.end("SIGKILL");
      device = await startDevice(b);
      await connected(driver, length);
      await assertGoesOn(ping, `${direction}, device killed`);
    }
    await using ping = await startPing(from, to);
    await driver.end("SIGKILL");
    driver = await startDriver(a);
    await connected(driver);
    await assertGoesOn(ping, `${direction}, driver killed`);
  }
  await assertTidy(a, driver, device);
});

const CHILD = fromFileUrl(new URL("./tcp_child.ts", import.meta.url));
const PORT = "5001";
const STOP = "stop";

namespacesTest("tap: the device is killed under a TCP transfer", [], async (a, b) => {
  const deno = [Deno.execPath(), "run", "--quiet", "--allow-net", "--allow-read", CHILD];
  let { driver, device } = await startBoth(a, b);
  for (
    const [what, from, to, address] of [
      ["to the device", a, b, FAR.address],
      ["from the device", b, a, NEAR.address],
    ] as const
  ) {
    const receiver = await to.start(...deno, "receive", PORT);
    await receiver.waitFor(/^LISTENING/);
    const stop = `${a.processes.directory}/${STOP}`;
    const sender = await from.start(...deno, "send", address, PORT, STOP);
    await receiver.waitFor(/^GOT \d{8}/);
    const { length } = driver.lines;
    await device.end("SIGKILL");
    device = await startDevice(b);
    await connected(driver, length);
    // It goes on before it ends.
    const { length: before } = receiver.lines;
    await receiver.waitFor(/^GOT /, PATIENCE_MS, before);
    await Deno.writeTextFile(stop, "");
    const { stdout } = await receiver.ended();
    const [, sent] = (await sender.waitFor(/^SENT /)).text.split(" ");
    assertEquals(stdout.at(-1), `END ${sent} bytes, 0 wrong`);
    const times = receiver.lines.filter(({ text }) => text.startsWith("GOT"))
      .map(({ atMs }) => atMs);
    const gapMs = Math.max(...times.slice(1).map((atMs, i) => atMs - times[i]!));
    const megabytes = Math.round(Number(sent) / 1e6);
    console.log(`TCP ${what}, device killed: ${megabytes} MB whole, gap ${gapMs.toFixed(0)} ms`);
    assert(gapMs > 150, "nobody noticed that the device was gone");
    assert(gapMs < MAX_GAP_MS, `a gap of ${gapMs} ms`);
    await sender.ended();
    await Deno.remove(stop);
  }
  await assertTidy(a, driver, device);
});
