/**
 * What a guest does with its ivshmem functions for tests/guest/ivshmem_end_test.ts: opens, plays, prints.
 *
 * Each argument is one action, its words separated by commas, and prints lines that the test looks for:
 *
 *     open,WAY,ADDRESS                       opens and says what it is like, or which error came
 *     busy,WAY,ADDRESS                       opens, and has another process do the same meanwhile
 *     memory,WAY,ADDRESS,TEXT,AT             shows the text at 0, writes TEXT at a byte
 *     play,WAY,ADDRESS,ROLE,GAME,ROUNDS      ping or pong with the end that plays the other role
 *     lend,WAY,ADDRESS                       lends a vector to an eventfd, and rings itself by it
 *     both,ADDRESS,ADDRESS                   maps two functions of one group through vfio
 *     intx,ADDRESS                           has QEMU's device edu interrupt, which does it by INTx
 *     uio,ADDRESS                            the same by uio_pci_generic and a made-up sysfs, in which edu
 *                                            looks like an ivshmem function
 *     write,PATH,TEXT                        writes an attribute of sysfs
 *     driver,ADDRESS                         shows the driver of a function, and the override
 *     doctor                                 what vmsg doctor says of ivshmem and vfio
 *
 * A way is vfio, bind (vfio, binds the function first) or sysfs. Games use words of their own.
 */

import { LinuxError, VmsgError } from "../../src/linux/errors.ts";
import { examine } from "../../src/cli/doctor.ts";
import { clearEventFd, createEventFd } from "../../src/linux/eventfd.ts";
import { openFile } from "../../src/linux/fd.ts";
import { mapAnonymous, mapShared } from "../../src/linux/mapping.ts";
import { PeerEvent } from "../../src/linux/peer_event.ts";
import { EPOLLIN, Reactor } from "../../src/linux/reactor.ts";
import { PciFunction, writeAttribute } from "../../src/linux/sysfs.ts";
import { VFIO_PCI_INTX_IRQ_INDEX, VfioDevice } from "../../src/linux/vfio.ts";
import { bindToVfio, vfioGroup } from "../../src/ivshmem/binding.ts";
import type { IvshmemEnd } from "../../src/ivshmem/end.ts";
import type { FunctionMemory } from "../../src/ivshmem/function.ts";
import { openSysfsEnd, openSysfsMemory } from "../../src/ivshmem/sysfs_end.ts";
import { openVfioEnd, openVfioMemory } from "../../src/ivshmem/vfio_end.ts";
import { loadAcquire32, storeRelease32 } from "../../src/memory/mod.ts";
import { createLog } from "../../src/observe/log.ts";

/** In the first words of a game: the ids, marked. */
const READY = 0x5bc0_0000;
const READY_MASK = 0xfff0_0000;
const GAME_WORDS = 16;
/** In a game: the round that ping is in, and the one that pong has answered. */
const ROUND = 2;
const ANSWER = 3;
const OVER = 0xffff_ffff;
/** Rings may be lost: who sees no effect rings again. */
const RING_AGAIN_MS = 500;
const GIVE_UP_MS = 60_000;

const log = createLog("end", "debug", console.log);

function openEnd(way: string, address: string): IvshmemEnd {
  if (way === "sysfs") return openSysfsEnd(address, { log });
  return openVfioEnd(address, { log, bind: way === "bind" });
}

function openMemory(way: string, address: string): FunctionMemory {
  if (way === "sysfs") return openSysfsMemory(address);
  if (way === "uncached") return openSysfsMemory(address, { writeCombining: false });
  return openVfioMemory(address, { log, bind: way === "bind" });
}

function open(way: string, address: string): void {
  using end = openEnd(way, address);
  const { description, id, memory, interrupts, isDeviceMemory } = end;
  console.log(`OPENED ${way} ${description} id=${id} size=${memory.size}`);
  console.log(`LIKE interrupts=${interrupts} device-memory=${isDeviceMemory}`);
  using pinned = mapAnonymous(1 << 20);
  const before = lockedMemory();
  console.log(
    `PINNED ${end.pin(pinned.address, pinned.size) !== undefined} ${before} -> ${lockedMemory()}`,
  );
}

