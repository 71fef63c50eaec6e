/** `vmsg inspect` as users have it: beside living processes, of a killed device's files, and of files that are none. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { MONOTONIC } from "../../src/linux/clock.ts";
import { Kind } from "../../src/message/message.ts";
import { CounterMemory, countIn } from "../../src/observe/counters.ts";
import { RequestState } from "../../src/observe/state.ts";
import {
  type Ended,
  type Processes,
  processTest,
  until,
  VMSG_COMMAND,
} from "../support/processes.ts";
import { ampWire } from "../interop/amp_wire.ts";
import { DriverPeer } from "../interop/proto_peer.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** So that of 256 buffers few are under way at any moment, also where a side is not scheduled for seconds. */
const CALM = ["--interval", "0.2"];

/** Starts vmsg with its counters in the test's own directory. */
function start(vmsg: Processes, ...args: string[]) {
  return vmsg.startProgram("env", `XDG_RUNTIME_DIR=${vmsg.directory}`, ...VMSG_COMMAND, ...args);
}

async function inspect(vmsg: Processes, ...args: string[]): Promise<Ended> {
  await using process = await start(vmsg, "inspect", ...args);
  return await process.ended();
}

/** All of its threads: none reads another message. */
function hasStopped(pid: number): boolean {
  return [...Deno.readDirSync(`/proc/${pid}/task`)].every(({ name }) =>
    /\) T/.test(Deno.readTextFileSync(`/proc/${pid}/task/${name}/stat`))
  );
}

processTest("inspect: a living link, and what a killed device leaves", async (vmsg) => {
  const device = await start(vmsg, "device", ...BUS, "--net", "responder");
  await device.waitFor(/waiting for the driver side/);
  const driver = await start(vmsg, "driver", ...BUS, ...CALM);
  await driver.waitFor(/icmp_seq=5 /);
  // By its number: the queues are those that it has mapped.
  const living = (await inspect(vmsg, String(device.pid))).stdout.join("\n");
  assertMatch(
    living,
    /device 0 net: status ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK, set [^ ]+ s ago\n/,
  );
  assertMatch(living, /avail\.idx \d+, used\.idx \d+, /);
  assertMatch(living, /features of the driver: .*VERSION_1/);
  assertMatch(living, /queue 1: size \d+, enabled [^ ]+ s ago, .*desc 0x/);
  assertMatch(
    living,
    /queue-linux-user-driver: from the driver side, v1, head \d+ tail \d+ of 4096/,
  );

  const twice = await inspect(vmsg, String(device.pid), `${vmsg.directory}/.`);
  assertEquals(twice.stdout.filter((line) => line.includes(": from the ")).length, 2);

  await device.end("SIGKILL");
  const before = ["driver", "device"].map((side) =>
    Deno.readFileSync(`${vmsg.directory}/queue-linux-user-${side}`)
  );
  // The memory outlives the device: the driver's process has it open.
  const rings = JSON.parse((await inspect(vmsg, "--json", String(device.pid))).stdout.join(""));
  const [received, sent] = rings.processes[0].devices[0].queues;
  assert(sent.ring.indices["used.idx"] > 0, JSON.stringify(sent.ring.indices));
  assert(received.ring.pending > 200, "the driver keeps it full");
  assertEquals(received.ring.buffers.length, received.ring.pending);
  const descriptors = received.ring.buffers.flatMap(({ descriptors }: { descriptors: [] }) =>
    descriptors
  );
  assert(descriptors.every(({ outside }: { outside: boolean }) => !outside));
  // The driver side keeps what it had told the device that is lost, and waits for another one.
  const told = async () =>
    JSON.parse((await inspect(vmsg, "--json", String(driver.pid))).stdout.join(""))
      .processes[0].remote[0];
  await until(async () => (await told()).status === 0);
  const { queues: [lost] } = await told();
  assertEquals([lost.isEnabled, lost.size, lost.ring.problem], [false, 256, undefined]);
  await driver.end("SIGKILL");
  const dead = await inspect(vmsg, String(device.pid), String(driver.pid), vmsg.directory);
  assertEquals([dead.code, dead.stderr], [0, []]);
  const text = dead.stdout.join("\n");
  assertMatch(
    text,
    new RegExp(
      `process ${device.pid}: device, ended\n  the driver side .*\n  device 0 net: status .*DRIVER_OK`,
    ),
  );
  assertMatch(text, / 3 queues, 2 enabled\n +queue 0: size 256, enabled [^ ]+ s ago, .*desc 0x/);
  assertMatch(text, /its ring cannot be shown: not all of it lies in memory that can be read/);
  assertMatch(text, new RegExp(`process ${driver.pid}: driver, ended`));

  const json = await inspect(vmsg, "--json", vmsg.directory);
  const { queues } = JSON.parse(json.stdout.join("\n"));
  assertEquals(queues.map(({ from }: { from: string }) => from), ["driver", "device"]);
  for (const [n, { head, tail, waiting, last, messages }] of queues.entries()) {
    const words = new Uint32Array(
      Deno.readFileSync(`${vmsg.directory}/queue-linux-user-${n === 0 ? "driver" : "device"}`)
        .buffer,
    );
    assertEquals([head, tail], [words[0], words[16]]);
    assertEquals(waiting, (head - tail + 4096) % 4096);
    // The newest lies in front of the head, read or not.
    assertEquals(messages.at(-1).slot, (head + 4095) % 4096);
    assert(!last.startsWith("not understood"), last);
    assertStringIncludes(text, `last message: ${last}`);
    assert(messages.every(({ text }: { text: string }) => !text.startsWith("not understood")));
  }
  const names = queues[0].messages.map(({ text }: { text: string }) => text.split(" ").at(2));
  assert(names.includes("SET_VQUEUE?"), names.join());
  // It only reads: what the killed device had said is where it was.
  const device2 = Deno.readFileSync(`${vmsg.directory}/queue-linux-user-device`);
  assertEquals(device2.subarray(0, 64), before[1]!.subarray(0, 64));
});

