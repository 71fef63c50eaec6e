/** Links stuck on purpose, between processes as users have them: `vmsg doctor` names the step in each, and none in a sound one. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { LinuxUserBus } from "../../src/bus/linux_user.ts";
import { MONOTONIC } from "../../src/linux/clock.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { type Dialect, DIALECTS, Kind, QUEUE_ENABLED } from "../../src/message/message.ts";
import {
  PATIENCE_MS,
  type Processes,
  processTest,
  until,
  VMSG_COMMAND,
  type VmsgProcess,
} from "../support/processes.ts";
import { RawPeer } from "../support/raw_peer.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const isFull = Deno.env.get("VMSG_GUEST_FULL") !== undefined;

/** Starts vmsg with its counters in the test's own directory. */
function start(vmsg: Processes, ...args: string[]): Promise<VmsgProcess> {
  return vmsg.startProgram("env", `XDG_RUNTIME_DIR=${vmsg.directory}`, ...VMSG_COMMAND, ...args);
}

interface Stuck {
  readonly step: string;
  readonly owes: string;
  readonly likely: string;
}

/** The first step that is said to be missing; of all processes of the test, unless some are given. */
async function doctor(vmsg: Processes, of: VmsgProcess[]): Promise<Stuck | undefined> {
  const operands = of.length > 0 ? of.map(({ pid }) => String(pid)) : [`${vmsg.directory}/vmsg`];
  await using process = await start(vmsg, "doctor", "--json", ...operands);
  const { code, stdout, stderr } = await process.ended();
  assertEquals(stderr, []);
  const verdicts: { stuck?: Stuck }[] = JSON.parse(stdout.join("\n"));
  const stuck = verdicts.find((verdict) => verdict.stuck !== undefined)?.stuck;
  assertEquals(code, stuck !== undefined || verdicts.length === 0 ? 1 : 0, stdout.join("\n"));
  return stuck;
}

/** Looks until that is said: a link comes to its stop by and by. */
async function saysStuck(
  vmsg: Processes,
  step: RegExp,
  owes: RegExp | string,
  ...of: VmsgProcess[]
): Promise<void> {
  const endMs = performance.now() + PATIENCE_MS;
  for (;;) {
    const stuck = await doctor(vmsg, of);
    if (stuck !== undefined && step.test(stuck.step)) {
      assertMatch(stuck.owes, new RegExp(owes));
      assert(stuck.likely.length > 20);
      return;
    }
    assert(performance.now() < endMs, `said is ${JSON.stringify(stuck)}, not ${step}`);
  }
}

/** Looks until nothing is said to be stuck: a process that is not scheduled for a while does not read what came. */
async function saysFine(vmsg: Processes, ...of: VmsgProcess[]): Promise<void> {
  let stuck: Stuck | undefined;
  await until(async () => (stuck = await doctor(vmsg, of)) === undefined)
    .catch(() => assertEquals(stuck, undefined));
}

async function startDevice(vmsg: Processes, ...args: string[]): Promise<VmsgProcess> {
  const process = await start(vmsg, "device", ...args);
  await process.waitFor(/waiting for the driver side/);
  return process;
}

async function attached(peer: RawPeer): Promise<void> {
  while (peer.attachments === 0) await peer.reactor.sleep(1);
}

/** Speaks as a driver side of somebody else, then stays attached and says nothing more. */
async function byHand(
  vmsg: Processes,
  device: VmsgProcess,
  speak: (peer: RawPeer) => Promise<void>,
  look: () => Promise<void>,
  dialect: Dialect = "v1",
): Promise<void> {
  using reactor = new Reactor(MONOTONIC);
  using bus = new LinuxUserBus("driver", reactor, {
    name: "linux-user",
    directory: vmsg.directory,
    socket: `${vmsg.directory}/lu.sock`,
    ...{ listen: false, wait: true, reset: false, lock: false, ringPerMessage: false },
    discardOnAttach: false,
    log: () => {},
  });
  const peer = new RawPeer(reactor, bus, codecFor(dialect));
  peer.open();
  // What is there before the device side is ready is not for it.
  const { length } = device.lines;
  await reactor.until(attached(peer));
  await device.waitFor(/the driver side is there/, PATIENCE_MS, length);
  await reactor.until(speak(peer));
  await look();
}

