/** `vmsg device --bus bridge` with a kernel's side that was written from the document alone: what it is for. */

import { assert, assertEquals, assertMatch, assertNotEquals, assertRejects } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { Card } from "../support/bridge_kernel/card.ts";
import { Disk, SECTOR } from "../support/bridge_kernel/disk.ts";
import { Driver, EVENT_IDX } from "../support/bridge_kernel/driver.ts";
import { Entropy } from "../support/bridge_kernel/entropy.ts";
import { Pool } from "../support/bridge_kernel/pool.ts";
import {
  ATTACH,
  EBUSY,
  EINVAL,
  ENODEV,
  ENOENT,
  NAMES,
  RESOLVE,
} from "../support/bridge_kernel/requests.ts";
import { PAGE } from "../support/bridge_kernel/windows.ts";
import { type BridgeRig, bridgeTest } from "../support/bridge_rig.ts";

const DISK_BYTES = 4 << 20;

function makeDisk(rig: BridgeRig): string {
  const path = `${rig.processes.directory}/disk.img`;
  Deno.writeFileSync(path, new Uint8Array(DISK_BYTES));
  return path;
}

/** Random bytes of two reads are neither the same nor all alike. */
async function assertRandom(entropy: Entropy): Promise<void> {
  const one = await entropy.read(64), two = await entropy.read(64);
  assertEquals([one.length, two.length], [64, 64]);
  assertNotEquals(one, two);
  assert(new Set(one).size > 8, `${one}`);
}

bridgeTest(
  "bridge: rng, net and blk are brought up at once, and work; SIGTERM gives all back",
  async (rig) => {
    const { node } = rig;
    const path = makeDisk(rig);
    const { process, session } = await rig.publish(
      "--device",
      "rng",
      "--net",
      "responder",
      "--device",
      `blk,file=${path}`,
    );
    const [entropy, card, disk] = await rig.settled(
      Promise.all([Entropy.open(session, 0), Card.open(session, 1), Disk.open(session, 2)]),
      "they are brought up",
    );
    rig.assertMapped(process);
    assertEquals([disk.sectors, await card.isUp()], [DISK_BYTES / SECTOR, true]);
    await assertRandom(entropy);
    // In one message of 80 bytes, and byte by byte.
    const { driver } = disk;
    assertEquals(await driver.readConfig(0, 60), await driver.readConfig(0, 60, 1));
    for (const size of [0, 56, 1400, ...Array(30).fill(64)]) await card.ping(size);
    // From the pool, and with windows of its own that go afterwards.
    for (const length of [SECTOR, 60 << 10, 200 << 10, 1 << 20]) {
      const bytes = node.choices.bytes(length);
      const sector = node.choices.below((DISK_BYTES - length) / SECTOR);
      await disk.write(sector, bytes);
      assertEquals(await disk.read(sector, length), bytes);
      await disk.flush();
      const at = sector * SECTOR;
      assertEquals(Deno.readFileSync(path).slice(at, at + length), bytes);
    }
    rig.assertMapped(process);
    await entropy.driver.unbind();
    rig.assertMapped(process);
    await card.ping();

    const { code } = await process.end("SIGTERM");
    assertEquals(code, 0);
    await node.until(() => node.requests.includes("end"), "it has closed the node");
    assertEquals(node.requests, [
      "RESOLVE_ENDPOINT",
      "ATTACH",
      "DETACH",
      "RELEASE_ENDPOINT",
      "end",
    ]);
  },
);

bridgeTest(
  "bridge: a file system goes to the disk through the rings, and is whole",
  async (rig) => {
    const source = fromFileUrl(new URL("../../src/bus", import.meta.url));
    const { directory } = rig.processes;
    const made = await rig.processes.startProgram("mkfs.erofs", "image", source);
    assertEquals((await made.ended()).code, 0);
    const image = Deno.readFileSync(`${directory}/image`);
    const path = makeDisk(rig);
    const { session } = await rig.publish("--device", `blk,file=${path}`);
    const disk = await rig.settled(Disk.open(session, 0), "the disk is brought up");
    for (let at = 0; at < image.length; at += 48 << 10) {
      await disk.write(at / SECTOR, image.slice(at, at + (48 << 10)));
    }
    await disk.flush();
    const extracted = await rig.processes.startProgram("fsck.erofs", "--extract=out", path);
    assertEquals((await extracted.ended()).code, 0);
    const compared = await rig.processes.startProgram("diff", "-r", source, "out");
    assertEquals((await compared.ended()).code, 0);
  },
);

