/**
 * The software IOMMU of `proto`: vmsg as a device whose driver side translates addresses (docs/wire.md 4.4), a peer
 * that shares no code with it and whose guest's pages are scattered over its machine's memory.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Processes, processTest } from "../support/processes.ts";
import { ping } from "./pings.ts";
import { DriverPeer, type PeerMemory, type Scatter } from "./proto_peer.ts";

const SOCKET = "lu.sock";
/** Where the guest has its memory, and where the machine has. */
const GUEST_AT = 0x4000_0000;
const MACHINE_AT = 0x1_2340_0000;
const SIZE = 1 << 20;
const PAGE = 4096;
const PAGES = SIZE / PAGE;

/** No two neighbours stay neighbours: 97 has no factor of 256. */
const place = (page: number) => ((page / PAGE) * 97 + 41) % PAGES * PAGE;

function scattered({ directory }: Processes, mode?: Scatter["mode"]): PeerMemory {
  const path = `${directory}/machine-ram`;
  Deno.createSync(path).close();
  Deno.truncateSync(path, SIZE);
  const scatter = { machineAt: MACHINE_AT, place, ...(mode === undefined ? {} : { mode }) };
  return { path, size: SIZE, at: GUEST_AT, scatter };
}

const WINDOW = ["--memory", `file=machine-ram,at=0x${MACHINE_AT.toString(16)}`];

async function start(vmsg: Processes, memory = WINDOW) {
  const bus = `linux-user,socket=${SOCKET},dialect=proto`;
  const device = await vmsg.start("device", "--bus", bus, ...memory);
  await device.waitFor(/waiting for the driver side/);
  return device;
}

const connect = (vmsg: Processes, memory: PeerMemory) =>
  DriverPeer.connect("proto", vmsg.directory, `${vmsg.directory}/${SOCKET}`, memory);

/** Lines that tell of something wrong. */
const wrong = (lines: readonly string[]) =>
  lines.filter((line) => /dropped|needs a reset|not asked for/.test(line));

for (
  const [what, mode] of [
    ["at once", undefined],
    ["late", (page: number) => page >= 0x1_0000 && page / PAGE % 3 === 0 ? "late" : "right"],
    ["after a wrong answer", (page: number) => page / PAGE % 3 === 0 ? "wrong" : "right"],
  ] as const
) {
  processTest(`vmsg device translates scattered pages, answered ${what}`, async (vmsg) => {
    const memory = scattered(vmsg, mode);
    const device = await start(vmsg);
    using peer = await connect(vmsg, memory);
    const found = await peer.bringUp();
    await ping(peer, found.mac);
    const asked = peer.translated.length;
    assert(peer.translatedWhileAsking > 0, "rings are asked for while a status is waited for");
    assertEquals(new Set(peer.translated).size, asked, "each page once");
    for (let round = 0; round < 20; round++) await ping(peer, found.mac);
    // 16 buffers of 2 KiB off a page's start, both ways, and rings of two pages each.
    assertEquals(new Set(peer.translated).size, peer.translated.length, "each page once");
    assert(peer.translated.length <= 2 * 9 + 2 * 4, `${peer.translated.length} pages`);
    // A reset forgets them; the driver does not say anew that it translates.
    assertEquals(await peer.setStatus(0), 0);
    const before = peer.translated.length;
    await peer.bringUp();
    await ping(peer, found.mac);
    assert(peer.translated.length > before + 8, "asked again after a reset");
    assertEquals(peer.aborts, []);
    if (what === "after a wrong answer") await device.waitFor(/not asked for/);
    else assertEquals(wrong(device.stderr), []);
    const { code } = await device.end("SIGTERM");
    assertEquals(code, 0);
  });
}

