/**
 * `vmsg device --bus bridge` where not all goes well: an endpoint that goes offline at any moment, cursors that lag,
 * sessions that fault, floods, and a kernel that sends nonsense.
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { Card } from "../support/bridge_kernel/card.ts";
import { Disk } from "../support/bridge_kernel/disk.ts";
import { Entropy } from "../support/bridge_kernel/entropy.ts";
import { numberOf } from "../support/bridge_kernel/frames.ts";
import { MapRefused, type Session, SessionEnded } from "../support/bridge_kernel/session.ts";
import { PAGE, type WindowShape } from "../support/bridge_kernel/windows.ts";
import { type BridgeRig, bridgeTest } from "../support/bridge_rig.ts";
import type { VmsgProcess } from "../support/processes.ts";

/** Offline is read, nothing is mapped; then online again, in this session or a new one. */
async function returned(rig: BridgeRig, process: VmsgProcess, session: Session): Promise<Session> {
  const { node } = rig;
  await node.until(() => session.isFaulted || session.hasReadOffline, "it has read of it");
  await rig.unmapped(process);
  if (!session.isFaulted) session.goOnline(true);
  const devices = process.args.filter((word) => word === "--device" || word === "--net");
  return await node.published([...devices.keys()]);
}

/**
 * Offline with each frame of a bring-up and of first uses, until there are none left.
 *
 * @param work is given the session and has to use what it brings up
 */
async function offlineAtEveryStep(
  rig: BridgeRig,
  direction: "K>D" | "D>K",
  devices: readonly string[],
  work: (session: Session) => Promise<void>,
): Promise<void> {
  const { node } = rig;
  const { process, session: first } = await rig.publish(...devices);
  let session = first;
  for (let step = 1;; step++) {
    let frames = 0;
    node.onFrame = (from) => {
      if (from === direction && ++frames === step) session.goOffline(node.choices.pick([1, 2]));
    };
    const done = rig.settled(work(session), `step ${step}`);
    await done.catch((error) => {
      if (frames < step) throw error;
    });
    node.onFrame = undefined;
    if (frames < step) break;
    session = await returned(rig, process, session);
  }
  rig.assertMapped(process);
  assertEquals((await process.end("SIGTERM")).code, 0);
}

bridgeTest("bridge: offline behind every frame of the kernel's, and return", async (rig) => {
  await offlineAtEveryStep(
    rig,
    "K>D",
    ["--device", "rng", "--net", "responder"],
    async (session) => {
      const opening = [Entropy.open(session, 0), Card.open(session, 1, {}, 8)] as const;
      const [entropy, card] = await Promise.all(opening);
      await entropy.read(100);
      await card.ping();
    },
  );
});

bridgeTest("bridge: offline behind every answer, and return", async (rig) => {
  await offlineAtEveryStep(rig, "D>K", ["--device", "rng"], async (session) => {
    const entropy = await Entropy.open(session, 0);
    await entropy.read(100);
    await entropy.driver.unbind();
  });
});

bridgeTest("bridge: offline while buffers are on their way, and return", async (rig) => {
  const { node } = rig;
  const { process, session: first } = await rig.publish(
    "--device",
    "rng",
    "--net",
    "responder,flood=2000",
  );
  let session = first;
  for (let round = 0; round < 10; round++) {
    const entropy = await rig.settled(Entropy.open(session, 0), "rng is brought up");
    const card = await rig.settled(Card.open(session, 1), "net is brought up");
    const rest = assertRejects(async () => {
      for (;;) await entropy.read(4096);
    });
    await node.until(() => card.driver.usedEvents > round, "frames come");
    session.goOffline();
    await rest;
    session = await returned(rig, process, session);
  }
});

bridgeTest(
  "bridge: nothing is said while the endpoint is offline; its end leaves the node alone",
  async (rig) => {
    const { node } = rig;
    const { process, session } = await rig.publish(
      "--device",
      "rng",
      "--net",
      "responder,flood=2000",
    );
    const card = await rig.settled(Card.open(session, 1), "net is brought up");
    await node.until(() => card.driver.usedEvents > 3, "frames come");
    session.goOffline();
    await node.until(() => session.isFaulted || session.hasReadOffline, "it has read of it");
    await rig.ctl("link", "1", "down");
    await rig.ctl("add", "--device", "rng");
    // Whatever it would say is a violation.
    await new Promise((resolve) => setTimeout(resolve, 300));
    process.kill("SIGTERM");
    await node.until(() => node.requests.includes("end"), "it has closed the node");
    if (!session.isFaulted) assertEquals(node.requests, ["RESOLVE_ENDPOINT", "ATTACH", "end"]);
    await process.ended();
  },
);

