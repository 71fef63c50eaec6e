/**
 * Who may be killed under whom: each front end, and SIGKILL for the device, the proxy or the front end
 * itself, then started again. Every cell has one of two outcomes, and the test says which:
 *
 *     goes on           traffic goes on by itself, and from the first answer on nothing is lost
 *     needs a restart   the guest's card is dead until the guest is restarted; then all is well
 *
 * A killed front end takes its guest along; there "goes on" means that the next one is served by the
 * same proxy and device, from its first ping on.
 *
 * A device that takes over goes on from where the rings are (SET_VQUEUE_STATE with the base): the proxy
 * reads the used index when the device died, QEMU sends it when the proxy died. In confined mode the guest's ring
 * goes on in the same way, but the device has a shadow of it, which is a new one each time.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Guest, GuestKind } from "../../scripts/lab/machines.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import { type Answer, answersIn, assertNoneLostSince, sinceReturn } from "../support/pings.ts";
import {
  delay,
  PATIENCE_MS,
  type Processes,
  processTest,
  type VmsgProcess,
} from "../support/processes.ts";
import type { Mode } from "./modes.ts";
import { GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";

type Outcome = "goes on" | "needs a restart";
type Victim = "device" | "proxy" | "front end";

interface FrontEndKind {
  readonly name: string;
  readonly guest: GuestKind;
  /** Words behind `socket=vu.sock` of --vhost-user. */
  readonly proxy: string;
  readonly boot: (socket: string) => Partial<Parameters<GuestTest["boot"]>[0]>;
  readonly outcomes: Readonly<Record<Victim, Outcome>>;
}

const FRONT_ENDS: readonly FrontEndKind[] = [
  {
    name: "QEMU that connects, reconnect=1",
    guest: "microvm",
    proxy: "",
    boot: (socket) => ({ socket, reconnect: true }),
    outcomes: { "device": "goes on", "proxy": "goes on", "front end": "goes on" },
  },
  {
    name: "QEMU that listens, server=on",
    guest: "microvm",
    proxy: ",connect",
    boot: (socket) => ({ extraArgs: listeningCard(socket) }),
    outcomes: { "device": "goes on", "proxy": "goes on", "front end": "goes on" },
  },
  {
    // Its rings are split unless it is told, those of User-Mode Linux packed wherever they can be.
    name: "QEMU with packed=on",
    guest: "microvm",
    proxy: "",
    boot: (socket) => ({
      socket,
      reconnect: true,
      extraArgs: ["-global", "virtio-net-device.packed=on"],
    }),
    outcomes: { "device": "goes on", "proxy": "goes on", "front end": "goes on" },
  },
  {
    name: "User-Mode Linux",
    guest: "uml",
    proxy: "",
    boot: (socket) => ({ socket }),
    outcomes: { "device": "goes on", "proxy": "needs a restart", "front end": "goes on" },
  },
];

function listeningCard(socket: string): string[] {
  return [
    ...["-chardev", `socket,id=c0,path=${socket},server=on,wait=off`],
    ...["-netdev", "vhost-user,id=n0,chardev=c0"],
    ...["-global", "virtio-mmio.force-legacy=false"],
    ...["-device", "virtio-net-device,netdev=n0"],
  ];
}

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** Broadcast frames a second, so that the receive ring is never at rest when somebody is killed. */
const FLOOD = 300;
/** How long the victim is missing, at least. */
const MISSING_MS = 300;
/** Answers before the kill, and after the return. */
const BEFORE = 10;
const AFTER = 15;

/** Waits until something holds, looking often; false if it does not in time. */
async function until(holds: () => boolean, timeoutMs: number): Promise<boolean> {
  const deadlineMs = performance.now() + timeoutMs;
  while (!holds()) {
    if (performance.now() > deadlineMs) return false;
    await delay(10);
  }
  return true;
}

