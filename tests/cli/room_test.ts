/** What a process lacks, of room in a file system or of what its limits grant, is told in one line. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Processes, processTest, VMSG_COMMAND } from "../support/processes.ts";
import { connectUnix } from "../../src/linux/unix_socket.ts";

const BUS = "linux-user,socket=lu.sock";
const PEER = "linux-user,socket=lu.sock,wait=off";

/** Runs vmsg with a file system of 64 KiB at `small`, on which `prepare` has run. */
async function runOnSmall(vmsg: Processes, prepare: string, args: readonly string[]) {
  const command = [...VMSG_COMMAND, ...args].join(" ");
  const script = `mount -t tmpfs -o size=64k tmpfs small && ${prepare} && exec ${command}`;
  await using process = await vmsg.startProgram(
    "unshare",
    Deno.uid() === 0 ? "-m" : "-rm",
    "sh",
    "-c",
    script,
  );
  return await process.ended();
}

/** What is prepared, what is run, and what is said. All of it was a SIGBUS. */
const NO_ROOM: readonly [string, string[], RegExp][] = [
  [
    "true",
    ["device", "--bus", `${BUS},dir=small`],
    /^vmsg: queue file small\/queue-linux-user-driver needs 262272 bytes and its file system has no/,
  ],
  [
    "true",
    ["ivshmem-server", "--socket", "iv.sock", "--file", "small/memory"],
    /^vmsg: memory file small\/memory needs 4194304 bytes and its file system has no room \(ENOSPC\)/,
  ],
  [
    "truncate -s 4M small/memory",
    ["ivshmem-server", "--socket", "iv.sock", "--file", "small/memory"],
    /^vmsg: memory file small\/memory needs 4194304 bytes and its file system has no room \(ENOSPC\)/,
  ],
  [
    "truncate -s 1M small/memory",
    ["device", "--bus", "shm,file=small/memory,size=1M"],
    /^vmsg: bus shm: small\/memory needs 1048576 bytes and its file system has no room \(ENOSPC\)/,
  ],
  [
    "truncate -s 1M small/memory",
    ["driver", "--bus", PEER, "--memory", "file=small/memory,at=0x1000"],
    /^vmsg: memory file small\/memory needs \d+ bytes and its file system has no room \(ENOSPC\)/,
  ],
  [
    "truncate -s 1M small/memory",
    ["device", "--bus", BUS, "--memory", "file=small/memory,at=0x40000000"],
    /^vmsg: memory file small\/memory needs 1048576 bytes and its file system has no room \(ENOSPC\)/,
  ],
];

processTest("cli: a full file system is told before its files are used", async (vmsg) => {
  await Deno.mkdir(`${vmsg.directory}/small`);
  for (const [prepare, args, pattern] of NO_ROOM) {
    const { code, stderr } = await runOnSmall(vmsg, prepare, args);
    assertEquals([code, stderr.length], [1, 1], stderr.join("\n"));
    assertMatch(stderr[0]!, pattern);
  }
});

processTest("cli: a limit of the size of files is told, and is no SIGXFSZ", async (vmsg) => {
  const command = [...VMSG_COMMAND, "device", "--bus", BUS].join(" ");
  await using process = await vmsg.startProgram("sh", "-c", `ulimit -f 256; exec ${command}`);
  const { code, stderr } = await process.ended();
  assertEquals([code, stderr.length], [1, 1], stderr.join("\n"));
  assertMatch(stderr[0]!, /needs 262272 bytes, files are limited to \d+ \(ulimit -f\)$/);
});

/** Seconds of processor time that a process has had. */
async function processorSeconds(pid: number): Promise<number> {
  const fields = (await Deno.readTextFile(`/proc/${pid}/stat`)).split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

processTest("cli: a device out of descriptors says so, pauses, and goes on", async (vmsg) => {
  const device = await vmsg.start("device", "--bus", BUS);
  await device.waitFor(/waiting for the driver side/);
  const limit = async (count: number) => {
    const words = ["--pid", `${device.pid}`, `--nofile=${count}:`];
    await using prlimit = await vmsg.startProgram("prlimit", ...words);
    assertEquals((await prlimit.ended()).code, 0);
  };
  await limit(8);
  using waiting = connectUnix(`${vmsg.directory}/lu.sock`)!;
  const problem = /lu.sock: cannot accept a connection \(EMFILE\): raise the limit of open files/;
  await device.waitFor(problem);
  const before = await processorSeconds(device.pid);
  const { length } = device.lines;
  await device.waitFor(problem, undefined, length);
  await device.waitFor(problem, undefined, device.lines.length);
  // Two pauses of a tenth of a second at least, and not one of busy waiting.
  assert(await processorSeconds(device.pid) - before < 0.15);
  await limit(1024);
  waiting[Symbol.dispose]();
  assertEquals((await vmsg.run("driver", "--bus", BUS, "--count", "1")).code, 0);
});

processTest("cli: limits that are too low are told before anything is begun", async (vmsg) => {
  const command = [...VMSG_COMMAND, "device", "--bus", BUS].join(" ");
  for (
    const [limit, pattern] of [
      ["-n 26", /^vmsg: 48 open files are needed at least, the limit is 26: ulimit -n 1024$/],
      [
        "-v 67108864",
        /^vmsg: more than 64 GiB of address space are needed, .*: ulimit -v unlimited$/,
      ],
    ] as const
  ) {
    await using process = await vmsg.startProgram("sh", "-c", `ulimit ${limit}; exec ${command}`);
    const { code, stderr } = await process.ended();
    assertEquals([code, stderr.length], [1, 1], stderr.join("\n"));
    assertMatch(stderr[0]!, pattern);
  }
  await using process = await vmsg.startProgram("sh", "-c", `ulimit -n 48; exec ${command}`);
  await process.waitFor(/waiting for the driver side/);
});
