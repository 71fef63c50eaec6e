/**
 * `vmsg device`, `vmsg bridge` to `--bus bridge`, and a kernel's side that was written from the document alone: devices of other
 * buses and dialects for a kernel's own drivers.
 */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { Card } from "../support/bridge_kernel/card.ts";
import { Disk, SECTOR } from "../support/bridge_kernel/disk.ts";
import { Entropy } from "../support/bridge_kernel/entropy.ts";
import type { Session } from "../support/bridge_kernel/session.ts";
import { PAGE } from "../support/bridge_kernel/windows.ts";
import { type BridgeRig, bridgeTest } from "../support/bridge_rig.ts";
import { until, type VmsgProcess } from "../support/processes.ts";

const DISK_BYTES = 4 << 20;
/** The largest request that the test's buses have room for. */
const LARGEST = 128 << 10;
const DEVICES = ["rng", "blk,file=disk.img", "net"];

/** Where the devices are, and what their process is told besides. */
const FROM = {
  "v1": ["linux-user,socket=a.sock,name=a"],
  "v1, shm": ["shm,file=a.shm,size=4M"],
  "proto, shm": ["shm,file=a.shm,size=4M,dialect=proto", "--memory", "file=a.shm,at=0"],
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
  write("a.shm", 4 << 20);
  const [bus, ...told] = FROM[from];
  // What is left in the queues would be taken for messages, as the prototype has it.
  const own = from.startsWith("proto") ? `${bus},reset` : bus;
  const devices = DEVICES.flatMap((kind) => ["--device", kind]);
  const control = ["--control", "ctl.sock"];
  const startDevice = () =>
    processes.start("device", "--bus", own, ...told, ...control, ...devices);
  const device = await startDevice();
  const numbers = from.startsWith("proto") ? DEVICES.flatMap((_, i) => ["--device", `${i}`]) : [];
  const to = ["--bus", "bridge,path=unix:node.sock"];
  const bridge = await processes.start("bridge", "--bus", bus, ...to, ...numbers);
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