/** Waits until the device says that it needs a reset, and why. */
async function needsReset(peer: DriverPeer, device: Awaited<ReturnType<typeof start>>) {
  while (!peer.aborts.includes("NEEDS_RESET")) {
    await peer.drain();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  peer.aborts.length = 0;
  return (await device.waitFor(/needs a reset/)).text;
}

const RING = 0x1000;
const BUFFER = 0x2_0000;

for (
  const [what, page, mode, reason] of [
    ["a ring's page, all ones", RING, "ones", /queue 0: ring at 0x400007c0 is in a page that the/],
    [
      "a ring's page, all zeros",
      RING,
      "zeros",
      /queue 0: ring at 0x400007c0 is in a page that the/,
    ],
    [
      "a buffer's page, all ones",
      BUFFER,
      "ones",
      /queue 1: descriptor 0: 0x400207c0 \(\d+ bytes\) is in/,
    ],
    [
      "a buffer's page, all zeros",
      BUFFER,
      "zeros",
      /queue 1: descriptor 0: .* refuses to translate$/,
    ],
  ] as const
) {
  processTest(`vmsg device: ${what}: NEEDS_RESET, one line, and a reset cures it`, async (vmsg) => {
    let isRefused = true;
    const memory = scattered(vmsg, (at) => isRefused && at === page ? mode : "right");
    const device = await start(vmsg);
    using peer = await connect(vmsg, memory);
    const { mac } = await peer.bringUp();
    if (page === BUFFER) await peer.send(new Uint8Array(60));
    assertMatch(await needsReset(peer, device), reason);
    isRefused = false;
    assertEquals(await peer.setStatus(0), 0);
    await peer.bringUp();
    await ping(peer, mac);
    assertEquals([peer.aborts, wrong(device.stderr).length], [[], 1]);
  });
}

processTest(
  "vmsg device: pages outside of --memory, and no --memory: no queue starts",
  async (vmsg) => {
    const memory = scattered(vmsg);
    const half = ["--memory", `file=machine-ram,at=0x${MACHINE_AT.toString(16)},size=512K`];
    for (
      const [windows, reason] of [
        [half, /queue \d: .* is 0x\w+ in the driver side's machine, which no --memory covers$/],
        [[], /queue 0: .* of which nothing is seen here: give --memory$/],
      ] as const
    ) {
      const device = await start(vmsg, [...windows]);
      using peer = await connect(vmsg, memory);
      await peer.bringUp();
      assertMatch(await needsReset(peer, device), reason);
      await peer.send(new Uint8Array(60));
      await new Promise((resolve) => setTimeout(resolve, 50));
      await peer.drain();
      assertEquals([peer.aborts, wrong(device.stderr).length, peer.used], [[], 1, [0, 0, 0]]);
      assertEquals((await device.end("SIGTERM")).code, 0);
    }
  },
);

processTest(
  "vmsg device: a driver side that never answers: NEEDS_RESET in bounded time",
  async (vmsg) => {
    let isSilent = true;
    const memory = scattered(vmsg, () => isSilent ? "never" : "right");
    const device = await start(vmsg);
    using peer = await connect(vmsg, memory);
    // Requests are answered all the while.
    const { mac } = await peer.bringUp();
    assertMatch(await needsReset(peer, device), /has not translated 0x\w+ for 5000 ms$/);
    isSilent = false;
    assertEquals(await peer.setStatus(0), 0);
    await peer.bringUp();
    await ping(peer, mac);
    assertEquals([peer.aborts, wrong(device.stderr).length], [[], 1]);
  },
);

processTest("vmsg device: each driver side says for itself whether it translates", async (vmsg) => {
  const memory = scattered(vmsg);
  const device = await start(vmsg);
  for (let round = 0; round < 2; round++) {
    const { length } = device.lines;
    using peer = await connect(vmsg, memory);
    await ping(peer, (await peer.bringUp()).mac);
    assertEquals(peer.aborts, []);
    peer[Symbol.dispose]();
    await device.waitFor(/waiting for the driver side/, undefined, length);
  }
  // One whose addresses are the machine's.
  const { length } = device.lines;
  using peer = await connect(vmsg, { path: memory.path, size: SIZE, at: MACHINE_AT });
  await ping(peer, (await peer.bringUp()).mac);
  assertEquals([peer.aborts, peer.translated], [[], []]);
  assertEquals(wrong(device.lines.slice(length).map(({ text }) => text)), []);
});