/** Asserts that it goes on; returns what to print. */
async function assertGoesOn(answers: () => Answer[], sinceMs: number): Promise<string> {
  const isBack = await until(() => sinceReturn(answers(), sinceMs).length >= AFTER, PATIENCE_MS);
  assert(isBack, "it did not go on");
  const { gapMs, lost } = assertNoneLostSince(answers(), sinceMs);
  return `gap ${gapMs} ms, ${lost} pings of 100 ms lost in it`;
}

/** A guest that got its address and pings on and on. */
interface PingingGuest {
  readonly guest: Guest;
  readonly answers: Answer[];
}

async function bootPinging(
  test: GuestTest,
  { guest: kind, boot }: FrontEndKind,
): Promise<PingingGuest> {
  const answers: Answer[] = [];
  // sed would hold each line back until the next one comes.
  const script = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 1 }) + `
ping -i 0.1 10.0.2.2 2>&1 | while read -r line; do echo "LATER $line"; done
echo CARDS $(ls /sys/class/net)
`;
  const guest = await test.boot({
    ...boot(`${test.vmsg.directory}/vu.sock`),
    script,
    onLine: (text) => {
      if (!text.startsWith("LATER ")) return;
      answers.push(...answersIn([{ text, atMs: performance.now() }]));
    },
  });
  assertEquals(await guest.waitFor(/^PING rc=/, GUEST_TIMEOUT_MS[kind]), "PING rc=0");
  assert(await until(() => answers.length >= BEFORE, PATIENCE_MS), "the guest does not ping");
  assertEquals([answers.length, answers[0]!.sequence], [answers.at(-1)!.sequence + 1, 0]);
  return { guest, answers };
}

/** Where a device was told to begin with each queue. */
function bases(proxy: VmsgProcess, after: number): number[] {
  const found: number[] = [0, 0];
  for (const { text } of proxy.lines.slice(after)) {
    const match = /SET_VQUEUE_STATE\? .*queue ([01]) base (\d+)/.exec(text);
    if (match !== null) found[Number(match[1])] = Number(match[2]);
  }
  return found;
}

class Cell {
  device!: VmsgProcess;
  proxy!: VmsgProcess;

  constructor(
    readonly vmsg: Processes,
    readonly front: FrontEndKind,
    readonly mode: Mode,
  ) {}

  async startDevice(): Promise<void> {
    const net = `responder,flood=${FLOOD}`;
    this.device = await this.vmsg.start("device", ...BUS, "--net", net, ...this.mode.device);
  }

  /** The socket of ours must be there before a front end that connects. */
  async startProxy(): Promise<void> {
    const socket = `socket=vu.sock${this.front.proxy}`;
    const args = ["--vhost-user", socket, "--trace", ...this.mode.driverSide];
    this.proxy = await this.vmsg.start("proxy", ...BUS, ...args);
    await this.proxy.waitFor(/vhost-user .*: (waiting for a front end|a front end is there)/);
  }

  async killAndRestart(victim: "device" | "proxy"): Promise<void> {
    await this[victim].end("SIGKILL");
    await delay(MISSING_MS);
    await (victim === "device" ? this.startDevice() : this.startProxy());
  }
}

/** Kills the device or the proxy, and looks what becomes of the guest. */
async function killBehindGuest(
  test: GuestTest,
  cell: Cell,
  victim: "device" | "proxy",
): Promise<[Outcome, string]> {
  const { guest, answers } = await bootPinging(test, cell.front);
  const { length } = victim === "device" ? cell.proxy.lines : [];
  const before = answers.length;
  await cell.killAndRestart(victim);
  const sinceMs = performance.now();
  const back = () => answers.filter(({ atMs }) => atMs > sinceMs).length;
  const isDead = () => /^CARDS lo$/m.test(guest.console());
  await until(() => back() > 0 || isDead(), PATIENCE_MS);
  if (back() > 0) {
    const figures = await assertGoesOn(() => answers, sinceMs);
    const [receive = 0, transmit = 0] = bases(cell.proxy, length);
    if (cell.mode.isConfined) {
      assertEquals([receive, transmit], [0, 0], "a shadow is a new ring");
    } else {
      // DHCP and the first ping are in the rings as well.
      assert(receive >= before && transmit >= before, `bases ${receive}, ${transmit} of ${before}`);
    }
    return ["goes on", `${figures}; queues went on from ${receive} and ${transmit}`];
  }
  assert(isDead(), `neither answers (${back()}) nor a card that is gone`);
  assertMatch(guest.console(), /^LATER ping: sendto: Network is (unreachable|down)/m);
  const next = await bootPinging(test, cell.front);
  return ["needs a restart", `the next guest pings, ${next.answers.length} of as many answered`];
}

