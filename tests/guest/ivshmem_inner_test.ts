/**
 * Confined mode between two machines: all that both see is the ivshmem doorbell's memory. There is no second
 * ivshmem function, no `--memory`, and no huge page.
 *
 *     machine A                          machine B
 *       vmsg device --confined -> NIC      vmsg proxy --confined <- guest inside B, an unmodified kernel
 *                                      or: vmsg driver --confined -> TAP of B's own kernel
 *
 * The guest inside gets its address from A's network, pings, and fetches a file of this host through A's network card.
 * It is User-Mode Linux in the smallest shared memory that works; larger ones differ in where pieces lie, which
 * confined_test.ts has on one host. With VMSG_GUEST_FULL=1 it is every size, and also a microvm under a QEMU with KVM
 * inside B, and A is killed and reset under its pings.
 */

import { createHash } from "node:crypto";

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type InnerGuest, innerMicrovm, innerUml } from "../../scripts/lab/inner.ts";
import { findGuests } from "../../scripts/lab/machines.ts";
import { deviceScript, driverScript, innerScript } from "../../scripts/lab/pair.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import type { Lack } from "../support/needs.ts";
import { delay } from "../support/processes.ts";
import { machineTest } from "./machine_support.ts";
import { type ControlledMachine, PAIR_KIND, type PairTest, withPair } from "./pair_support.ts";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
const SMALLEST = "1M";
const SIZES = [SMALLEST, "4M", "64M"];
const FETCH_BYTES = 4 << 20;
const NICS = [{ netdev: "user" }];
/** From power-on to what a guest inside says last, several times what it takes under emulation. */
const TIMEOUT_MS = 450_000;
const FULL_LACK: readonly Lack[] = FULL ? [] : [{ what: "it runs with VMSG_GUEST_FULL=1" }];

type InnerKind = "uml" | "microvm";

const guests = await findGuests();

/** Why there is no inner guest of a kind here. */
function innerLacks(kind: InnerKind): Lack[] {
  return guests.missing[kind].map((what) => ({ what, requiredBy: "VMSG_GUEST_TESTS" }));
}

/** The files and commands of an inner guest that runs a script. */
function inner(kind: InnerKind, script: string): Promise<InnerGuest> {
  const { uml, microvm } = guests;
  if (kind === "uml" && uml?.kind === "uml") return innerUml(uml, { script });
  if (kind === "microvm" && microvm !== undefined && microvm.kind !== "uml") {
    return innerMicrovm(microvm, { script });
  }
  throw new Error(`no ${kind}`);
}

