/**
 * Memory order: a driver in one thread, the device in another, over the same memory, each sleeping
 * whenever the ring lets it. Without the full fence in wantKicks or wantCalls a notification is lost, and both
 * sleep until the time-out: in six of six runs within the first 5,000 to 100,000 kicks, of which {@link BUFFERS}
 * make more, also on a machine with much else to do. (The other fences do not show on x86: there each follows
 * a store that is a full barrier itself.)
 */

import { assertEquals } from "@std/assert";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { AddressSpace, type MappedMemory } from "../../src/memory/mod.ts";
import { Chain, openDeviceQueue, openDriverRing, Pop } from "../../src/virtio/queue/mod.ts";
import { Random } from "../support/mock_driver.ts";

const SIZE = 16, BUFFERS = 300_000, AT = 0x1_0000_0000, MEMORY_SIZE = 1 << 16, TIMEOUT_MS = 60_000;
const DATA = 0x8000;

interface Order {
  readonly address: bigint;
  readonly size: number;
  readonly packed: boolean;
  readonly inOrder: boolean;
  readonly eventIndex: boolean;
  /** Counts kicks in [0] and calls in [1]: what eventfds do elsewhere. */
  readonly bells: Int32Array;
  /** Where the driver's thread says that it is ready, and that it is done. */
  readonly port?: MessagePort;
}

/** Rings a bell of the other thread. */
function ring(bells: Int32Array, bell: number): void {
  Atomics.add(bells, bell, 1);
  Atomics.notify(bells, bell);
}

/** Sleeps until the bell was rung more often than `heard`. */
function hear(bells: Int32Array, bell: number, heard: number): number {
  // Most rings come soon; if each meant a system call there would be few occasions to miss one.
  for (let spin = 0; spin < 5000; spin++) {
    const rung = Atomics.load(bells, bell);
    if (rung !== heard) return rung;
  }
  if (Atomics.wait(bells, bell, heard, TIMEOUT_MS) === "timed-out") {
    throw new Error(`${bell === 0 ? "a kick" : "a call"} is lost`);
  }
  return Atomics.load(bells, bell);
}

function drive(memory: MappedMemory, { packed, inOrder, eventIndex, bells, port }: Order): void {
  const place = { memory, offset: 0, size: MEMORY_SIZE, at: AT };
  const queue = openDriverRing({ place, size: SIZE, eventIndex, indirect: false, packed, inOrder });
  const view = new DataView(memory.buffer);
  const random = new Random(1);
  let sent = 0, taken = 0, heard = 0;
  port?.postMessage("ready");
  while (taken < BUFFERS) {
    queue.noCalls();
    while (sent < BUFFERS) {
      const slot = DATA + 16 * (sent % SIZE);
      if (queue.free === 0) break;
      view.setUint32(slot, sent, true);
      if (!queue.addOne(AT + slot, 16, true, sent)) break;
      sent++;
      if (random.chance(0.5) && queue.publish()) ring(bells, 0);
      for (let pause = random.below(100); pause > 0; pause--);
    }
    if (queue.publish()) ring(bells, 0);
    while (queue.nextUsed()) {
      const answer = view.getUint32(DATA + 16 * (taken % SIZE) + 4, true);
      if (queue.usedToken !== taken || answer !== taken + 1) {
        throw new Error(`buffer ${taken}: ${answer}`);
      }
      taken++;
    }
    if (queue.broken !== undefined) throw new Error(queue.broken);
    if (taken < sent && !queue.wantCalls()) heard = hear(bells, 1, heard);
  }
  port?.postMessage("done");
}

function serve(memory: MappedMemory, { packed, inOrder, eventIndex, bells }: Order): number {
  const space = new AddressSpace();
  space.add(AT, memory.size, memory);
  const scratch = { address: 0n, buffer: new ArrayBuffer(MEMORY_SIZE), size: MEMORY_SIZE };
  const place = { memory: scratch, offset: 0, size: MEMORY_SIZE, at: AT };
  const terms = { packed, inOrder, eventIndex, indirect: false };
  const probe = openDriverRing({ place, size: SIZE, ...terms });
  const { size, descriptorAddress, driverAddress, deviceAddress } = probe;
  const areas = { size, descriptorAddress, driverAddress, deviceAddress };
  const queue = openDeviceQueue(space, { ...areas, base: 0, ...terms });
  if (typeof queue === "string") throw new Error(queue);
  const view = new DataView(memory.buffer);
  const chain = new Chain();
  let served = 0, heard = 0;
  for (;;) {
    do {
      queue.noKicks();
      for (let n = 0; n < 5 && queue.next(chain) === Pop.CHAIN; n++) {
        const slot = DATA + 16 * (served % SIZE);
        if (view.getUint32(slot, true) !== served) {
          throw new Error(`buffer ${served} came too early`);
        }
        view.setUint32(slot + 4, served + 1, true);
        queue.complete(chain.head, 16);
        served++;
      }
      if (queue.publish()) ring(bells, 1);
    } while (queue.wantKicks());
    if (queue.broken !== undefined) throw new Error(queue.broken);
    if (served === BUFFERS) return served;
    heard = hear(bells, 0, heard);
  }
}

function inWorker(order: Order): void {
  const pointer = Deno.UnsafePointer.create(order.address)!;
  const buffer = Deno.UnsafePointerView.getArrayBuffer(pointer, order.size);
  drive({ address: order.address, buffer, size: order.size }, order);
}

if ("WorkerGlobalScope" in globalThis) {
  addEventListener("message", (event) => inWorker((event as MessageEvent<Order>).data));
} else {
  const rings = [["split", false, false], ["packed", true, false], [
    "packed, IN_ORDER",
    true,
    true,
  ]];
  const cases = rings.flatMap((ring) => [true, false].map((eventIndex) => [...ring, eventIndex]));
  for (
    const [format, packed, inOrder, eventIndex] of cases as [string, boolean, boolean, boolean][]
  ) {
    const name = `${format}, ${eventIndex ? "EVENT_IDX" : "flags"}`;
    Deno.test(`a driver and a device in two threads lose no notification: ${name}`, async () => {
      // Unmapped only when all is well: a thread that is terminated may still use it for a moment.
      const memory = mapAnonymous(MEMORY_SIZE);
      const bells = new Int32Array(new SharedArrayBuffer(8));
      const worker = new Worker(import.meta.url, { type: "module" });
      const { port1, port2 } = new MessageChannel();
      const expect = (message: string) =>
        new Promise<void>((resolve, reject) => {
          port1.onmessage = ({ data }) => data === message ? resolve() : reject(new Error(data));
          worker.onerror = (event) => {
            event.preventDefault();
            reject(new Error(event.message));
          };
        });
      const order: Order = {
        address: memory.address,
        size: MEMORY_SIZE,
        packed,
        inOrder,
        eventIndex,
        bells,
      };
      try {
        const ready = expect("ready");
        worker.postMessage({ ...order, port: port2 }, [port2]);
        await ready;
        const done = expect("done");
        assertEquals(serve(memory, order), BUFFERS);
        await done;
        memory[Symbol.dispose]();
      } finally {
        port1.close();
        worker.terminate();
      }
    });
  }
}
