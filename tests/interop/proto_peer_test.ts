/**
 * vmsg as a real process against a peer that shares no code with it (proto_peer.ts): as the device of the
 * prototype's driver side, and as the driver of the prototype's device side, in every dialect.
 */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { type Processes, processTest } from "../support/processes.ts";
import {
  answerFrame,
  arpRequest,
  checksum,
  DevicePeer,
  DriverPeer,
  echoRequest,
  type Form,
  type PeerMemory,
} from "./proto_peer.ts";
import { GUEST, HOST, isArpReply, isEchoReply, ping } from "./pings.ts";

const SOCKET = "lu.sock";
const AT = 0x4000_0000;
const SIZE = 16 << 20;

/** The guest's RAM, a file. */
function makeMemory({ directory }: Processes): PeerMemory {
  const path = `${directory}/guest-ram`;
  Deno.createSync(path).close();
  Deno.truncateSync(path, SIZE);
  return { path, size: SIZE, at: AT };
}

const connect = (vmsg: Processes, memory: PeerMemory) =>
  DriverPeer.connect("proto", vmsg.directory, `${vmsg.directory}/${SOCKET}`, memory);

const options = (dialect: string) => [
  "--bus",
  `linux-user,socket=${SOCKET},dialect=${dialect}`,
  "--memory",
  `file=guest-ram,at=0x${AT.toString(16)}`,
];

async function driveDevice(vmsg: Processes, dialect: string, form: Form): Promise<void> {
  const memory = makeMemory(vmsg);
  const device = await vmsg.start("device", ...options(dialect));
  await device.waitFor(/waiting for the driver side/);
  using peer = await DriverPeer.connect(
    form,
    vmsg.directory,
    `${vmsg.directory}/${SOCKET}`,
    memory,
  );
  const found = await peer.bringUp();
  assertEquals([found.deviceId, found.vendorId, found.status], [1, 0x554d4551, 0xf]);
  assertEquals(found.maxSizes, [1024, 1024, 1024]);
  assertEquals(found.mac.toHex(), "525400766d00");
  assert((found.offered & (3n << 32n)) === 3n << 32n, "VERSION_1 and ACCESS_PLATFORM");
  assertEquals(
    peer.deviceInfoSize,
    { proto: 40, rfc: 30, "rfc-q": 44, "v1-2025": 32, v1: 52 }[form],
  );
  await ping(peer, found.mac, { whenNotified: true });
  if (form.startsWith("rfc")) await peer.resetQueues();
  // 2.4: the guest goes down and comes up again.
  assertEquals(await peer.setStatus(0), 0);
  const again = await peer.bringUp(1n << 5n);
  assertEquals(again, found);
  await ping(peer, again.mac);
  assertEquals(await peer.setStatus(0), 0);
  await peer.drain();
  assertEquals(peer.aborts, []);
  const { code } = await device.end("SIGTERM");
  assertEquals(code, 0);
  assertEquals(
    device.stderr.filter((line) => /dropped|needs a reset|another dialect/.test(line)),
    [],
  );
}

const DEVICES: readonly (readonly [dialect: string, form: Form])[] = [
  ["proto", "proto"],
  ["auto", "proto"],
  ["auto", "v1"],
  ["v1-2025", "v1-2025"],
  ["rfc", "rfc"],
  ["auto", "rfc"],
  ["rfc-q", "rfc-q"],
];

for (const [dialect, form] of DEVICES) {
  processTest(
    `vmsg device dialect=${dialect} under a foreign driver side that speaks ${form}`,
    (vmsg) => driveDevice(vmsg, dialect, form),
  );
}

processTest(
  "vmsg device dialect=proto: one foreign driver side after another, the queues as found",
  async (vmsg) => {
    const memory = makeMemory(vmsg);
    const device = await vmsg.start("device", ...options("proto"));
    await device.waitFor(/waiting for the driver side/);
    for (let round = 0; round < 3; round++) {
      const { length } = device.lines;
      using peer = await connect(vmsg, memory);
      const { mac } = await peer.bringUp();
      await ping(peer, mac);
      assertEquals(peer.aborts, []);
      // Killed in the middle of everything: no reset, no farewell.
      peer[Symbol.dispose]();
      await device.waitFor(/waiting for the driver side/, undefined, length);
    }
  },
);

async function serveDriver(vmsg: Processes, form: Form, offered?: bigint): Promise<DevicePeer> {
  const memory = makeMemory(vmsg);
  using listener = Deno.listen({ transport: "unix", path: `${vmsg.directory}/${SOCKET}` });
  const args = [
    "--count",
    "3",
    "--interval",
    "0.01",
    "--ping",
    "10.9.8.7",
    "--address",
    "10.9.8.6",
  ];
  const driver = await vmsg.start("driver", ...options(form), ...args);
  const socket = await listener.accept();
  const settings = offered === undefined ? {} : { offered };
  using peer = new DevicePeer(form, vmsg.directory, memory, socket, settings);
  const served = peer.serve();
  const { code, stdout, stderr } = await driver.ended();
  await served;
  assertEquals(peer.aborts, []);
  assertEquals(code, 0);
  assertMatch(stdout.join("\n"), /^3 packets transmitted, 3 received, 0% packet loss/m);
  // Where this process is not scheduled for a while the peer is silent, which may have that reason.
  const complaints = stderr.filter((line) => !/no \S+ answer, the peer may/.test(line));
  assertEquals(complaints.filter((line) => /dropped|another dialect/.test(line)), []);
  assertEquals([peer.pings, peer.statuses], [3, [0, 1, 3, 0xb, 0xf]]);
  assert(peer.frames >= 4);
  return peer;
}

