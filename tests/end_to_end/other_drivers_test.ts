/** `vmsg driver --device rng|blk` and `vmsg device`, two processes: what is read and written, also when one dies, and every error. */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { delay, type Ended, type Processes, processTest } from "../support/processes.ts";

const DISK_SIZE = 4 << 20;
const MEMORY = ["--memory", "file=ram,at=0x40000000"];
const PACKED = ["--rings", "packed"];

/** How both sides are told to speak, and what the driver's side is told besides. */
const SETUPS: Readonly<Record<string, [bus: string, both: string[], driver: string[]]>> = {
  "v1": ["linux-user,socket=lu.sock", [], []],
  "v1, packed rings": ["linux-user,socket=lu.sock", [], PACKED],
  "v1, confined": ["linux-user,socket=lu.sock", [], ["--confined", "--segment", "256K"]],
  "v1-2025": ["linux-user,socket=lu.sock,dialect=v1-2025", MEMORY, []],
  "rfc": ["linux-user,socket=lu.sock,dialect=rfc", MEMORY, []],
  "rfc-q, ivshmem": ["ivshmem,server=iv.sock,dialect=rfc-q", MEMORY, []],
  "rfc-lk, shm": ["shm,file=shm,size=1M,dialect=rfc-lk", MEMORY, []],
  "proto": ["linux-user,socket=lu.sock,dialect=proto", MEMORY, []],
  "proto, packed rings": ["linux-user,socket=lu.sock,dialect=proto", MEMORY, PACKED],
  "v1, shm": ["shm,file=shm,size=1M", [], []],
  "v1, shm, amp1": ["shm,file=shm,size=1M,layout=amp1", [], []],
  "v1-2025, ivshmem, amp1": ["ivshmem,server=iv.sock,layout=amp1,dialect=v1-2025", MEMORY, []],
  "v1, shm, a file": ["shm,file=shm,size=1M", MEMORY, []],
  "v1, ivshmem": ["ivshmem,server=iv.sock", [], []],
  "proto, ivshmem": ["ivshmem,server=iv.sock,dialect=proto", MEMORY, []],
};

/** Writes the files that a test begins with: a disk and its bytes, which differ everywhere, and memory. */
async function makeFiles({ directory }: Processes): Promise<Uint8Array> {
  const bytes = new Uint8Array(DISK_SIZE);
  const words = new Uint32Array(bytes.buffer);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 0x9e37_79b1);
  for (const name of ["disk", "source"]) {
    await Deno.writeFile(`${directory}/${name}`, bytes, { mode: 0o600 });
  }
  await Deno.writeFile(`${directory}/read-only`, bytes, { mode: 0o600 });
  await Deno.writeFile(`${directory}/ram`, new Uint8Array(4 << 20), { mode: 0o600 });
  await Deno.writeFile(`${directory}/shm`, new Uint8Array(1 << 20), { mode: 0o600 });
  return bytes;
}

const DEVICES = ["rng", "blk,file=disk,serial=a-disk", "blk,file=read-only,readonly", "net"];
const startDevice = (vmsg: Processes, bus: string, more: readonly string[] = []) =>
  vmsg.start("device", "--bus", bus, ...more, ...DEVICES.flatMap((kind) => ["--device", kind]));

function assertDone({ code, stderr }: Ended): void {
  assertEquals(code, 0, stderr.join("\n"));
}

for (const [name, [bus, both, more]] of Object.entries(SETUPS)) {
  processTest(`driver of a disk and an entropy device: ${name}`, async (vmsg) => {
    const bytes = await makeFiles(vmsg);
    if (bus.startsWith("ivshmem")) {
      const server = await vmsg.start("ivshmem-server", "--socket", "iv.sock", "--size", "1M");
      await server.waitFor(/waiting for peers/);
    }
    await startDevice(vmsg, bus, both);
    const run = async (device: string, ...rest: string[]) => {
      const done = await vmsg.run(
        "driver",
        "--bus",
        bus,
        ...both,
        ...more,
        "--device",
        device,
        ...rest,
      );
      assertDone(done);
      return done.stdout;
    };
    const file = (name: string) => Deno.readFile(`${vmsg.directory}/${name}`);

    const { hex, ...rest } = JSON.parse((await run("rng,bytes=32", "--json"))[0]!);
    assertEquals([hex.length, rest], [64, { device: 0, bytes: 32 }]);
    await run("rng,bytes=10000,file=random");
    const random = await file("random");
    assertEquals(random.length, 10_000);
    // Of random bytes about 39 are 0; of a piece that nobody wrote all would be.
    assert(random.filter((byte) => byte === 0).length < 200);

    const [first, features, ...none] = await run("blk,number=1");
    assertEquals(
      first,
      `device 1: a disk of ${DISK_SIZE} bytes in blocks of 512, serial number "a-disk"`,
    );
    assertMatch(features!, /^features .*\bFLUSH\b.*VERSION_1/);
    assertEquals([features!.includes("RING_PACKED"), none], [more === PACKED, []]);
    await run("blk,number=1,read=copy");
    assertEquals(await file("copy"), bytes);
    const part = bytes.slice(0, 300 * 512).reverse();
    await Deno.writeFile(`${vmsg.directory}/part`, part, { mode: 0o600 });
    await run(`blk,number=1,offset=1M,write=part`);
    bytes.set(part, 1 << 20);
    assertEquals(await file("disk"), bytes);
    await run("blk,number=1,offset=1M,verify=part");
    await run(`blk,number=1,offset=${(1 << 20) + 512},length=512,read=copy`);
    assertEquals(await file("copy"), part.slice(512, 1024));
  });
}

