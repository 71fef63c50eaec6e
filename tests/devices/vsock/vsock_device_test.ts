/** The socket device against a guest's side of our own; host programs are real sockets. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { libc } from "../../../src/linux/libc.ts";
import { connectUnix, type UnixStream } from "../../../src/linux/unix_socket.ts";
import {
  bytesOf,
  CID,
  CREDIT_REQUEST,
  CREDIT_UPDATE,
  encode,
  EVENT,
  GRANT,
  Guest,
  GUEST_PORT,
  HEADER,
  HOST_PORT,
  OURS,
  pattern,
  read,
  REQUEST,
  RESPONSE,
  RST,
  RW,
  RX,
  SHUTDOWN,
  textOf,
  TX,
  write,
  writeBytes,
} from "./support.ts";
import { BUFFERS } from "../../support/queue_rig.ts";

const RECEIVE = 1, SEND = 2, BOTH = 3;
const MOST_CONNECTIONS = 512;

Deno.test("vsock: a guest connects to who listens, and bytes go both ways", () => {
  for (const cut of [0, HEADER, 20]) {
    using guest = new Guest({ cut });
    const { rig } = guest;
    assertEquals([rig.device.deviceId, rig.device.queueCount], [19, 3]);
    assertEquals([...rig.device.readConfig(0, 8)], [CID, 0, 0, 0, 0, 0, 0, 0]);
    using listener = guest.listen(HOST_PORT);
    guest.room(8);
    using program = guest.connect(listener);
    const [response] = guest.heard();
    assertEquals(response, {
      ...OURS,
      srcCid: 2n,
      dstCid: BigInt(CID),
      srcPort: HOST_PORT,
      dstPort: GUEST_PORT,
      op: RESPONSE,
      bufAlloc: GRANT,
    });
    guest.send({ payload: bytesOf("hello") });
    assertEquals(read(program), "hello");
    write(program, "world");
    const [packet] = guest.heard();
    assertEquals([packet.op, textOf(packet.payload), packet.fwdCnt], [RW, "world", 5]);
    assertEquals(rig.resets, []);
  }
});

Deno.test("vsock: a host program connects to a port of the guest's", () => {
  using guest = new Guest();
  guest.room(8);
  using program = guest.dial(`CONNECT ${GUEST_PORT}\nahead`);
  const [request] = guest.heard();
  assertEquals([request.op, request.dstPort, request.type], [REQUEST, GUEST_PORT, 1]);
  assert(request.srcPort >= 1 << 30);
  assertEquals(read(program), undefined);
  const own = { dstPort: request.srcPort };
  guest.send({ ...own, op: RESPONSE });
  assertEquals(read(program), `OK ${request.srcPort}\n`);
  const [packet] = guest.heard();
  assertEquals(textOf(packet.payload), "ahead");
  guest.send({ ...own, payload: bytesOf("answer") });
  assertEquals(read(program), "answer");
  // Another one to the same port has a port of its own.
  using second = guest.dial();
  const [again] = guest.heard();
  assert(again.srcPort !== request.srcPort);
  guest.send({ dstPort: again.srcPort, op: RST });
  assertEquals(read(second), "");
});

Deno.test("vsock: a host program that says something else, or leaves, is let go", () => {
  using guest = new Guest();
  guest.room(8);
  for (
    const line of ["GET / HTTP/1.1\n", "CONNECT\n", "CONNECT 4294967296\n", "CONNECT -1\n"]
      .concat("x".repeat(40))
  ) {
    using program = guest.dial(line);
    assertEquals(read(program), "", line);
  }
  using slow = guest.dial("CONN");
  write(slow, "ECT 77\r\n");
  assertEquals(guest.ops(), ["1 77"]);
  guest.dial("CONNECT 78\n")[Symbol.dispose]();
  // It left before the guest was asked, or the guest is told that it has.
  assertMatch(guest.ops().join(), /^(1 78,3 78)?$/);
});

Deno.test("vsock: who does not answer in time is not waited for", () => {
  using guest = new Guest();
  guest.room(8);
  using program = guest.dial();
  using silent = connectUnix(guest.prefix)!;
  assertEquals(guest.ops(), [`1 ${GUEST_PORT}`]);
  passTime(guest, 11);
  assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
  assertEquals(read(program), "");
  assertEquals(read(silent), undefined);
  passTime(guest, 61);
  assertEquals(read(silent), "");
});

/** Lets as many looks at the clock happen. */
function passTime({ rig }: Guest, seconds: number): void {
  const until = rig.reactor.now() + seconds * 1000;
  while (rig.reactor.now() < until) {
    const timer = rig.reactor.timer(() => {});
    timer.arm(100);
    rig.reactor.turn();
    rig.reactor.dropTimer(timer);
  }
}

