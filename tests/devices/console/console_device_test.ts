/** The console against the mock driver; its ends are sockets and a pseudo-terminal. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { ConsoleDevice, type ConsolePort } from "../../../src/devices/console/console_device.ts";
import { type ConsoleEnd, PtyEnd, SocketEnd } from "../../../src/devices/console/console_end.ts";
import { allocate } from "../../../src/linux/arena.ts";
import { type Fd, openFile } from "../../../src/linux/fd.ts";
import { libc } from "../../../src/linux/libc.ts";
import type { Reactor } from "../../../src/linux/reactor.ts";
import { connectUnix, type UnixStream } from "../../../src/linux/unix_socket.ts";
import { ConsoleFeature } from "../../../src/virtio/features.ts";
import { BUFFERS, QueueRig } from "../../support/queue_rig.ts";

const RECEIVE = 0, SEND = 1, CONTROL_OUT = 2, CONTROL_IN = 3, PORT_RECEIVE = 4, PORT_SEND = 5;
const DEVICE_READY = 0, PORT_READY = 3, PORT_OPEN = 6;
const O_NOCTTY = 0o400;
const NOTHING = new Uint8Array();
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const bytes = (text: string) => new TextEncoder().encode(text);
const buffer = allocate(8192);

const directories: string[] = [];

function socketPath(): string {
  const directory = Deno.makeTempDirSync();
  directories.push(directory);
  return `${directory}/end.sock`;
}

class ConsoleRig implements Disposable {
  readonly rig: QueueRig<ConsoleDevice>;
  #at = 0;

  constructor(ends: (reactor: Reactor) => ConsolePort[], multiport = true) {
    const features = [ConsoleFeature.SIZE, ...(multiport ? [ConsoleFeature.MULTIPORT] : [])];
    this.rig = new QueueRig((reactor) => new ConsoleDevice(reactor, ends(reactor)), features);
  }

  /** Offers room, or bytes, where nothing else lies. */
  offer(queue: number, content: Uint8Array | number): number {
    const at = BUFFERS + 0x400 * this.#at++;
    const isRoom = typeof content === "number";
    this.rig.offer(queue, at, isRoom ? NOTHING : content, isRoom ? content : 0);
    return at;
  }

  say(id: number, event: number, value: number): void {
    const message = new DataView(new ArrayBuffer(8));
    message.setUint32(0, id, true);
    message.setUint16(4, event, true);
    message.setUint16(6, value, true);
    this.offer(CONTROL_IN, new Uint8Array(message.buffer));
    this.rig.settle();
  }

  /** What the device says of ports, in the buffers that are offered for it. */
  heard(count: number): string[] {
    const places = Array.from({ length: count }, () => this.offer(CONTROL_OUT, 64));
    this.rig.settle();
    return places.flatMap((at) => {
      const used = this.rig.queues[CONTROL_OUT].takeUsed();
      if (used === undefined) return [];
      const message = this.rig.memory.bytes(at, used.length);
      const view = new DataView(message.slice().buffer);
      const more = view.getUint16(4, true) === 7 ? text(message.subarray(8)) : message.subarray(8);
      return [
        `${view.getUint32(0, true)} ${view.getUint16(4, true)} ${view.getUint16(6, true)} ${more}`,
      ];
    });
  }

  /** What came into a buffer. */
  got(queue: number, at: number): string | undefined {
    const used = this.rig.queues[queue].takeUsed();
    return used && text(this.rig.memory.bytes(at, used.length));
  }

  [Symbol.dispose](): void {
    this.rig[Symbol.dispose]();
    for (const directory of directories.splice(0)) Deno.removeSync(directory);
  }
}

function write(stream: UnixStream, content: string): void {
  buffer.bytes.set(bytes(content));
  assertEquals(stream.send(buffer.address, content.length), content.length);
}

function read(stream: UnixStream): string | undefined {
  const count = stream.receive(buffer.address, buffer.bytes.length);
  return count < 0 ? undefined : text(buffer.bytes.slice(0, count));
}