bridgeTest("bridge: a cursor that the kernel wrote back is stored again", async (rig) => {
  const { node } = rig;
  const { process, session } = await rig.publish("--device", "rng");
  const entropy = await rig.settled(Entropy.open(session, 0), "rng is brought up");
  const ask = () => entropy.driver.ask("GET_DEVICE_STATUS");
  for (let count = 1; count <= 5; count++) {
    session.pause();
    const asked = Array.from({ length: count }, ask);
    await node.until(() => session.tx.used === count, "its answers lie there");
    session.tx.writeBack(session.tx.other() - count);
    session.resume();
    assertEquals((await rig.settled(Promise.all(asked), "its answers come")).length, count);
  }
  // It does not take again what it took: there would be two answers.
  for (const back of [1, 3, 250]) {
    await node.until(() => session.rx.used === 0, "it has taken everything");
    session.rx.writeBack(session.rx.other() - back);
    const asked = Array.from({ length: 10 }, ask);
    await rig.settled(Promise.all(asked), "its answers come");
  }
  session.writesBack = true;
  for (let round = 0; round < 20; round++) {
    await rig.settled(Promise.all(Array.from({ length: 50 }, ask)), "all are answered");
    assertEquals((await entropy.read(64)).length, 64);
  }
  rig.assertMapped(process);
});

bridgeTest(
  "bridge: more requests than the rings have room for are all answered, once",
  async (rig) => {
    const { node } = rig;
    const { session } = await rig.publish("--device", "rng", "--net", "responder");
    const [entropy, card] = await rig.settled(
      Promise.all([Entropy.open(session, 0), Card.open(session, 1)]),
      "both are brought up",
    );
    session.pause();
    const asked = Array.from(
      { length: 1000 },
      (_, i) =>
        i % 3 === 0 ? card.driver.readConfig(i % 6, 1) : entropy.driver.ask("GET_DEVICE_STATUS"),
    );
    await node.until(() => session.tx.used === 256, "its ring is full");
    session.resume();
    assertEquals((await rig.settled(Promise.all(asked), "all are answered")).length, 1000);
    await card.ping();
  },
);

bridgeTest(
  "bridge: floods of notifications, for queues that are there and that are not",
  async (rig) => {
    const { session } = await rig.publish("--device", "rng", "--net", "responder");
    const [entropy, card] = await rig.settled(
      Promise.all([Entropy.open(session, 0), Card.open(session, 1)]),
      "both are brought up",
    );
    for (let i = 0; i < 3000; i++) {
      const dev = i % 5, index = [0, 1, 2, 999, 0xffff_ffff][i % 4]!;
      session.send("EVENT_AVAIL", dev, 0, { index, word: i });
    }
    await rig.settled(card.ping(), "a ping is answered");
    assertEquals((await entropy.read(64)).length, 64);
  },
);

/** Frames that no kernel sends. */
const NONSENSE: readonly string[] = [
  // Sizes that are none, of a slot of 128 bytes.
  "0007000000000000",
  "0007000000000700",
  "0007000000008100",
  "000700000000ffff",
  // Requests too short, too long, of devices that are not there, unknown ones, an answer, private messages.
  "0008000005000800",
  "0003000005000c0000000000",
  "000a00000500100001000000ffffffff",
  "00071f0005000800",
  "0007ffff05000800",
  "003f000005000800",
  "0107000005000c0000000000",
  "01410000000010000000000000000000",
  "00bf000005000800",
  // The bus's own of other buses: there are no answers to them on this one.
  "0203000005000c0001020304",
  "0202000005000c0000000001",
  "0240000000000c0000000100",
  // The bridge's own: too short, too long, with a device, with an id that is none, such as only a process sends.
  "0289000005000800",
  "02890000050028000100000000000000010000000000000001000000000000000000000000000000",
  "028a000005000c0000000000",
  "02c00000000018000200000000000000" + "0000000000000000",
  "02c100000000100001000000000000" + "00",
  "02c10100000018000100000000000000" + "0100000000000000",
  "02cf000000000800",
  "02c2000000001800010000000000000000000000000000" + "00",
  "0388000005001000" + "00000700fbffffff",
  // Offline, of an epoch that is not.
  "02c10000000018000000000000000000" + "0100000000000000",
  "02c1000000001800ff00000000000000" + "0100000000000000",
];

