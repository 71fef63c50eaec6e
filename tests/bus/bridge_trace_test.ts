/** What is said about the kernel's bridge itself, in traces, captures, charts and tshark. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { Kind } from "../../src/message/message.ts";
import { findProgram } from "../../src/linux/programs.ts";
import { dissectMessages } from "../support/capture.ts";
import { Card } from "../support/bridge_kernel/card.ts";
import { Entropy } from "../support/bridge_kernel/entropy.ts";
import { PAGE as WINDOW_PAGE } from "../support/bridge_kernel/windows.ts";
import { bridgeTest } from "../support/bridge_rig.ts";
import { until } from "../support/processes.ts";
import {
  add,
  del,
  local,
  memoryBridgeTest,
  offline,
  online,
  PAGE,
} from "../support/memory_bridge_rig.ts";

/** Without time and latency. */
const words = (lines: readonly string[]) =>
  lines.map((line) => line.replace(/^\S+ /, "").replace(/ {3}\d+ us.*$/, ""));

memoryBridgeTest("frames and sessions of the bridge are traced", async (rig) => {
  const { node, side, traced } = rig;
  const said = async (...frames: readonly Uint8Array[]) => {
    node.put(...frames);
    await rig.said();
    return words(traced.splice(0));
  };
  side.open();
  await rig.said();
  assertEquals(words(traced.splice(0)), [
    "bridge: attached, the endpoint is online, epoch 1",
    "-> bus   TOPOLOGY_RESET epoch 1",
    "-> bus   TOPOLOGY_DEV_ADD device 0, epoch 1",
    "-> bus   TOPOLOGY_DEV_ADD device 5, epoch 1",
    "-> bus   TOPOLOGY_COMMIT 2 devices, epoch 1",
  ]);
  assertEquals(await said(add(1, 0x10_0000, 4 * PAGE), add(2, 0x20_0000, PAGE + 1)), [
    "<- bus   MAP_ADD? window 1: 16384 bytes at 0x100000, mapped from 0x1000, kept",
    "-> bus   MAP_ADD = window 1 done",
    "<- bus   MAP_ADD? window 2: 4097 bytes at 0x200000, mapped from 0x2000, kept",
    "-> bus   MAP_ADD = window 2 errno 22",
  ]);
  assertEquals(await said(del(1)), [
    "<- bus   MAP_DEL? window 1: 0 bytes at 0x0",
    "-> bus   MAP_DEL = window 1 done",
  ]);
  // Before a driver has written the status no event is sent, and the trace says so.
  rig.device.host.used(0);
  assertEquals(await said(), [
    "-> dev 0 EVENT_USED queue 0",
    "bridge: dev 0: not sent, since its status was not written so far",
  ]);
  // Of another form: longer, without a token, an answer, of no known id.
  const [longer, bare] = [local(0xc1, 32, 0, [1, 1]), local(0x89, 72, 0, [1])];
  const [answer, unknown] = [local(0x89, 40, 1, [1]), local(0xf1, 24, 0, [1])];
  answer[0] = 3;
  assertEquals(
    (await said(longer, bare, answer, unknown)).map((line) => line.replace(/:.*/, "")),
    [
      "<- not understood (long)",
      "<- not understood (not a message)",
      "<- not understood (not a message)",
      "<- not understood (unknown id)",
    ],
  );
  assertEquals(await said(offline(1)), [
    "<- bus   ENDPOINT_OFFLINE epoch 1, removed",
    "bridge: the endpoint went offline (removed); the node is kept open, because kernels of 2026 do not survive that it is " +
    "closed now: wait until it is online, or reboot",
  ]);
  assertEquals((await said(online(2))).slice(0, 2), [
    // Whoever gives a name of zeros.
    "<- bus   ENDPOINT_ONLINE , epoch 2, messages of up to 128 bytes",
    "-> bus   TOPOLOGY_RESET epoch 2",
  ]);
  rig.ask(Kind.GET_DEVICE_STATUS, 0);
  node.header("rx")[1] = 0;
  assertEquals(
    (await said())[0],
    "bridge: a cursor was set back (rx.cons): stored again",
  );
  node.faulted();
  assertEquals((await said()).slice(0, 3), [
    "bridge: the kernel does not go on with this session (fault)",
    "bridge: attached, the endpoint is online, epoch 1",
    "-> bus   TOPOLOGY_RESET epoch 1",
  ]);
});

