/** `--capture` and `vmsg trace` as users have them, with Debian's tshark beside them. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { Message } from "../../src/message/message.ts";
import { recordedSession } from "../message/recorded_session.ts";
import { dissectMessages, readAll } from "../support/capture.ts";
import { assertGolden } from "../support/golden.ts";
import { processTest, until } from "../support/processes.ts";
import { writeCapture } from "../support/capture_of_messages.ts";
import { slotOf } from "../message/vectors.ts";
import { findProgram } from "../../src/linux/programs.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];

processTest("trace: a whole bring-up as it was recorded, in words", async (vmsg) => {
  const path = `${vmsg.directory}/session.pcapng`;
  writeCapture(path, recordedSession());
  const all = await vmsg.run("trace", path);
  assertEquals([all.code, all.stderr], [0, []]);
  await assertGolden(new URL("bring_up.txt", import.meta.url), all.stdout);
  const some = await vmsg.run("trace", "--filter", "net0,!event,!GET_*", path);
  const expected = all.stdout.filter((line) => !/dev \d+ (EVENT|GET)_/.test(line));
  assert(expected.length > 20 && expected.length < all.stdout.length / 2);
  // Whether an answer came next is not changed by what is shown.
  assertEquals(some.stdout, expected);
  const json = await vmsg.run("trace", "--json", path);
  const objects = json.stdout.map((line) => JSON.parse(line));
  assertEquals(objects.map(({ words }) => words), all.stdout.map((line) => wordsOf(line)));
  const codec = codecFor("proto");
  const message = new Message();
  for (const [i, { bytes }] of recordedSession().entries()) {
    codec.decode(slotOf(bytes), 0, message);
    const { device, sort, request, latency, number } = objects[i];
    assertEquals([device, sort === "answer", number], [message.device, message.response, i + 1]);
    if (sort !== "answer") continue;
    assertEquals(objects[request - 1].message, objects[i].message);
    assert(latency >= 0);
  }
});

const findFile = (path: string) => Deno.stat(path).catch(() => undefined);

/** A line without its time, direction, device and latency. */
function wordsOf(line: string): string {
  return /^\S+ (?:->|<-) dev \d+ (.*?)(?: {3}\d+ us.*)?$/.exec(line)![1]!;
}

processTest(
  "capture: messages and frames of both sides; nothing malformed in tshark",
  async (vmsg) => {
    const device = await vmsg.start(
      "device",
      ...BUS,
      "--net",
      "responder",
      "--capture",
      "a.pcapng",
    );
    const driver = await vmsg.run(
      "driver",
      ...BUS,
      "--count",
      "3",
      "--interval",
      "0.05",
      "--capture",
      "b.pcapng",
    );
    assertEquals(driver.code, 0);
    assertEquals((await device.end("SIGTERM")).code, 0);
    const [a, b] = ["a", "b"].map((name) => `${vmsg.directory}/${name}.pcapng`) as [string, string];
    assertEquals((await Deno.stat(a)).mode! & 0o777, 0o600);
    const traces = await Promise.all([a, b].map((path) => vmsg.run("trace", path)));
    // What one sent the other received, in the same order; but for what is said again until the other is there.
    const said = (lines: string[], arrow: string) =>
      lines.filter((line) => line.includes(` ${arrow} `) && !/HELLO|GET_DEVICE_INFO/.test(line))
        .map((line) => line.replace(/^\S+ (?:->|<-) /, "").replace(/ {3}\d+ us.*$/, ""));
    const [fromDevice, fromDriver] = traces.map(({ stdout }) => stdout) as [string[], string[]];
    assert(said(fromDriver, "->").length > 20);
    assertEquals(said(fromDevice, "<-"), said(fromDriver, "->"));
    assert(
      fromDevice.some((line) => /^capture: \d+ Ethernet frames are not shown here$/.test(line)),
    );
    if (findProgram("tshark") === undefined) {
      return console.log(
        "NOT RUN: captures in tshark: no tshark",
      );
    }
    for (const path of [a, b]) {
      const lines = await dissectMessages(path);
      assertEquals(lines.length, readAll(path).filter(({ kind }) => kind === "packet").length);
      const protocols = new Set(lines.map((line) => line.split(" ")[0]));
      assertEquals(protocols, new Set(path === a ? ["virtio-msg", "ARP", "ICMP"] : ["virtio-msg"]));
      assert(
        lines.some((line) =>
          line.includes("SET_DEVICE_STATUS? status ACKNOWLEDGE DRIVER DRIVER_OK")
        ),
      );
    }
    const pings = (await dissectMessages(a)).filter((line) => line.startsWith("ICMP"));
    assertEquals(pings.length, 6);
    assertMatch(pings[1]!, /Echo \(ping\) reply/);
  },
);

