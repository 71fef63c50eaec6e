import { assert, assertEquals, assertRejects } from "@std/assert";
import { type ReadQueue, readQueues, unansweredIn } from "../../src/bus/queue_reader.ts";
import { SpscQueue } from "../../src/bus/spsc_queue.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { type Dialect, type Fields, Kind, Message } from "../../src/message/message.ts";
import { Random } from "../support/mock_driver.ts";
import { readRecording } from "../interop/recording.ts";
import { withDirectory } from "../support/leaks.ts";

const PAGE = 4096;

/** Two pages at an offset of a file, and what their sides say and hear. */
class Pages {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #ends: Record<"driver" | "device", { to: SpscQueue; at: SpscQueue }>;
  readonly #slot = new Uint32Array(16);

  constructor(readonly dialect: Dialect, readonly offset = 0) {
    this.bytes = new Uint8Array(offset + 2 * PAGE);
    const memory = { address: 0n, buffer: this.bytes.buffer, size: this.bytes.length };
    const end = (at: number) => ({
      to: new SpscQueue(memory, offset + at, PAGE),
      at: new SpscQueue(memory, offset + at, PAGE),
    });
    this.#ends = { driver: end(0), device: end(PAGE) };
  }

  say(
    from: "driver" | "device",
    kind: Kind,
    response: boolean,
    token: number,
    fields: Fields = {},
  ) {
    const message = new Message();
    message.reset(kind, response);
    message.token = token;
    message.say(fields);
    const { to } = this.#ends[from];
    codecFor(this.dialect).encode(message, to.view, to.claim());
    to.publish();
  }

  hear(from: "driver" | "device") {
    this.#ends[from].at.receive(this.#slot);
  }

  async read(dialect?: Dialect): Promise<ReadQueue[]> {
    let queues: ReadQueue[] = [];
    await withDirectory((directory) => {
      Deno.writeFileSync(`${directory}/shm`, this.bytes);
      queues = readQueues([`${directory}/shm`], { dialect, offset: this.offset });
      assertEquals(Deno.readFileSync(`${directory}/shm`), this.bytes, "it only reads");
    });
    return queues;
  }
}

const textsOf = (queue: ReadQueue) => queue.messages.map(({ text, waits }) => [text, waits]);

Deno.test("queue reader: what was read, what waits, and who has no answer", async () => {
  const pages = new Pages("v1", 8192);
  pages.say("driver", Kind.GET_DEVICE_STATUS, false, 7);
  pages.hear("driver");
  pages.say("device", Kind.GET_DEVICE_STATUS, true, 7, { status: 3 });
  pages.say("driver", Kind.GET_VQUEUE, false, 8, { index: 1 });
  const [driver, device] = await pages.read() as [ReadQueue, ReadQueue];
  assertEquals([driver.dialect, driver.from, device.from], ["v1", "driver", "device"]);
  assertEquals([driver.head, driver.tail, driver.waiting], [2, 1, 1]);
  assertEquals(textsOf(driver), [
    ["dev 0 GET_DEVICE_STATUS?", false],
    ["dev 0 GET_VQUEUE? queue 1", true],
  ]);
  assertEquals(textsOf(device), [["dev 0 GET_DEVICE_STATUS = ACKNOWLEDGE DRIVER", true]]);
  assertEquals(unansweredIn([driver, device]), [
    "the driver side waits for an answer to dev 0 GET_VQUEUE? queue 1, which was not read",
  ]);
});

Deno.test("queue reader: a queue that has come round says nothing of answers that it may have lost", async () => {
  const pages = new Pages("v1");
  pages.say("driver", Kind.GET_VQUEUE, false, 8, { index: 1 });
  pages.say("device", Kind.GET_VQUEUE, true, 8, { index: 1, maxSize: 256 });
  for (let n = 0; n < 70; n++) {
    pages.hear("device");
    pages.say("device", Kind.EVENT_USED, false, 0, { index: n & 1 });
  }
  const queues = await pages.read();
  assertEquals(unansweredIn(queues), []);
  const { messages, head } = queues[1]!;
  assertEquals([messages.length, messages.at(-1)!.slot], [61, head - 1]);
  assertEquals(messages.at(-1)!.text, "dev 0 EVENT_USED queue 1");
});

