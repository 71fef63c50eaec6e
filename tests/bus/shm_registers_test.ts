/**
 * A card's registers on the shm bus (docs/wire.md 4.6), simulated by files: a doorbell that is a pulse, the acknowledge register,
 * and the mailbox that says where queues are. Registers do something when they are read or written, which a file does not: where
 * that matters an object plays them.
 */

import { assertEquals, assertMatch } from "@std/assert";
import type { BusListener, Side } from "../../src/bus/bus.ts";
import { acknowledge, ringDoorbell } from "../../src/bus/card_registers.ts";
import { ShmBus, type ShmBusOptions } from "../../src/bus/shm.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { PATIENCE_MS } from "../support/processes.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const PAGE = 4096;
const WINDOW = 64 * PAGE;
const MAILBOX = PAGE + 0x40;
const FREE = 0xeeee_eeee;

/** A file of memory and one of registers. */
class Card {
  readonly memory: string;
  readonly registers: string;
  constructor(directory: string) {
    this.memory = `${directory}/window`;
    this.registers = `${directory}/registers`;
    Deno.writeFileSync(this.memory, new Uint8Array(WINDOW), { mode: 0o600 });
    Deno.writeFileSync(this.registers, new Uint8Array(2 * PAGE), { mode: 0o600 });
  }

  words(at: number, count: number): number[] {
    const view = new DataView(Deno.readFileSync(this.registers).buffer, at);
    return Array.from({ length: count }, (_, i) => view.getUint32(4 * i, true));
  }

  write(at: number, ...words: number[]): void {
    using file = Deno.openSync(this.registers, { write: true });
    file.seekSync(at, Deno.SeekMode.Start);
    file.writeSync(new Uint8Array(Uint32Array.from(words).buffer));
  }

  /** Bytes of the window. */
  bytes(at: number, size: number): Uint8Array {
    return Deno.readFileSync(this.memory).slice(at, at + size);
  }

  bus(side: Side, reactor: Reactor, options: Partial<ShmBusOptions> = {}): ShmBus {
    return new ShmBus(side, reactor, {
      file: this.memory,
      offset: 0,
      size: WINDOW,
      uio: undefined,
      doorbell: undefined,
      reset: false,
      named: false,
      discardOnAttach: false,
      ringPerMessage: true,
      log: (line) => this.lines.push(line),
      ...options,
    });
  }

  readonly lines: string[] = [];
}

class Listener implements BusListener {
  readonly events: string[] = [];
  readonly bytes: number[] = [];
  attached = () => void this.events.push("attached");
  detached = (reason: string) => void this.events.push(reason);
  received = (slot: DataView) => void this.bytes.push(slot.getUint8(0));
}

function put(bus: ShmBus, byte: number): void {
  bus.view.setUint8(bus.claim(), byte);
  bus.send();
}

const pass = (reactor: Reactor, ms = 50) => reactor.until(reactor.sleep(ms));

const mailboxOf = ({ registers }: Card) => ({ file: registers, offset: MAILBOX });

cleanTest(
  "shm registers: a mailbox says where in the window the queues are",
  () =>
    withDirectory(async (directory) => {
      const card = new Card(directory);
      using reactor = new Reactor(new VirtualClock());
      using device = card.bus("device", reactor, { mailbox: mailboxOf(card) });
      const atDevice = new Listener();
      device.open(atDevice);
      await pass(reactor);
      assertEquals([device.isAttached, atDevice.events], [false, []]);
      assertMatch(card.lines.join(), /waiting for the driver side to say in the mailbox where/);
      // The driver side has its queues in the seventh page, and knows it by another address.
      const base = 6 * PAGE;
      using driver = card.bus("driver", reactor, {
        ...{ offset: base, size: 2 * PAGE, mailbox: mailboxOf(card) },
      });
      const atDriver = new Listener();
      driver.open(atDriver);
      put(driver, 1);
      await pass(reactor);
      assertEquals(card.words(MAILBOX, 3), [0, base, 0], "taken");
      assertEquals([atDevice.events, atDevice.bytes], [["attached"], [1]]);
      put(device, 2);
      await pass(reactor);
      assertEquals(atDriver.bytes, [2]);
      // The device side's queue is the second page, from its first slot on.
      assertEquals(card.bytes(base + PAGE, 4).join(), "1,0,0,0");
      assertEquals(card.bytes(base + PAGE + 128, 1).join(), "2");
      assertEquals(card.bytes(0, base), new Uint8Array(base));
      // It is said again and again; nothing changes.
      await pass(reactor, 5000);
      put(driver, 3);
      await pass(reactor);
      assertEquals([atDevice.events, atDevice.bytes], [["attached"], [1, 3]]);
      assertEquals(card.lines.length, 1);
    }),
);

cleanTest(
  "shm registers: a device side that is started anew is told where, and goes on",
  () =>
    withDirectory(async (directory) => {
      const card = new Card(directory);
      using reactor = new Reactor(new VirtualClock());
      const mailbox = mailboxOf(card);
      using driver = card.bus("driver", reactor, { offset: PAGE, size: 2 * PAGE, mailbox });
      driver.open(new Listener());
      const first = card.bus("device", reactor, { mailbox });
      const atFirst = new Listener();
      first.open(atFirst);
      put(driver, 1);
      await pass(reactor);
      first[Symbol.dispose]();
      put(driver, 2);
      using next = card.bus("device", reactor, { mailbox });
      const atNext = new Listener();
      next.open(atNext);
      await pass(reactor, 1100);
      assertEquals([atFirst.bytes, atNext.bytes], [[1], [2]]);
    }),
);