const socketEnd = (reactor: Reactor, path: string): ConsoleEnd =>
  new SocketEnd(reactor, path, () => {});

Deno.test("console: bytes go both ways; what nobody reads is thrown away, and a second client waits", () => {
  const path = socketPath();
  using device = new ConsoleRig((reactor) => [{ end: socketEnd(reactor, path) }], false);
  const { rig } = device;
  assertEquals([rig.device.deviceId, rig.device.queueCount], [3, 4]);
  device.offer(SEND, bytes("to nobody"));
  rig.settle();
  assert(rig.queues[SEND].takeUsed() !== undefined);
  const first = connectUnix(path)!;
  const room = device.offer(RECEIVE, 100);
  rig.settle();
  assertEquals(device.got(RECEIVE, room), undefined);
  device.offer(SEND, bytes("hello"));
  write(first, "world");
  rig.settle();
  assertEquals(read(first), "hello");
  assertEquals(device.got(RECEIVE, room), "world");
  using second = connectUnix(path)!;
  write(second, "later");
  const next = device.offer(RECEIVE, 3);
  rig.settle();
  assertEquals(device.got(RECEIVE, next), undefined);
  first[Symbol.dispose]();
  rig.settle();
  assertEquals(device.got(RECEIVE, next), "lat");
  const rest = device.offer(RECEIVE, 100);
  rig.settle();
  assertEquals(device.got(RECEIVE, rest), "er");
});

Deno.test("console: a client that does not read holds the guest's buffer, not the loop; a stop gives it back", () => {
  const path = socketPath();
  using device = new ConsoleRig((reactor) => [{ end: socketEnd(reactor, path) }], false);
  const { rig } = device;
  using client = connectUnix(path)!;
  rig.settle();
  const line = "x".repeat(900);
  let offered = 0;
  let taken = 0;
  for (; taken === offered; offered++) {
    assert(offered < 500, "the socket takes all");
    device.offer(SEND, bytes(line).slice());
    rig.settle();
    if (rig.queues[SEND].takeUsed() !== undefined) taken++;
  }
  while ((read(client) ?? "").length > 0) { /* emptied */ }
  rig.settle();
  assert(rig.queues[SEND].takeUsed() !== undefined);
  device.offer(SEND, bytes("last"));
  rig.touch = false;
  rig.settle();
  assertEquals(rig.device.stopQueue(SEND), offered & 0xffff);
});

Deno.test("console: ports are introduced, opened and closed as somebody comes and goes", () => {
  const [path, agent] = [socketPath(), socketPath()];
  using device = new ConsoleRig((reactor) => [
    { end: socketEnd(reactor, path) },
    { end: socketEnd(reactor, agent), name: "agent.0" },
  ]);
  const { rig } = device;
  assertEquals(rig.device.queueCount, 6);
  assertEquals(rig.device.readConfig(4, 4)[0], 2);
  device.say(0, DEVICE_READY, 1);
  assertEquals(device.heard(4), ["0 1 1 ", "1 1 1 "]);
  device.say(0, PORT_READY, 1);
  device.say(1, PORT_READY, 1);
  // Two buffers of the four are still there.
  rig.settle();
  assertEquals(device.heard(2).length, 2);
  using client = connectUnix(agent)!;
  write(client, "for a program");
  const room = device.offer(PORT_RECEIVE, 100);
  rig.settle();
  // Nobody listens in the guest yet.
  assertEquals(device.got(PORT_RECEIVE, room), undefined);
  device.say(1, PORT_OPEN, 1);
  assertEquals(device.got(PORT_RECEIVE, room), "for a program");
  device.offer(PORT_SEND, bytes("thanks"));
  rig.settle();
  assertEquals(read(client), "thanks");
});