async function killGuest(test: GuestTest, cell: Cell): Promise<[Outcome, string]> {
  const { guest } = await bootPinging(test, cell.front);
  const [proxyBefore, deviceBefore] = [cell.proxy.lines.length, cell.device.lines.length];
  await guest[Symbol.asyncDispose]();
  await cell.proxy.waitFor(
    /the front end hung up; waiting for a front end/,
    PATIENCE_MS,
    proxyBefore,
  );
  const { answers } = await bootPinging(test, cell.front);
  assert(await until(() => answers.length >= BEFORE + AFTER, PATIENCE_MS));
  assertEquals(cell.device.lines.length, deviceBefore, "the device noticed something");
  return ["goes on", `the next guest pings, ${answers.length} of as many answered`];
}

/** Registers the tests of the front ends that a kind of guest has. */
export function restartTests(kind: GuestKind, mode: Mode): void {
  for (const front of FRONT_ENDS.filter(({ guest }) => guest === kind)) {
    for (const victim of ["device", "proxy", "front end"] as const) {
      const expected = front.outcomes[victim];
      guestTest(
        `${mode.prefix}restart: ${front.name}; ${victim} killed: ${expected}`,
        front.guest,
        async (test) => {
          const cell = new Cell(test.vmsg, front, mode);
          await cell.startDevice();
          await cell.startProxy();
          const [outcome, figures] = victim === "front end"
            ? await killGuest(test, cell)
            : await killBehindGuest(test, cell, victim);
          console.log(`${mode.prefix}${front.name}; ${victim} killed: ${outcome}; ${figures}`);
          assertEquals(outcome, expected);
        },
      );
    }
  }
}

/** Registers the tests of our own driver. */
export function driverRestartTests(mode: Mode): void {
  const startDriver = (vmsg: Processes) =>
    vmsg.start("driver", ...BUS, "--interval", "0.1", ...mode.driverSide);
  const startDevice = (vmsg: Processes) => vmsg.start("device", ...BUS, ...mode.device);

  processTest(`${mode.prefix}restart: vmsg driver; device killed: goes on`, async (vmsg) => {
    const driver = await startDriver(vmsg);
    const device = await startDevice(vmsg);
    const answers = () => answersIn(driver.lines);
    assert(await until(() => answers().length >= BEFORE, PATIENCE_MS));
    await device.end("SIGKILL");
    await delay(MISSING_MS);
    await startDevice(vmsg);
    const figures = await assertGoesOn(answers, performance.now());
    console.log(`${mode.prefix}vmsg driver; device killed: goes on; ${figures}`);
  });

  processTest(`${mode.prefix}restart: vmsg driver; front end killed: goes on`, async (vmsg) => {
    await startDevice(vmsg);
    const first = await startDriver(vmsg);
    assert(await until(() => answersIn(first.lines).length >= BEFORE, PATIENCE_MS));
    await first.end("SIGKILL");
    const next = await startDriver(vmsg);
    assert(
      await until(() => answersIn(next.lines).length >= AFTER, PATIENCE_MS),
      "the next gets no answer",
    );
    const answers = answersIn(next.lines);
    assertEquals(answers.at(-1)!.sequence - answers[0]!.sequence + 1, answers.length);
    console.log(
      `${mode.prefix}vmsg driver; front end killed: goes on; the next one pings, none lost`,
    );
  });
}