/** A peer may ring itself. */
async function lend(way: string, address: string): Promise<void> {
  using end = openEnd(way, address);
  using one = new PeerEvent(createEventFd(), "wait", "one");
  using other = new PeerEvent(createEventFd(), "wait", "other");
  using notAny = openFile("/dev/null");
  const seen = async () => {
    end.ringVector!(end.id, 1);
    // Which of them it was, and nobody else.
    for (let n = 0; n < GIVE_UP_MS / 10; n++) {
      const counts = [one, other].map((event) => event.clear() ? 1 : 0);
      if (counts.some((count) => count > 0)) return counts.join(" ");
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return "none";
  };
  const refused = end.lendVector!(notAny) === undefined;
  const lent = end.lendVector!(one.fd)!;
  console.log(`LENT ${lent.number}, refused ${refused}, none left ${!end.lendVector!(other.fd)}`);
  const first = await seen();
  const moved = lent.lendTo(other.fd);
  const second = await seen();
  // It is given back then: the kernel has taken it from whoever had it.
  console.log(`RANG ${first}, moved ${moved}: ${second}, refused ${!lent.lendTo(notAny)}`);
  lent[Symbol.dispose]();
  using again = end.lendVector!(one.fd)!;
  console.log(`AGAIN ${again.number}: ${await seen()}`);
}

function lockedMemory(): string {
  return /VmLck:\s*(.*)/.exec(Deno.readTextFileSync("/proc/self/status"))?.[1] ?? "?";
}

async function busy(way: string, address: string): Promise<void> {
  using _end = openEnd(way, address);
  await new Deno.Command(Deno.execPath(), { args: [`open,${way},${address}`] }).spawn().status;
}

function memory(way: string, address: string, text: string, at: number): void {
  using mapped = openMemory(way, address);
  const bytes = new Uint8Array(mapped.buffer);
  const shown = new TextDecoder().decode(bytes.slice(0, 32)).replace(/\0.*/, "");
  console.log(`MEMORY ${way} ${mapped.size} device-memory=${mapped.isDeviceMemory} "${shown}"`);
  bytes.set(new TextEncoder().encode(text), at);
}

function interruptLines(): void {
  const lines = Deno.readTextFileSync("/proc/interrupts").split("\n");
  const wanted = lines.filter((line) => line.includes("vfio"));
  for (const line of wanted) console.log(`INTERRUPTS ${line.trim().replaceAll(/\s+/g, " ")}`);
}

class Player {
  rings = 0;
  again = 0;
  readonly #words: Uint32Array;
  readonly #timer;
  #wake: (() => void) | undefined;

  constructor(
    readonly reactor: Reactor,
    readonly end: IvshmemEnd,
    readonly base: number,
  ) {
    this.#words = new Uint32Array(end.memory.buffer);
    this.#timer = reactor.timer(() => this.#wake?.());
    end.open(reactor, {
      rung: () => {
        this.rings++;
        this.#wake?.();
      },
      joined: () => {},
      left: () => {},
    });
  }

  get(word: number): number {
    return loadAcquire32(this.#words, this.base + word);
  }

  set(word: number, value: number): void {
    storeRelease32(this.#words, this.base + word, value);
  }

  /** Waits until a word is as wanted; rings the peer when that takes long, and looks when rung. */
  async until(wanted: () => boolean, peer?: number): Promise<void> {
    const start = performance.now();
    let rungMs = start;
    while (!wanted()) {
      const now = performance.now();
      if (now - start > GIVE_UP_MS) throw new Error(`gave up after ${GIVE_UP_MS} ms`);
      if (peer !== undefined && now - rungMs > RING_AGAIN_MS) {
        rungMs = now;
        this.again++;
        this.end.ring(peer);
      }
      const { promise, resolve } = this.reactor.defer<void>();
      this.#wake = resolve;
      this.#timer.arm(this.end.interrupts && peer !== undefined ? RING_AGAIN_MS : 1);
      await promise;
    }
    this.#timer.cancel();
  }
}

async function meet(player: Player, me: number): Promise<number> {
  const isReady = (value: number) => ((value & READY_MASK) >>> 0) === READY;
  player.set(me, (READY | player.end.id) >>> 0);
  await player.until(() => isReady(player.get(1 - me)));
  return player.get(1 - me) & 0xffff;
}

async function ping(player: Player, rounds: number): Promise<void> {
  const peer = await meet(player, 0);
  console.log(`MET id=${player.end.id} peer=${peer}`);
  const times: number[] = [];
  for (let round = 1; round <= rounds; round++) {
    const start = performance.now();
    player.set(ROUND, round);
    player.end.ring(peer);
    await player.until(() => player.get(ANSWER) === round, peer);
    times.push(performance.now() - start);
  }
  player.set(ROUND, OVER);
  player.end.ring(peer);
  times.sort((a, b) => a - b);
  const us = (ms: number) => (ms * 1000).toFixed(0);
  console.log(
    `PING rounds=${rounds} rung=${player.rings} again=${player.again} ` +
      `least=${us(times[0]!)} median=${us(times[times.length >> 1]!)} most=${us(times.at(-1)!)} us`,
  );
}

async function pong(player: Player): Promise<void> {
  const peer = await meet(player, 1);
  console.log(`MET id=${player.end.id} peer=${peer}`);
  let answered = 0;
  while (player.get(ROUND) !== OVER) {
    await player.until(() => player.get(ROUND) !== player.get(ANSWER), peer);
    const round = player.get(ROUND);
    if (round === OVER) break;
    player.set(ANSWER, round);
    player.end.ring(peer);
    answered++;
  }
  console.log(`PONG answered=${answered} rung=${player.rings} again=${player.again}`);
}

async function play(
  way: string,
  address: string,
  role: string,
  game: number,
  rounds: number,
): Promise<void> {
  using reactor = new Reactor();
  using end = openEnd(way, address);
  interruptLines();
  const player = new Player(reactor, end, GAME_WORDS * (game + 1));
  await reactor.until(role === "ping" ? ping(player, rounds) : pong(player));
  interruptLines();
}

/** Registers of QEMU's device edu: what is written raises an interrupt, and lowers it. */
const EDU_RAISE = 0x60;
const EDU_LOWER = 0x64;
const EDU_INTERRUPTS = 5;

const UIO_DRIVER = "uio_pci_generic";

async function intx(address: string): Promise<void> {
  const pci = new PciFunction(address);
  using _binding = bindToVfio(pci, log);
  using device = new VfioDevice(pci, vfioGroup(pci));
  const registers = device.region(0);
  using fd = createEventFd();
  using reactor = new Reactor();
  device.setEventFds(VFIO_PCI_INTX_IRQ_INDEX, [fd]);
  let interrupts = 0;
  const { promise, resolve } = reactor.defer<void>();
  reactor.watch(fd, EPOLLIN, () => {
    clearEventFd(fd);
    device.write32(registers, EDU_LOWER, 1);
    interrupts++;
    if (interrupts === EDU_INTERRUPTS) resolve();
    else device.write32(registers, EDU_RAISE, 1);
    device.unmask(VFIO_PCI_INTX_IRQ_INDEX);
  });
  device.write32(registers, EDU_RAISE, 1);
  await reactor.until(Promise.race([promise, reactor.sleep(GIVE_UP_MS)]));
  reactor.unwatch(fd);
  console.log(`INTX ${interrupts} of ${EDU_INTERRUPTS}`);
}

async function uio(address: string): Promise<void> {
  const real = new PciFunction(address).path;
  const sysfs = Deno.makeTempDirSync();
  const fake = `${sysfs}/bus/pci/devices/${address}`;
  Deno.mkdirSync(fake, { recursive: true });
  for (const name of ["driver", "uio", "config", "resource0"]) {
    Deno.symlinkSync(name === "driver" ? UIO_DRIVER : `${real}/${name}`, `${fake}/${name}`);
  }
  const bar0 = Deno.readTextFileSync(`${real}/resource`).split("\n")[0]!;
  const resources = [bar0, "0 0 0", "0x100000 0x100fff 0x200", "0 0 0", "0 0 0", "0 0 0"];
  const files = { vendor: "0x1af4", device: "0x1110", resource: resources.join("\n") };
  for (const [name, text] of Object.entries(files)) Deno.writeTextFileSync(`${fake}/${name}`, text);
  Deno.writeFileSync(`${fake}/resource2`, new Uint8Array(4096));

  using reactor = new Reactor();
  using file = openFile(`${real}/resource0`);
  using mapping = mapShared(file.number, 4096);
  const registers = new Uint32Array(mapping.buffer);
  using end = openSysfsEnd(address, { log, sysfs });
  let rings = 0;
  const { promise, resolve } = reactor.defer<void>();
  const rung = () => {
    registers[EDU_LOWER >> 2] = 1;
    rings++;
    if (rings === EDU_INTERRUPTS) resolve();
    else registers[EDU_RAISE >> 2] = 1;
  };
  end.open(reactor, { rung, joined: () => {}, left: () => {} });
  registers[EDU_RAISE >> 2] = 1;
  await reactor.until(Promise.race([promise, reactor.sleep(GIVE_UP_MS)]));
  console.log(`UIO interrupts=${end.interrupts} ${rings} of ${EDU_INTERRUPTS}`);
}

function both(one: string, other: string): void {
  using first = openVfioMemory(one, { log, bind: true });
  {
    using second = openVfioMemory(other, { log, bind: true });
    console.log(`BOTH ${first.size} ${second.size}`);
  }
  new Uint8Array(first.buffer)[0] = 1;
}

function driver(address: string): void {
  const pci = new PciFunction(address);
  console.log(`DRIVER ${pci.address} ${pci.driver} ${pci.attribute("driver_override")}`);
}

async function doctor(): Promise<void> {
  for (const { name, state, detail, advice } of await examine()) {
    if (name !== "ivshmem" && name !== "vfio") continue;
    console.log(`DOCTOR ${name} ${state} ${detail}${advice === undefined ? "" : `: ${advice}`}`);
  }
}

async function act(words: readonly string[]): Promise<void> {
  const [action = "", way = "", address = "", third = "", fourth = "0", fifth = "0"] = words;
  if (action === "open") open(way, address);
  else if (action === "busy") await busy(way, address);
  else if (action === "memory") memory(way, address, third, Number(fourth));
  else if (action === "play") await play(way, address, third, Number(fourth), Number(fifth));
  else if (action === "intx") await intx(way);
  else if (action === "uio") await uio(way);
  else if (action === "lend") await lend(way, address);
  else if (action === "both") both(way, address);
  else if (action === "write") writeAttribute(way, address);
  else if (action === "driver") driver(way);
  else if (action === "doctor") await doctor();
  else throw new Error(`no action ${action}`);
}

for (const argument of Deno.args) {
  console.log(`DO ${argument}`);
  try {
    await act(argument.split(","));
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    console.log(
      `${error instanceof LinuxError ? "LINUX" : "ERROR"} ${error.code}: ${error.message}`,
    );
  }
}
