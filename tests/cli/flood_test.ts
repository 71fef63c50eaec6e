/**
 * Lines that a peer causes: however much it does, standard error gets a few, what was left out is counted, and whoever
 * else is served goes on being answered. Without limits each of these was ten thousands of lines a second.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { openLinuxUserBus } from "../../src/bus/open.ts";
import { allocate } from "../../src/linux/arena.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { connectUnix } from "../../src/linux/unix_socket.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind, type Message, QUEUE_ENABLED } from "../../src/message/message.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import { keptLog } from "../ivshmem/support.ts";
import {
  delay,
  type Processes,
  processTest,
  until,
  type VmsgProcess,
} from "../support/processes.ts";
import { RawPeer } from "../support/raw_peer.ts";
import { withTwoGuests } from "../support/two_guests.ts";

const BUS = "linux-user,socket=lu.sock";
/** How long each of them goes on, and how often at least, on a machine that has more to do. */
const FLOOD_MS = 2000;
const LEAST = 500;
/** Lines of one level at once, and one a second from then on; of two levels. */
const [AT_ONCE, A_SECOND] = [250, 2];
/** Connections that the device side sees in any case. */
const SEEN = 30;

/** How many lines may have been said since a moment, which may be long ago on a slow machine. */
const mostSince = (startMs: number) => AT_ONCE + A_SECOND * (performance.now() - startMs) / 1000;

/** Works until the time is over and it was often enough, with pauses in which what the processes say is read; how often it did. */
async function flood(work: () => void | Promise<void>): Promise<number> {
  const endMs = performance.now() + FLOOD_MS;
  let count = 0;
  for (; performance.now() < endMs || count < LEAST; count++) {
    await work();
    if (count % 32 === 0) await delay(1);
  }
  return count;
}

/** Lines that a process said and did not say since it had said `before`; the last are told when it is quiet. */
async function toldSince(
  process: VmsgProcess,
  before: number,
): Promise<{ said: number; all: number }> {
  await process.waitFor(/more lines? like these were left out/, undefined, before);
  const lines = process.lines.slice(before).map(({ text }) => text);
  const left = lines.map((line) => Number(/(\d+) more/.exec(line)?.[1] ?? 0));
  return { said: lines.length, all: lines.length + left.reduce((sum, n) => sum + n, 0) };
}

processTest(
  "flood: who connects to the bus and goes is said rarely, and the guests go on",
  (vmsg) =>
    withTwoGuests(vmsg, async (guests) => {
      const before = guests.device.lines.length;
      const startMs = performance.now();
      const socket = `${vmsg.directory}/lu.sock`;
      const block = allocate(8);
      for (let n = 0; n < SEEN; n++) {
        using client = connectUnix(socket)!;
        // It is turned away.
        await until(() => client.receive(block.address, 8) === 0);
      }
      // Each is held until the next is there: a client that is gone when it is seen is worth no line at all.
      let held = connectUnix(socket);
      const count = await flood(() => {
        const next = connectUnix(socket);
        held?.[Symbol.dispose]();
        held = next;
      });
      held?.[Symbol.dispose]();
      await guests.answered();
      const { said, all } = await toldSince(guests.device, before);
      assert(said < mostSince(startMs), `${said} lines`);
      // Where the device side is slow it sees few of the others before they are gone.
      assert(all >= SEEN && all <= SEEN + count + said, `${all} of ${count}`);
      await guests.answered();
    }),
);

processTest(
  "flood: nobody is attached, and who comes and goes keeps no driver side out",
  async (vmsg) => {
    const device = await vmsg.start("device", "--bus", BUS);
    await device.waitFor(/waiting for the driver side/);
    const startMs = performance.now();
    const socket = `${vmsg.directory}/lu.sock`;
    const driver = vmsg.run("driver", "--bus", BUS, "--count", "3");
    let isDone = false;
    driver.finally(() => isDone = true);
    await flood(() => connectUnix(socket)?.[Symbol.dispose]());
    while (!isDone) {
      for (let n = 0; n < 32; n++) connectUnix(socket)?.[Symbol.dispose]();
      await delay(1);
    }
    const { code, stdout } = await driver;
    assertEquals(code, 0);
    assertMatch(stdout.join("\n"), /^3 packets transmitted, 3 received/m);
    assert(device.lines.length < mostSince(startMs), `${device.lines.length} lines`);
  },
);

