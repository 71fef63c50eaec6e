/** TAP ports in namespaces of their own, with the kernel's own ping and TCP on the other side. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { bringInterfaceUp, interfaceIndex, setInterfaceAddress } from "../../src/linux/netdev.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { NetFeature } from "../../src/virtio/features.ts";
import { LARGE_FRAME_ROOM } from "../../src/network/frame_size.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { TapPort } from "../../src/network/tap.ts";
import {
  bytes,
  GuestMemory,
  ip,
  Listener,
  lookPatiently,
  Namespace,
  networkTest,
  Relay,
  sendLargeFrames,
  takeFrame,
  Tcp,
  THREE_PINGS,
  transfer,
  turnUntil,
} from "./support.ts";

const NEEDS = ["ip"];
/** The kernel keeps for longer on which queue a flow was sent. */
const FLOW_KEPT_MS = 2000;

function words(...bits: number[]): Uint32Array {
  const set = new Uint32Array(2);
  for (const bit of bits) set[bit >> 5] |= 1 << (bit & 31);
  return set;
}

/** A ping from 10.0.2.2 to 10.0.2.1, whose address is in what `ip link` shows. */
function pingFrame(link: string): Uint8Array {
  const mac = /link\/ether (\S+)/.exec(link)![1]!.replaceAll(":", "");
  const frame = bytes(
    `${mac} 020000000002 0800 4500001c 00000000 4001 0000 0a000202 0a000201 0800 0000 00010001`,
  );
  for (const [from, to, at] of [[14, 34, 24], [34, 42, 36]]) {
    let sum = 0;
    for (let i = from!; i < to!; i += 2) sum += frame[i]! << 8 | frame[i + 1]!;
    sum = ~((sum & 0xffff) + (sum >>> 16));
    frame.set([sum >> 8 & 0xff, sum & 0xff], at);
  }
  return frame;
}

Deno.test("tap: the offload bits are those of the message room", () => {
  for (const [name, bit] of Object.entries(NetFeature)) {
    assertEquals(bit, NetFeature[name as keyof typeof NetFeature], name);
  }
});

networkTest("tap: the kernel pings a responder behind a tap", ["ip", "ping"], async () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  using tap = new TapPort({ address: "10.0.2.1/24" }, reactor);
  using responder = new ResponderPort({}, reactor);
  assertEquals(tap.name, "tap0");
  lookPatiently("tap0");
  const relay = new Relay(reactor, [tap, responder]);
  let status: Deno.CommandStatus | undefined;
  const child = new Deno.Command("ping", {
    args: [...THREE_PINGS, "10.0.2.2"],
    stdout: "null",
  }).spawn();
  const ended = child.status.then((s) => status = s);
  await turnUntil(reactor, () => status !== undefined, "ping");
  await ended;
  assertEquals(status!.code, 0);
  assertEquals(relay.links[0], [true]);
  assert(tap.counters.sent >= 4 && tap.counters.sendErrors === 0, JSON.stringify(tap.counters));
  relay.dispose();
});

for (const offloads of [true, false]) {
  const what = offloads ? "64 KiB frames" : "frames of the MTU";
  networkTest(`tap: a TCP stream crosses two taps in ${what}`, NEEDS, async () => {
    using one = new Namespace();
    using reactor = new Reactor();
    sendLargeFrames();
    using left = new TapPort({ address: "10.9.0.1/24", offloads }, reactor);
    lookPatiently("tap0");
    using _two = new Namespace();
    using right = new TapPort({ address: "10.9.0.2/24", offloads }, reactor);
    lookPatiently("tap0");
    for (const port of [left, right]) port.setFeatures(words(...port.features));
    assertEquals(left.features.length, offloads ? 11 : 0);
    assertEquals(left.nextLength(), 0);
    const relay = new Relay(reactor, [left, right]);
    using server = Tcp.listen("10.9.0.2", 5001);
    one.enter();
    using client = Tcp.connect("10.9.0.2", 5001);
    await transfer(reactor, client, server, 8 << 20);
    const seen = relay.seen[0];
    if (offloads) {
      assert(seen.longest > 60_000 && seen.longest <= LARGE_FRAME_ROOM, `${seen.longest}`);
      assert(seen.segmented > 20, `${seen.segmented}`);
      assert(seen.frames < 4000, `${seen.frames}`);
    } else {
      assertEquals([seen.longest, seen.segmented], [1526, 0]);
    }
    assertEquals(left.counters.sendErrors + right.counters.sendErrors, 0);
    relay.dispose();
  });
}

