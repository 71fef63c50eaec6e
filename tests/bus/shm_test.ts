/** The shm bus over files: both sides find each other by polling, ring a register, and refuse nonsense. */

import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { BusListener, Side } from "../../src/bus/bus.ts";
import { ShmBus, type ShmBusOptions } from "../../src/bus/shm.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const PAGE = 4096;

function shmBus(side: Side, reactor: Reactor, options: Partial<ShmBusOptions> & { file: string }) {
  return new ShmBus(side, reactor, {
    offset: 0,
    size: 2 * PAGE,
    uio: undefined,
    doorbell: undefined,
    reset: false,
    named: true,
    discardOnAttach: false,
    ringPerMessage: true,
    ...options,
  });
}

/** Keeps the first byte of what comes. */
function listener(bytes: number[]): BusListener {
  return {
    attached: () => {},
    detached: () => {},
    received: (slot) => {
      bytes.push(slot.getUint8(0));
    },
  };
}

function put(bus: ShmBus, byte: number): void {
  const offset = bus.claim();
  bus.view.setUint8(offset, byte);
  bus.send();
}

cleanTest(
  "shm bus: messages go both ways at an offset of a file, with nobody ringing",
  () =>
    withDirectory(async (directory) => {
      const file = `${directory}/memory`;
      await Deno.writeFile(file, new Uint8Array(8 * PAGE));
      using reactor = new Reactor(new VirtualClock());
      const place = { file, offset: 3 * PAGE, size: 4 * PAGE };
      using driver = shmBus("driver", reactor, place);
      using device = shmBus("device", reactor, place);
      const [atDriver, atDevice]: number[][] = [[], []];
      driver.open(listener(atDriver!));
      device.open(listener(atDevice!));
      for (let i = 0; i < 100; i++) {
        put(driver, i);
        put(device, 200 - i);
        await reactor.until(reactor.sleep(1));
      }
      await reactor.until(reactor.sleep(30));
      assertEquals(atDevice, Array.from({ length: 100 }, (_, i) => i));
      assertEquals(atDriver, Array.from({ length: 100 }, (_, i) => 200 - i));
      assertEquals([driver.segment.memory.size, driver.segment.start], [4 * PAGE, 2 * PAGE]);
      const bytes = await Deno.readFile(file);
      assertEquals(bytes.subarray(0, 3 * PAGE), new Uint8Array(3 * PAGE));
      assertEquals(bytes[3 * PAGE], 100 % 62, "the driver's head");
      assertEquals(bytes.subarray(5 * PAGE), new Uint8Array(3 * PAGE));
    }),
);

cleanTest(
  "shm bus: the doorbell is a store of one word, in a file of its own",
  () =>
    withDirectory(async (directory) => {
      const [file, registers] = [`${directory}/memory`, `${directory}/registers`];
      await Deno.writeFile(file, new Uint8Array(2 * PAGE));
      await Deno.writeFile(registers, new Uint8Array(2 * PAGE).fill(0xee));
      using reactor = new Reactor(new VirtualClock());
      const doorbell = { file: registers, offset: PAGE + 0x10c, value: 0x1234_5678 };
      using bus = shmBus("driver", reactor, { file, doorbell });
      bus.open(listener([]));
      const expected = new Uint8Array(2 * PAGE).fill(0xee);
      assertEquals(await Deno.readFile(registers), expected);
      put(bus, 1);
      new DataView(expected.buffer).setUint32(PAGE + 0x10c, 0x1234_5678, true);
      assertEquals(await Deno.readFile(registers), expected);
    }),
);

cleanTest(
  "shm bus: what cannot be a bus is told in one line",
  () =>
    withDirectory(async (directory) => {
      const file = `${directory}/memory`;
      await Deno.writeFile(file, new Uint8Array(2 * PAGE));
      using reactor = new Reactor(new VirtualClock());
      const fails = (options: Partial<ShmBusOptions>) =>
        assertThrows(() => {
          using bus = shmBus("device", reactor, { file, ...options });
          bus.open(listener([]));
        }, VmsgError).message;
      assertMatch(fails({ file: `${directory}/none` }), /none: No such file/);
      assertMatch(fails({ size: 3 * PAGE }), /memory has 8192 bytes, not 12288$/);
      assertMatch(fails({ offset: PAGE }), /memory has 8192 bytes, not 8192 from 4096 on$/);
      assertMatch(fails({ offset: 1 }), /offset= must be a multiple of 4096/);
      assertMatch(fails({ size: 5000 }), /size= must be a multiple of 4096/);
      assertMatch(fails({ size: PAGE }), /4096 bytes of shared memory are too few/);
      assertMatch(
        fails({ file: "/dev/null" }),
        /\/dev\/null: 8192 bytes from 0 on cannot be mapped/,
      );
      const empty = `${directory}/empty`;
      await Deno.writeFile(empty, new Uint8Array());
      assertMatch(fails({ file: empty }), /empty has 0 bytes, not 8192$/);
      assertMatch(
        fails({ doorbell: { file, offset: 6, value: 1 } }),
        /doorbell= must be a multiple of 4$/,
      );
      assertMatch(fails({ uio: file }), /memory gives no interrupts \(EPERM\): give a UIO device/);
      assertMatch(
        fails({ doorbell: { file, offset: 2 * PAGE, value: 1 } }),
        /memory has 8192 bytes, not 4096 from 8192 on$/,
      );
    }),
);