Deno.test("console: in another's place its ports are open, also where its rings are copies", () => {
  const agent = socketPath();
  using device = new ConsoleRig((reactor) => [
    { end: socketEnd(reactor, socketPath()) },
    { end: socketEnd(reactor, agent), name: "agent.0" },
  ]);
  const { rig } = device;
  using client = connectUnix(agent)!;
  write(client, "for a program");
  const room = device.offer(PORT_RECEIVE, 100);
  rig.settle();
  assertEquals(device.got(PORT_RECEIVE, room), undefined, "a driver that begins");
  const start = { ...rig.queues[CONTROL_IN]!.config, base: 0 };
  rig.device.stopQueue(CONTROL_IN);
  rig.device.startQueue(CONTROL_IN, { ...start, goesOn: true });
  rig.device.resume();
  rig.settle();
  assertEquals(device.got(PORT_RECEIVE, room), "for a program");
  // The same device goes on later: it knows itself who listens.
  device.say(1, PORT_OPEN, 0);
  const base = rig.device.stopQueue(CONTROL_IN) as number;
  rig.device.startQueue(CONTROL_IN, { ...start, base, goesOn: true });
  write(client, "for nobody");
  const more = device.offer(PORT_RECEIVE, 100);
  rig.settle();
  assertEquals(device.got(PORT_RECEIVE, more), undefined);
});

Deno.test("console: what makes no sense on the control queue is passed over", () => {
  using device = new ConsoleRig((reactor) => [{ end: socketEnd(reactor, socketPath()) }]);
  const { rig } = device;
  device.offer(CONTROL_IN, new Uint8Array([1, 2, 3]));
  device.say(9, PORT_READY, 1);
  device.say(0xffff_ffff, PORT_OPEN, 1);
  device.say(0, 99, 1);
  // More than there are buffers for: a driver that makes no room is not told everything.
  for (let i = 0; i < 30; i++) device.say(0, DEVICE_READY, 1);
  device.say(0, DEVICE_READY, 0);
  assertEquals(rig.resets, []);
  assertEquals(device.heard(30).length, 30);
});

Deno.test("console: a pseudo-terminal is opened, has a size, is closed and opened again", () => {
  let end!: PtyEnd;
  using device = new ConsoleRig((reactor) => [{ end: end = new PtyEnd(reactor) }]);
  const { rig } = device;
  const path = /^pty (\/dev\/pts\/\d+)$/.exec(end.description)![1]!;
  device.say(0, DEVICE_READY, 1);
  device.say(0, PORT_READY, 1);
  assertEquals(device.heard(3), ["0 1 1 ", "0 4 1 ", "0 6 1 "]);
  let left = 0;
  for (const word of ["once", "again"]) {
    using slave: Fd = openFile(path, O_NOCTTY);
    buffer.view.setUint16(0, 40, true);
    buffer.view.setUint16(2, word === "once" ? 100 : 120, true);
    libc.ioctl(slave.number, 0x5414n, buffer.address);
    passTime(rig.reactor);
    assert(end.isOpen);
    assertEquals([end.columns, end.rows], [word === "once" ? 100 : 120, 40]);
    assertEquals([...rig.device.readConfig(0, 4)], [word === "once" ? 100 : 120, 0, 40, 0]);
    device.offer(SEND, bytes(`${word}\n`));
    rig.settle();
    const count = libc.read(slave.number, buffer.address, 100);
    // As it is: no carriage return, and no echo.
    assertEquals(text(buffer.bytes.slice(0, count)), `${word}\n`);
    buffer.bytes.set(bytes("typed\r"));
    libc.write(slave.number, buffer.address, 6);
    const room = word === "once" ? device.offer(RECEIVE, 100) : left;
    // The kernel hands on what is typed when it has time.
    let got: string | undefined;
    while ((got = device.got(RECEIVE, room)) === undefined) rig.reactor.turn();
    assertEquals(got, "typed\r");
    // Found out by reading, for which a driver always has room.
    left = device.offer(RECEIVE, 100);
    slave[Symbol.dispose]();
    rig.settle();
    assert(!end.isOpen);
    passTime(rig.reactor);
    assert(!end.isOpen);
  }
  assertMatch(device.heard(12).join("\n"), /^0 5 0 100,0,40,0$[\s\S]*^0 5 0 120,0,40,0$/m);
});

/** Lets the end look whether somebody is there. */
function passTime(reactor: Reactor): void {
  for (let i = 0; i < 3; i++) reactor.turn();
}