/** What is queued before the device side has seen its peer is dropped, so it is asked until it answers. */
async function untilSeen(peer: RawPeer, hello: (message: Message) => void): Promise<void> {
  for (let token = -1, looks = 0;; looks++) {
    if (looks % 100 === 0) token = peer.send(Kind.HELLO, hello);
    await peer.reactor.sleep(10);
    for (let answer; (answer = peer.messages.shift()) !== undefined;) {
      if (answer.token === token) return;
    }
  }
}

/** The bus's peer: a driver side that says what it likes. */
async function withPeer(
  vmsg: Processes,
  attack: (peer: RawPeer, hello: (epoch: number) => Promise<Message>) => () => Promise<void>,
): Promise<void> {
  const device = await vmsg.start("device", "--bus", BUS);
  await device.waitFor(/waiting for the driver side/);
  const before = device.lines.length;
  const startMs = performance.now();
  {
    using reactor = new Reactor();
    const place = { socket: `${vmsg.directory}/lu.sock`, directory: vmsg.directory };
    using bus = openLinuxUserBus("driver", reactor, place, keptLog([]));
    const peer = new RawPeer(reactor, bus, codecFor("v1"));
    peer.open();
    const words = (epoch: number, last?: Message) => (m: Message) => {
      m.epoch = epoch;
      m.peerEpoch = last?.epoch ?? 0;
      m.nonce = last?.nonce ?? 0;
      m.version = PRIVATE_VERSION;
    };
    const hello = (epoch: number, last?: Message) => peer.ask(Kind.HELLO, words(epoch, last));
    const greet = async (epoch: number) => await hello(epoch, await hello(epoch));
    await reactor.until(untilSeen(peer, words(1)));
    const work = attack(peer, greet);
    await flood(() => reactor.until(work()));
  }
  await device.waitFor(/./, undefined, before);
  const said = device.lines.length - before;
  assert(said > 0 && said < mostSince(startMs), `${said} lines`);
  const { code, stdout } = await vmsg.run("driver", "--bus", BUS, "--count", "3");
  assertEquals(code, 0);
  assertMatch(stdout.join("\n"), /^3 packets transmitted, 3 received/m);
}

processTest("flood: HELLO with ever new epochs", (vmsg) =>
  withPeer(vmsg, (_, greet) => {
    let epoch = 1;
    return async () => void await greet(epoch++);
  }));

processTest("flood: memory that is refused", (vmsg) =>
  withPeer(vmsg, (peer, greet) => {
    const fd = createEventFd();
    let isGreeted = false;
    let address = 0;
    return async () => {
      if (!isGreeted) await greet(1);
      isGreeted = true;
      const ordinal = peer.bus.sendFd(fd);
      await peer.ask(Kind.ADD_MEMORY, (m) => {
        m.epoch = 1;
        m.ordinal = ordinal;
        m.address = address += 4096;
        m.length = 4096;
      });
    };
  }));

processTest(
  "flood: queues at addresses that are nowhere",
  (vmsg) =>
    withPeer(vmsg, (peer, greet) => {
      let isGreeted = false;
      let address = 0;
      return async () => {
        if (!isGreeted) await greet(1);
        isGreeted = true;
        for (const status of [0, 1, 3, 11]) {
          if (status === 11) {
            await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
              m.count = 2;
              m.words[1] = 1;
            });
          }
          await peer.ask(Kind.SET_DEVICE_STATUS, (m) => m.status = status);
        }
        address += 4096;
        await peer.ask(Kind.SET_VQUEUE, (m) => {
          m.flags = QUEUE_ENABLED;
          m.queueSize = 256;
          m.descriptorAddress = m.driverAddress = m.deviceAddress = address;
        });
        await peer.ask(Kind.SET_DEVICE_STATUS, (m) => m.status = 15);
      };
    }),
);