for (const dialect of ["rfc", "rfc-q"]) {
  processTest(
    `capture: of both sides over the AMP layout, ${dialect}; nothing malformed in tshark`,
    async (vmsg) => {
      const sized = { amp: 8192, ram: 16 << 20 };
      for (const [name, size] of Object.entries(sized)) {
        await Deno.writeFile(`${vmsg.directory}/${name}`, new Uint8Array(size), { mode: 0o600 });
      }
      const both = ["--bus", `shm,file=amp,layout=amp1,dialect=${dialect}`];
      both.push("--memory", "file=ram,at=0x40000000");
      const ofDevice = ["--net", "responder", "--capture", "a.pcapng"];
      const device = await vmsg.start("device", ...both, ...ofDevice);
      const ofDriver = ["--count", "3", "--interval", "0.05", "--capture", "b.pcapng"];
      const driver = await vmsg.run("driver", ...both, ...ofDriver);
      assertEquals([driver.code, (await device.end("SIGTERM")).code], [0, 0]);
      const traces = await Promise.all(
        ["b", "a"].map((name) => vmsg.run("trace", `${name}.pcapng`)),
      );
      // What was sent last, at the driver's end, need not have been read.
      const [sent, received] = traces.map(({ stdout }, n) =>
        stdout.filter((line) =>
          line.includes(n === 0 ? " -> " : " <- ") && !/GET_DEVICE_INFO/.test(line)
        )
          .map((line) => line.replace(/^\S+ (?:->|<-) /, "").replace(/ {3}\d+ us.*$/, ""))
      ) as [string[], string[]];
      assert(received.length > 20 && received.length <= sent.length);
      assertEquals(received, sent.slice(0, received.length));
      if (findProgram("tshark") === undefined) {
        return console.log("NOT RUN: captures of the AMP layout in tshark: no tshark");
      }
      for (const name of ["a", "b"]) {
        const lines = await dissectMessages(`${vmsg.directory}/${name}.pcapng`);
        for (
          const words of ["SET_VQUEUE?", "SET_DEVICE_STATUS? status ACKNOWLEDGE DRIVER DRIVER_OK"]
        ) {
          assert(
            lines.some((line) => line.startsWith("virtio-msg") && line.includes(words)),
            words,
          );
        }
        assertEquals(lines.filter((line) => line.startsWith("ICMP")).length, name === "a" ? 6 : 0);
      }
    },
  );
}

processTest("capture: a process that is killed leaves a file that is whole", async (vmsg) => {
  const device = await vmsg.start("device", ...BUS, "--net", "responder", "--capture", "k.pcapng");
  const driver = await vmsg.start("driver", ...BUS, "--count", "1000", "--interval", "0.002");
  await driver.waitFor(/icmp_seq=200 /);
  const frames = () =>
    readAll(`${vmsg.directory}/k.pcapng`)
      .filter((item) => item.kind === "packet" && item.interface.name === "net0").length;
  // Of those that were answered only the ones of the last moments are not in the file yet.
  await until(() => frames() >= 400);
  device.kill("SIGKILL");
  await device.ended();
  // Only a write that was under way may be cut off.
  assert(frames() >= 400, `${frames()} frames`);
  const { code, stdout } = await vmsg.run("trace", "k.pcapng");
  assertEquals(code, 0);
  assert(stdout.some((line) => line.includes("DRIVER_OK")));
  await driver.end("SIGTERM");
});

processTest(
  "capture: a ring of a process that is killed is whole, and has what came last",
  async (vmsg) => {
    const capture = "k.pcapng,ring,limit=4M";
    const device = await vmsg.start("device", ...BUS, "--net", "responder", "--capture", capture);
    const flood = ["--count", "1", "--throughput", "60"];
    const driver = await vmsg.start("driver", ...BUS, ...flood);
    const old = `${vmsg.directory}/k.pcapng.old`;
    // It has turned over, and goes on.
    await until(async () => await findFile(old) !== undefined);
    device.kill("SIGKILL");
    await device.ended();
    const packets = ["k.pcapng.old", "k.pcapng"].flatMap((name) => {
      const items = readAll(`${vmsg.directory}/${name}`);
      assert(items.slice(0, -1).every(({ kind }) => kind !== "cut"), name);
      return items.filter((item) => item.kind === "packet");
    });
    assert(packets.length > 100, `${packets.length} packets`);
    assertEquals((await vmsg.run("trace", "k.pcapng.old", "k.pcapng")).code, 0);
    await driver.end("SIGTERM");
  },
);

