/** Devices that come and go in one process: each kind leaves nothing behind, whatever becomes of it. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { DeviceSet } from "../../src/cli/control/device_set.ts";
import { parseLine } from "../../src/cli/control/request.ts";
import { MAX_DEVICES, parseDevice } from "../../src/cli/device_option.ts";
import { Hubs, parseHub } from "../../src/cli/port_option.ts";
import { allocate } from "../../src/linux/arena.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { CounterMemory, countIn } from "../../src/observe/counters.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

interface Rig {
  readonly reactor: Reactor;
  readonly devices: DeviceSet;
  readonly directory: string;
  /** What `vmsg ctl` would ask. */
  ask(...words: string[]): Promise<unknown>;
}

function withDevices(body: (rig: Rig) => Promise<void>): Promise<void> {
  return withDirectory(async (directory) => {
    using stack = new DisposableStack();
    const reactor = stack.use(new Reactor(new VirtualClock()));
    const bus = stack.use(inProcessBus(reactor)).device;
    const log = createLog("test", "warn", () => {});
    const side = stack.use(new DeviceSide({ reactor, bus, codec: codecFor("v1"), log }));
    const hubs = new Hubs([parseHub("responder,name=up")], { reactor, log, stack });
    const context = { reactor, log, hubs, forwarded: false, pairLines: [] };
    const devices = stack.use(new DeviceSet(side, context, []));
    const ask = (...words: string[]) => devices.ask(parseLine(JSON.stringify(words)));
    await reactor.until(body({ reactor, devices, directory, ask }));
  });
}

const setTest = (name: string, body: (rig: Rig) => Promise<void>) =>
  cleanTest(`device set: ${name}`, () => withDevices(body));

let hubs = 0;

const KINDS = (directory: string) => [
  ["--net", `hub=${hubs++}`],
  ["--net", "responder"],
  ["--net", "responder,queues=3"],
  ["--net", `hub=up,pcap=${directory}/frames.pcap`],
  ["--device", "rng"],
  ["--device", `blk,file=${directory}/disk.img`],
  ["--device", "console"],
  ["--device", `console,socket=${directory}/c.sock,port=p,port-socket=${directory}/p.sock`],
  ["--device", `vsock,socket=${directory}/v.sock,cid=3`],
];

/** A size that nothing else has, so that it is always new. */
const PROBE = 16 * 1009;

setTest(
  "each kind gives back its blocks, its counters and its files, over and over",
  async (rig) => {
    Deno.writeFileSync(`${rig.directory}/disk.img`, new Uint8Array(1 << 20));
    const memory = new CounterMemory(new ArrayBuffer(1 << 16), "test", 1, 0);
    const places = () => memory.take("test", "probe", Array.from({ length: 31 }, (_, n) => `${n}`));
    countIn(memory);
    try {
      const cycle = async () => {
        for (const words of KINDS(rig.directory)) {
          const added = await rig.ask("add", ...words) as { number: number };
          await rig.ask("remove", String(added.number));
        }
      };
      // The hub, which stays, takes places of the first.
      for (let i = 0; i < 2; i++) await cycle();
      const [block, place, next] = [allocate(PROBE).address, places(), places()];
      for (let i = 0; i < 3; i++) await cycle();
      assertEquals(allocate(PROBE).address - block, BigInt(PROBE));
      assertEquals(places() - next, next - place);
    } finally {
      countIn(undefined);
    }
    assertEquals(rig.devices.list(), []);
  },
);

setTest("what cannot be opened leaves nothing behind", async ({ ask, devices, directory }) => {
  const wrong = [
    ["--net", `responder,pcap=${directory}/nix/x`],
    ["--device", `console,socket=${directory}/c.sock,port=p,port-socket=${directory}/nix/p`],
    ["--device", `console,socket=${directory}/nix/c`],
    ["--device", `blk,file=${directory}/nix`],
    ["--device", `vsock,socket=${directory}/nix/v,cid=3`],
    ["--net", `packet=nix`],
    ["--net", `passt,socket=${directory}/${"x".repeat(120)}`],
  ];
  const tryAll = async () => {
    for (const words of wrong) await assertRejects(() => ask("add", ...words), VmsgError);
  };
  await tryAll();
  const block = allocate(PROBE).address;
  for (let i = 0; i < 3; i++) await tryAll();
  assertEquals(allocate(PROBE).address - block, BigInt(PROBE));
  assertEquals(devices.list(), []);
});

setTest("a disk that another has is waited for a moment; nobody else's is", async (rig) => {
  const { ask, reactor, directory } = rig;
  Deno.writeFileSync(`${directory}/disk.img`, new Uint8Array(1 << 20));
  const words = ["add", "--device", `blk,file=${directory}/disk.img`];
  await ask(...words);
  const startMs = reactor.now();
  const error = await assertRejects(() => ask(...words), VmsgError);
  assertEquals(error.code, "DISK_IN_USE");
  assert(reactor.now() - startMs >= 3000);
  assertEquals(rig.devices.list().length, 1);
});

setTest(
  "there is a limit, numbers are taken once, and each request has its turn",
  async ({ ask, devices }) => {
    for (let n = 0; n < MAX_DEVICES - 1; n++) devices.open(2 * n, parseDevice("rng", 2 * n), true);
    await assertRejects(
      () => ask("add", "--device", "rng", "--number", "4"),
      VmsgError,
      "is taken",
    );
    const all = [
      ask("add", "--device", "rng"),
      ask("add", "--device", "rng"),
      ask("remove", "4"),
      ask("list"),
    ];
    const [added, refused, , listed] = await Promise.allSettled(all);
    assertEquals(added!.status, "fulfilled");
    assertEquals(refused!.status === "rejected" && refused!.reason.code, "TOO_MANY");
    assertEquals(
      listed!.status === "fulfilled" && (listed!.value as unknown[]).length,
      MAX_DEVICES - 1,
    );
    await assertRejects(() => ask("remove", "4"), VmsgError, "there is no device 4");
    await assertRejects(() => ask("link", "2", "up"), VmsgError, "is no network card");
  },
);

setTest(
  "a back end that nobody serves is given up; at the start it is waited for, and may be removed",
  async (rig) => {
    const { ask, devices, reactor, directory } = rig;
    const words = `vhost-user,socket=${directory}/nobody.sock,id=rng`;
    await assertRejects(() => ask("add", "--device", words), VmsgError, "nobody is there");
    assertEquals(devices.list(), []);
    let isOpen = false;
    devices.open(0, parseDevice(words, 0), true);
    devices.open(1, parseDevice("rng", 1), true);
    devices.begin(() => isOpen = true);
    await reactor.sleep(60_000);
    assertEquals([isOpen, devices.list().length], [false, 2]);
    await ask("remove", "0");
    await reactor.sleep(100);
    assertEquals([isOpen, devices.list().map(({ number }) => number)], [true, [1]]);
  },
);