for (const form of ["proto", "rfc", "rfc-q", "v1-2025", "v1"] as const) {
  processTest(`vmsg driver dialect=${form} on a foreign device side`, async (vmsg) => {
    const { counts, doorbells, messages } = await serveDriver(vmsg, form);
    if (form === "proto" || form === "rfc-q") {
      assertEquals(doorbells, messages, "P11: one notification per message");
    }
    if (form === "proto") {
      // Never sent by QEMU's driver either (2.4): CONFIG_GEN, RESET_VQUEUE, CONNECT, DISCONNECT.
      assertEquals([1, 2, 8, 0x0d, 0x20].filter((id) => counts.has(id)), []);
    }
  });
}

processTest(
  "vmsg driver dialect=proto on a device that offers no more than it must",
  async (vmsg) => {
    await serveDriver(vmsg, "proto", 3n << 32n);
  },
);

Deno.test("the peer aborts as QEMU does: without an answer, and when one is late", async () => {
  const directory = Deno.makeTempDirSync({ prefix: "vmsg-test-" });
  try {
    const memory = { path: `${directory}/ram`, size: 65536, at: AT };
    using listener = Deno.listen({ transport: "unix", path: `${directory}/${SOCKET}` });
    using driver = await DriverPeer.connect("proto", directory, `${directory}/${SOCKET}`, memory);
    const socket = await listener.accept();
    using device = new DevicePeer("proto", directory, memory, socket);
    // While the driver polls, this process does nothing else: the device is too late.
    driver.patienceUs = 0;
    await assertRejects(() => driver.ask("info", 0, () => {}));
    const served = device.serve();
    while (device.messages === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    await driver.drain();
    assertEquals(driver.aborts, ["no answer to info after 1024 polls", "late answer info"]);
    driver[Symbol.dispose]();
    await served;
    assertEquals([device.aborts, device.messages], [[], 1]);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("the peer's own frames are right", () => {
  const mac = Uint8Array.of(2, 0, 0, 0, 0, 9);
  const arp = answerFrame(arpRequest(mac, GUEST, HOST))!;
  assert(isArpReply(arp));
  assertEquals([...arp.subarray(28, 32), ...arp.subarray(38, 42)], [...HOST, ...GUEST]);
  const echo = echoRequest({ mac, address: GUEST }, { mac, address: HOST }, 7);
  const answer = answerFrame(echo)!;
  assert(isEchoReply(7)(answer));
  assertEquals([checksum(answer.subarray(14, 34)), checksum(answer.subarray(34))], [0, 0]);
  assertEquals(answerFrame(answer), undefined);
});

/** What the queue has of an earlier driver side, or what it left unread, is not for the one that comes. */
for (
  const [what, leave] of [
    // Its answer lies in the queue, unread, when it is gone.
    ["an answer that it did not read", (peer: DriverPeer) => peer.tell("getStatus")],
    // The device finds out that it is gone before it finds the requests.
    ["requests that nobody was rung for", (peer: DriverPeer) => {
      for (let i = 0; i < 3; i++) peer.slip("getStatus");
    }],
  ] as const
) {
  processTest(`vmsg device dialect=proto: a driver side leaves ${what}`, async (vmsg) => {
    const memory = makeMemory(vmsg);
    const device = await vmsg.start("device", ...options("proto"));
    await device.waitFor(/waiting for the driver side/);
    for (let round = 0; round < 4; round++) {
      const { length } = device.lines;
      using peer = await connect(vmsg, memory);
      const { mac } = await peer.bringUp();
      if (round === 3) await ping(peer, mac);
      await leave(peer);
      assertEquals(peer.aborts, []);
      peer[Symbol.dispose]();
      await device.waitFor(/waiting for the driver side/, undefined, length);
    }
  });
}

processTest(
  "vmsg device: a driver side that comes before the device has noticed that another is gone",
  async (vmsg) => {
    const memory = makeMemory(vmsg);
    const device = await vmsg.start("device", ...options("proto"));
    await device.waitFor(/waiting for the driver side/);
    let before = await connect(vmsg, memory);
    await before.bringUp();
    for (let round = 0; round < 4; round++) {
      device.kill("SIGSTOP");
      before[Symbol.dispose]();
      before = await connect(vmsg, memory);
      before.patienceUs = 5000;
      setTimeout(() => device.kill("SIGCONT"), 0);
      await new Promise((resolve) => setTimeout(resolve, 20));
      await ping(before, (await before.bringUp()).mac);
      assertEquals(before.aborts, []);
    }
    before[Symbol.dispose]();
    // One that is there keeps its place.
    using first = await connect(vmsg, memory);
    await first.bringUp();
    using _second = await Deno.connect({ transport: "unix", path: `${vmsg.directory}/${SOCKET}` });
    await device.waitFor(/turned a second driver side away/);
    assertEquals(first.aborts, []);
  },
);
