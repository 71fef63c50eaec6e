/**
 * Requests of a domain's processors, with a page of memory in the place of Xen's: every kind of access is answered,
 * each processor by itself, and those that a process has left.
 */

import { assertEquals } from "@std/assert";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { type IoRange, IoreqServer } from "../../src/xen/ioreq_server.ts";
import { cleanTest } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const START = 0xd000_0000;
const ONES = 0xffff_ffff;
const READ = 0x20;
const POINTER = 0x10;

interface Access {
  readonly address: number;
  readonly size?: number;
  readonly data?: number;
  readonly count?: number;
  /** Direction, pointer and state; a read that is ready unless given. */
  readonly bits?: number;
  readonly type?: number;
}

class Rig implements Disposable {
  readonly reactor = new Reactor(new VirtualClock());
  readonly page = mapAnonymous(4096);
  readonly view = new DataView(this.page.buffer);
  readonly calls: string[] = [];
  readonly bell = createEventFd();
  readonly rung: number[] = [];
  readonly server: IoreqServer;
  readonly stack = new DisposableStack();

  constructor(processors: number, taken: readonly number[] = []) {
    const { calls, bell, rung, page } = this;
    const owner = new DisposableStack();
    owner.defer(() => calls.push("end"));
    const privcmd = {
      fd: bell,
      domain: 7,
      mapRange: (_server: number, start: number) => !taken.includes(start),
      enableServer: (id: number) => {
        calls.push(`enable ${id}`);
        for (let i = 0; i < processors; i++) this.view.setUint32(32 * i + 24, 40 + i, true);
      },
      disableServer: (id: number) => void calls.push(`disable ${id}`),
      destroyServer: (id: number) => void calls.push(`destroy ${id}`),
      restrict: () => void calls.push("restrict"),
      injectMsi: () => {},
      setIrqLevel: () => {},
    };
    const channels = {
      fd: bell,
      bind: (port: number) => port + 100,
      restrict: () => void calls.push("restrict channels"),
      notify: (port: number) => void calls.push(`notify ${port}`),
      take: (tell: (port: number) => void) => {
        clearEventFd(bell);
        rung.splice(0).forEach(tell);
      },
    };
    this.server = new IoreqServer(this.reactor, {
      privcmd,
      channels,
      page,
      processors,
      id: 3,
      owner,
    });
  }

  put(
    processor: number,
    { address, size = 4, data = 0, count = 1, bits = READ | 1, type = 1 }: Access,
  ) {
    const { view } = this;
    const at = 32 * processor;
    view.setBigUint64(at, BigInt(address), true);
    view.setBigUint64(at + 8, BigInt(data), true);
    view.setUint32(at + 16, count, true);
    view.setUint32(at + 20, size, true);
    view.setUint16(at + 28, 0xabcd, true);
    view.setUint8(at + 30, bits);
    view.setUint8(at + 31, type);
  }

  /** Rings for a processor, and has it looked at. */
  ring(processor: number): void {
    this.rung.push(140 + processor);
    signalEventFd(this.bell);
    this.reactor.turn();
  }

  /** State and data of a processor. */
  answer(processor: number): [state: number, low: number, high: number] {
    const at = 32 * processor;
    const state = this.view.getUint8(at + 30) & 15;
    return [state, this.view.getUint32(at + 8, true), this.view.getUint32(at + 12, true)];
  }

  access(access: Access): number[] {
    this.put(0, access);
    this.ring(0);
    return this.answer(0);
  }

  [Symbol.dispose](): void {
    this.server[Symbol.dispose]();
    this.bell[Symbol.dispose]();
    this.page[Symbol.dispose]();
    this.reactor[Symbol.dispose]();
  }
}

/** Answers with its offset, and remembers what was written. */
function range(written: string[] = []): IoRange {
  return {
    ...{ start: START, size: 0x200 },
    read: (offset) => 0x1000 + offset,
    write: (offset, size, value) => void written.push(`${offset} ${size} ${value.toString(16)}`),
  };
}

cleanTest("ioreq: reads and writes of a range, and the answer's way", () => {
  using rig = new Rig(1);
  const written: string[] = [];
  rig.server.add(range(written));
  rig.server.serve();
  assertEquals(rig.calls.splice(0), ["enable 3", "restrict", "restrict channels"]);
  assertEquals(rig.access({ address: START + 8 }), [3, 0x1008, 0]);
  assertEquals(rig.calls.splice(0), ["notify 140"]);
  const write = { address: START + 0x10, data: 0x1234_5678_9abc, size: 2, bits: 1 };
  assertEquals(rig.access(write), [3, 0x5678_9abc, 0x1234]);
  assertEquals(written, ["16 2 56789abc"]);
  assertEquals(rig.view.getUint16(28, true), 0xabcd, "the rest of the word stays");
  // Rung without reason.
  rig.view.setUint8(30, 0);
  rig.ring(0);
  assertEquals([rig.answer(0)[0], rig.calls.splice(0)], [0, ["notify 140"]]);
});