/** A file on this host's loopback, which machine A's user network reaches as 10.0.2.2. */
class HostFile implements AsyncDisposable {
  readonly #bytes = crypto.getRandomValues(new Uint8Array(65536));
  readonly #whole = new Uint8Array(FETCH_BYTES);
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor() {
    // No two blocks of it are the same.
    for (let at = 0; at < FETCH_BYTES; at += this.#bytes.length) {
      crypto.getRandomValues(this.#bytes);
      this.#whole.set(this.#bytes, at);
    }
    const listening = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
    this.#server = Deno.serve(listening, () => new Response(this.#whole));
  }

  /** Shell: fetches it, and says its checksum. */
  get fetch(): string {
    const url = `http://10.0.2.2:${this.#server.addr.port}/`;
    return `echo "SUM $(wget -q -O - ${url} | sha256sum)"`;
  }

  /** What {@link fetch} says if all is well. */
  get sum(): string {
    return `SUM ${createHash("sha256").update(this.#whole).digest("hex")}  -`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

/** Starts machine A: its card in a bridge with the device's TAP. */
function startDeviceMachine({ startA, kind }: PairTest): Promise<ControlledMachine> {
  const script = deviceScript({ kind, net: "bridge", confined: true });
  return startA({ script, nics: NICS, reboots: true });
}

/** Starts machine B with a guest inside. */
async function startInnerMachine(
  { startB }: PairTest,
  guest: InnerGuest,
): Promise<ControlledMachine> {
  const { memoryMiB: _, ...machine } = guest.machine;
  return await startB({ ...machine, script: innerScript({ guest: guest.boot }) });
}

/** What confined mode is about: neither machine has more than the doorbell. */
async function assertConfined(a: ControlledMachine, b: ControlledMachine): Promise<void> {
  for (const machine of [a, b]) {
    const devices = await machine.run("cat /sys/bus/pci/devices/*/device");
    assertEquals(devices.match(/0x1110/g)?.length, 1, `${machine.name} has one ivshmem function`);
    assertEquals(await machine.run("cat /proc/sys/vm/nr_hugepages"), "0\n");
    const command = await machine.run("tr '\\0' ' ' </proc/$(pidof vmsg)/cmdline");
    assertMatch(command, / --confined/);
    assert(!command.includes("--memory"), command);
  }
}

const PING = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });

function transferTest(kind: InnerKind, size: string): void {
  const isShort = kind === "uml" && size === SMALLEST;
  const lacks = [...isShort ? [] : FULL_LACK, ...innerLacks(kind)];
  const name = `ivshmem inner, ${size}: ${kind} inside B, DHCP, ping and 4 MiB through A's card`;
  machineTest(name, PAIR_KIND, async (test) => {
    await using file = new HostFile();
    const guest = await inner(kind, `${PING}\n${file.fetch}`);
    const { files } = guest;
    const { memoryMiB = 256 } = guest.machine;
    await withPair(test, { confined: true, size, files, memoryMiB }, async (pair) => {
      const starting = startDeviceMachine(pair);
      const b = await startInnerMachine(pair, guest);
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      assertMatch(await b.machine.waitFor(/^LEASE /, TIMEOUT_MS), /^LEASE 10\.0\.2\.15\/24/);
      const startMs = performance.now();
      assertEquals(await b.machine.waitFor(/^PING rc=/, TIMEOUT_MS), "PING rc=0");
      assertEquals(await b.machine.waitFor(/^SUM /, TIMEOUT_MS), file.sum);
      const seconds = (performance.now() - startMs) / 1000;
      console.log(`${size}, ${kind}: from the lease to the last byte ${seconds.toFixed(1)} s`);
      await assertConfined(a, b);
    });
  }, lacks);
}

function ownKernelTest(size: string): void {
  const lacks = size === SMALLEST ? [] : FULL_LACK;
  const name = `ivshmem inner, ${size}: B's own kernel, DHCP, ping and 4 MiB through A's card`;
  machineTest(name, PAIR_KIND, async (test) => {
    await using file = new HostFile();
    await withPair(test, { confined: true, size }, async (pair) => {
      const starting = startDeviceMachine(pair);
      const b = await pair.startB({ script: driverScript({ confined: true, then: "" }) });
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      assertMatch(await b.machine.waitFor(/^LEASE /, TIMEOUT_MS), /^LEASE 10\.0\.2\.15\/24/);
      assertMatch(await b.run("pings 3 10.0.2.2"), / 3 packets received/);
      assertEquals((await b.run(file.fetch)).trimEnd(), file.sum);
      await assertConfined(a, b);
    });
  }, lacks);
}

/** Pings that must be answered before, between and after. */
const ANSWERS = 10;

function restartTest(kind: InnerKind): void {
  const name =
    `ivshmem inner, ${SMALLEST}: ${kind} inside B goes on when A's vmsg is killed and A is reset`;
  machineTest(name, PAIR_KIND, async (test) => {
    const pings = 'ping -i 0.1 10.0.2.2 | while read -r line; do echo "LATER $line"; done';
    const guest = await inner(kind, `${PING}\n${pings}`);
    const { files } = guest;
    const { memoryMiB = 256 } = guest.machine;
    await withPair(test, { confined: true, size: SMALLEST, files, memoryMiB }, async (pair) => {
      const starting = startDeviceMachine(pair);
      const b = await startInnerMachine(pair, guest);
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      const answers = () => b.count(/^LATER \d+ bytes from 10\.0\.2\.2: /);
      const goesOn = async (what: string) => {
        const [before, startMs] = [answers(), performance.now()];
        while (answers() < before + ANSWERS) {
          assert(
            performance.now() - startMs < TIMEOUT_MS,
            `${what}: the inner guest's pings stopped`,
          );
          await delay(100);
        }
        const seconds = (performance.now() - startMs) / 1000;
        console.log(`${kind}, ${what}: ${ANSWERS} more answers in ${seconds.toFixed(1)} s`);
      };
      assertEquals(await b.machine.waitFor(/^PING rc=/, TIMEOUT_MS), "PING rc=0");
      await goesOn("at first");
      const pid = await b.run("pidof vmsg");
      await a.kill("vmsg");
      // What was on its way to the console.
      await delay(1000);
      const silent = answers();
      await delay(500);
      assertEquals(answers(), silent, "nobody should answer");
      await a.run("sh /tmp/start.sh >/dev/console 2>&1 &");
      await goesOn("A's vmsg killed");
      await a.reset();
      await goesOn("A reset");
      assertEquals(await b.run("pidof vmsg"), pid);
      assertEquals(b.count(/^INTERFACE /), 1, "the inner guest booted once");
    });
  }, [...FULL_LACK, ...innerLacks(kind)]);
}

for (const size of SIZES) {
  transferTest("uml", size);
  transferTest("microvm", size);
  ownKernelTest(size);
}
restartTest("uml");
restartTest("microvm");