bridgeTest("bridge: frames that no kernel sends change nothing", async (rig) => {
  const { node } = rig;
  const { process, session } = await rig.publish("--device", "rng");
  const entropy = await rig.settled(Entropy.open(session, 0), "rng is brought up");
  for (const hex of NONSENSE) {
    session.sendBytes(Uint8Array.fromHex(hex));
    const status = await rig.settled(entropy.driver.ask("GET_DEVICE_STATUS"), `after ${hex}`);
    assertEquals(numberOf(status, "status"), 0x0f, hex);
  }
  for (let i = 0; i < 300; i++) {
    const bytes = node.choices.bytes(128);
    // Whatever it is, it is none that might be right.
    bytes[0] = node.choices.pick([4, 8, 0x82, 0xf0]);
    session.sendBytes(bytes);
  }
  // prod is further than a ring is long, or behind; then right again.
  for (const by of [257, -1, 0x8000_0000]) {
    await node.until(
      () => session.unsent === 0 && session.rx.used === 0,
      "it has taken everything",
    );
    session.rx.poke(0, session.rx.own + by);
    session.ring();
    await new Promise((resolve) => setTimeout(resolve, 20));
    session.rx.poke(0, session.rx.own);
  }
  assertEquals((await rig.settled(entropy.read(64), "it works")).length, 64);
  rig.assertMapped(process);
});

bridgeTest("bridge: windows that cannot be are refused, and the session goes on", async (rig) => {
  const { process, session } = await rig.publish("--device", "rng");
  const entropy = await rig.settled(Entropy.open(session, 0), "rng is brought up");
  const [live] = session.live;
  const shapes: Readonly<Record<string, WindowShape>> = {
    "beyond the file": { length: PAGE, offset: 1 << 30 },
    "partly beyond the file": { length: 2 * PAGE, offset: (1 << 30) - PAGE },
    "far beyond the file": { length: PAGE, offset: 2 ** 52 },
    "larger than the file": { length: 2 ** 40, offset: 0 },
    "of no length": { length: 0 },
    "where one is": { length: PAGE, busAddr: live!.busAddr },
    "over the end of one": { length: 2 * PAGE, busAddr: live!.busAddr + live!.length - PAGE },
  };
  for (const [what, shape] of Object.entries(shapes)) {
    await assertRejects(() => rig.settled(session.add(shape), what), MapRefused, undefined, what);
    rig.assertMapped(process);
  }
  assertEquals((await entropy.read(64)).length, 64);
});

bridgeTest(
  "bridge: more windows than there may be are refused, and room is room again",
  async (rig) => {
    const { process, session } = await rig.publish("--device", "rng");
    await rig.settled(Entropy.open(session, 0), "rng is brought up");
    const made = [];
    for (;;) {
      try {
        made.push(await rig.settled(session.add({ length: PAGE }), "it is answered"));
      } catch (error) {
        assert(error instanceof MapRefused, `${error}`);
        break;
      }
      assert(made.length <= 509, "it takes any number of windows");
    }
    assert(made.length > 60, `only ${made.length} windows`);
    rig.assertMapped(process);
    await rig.settled(session.del(made.pop()!), "it is unmapped");
    await rig.settled(session.add({ length: PAGE }), "one has room");
    rig.assertMapped(process);
  },
);

bridgeTest("bridge: a session that faults is followed by one with fresh rings", async (rig) => {
  const { node } = rig;
  const { process, session: first } = await rig.publish("--device", "rng", "--device", "rng");
  let session = first;
  for (const step of [0, 3, 12]) {
    const entropy = step === 0 ? undefined : Entropy.open(session, 0);
    let frames = 0;
    node.onFrame = () => {
      if (++frames === step) session.fault();
    };
    if (entropy === undefined) session.fault();
    else await assertRejects(() => node.settled(entropy, "a fault"));
    node.onFrame = undefined;
    session = await node.published([0, 1], session);
    assertEquals(node.requests.slice(-2), ["DETACH", "ATTACH"]);
  }
  await rig.settled(Entropy.open(session, 0), "rng is brought up");
  rig.assertMapped(process);
});

