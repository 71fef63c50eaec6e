/**
 * Stock QEMU's ivshmem-doorbell as a peer of our server, next to an end of ours: QEMU's registers are read
 * and written by qtest, in place of a guest. Its doorbell rings us, our ring sets a pending bit of its
 * MSI-X table, and its memory is ours.
 */

import { assert, assertEquals } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { MONOTONIC } from "../../src/linux/clock.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { connectUnix, type UnixStream } from "../../src/linux/unix_socket.ts";
import { IVSHMEM_DEVICE, IVSHMEM_VENDOR, Register } from "../../src/ivshmem/end.ts";
import { openServerEnd } from "../../src/ivshmem/server_end.ts";
import { guestlessTest } from "../guest/support.ts";
import { keptLog, TIMEOUT_MS, wait } from "../ivshmem/support.ts";
import { PATIENT } from "../support/patient_clock.ts";

const bytes = allocate(4096);

/** A QEMU whose processor is stopped, and which does as it is told: docs/devel/testing/qtest. */
class Qtest implements Disposable {
  #text = "";

  constructor(private readonly stream: UnixStream, private readonly reactor: Reactor) {}

  /** Connects to a QEMU that is about to listen. */
  static async connect(path: string, reactor: Reactor): Promise<Qtest> {
    let stream: UnixStream | undefined;
    await wait(reactor, () => (stream = connectUnix(path)) !== undefined);
    return new Qtest(stream!, reactor);
  }

  async #command(line: string): Promise<string> {
    bytes.bytes.set(new TextEncoder().encode(`${line}\n`));
    assertEquals(this.stream.send(bytes.address, line.length + 1), line.length + 1);
    await wait(this.reactor, () => {
      const received = this.stream.receive(bytes.address, 4096);
      assert(received !== 0, "QEMU closed the qtest socket");
      if (received > 0) this.#text += new TextDecoder().decode(bytes.bytes.slice(0, received));
      return this.#text.includes("\n");
    });
    const answer = this.#text.slice(0, this.#text.indexOf("\n"));
    this.#text = this.#text.slice(answer.length + 1);
    assert(answer.startsWith("OK"), `${line}: ${answer}`);
    return answer.slice(3);
  }

  async read32(address: number): Promise<number> {
    return Number(await this.#command(`readl ${address}`));
  }

  async write32(address: number, value: number): Promise<void> {
    await this.#command(`writel ${address} ${value}`);
  }

  async #configAddress(device: number, at: number): Promise<void> {
    await this.#command(`outl ${0xcf8} ${0x8000_0000 + device * 2048 + (at & ~3)}`);
  }

  async readConfig(device: number, at: number): Promise<number> {
    await this.#configAddress(device, at);
    return Number(await this.#command(`inl ${0xcfc}`));
  }

  async writeConfig(device: number, at: number, value: number): Promise<void> {
    await this.#configAddress(device, at);
    await this.#command(`outl ${0xcfc} ${value}`);
  }

  [Symbol.dispose](): void {
    this.stream[Symbol.dispose]();
  }
}

const DEVICE = 4;
const BAR = [0xe000_0000, 0xe001_0000, 0xe100_0000] as const;
const COMMAND = 0x04;
const MEMORY_AND_MASTER = 0x06;
const CAPABILITIES = 0x34;
const MSIX = 0x11;
const MSIX_ENABLE = 0x8000_0000;

/** Gives the function addresses and switches it on, as a firmware and a driver do; the PBA's address. */
async function setUp(qtest: Qtest): Promise<number> {
  const id = await qtest.readConfig(DEVICE, 0);
  assertEquals(id, IVSHMEM_DEVICE * 0x10000 + IVSHMEM_VENDOR);
  for (const [index, address] of BAR.entries()) {
    await qtest.writeConfig(DEVICE, 0x10 + 4 * index, address);
  }
  await qtest.writeConfig(DEVICE, COMMAND, MEMORY_AND_MASTER);
  let at = (await qtest.readConfig(DEVICE, CAPABILITIES)) & 0xff;
  while (((await qtest.readConfig(DEVICE, at)) & 0xff) !== MSIX) {
    at = ((await qtest.readConfig(DEVICE, at)) >>> 8) & 0xff;
    assert(at !== 0, "no MSI-X capability");
  }
  // All vectors are masked after a reset, so what rings them is seen as pending.
  await qtest.writeConfig(DEVICE, at, MSIX_ENABLE);
  const pba = await qtest.readConfig(DEVICE, at + 8);
  return BAR[pba & 7]! + (pba & ~7);
}