processTest(
  "inspect: a device that stands still has messages waiting, and no answer",
  async (vmsg) => {
    const device = await start(vmsg, "device", ...BUS, "--net", "responder");
    await device.waitFor(/waiting for the driver side/);
    const driver = await start(vmsg, "driver", ...BUS, "--interval", "0.01");
    await driver.waitFor(/icmp_seq=5 /);
    Deno.kill(device.pid, "SIGSTOP");
    const queue = `${vmsg.directory}/queue-linux-user-driver`;
    const look = async () =>
      JSON.parse((await inspect(vmsg, "--json", vmsg.directory)).stdout.join("\n"));
    // The first may have been read by a device that was stopped before it could answer.
    const unread = /HELLO\? .*, which was not read$/;
    await until(async () =>
      (await look()).unanswered.slice(0, 2).some((line: string) => unread.test(line))
    );
    const sent = async () =>
      JSON.parse((await inspect(vmsg, "--json", String(device.pid))).stdout.join(""))
        .processes[0].devices[0].queues[1].ring;
    await until(async () => (await sent()).pending > 0);
    await driver.end("SIGKILL");
    // What the driver side has told is what the device side knows, rings and all; the stopped one still has the memory.
    const both = JSON.parse(
      (await inspect(vmsg, "--json", String(device.pid), String(driver.pid))).stdout.join(""),
    );
    const [{ devices: [here] }, { remote: [there] }] = both.processes;
    for (const name of ["number", "deviceId", "status", "features", "queueCount", "leavesPlace"]) {
      assertEquals(there[name], here[name], name);
    }
    assert(typeof here.queues[1].ring !== "string" && here.queues[1].ring.pending > 0);
    const ringsOf = ({ queues }: { queues: { ring: unknown }[] }) =>
      queues.slice(0, 2).map(({ ring }) => ring);
    assertEquals(ringsOf(there), ringsOf(here));
    await device.end("SIGKILL");
    const [{ waiting, head, tail, messages }] = (await look()).queues;
    assert(waiting > 0 && waiting === head - tail, `${head} - ${tail}`);
    const waits = messages.filter(({ waits }: { waits: boolean }) => waits);
    assertEquals(waits.length, waiting);
    const text = (await inspect(vmsg, "--last", "2", vmsg.directory)).stdout.join("\n");
    assertStringIncludes(
      text,
      `${queue}: from the driver side, v1, head ${head} tail ${tail} of 4096`,
    );
    assertMatch(text, new RegExp(`^ +${tail} waits `, "m"));
    assertMatch(
      text,
      /the driver side waits for an answer to bus HELLO\? .*, which was not read$/m,
    );
  },
);