bridgeTest(
  "bridge: a walk of seeds: windows, traffic, cursors, offline, in any order",
  async (rig) => {
    const { node } = rig;
    const { choices } = node;
    const path = `${rig.processes.directory}/disk.img`;
    Deno.writeFileSync(path, new Uint8Array(1 << 20));
    const { process, session: first } = await rig.publish(
      "--device",
      "rng",
      "--net",
      "responder",
      "--device",
      `blk,file=${path}`,
    );
    let session = first;
    const bringUp = () =>
      rig.settled(
        Promise.all([
          Entropy.open(session, 0),
          Card.open(session, 1, {}, 32),
          Disk.open(session, 2),
        ]),
        "all are brought up",
      );
    let [entropy, card, disk] = await bringUp();
    let extra = [];
    for (let step = 0; step < 150; step++) {
      switch (choices.below(10)) {
        case 0:
          session.goOffline();
          session = await returned(rig, process, session);
          extra = [];
          [entropy, card, disk] = await bringUp();
          break;
        case 1:
          session.writesBack = !session.writesBack;
          break;
        case 2:
          extra.push(
            await rig.settled(session.add({ length: PAGE * (1 + choices.below(9)) }), "add"),
          );
          break;
        case 3:
          if (extra.length > 0) {
            const [window] = extra.splice(choices.below(extra.length), 1);
            await rig.settled(session.del(window!), "del");
          }
          break;
        case 4:
          for (let i = 0; i < 100; i++) entropy.driver.notify(0);
          break;
        case 5: {
          const bytes = choices.bytes(512 * (1 + choices.below(200)));
          const sector = choices.below(1000);
          await disk.write(sector, bytes);
          assertEquals(await disk.read(sector, bytes.length), bytes);
          break;
        }
        case 6:
          await rig.settled(card.ping(choices.below(1400)), "ping");
          break;
        default:
          assertEquals((await entropy.read(100)).length, 100);
      }
      rig.assertMapped(process);
    }
  },
);

bridgeTest("bridge: SIGTERM in the middle of a bring-up, at any step", async (rig) => {
  const { node } = rig;
  for (let round = 0; round < 3; round++) {
    const { process, session } = await rig.publish("--device", "rng", "--net", "responder");
    const step = 1 + node.choices.below(60);
    let frames = 0;
    // Once: a second one would end it at once.
    const end = () => process.kill("SIGTERM");
    node.onFrame = () => {
      if (++frames === step) end();
    };
    const opening = Promise.all([Entropy.open(session, 0), Card.open(session, 1)]);
    await node.settled(opening, "both are brought up").catch(() => {});
    node.onFrame = undefined;
    if (frames < step) end();
    assertEquals((await process.ended()).code, 0);
    await node.until(() => node.requests.includes("end"), "the node is closed");
    assertEquals(node.requests.splice(0), [
      "RESOLVE_ENDPOINT",
      "ATTACH",
      "DETACH",
      "RELEASE_ENDPOINT",
      "end",
    ]);
  }
});

bridgeTest(
  "bridge: a window that goes while buffers in it are out is not touched afterwards",
  async (rig) => {
    const { node } = rig;
    const path = `${rig.processes.directory}/disk.img`;
    Deno.writeFileSync(path, new Uint8Array(8 << 20).fill(0x77));
    const { process, session } = await rig.publish(
      "--device",
      `blk,file=${path}`,
      "--net",
      "responder,flood=20000",
      "--device",
      "rng",
    );
    const entropy = await rig.settled(Entropy.open(session, 2), "rng is brought up");
    for (let round = 0; round < 6; round++) {
      const disk = await rig.settled(Disk.open(session, 0), "the disk is brought up");
      const card = await rig.settled(Card.open(session, 1), "net is brought up");
      const window = await rig.settled(
        session.add({ length: 4 << 20, keep: false }),
        "it is mapped",
      );
      const reading = disk.read(0, window.length, [{
        address: window.busAddr,
        length: window.length,
      }]);
      const gone = assertRejects(() => reading).catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, node.choices.below(3)));
      await rig.settled(session.del(window), "it is unmapped");
      // Receive buffers go as they are being filled, in every other round the rings too.
      const rings = new Set(
        [...disk.driver.queues.values(), ...card.driver.queues.values()].map(({ rings }) => rings),
      );
      const own = [...entropy.driver.pool.windows, entropy.driver.queue(0).rings];
      const kept = new Set(round % 2 === 0 ? [...rings, ...own] : own);
      const pools = [...session.live].filter((each) => !kept.has(each));
      // Events of queues whose rings are gone are nobody's.
      for (const dev of [0, 1]) session.listeners.delete(dev);
      await rig.settled(Promise.all(pools.map((each) => session.del(each))), "all are unmapped");
      rig.assertMapped(process);
      await new Promise((resolve) => setTimeout(resolve, 20));
      assertEquals(node.memory.storesToGone(), []);
      assertEquals((await entropy.read(64)).length, 64);
      for (const { driver } of [disk, card]) {
        driver.ended(new SessionEnded("the test takes it away"));
        await rig.settled(driver.unbind(), "it is let go");
      }
      await gone;
    }
  },
);

