/**
 * `vmsg device`, `vmsg bridge` to `--bus bridge`, and a kernel's side that was written from the document alone: devices of other
 * buses and dialects for a kernel's own drivers.
 */

import { assert, assertEquals, assertMatch, assertNotEquals, assertRejects } from "@std/assert";
import { Card } from "../support/bridge_kernel/card.ts";
import { Disk, SECTOR } from "../support/bridge_kernel/disk.ts";
import { Entropy } from "../support/bridge_kernel/entropy.ts";
import type { Session } from "../support/bridge_kernel/session.ts";
import { PAGE } from "../support/bridge_kernel/windows.ts";
import { type BridgeRig, bridgeTest } from "../support/bridge_rig.ts";
import { PATIENCE_MS, until, type VmsgProcess } from "../support/processes.ts";

const DISK_BYTES = 4 << 20;
/** The largest request: a device's part of what the first bus shares holds it. */
const LARGEST = 1 << 20;
const DEVICES = ["rng", "blk,file=disk.img", "net"];

/** Where the devices are, and what their process is told besides. */
const FROM = {
  "v1": ["linux-user,socket=a.sock,name=a"],
  "v1, shm": ["shm,file=a.shm,size=16M"],
  "proto, shm": ["shm,file=a.shm,size=16M,dialect=proto", "--memory", "file=a.shm,at=0"],
} as const;

/** Both processes, and a session in which the three devices are published. */
interface Carried {
  readonly device: VmsgProcess;
  readonly bridge: VmsgProcess;
  readonly session: Session;
  startDevice(): Promise<VmsgProcess>;
}

async function carry(rig: BridgeRig, from: keyof typeof FROM): Promise<Carried> {
  const { processes, node } = rig;
  const write = (name: string, size: number) =>
    Deno.writeFileSync(`${processes.directory}/${name}`, new Uint8Array(size), { mode: 0o600 });
  write("disk.img", DISK_BYTES);
  write("a.shm", 16 << 20);
  const [bus, ...told] = FROM[from];
  // What is left in the queues would be taken for messages, as the prototype has it.
  const own = from.startsWith("proto") ? `${bus},reset` : bus;
  const devices = DEVICES.flatMap((kind) => ["--device", kind]);
  const control = ["--control", "ctl.sock"];
  const startDevice = () =>
    processes.start("device", "--bus", own, ...told, ...control, ...devices);
  const device = await startDevice();
  // Who empties the queues does it now, and not when somebody has asked something.
  await device.waitFor(/waiting for (a|the) driver side/);
  const numbers = from.startsWith("proto") ? DEVICES.flatMap((_, i) => ["--device", `${i}`]) : [];
  const to = ["--bus", "bridge,path=unix:node.sock"];
  const segment = from === "v1" ? ["--segment", "16M"] : [];
  const bridge = await processes.start("bridge", "--bus", bus, ...to, ...segment, ...numbers);
  // They are published one after another.
  const session = await node.published([0, 1, 2]);
  return { device, bridge, session, startDevice };
}

async function open(rig: BridgeRig, session: Session): Promise<[Entropy, Disk, Card]> {
  return await rig.settled(
    Promise.all([Entropy.open(session, 0), Disk.open(session, 1), Card.open(session, 2)]),
    "they are brought up",
  );
}

async function assertRandom(entropy: Entropy): Promise<void> {
  const one = await entropy.read(64), two = await entropy.read(64);
  assertEquals([one.length, two.length], [64, 64]);
  assertNotEquals(one, two);
  assert(new Set(one).size > 8, `${one}`);
}

/** Writes bytes to the disk, reads them, and looks at the file. */
async function assertStored({ node, processes }: BridgeRig, disk: Disk, length: number) {
  const bytes = node.choices.bytes(length);
  const sector = node.choices.below((DISK_BYTES - length) / SECTOR);
  await disk.write(sector, bytes);
  assertEquals(await disk.read(sector, length), bytes);
  await disk.flush();
  const at = sector * SECTOR;
  const file = Deno.readFileSync(`${processes.directory}/disk.img`);
  assertEquals(file.slice(at, at + length), bytes);
}