Deno.test("queue reader: the dialect is told by what lies there", async () => {
  for (const dialect of ["v1", "v1-2025", "rfc", "proto"] as const) {
    const pages = new Pages(dialect);
    pages.say("driver", Kind.GET_DEVICE_INFO, false, 1);
    pages.say("device", Kind.GET_DEVICE_INFO, true, 1, { deviceId: 1, vendorId: 0x1af4 });
    pages.say("driver", Kind.GET_DEVICE_STATUS, false, 2);
    pages.say("device", Kind.GET_DEVICE_STATUS, true, 2, { status: 1 });
    const queues = await pages.read();
    assertEquals(queues.map((queue) => queue.dialect), [dialect, dialect]);
    assertEquals(queues[1]!.messages.at(-1)!.text, "dev 0 GET_DEVICE_STATUS = ACKNOWLEDGE");
  }
});

Deno.test("queue reader: the queue files of the prototype QEMU, as it wrote them", async () => {
  const session = readRecording();
  await withDirectory((directory) => {
    for (const side of ["driver", "device"] as const) {
      const file = new Uint8Array(128 + 64 * 4096);
      const said = session.filter(({ from }) => from === side);
      said.forEach(({ bytes }, n) => {
        // Behind a message lies what an older one left.
        file.fill(n + 1, 128 + 64 * n, 192 + 64 * n);
        file.set(bytes, 128 + 64 * n);
      });
      new DataView(file.buffer).setUint32(0, said.length, true);
      new DataView(file.buffer).setUint32(64, said.length - 1, true);
      Deno.writeFileSync(`${directory}/queue-q-${side}`, file);
    }
    const [driver, device] = readQueues(
      ["driver", "device"].map((side) => `${directory}/queue-q-${side}`),
    ) as [ReadQueue, ReadQueue];
    assertEquals([driver.dialect, device.dialect], ["proto", "proto"]);
    assertEquals([driver.capacity, driver.waiting, device.waiting], [4096, 1, 1]);
    const messages = [...driver.messages, ...device.messages];
    assertEquals(messages.length, session.length);
    assertEquals(messages.filter(({ text }) => text.startsWith("not understood")), []);
    assertEquals(driver.messages[0]!.text, "dev 0 GET_DEVICE_INFO?");
    assertEquals(unansweredIn([driver, device]), [], "without tokens nobody can tell");
  });
});

Deno.test("queue reader: one index out of range is said, two are no queues", async () => {
  const pages = new Pages("v1");
  pages.say("device", Kind.EVENT_USED, false, 0);
  const words = new Uint32Array(pages.bytes.buffer);
  words[0] = 62;
  const [driver, device] = await pages.read() as [ReadQueue, ReadQueue];
  assertEquals(driver.problem, "the head is 62, and there are 62 slots");
  assertEquals([driver.waiting, device.waiting], [0, 1]);
  words[PAGE / 4 + 16] = 62;
  await assertRejects(() => pages.read(), VmsgError, "no queues are there: the head is 62");
});

Deno.test("queue reader: takes whatever bytes lie there", async () => {
  const random = new Random(17);
  for (let round = 0; round < 50; round++) {
    const pages = new Pages("v1");
    for (let at = 0; at < pages.bytes.length; at++) pages.bytes[at] = random.below(256);
    const words = new Uint32Array(pages.bytes.buffer);
    for (const at of [0, 16, PAGE / 4, PAGE / 4 + 16]) words[at] = random.below(62);
    // Heads of messages, so that more than their first bytes is looked at.
    for (let slot = 0; slot < 62; slot++) {
      const at = 128 + 64 * slot;
      pages.bytes.set([random.below(4), random.below(32), 0, 0, 1, 0, 8 + random.below(57), 0], at);
    }
    const queues = await pages.read(round % 2 === 0 ? undefined : "proto");
    assertEquals(queues.map(({ messages }) => messages.length), [61, 61]);
  }
});

/** A foreign AMP layout (docs/wire.md 4.5) with everything where ours has it not, and elements of so many bytes. */
class AmpPages {
  readonly bytes = new Uint8Array(4096 + 64 * 1024);
  readonly view = new DataView(this.bytes.buffer, 4096);
  readonly #at = {
    driver: { head: 112, elements: 40_003 },
    device: { head: 202, elements: 1001 },
  };

  constructor(readonly dialect: Dialect, readonly elementSize: number, readonly count = 5) {
    [0x4c4f, 64, 1, 1, 0, count, elementSize, 0].forEach((value, i) =>
      this.view.setUint16(2 * i, value, true)
    );
    this.view.setUint8(8, 2);
    this.view.setUint8(9, 4);
    const { driver, device } = this.#at;
    [64, device.head, device.elements, 128, driver.head, driver.elements].forEach((at, i) =>
      this.view.setUint32(16 + 8 * i, at, true)
    );
  }

  head(of: "driver" | "device", status: number, tail: number, head: number) {
    [0x514f, status, tail, head].forEach((value, i) =>
      this.view.setUint16(this.#at[of].head + 2 * i, value, true)
    );
  }

  say(from: "driver" | "device", slot: number, kind: Kind, response: boolean, fields: Fields = {}) {
    const message = new Message();
    message.reset(kind, response);
    message.say(fields);
    const bytes = new Uint8Array(64);
    codecFor(this.dialect).encode(message, new DataView(bytes.buffer), 0);
    const at = 4096 + this.#at[from].elements + this.elementSize * slot;
    this.bytes.set(bytes.subarray(0, this.elementSize), at);
  }

  async read(): Promise<ReadQueue[]> {
    let queues: ReadQueue[] = [];
    await withDirectory((directory) => {
      Deno.writeFileSync(`${directory}/shm`, this.bytes);
      queues = readQueues([`${directory}/shm`], { offset: 4096 });
    });
    return queues;
  }
}