async function becomes(qtest: Qtest, address: number, value: number): Promise<void> {
  const endMs = MONOTONIC.now() + TIMEOUT_MS;
  while ((await qtest.read32(address)) !== value) {
    assert(MONOTONIC.now() < endMs, `${address} never was ${value}`);
  }
}

guestlessTest(
  "interop: stock QEMU's ivshmem-doorbell and an end of ours ring each other through our server",
  { programs: { "qemu-system-x86_64": "qemu-system-x86" } },
  async ({ directory, vmsg }) => {
    const server = await vmsg.start("ivshmem-server", "--socket", "iv.sock", "--size", "1M");
    await server.waitFor(/waiting for peers/);
    using reactor = new Reactor();
    const lines: string[] = [];
    using end = openServerEnd(`${directory}/iv.sock`, { log: keptLog(lines), clock: PATIENT });
    const news: string[] = [];
    let rings = 0;
    end.open(reactor, {
      rung: () => rings++,
      joined: (peer) => news.push(`+${peer}`),
      left: (peer) => news.push(`-${peer}`),
    });
    const until = (condition: () => boolean) => reactor.until(wait(reactor, condition));

    const startQemu = (name: string) =>
      vmsg.startProgram(
        "qemu-system-x86_64",
        ...["-M", "pc,accel=tcg", "-S", "-nodefaults", "-display", "none"],
        ...["-qtest", `unix:${name}.sock,server=on,wait=off`, "-qtest-log", "none"],
        ...["-chardev", "socket,path=iv.sock,id=iv"],
        ...["-device", `ivshmem-doorbell,vectors=2,chardev=iv,addr=${DEVICE}`],
      );
    const qemu = await startQemu("qtest");
    await until(() => news.length === 1);
    assertEquals([end.id, news], [0, ["+1"]]);
    using qtest = await reactor.until(Qtest.connect(`${directory}/qtest.sock`, reactor));
    const register = (offset: number) => BAR[0] + offset;
    // Its doorbell.
    const ring = (peer: number, vector: number) =>
      qtest.write32(register(Register.DOORBELL), peer * 65536 + vector);
    await reactor.until((async () => {
      const pending = await setUp(qtest);
      assertEquals(await qtest.read32(register(Register.IV_POSITION)), 1);

      // Both vectors of ours, and nobody else's.
      for (const [vector, expected] of [[0, 1], [1, 2], [0, 3]] as const) {
        await ring(0, vector);
        await wait(reactor, () => rings === expected);
      }
      await ring(7, 0);
      await ring(0, 2);
      // QEMU has answered both writes, so whatever they rang has been rung.
      await reactor.sleep(1);
      assertEquals(rings, 3);

      // We ring it.
      assertEquals(await qtest.read32(pending), 0);
      end.ring(1);
      await becomes(qtest, pending, 1);

      const words = new Uint32Array(end.memory.buffer);
      assertEquals(end.memory.size, 1 << 20);
      words[3] = 0x1234_5678;
      assertEquals(await qtest.read32(BAR[2] + 12), 0x1234_5678);
      await qtest.write32(BAR[2] + (1 << 20) - 4, 0x8765_4321);
      assertEquals(words.at(-1), 0x8765_4321);
    })());

    // A second QEMU: the first one is told, and rings it. (Started outside of the reactor, which would
    // keep Deno from it.)
    {
      await using second = await startQemu("second");
      await until(() => news.length === 2);
      using other = await reactor.until(Qtest.connect(`${directory}/second.sock`, reactor));
      await reactor.until((async () => {
        const pending = await setUp(other);
        assertEquals(await other.read32(register(Register.IV_POSITION)), 2);
        await ring(2, 1);
        await becomes(other, pending, 2);
      })());
      second.kill("SIGKILL");
      await until(() => news.length === 3);
    }
    qemu.kill("SIGKILL");
    await until(() => news.length === 4);
    assertEquals(news, ["+1", "+2", "-2", "-1"]);
    end.ring(1);
    for (const id of [1, 2]) await server.waitFor(new RegExp(`peer ${id} left`));
    // QEMU complains on standard error when a server says something that it should not.
    assertEquals(qemu.stderr, []);

    // Started while the server knows its next id, and seen by us who came first.
    await using third = await startQemu("third");
    await until(() => news.length === 5);
    assertEquals(news.at(-1), "+3");
    assertEquals((await server.end("SIGTERM")).code, 0);
    await until(() => lines.length > 0);
    assertEquals(lines.length, 1);
    assertEquals(third.stderr, []);
  },
);