processTest("driver of a disk: errors are one line each, and the exit code tells", async (vmsg) => {
  await makeFiles(vmsg);
  const bus = "linux-user,socket=lu.sock";
  await startDevice(vmsg, bus);
  const said = async (device: string, ...more: string[]) => {
    const { code, stderr } = await vmsg.run("driver", "--bus", bus, "--device", device, ...more);
    const lines = stderr.filter((line) => !line.startsWith("vmsg driver: "));
    assertEquals(lines.length, 1, stderr.join("\n"));
    return `${code} ${lines[0]}`;
  };
  await Deno.writeFile(`${vmsg.directory}/odd`, new Uint8Array(1000), { mode: 0o600 });
  const cases: [string, RegExp, ...string[]][] = [
    ["blk", /^1 vmsg: device 0 is not a disk but has device id 4$/],
    ["rng,number=1", /^1 vmsg: device 1 is not an entropy device but has device id 2$/],
    ["blk,number=2,write=source", /^1 vmsg: device 2 is a disk that is only read$/],
    ["blk,number=1,offset=4M,length=512,read=x", /^1 vmsg: .*are not on a disk of 4194304$/],
    ["blk,number=1,offset=5,write=source", /^1 vmsg: offset 5 and .*multiples of 512/],
    ["blk,number=1,write=odd", /^1 vmsg: .*length 1000.*multiples of 512/],
    ["blk,number=1,length=1K,write=odd", /^1 vmsg: odd ends at byte 1000$/],
    [
      "blk,number=1,offset=512,length=1K,verify=source",
      /^1 vmsg: .*byte 512 of the disk is not byte 0 of source$/,
    ],
    ["blk,number=1,write=missing", /^1 vmsg: open missing: .*ENOENT/],
    ["blk,number=1,write=/dev/zero", /^1 vmsg: \/dev\/zero is neither a file nor a block device$/],
    ["blk,read=a,write=b", /^2 vmsg: --device blk: give one of/],
    ["blk,offset=512", /^2 vmsg: --device blk: offset= goes with/],
    ["fs", /^2 vmsg: --device fs: unknown, one of rng, blk is expected$/],
    ["rng,size=3", /^2 vmsg: --device rng,size=3: unknown key size/],
    ["rng", /^2 vmsg: --device rng: --tap is for network cards$/, "--tap", "tap0"],
    ["x1", /^2 vmsg: --device x1: unknown/],
    ["1x", /^2 vmsg: --device takes a whole number/],
  ];
  for (const [device, pattern, ...more] of cases) assertMatch(await said(device, ...more), pattern);
});

processTest(
  "driver of a disk: a device that is killed is gone on with when it is back",
  async (vmsg) => {
    const bytes = await makeFiles(vmsg);
    await Deno.writeFile(`${vmsg.directory}/disk`, new Uint8Array(DISK_SIZE), { mode: 0o600 });
    const bus = "linux-user,socket=lu.sock";
    let device = await startDevice(vmsg, bus);
    // One that is stopped has requests that it has not answered when it is killed.
    await device.waitFor(/waiting for the driver side/);
    const driver = await vmsg.start(
      "driver",
      "--bus",
      bus,
      "--device",
      "blk,number=1,write=source",
      "--trace",
    );
    await driver.waitFor(/EVENT_AVAIL/);
    device.kill("SIGSTOP");
    await delay(100);
    await device.end("SIGKILL");
    device = await startDevice(vmsg, bus);
    assertDone(await driver.ended());
    assertEquals(await Deno.readFile(`${vmsg.directory}/disk`), bytes);

    // No driver side at all for a while; then the device is started last.
    await device.end("SIGTERM");
    const early = await vmsg.start("driver", "--bus", bus, "--device", "rng,bytes=16", "--json");
    await early.waitFor(/waiting for the device side/);
    await startDevice(vmsg, bus);
    const { stdout } = await early.ended();
    assertNotEquals(JSON.parse(stdout[0]!).hex, "00".repeat(16));
  },
);