const FEATURES_OK = 11;
const status = (peer: RawPeer, bits: number) =>
  peer.ask(Kind.SET_DEVICE_STATUS, (message) => message.status = bits);

/** Up to the features, if there are words, and then to this status. */
async function bringUp(peer: RawPeer, words: number[] = [], bits = FEATURES_OK): Promise<void> {
  await peer.ask(Kind.GET_DEVICE_INFO);
  for (const step of [0, 1, 3]) await status(peer, step);
  if (words.length === 0) return;
  await peer.ask(Kind.SET_DRIVER_FEATURES, (message) => message.say({ count: 2, words }));
  await status(peer, bits);
}

/** Where the device side has memory of the driver. */
const AT = 0x100_0000;
const VERSION_1 = [0, 1];
/** In the memory, of a queue that lies at its beginning, in words of 16 bits. */
const AVAIL_INDEX = (4096 + 2) / 2;

async function setQueue(peer: RawPeer, at: number): Promise<void> {
  await peer.ask(Kind.SET_VQUEUE, (message) =>
    message.say({
      ...{ index: 0, flags: QUEUE_ENABLED, queueSize: 16 },
      ...{ descriptorAddress: at, driverAddress: at + 4096, deviceAddress: at + 8192 },
    }));
}

processTest("doctor: nothing is stuck between a device and a driver", async (vmsg) => {
  await startDevice(vmsg, ...BUS, "--net", "responder");
  const driver = await start(vmsg, "driver", ...BUS, "--interval", "0.01");
  await driver.waitFor(/icmp_seq=5 /);
  await saysFine(vmsg);
});

processTest("doctor: no device process, no driver process", async (vmsg) => {
  const driver = await start(vmsg, "driver", ...BUS);
  await driver.waitFor(/waiting|connect|nobody/i);
  await saysStuck(vmsg, /^no device side: process \d+ \(vmsg driver\) has heard/, "device side");
  await driver.end("SIGTERM");
  await startDevice(vmsg, ...BUS, "--net", "responder");
  await saysStuck(vmsg, /^no driver side: process \d+ \(vmsg device\) has heard/, "driver side");
});

/** Those that are mixed up with each other. */
const MIXED = isFull ? DIALECTS : ["v1", "v1-2025", "proto"];
/** Of the two of `rfc` a network card comes up all the same; the other finds a device of an odd kind, says so and ends. */
const NOT_STUCK = ["rfc rfc-q", "rfc-q rfc", "proto rfc-q"];
const PAIRS = MIXED.flatMap((driver) => MIXED.map((device) => [driver, device] as const))
  .filter((pair) => pair[0] !== pair[1] && !NOT_STUCK.includes(pair.join(" ")));

/** Both sides with a bus of their own, with captures; older dialects know the driver's memory beforehand. */
async function startPair(vmsg: Processes, driver: string, device: string) {
  const name = `${driver}-${device}`;
  const bus = (dialect: string) => [
    ...["--bus", `linux-user,name=${name},socket=${name}.sock,dialect=${dialect}`],
  ];
  const memory = (dialect: string) =>
    dialect === "v1" ? [] : ["--memory", `file=${name}.ram,at=${AT}`];
  Deno.writeFileSync(`${vmsg.directory}/${name}.ram`, new Uint8Array(1 << 20));
  const captures = ["driver", "device"].map((side) => `${name}.${side}.pcapng`);
  const [ofDriver, ofDevice] = captures.map((file) => ["--capture", file]);
  const deviceArgs = [...bus(device), ...memory(device), ...ofDevice!];
  const deviceSide = await startDevice(vmsg, ...deviceArgs, "--net", "responder");
  const driverArgs = [...bus(driver), ...memory(driver), ...ofDriver!, "--interval", "0.01"];
  const driverSide = await start(vmsg, "driver", ...driverArgs);
  return { captures, deviceSide, driverSide };
}