processTest("inspect: files that hold no queues cost one line each", async (vmsg) => {
  const path = `${vmsg.directory}/file`;
  const refused = async (...args: string[]) => {
    const { code, stdout, stderr } = await inspect(vmsg, ...args);
    assertEquals([code, stdout, stderr.length], [1, [], 1], stderr.join("\n"));
    return stderr[0]!;
  };
  assertMatch(await refused(path), /file: .*ENOENT|no such file/i);
  Deno.writeTextFileSync(path, "short");
  assertMatch(await refused(path), /5 bytes from 0 on, two queues have 8192/);
  Deno.writeFileSync(path, new Uint8Array(8192).fill(255));
  assertMatch(await refused(path), /no queues are there: the head is 4294967295, and there are 62/);
  assertMatch(await refused("--offset", "4096", path), /4096 bytes from 4096 on/);
  assertMatch(await refused(vmsg.directory), /neither queue files nor counters/);
  Deno.writeTextFileSync(path, "vmsgctrs");
  assertMatch(await refused(path), /not a file of counters/);
  await new Deno.Command("mkfifo", { args: [`${vmsg.directory}/pipe`] }).output();
  assertMatch(await refused(`${vmsg.directory}/pipe`), /a pipe, and no memory with queues/);
});

processTest(
  "inspect: what a process waits for, and since when; its file may be anybody's",
  async (vmsg) => {
    const memory = new CounterMemory(new ArrayBuffer(8192), "driver", Deno.pid, 0);
    const path = `${vmsg.directory}/driver.1`;
    const say = async (kind: number) => {
      countIn(memory);
      const requests = new RequestState();
      countIn(undefined);
      requests.open(2, { kind, device: 3, sentMs: MONOTONIC.now() - 5000 });
      Deno.writeFileSync(path, new Uint8Array(memory.buffer));
      return (await inspect(vmsg, path)).stdout.at(-1)!;
    };
    const line = await say(Kind.GET_VQUEUE);
    assertMatch(
      line,
      /^ {2}waits for the answer to GET_VQUEUE of device 3, for \d+\.\d{3} s, and 1 more$/,
    );
    assert(Number(/for ([\d.]+) s/.exec(line)![1]) >= 5, line);
    assertMatch(await say(99_999), /waits for the answer to kind 99999 of device 3/);
  },
);