networkTest("tap: frames made for a driver before are dropped", NEEDS, async () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  using tap = new TapPort({ address: "10.0.2.1/24" }, reactor);
  using memory = new GuestMemory();
  const listener = new Listener();
  tap.setFeatures(words(...tap.features));
  tap.open(listener);
  ip("neigh add 10.0.2.9 lladdr 02:00:00:00:00:09 dev tap0");
  using _client = Tcp.connect("10.0.2.9", 80);
  await turnUntil(reactor, () => tap.nextLength() > 0, "a SYN");
  assertEquals(tap.nextLength(), LARGE_FRAME_ROOM);
  tap.setFeatures(words());
  assert(tap.counters.stale > 0);
  assertEquals(tap.nextLength(), 1530);
  while (takeFrame(tap, memory) !== undefined);
  assertEquals(tap.nextLength(), 0);
});

networkTest("tap: a frame that makes no sense is dropped and counted", NEEDS, () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  using tap = new TapPort({}, reactor);
  using memory = new GuestMemory();
  // A GSO type that does not exist, and a checksum outside of the frame.
  const frame = memory.frame(bytes("ffffffffffff 020000000001 0800" + "00".repeat(46)));
  memory.bytes[1] = 0x7f;
  assertEquals(tap.send(frame), true);
  memory.bytes.set([1, 0, 0, 0, 0, 0, 0xff, 0xff], 0);
  assertEquals(tap.send(frame), true);
  memory.bytes.fill(0, 0, 12);
  assertEquals(tap.send(frame), true);
  assertEquals(tap.send(memory.buffer(0, 5)), true);
  assertEquals([tap.counters.sent, tap.counters.sendErrors], [1, 3]);
});

networkTest("tap: the link follows the interface, also away", NEEDS, async () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  using tap = new TapPort({ name: "t%d", mtu: 9000 }, reactor);
  assertEquals([tap.name, tap.mtu], ["t0", 9000]);
  const listener = new Listener();
  tap.open(listener);
  const last = () => listener.links.at(-1);
  assertEquals(last(), true);
  ip("link set t0 down");
  await turnUntil(reactor, () => last() === false, "down");
  ip("link set t0 up");
  await turnUntil(reactor, () => last() === true, "up");
  ip("link del t0");
  await turnUntil(reactor, () => last() === false, "gone");
  using memory = new GuestMemory();
  assertEquals(tap.send(memory.frame(bytes("ff".repeat(60)))), true);
  while (takeFrame(tap, memory) !== undefined);
  assertEquals(tap.nextLength(), 0);
});

networkTest("tap: a MAC address for an interface that is made, not for one there", NEEDS, () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  const options = { name: "vt0", mac: bytes("fe5400123456") };
  const address = () => /link\/ether (\S+)/.exec(ip("link show vt0"))![1];
  // The same each time it is made: peers that know it find it again.
  for (let time = 0; time < 2; time++) {
    using _tap = new TapPort(options, reactor);
    assertEquals(address(), "fe:54:00:12:34:56");
  }
  ip("tuntap add vt0 mode tap vnet_hdr");
  const own = address();
  using _tap = new TapPort(options, reactor);
  assertEquals(address(), own);
});

networkTest("tap: a bridge, a persistent interface, one that was there", NEEDS, () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  ip("link add br0 type bridge");
  {
    using tap = new TapPort({ name: "vt0", bridge: "br0", persistent: true }, reactor);
    assert(ip("-o link show master br0").includes(" vt0: "));
    tap.setMac(bytes("020000000077"));
    assert(!ip("-o link show vt0").includes("02:00:00:00:00:77"));
    const error = assertThrows(() => new TapPort({ name: "vt0" }, reactor), VmsgError);
    assertEquals(error.message, "TAP vt0 is in use by another process: end that first");
    assertEquals(tap.name, "vt0");
  }
  assert(interfaceIndex("vt0") > 0);
  {
    using tap = new TapPort({ name: "vt0" }, reactor);
    for (let i = 0; i < 2; i++) tap.setMac(bytes("020000000077"));
    assert(ip("-o link show vt0").includes("link/ether 02:00:00:00:00:77"));
  }
  assert(interfaceIndex("vt0") > 0, "an interface that was there stays");
  new TapPort({ name: "vt0", persistent: false }, reactor)[Symbol.dispose]();
  assertEquals(interfaceIndex("vt0"), 0);
  // What others than the port use of netdev.ts.
  setInterfaceAddress("br0", 0x0a01_0203, 20);
  bringInterfaceUp("br0");
  assert(ip("-o addr show br0").includes("10.1.2.3/20"));
});