Deno.test("queue reader: an AMP layout of somebody else's, its cursors, states and messages", async () => {
  for (const [dialect, elementSize] of [["rfc", 44], ["v1", 68], ["v1", 256]] as const) {
    const pages = new AmpPages(dialect, elementSize);
    // Written from slot 3 on and round the end; the device has read the first of three.
    pages.say("driver", 3, Kind.GET_DEVICE_STATUS, false);
    pages.say("driver", 4, Kind.SET_DEVICE_STATUS, false, { status: 3 });
    pages.say("driver", 0, Kind.GET_VQUEUE, false, { index: 1 });
    pages.say("device", 2, Kind.GET_DEVICE_STATUS, true, { status: 1 });
    pages.head("driver", 2, 1, 2);
    pages.head("device", 0x8003, 3, 4);
    const [driver, device] = await pages.read() as [ReadQueue, ReadQueue];
    assertEquals([driver.dialect, driver.layout, driver.from], [dialect, "amp1", "driver"]);
    assertEquals([driver.status, device.status], ["RUN", "SHUTDOWN 0x8003"]);
    // The tail of who writes, the head of who reads.
    assertEquals([driver.tail, driver.head, driver.capacity, driver.waiting], [1, 4, 5, 2]);
    assertEquals([device.tail, device.head, device.waiting], [3, 2, 1]);
    assertEquals(textsOf(driver), [
      ["dev 0 GET_DEVICE_STATUS?", false],
      ["dev 0 SET_DEVICE_STATUS? ACKNOWLEDGE DRIVER", true],
      ["dev 0 GET_VQUEUE? queue 1", true],
    ]);
    assertEquals(textsOf(device), [["dev 0 GET_DEVICE_STATUS = ACKNOWLEDGE", true]]);
  }
});

Deno.test("queue reader: an AMP layout that nobody has joined, cursors that cannot be, and one that is none", async () => {
  const pages = new AmpPages("rfc", 64);
  const [driver, device] = await pages.read() as [ReadQueue, ReadQueue];
  assertEquals([driver.status, driver.waiting, driver.messages], ["no head yet", 0, []]);
  pages.head("driver", 9, 5, 0);
  const [broken, other] = await pages.read() as [ReadQueue, ReadQueue];
  assertEquals([broken.status, broken.problem], [
    "status 9",
    "the tail is 5, and there are 5 slots",
  ]);
  assertEquals([device.problem, other.problem], [undefined, undefined]);
  pages.head("device", 2, 0, 7);
  pages.head("driver", 2, 0, 5);
  await assertRejects(() => pages.read(), VmsgError, "no queues are there: the head is 7, and");
  pages.view.setUint16(12, 5, true);
  await assertRejects(() => pages.read(), VmsgError, "a layout amp1 that cannot be: elements of 5");
  pages.view.setUint16(12, 64, true);
  pages.view.setUint32(36, 1, true);
  await assertRejects(() => pages.read(), VmsgError, "device elements up to 42949");
});

Deno.test("queue reader: takes whatever bytes lie in an AMP layout", async () => {
  const random = new Random(23);
  for (let round = 0; round < 30; round++) {
    const pages = new AmpPages("v1", 8 + random.below(60));
    for (let at = 4096 + 1001; at < pages.bytes.length; at++) pages.bytes[at] = random.below(256);
    for (const side of ["driver", "device"] as const) {
      pages.head(side, random.below(65536), random.below(5), random.below(5));
    }
    const queues = await pages.read();
    assertEquals(queues.map(({ messages }) => messages.length), [4, 4]);
    // A block with anything in it is refused in a line, or read.
    for (let n = 0; n < 3; n++) pages.view.setUint8(2 + random.below(62), random.below(256));
    try {
      await pages.read();
    } catch (error) {
      assert(error instanceof VmsgError, String(error));
    }
  }
});
