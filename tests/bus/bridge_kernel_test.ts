/**
 * The kernel's side of the bridge (tests/support/bridge_kernel) against itself: its codec against what was recorded
 * and the document's bytes, its rules against a double of a process that keeps them, and one that does not.
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { DoubleProcess } from "../support/bridge_kernel/double.ts";
import { Entropy } from "../support/bridge_kernel/entropy.ts";
import { decodeFrame, encodeFrame, type Frame } from "../support/bridge_kernel/frames.ts";
import { BridgeNode } from "../support/bridge_kernel/node.ts";
import { MapRefused } from "../support/bridge_kernel/session.ts";
import { withDirectory } from "../support/leaks.ts";

const RECORDED = new URL("../message/bridge-kernel.txt", import.meta.url);

/** From wire document 8.12, of those frames that the recorded session has not. */
const VECTORS: readonly (readonly [string, string, Frame["fields"]])[] = [
  [
    "MAP_ADD.resp",
    "0389000001002800010000000000000001000000000000000100000000000000f4ffffff00000000",
    {
      epoch: 1n,
      map_seq: 1n,
      map_id: 1n,
      status: -12,
    },
  ],
  [
    "MAP_RELEASED",
    "02c500000000300001000000000000000100000000000000010000000000000000000040000000000000080000000000",
    { epoch: 1n, map_seq: 1n, map_id: 1n, bus_addr: 0x4000_0000n, length: 0x8_0000n },
  ],
  [
    "ENDPOINT_ONLINE",
    "02c000000000280002000000000000006c6f6f706261636b00000000000000008000000000000000",
    { epoch: 2n, name: new TextEncoder().encode("loopback\0\0\0\0\0\0\0\0"), limit: 128 },
  ],
  ["ENDPOINT_OFFLINE", "02c100000000180001000000000000000100000000000000", {
    epoch: 1n,
    reason: 1,
  }],
  ["BRIDGE_ERROR", "03880000050110000300 0600fbffffff".replace(" ", ""), {
    dev_num: 3,
    msg_id: 6,
    errno: -5,
  }],
];

Deno.test("bridge kernel: every recorded frame decodes as what it was, and encodes to the same bytes", () => {
  const lines = Deno.readTextFileSync(RECORDED).split("\n");
  let count = 0;
  for (const line of lines) {
    const [, hex, name, dev, token] =
      /^[KD]>[KD] (\w+) ; \S+ (\S+) dev (\d+) tok (\d+)/.exec(line) ?? [];
    if (hex === undefined) continue;
    const frame = decodeFrame(Uint8Array.fromHex(hex));
    assertEquals([frame.name, frame.dev, frame.token], [name, Number(dev), Number(token)], line);
    assertEquals(encodeFrame(frame).toHex(), hex, line);
    count++;
  }
  assertEquals(count, 295);
});

Deno.test("bridge kernel: the document's frames, both ways", () => {
  for (const [name, hex, fields] of VECTORS) {
    const frame = decodeFrame(Uint8Array.fromHex(hex));
    assertEquals([frame.name, frame.fields], [name, fields]);
    assertEquals(encodeFrame(frame).toHex(), hex);
  }
});

/** The double attached to a node, its device published. */
async function withDouble(
  body: (node: BridgeNode, process: DoubleProcess) => Promise<void>,
): Promise<void> {
  await withDirectory(async (directory) => {
    await using node = BridgeNode.open(`${directory}/node.sock`);
    await using process = new DoubleProcess(node.path);
    assertEquals(await process.attach(), 0);
    await body(node, process);
  });
}

/** A test whose double does right. */
function doubleTest(
  name: string,
  body: (node: BridgeNode, process: DoubleProcess) => Promise<void>,
): void {
  Deno.test(`bridge kernel: ${name}`, () =>
    withDouble(async (node, process) => {
      process.publish([0]);
      process.serve();
      await body(node, process);
      node.assertClean();
    }));
}