/** What is said of the captures, after both have ended. */
async function ofCaptures(
  vmsg: Processes,
  { captures, deviceSide, driverSide }: Awaited<ReturnType<typeof startPair>>,
): Promise<string[]> {
  await driverSide.end("SIGTERM");
  await deviceSide.end("SIGTERM");
  const said = await Promise.all(captures.map((file) => vmsg.run("doctor", file)));
  return said.map(({ stdout }) => stdout.join("\n"));
}

processTest("doctor: in each dialect nothing is stuck where it is spoken by both", async (vmsg) => {
  await Promise.all(DIALECTS.map(async (dialect) => {
    const pair = await startPair(vmsg, dialect, dialect);
    await pair.driverSide.waitFor(/icmp_seq=5 /);
    await saysFine(vmsg, pair.deviceSide, pair.driverSide);
    for (const text of await ofCaptures(vmsg, pair)) {
      assertMatch(text, /^dev 0 net: runs\n.*\nnothing is stuck$/, dialect);
    }
  }));
});

processTest("doctor: the sides speak different dialects", async (vmsg) => {
  await Promise.all(
    PAIRS.map(async ([driver, device]) => {
      const pair = await startPair(vmsg, driver, device);
      const understood = /^process \d+ \(vmsg \w+\) (understood only \d+ of|has answered none of)/;
      // It counts.
      await pair.driverSide.waitFor(/./);
      const ends = [pair.deviceSide, pair.driverSide];
      await saysStuck(vmsg, understood, /^(either|device) side$/, ...ends);
      await pair.driverSide.waitFor(/no \S+ answer|did not answer/);
      for (const text of await ofCaptures(vmsg, pair)) {
        assertMatch(text, /stuck: .*\n.*\n.*\n.*dialect/, `${driver} to ${device}`);
      }
    }),
  );
});

processTest("doctor: over ivshmem, peer= is nobody, or somebody else", async (vmsg) => {
  const server = await start(vmsg, "ivshmem-server", "--socket", "iv.sock", "--size", "1M");
  await server.waitFor(/iv\.sock/);
  const bus = (options = "") => ["--bus", `ivshmem,server=iv.sock${options}`];
  const device = await start(vmsg, "device", ...bus(), "--net", "responder");
  await device.waitFor(/waiting for a peer/);
  const nobody = await start(vmsg, "driver", ...bus(",peer=7"));
  await saysStuck(vmsg, /has not found process \d+ \(vmsg device\)/, "driver side");
  await nobody.end("SIGTERM");
  // Peer 2, who hears the doorbell and is not meant.
  const other = await start(vmsg, "device", ...bus(",peer=9"), "--net", "responder");
  const { text } = await other.waitFor(/waiting for peer 9, there are only this side, peer \d+/);
  const peer = /side, peer (\d+)/.exec(text)![1];
  const driver = await start(vmsg, "driver", ...bus(`,peer=${peer}`));
  await driver.waitFor(/waiting for a device side/);
  const rung = /read none: doorbell rung \d+ times, no interrupts taken$/;
  await saysStuck(vmsg, rung, "device side", device, driver);
});

processTest("doctor: a device number that there is not, and no guest", async (vmsg) => {
  await startDevice(vmsg, ...BUS, "--net", "responder");
  const none = /^there is no device 5: the device side has 0$/;
  const driver = await start(vmsg, "driver", ...BUS, "--device", "5");
  await saysStuck(vmsg, none, "driver side");
  await driver.end("SIGTERM");
  const proxy = (number: number) =>
    start(vmsg, "proxy", ...BUS, "--vhost-user", `socket=vu.sock,device=${number}`);
  const wrong = await proxy(5);
  await saysStuck(vmsg, none, "driver side");
  await wrong.end("SIGTERM");
  await proxy(0);
  const nobody = /^nobody has connected to the front end's socket: vhost-user vu\.sock$/;
  await saysStuck(vmsg, nobody, "driver side");
});