cleanTest(
  "shm registers: a driver side that is started anew has its queues elsewhere",
  () =>
    withDirectory(async (directory) => {
      const card = new Card(directory);
      using reactor = new Reactor(new VirtualClock());
      const mailbox = mailboxOf(card);
      using device = card.bus("device", reactor, { mailbox });
      const atDevice = new Listener();
      device.open(atDevice);
      for (const [n, page] of [1, 20, 62].entries()) {
        using driver = card.bus("driver", reactor, {
          ...{ offset: page * PAGE, size: 2 * PAGE, mailbox },
        });
        driver.open(new Listener());
        put(driver, 10 + n);
        await pass(reactor);
        assertEquals(atDevice.bytes.at(-1), 10 + n);
      }
      const moved = "the driver side has its queues elsewhere now";
      assertEquals(atDevice.events, ["attached", moved, "attached", moved, "attached"]);
      // Both halves of the number, and no place that is none.
      const wrong = [[0, 1], [63 * PAGE, 0], [PAGE + 8, 0], [0xffff_ffff, 0xffff_ffff]] as const;
      for (const [low, high] of wrong) {
        card.lines.length = 0;
        card.write(MAILBOX + 4, low, high);
        card.write(MAILBOX, FREE);
        await pass(reactor);
        assertEquals(card.words(MAILBOX, 1), [0], "taken all the same");
        assertMatch(
          card.lines.join(),
          /the mailbox says 0x[0-9a-f]+, which is no place in 262144 b/,
        );
      }
      assertEquals(atDevice.events.length, 5, "the queues that it has stay");
      put(device, 1);
      card.write(MAILBOX + 4, 4 * PAGE, 0);
      card.write(MAILBOX, 1);
      await pass(reactor);
      assertEquals(atDevice.events.slice(5), [moved, "attached"]);
    }),
);

cleanTest(
  "shm registers: a file that is shorter than the window is said to be is not mapped behind its end",
  () =>
    withDirectory(async (directory) => {
      const card = new Card(directory);
      using reactor = new Reactor(new VirtualClock());
      using device = card.bus("device", reactor, { size: 1 << 30, mailbox: mailboxOf(card) });
      const atDevice = new Listener();
      device.open(atDevice);
      card.write(MAILBOX + 4, WINDOW, 0);
      card.write(MAILBOX, 1);
      await pass(reactor);
      assertEquals([atDevice.events, card.lines.length], [[], 2]);
    }),
);

/** A register whose stores are kept, and which answers as a card's does. */
function register(stored: (value: number) => void, read: () => number = () => 0): Uint32Array {
  return new Proxy(new Uint32Array(1), {
    get: () => read(),
    set: (_, __, value) => (stored(value), true),
  });
}

/** Boards' doorbells (docs/wire.md 4.6), as values in the order in which they are written. */
const PULSES = { "the card, to the host": [0, 1], "the host, to the card": [1, 0] } as const;

for (const [who, [value, pulse]] of Object.entries(PULSES)) {
  cleanTest(`shm registers: a doorbell is a pulse: ${who}`, () =>
    withDirectory((directory) => {
      const stores: number[] = [];
      const simulated = register((store) => stores.push(store));
      ringDoorbell(simulated, { value, pulse });
      ringDoorbell(simulated, { value });
      assertEquals(stores, [value, pulse, value]);
      const card = new Card(directory);
      using reactor = new Reactor(new VirtualClock());
      const doorbell = { file: card.registers, offset: 0x10, value, pulse };
      using bus = card.bus("device", reactor, { doorbell });
      bus.open(new Listener());
      card.write(0x10, FREE);
      put(bus, 1);
      assertEquals(card.words(0, 6), [0, 0, 0, 0, pulse, 0]);
    }));
}

Deno.test("shm registers: an interrupt is taken back until none is pending, or for the moment", () => {
  for (const [more, expected] of [[0, 1], [3, 4], [Infinity, 16]] as const) {
    let [stores, pending] = [0, 1];
    acknowledge(register(
      (value) => {
        assertEquals(value, 0);
        pending = stores++ < more ? 1 : 0;
      },
      // The other bits say other things.
      () => 0xfffe | pending,
    ));
    assertEquals(stores, expected);
  }
});

cleanTest(
  "shm registers: each interrupt of a UIO device is taken back before the queue is looked at",
  () =>
    withDirectory(async (directory) => {
      const card = new Card(directory);
      using reactor = new Reactor();
      // A terminal in the device's place: it echoes what enables the next interrupt, which so is one.
      const uio = "/dev/ptmx";
      using bus = card.bus("device", reactor, {
        ...{ uio, acknowledge: { file: card.registers, offset: 0x20 } },
      });
      bus.open(new Listener());
      for (let n = 0; n < 3; n++) {
        card.write(0x20, FREE | 1);
        // The kernel echoes in a thread of its own.
        const endMs = reactor.now() + PATIENCE_MS;
        while (card.words(0x20, 1)[0] !== 0 && reactor.now() < endMs) await pass(reactor, 1);
        assertEquals(card.words(0x20, 1), [0]);
      }
    }),
);