Deno.test("vsock: where nobody listens the guest is refused", () => {
  using guest = new Guest();
  guest.room(8);
  guest.send({ op: REQUEST });
  assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
  Deno.writeTextFileSync(`${guest.prefix}_${HOST_PORT}`, "no socket");
  guest.send({ op: REQUEST });
  assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
  // Another context than the host's: as if nobody listened there.
  guest.send({ op: REQUEST, dstCid: 9n });
  const [reset] = guest.heard();
  assertEquals([reset.op, reset.srcCid, reset.srcPort], [RST, 9n, HOST_PORT]);
  assertEquals(guest.rig.device.counters.refused, 3);
});

Deno.test("vsock: what belongs to no connection is answered by RST, but for RST", () => {
  using guest = new Guest();
  guest.room(16);
  for (const op of [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 8, 0xffff]) {
    guest.send({ op, payload: bytesOf("x") });
    assertEquals(guest.ops(), [`3 ${GUEST_PORT}`], `operation ${op}`);
  }
  guest.send({ op: RST });
  assertEquals(guest.ops(), []);
  guest.send({ op: REQUEST, type: 2 });
  const [reset] = guest.heard();
  assertEquals([reset.op, reset.type], [RST, 2]);
});

Deno.test("vsock: packets of others, or without a whole header, are dropped", () => {
  using guest = new Guest();
  guest.room(8);
  guest.send({ op: REQUEST, srcCid: 7n });
  guest.send({ op: REQUEST, srcCid: BigInt(CID) + 2n ** 32n });
  guest.send({ op: REQUEST, dstCid: 2n ** 32n + 2n });
  guest.sendBytes(new Uint8Array(HEADER - 1));
  guest.sendBytes(new Uint8Array(1));
  assertEquals(guest.ops(), []);
  assertEquals(guest.rig.device.counters.dropped, 5);
  assertEquals(guest.rig.resets, []);
});

Deno.test("vsock: what does not fit a connection's state ends it", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  const wrong: [string, Parameters<Guest["send"]>[0]][] = [
    ["connects twice", { op: REQUEST }],
    ["answers unasked", { op: RESPONSE }],
    ["unknown operation", { op: 9 }],
    ["longer than its buffer", { payload: bytesOf("four"), len: 5 }],
    ["much longer", { payload: bytesOf("four"), len: 0xffff_ffff }],
  ];
  for (const [what, packet] of wrong) {
    guest.room(2);
    using program = guest.connect(listener);
    assertEquals(guest.ops(), [`2 ${GUEST_PORT}`]);
    guest.send(packet);
    assertEquals(guest.ops(), [`3 ${GUEST_PORT}`], what);
    assertEquals(read(program), "", what);
  }
  // A payload that is shorter than its buffers is what the header says (5.10.6).
  guest.room(2);
  using program = guest.connect(listener);
  guest.send({ payload: bytesOf("four and more"), len: 4 });
  guest.send({ payload: new Uint8Array() });
  assertEquals(read(program), "four");
  assertEquals(guest.ops(), [`2 ${GUEST_PORT}`]);
  assertEquals(guest.rig.resets, []);
});