bridgeTest(
  "bridge: devices are added in the same session, and removed with a new one",
  async (rig) => {
    const { node } = rig;
    const { process, session } = await rig.publish("--device", "rng", "--net", "responder");
    const first = await rig.settled(Entropy.open(session, 0), "rng is brought up");
    await rig.settled(Card.open(session, 1), "net is brought up");
    await rig.ctl("add", "--device", "rng", "--number", "7");
    assertEquals(await node.published([0, 1, 7]), session);
    const added = await rig.settled(
      Entropy.open(session, 7),
      "the one that was added is brought up",
    );
    await assertRandom(added);
    await assertRandom(first);
    rig.assertMapped(process);

    await rig.ctl("remove", "1");
    const next = await node.published([0, 7], session);
    assertEquals(next.epoch, 1);
    for (const number of [0, 7]) {
      await assertRandom(
        await rig.settled(Entropy.open(next, number), `${number} is brought up again`),
      );
    }
    rig.assertMapped(process);
    await rig.ctl("add", "--net", "responder", "--number", "1");
    assertEquals(await node.published([0, 1, 7]), next);
    await (await rig.settled(Card.open(next, 1), "net is there again")).ping();

    for (const [number, rest] of [["7", [0, 1]], ["1", [0]], ["0", []]] as const) {
      const { session } = node;
      await rig.ctl("remove", number);
      await node.published(rest, session);
    }
    await rig.ctl("add", "--device", "rng", "--number", "3");
    const last = await node.published([3]);
    await assertRandom(
      await rig.settled(Entropy.open(last, 3), "the one that is left is brought up"),
    );
  },
);

bridgeTest("bridge: the link goes down and up, and the driver is told", async (rig) => {
  const { session } = await rig.publish("--net", "responder");
  const card = await rig.settled(Card.open(session, 0), "net is brought up");
  for (const [state, isUp] of [["down", false], ["up", true]] as const) {
    const before = card.driver.configEvents.length;
    await rig.ctl("link", "0", state);
    await rig.node.until(() => card.driver.configEvents.length > before, "EVENT_CONFIG");
    assertEquals(await card.isUp(), isUp);
  }
  await card.ping();
});

bridgeTest("bridge: a console and sockets are brought up, and carry bytes", async (rig) => {
  const { processes: { directory }, node: { memory } } = rig;
  const { process, session } = await rig.publish(
    ...["--device", "console,socket=console.sock", "--device", "vsock,socket=vsock.sock"],
  );
  const open = async (dev: number, deviceId: number, queues: number[]) => {
    const driver = new Driver(session, dev, { deviceId, features: EVENT_IDX, queues });
    await rig.settled(driver.bringUp(), `device ${dev} is brought up`);
    return driver;
  };
  const awaitBytes = async (driver: Driver) => {
    const buffer = await driver.pool.take(PAGE);
    const come = driver.queue(0).add({ readable: [], writable: [buffer] });
    driver.kick(0);
    return async () =>
      memory.read(buffer.address, await rig.settled(come, "the device gives bytes"));
  };
  const send = async (driver: Driver, bytes: Uint8Array) => {
    const buffer = await driver.pool.take(bytes.length);
    memory.write(buffer.address, bytes);
    await driver.transfer(1, { readable: [buffer], writable: [] });
  };

  const console = await open(0, 3, [0, 1]);
  const typed = await awaitBytes(console);
  using person = await Deno.connect({ transport: "unix", path: `${directory}/console.sock` });
  await person.write(new TextEncoder().encode("typed"));
  assertEquals(new TextDecoder().decode(await typed()), "typed");
  await send(console, new TextEncoder().encode("shown"));
  const shown = new Uint8Array(5);
  for (let have = 0; have < 5;) have += (await person.read(shown.subarray(have)))!;
  assertEquals(new TextDecoder().decode(shown), "shown");

  const sockets = await open(1, 19, [0, 1, 2]);
  const answer = await awaitBytes(sockets);
  // VIRTIO 1.3, 5.10.6: from 3:1025 to 2:1234, where nobody listens; a stream, REQUEST, which RST answers.
  const header = (from: number[], to: number[], operation: number, room: number) =>
    new Uint8Array(
      Uint32Array.of(from[0]!, 0, to[0]!, 0, from[1]!, to[1]!, 0, 1 | operation << 16, 0, room, 0)
        .buffer,
    );
  await send(sockets, header([3, 1025], [2, 1234], 1, 1 << 16));
  assertEquals((await answer()).slice(0, 32), header([2, 1234], [3, 1025], 3, 0).slice(0, 32));
  rig.assertMapped(process);
  assertEquals((await process.end("SIGTERM")).code, 0);
});