processTest("doctor: a side that is stopped, and one that was killed", async (vmsg) => {
  const device = await startDevice(vmsg, ...BUS, "--net", "responder");
  const driver = await start(vmsg, "driver", ...BUS, "--interval", "0.01");
  await driver.waitFor(/icmp_seq=5 /);
  device.kill("SIGSTOP");
  await saysStuck(vmsg, /^process \d+ \(vmsg device\) is stopped$/, "device side");
  device.kill("SIGCONT");
  driver.kill("SIGSTOP");
  await saysStuck(vmsg, /^process \d+ \(vmsg driver\) is stopped$/, "driver side");
  driver.kill("SIGCONT");
  await device.end("SIGKILL");
  await saysStuck(vmsg, /^process \d+ \(vmsg device\) has ended$/, "device side");
});

/** All steps in these; with VMSG_GUEST_FULL in all but `proto`, whose driver says and asks for less. */
const EACH_STEP: readonly Dialect[] = ["v1"];
/** And these, which are told by what is answered. */
const FEW_STEPS = [0, 4, 7];

for (
  const dialect of DIALECTS.filter((dialect) =>
    isFull ? dialect !== "proto" : ["v1", "rfc"].includes(dialect)
  )
) {
  processTest(
    `doctor: a driver of somebody else that stops at each step, ${dialect}`,
    async (vmsg) => {
      Deno.writeFileSync(`${vmsg.directory}/ram`, new Uint8Array(1 << 20));
      const memory = `file=ram,at=${AT}`;
      const device = await startDevice(
        vmsg,
        "--bus",
        `linux-user,socket=lu.sock,dialect=${dialect}`,
        "--memory",
        memory,
        "--device",
        "rng",
      );
      const ready = async (peer: RawPeer) => {
        await bringUp(peer, VERSION_1);
        await setQueue(peer, AT);
      };
      const ring = (word: number, value: number) => {
        const ram = Deno.openSync(`${vmsg.directory}/ram`, { write: true });
        using _ram = ram;
        ram.seekSync(2 * word, Deno.SeekMode.Start);
        ram.writeSync(new Uint8Array(Uint16Array.of(value).buffer));
      };
      const running = async (peer: RawPeer) => {
        await ready(peer);
        await status(peer, 15);
      };
      const steps: [RegExp, owes: string, (peer: RawPeer) => Promise<void>][] = [
        [/^SET_DRIVER_FEATURES never came$/, "driver side", bringUp],
        [/^FEATURES_OK was never set$/, "driver side", (peer) => bringUp(peer, VERSION_1, 3)],
        // Refused: it is a legacy driver.
        [/^FEATURES_OK was never set$/, "driver side", (peer) => bringUp(peer, [1, 0])],
        [/^SET_VQUEUE never came/, "driver side", (peer) => bringUp(peer, VERSION_1)],
        // No memory is there.
        [/^SET_VQUEUE came, and was refused once$/, "device side", async (peer) => {
          await bringUp(peer, VERSION_1);
          await setQueue(peer, 0x900_0000);
        }],
        [/^DRIVER_OK was never set$/, "driver side", ready],
        [/^no queue was ever kicked$/, "driver side", running],
        [
          /^queue 0 was kicked 3 times, and is empty where the device looks$/,
          "either side",
          async (peer) => {
            await running(peer);
            for (let n = 0; n < 3; n++) peer.send(Kind.EVENT_AVAIL);
          },
        ],
        // The driver's index goes on, and nobody says so.
        [/^1 buffers wait in queue 0, and it was never kicked$/, "driver side", async (peer) => {
          await running(peer);
          ring(AVAIL_INDEX, 1);
        }],
        // It does not read what it asked for, and asks on.
        [
          /^process \d+ \(vmsg device\) finds no room for a message/,
          "driver side",
          async (peer) => {
            ring(AVAIL_INDEX, 0);
            await bringUp(peer);
            peer.bus.isPaused = true;
            for (let n = 0; n < 4500; n++) {
              while (peer.bus.claim() < 0) await peer.reactor.sleep(1);
              peer.send(Kind.GET_DEVICE_STATUS);
            }
          },
        ],
      ];
      for (const [n, [step, owes, speak]] of steps.entries()) {
        if (!isFull && !EACH_STEP.includes(dialect) && !FEW_STEPS.includes(n)) continue;
        await byHand(vmsg, device, speak, () => saysStuck(vmsg, step, owes), dialect);
      }
    },
  );
}