processTest(
  "inspect: packed rings in an ivshmem link's memory, of sides that run, and when both were killed",
  async (vmsg) => {
    const bus = ["--bus", "ivshmem,server=iv.sock", "--confined"];
    const server = await vmsg.start("ivshmem-server", "--socket", "iv.sock", "--file", "memory");
    await server.waitFor(/4194304 bytes/);
    const device = await start(vmsg, "device", ...bus, "--net", "responder");
    await device.waitFor(/waiting for a peer/);
    const driver = await start(vmsg, "driver", ...bus, ...CALM, "--rings", "packed");
    await driver.waitFor(/icmp_seq=5 /);
    const look = async () => {
      const { stdout } = await inspect(vmsg, "--json", String(device.pid), "memory");
      return JSON.parse(stdout.join(""));
    };
    const living = (await look()).processes[0].devices[0];
    assert(living.featureNames.includes("RING_PACKED"));
    assert(living.queues[0].ring.pending > 200, "the driver keeps it full");

    // Stopped first, so that what the driver says then stays where it is.
    Deno.kill(device.pid, "SIGSTOP");
    await until(async () => (await look()).processes[0].devices[0].queues[1].ring.pending > 0);
    await driver.end("SIGKILL");
    await device.end("SIGKILL");
    await server.end("SIGKILL");
    const { processes: [{ isRunning, devices: [{ memory, queues }] }], queues: sides } =
      await look();
    assertEquals([isRunning, sides.map(({ from }: { from: string }) => from)], [false, [
      "driver",
      "device",
    ]]);
    const bytes = new DataView(Deno.readFileSync(`${vmsg.directory}/memory`).buffer);
    for (const { size, ring, descriptorAddress, deviceAddress } of queues.slice(0, 2)) {
      const [{ at, offset }] = memory;
      const fileAt = (address: number) => address - at + offset;
      assertEquals([ring.problem, ring.isUpperBound, ring.isMoving], [undefined, false, false]);
      assertEquals(ring.indices["device event"], bytes.getUint32(fileAt(deviceAddress), true));
      // By the letter of the specification: from the device's slot on, all are available that are shown.
      let slot = ring.indices["device's slot"];
      let wrap = ring.indices["device's wrap counter"];
      for (const { head, descriptors } of ring.buffers) {
        for (const { address, length } of descriptors) {
          const from = fileAt(descriptorAddress + 16 * slot);
          const flags = bytes.getUint16(from + 14, true);
          assertEquals([flags >> 7 & 1, flags >> 15], [wrap, 1 - wrap]);
          assertEquals([Number(bytes.getBigUint64(from, true)), bytes.getUint32(from + 8, true)], [
            address,
            length,
          ]);
          slot = (slot + 1) % size;
          if (slot === 0) wrap = 1 - wrap;
        }
        const last = fileAt(descriptorAddress + 16 * ((slot + size - 1) % size));
        assertEquals(bytes.getUint16(last + 12, true), head);
      }
      assertEquals([slot, wrap], [
        ring.indices["driver's slot"],
        ring.indices["driver's wrap counter"],
      ]);
    }
    const [received, sent] = queues;
    assert(received.ring.pending > 200 && sent.ring.pending > 0);
    const text = (await inspect(vmsg, "--last", "2", String(device.pid), "memory")).stdout;
    assertMatch(text.join("\n"), /^ {6}driver's slot \d+, driver's wrap counter [01], device's /m);
    assertMatch(text.join("\n"), /^ {6}2\d\d buffers are the device's to use; the device w/m);
    assertMatch(text.join("\n"), /^ {2}last message: /m);
    // Without the memory the rest is shown.
    const { stdout } = await inspect(vmsg, String(device.pid));
    assertMatch(stdout.join("\n"), /its ring cannot be shown: not all of it lies in memory/);
  },
);

processTest(
  "inspect: an AMP layout in rfc, of a device under somebody else's driver side, and when it was killed",
  async (vmsg) => {
    await Deno.writeFile(`${vmsg.directory}/amp`, new Uint8Array(8192), { mode: 0o600 });
    await Deno.writeFile(`${vmsg.directory}/ram`, new Uint8Array(16 << 20), { mode: 0o600 });
    const bus = ["--bus", "shm,file=amp,layout=amp1,dialect=rfc"];
    const device = await start(vmsg, "device", ...bus, "--memory", "file=ram,at=0x40000000");
    await device.waitFor(/waiting for the driver side/);
    const text = async (...args: string[]) => (await inspect(vmsg, ...args)).stdout.join("\n");
    assertMatch(await text("amp"), /amp: from the driver side, no head yet, .* of 63, none wait\n/);
    {
      // It reads nothing that comes after its bring-up, so that it waits.
      using peer = DriverPeer.on("rfc", await ampWire(`${vmsg.directory}/amp`, false), {
        path: `${vmsg.directory}/ram`,
        size: 16 << 20,
        at: 0x4000_0000,
      });
      await peer.bringUp();
      Deno.kill(device.pid, "SIGSTOP");
      await until(() => hasStopped(device.pid));
      await peer.send(new Uint8Array(60));
      const said = await text("amp", String(device.pid));
      assertMatch(said, /device 0 net: status ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK/);
      assertMatch(
        said,
        /from the driver side, RUN, rfc, tail \d+ head \d+ of 63, (1 waits|2 wait)\n/,
      );
      assertMatch(said, /from the device side, RUN, rfc, tail \d+ head \d+ of 63, /);
      assertMatch(said, /^ +\d+ waits dev 0 EVENT_AVAIL queue 1$/m);
    }
    await device.end("SIGKILL");
    const { queues } = JSON.parse(await text("--json", "amp"));
    const words = new DataView(Deno.readFileSync(`${vmsg.directory}/amp`).buffer);
    for (const [n, [own, other]] of [[72, 64], [64, 72]].entries()) {
      const { tail, head, layout, last } = queues[n];
      assertEquals([tail, head, layout], [
        words.getUint16(own! + 4, true),
        words.getUint16(other! + 6, true),
        "amp1",
      ]);
      assert(!last.startsWith("not understood"), last);
    }
  },
);