/** All orders in which n windows come and go. */
function orders(count: number): string[] {
  const found: string[] = [];
  const go = (steps: string, next: number, live: readonly number[]) => {
    if (next === count && live.length === 0) found.push(steps);
    if (next < count) go(`${steps}+`, next + 1, [...live, next]);
    live.forEach((window, i) => go(`${steps}${window}`, next, live.toSpliced(i, 1)));
  };
  go("", 0, []);
  return found;
}

bridgeTest(
  "bridge: windows come and go in every order, one by one and all at once",
  async (rig) => {
    const { node } = rig;
    const { process, session } = await rig.publish("--device", "rng");
    await rig.settled(Entropy.open(session, 0), "rng is brought up");
    const shape = () => ({
      length: (1 + node.choices.below(8)) * PAGE,
      keep: node.choices.below(2) === 0,
    });
    for (const steps of orders(3)) {
      const made = [];
      for (const step of steps) {
        if (step === "+") made.push(await rig.settled(session.add(shape()), steps));
        else await rig.settled(session.del(made[Number(step)]!), steps);
        rig.assertMapped(process);
      }
    }
    for (let round = 0; round < 10; round++) {
      const adding = Array.from({ length: 20 }, () => session.add(shape()));
      const made = await rig.settled(Promise.all(adding), "all are mapped");
      rig.assertMapped(process);
      // Those that go and those that come are in flight together; answers come in order.
      const going = made.filter(() => node.choices.below(2) === 0);
      const coming = Array.from({ length: 10 }, () => session.add(shape()));
      const all = Promise.all([...going.map((window) => session.del(window)), ...coming]);
      await rig.settled(all, "all are answered");
      rig.assertMapped(process);
      const rest = [...session.live].slice(2);
      await rig.settled(Promise.all(rest.map((window) => session.del(window))), "all are unmapped");
    }
  },
);

bridgeTest(
  "bridge: bus addresses are given again to other windows; a buffer spans two",
  async (rig) => {
    const { node } = rig;
    const path = makeDisk(rig);
    const { process, session } = await rig.publish("--device", `blk,file=${path}`);
    const disk = await rig.settled(Disk.open(session, 0), "the disk is brought up");
    for (let round = 0; round < 8; round++) {
      const one = await session.add({ length: 4 * PAGE, busAddr: 0x7000_0000 });
      // What lies between them in the file is not between them on the bus.
      const between = await session.add({ length: PAGE });
      const two = await session.add({ length: 4 * PAGE, busAddr: 0x7000_0000 + 4 * PAGE });
      const bytes = node.choices.bytes(2 * PAGE);
      const at = [{ address: 0x7000_0000 + 3 * PAGE, length: 2 * PAGE }];
      await disk.write(round * 16, bytes, at);
      node.memory.write(at[0]!.address, new Uint8Array(2 * PAGE));
      assertEquals(await disk.read(round * 16, 2 * PAGE, at), bytes);
      assertEquals(Deno.readFileSync(path).slice(round * 16 * SECTOR).slice(0, 2 * PAGE), bytes);
      for (const window of node.choices.pick([[one, two, between], [two, between, one]])) {
        await rig.settled(session.del(window), "it is unmapped");
      }
      rig.assertMapped(process);
    }
  },
);