processTest("capture: a check is captured like anything else that has a bus", async (vmsg) => {
  const device = await vmsg.start("device", ...BUS, "--device", "rng");
  await device.waitFor(/waiting for the driver side/);
  const rule = ["--rule", "G1", "--capture", "c.pcapng"];
  const check = await vmsg.run("check", ...BUS, ...rule);
  assert(check.stdout.some((line) => line.startsWith("PASS")), check.stdout.join("\n"));
  const { code, stdout } = await vmsg.run("trace", "c.pcapng");
  assertEquals(code, 0);
  assert(stdout.some((line) => line.includes("-> dev 0 GET_DEVICE_INFO?")), stdout.join("\n"));
  assert(stdout.some((line) => line.includes("<- dev 0 GET_DEVICE_INFO =")), stdout.join("\n"));
  assertEquals((await device.end("SIGTERM")).code, 0);
});

processTest("capture: a ring keeps what comes last, in two files", async (vmsg) => {
  const capture = "r.pcapng,ring,limit=4M";
  const device = await vmsg.start("device", ...BUS, "--net", "responder", "--capture", capture);
  const pings = ["--count", "2", "--interval", "0.01"];
  const first = await vmsg.start("driver", ...BUS, ...pings, "--throughput", "600");
  // What it said first is in neither file when both have been replaced, however long that takes.
  const old = () => findFile(`${vmsg.directory}/r.pcapng.old`);
  const seen = new Set<number>();
  await until(async () => {
    const file = await old();
    if (file) seen.add(file.mtime!.getTime());
    return seen.size >= 3;
  });
  await first.end("SIGTERM");
  const second = await vmsg.run("driver", ...BUS, ...pings);
  assertEquals(second.code, 0);
  assertEquals((await device.end("SIGTERM")).code, 0);
  const paths = ["r.pcapng.old", "r.pcapng"];
  const sizes = paths.map((name) => Deno.statSync(`${vmsg.directory}/${name}`).size);
  assert(sizes.every((size) => size <= 2 << 20) && sizes[0]! > 1 << 20, `${sizes}`);
  const items = paths.flatMap((name) => readAll(`${vmsg.directory}/${name}`));
  const times = items.filter((item) => item.kind === "packet").map(({ nanoseconds }) =>
    nanoseconds
  );
  assert(times.every((time, i) => i === 0 || time >= times[i - 1]!), "in the order of their time");
  const { code, stdout } = await vmsg.run("trace", ...paths);
  assertEquals(code, 0);
  const greetings = stdout.filter((line) => line.includes("GET_DEVICE_INFO ="));
  assertEquals(greetings.length, 1, "the second driver's is there, the first one's is not");
});

processTest("doctor: captures of links that run, and that stand still", async (vmsg) => {
  const device = await vmsg.start("device", ...BUS, "--device", "rng", "--net", "responder");
  const driven = (capture: string, what = "rng") => [
    ...["driver", ...BUS, "--device", what, "--capture", capture],
  ];
  const runs = await vmsg.run(...driven("runs.pcapng"));
  assertEquals(runs.code, 0, runs.stderr.join("\n"));
  const fine = await vmsg.run("doctor", "runs.pcapng");
  assertEquals([fine.code, fine.stdout.at(-1)], [0, "nothing is stuck"], fine.stdout.join("\n"));
  assertMatch(fine.stdout[0]!, /^dev 0 rng: runs$/);

  const other = await vmsg.start(...driven("other.pcapng", "rng,number=5"));
  await other.waitFor(/has no device 5/);
  await other.end("SIGTERM");
  const none = await vmsg.run("doctor", "other.pcapng");
  assertEquals(none.code, 1);
  assertMatch(none.stdout[0]!, /^dev 5 .*stuck: .* no device of this number$/);

  const pings = await vmsg.start("driver", ...BUS, "--device", "1", "--capture", "later.pcapng");
  await pings.waitFor(/^\d+ bytes from|time=/);
  device.kill("SIGSTOP");
  await pings.waitFor(/no answer|silent|does not answer/);
  await pings.end("SIGTERM");
  const later = await vmsg.run("doctor", "later.pcapng");
  assertEquals(later.code, 1);
  assertMatch(later.stdout[0]!, /^bus: stuck: the heartbeat \(HELLO\) is not answered any more$/);
  const waits = await vmsg.start(...driven("still.pcapng"));
  await waits.waitFor(/no v1 answer/);
  await waits.end("SIGTERM");
  device.kill("SIGCONT");
  const still = await vmsg.run("doctor", "--json", "still.pcapng");
  assertEquals(still.code, 1);
  const [verdict] = JSON.parse(still.stdout.join(""));
  assertMatch(verdict.stuck.step, /GET_DEVICE_INFO/);
  assertEquals(verdict.stuck.owes, "device side");
  assertEquals((await device.end("SIGTERM")).code, 0);
});