bridgeTest(
  "bridge: --trace, --capture, vmsg trace and tshark show what is said about it",
  async (rig) => {
    const { processes, node } = rig;
    const { process, session } = await rig.publish(
      ...["--device", "rng", "--trace", "bridge,note", "--trace-format", "json"],
      ...["--capture", "c.pcapng"],
    );
    const entropy = await rig.settled(Entropy.open(session, 0), "it is brought up");
    await entropy.read(64);
    const window = await rig.settled(session.add({ length: 3 * WINDOW_PAGE }), "a window is there");
    await rig.settled(session.del(window), "and goes");
    session.goOffline();
    await node.until(() => session.hasReadOffline, "it has read of it");
    await rig.unmapped(process);
    session.goOnline(true);
    await node.published([0]);
    assertEquals((await process.end("SIGTERM")).code, 0);

    const names = (lines: readonly string[]) =>
      new Set(lines.flatMap((line) => /\b(MAP|ENDPOINT|TOPOLOGY)_[A-Z_]+/.exec(line)?.[0] ?? []));
    const all = [
      ...["TOPOLOGY_RESET", "TOPOLOGY_DEV_ADD", "TOPOLOGY_COMMIT", "MAP_ADD", "MAP_DEL"],
      ...["ENDPOINT_OFFLINE", "ENDPOINT_ONLINE"],
    ];
    const live = process.stderr.filter((line) => line.startsWith("{")).map((l) => JSON.parse(l));
    assertEquals([...new Set(live.flatMap(({ message }) => message ?? []))], all);
    const added = live.find(({ message, sort }) => message === "MAP_ADD" && sort === "answer");
    assertEquals([added.fields.result, added.request > 0, added.latency >= 0], [0, true, true]);
    assert(live.some(({ note }) => note?.startsWith("bridge: attached, ")), "a session began");

    const { stdout } = await processes.run("trace", "c.pcapng");
    assertEquals([...names(stdout)], all);
    assert(stdout.some((line) => line.includes(" <- dev 0 SET_VQUEUE? queue 0 ")));
    assertEquals(stdout.filter((line) => /not understood|not answered/.test(line)), []);
    const some = await processes.run("trace", "--filter", "MAP_*,!answer", "c.pcapng");
    assertEquals([...names(some.stdout)], ["MAP_ADD", "MAP_DEL"]);
    assert(some.stdout.every((line) => line.includes(" <- bus   MAP_")), some.stdout.join("\n"));
    await processes.run("trace", "--html", "c.html", "c.pcapng");
    const page = Deno.readTextFileSync(`${processes.directory}/c.html`);
    assertMatch(page, /TOPOLOGY_COMMIT 1 devices/);
    if (findProgram("tshark") === undefined) return console.log("NOT RUN: no tshark");
    const told = await dissectMessages(`${processes.directory}/c.pcapng`);
    assertEquals([...names(told)], all);
  },
);

interface Verdict {
  readonly subject: string;
  readonly stuck?: { readonly step: string; readonly owes: string };
}

bridgeTest(
  "bridge: inspect and doctor say where a session stands, and a capture as well",
  async (rig) => {
    const { node } = rig;
    const { process, session } = await rig.publish(
      ...["--device", "rng", "--net", "responder", "--capture", "c.pcapng"],
    );
    const run = async (...args: string[]) =>
      (await (await rig.vmsg(...args)).ended()).stdout.join("\n");
    /** What is stuck, of the process or of its capture; looks until it says that. */
    const says = async (expected: RegExp, owes: string, operand = `${process.pid}`) => {
      let said: Verdict["stuck"];
      await until(async () => {
        const verdicts: Verdict[] = JSON.parse(await run("doctor", "--json", operand));
        said = verdicts.find(({ stuck }) => stuck !== undefined)?.stuck;
        return expected.test(said?.step ?? "nothing");
      });
      if (said !== undefined) assertEquals(said.owes, owes);
    };
    const inspect = () => run("inspect", `${process.pid}`);
    const asksNone = /^2 devices were published, and the kernel asks for none$/;
    await says(asksNone, "driver side");
    await says(asksNone, "driver side", "c.pcapng");
    assertMatch(
      await inspect(),
      /kernel's bridge: endpoint online, epoch 1, for \S+ s, session 1, 0 faults, 2 devices published, 0 taken by drivers\n {4}0 windows mapped, 0 bytes, 0 refused; no request for one waits\n {4}ring to the kernel: prod 4 cons 4; from it: prod 0 cons 0\n/,
    );

    const entropy = await rig.settled(Entropy.open(session, 0), "it is brought up");
    const card = await rig.settled(Card.open(session, 1), "and the card");
    await entropy.read(64);
    await card.ping();
    await says(/^nothing$/, "");
    assertMatch(await inspect(), /2 taken by drivers\n {4}[1-9]\d* windows mapped, [1-9]\d* bytes/);

    // The kernel hangs: what is sent is read by nobody.
    session.pause();
    const ping = card.ping();
    ping.catch(() => {});
    await says(/^the kernel does not read: [1-9]\d* frames wait in the ring$/, "driver side");
    session.resume();
    await rig.settled(ping, "it goes on");

    session.goOffline();
    await node.until(() => session.hasReadOffline, "it has read of it");
    const isOffline = /^the endpoint of the kernel's bridge is offline$/;
    await says(isOffline, "driver side");
    await says(isOffline, "driver side", "c.pcapng");
    assertMatch(await inspect(), /kernel's bridge: endpoint offline, for .* no devices published/);
  },
);
