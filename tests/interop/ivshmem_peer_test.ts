/** vmsg as a device on ivshmem, under peers that share no code with it: the prototype's proxy, and the kernel's driver. */

import { assert, assertEquals } from "@std/assert";
import { PATIENCE_MS, type Processes, processTest } from "../support/processes.ts";
import { joinIvshmem } from "./ivshmem_wire.ts";
import { KernelPeer } from "./kernel_peer.ts";
import { ping } from "./pings.ts";
import { DriverPeer } from "./proto_peer.ts";

const AT = 0x4000_0000;
const SIZE = 4 << 20;
const PAGE = 4096;
const PAGES = SIZE / PAGE;

/** A server, which shares a file, B's RAM in another, and `vmsg device` as peer 0, which is started first. */
async function start(vmsg: Processes, at = AT, options = ",peer=1,reset") {
  const file = `${vmsg.directory}/shared`;
  const server = await vmsg.start(
    "ivshmem-server",
    ...["--socket", "iv.sock", "--size", "1M", "--vectors", "2", "--file", file],
  );
  await server.waitFor(/waiting for peers/);
  const ram = `${vmsg.directory}/ram`;
  Deno.createSync(ram).close();
  Deno.truncateSync(ram, SIZE);
  const device = await vmsg.start(
    "device",
    ...["--bus", `ivshmem,server=iv.sock,dialect=proto${options}`],
    ...["--memory", `file=${ram},at=${at}`],
  );
  await server.waitFor(/peer 0/);
  await device.waitFor(/waiting for (a peer|peer 1)/);
  return { server, device, ram, join: () => joinIvshmem(`${vmsg.directory}/iv.sock`, file) };
}

const wrong = (lines: readonly string[]) =>
  lines.filter((line) => /dropped|needs a reset/.test(line));

processTest(
  "ivshmem: the prototype's proxy with a software IOMMU and scattered pages",
  async (vmsg) => {
    const { device, ram, join } = await start(vmsg, 0x8_0000_0000);
    const place = (page: number) => ((page / PAGE) * 97 + 41) % PAGES * PAGE;
    const scatter = { machineAt: 0x8_0000_0000, place };
    using peer = DriverPeer.on("proto", join(), { path: ram, size: SIZE, at: AT, scatter });
    for (let round = 0; round < 3; round++) {
      const { mac } = await peer.bringUp();
      for (let i = 0; i < 5; i++) await ping(peer, mac);
      assertEquals(await peer.setStatus(0), 0);
    }
    assert(peer.translatedWhileAsking > 0);
    assertEquals([peer.aborts, wrong(device.stderr)], [[], []]);
  },
);

processTest(
  "ivshmem: the kernel's driver, loaded and unloaded, with rings anywhere in RAM",
  async (vmsg) => {
    const { device, ram, join } = await start(vmsg);
    using peer = new KernelPeer(join(), { path: ram, size: SIZE, at: AT });
    for (let round = 0; round < 8; round++) {
      peer.ramAt = round * 0x6_3000;
      const found = await peer.load();
      assertEquals([found.deviceId, found.vendorId, found.status], [1, 0x554d4551, 0xf]);
      assertEquals([found.mac.toHex(), found.maxSizes], ["525400766d00", [1024, 1024, 1024]]);
      for (let i = 0; i < 3; i++) await ping(peer, found.mac);
      // One that is gone without a word is followed by one that finds the device running.
      if (round % 3 !== 2) await peer.unload();
    }
    assertEquals([peer.aborts, wrong(device.stderr)], [[], []]);
    assert(peer.wire.interrupts > 100);
  },
);

processTest(
  "ivshmem: one driver side after another, each leaving an answer unread",
  async (vmsg) => {
    const { server, device, ram, join } = await start(vmsg, AT, "");
    for (let round = 0; round < 3; round++) {
      using peer = DriverPeer.on("proto", join(), { path: ram, size: SIZE, at: AT });
      await ping(peer, (await peer.bringUp()).mac);
      await peer.tell("getStatus");
      assertEquals(peer.aborts, []);
      peer[Symbol.dispose]();
      await server.waitFor(new RegExp(`peer ${round + 1} left`));
      await device.waitFor(new RegExp(`peer ${round + 1} has left`));
    }
    assertEquals(wrong(device.stderr), []);
  },
);

processTest(
  "ivshmem: a driver side that joins while another is still in the list is rung",
  async (vmsg) => {
    const { ram, join } = await start(vmsg, AT, "");
    const memory = { path: ram, size: SIZE, at: AT };
    using first = new KernelPeer(join(), memory);
    await first.load();
    // The answer rings the first one, which is there until it has come; then the second one is rung.
    using second = new KernelPeer(join(), memory);
    await second.push("getStatus", false, 0, () => {});
    assert(await first.wire.interrupted(PATIENCE_MS));
    first[Symbol.dispose]();
    assert(await second.wire.interrupted(PATIENCE_MS), "rung when the other one is gone");
  },
);
