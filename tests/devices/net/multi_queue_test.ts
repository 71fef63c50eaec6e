/** A network device with several queue pairs against the mock driver: what its queues are, and which are used. */

import { assertEquals } from "@std/assert";
import { NetDevice } from "../../../src/devices/net/net_device.ts";
import type { IovecList } from "../../../src/memory/mod.ts";
import type { NetworkPort, PortListener, PortQueue } from "../../../src/network/port.ts";
import { NetFeature } from "../../../src/virtio/features.ts";
import { NET_HEADER_SIZE, NetConfig } from "../../../src/virtio/net_header.ts";
import { BUFFERS, QueueRig } from "../../support/queue_rig.ts";

const MAC = new Uint8Array([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const { CTRL_VQ, MQ } = NetFeature;
const FRAME = NET_HEADER_SIZE + 60;
const [CLASS_MQ, VQ_PAIRS_SET] = [4, 0];

/** Of each queue: how many frames were sent, and how many wait. */
class FakeQueue implements PortQueue {
  sent = 0;
  waiting = 0;
  full = false;

  send(_frame: IovecList): boolean {
    if (!this.full) this.sent++;
    return !this.full;
  }

  nextLength(): number {
    return this.waiting > 0 ? FRAME : 0;
  }

  receive(): number {
    this.waiting--;
    return FRAME;
  }

  discard(): void {
    this.waiting--;
  }
}

class FakePort extends FakeQueue implements NetworkPort {
  readonly description = "fake";
  readonly features = [];
  readonly queues: FakeQueue[];
  used = 1;
  listener!: PortListener;

  constructor(count: number) {
    super();
    this.queues = Array.from({ length: count }, () => new FakeQueue());
  }

  setQueues(count: number): void {
    this.used = count;
  }

  open(listener: PortListener): void {
    this.listener = listener;
  }

  [Symbol.dispose](): void {}
}

class Rig extends QueueRig<NetDevice> {
  readonly port: FakePort;

  constructor(pairs: number, features: readonly number[], started?: number[], base?: number) {
    const port = new FakePort(pairs);
    const options = { mac: MAC, mtu: 1500, pairs };
    super((reactor) => new NetDevice(reactor, port, options), features, started, base);
    this.port = port;
    this.settle();
  }

  /** Runs a command on a queue; what it was answered, or nothing. */
  command(queue: number, ...bytes: number[]): number | undefined {
    const at = BUFFERS + 0x1_0000;
    this.offer(queue, at, new Uint8Array([...bytes, 0xff]).subarray(0, bytes.length), 1);
    this.settle();
    const used = this.queues[queue]!.takeUsed();
    return used === undefined ? undefined : this.memory.bytes(at + bytes.length, 1)[0];
  }

  pairs(queue: number, count: number): number | undefined {
    return this.command(queue, CLASS_MQ, VQ_PAIRS_SET, count & 0xff, count >> 8);
  }
}

Deno.test("net queues: each pair has its two queues and its part of the port", () => {
  using net = new Rig(8, [CTRL_VQ, MQ]);
  assertEquals(net.device.queueCount, 17);
  assertEquals([...net.device.readConfig(NetConfig.PAIRS, 2)], [8, 0]);
  assertEquals(net.pairs(16, 8), 0);
  for (let pair = 0; pair < 8; pair++) {
    const [receive, transmit] = [2 * pair, 2 * pair + 1];
    net.offer(receive, BUFFERS, new Uint8Array(), 0x800);
    net.offer(transmit, BUFFERS + 0x800, new Uint8Array(FRAME));
    net.port.queues[pair]!.waiting = 1;
    net.port.listener.readable(pair);
    net.settle();
    assertEquals(net.queues[receive]!.takeUsed()?.length, FRAME);
    assertEquals(net.queues[transmit]!.takeUsed()?.length, 0);
    assertEquals(net.port.queues.map(({ sent }) => sent), [
      ...new Array(pair + 1).fill(1),
      ...new Array(7 - pair).fill(0),
    ]);
    net.port.queues[pair]!.full = true;
    net.offer(transmit, BUFFERS + 0x800, new Uint8Array(FRAME));
    net.settle();
    assertEquals(net.queues[transmit]!.takeUsed(), undefined);
    net.port.queues[pair]!.full = false;
    net.port.listener.writable(pair);
    net.settle();
    assertEquals(net.queues[transmit]!.takeUsed()?.length, 0);
    net.port.queues[pair]!.sent = 1;
  }
});

Deno.test("net queues: one pair before the driver commands more, and what is wrong is refused", () => {
  using net = new Rig(4, [CTRL_VQ, MQ]);
  assertEquals(net.port.used, 1);
  for (
    const [count, outcome, used] of [[4, 0, 4], [5, 1, 4], [0, 1, 4], [0x102, 1, 4], [2, 0, 2]]
  ) {
    assertEquals([net.pairs(8, count!), net.port.used], [outcome, used]);
  }
  assertEquals(net.command(8, CLASS_MQ, 1, 2, 0), 1, "another command of the class");
  assertEquals(net.command(8, CLASS_MQ, VQ_PAIRS_SET, 2), 1, "too short");
  assertEquals(net.port.used, 2);
  assertEquals(net.pairs(8, 1), 0);
  assertEquals(net.port.used, 1);
});

Deno.test("net queues: a reset takes back what was commanded", () => {
  using net = new Rig(2, [CTRL_VQ, MQ]);
  assertEquals(net.pairs(4, 2), 0);
  for (let queue = 0; queue < 5; queue++) net.device.stopQueue(queue);
  net.device.acceptFeatures(new Uint32Array([1 << CTRL_VQ | 1 << MQ, 1]));
  for (const [i, { config }] of net.queues.entries()) {
    net.device.startQueue(i, { ...config, base: 0 });
  }
  net.settle();
  assertEquals(net.port.used, 1);
});

Deno.test("net queues: a driver without MQ has its control queue behind the first pair", () => {
  using net = new Rig(4, [CTRL_VQ], [0, 1, 2]);
  assertEquals(net.pairs(2, 2), 1, "no such class for it");
  // A queue that it does not know of is for nothing, also if it is started.
  assertEquals(net.device.startQueue(3, { ...net.queues[3]!.config, base: 0 }), undefined);
  assertEquals(net.device.startQueue(8, { ...net.queues[8]!.config, base: 0 }), undefined);
  net.offer(3, BUFFERS, new Uint8Array(FRAME));
  assertEquals(net.pairs(8, 1), undefined);
  assertEquals([net.port.queues[1]!.sent, net.port.used, net.resets.length], [0, 1, 0]);
});

Deno.test("net queues: where no control queue runs, the receive queues that do are used", () => {
  using net = new Rig(4, [CTRL_VQ, MQ], [0, 1, 2, 3]);
  assertEquals(net.port.used, 2);
  net.device.stopQueue(2);
  net.device.stopQueue(3);
  net.settle();
  assertEquals(net.port.used, 1);
  for (const queue of [4, 5, 2, 3]) {
    net.device.startQueue(queue, { ...net.queues[queue]!.config, base: 0 });
  }
  net.settle();
  assertEquals(net.port.used, 3);
});

Deno.test("net queues: a device that goes on uses the pairs that were used, until a command", () => {
  using net = new Rig(2, [CTRL_VQ, MQ], undefined, 5);
  assertEquals(net.port.used, 2);
});

Deno.test("net queues: one that is stopped and goes on leaves what was commanded", () => {
  using net = new Rig(2, [CTRL_VQ, MQ]);
  assertEquals([net.pairs(4, 2), net.pairs(4, 1)], [0, 0]);
  const base = net.device.stopQueue(4) as number;
  net.device.startQueue(4, { ...net.queues[4]!.config, base });
  net.device.stopQueue(3);
  net.device.startQueue(3, { ...net.queues[3]!.config, base: 7 });
  net.settle();
  assertEquals(net.port.used, 1);
});

Deno.test("net queues: a pair that was stopped writes no byte more, and takes back what it kept", () => {
  using net = new Rig(2, [CTRL_VQ, MQ]);
  assertEquals(net.pairs(4, 2), 0);
  const give = () => {
    for (const queue of net.port.queues) queue.waiting = 1;
    for (const pair of [0, 1]) net.port.listener.readable(pair);
    net.settle();
  };
  for (let i = 0; i < 4; i++) {
    for (const queue of [0, 2]) {
      net.offer(queue, BUFFERS + 0x800 * (4 * queue + i), new Uint8Array(), 0x800);
    }
  }
  give();
  // Of the four it has used one, and holds the others.
  assertEquals([net.device.stopQueue(2), net.device.stopQueue(3)], [1, 0]);
  net.settle();
  net.used.length = 0;
  give();
  net.offer(3, BUFFERS, new Uint8Array(FRAME));
  net.settle();
  assertEquals([net.used, net.port.queues[1]!.sent], [[0], 0]);
  assertEquals(net.queues[2]!.takeUsed()?.length, FRAME);
  assertEquals(net.queues[2]!.takeUsed(), undefined);
});
