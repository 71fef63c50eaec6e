/**
 * The network device against the mock driver: its three queues in mock memory, a port that records what
 * it is given, a host that can take the memory away.
 */

import { NET_HEADER_SIZE } from "../../../src/virtio/net_header.ts";
import { assert, assertEquals } from "@std/assert";
import { NetDevice } from "../../../src/devices/net/net_device.ts";
import { allocate } from "../../../src/linux/arena.ts";
import type { IovecList } from "../../../src/memory/mod.ts";
import { NetFeature, RingFeature } from "../../../src/virtio/features.ts";
import type { NetworkPort, PortListener } from "../../../src/network/port.ts";
import { BUFFERS, QueueRig } from "../../support/queue_rig.ts";

const RECEIVE = 0;
const TRANSMIT = 1;
const CONTROL = 2;
const MAC = new Uint8Array([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const OTHER_MAC = [0x52, 0x54, 0, 0x12, 0x34, 0x57];

const staging = allocate(70_000);

/** A port that keeps what was sent and gives what a test put in. */
class FakePort implements NetworkPort {
  readonly description = "fake";
  readonly sent: Uint8Array[] = [];
  readonly waiting: Uint8Array[] = [];
  readonly featureCalls: Uint32Array[] = [];
  full = false;
  listener!: PortListener;

  constructor(readonly features: readonly number[] = []) {}

  setFeatures(words: Uint32Array): void {
    this.featureCalls.push(words.slice());
  }

  open(listener: PortListener): void {
    this.listener = listener;
  }

  send(frame: IovecList): boolean {
    if (this.full) return false;
    frame.copyOut(0, staging.address, frame.length);
    this.sent.push(staging.bytes.slice(0, frame.length));
    return true;
  }

  nextLength(): number {
    return this.waiting[0]?.length ?? 0;
  }

  receive(into: IovecList, first: number): number {
    const frame = this.waiting.shift();
    if (frame === undefined) return 0;
    staging.bytes.set(frame);
    return into.copyIn(0, staging.address, frame.length, first);
  }

  discard(): void {
    this.waiting.shift();
  }

  give(...frames: Uint8Array[]): void {
    this.waiting.push(...frames);
    this.listener.readable();
  }

  [Symbol.dispose](): void {}
}

/** A frame of `size` payload bytes behind a zero header. */
function frameTo(destination: readonly number[], size = 60, tag?: number): Uint8Array {
  const frame = new Uint8Array(NET_HEADER_SIZE + 14 + size);
  frame.set(destination, NET_HEADER_SIZE);
  for (let i = NET_HEADER_SIZE + 14; i < frame.length; i++) frame[i] = i & 0xff;
  const ethertype = tag === undefined ? [0x08, 0x00] : [0x81, 0x00, tag >> 8, tag & 0xff];
  frame.set(ethertype, NET_HEADER_SIZE + 12);
  return frame;
}

class Rig extends QueueRig<NetDevice> {
  constructor(features: readonly number[] | "none", readonly port: FakePort) {
    super((reactor) => new NetDevice(reactor, port, { mac: MAC, mtu: 1500 }), features);
  }
}

function rig(features: readonly number[] | "none", port = new FakePort()): Rig {
  return new Rig(features, port);
}

/** Runs one control command; the outcome byte. */
function command(rig: Rig, ...bytes: number[]): number {
  rig.offer(CONTROL, BUFFERS + 0x1_0000, new Uint8Array(bytes), 1);
  rig.settle();
  assertEquals(rig.queues[CONTROL].takeUsed()?.length, 1);
  return rig.memory.bytes(BUFFERS + 0x1_0000 + bytes.length, 1)[0];
}

/** Gives `frames` and says how many of them reach the driver. */
function received(rig: Rig, ...frames: Uint8Array[]): number {
  for (let i = 0; i < frames.length; i++) {
    rig.offer(RECEIVE, BUFFERS + i * 0x800, new Uint8Array(), 0x800);
  }
  rig.port.give(...frames);
  rig.settle();
  let count = 0;
  while (rig.queues[RECEIVE].takeUsed() !== undefined) count++;
  return count;
}

Deno.test("net: frames are sent in order, whole, and completed with 0 bytes", () => {
  using net = rig([]);
  const frames = [1, 2, 3].map((n) => frameTo(OTHER_MAC, 40 * n));
  frames.forEach((frame, i) => net.offer(TRANSMIT, BUFFERS + i * 0x800, frame));
  net.settle();
  assertEquals(net.port.sent, frames);
  for (const _ of frames) assertEquals(net.queues[TRANSMIT].takeUsed()?.length, 0);
  assertEquals(net.used, [TRANSMIT]);
  const { transmitted, bytesTransmitted } = net.device.counters;
  assertEquals([transmitted, bytesTransmitted], [3, 3 * 14 + 240]);
});

for (const features of [[], [NetFeature.MRG_RXBUF]]) {
  Deno.test(`net: bytes are those of frames, without headers, features ${features}`, () => {
    using net = rig(features);
    assertEquals(received(net, frameTo([...MAC], 100), frameTo([...MAC], 60)), 2);
    // Shorter than its header: it counts as no bytes, and sums never go back.
    net.offer(TRANSMIT, BUFFERS, new Uint8Array(4));
    net.settle();
    const { bytesReceived, bytesTransmitted } = net.device.counters;
    assertEquals([bytesReceived, bytesTransmitted], [2 * 14 + 160, 0]);
  });
}

Deno.test("net: a driver that never accepts features is served as one that accepts none", () => {
  using net = rig("none");
  net.offer(TRANSMIT, BUFFERS, frameTo(OTHER_MAC));
  net.settle();
  assertEquals(net.port.sent.length, 1);
  assertEquals(received(net, frameTo([...MAC])), 1);
});

Deno.test("net: a full port keeps the frame, and nothing is sent twice", () => {
  using net = rig([]);
  net.port.full = true;
  net.offer(TRANSMIT, BUFFERS, frameTo(OTHER_MAC));
  net.settle();
  assertEquals(net.queues[TRANSMIT].takeUsed(), undefined);
  net.port.full = false;
  net.port.listener.writable();
  net.settle();
  assertEquals(net.port.sent.length, 1);
  assertEquals(net.queues[TRANSMIT].takeUsed()?.length, 0);
});

Deno.test("net: a frame goes into one buffer, header first; too long ones are dropped", () => {
  using net = rig([]);
  net.offer(RECEIVE, BUFFERS, new Uint8Array(), 200);
  net.port.give(frameTo([...MAC], 500), frameTo([...MAC], 60));
  net.settle();
  assertEquals(net.device.counters.tooLong, 1);
  assertEquals(net.queues[RECEIVE].takeUsed()?.length, NET_HEADER_SIZE + 74);
  assertEquals(net.memory.bytes(BUFFERS + NET_HEADER_SIZE, 6), MAC);
});

Deno.test("net: MRG_RXBUF spreads a frame over buffers and says over how many", () => {
  using net = rig([NetFeature.MRG_RXBUF]);
  const frame = frameTo([...MAC], 1000);
  for (let i = 0; i < 8; i++) {
    net.offer(RECEIVE, BUFFERS + i * 256, new Uint8Array(), 256);
  }
  net.port.give(frame);
  net.settle();
  const lengths: number[] = [];
  for (let u = net.queues[RECEIVE].takeUsed(); u; u = net.queues[RECEIVE].takeUsed()) {
    lengths.push(u.length);
  }
  assertEquals(lengths, [256, 256, 256, 256, frame.length - 1024]);
  const copy = net.memory.bytes(BUFFERS, frame.length).slice();
  assertEquals(copy[10], 5, "num_buffers");
  copy[10] = 0;
  assertEquals(copy, frame);
});

Deno.test("net: frames wait for buffers, in order, and no kick is lost", () => {
  using net = rig([NetFeature.MRG_RXBUF, RingFeature.EVENT_IDX]);
  net.port.give(...[1, 2, 3].map((n) => frameTo([...MAC], 40 * n)));
  net.settle();
  for (let n = 1; n <= 3; n++) {
    net.queues[RECEIVE].add([], [{ address: BUFFERS, length: 0x800 }]);
    assert(net.queues[RECEIVE].publish(), `a kick is wanted for buffer ${n}`);
    net.device.available(RECEIVE);
    net.settle();
    assertEquals(net.queues[RECEIVE].takeUsed()?.length, NET_HEADER_SIZE + 14 + 40 * n);
  }
});

Deno.test("net: with too few buffers for a frame the device waits instead of spinning", () => {
  using net = rig([NetFeature.MRG_RXBUF]);
  const port = net.port;
  for (let i = 0; i < 60; i++) net.offer(RECEIVE, BUFFERS + i * 4, new Uint8Array(), 1);
  port.give(frameTo([...MAC], 1400));
  net.settle();
  // Sixty bytes are no room for a frame, and no error either: more buffers may come.
  assertEquals(net.resets, []);
  const batches = net.device.counters.batches;
  net.settle();
  assertEquals(net.device.counters.batches, batches, "the device waits instead of spinning");
});

Deno.test("net: memory that may not be touched is not, until resume", () => {
  using net = rig([]);
  net.touch = false;
  net.offer(TRANSMIT, BUFFERS, frameTo(OTHER_MAC));
  net.offer(RECEIVE, BUFFERS + 0x800, new Uint8Array(), 0x800);
  net.port.give(frameTo([...MAC]));
  const before = net.memory.bytes(0x4000_0000, 1 << 20).slice();
  net.settle();
  assertEquals(net.port.sent, []);
  assertEquals(net.memory.bytes(0x4000_0000, 1 << 20), before);
  net.touch = true;
  net.device.resume();
  net.settle();
  assertEquals(net.port.sent.length, 1);
  assert(net.queues[RECEIVE].takeUsed() !== undefined);
});

for (const features of [[], [NetFeature.MRG_RXBUF]]) {
  Deno.test(`net: a stopped queue gives its base, and its successor goes on there (${features})`, async () => {
    using net = rig(features);
    assertEquals(received(net, frameTo([...MAC]), frameTo([...MAC])), 2);
    for (let i = 0; i < 4; i++) net.offer(RECEIVE, BUFFERS + i * 0x800, new Uint8Array(), 0x800);
    net.port.give(frameTo([...MAC]));
    net.settle();
    // The device holds popped buffers for the next frame; they are given back.
    const base = await net.device.stopQueue(RECEIVE);
    assertEquals(base, 3);
    assertEquals(net.queues[RECEIVE].usedIndex, 3);
    net.port.give(frameTo([...MAC]));
    net.settle();
    assertEquals(net.queues[RECEIVE].usedIndex, 3, "a stopped queue is not touched");
    net.device.startQueue(RECEIVE, { ...net.queues[RECEIVE].config, base });
    net.device.available(RECEIVE);
    net.settle();
    assertEquals(net.queues[RECEIVE].usedIndex, 4);
  });
}

Deno.test("net: without CTRL_RX every frame is received", () => {
  using net = rig([]);
  assertEquals(received(net, frameTo(OTHER_MAC), frameTo([...MAC])), 2);
});

const ALL_CONTROL = [
  NetFeature.CTRL_VQ,
  NetFeature.CTRL_RX,
  NetFeature.CTRL_RX_EXTRA,
  NetFeature.CTRL_MAC_ADDR,
  NetFeature.GUEST_ANNOUNCE,
];
const BROADCAST = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
const MULTICAST = [0x33, 0x33, 0, 0, 0, 1];

Deno.test("net control: receive modes and the MAC table select frames", () => {
  using net = rig(ALL_CONTROL);
  const frames = () => [MAC, OTHER_MAC, BROADCAST, MULTICAST].map((to) => frameTo([...to]));
  assertEquals(received(net, ...frames()), 4, "promiscuous after reset");
  assertEquals(command(net, 0, 0, 0), 0);
  assertEquals(received(net, ...frames()), 2, "own address and broadcast");
  assertEquals(command(net, 0, 1, 1), 0);
  assertEquals(received(net, ...frames()), 3, "all multicast");
  assertEquals(command(net, 0, 1, 0), 0);
  assertEquals(command(net, 1, 0, 1, 0, 0, 0, ...OTHER_MAC, 1, 0, 0, 0, ...MULTICAST), 0);
  assertEquals(received(net, ...frames()), 4, "both tables");
  assertEquals(command(net, 0, 5, 1), 0);
  assertEquals(command(net, 0, 3, 1), 0);
  assertEquals(received(net, ...frames()), 2, "no broadcast, no multicast");
});

Deno.test("net control: VLAN filter, MAC address, announce", async () => {
  using net = rig([...ALL_CONTROL, NetFeature.CTRL_VLAN]);
  const tagged = (id: number) => frameTo([...MAC], 60, id);
  assertEquals(received(net, tagged(5), frameTo([...MAC])), 1, "untagged frames pass");
  assertEquals(command(net, 2, 0, 5, 0), 0);
  assertEquals(received(net, tagged(5), tagged(6)), 1);
  assertEquals(command(net, 2, 1, 5, 0), 0);
  assertEquals(received(net, tagged(5)), 0);
  assertEquals(command(net, 0, 0, 0), 0);
  assertEquals(command(net, 1, 1, ...OTHER_MAC), 0);
  assertEquals(net.device.readConfig(0, 6).slice(), new Uint8Array(OTHER_MAC));
  assertEquals(net.configChanges, 1, "V59: the MAC address reads otherwise");
  assertEquals(received(net, frameTo([...MAC]), frameTo(OTHER_MAC)), 1);
  const base = await net.device.stopQueue(TRANSMIT);
  net.device.startQueue(TRANSMIT, { ...net.queues[TRANSMIT].config, base: base + 1 });
  assertEquals(net.device.readConfig(6, 1)[0], 3, "link up, announce");
  assertEquals(net.configChanges, 2);
  assertEquals(command(net, 3, 0), 0);
  assertEquals(net.device.readConfig(6, 1)[0], 1);
  // A successor does not know which VLANs the driver had let in.
  const toOther = frameTo(OTHER_MAC, 60, 7);
  assertEquals(received(net, toOther), 1);
});

Deno.test("net: a card in another's place announces itself also where its rings are copies", () => {
  using net = rig([...ALL_CONTROL]);
  const { config } = net.queues[TRANSMIT];
  net.device.stopQueue(TRANSMIT);
  net.device.startQueue(TRANSMIT, { ...config, base: 0 });
  assertEquals(net.device.readConfig(6, 1)[0], 1, "a driver that begins");
  net.device.stopQueue(TRANSMIT);
  net.device.startQueue(TRANSMIT, { ...config, base: 0, goesOn: true });
  assertEquals(net.device.readConfig(6, 1)[0], 3, "link up, announce");
});

Deno.test("net control: a wish for an announcement goes with the driver that it was for", () => {
  using net = rig([...ALL_CONTROL]);
  net.device.stopQueue(TRANSMIT);
  net.device.startQueue(TRANSMIT, { ...net.queues[TRANSMIT].config, base: 1 });
  assertEquals(net.device.readConfig(6, 1)[0], 3, "link up, announce");
  net.device.stopQueue(TRANSMIT);
  assert(net.device.acceptFeatures(new Uint32Array([0, 1])));
  assertEquals(net.device.readConfig(6, 1)[0], 1);
});

Deno.test("net control: what is wrong is refused and changes nothing", () => {
  using net = rig([NetFeature.CTRL_VQ, NetFeature.CTRL_RX]);
  const refused: number[][] = [
    [0], // no command
    [0, 0], // no data
    [0, 2, 1], // CTRL_RX_EXTRA was not negotiated
    [0, 9, 1], // no such mode
    [1, 0, 255, 255, 255, 255], // more addresses than the command holds
    [1, 0, 1, 0, 0, 0, 1, 2, 3], // a cut-off address
    [1, 1, ...OTHER_MAC], // CTRL_MAC_ADDR was not negotiated
    [2, 0, 5, 0], // CTRL_VLAN was not negotiated
    [3, 0], // GUEST_ANNOUNCE was not negotiated
    [5, 0, 0, 0, 0, 0, 0, 0, 0, 0], // CTRL_GUEST_OFFLOADS was not negotiated
    [77, 0, 0],
  ];
  for (const bytes of refused) assertEquals(command(net, ...bytes), 1, bytes.join(" "));
  assertEquals(net.device.counters.refusedCommands, refused.length);
  assertEquals(received(net, frameTo(OTHER_MAC)), 1, "still promiscuous");
});

Deno.test("net control: guest offloads reach the port, others are refused", () => {
  const offloads = [NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO4, NetFeature.HOST_TSO4];
  const port = new FakePort(offloads);
  using net = rig([...ALL_CONTROL, NetFeature.CTRL_GUEST_OFFLOADS, ...offloads], port);
  assertEquals(net.device.features[0] & (1 << NetFeature.CTRL_GUEST_OFFLOADS), 4);
  assertEquals(port.featureCalls.length, 1);
  assertEquals(command(net, 5, 0, 1 << NetFeature.GUEST_CSUM, 0, 0, 0, 0, 0, 0, 0), 0);
  const words = port.featureCalls[1];
  assertEquals(words[0] & (1 << NetFeature.GUEST_CSUM), 2);
  assertEquals(words[0] & (1 << NetFeature.GUEST_TSO4), 0);
  assertEquals(words[0] & (1 << NetFeature.HOST_TSO4), 1 << NetFeature.HOST_TSO4);
  assertEquals(command(net, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0), 1, "GUEST_TSO6 was not negotiated");
  assertEquals(port.featureCalls.length, 2);
});

Deno.test("net: link state shows in the configuration, once per change", () => {
  using net = rig([]);
  net.port.listener.link(false);
  net.port.listener.link(false);
  assertEquals([net.device.readConfig(6, 1)[0], net.configChanges], [0, 1]);
  net.port.listener.link(true);
  assertEquals([net.device.readConfig(6, 1)[0], net.configChanges], [1, 2]);
});

for (const features of [[], [NetFeature.MRG_RXBUF]]) {
  Deno.test(`net: receive buffers that are kept for the next frame are held, ${features.length}`, () => {
    using card = rig(features);
    const { device, memory } = card;
    const [{ at, offset }] = memory.windows;
    const holds = (address: number) =>
      device.holdsIn({
        at: address,
        size: 0x800,
        memory: memory.memory,
        offset: offset + address - at,
      });
    for (let i = 0; i < 4; i++) card.offer(RECEIVE, BUFFERS + i * 0x800, new Uint8Array(), 0x800);
    const held = () => [0, 1, 2, 3, 4].map((i) => holds(BUFFERS + i * 0x800));
    assertEquals(held(), [-1, -1, -1, -1, -1]);
    card.port.give(frameTo(OTHER_MAC), frameTo([...MAC]));
    card.settle();
    assertEquals(held(), [-1, -1, RECEIVE, RECEIVE, -1]);
    device.stopQueue(RECEIVE);
    assertEquals(held(), [-1, -1, -1, -1, -1]);
  });
}