doubleTest("a device is brought up, and gives its bytes", async (node) => {
  const entropy = await Entropy.open(await node.published([0]), 0);
  for (const length of [1, 64, 4096, 70_000]) {
    const bytes = await entropy.read(length);
    assertEquals(bytes, Uint8Array.from({ length }, (_, i) => i));
  }
  await entropy.driver.unbind();
});

doubleTest("offline and online again: an epoch later, all anew", async (node, process) => {
  const session = await node.published([0]);
  const entropy = await Entropy.open(session, 0);
  process.alter = (frame) => frame.name === "EVENT_USED" ? undefined : frame;
  const read = entropy.read(16);
  await node.until(() => entropy.driver.queue(0).outstanding === 1, "a buffer is out");
  session.goOffline();
  await assertRejects(() => read, Error, "offline");
  process.alter = (frame) => frame;
  await node.until(() => session.hasReadOffline, "it has read of it");
  session.goOnline(true);
  await node.until(() => session.devices.size === 1, "it is published");
  assertEquals(process.epoch, 2n);
  assertEquals((await (await Entropy.open(session, 0)).read(8)).length, 8);
});

doubleTest("detach, release, and nothing is left", async (node, process) => {
  await node.published([0]);
  await process.stopServing();
  assertEquals(await process.detach(), 0);
  assertEquals(await process.release(), 0);
  assertEquals(node.session, undefined);
  assertEquals(node.requests, ["RESOLVE_ENDPOINT", "ATTACH", "DETACH", "RELEASE_ENDPOINT"]);
});

/** What a process may not send: a violation, and the session has faulted. */
const WRONG: Readonly<Record<string, (process: DoubleProcess) => void>> = {
  "a request": (process) => process.send("GET_DEVICE_STATUS", 0, 2, {}),
  "an answer to nothing": (process) => process.send("GET_DEVICE_STATUS.resp", 0, 9, { status: 0 }),
  "EVENT_USED before the first status": (process) => process.send("EVENT_USED", 0, 0, { index: 0 }),
  "an event of a device that is not there": (process) =>
    process.send("EVENT_USED", 5, 0, { index: 0 }),
  "a device added without a reset": (process) =>
    process.send("TOPOLOGY_DEV_ADD", 0, 0, { epoch: 1n, dev_num: 3 }),
  "a wrong count": (process) => {
    process.send("TOPOLOGY_RESET", 0, 0, { epoch: 1n });
    process.send("TOPOLOGY_COMMIT", 0, 0, { epoch: 1n, count: 1 });
  },
  "a later epoch": (process) => process.send("TOPOLOGY_RESET", 0, 0, { epoch: 2n }),
  "a device removed": (process) => process.publish([]),
  "a window released that was not there": (process) =>
    process.send("MAP_RELEASED", 0, 0, {
      epoch: 1n,
      map_seq: 1n,
      map_id: 1n,
      bus_addr: 0n,
      length: 0n,
    }),
  "PING of the bus": (process) => process.put(Uint8Array.fromHex("020300000000" + "0c0001020304")),
  "GET_DEVICES": (process) => process.put(Uint8Array.fromHex("020200000000" + "0c0000000001")),
  "a private message": (process) => process.put(Uint8Array.fromHex("02bf00000000" + "0800")),
  "a frame of seven bytes": (process) => process.put(Uint8Array.fromHex("0042000000000700")),
  "a frame longer than a slot": (process) => process.put(Uint8Array.fromHex("0042000000008100")),
  "an event a byte too long": (process) =>
    process.put(Uint8Array.fromHex("0042000000000d000000000000")),
  "257 frames at once": (process) => process.poke(0, 260),
  "another number of entries": (process) => process.poke(2, 128),
  "our cursor": (process) => process.poke(1, 77),
};