Deno.test("vsock: a host program is sent no more than the guest has room for, and the guest is asked for more", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(20);
  using program = guest.connect(listener, { bufAlloc: 6 });
  write(program, "abcdefghij");
  const packets = guest.heard();
  assertEquals(packets.map(({ op }) => op), [RESPONSE, RW, CREDIT_REQUEST]);
  assertEquals(textOf(packets[1].payload), "abcdef");
  // Room that is taken back, or was never there, is none.
  guest.send({ op: CREDIT_UPDATE, bufAlloc: 3, fwdCnt: 0 });
  guest.send({ op: CREDIT_UPDATE, bufAlloc: 0, fwdCnt: 0xffff_ffff });
  assertEquals(guest.ops(), [`7 ${GUEST_PORT}`, `7 ${GUEST_PORT}`]);
  guest.send({ op: CREDIT_UPDATE, bufAlloc: 6, fwdCnt: 5 });
  const [more] = guest.heard();
  assertEquals([more.op, textOf(more.payload)], [RW, "ghijk".slice(0, 4)]);
});

Deno.test("vsock: a host program that does not read holds up its own connection only; credit is kept to", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(40);
  using slow = guest.connect(listener);
  using quick = guest.connect(listener, { srcPort: 1 });
  assertEquals(guest.ops().length, 2);
  let sent = guest.fill();
  guest.send({ op: CREDIT_REQUEST });
  const [update] = guest.heard();
  assertEquals([update.op, update.bufAlloc], [CREDIT_UPDATE, GRANT]);
  assert(sent - update.fwdCnt > GRANT / 2 && sent - update.fwdCnt <= GRANT);
  guest.send({ srcPort: 1, payload: bytesOf("past it") });
  assertEquals(read(quick), "past it");
  // All of it comes, in order, when it is read at last; also where the backlog begins anew.
  for (let round = 0, got = 0; round < 8; round++) {
    got = guest.drain(slow, got, round === 3 ? sent : got + 100_000);
    guest.room(40 - guest.rooms);
    guest.send({ op: CREDIT_REQUEST });
    const { fwdCnt } = guest.heard().at(-1)!;
    sent = guest.fill(sent, fwdCnt);
  }
});

Deno.test("vsock: a guest that sends without credit loses its connection", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(40);
  using _slow = guest.connect(listener);
  guest.heard();
  let last: string | undefined;
  for (let i = 0; last !== `3 ${GUEST_PORT}`; i++) {
    assert(i < 100, "more is kept than is granted");
    guest.send({ payload: pattern(0, 0x8000) });
    last = guest.ops().at(-1) ?? last;
    guest.room(1);
  }
});

Deno.test("vsock: a guest that sends no more still receives, and the other way round", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(16);
  {
    using program = guest.connect(listener);
    guest.send({ payload: bytesOf("all") });
    guest.send({ op: SHUTDOWN, flags: SEND });
    assertEquals([read(program), read(program)], ["all", ""]);
    write(program, "still");
    assertEquals(textOf(guest.heard()[1].payload), "still");
    // What was said stays said.
    guest.send({ op: SHUTDOWN, flags: 0 });
    guest.send({ payload: bytesOf("after all") });
    assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
  }
  {
    using program = guest.connect(listener);
    guest.heard();
    guest.send({ op: SHUTDOWN, flags: RECEIVE });
    // A program that writes nevertheless is told by its kernel.
    assertEquals(writeBytes(program, bytesOf("x")), -1);
    guest.send({ payload: bytesOf("more") });
    assertEquals(read(program), "more");
    guest.send({ op: SHUTDOWN, flags: SEND });
    assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
    assertEquals(read(program), "");
  }
});

Deno.test("vsock: a host program that sends no more still receives; one that leaves ends it", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(16);
  const program = guest.connect(listener);
  write(program, "bye");
  assertEquals(guest.ops(), [`2 ${GUEST_PORT}`, `5 ${GUEST_PORT}`]);
  shutdown(program);
  assertEquals(guest.ops(), [`4 ${GUEST_PORT} ${SEND}`]);
  guest.send({ payload: bytesOf("heard") });
  assertEquals(read(program), "heard");
  program[Symbol.dispose]();
  assertEquals(guest.ops(), [`4 ${GUEST_PORT} ${BOTH}`]);
  // What was on its way is for nobody, and no mistake.
  guest.send({ payload: bytesOf("late") });
  assertEquals(guest.ops(), []);
  guest.send({ op: RST });
  guest.send({ op: RW });
  assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
});

