/** What a process lacks, of room in a file system or of what its limits grant, is told in one line. */

import { assertEquals, assertMatch } from "@std/assert";
import { openKeeper } from "../../src/cli/keeper.ts";
import { testUnless } from "../support/needs.ts";
import {
  atRest,
  delay,
  type Processes,
  processTest,
  until,
  VMSG_COMMAND,
  withProcesses,
} from "../support/processes.ts";
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
  // Deno's own caches stay below this limit, also when they are made anew; it would not say a line.
  const command = [...VMSG_COMMAND, "ivshmem-server", "--socket", "iv.sock", "--size", "1G"];
  const limited = `ulimit -f 1048575; exec ${command.join(" ")}`;
  await using process = await vmsg.startProgram("sh", "-c", limited);
  const { code, stderr } = await process.ended();
  assertEquals([code, stderr.length], [1, 1], stderr.join("\n"));
  assertMatch(stderr[0]!, /needs 1073741824 bytes, files are limited to \d+ \(ulimit -f\)$/);
});

/** Seconds of processor time that a process has had. */
async function processorSeconds(pid: number): Promise<number> {
  const fields = (await Deno.readTextFile(`/proc/${pid}/stat`)).split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Looks at a process for a second: did it have less than a quarter of that? */
async function isQuiet(pid: number): Promise<boolean> {
  const before = await processorSeconds(pid);
  await delay(1000);
  return await processorSeconds(pid) - before < 0.25;
}

/** Sets the soft limit of a running process. */
async function limitFiles(vmsg: Processes, pid: number, count: number): Promise<void> {
  await using prlimit = await vmsg.startProgram("prlimit", "--pid", `${pid}`, `--nofile=${count}:`);
  assertEquals((await prlimit.ended()).code, 0);
}

/** What listens, on which socket, and what it says when it does. */
const LISTENERS: readonly [socket: string, ready: RegExp, ...args: string[]][] = [
  ["lu.sock", /waiting for the driver side/, "device", "--bus", BUS],
  ["vu.sock", /waiting for a front end/, "proxy", "--bus", BUS, "--vhost-user", "socket=vu.sock"],
  ["iv.sock", /waiting for peers/, "ivshmem-server", "--socket", "iv.sock"],
];

for (const [socket, ready, ...args] of LISTENERS) {
  processTest(`cli: ${args[0]} out of descriptors says so, pauses, and goes on`, async (vmsg) => {
    const process = await vmsg.start(...args);
    await process.waitFor(ready);
    const descriptors = () => [...Deno.readDirSync(`/proc/${process.pid}/fd`)].length;
    // Also what it carries while it waits finds none.
    await limitFiles(vmsg, process.pid, 8);
    using _waiting = connectUnix(`${vmsg.directory}/${socket}`)!;
    const problem = new RegExp(`${socket}: .*\\(EMFILE\\): raise the limit of open files`);
    await process.waitFor(problem);
    const idle = await atRest(descriptors);
    // What its start has under way ends some time; who waits busily has no such second.
    await until(() => isQuiet(process.pid));
    await until(() => descriptors() === idle);
    await limitFiles(vmsg, process.pid, 1024);
    await until(() => descriptors() > idle);
  });
}

processTest("cli: limits that are too low are told before anything is begun", async (vmsg) => {
  const command = [...VMSG_COMMAND, "device", "--bus", BUS].join(" ");
  for (const [, , ...args] of LISTENERS) {
    const script = `ulimit -n 26; exec ${[...VMSG_COMMAND, ...args].join(" ")}`;
    await using process = await vmsg.startProgram("sh", "-c", script);
    const { code, stderr } = await process.ended();
    assertEquals([code, stderr.length], [1, 1], stderr.join("\n"));
  }
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

/** A control group with a limit of memory, version 1 or 2, that root may make where they are mounted; or undefined. */
function memoryGroup(bytes: number): string | undefined {
  const places = [["/sys/fs/cgroup/memory", "memory.limit_in_bytes"], [
    "/sys/fs/cgroup",
    "memory.max",
  ]];
  for (const [place, file] of places) {
    const group = `${place}/vmsg-test-${crypto.randomUUID()}`;
    try {
      Deno.mkdirSync(group);
    } catch {
      continue;
    }
    try {
      Deno.statSync(`${group}/${file}`);
      Deno.writeTextFileSync(`${group}/${file}`, `${bytes}`);
      return group;
    } catch {
      Deno.removeSync(group);
    }
  }
  return undefined;
}

const probe = memoryGroup(56 << 20);
if (probe !== undefined) Deno.removeSync(probe);
testUnless(
  "cli: a control group with too little memory is told, and doctor says what there is",
  probe === undefined ? [{ what: "no memory control group can be made (it takes root)" }] : [],
  async () => {
    await using keeper = await openKeeper();
    const group = memoryGroup(56 << 20)!;
    await withProcesses(keeper, async (vmsg) => {
      const run = async (...args: string[]) => {
        const script = `echo $$ > ${group}/cgroup.procs; exec ${
          [...VMSG_COMMAND, ...args].join(" ")
        }`;
        await using process = await vmsg.startProgram("sh", "-c", script);
        return await process.ended();
      };
      const { code, stderr } = await run("device", "--bus", BUS);
      assertEquals([code, stderr.length], [1, 1], stderr.join("\n"));
      assertMatch(stderr[0]!, /^vmsg: 64 MiB of memory are needed at least, .* has 56: give it 96/);
      const { stdout } = await run("doctor");
      assertMatch(stdout[0]!, /^limits +no .*, 56 MiB of memory: a process needs 48 open files/);
    }).finally(() => Deno.remove(group));
  },
);

/** What is run where no file can be made, and the one line that is said. */
const READ_ONLY: readonly [string[], RegExp][] = [
  [["device", "--bus", BUS], /queue-linux-user-driver: Read-only file system \(EROFS\)$/],
  [["driver", "--bus", BUS], /queue-linux-user-driver: Read-only file system \(EROFS\)$/],
  [
    ["proxy", "--bus", BUS, "--vhost-user", "socket=vu.sock"],
    /queue-linux-user-driver: Read-only file system \(EROFS\)$/,
  ],
  [["device", "--bus", `${BUS},dir=small`], /socket lu.sock: Read-only file system \(EROFS\)$/],
  [
    ["device", "--bus", `${BUS},dir=small`, "--net", "responder,pcap=frames.pcap"],
    /Read-only file system \(EROFS\)$/,
  ],
  [["ivshmem-server", "--socket", "iv.sock"], /iv.sock: Read-only file system \(EROFS\)$/],
  [["demo"], /^vmsg: cannot make a temporary directory: set TMPDIR to a directory you may write/],
];

processTest("cli: a read-only root is told in one line", async (vmsg) => {
  await Deno.mkdir(`${vmsg.directory}/small`);
  for (const [args, pattern] of READ_ONLY) {
    const readOnly = ["/", "/tmp", "/run"].map((at) =>
      `mount --bind ${at} ${at}; mount -o remount,ro,bind ${at}`
    );
    const script = [...readOnly, "cd $PWD", "mount -t tmpfs -o size=1m tmpfs small"].join(";");
    const command = [...VMSG_COMMAND, ...args].join(" ");
    const words = [
      "sh",
      "-c",
      `(${script}) 2>/dev/null; cd $PWD; touch made 2>/dev/null && echo made; exec ${command}`,
    ];
    await using process = await vmsg.startProgram(
      "unshare",
      Deno.uid() === 0 ? "-m" : "-rm",
      ...words,
    );
    const { code, stdout, stderr } = await process.ended();
    assertEquals([code, stdout, stderr.length], [1, [], 1], stderr.join("\n"));
    assertMatch(stderr[0]!, pattern);
  }
});