networkTest("tap: a flow's frames come on the queue where it was sent last", NEEDS, () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  using memory = new GuestMemory();
  ip("tuntap add vt0 mode tap vnet_hdr multi_queue");
  using tap = new TapPort({ name: "vt0", address: "10.0.2.1/24", queues: 3 }, reactor);
  ip("neigh add 10.0.2.2 lladdr 02:00:00:00:00:02 dev vt0");
  const listener = new Listener();
  tap.open(listener);
  const settle = () => {
    const tick = reactor.timer(() => {});
    for (let i = 0; i < 3; i++) {
      tick.arm(1);
      reactor.turn();
    }
    reactor.dropTimer(tick);
  };
  const ping = pingFrame(ip("link show vt0"));
  /** On which queues the kernel's answers to a ping come that was sent from one of them. */
  const answered = (queue: number) => {
    assert(tap.queues[queue]!.send(memory.frame(ping)));
    settle();
    const came: number[] = [];
    for (const [i, one] of tap.queues.entries()) {
      for (let frame; (frame = takeFrame(one, memory)) !== undefined;) {
        if (frame[23] === 1) came.push(i);
      }
    }
    return came;
  };
  const on = (queue: number) => {
    let came: number[];
    let startMs: number;
    do {
      startMs = reactor.now();
      // The kernel may have answered the first one before it takes note of where it came from.
      answered(queue);
      came = answered(queue);
      // What it has noted it forgets after three seconds in which nothing came.
    } while (reactor.now() - startMs > FLOW_KEPT_MS);
    assertEquals(came, [queue], `queue ${queue} in use`);
  };
  on(0);
  tap.setQueues(3);
  for (const queue of [1, 2, 0, 2]) on(queue);
  // What is not in use gets nothing, also of the flow that was there.
  tap.setQueues(1);
  on(0);
  tap.setQueues(2);
  for (const queue of [1, 0]) on(queue);
  assertEquals(
    assertThrows(() => new TapPort({ name: "vt0" }, reactor), VmsgError).message,
    "interface vt0 is there and is no TAP with one queue: use another name, " +
      "or queues=N for one with several",
  );
  ip("tuntap add vt1 mode tap vnet_hdr");
  assertEquals(
    assertThrows(() => new TapPort({ name: "vt1", queues: 2 }, reactor), VmsgError).message,
    "interface vt1 is there and is no TAP with several queues: use another name, or make it so " +
      "(ip tuntap add vt1 mode tap vnet_hdr multi_queue)",
  );
});

networkTest(
  "tap: several queues of one that another process has are not shared",
  ["unshare"],
  async () => {
    // The kernel would give each process a part of the frames. What it has shows in sysfs, here the namespace's own.
    const code = `
    import { Reactor } from "./src/linux/reactor.ts";
    import { TapPort } from "./src/network/tap.ts";
    using reactor = new Reactor();
    const tap = () => new TapPort({ name: "vt0", queues: 2 }, reactor);
    tap()[Symbol.dispose]();
    using first = tap();
    try {
      using second = tap();
    } catch (error) {
      console.log(error.message);
    }`;
    const prepare = "mount -t sysfs sysfs /sys && ip tuntap add vt0 mode tap vnet_hdr multi_queue";
    const { stdout } = await new Deno.Command("unshare", {
      args: ["-nm", "sh", "-c", `${prepare} && exec "$0" eval "$1"`, Deno.execPath(), code],
    }).output();
    assertEquals(
      new TextDecoder().decode(stdout),
      "TAP vt0 is in use by another process: end that first\n",
    );
  },
);

networkTest("tap: errors are for people", NEEDS, () => {
  using _namespace = new Namespace();
  using reactor = new Reactor();
  ip("link add veth7 type veth peer name veth8");
  const message = (options: ConstructorParameters<typeof TapPort>[0]) =>
    assertThrows(() => new TapPort(options, reactor), VmsgError).message;
  assertEquals(
    message({ name: "a-name-with-16-by" }),
    "interface name a-name-with-16-by has 17 bytes, Linux allows 15: use a shorter one",
  );
  assertEquals(
    message({ name: "a b" }),
    '"a b" is no name for an interface: no blanks, slashes or colons',
  );
  assertEquals(
    message({ name: "veth7" }),
    "interface veth7 is there and is no TAP with one queue: use another name, " +
      "or queues=N for one with several",
  );
  assertEquals(
    message({ bridge: "br9" }),
    "there is no bridge br9: make it (ip link add br9 type bridge; ip link set br9 up)",
  );
  assertEquals(
    message({ bridge: "veth7" }),
    "interface veth7 is no bridge that can take tap0",
  );
  assertEquals(
    message({ address: "10.0.2.2" }),
    '"10.0.2.2" is not an address with a prefix, as in 10.0.2.2/24',
  );
  assertEquals(
    message({ address: "10.0.2/24" }),
    '"10.0.2" is not an IPv4 address, as in 10.0.2.2',
  );
  assertEquals(interfaceIndex("tap0"), 0, "nothing is left behind");
});