cleanTest(
  "ioreq: what is no plain access inside of a range reads as ones and writes nothing",
  () => {
    using rig = new Rig(1);
    const written: string[] = [];
    rig.server.add(range(written));
    rig.server.serve();
    const odd: readonly Partial<Access>[] = [
      ...[0, 3, 5, 7, 16, ONES].map((size) => ({ size })),
      ...[0, 2, ONES].map((count) => ({ count })),
      ...[0, 2, 7, 8, 255].map((type) => ({ type })),
      { bits: READ | POINTER | 1 },
      ...[START - 1, START - 4, START + 0x1fe, START + 0x200, 0, 2 ** 52].map((address) => ({
        address,
      })),
    ];
    for (const access of odd) {
      const text = JSON.stringify(access);
      assertEquals(rig.access({ address: START, ...access }), [3, ONES, ONES], text);
      const { bits = READ | 1 } = access;
      assertEquals(rig.access({ address: START, ...access, data: 5, bits: bits & ~READ }), [
        3,
        5,
        0,
      ], text);
    }
    assertEquals(written, []);
  },
);

cleanTest("ioreq: every processor by itself; one that waits holds no other", async () => {
  using rig = new Rig(3);
  const { reactor, server } = rig;
  const later = reactor.defer<number>();
  server.add({ ...range(), read: (offset) => offset === 0 ? later.promise : offset });
  server.serve();
  rig.put(1, { address: START });
  rig.ring(1);
  rig.put(2, { address: START + 4 });
  rig.ring(2);
  assertEquals([rig.answer(1)[0], rig.answer(2)], [2, [3, 4, 0]]);
  // Rung again meanwhile.
  rig.ring(1);
  assertEquals(rig.answer(1)[0], 2);
  later.resolve(99);
  await reactor.until(reactor.sleep(1));
  assertEquals(rig.answer(1), [3, 99, 0]);
});

cleanTest("ioreq: an answer that never comes leaves the request to the next process", async () => {
  using rig = new Rig(1);
  const { reactor, server } = rig;
  server.add({ ...range(), read: () => Promise.reject(new VmsgError("OVER", "over")) });
  server.serve();
  rig.put(0, { address: START });
  rig.ring(0);
  await reactor.until(reactor.sleep(1));
  assertEquals(rig.answer(0)[0], 2);
});

cleanTest("ioreq: a process goes on with what another has left", () => {
  using rig = new Rig(3, [START]);
  assertEquals(rig.server.add(range()), false, "somebody has it");
  assertEquals(rig.server.add(range(), true), true, "it was ours");
  rig.put(0, { address: START + 4, bits: READ | 2 });
  rig.put(1, { address: START + 8, bits: READ | 1 });
  rig.put(2, { address: START + 12, bits: READ | 3 });
  rig.server.serve();
  assertEquals([0, 1, 2].map((processor) => rig.answer(processor)), [
    [3, 0x1004, 0],
    [3, 0x1008, 0],
    [3, 0, 0],
  ]);
});

cleanTest("ioreq: at the end nobody is left waiting", () => {
  const rig = new Rig(2);
  const { reactor, server, calls } = rig;
  server.add({ ...range(), read: () => reactor.defer<number>().promise });
  server.serve();
  rig.put(0, { address: START });
  rig.ring(0);
  rig.put(1, { address: START, bits: 1 });
  calls.length = 0;
  const states = () => [0, 1].map((processor) => rig.answer(processor)[0]);
  assertEquals(states(), [2, 1]);
  server[Symbol.dispose]();
  assertEquals([states(), calls], [[3, 3], [
    "disable 3",
    "notify 140",
    "notify 141",
    "destroy 3",
    "end",
  ]]);
  assertEquals(rig.answer(0), [3, ONES, ONES]);
  rig[Symbol.dispose]();
});

cleanTest("ioreq: who leaves a server ends nothing, and those who asked wait", () => {
  const rig = new Rig(2);
  const { reactor, server, calls } = rig;
  server.add({ ...range(), read: () => reactor.defer<number>().promise });
  server.serve();
  rig.put(0, { address: START });
  rig.ring(0);
  rig.put(1, { address: START, bits: READ | 1 });
  calls.length = 0;
  server.leave();
  assertEquals([0, 1].map((processor) => rig.answer(processor)[0]), [2, 1]);
  rig[Symbol.dispose]();
  assertEquals(calls, ["end"]);
});
