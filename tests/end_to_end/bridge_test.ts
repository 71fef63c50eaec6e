/** `vmsg device`, `vmsg bridge` and `vmsg driver`, three processes on two buses: what goes through, in which dialects. */

import { assertEquals } from "@std/assert";
import {
  type Ended,
  PATIENCE_MS,
  type Processes,
  processTest,
  type VmsgProcess,
} from "../support/processes.ts";

const DISK_SIZE = 1 << 20;
/** One of two buses: the bus, and what whoever is on it is told besides. */
interface Setup {
  readonly bus: string;
  /** As its drivers have it, if not in the same words. */
  readonly driver?: string;
  /** The devices of the first bus, the drivers of the second. */
  readonly end?: readonly string[];
  readonly bridge?: readonly string[];
}

const A_SOCKET = "linux-user,socket=a.sock,name=a";
const A_SHM = "shm,file=a.shm,size=4M";
const KNOWS_SHM = { end: ["--memory", "file=a.shm,at=0"] };
/** The device side knows a file, and all is copied into it. */
const KNOWS_FILE = {
  end: ["--memory", "file=a.ram,at=0x40000000"],
  bridge: ["--segment", "file=a.ram,at=0x40000000"],
};
const B_SOCKET = "linux-user,socket=b.sock,name=b";
const B_SHM = "shm,file=b.shm,size=2M";
const B_MEMORY = ["--memory", "file=b.ram,at=0x20000000"];

/** Where the devices are. */
const FROM = {
  "v1": { bus: A_SOCKET },
  "v1, confined": { bus: A_SOCKET, bridge: ["--confined"] },
  "v1, shm": { bus: A_SHM },
  "v1-2025, shm": { bus: `${A_SHM},dialect=v1-2025`, ...KNOWS_SHM },
  "v1-2025": { bus: `${A_SOCKET},dialect=v1-2025`, ...KNOWS_FILE },
  "rfc, shm": { bus: `${A_SHM},dialect=rfc`, ...KNOWS_SHM },
  "proto, shm": { bus: `${A_SHM},dialect=proto`, ...KNOWS_SHM },
  "proto": { bus: `${A_SOCKET},dialect=proto`, ...KNOWS_FILE },
  /** It works on the driver's own rings, as all three know its memory. */
  "proto, the drivers' memory": { bus: `${A_SOCKET},dialect=proto`, end: B_MEMORY },
} as const satisfies Readonly<Record<string, Setup>>;

/** Where the drivers are. */
const TO = {
  "v1": { bus: B_SOCKET },
  "v1, packed rings": { bus: B_SOCKET, end: ["--rings", "packed"] },
  "v1, shm": { bus: B_SHM },
  /** Behind the queues of the first bus: nothing is copied. */
  "v1, shm of both": { bus: "shm,file=a.shm,offset=8K,size=2M" },
  "rfc": { bus: `${B_SOCKET},dialect=rfc`, end: B_MEMORY, bridge: B_MEMORY },
  "v1-2025": { bus: `${B_SOCKET},dialect=v1-2025`, end: B_MEMORY, bridge: B_MEMORY },
  "v1-2025, shm": { bus: `${B_SHM},dialect=v1-2025`, end: B_MEMORY, bridge: B_MEMORY },
  "proto": { bus: `${B_SOCKET},dialect=proto`, end: B_MEMORY, bridge: B_MEMORY },
  "proto, shm": { bus: `${B_SHM},dialect=proto`, end: B_MEMORY, bridge: B_MEMORY },
  "proto, found out": {
    ...{ bus: `${B_SOCKET},dialect=auto`, driver: `${B_SOCKET},dialect=proto` },
    ...{ end: B_MEMORY, bridge: B_MEMORY },
  },
} as const satisfies Readonly<Record<string, Setup>>;

/** Each dialect with each, and each kind of memory with some. */
const PAIRS: readonly (readonly [keyof typeof FROM, keyof typeof TO])[] = [
  ["v1", "v1"],
  ["v1, confined", "v1-2025, shm"],
  ["v1, shm", "proto"],
  ["v1, shm", "proto, found out"],
  ["v1, shm", "v1, shm"],
  ["v1, shm", "v1, shm of both"],
  ["v1", "rfc"],
  ["rfc, shm", "v1, packed rings"],
  ["v1-2025, shm", "v1"],
  ["v1-2025", "v1-2025"],
  ["v1-2025", "proto, shm"],
  ["proto, shm", "v1, packed rings"],
  ["proto", "v1-2025, shm"],
  ["proto, the drivers' memory", "proto"],
];