for (const from of ["v1", "v1, shm", "proto, shm"] as const) {
  bridgeTest(
    `bridge, carried from ${from}: rng, blk and net work, windows come and go meanwhile`,
    async (rig) => {
      const { bridge, device, session } = await carry(rig, from);
      const [entropy, disk, card] = await open(rig, session);
      rig.assertMapped(bridge);
      assertEquals([disk.sectors, await card.isUp()], [DISK_BYTES / SECTOR, true]);
      await assertRandom(entropy);
      for (const size of [0, 56, 1400, ...Array(30).fill(64)]) await card.ping(size);
      for (const length of [SECTOR, 60 << 10, LARGEST]) await assertStored(rig, disk, length);

      // Under rings that run, none of which knows of them; the last of them while the device works.
      let isOver = false;
      const traffic = (async () => {
        while (!isOver) {
          await card.ping(200);
          await assertStored(rig, disk, 80 << 10);
          await entropy.read(100);
        }
      })();
      for (let round = 0; round < 20; round++) {
        const made = await rig.settled(
          Promise.all(Array.from({ length: 4 }, () => session.add({ length: 3 * PAGE }))),
          "windows are mapped",
        );
        await rig.settled(Promise.all(made.map((window) => session.del(window))), "and unmapped");
      }
      isOver = true;
      await rig.settled(traffic, "the traffic has gone on");
      rig.assertMapped(bridge);
      assertEquals(
        [...bridge.stderr, ...device.stderr].filter((line) => /needs a reset|stop/.test(line)),
        [],
      );
      await entropy.driver.unbind();
      await card.driver.unbind();
      rig.assertMapped(bridge);
      await assertStored(rig, disk, 8 << 10);
      const again = await rig.settled(Card.open(session, 2), "the card is taken again");
      await again.ping();
      assertEquals((await bridge.end("SIGTERM")).code, 0);
      assertEquals(rig.node.violations, []);
    },
  );
}

/** Offline is read, nothing is mapped; then online again, in another session where frames were left that nobody had read. */
async function returned(rig: BridgeRig, bridge: VmsgProcess, session: Session): Promise<Session> {
  await rig.node.until(() => session.isFaulted || session.hasReadOffline, "it has read of it");
  await rig.unmapped(bridge);
  if (!session.isFaulted) session.goOnline(true);
  return await rig.node.published([0, 1, 2]);
}

bridgeTest("bridge, carried: offline at work, and back: all are brought up anew", async (rig) => {
  const { bridge, session: first } = await carry(rig, "v1");
  let session = first;
  for (let round = 0; round < 3; round++) {
    const [entropy, disk, card] = await open(rig, session);
    await assertStored(rig, disk, LARGEST);
    await assertRandom(entropy);
    await card.ping();
    // At work: buffers are with the devices.
    const going = [card.ping(), entropy.read(4096), disk.read(0, LARGEST)];
    session.goOffline();
    await Promise.allSettled(going);
    session = await returned(rig, bridge, session);
  }
  await (await open(rig, session))[2].ping();
});

for (const from of ["v1", "proto, shm"] as const) {
  bridgeTest(`bridge, carried from ${from}: offline at every step, and return`, async (rig) => {
    const { node } = rig;
    const { bridge, session: first } = await carry(rig, from);
    let session = first;
    for (let step = 1;; step++) {
      let frames = 0;
      node.onFrame = () => {
        if (++frames === step) session.goOffline();
      };
      const work = async () => {
        await Card.open(session, 2, {}, 4);
        const disk = await Disk.open(session, 1);
        await disk.write(0, new Uint8Array(80 << 10));
      };
      await rig.settled(work(), `step ${step}`).catch((error) => {
        if (frames < step) throw error;
      });
      node.onFrame = undefined;
      if (frames < step) break;
      session = await returned(rig, bridge, session);
    }
    rig.assertMapped(bridge);
    assertEquals((await bridge.end("SIGTERM")).code, 0);
  });
}

bridgeTest("bridge, carried: devices are unplugged and plugged on the first bus", async (rig) => {
  const { bridge, session } = await carry(rig, "v1");
  await open(rig, session);
  await rig.ctl("remove", "1");
  const next = await rig.node.published([0, 2], session);
  rig.assertMapped(bridge);
  const entropy = await rig.settled(Entropy.open(next, 0), "rng is brought up again");
  const card = await rig.settled(Card.open(next, 2), "net is brought up again");
  await rig.ctl("add", "--device", "blk,file=disk.img", "--number", "1");
  assertEquals(await rig.node.published([0, 1, 2]), next);
  await assertStored(rig, await rig.settled(Disk.open(next, 1), "the disk is there"), LARGEST);
  await assertRandom(entropy);
  await card.ping();
  rig.assertMapped(bridge);
  // The loopback knows numbers up to 31.
  await rig.ctl("add", "--device", "rng", "--number", "40");
  await bridge.waitFor(/device 40 is not carried: .*device numbers are below 32 there, not 40/);
  await rig.ctl("add", "--device", "rng", "--number", "31");
  assertEquals(await rig.node.published([0, 1, 2, 31]), next);
});