for (const [what, act] of Object.entries(WRONG)) {
  Deno.test(`bridge kernel: ${what} is a violation, and faults the session`, () =>
    withDouble(async (node, process) => {
      process.publish([0]);
      process.serve();
      const session = await node.published([0]);
      act(process);
      await assertRejects(() => node.until(() => false, "never"), Error, "SEED=");
      assertEquals(node.violations.length, 1, node.violations.join("\n"));
      assert(session.isFaulted);
      while (process.polls === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }));
}

/** What is wrong with an answer. */
const ALTERED: Readonly<Record<string, (frame: Frame) => Frame | undefined>> = {
  "of another device": (frame) => ({ ...frame, dev: 1 }),
  "with another token": (frame) => ({ ...frame, token: 99 }),
  "of another message": (frame) => ({
    ...frame,
    name: "GET_DEVICE_FEATURES.resp",
    fields: { first: 0, count: 0, blocks: [] },
  }),
};

for (const [what, alter] of Object.entries(ALTERED)) {
  Deno.test(`bridge kernel: an answer ${what} is a violation`, () =>
    withDouble(async (node, process) => {
      process.alter = (frame) => frame.name === "GET_DEVICE_INFO.resp" ? alter(frame) : frame;
      process.publish([0]);
      process.serve();
      await assertRejects(async () => {
        const opened = Entropy.open(await node.published([0]), 0);
        await node.settled(opened, "it is brought up");
      });
      assertEquals(node.violations.length, 1, node.violations.join("\n"));
    }));
}

for (
  const [what, alter] of Object.entries<(fields: Frame["fields"]) => Frame["fields"]>({
    "with a positive status": (fields) => ({ ...fields, status: 1 }),
    "with another epoch": (fields) => ({ ...fields, epoch: 7n }),
    "with another map_id": (fields) => ({ ...fields, map_id: 7n }),
    "with another map_seq": (fields) => ({ ...fields, map_seq: 7n }),
  })
) {
  Deno.test(`bridge kernel: an answer to MAP_ADD ${what} is a violation`, () =>
    withDouble(async (node, process) => {
      process.alter = (frame) =>
        frame.name === "MAP_ADD.resp" ? { ...frame, fields: alter(frame.fields) } : frame;
      process.publish([0]);
      process.serve();
      const session = await node.published([0]);
      const added = session.add({ length: 4096 });
      await assertRejects(() => node.settled(added, "it is mapped"));
      assertEquals(node.violations.length, 1, node.violations.join("\n"));
    }));
}

doubleTest("a window that is refused is no violation", async (node, process) => {
  process.alter = (frame) =>
    frame.name === "MAP_ADD.resp" ? { ...frame, fields: { ...frame.fields, status: -12 } } : frame;
  const session = await node.published([0]);
  await assertRejects(() => session.add({ length: 4096 }), MapRefused, "-12");
});

for (
  const [what, alter] of Object.entries<(view: DataView) => void>({
    "slots of another size": (view) => view.setUint32(44, 64, true),
    "rings that overlap": (view) => view.setBigUint64(56, 8n, true),
    "a ring beyond the file": (view) => view.setBigUint64(56, 1n << 20n, true),
    "capabilities of its own": (view) => view.setUint32(88, 1, true),
  })
) {
  Deno.test(`bridge kernel: ATTACH with ${what} is refused`, () =>
    withDirectory(async (directory) => {
      await using node = BridgeNode.open(`${directory}/node.sock`);
      await using process = new DoubleProcess(node.path);
      assertEquals(await process.attach(alter), -22);
      assert(node.violations.length > 0);
    }));
}

Deno.test("bridge kernel: DETACH while offline is a violation", () =>
  withDouble(async (node, process) => {
    process.publish([0]);
    (await node.published([0])).goOffline();
    await process.detach();
    assertEquals(node.violations, ["DETACH while offline"]);
  }));

Deno.test("bridge kernel: a frame or a kick after ENDPOINT_OFFLINE was read is a violation", () =>
  withDouble(async (node, process) => {
    process.publish([0]);
    process.serve();
    const session = await node.published([0]);
    session.goOffline();
    await node.until(() => session.hasReadOffline, "it has read of it");
    await new Promise((resolve) => setTimeout(resolve, 50));
    process.put(new Uint8Array(8));
    await assertRejects(() => node.until(() => false, "never"), Error, "after ENDPOINT_OFFLINE");
  }));