function shutdown(program: UnixStream): void {
  libc.shutdown(program.fd.number, 1);
}

Deno.test("vsock: what a program wrote before it left comes first, however little room the guest has", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(16);
  const program = guest.connect(listener, { bufAlloc: 4 });
  write(program, "last words");
  program[Symbol.dispose]();
  // That nobody reads any more is said at once.
  assertEquals(
    guest.ops(),
    [
      `2 ${GUEST_PORT}`,
      `5 ${GUEST_PORT}`,
      `4 ${GUEST_PORT} ${RECEIVE}`,
      `7 ${GUEST_PORT}`,
    ].sort((a, b) => Number(a[0] === "4") - Number(b[0] === "4")),
  );
  guest.send({ op: CREDIT_UPDATE, bufAlloc: 100, fwdCnt: 4 });
  const rest = guest.heard();
  assertEquals(rest.map(({ op, flags }) => [op, flags]), [[RW, 0], [SHUTDOWN, BOTH]]);
  assertEquals(textOf(rest[0].payload), " words");
  // A guest that never says it is through is not waited for.
  passTime(guest, 61);
  assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
});

Deno.test("vsock: what the guest wrote before it left comes, however slowly it is read", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(40);
  using program = guest.connect(listener);
  guest.heard();
  const sent = guest.fill();
  guest.send({ op: SHUTDOWN, flags: BOTH });
  assertEquals(guest.ops(), [`3 ${GUEST_PORT}`]);
  // The same ports can be used again before all is read.
  using other = guest.connect(listener);
  assertEquals(guest.ops(), [`2 ${GUEST_PORT}`]);
  guest.drain(program, 0, sent);
  assertEquals(read(program), "");
  guest.send({ payload: bytesOf("other") });
  assertEquals(read(other), "other");
});

Deno.test("vsock: who reads slowly reads the end behind all that the guest sent", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(40);
  using program = guest.connect(listener);
  guest.heard();
  const sent = guest.fill();
  guest.send({ op: SHUTDOWN, flags: SEND });
  guest.drain(program, 0, sent);
  assertEquals(read(program), "");
  write(program, "still here");
  assertEquals(textOf(guest.heard().at(-1)!.payload), "still here");
});

Deno.test("vsock: a guest that takes no answers is not heard until it does; none is lost", () => {
  using guest = new Guest();
  let sent = 0;
  while (guest.send({ op: RW, srcPort: sent + 1 })) assert(++sent < 1000);
  assertEquals(sent, 256);
  for (let count = 0, i = 0; count < sent + 1; i++) {
    assert(i < 100);
    guest.room(8);
    for (const { op, dstPort } of guest.heard()) assertEquals([op, dstPort], [RST, ++count]);
  }
  assert(guest.rig.queues[TX].takeUsed() !== undefined);
});

Deno.test("vsock: connections have their turn however much another one has to send", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(2);
  using many = guest.connect(listener);
  using few = guest.connect(listener, { srcPort: 1 });
  guest.heard();
  writeBytes(many, pattern(0, 100_000));
  write(few, "few");
  guest.rig.settle();
  guest.room(4);
  assertEquals(guest.ops().filter((op) => op === "5 1").length, 1);
});

Deno.test("vsock: of more connections than there may be the guest is refused, and host programs wait", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  using programs = new DisposableStack();
  for (let i = 0; i < MOST_CONNECTIONS; i++) {
    guest.room(1);
    programs.use(guest.connect(listener, { srcPort: i }));
    assertEquals(guest.ops(), [`2 ${i}`]);
  }
  guest.room(3);
  guest.send({ op: REQUEST, srcPort: 9999 });
  assertEquals(guest.ops(), ["3 9999"]);
  using waiting = guest.dial();
  assertEquals(guest.ops(), []);
  guest.send({ op: RST, srcPort: 7 });
  assertEquals(guest.ops(), [`1 ${GUEST_PORT}`]);
  assertEquals(read(waiting), undefined);
});