for (const from of ["v1", "proto, shm"] as const) {
  bridgeTest(
    `bridge, carried from ${from}: the devices' process is killed, and rings go on with the next`,
    async (rig) => {
      const { bridge, device, session, startDevice } = await carry(rig, from);
      const [entropy, disk, card] = await open(rig, session);
      let running = device;
      for (let round = 0; round < 2; round++) {
        await card.ping();
        await running.end("SIGKILL");
        // Nobody works on it before the next one is there; its window is its own.
        const bytes = rig.node.choices.bytes(LARGEST);
        const written = disk.write(0, bytes);
        const window = await rig.settled(session.add({ length: PAGE }), "a window is mapped");
        await rig.settled(session.del(window), "and unmapped, though no device answers");
        Deno.removeSync(`${rig.processes.directory}/ctl.sock`);
        running = await startDevice();
        await rig.settled(written, "it is written");
        assertEquals(await disk.read(0, LARGEST), bytes);
        await assertRandom(entropy);
        await card.ping();
      }
      rig.assertMapped(bridge);
    },
  );
}

bridgeTest(
  "bridge, carried: a window that goes with buffers in it stops the ring, and no other",
  async (rig) => {
    const { bridge, session } = await carry(rig, "v1");
    const [entropy, disk, card] = await open(rig, session);
    // One that does not fit where it would be copied to: its device stops, in words, and works again after a reset.
    const lost = assertRejects(() => disk.write(0, new Uint8Array(3 << 20)), Error, "reset");
    await bridge.waitFor(
      /device 1, ring 0 is broken: a buffer of 3145745 bytes, the segment has room for 1 to \d+ in this queue: give a larger one/,
    );
    await disk.driver.setStatus(0);
    disk.driver.queue(0).ended(new Error("reset"));
    await lost;
    const large = await rig.settled(Disk.open(session, 1), "the disk is brought up again");
    await assertStored(rig, large, LARGEST);

    const { rings } = card.driver.queue(0);
    await rig.settled(session.del(rings), "the receive queue's own memory goes");
    await bridge.waitFor(/device 2 needs a reset: the memory of queue 0 is gone/);
    rig.assertMapped(bridge);
    await assertRandom(entropy);
    await card.driver.setStatus(0);
    const again = await rig.settled(Card.open(session, 2), "it is brought up again");
    await again.ping();

    // Receive buffers are with the device for as long as nothing comes.
    await rig.settled(session.del(again.driver.pool.windows[0]!), "the buffers' memory goes");
    await until(() =>
      bridge.stderr.filter((line) => line.includes("the memory of queue 0 is gone")).length === 2
    );
    rig.assertMapped(bridge);
    await again.driver.setStatus(0);
    await (await rig.settled(Card.open(session, 2), "and once more")).ping();
    await assertRandom(entropy);
  },
);

bridgeTest(
  "bridge, carried: memory goes in time, though the devices' process stands still",
  async (rig) => {
    const { bridge, device, session } = await carry(rig, "v1, shm");
    const [, , card] = await open(rig, session);
    device.kill("SIGSTOP");
    try {
      const startMs = performance.now();
      await rig.settled(session.del(card.driver.queue(0).rings), "its memory goes");
      // The kernel's own patience is 5 s, and the machine may be busy; kernel_windows_test.ts has it to the millisecond.
      assert(performance.now() - startMs < PATIENCE_MS);
      rig.assertMapped(bridge);
    } finally {
      device.kill("SIGCONT");
    }
    await card.driver.setStatus(0);
    const again = await rig.settled(Card.open(session, 2), "it is brought up again");
    await again.ping();
    rig.assertMapped(bridge);
  },
);

bridgeTest("bridge, carried: a number that the kernel ignores is refused", async (rig) => {
  const { code, stderr } = await rig.processes.run(
    ...["bridge", "--bus", "linux-user,socket=a.sock,name=a"],
    ...["--bus", "bridge,path=unix:node.sock", "--device", "1,as=32"],
  );
  assertEquals(code, 1);
  assertMatch(stderr.at(-1)!, /bridge .*node.sock.*: device numbers are below 32 there, not 32/);
});