bridgeTest("bridge: descriptors that lie nowhere stop their device, and no other", async (rig) => {
  const { node } = rig;
  const { process, session } = await rig.publish("--device", "rng", "--device", "rng");
  const [bad, good] = await rig.settled(
    Promise.all([Entropy.open(session, 0), Entropy.open(session, 1)]),
    "both are brought up",
  );
  for (const address of [0, 2 ** 52, session.owner.memory.make({ length: PAGE }).busAddr]) {
    bad.driver.queue(0).add({ readable: [], writable: [{ address, length: 64 }] });
    bad.driver.kick(0);
    await node.until(() => bad.driver.configEvents.length > 0, "it says that it needs a reset");
    assertEquals(numberOf(bad.driver.configEvents.pop()!, "status"), 0x4f);
    assertEquals((await good.read(64)).length, 64);
    await rig.settled(bad.driver.unbind(), "it is reset");
    await rig.settled(bad.driver.bringUp(), "it is brought up again");
    assertEquals((await bad.read(64)).length, 64);
  }
  // Nothing about a guest's options, which a kernel's windows do not depend on.
  await process.waitFor(/is outside of memory: the kernel has shown no window there, or taken/);
  assertEquals(process.stderr.filter((line) => line.includes("share=on")), []);
  rig.assertMapped(process);
});

bridgeTest("bridge: frames with any bytes changed do no lasting harm", async (rig) => {
  const { node } = rig;
  const { choices } = node;
  const { process, session } = await rig.publish("--device", "rng", "--net", "responder");
  const sent: Uint8Array[] = [];
  const recorded = Deno.readTextFileSync(new URL("../message/bridge-kernel.txt", import.meta.url));
  for (const [, hex] of recorded.matchAll(/^K>D (\w+) ;/gm)) sent.push(Uint8Array.fromHex(hex!));
  session.isLenient = true;
  for (let i = 0; i < 2000 && !session.isFaulted; i++) {
    const bytes = Uint8Array.from(choices.pick(sent));
    // Devices 0 and 1 are there; that one is offline would be true.
    if (bytes[0] === 0) bytes[2] = choices.below(3);
    for (let flips = choices.below(4); flips > 0; flips--) {
      bytes[choices.below(bytes.length)] = choices.below(256);
    }
    if (bytes[1] === 0xc0 || bytes[1] === 0xc1) continue;
    session.sendBytes(bytes);
    if (i % 100 === 0) await node.until(() => session.unsent === 0, "there is room");
  }
  await node.until(() => session.isFaulted || session.rx.used === 0, "it has read all");
  session.fault();
  const next = await node.published([0, 1], session);
  const [entropy, card] = await rig.settled(
    Promise.all([Entropy.open(next, 0), Card.open(next, 1)]),
    "both are brought up",
  );
  await card.ping();
  assertEquals((await entropy.read(64)).length, 64);
  rig.assertMapped(process);
});

bridgeTest("bridge: a node that goes with any request comes again", async (rig) => {
  const { node } = rig;
  let requests = 0;
  node.onRequest = () => ++requests % 3 !== 0 && requests < 12;
  const { process, session } = await rig.publish("--device", "rng", "--device", "rng");
  assert(node.connections > 4, `${node.connections} connections`);
  await rig.settled(Entropy.open(session, 0), "rng is brought up");
  node.onRequest = (name) => name === "DETACH";
  await rig.ctl("remove", "1");
  const next = await node.published([0], session);
  await rig.settled(Entropy.open(next, 0), "rng is brought up");
  rig.assertMapped(process);
  assertEquals((await process.end("SIGTERM")).code, 0);
});