bridgeTest("bridge: thirty-two devices share rings' memory and a pool", async (rig) => {
  const devices = Array.from({ length: 32 }, () => ["--device", "rng"]).flat();
  const { process, session } = await rig.publish(...devices);
  const ringMemory = await session.add({ length: 32 * 16 * PAGE });
  const pool = new Pool(session);
  await pool.open();
  const plan = { ringMemory, pool };
  const opening = Array.from({ length: 32 }, (_, dev) => Entropy.open(session, dev, plan));
  const all = await rig.settled(Promise.all(opening), "all are brought up");
  await rig.settled(Promise.all(all.map(assertRandom)), "all give bytes");
  assertEquals(session.live.size, 2);
  rig.assertMapped(process);
});

bridgeTest("bridge: a process that was killed, and the next one", async (rig) => {
  const { node } = rig;
  for (let round = 0; round < 3; round++) {
    const { process, session } = await rig.publish("--device", "rng", "--net", "responder");
    const [entropy, card] = await rig.settled(
      Promise.all([Entropy.open(session, 0), Card.open(session, 1)]),
      "they are brought up",
    );
    await assertRandom(entropy);
    await card.ping();
    const rest = assertRejects(async () => {
      for (;;) await entropy.read(4096);
    });
    await process.end("SIGKILL");
    await rest;
    await node.until(() => node.session === undefined, "the node is closed");
    for (const name of ["ctl.sock"]) {
      await Deno.remove(`${rig.processes.directory}/${name}`).catch(() => {});
    }
  }
  assertEquals(node.connections, 3);
});

bridgeTest("bridge: a node that comes late, is offline, goes, and comes again", async (rig) => {
  const { node } = rig;
  node.startsOnline = false;
  const late = `${rig.processes.directory}/late.sock`;
  const process = await rig.processes.start(
    "device",
    "--bus",
    "bridge,path=unix:late.sock",
    "--device",
    "rng",
  );
  await process.waitFor(/late.sock: waiting/);
  Deno.renameSync(node.path, late);
  await node.until(() => node.session !== undefined, "it has attached");
  const first = node.session!;
  assertEquals([first.tx.used, first.kicks], [0, 0]);
  first.goOnline(true);
  assertEquals(await node.published([0]), first);
  await assertRandom(await rig.settled(Entropy.open(first, 0), "rng is brought up"));

  node.startsOnline = true;
  node.disconnect();
  const second = await node.published([0], first);
  await assertRandom(await rig.settled(Entropy.open(second, 0), "rng is brought up again"));
  rig.assertMapped(process);
  assertEquals((await process.end("SIGTERM")).code, 0);
});

bridgeTest(
  "bridge: a driver that lets go and takes hold again, in the same session",
  async (rig) => {
    const { process, session } = await rig.publish("--device", "rng", "--net", "responder");
    for (let round = 0; round < 5; round++) {
      const entropy = await rig.settled(Entropy.open(session, 0), "rng is brought up");
      const card = await rig.settled(Card.open(session, 1, {}, 16), "net is brought up");
      await assertRandom(entropy);
      await card.ping();
      await rig.settled(card.driver.unbind(), "net is let go");
      await assertRandom(entropy);
      await rig.settled(entropy.driver.unbind(), "rng is let go");
      rig.assertMapped(process);
    }
  },
);

for (
  const [request, errno, line] of [
    [RESOLVE, -ENODEV, /no such endpoint \(ENODEV\)/],
    [RESOLVE, -ENOENT, /no such endpoint \(ENOENT\)/],
    [ATTACH, -EBUSY, /has a device side already/],
    [ATTACH, -EINVAL, /EINVAL|[Ii]nvalid/],
  ] as const
) {
  bridgeTest(
    `bridge: ${NAMES.get(request)} refused with ${errno} ends it with a line`,
    async (rig) => {
      rig.node.refusals.set(request, errno);
      const { code, stderr } = await (await rig.start("--device", "rng")).ended();
      assertEquals(code, 1);
      assertMatch(stderr.at(-1)!, line);
    },
  );
}