Deno.test("vsock: many requests are many batches", () => {
  using guest = new Guest();
  const { queues, memory, device } = guest.rig;
  guest.room(64);
  const bytes = encode({ ...OURS, op: REQUEST });
  memory.bytes(BUFFERS, bytes.length).set(bytes);
  for (let i = 0; i < 64; i++) queues[TX].add([{ address: BUFFERS, length: bytes.length }], []);
  queues[TX].publish();
  const before = device.counters.batches;
  device.available(TX);
  assertEquals(guest.ops().length, 64);
  assert(device.counters.batches - before >= 4);
});

Deno.test("vsock: a device that goes on where another one was says that connections are gone, once", () => {
  using guest = new Guest({ base: 3, started: [] });
  const { queues, device, memory } = guest.rig;
  for (const index of [RX, TX, EVENT]) {
    const base = index === TX ? 3 : 0;
    assertEquals(device.startQueue(index, { ...queues[index].config, base }), undefined);
  }
  device.resume();
  guest.rig.settle();
  queues[EVENT].add([], [{ address: BUFFERS, length: 4 }]);
  queues[EVENT].publish();
  memory.write32(BUFFERS, 99);
  device.available(EVENT);
  guest.rig.settle();
  assertEquals(queues[EVENT].takeUsed()?.length, 4);
  assertEquals(memory.read32(BUFFERS), 0);
  // A queue that was stopped and goes on is no restart.
  const base = device.stopQueue(EVENT) as number;
  device.startQueue(EVENT, { ...queues[EVENT].config, base });
  device.resume();
  queues[EVENT].add([], [{ address: BUFFERS, length: 4 }]);
  queues[EVENT].publish();
  device.available(EVENT);
  guest.rig.settle();
  assertEquals(queues[EVENT].takeUsed(), undefined);
});

Deno.test("vsock: a driver that begins hears of no reset; one that starts over finds nothing of before", () => {
  using guest = new Guest();
  const { queues, device } = guest.rig;
  using listener = guest.listen(HOST_PORT);
  queues[EVENT].add([], [{ address: BUFFERS, length: 4 }]);
  queues[EVENT].publish();
  device.available(EVENT);
  guest.room(8);
  using program = guest.connect(listener);
  using dialled = guest.dial();
  guest.heard();
  for (const index of [RX, TX, EVENT]) device.stopQueue(index);
  device.reset();
  assertEquals([read(program), read(dialled)], ["", ""]);
  assertEquals(queues[EVENT].takeUsed(), undefined);
});

Deno.test("vsock: a buffer without room for a packet breaks the queue", () => {
  using guest = new Guest();
  guest.room(1, HEADER);
  guest.send({ op: RW });
  guest.rig.settle();
  assertMatch(guest.rig.resets.join(), /queue 0: buffer \d+ has no room for a packet/);
});

Deno.test("vsock: memory that may not be touched is not; what came meanwhile is told afterwards", () => {
  using guest = new Guest();
  using listener = guest.listen(HOST_PORT);
  guest.room(8);
  using program = guest.connect(listener);
  guest.heard();
  guest.rig.touch = false;
  write(program, "kept");
  assertEquals(guest.ops(), []);
  guest.rig.touch = true;
  guest.rig.device.resume();
  assertEquals(textOf(guest.heard()[0].payload), "kept");
});

Deno.test("vsock: through a segment packets are smaller, and a driver is told that connections are gone in any case", () => {
  using guest = new Guest({ forwarded: true });
  const { queues, device, memory } = guest.rig;
  for (let time = 0; time < 2; time++) {
    if (time === 1) guest.rig.restart();
    memory.write32(BUFFERS, 99);
    queues[EVENT].add([], [{ address: BUFFERS, length: 4 }]);
    queues[EVENT].publish();
    device.available(EVENT);
    guest.rig.settle();
    assertEquals([queues[EVENT].takeUsed()?.length, memory.read32(BUFFERS)], [4, 0]);
  }
  using listener = guest.listen(HOST_PORT);
  guest.room(1);
  using _program = guest.connect(listener);
  assertEquals(guest.heard()[0].bufAlloc, 32 << 10);
});