/** Writes the files that a test begins with; the disk's bytes differ everywhere. */
async function makeFiles({ directory }: Processes): Promise<Uint8Array> {
  const bytes = new Uint8Array(DISK_SIZE);
  const words = new Uint32Array(bytes.buffer);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 0x9e37_79b1);
  const write = (name: string, data: Uint8Array) =>
    Deno.writeFile(`${directory}/${name}`, data, { mode: 0o600 });
  await write("disk", bytes);
  await write("source", bytes);
  for (const name of ["a.shm", "b.shm"]) await write(name, new Uint8Array(4 << 20));
  for (const name of ["a.ram", "b.ram"]) await write(name, new Uint8Array(2 << 20));
  return bytes;
}

const DEVICES = ["rng", "blk,file=disk", "net"].flatMap((kind) => ["--device", kind]);
const NUMBERS = ["0", "1", "2"].flatMap((number) => ["--device", number]);

function assertDone({ code, stderr }: Ended): void {
  assertEquals(code, 0, stderr.join("\n"));
}

for (const [fromName, toName] of PAIRS) {
  const from: Setup = FROM[fromName], to: Setup = TO[toName];
  processTest(`bridge: devices of ${fromName} for drivers of ${toName}`, async (vmsg) => {
    const bytes = await makeFiles(vmsg);
    const { end = [] } = from, { end: more = [], driver = to.bus } = to;
    const told = [...from.bridge ?? [], ...to.bridge ?? []];
    await vmsg.start("device", "--bus", from.bus, ...end, ...DEVICES);
    await vmsg.start("bridge", "--bus", from.bus, "--bus", to.bus, ...told, ...NUMBERS);
    const run = async (...what: string[]) => {
      const done = await vmsg.run("driver", "--bus", driver, ...more, ...what);
      assertDone(done);
      return done.stdout;
    };
    const { hex } = JSON.parse((await run("--device", "rng,bytes=32", "--json"))[0]!);
    assertEquals(hex.length, 64);
    await run("--device", "blk,number=1,read=copy");
    assertEquals(await Deno.readFile(`${vmsg.directory}/copy`), bytes);
    const part = bytes.slice(0, 300 * 512).reverse();
    await Deno.writeFile(`${vmsg.directory}/part`, part, { mode: 0o600 });
    await run("--device", "blk,number=1,offset=512K,write=part");
    bytes.set(part, 512 << 10);
    assertEquals(await Deno.readFile(`${vmsg.directory}/disk`), bytes);
    await run("--device", "2", "--count", "20", "--interval", "0.02");
  });
}

/** Waits for so many answers more than there are. */
async function moreAnswers(driver: VmsgProcess, count: number): Promise<void> {
  for (let { length } = driver.lines; count > 0; count--) {
    const line = await driver.waitFor(/icmp_seq=/, PATIENCE_MS, length);
    length = driver.lines.indexOf(line, length) + 1;
  }
}

/** Orders in which what is named is killed, and then started again. */
const DEATHS = [["device"], ["bridge"], ["device", "bridge"], ["bridge", "device"]] as const;

for (const fromName of ["v1", "v1, shm", "proto, shm"] as const) {
  processTest(
    `bridge: pings go on whoever is started again, devices of ${fromName}`,
    async (vmsg) => {
      await makeFiles(vmsg);
      const from: Setup = FROM[fromName], to = TO.v1;
      // What is left in the queues would be taken for messages, as the prototype has it.
      const reset = from.bus.includes("proto") ? ",reset" : "";
      const start = {
        device: () =>
          vmsg.start(
            "device",
            "--bus",
            `${from.bus}${reset}`,
            ...from.end ?? [],
            "--net",
            "responder",
          ),
        bridge: () => vmsg.start("bridge", "--bus", from.bus, "--bus", to.bus),
      };
      const driver = await vmsg.start("driver", "--bus", to.bus, "--interval", "0.005");
      const running = { bridge: await start.bridge(), device: await start.device() };
      await moreAnswers(driver, 20);
      for (const names of DEATHS) {
        for (const name of names) await running[name].end("SIGKILL");
        for (const name of names) running[name] = await start[name]();
        await moreAnswers(driver, 20);
      }
      await driver.end("SIGKILL");
      const pings = await vmsg.run(
        "driver",
        "--bus",
        to.bus,
        "--count",
        "20",
        "--interval",
        "0.005",
      );
      assertDone(pings);
      assertEquals(pings.stdout.some((line) => line.includes("20 received")), true);
      for (const name of ["bridge", "device"] as const) {
        assertEquals((await running[name].end("SIGTERM")).code, 0);
      }
    },
  );
}
