/**
 * A device side with `--confined`: it takes a segment and no other memory, and whatever a driver side writes to
 * rings and descriptors, not one byte outside the segment is read or written.
 */

import { assertEquals, assertStringIncludes } from "@std/assert";
import { NetDevice } from "../../src/devices/net/net_device.ts";
import { allocate } from "../../src/linux/arena.ts";
import { linuxErrno } from "../../src/linux/errors.ts";
import { createSealedMemory } from "../../src/linux/fd.ts";
import type { IovecList } from "../../src/memory/mod.ts";
import { Kind, MEMORY_SEGMENT, MEMORY_WINDOW, QUEUE_ENABLED } from "../../src/message/message.ts";
import type { NetworkPort } from "../../src/network/port.ts";
import { type Rig, withSide, withVmsg } from "../support/device_rig.ts";
import { cleanTest } from "../support/leaks.ts";
import { MockDriver, MockMemory } from "../support/mock_driver.ts";

const EINVAL = linuxErrno("EINVAL");
const EPERM = linuxErrno("EPERM");
/** The queues' page, then the segment; bus addresses are offsets in the shared memory. */
const START = 4096;
const SIZE = 0x10000;
const CARD = 7;
const RECEIVE = 0, TRANSMIT = 1;
const FRAME = 100;
const NEEDS_RESET = 0x40;
const WRITE = 2, INDIRECT = 4;

const frame = allocate(FRAME);
frame.bytes.fill(0x77);

/** Always has a frame, and counts those that come. */
class Port implements NetworkPort {
  readonly description = "test";
  readonly features: readonly number[] = [];
  sent = 0;
  received = 0;

  setFeatures(): void {}

  open(): void {}

  send(): boolean {
    this.sent++;
    return true;
  }

  nextLength(): number {
    return this.received === 0 ? FRAME : 0;
  }

  receive(into: IovecList, first: number): number {
    this.received++;
    return into.copyIn(0, frame.address, FRAME, first);
  }

  discard(): void {}

  [Symbol.dispose](): void {}
}

interface Bounded extends Rig {
  readonly memory: MockMemory;
  readonly port: Port;
}

/** A confined device side with a network card, on a bus with a segment. */
async function withCard(body: (rig: Bounded) => Promise<void>, asForeign = false): Promise<void> {
  using memory = new MockMemory([{ at: START, size: SIZE }]);
  const port = new Port();
  const mac = new Uint8Array([0x52, 0x54, 0, 0, 0, 1]);
  await (asForeign ? withSide : withVmsg)((rig) => body({ ...rig, memory, port }), {
    confined: true,
    segment: { memory: memory.memory, start: START },
    models: [[CARD, (reactor) => new NetDevice(reactor, port, { mac, mtu: 1500 })]],
  });
  memory.checkGuards();
}

const add = ({ ask }: Rig, address: number, length: number, offset: number, device = CARD) =>
  ask(Kind.ADD_MEMORY, (m) => {
    m.memoryDevice = device;
    m.flags = MEMORY_SEGMENT;
    m.address = address;
    m.length = length;
    m.offset = offset;
  });

/** Brings the card up to FEATURES_OK. */
async function negotiate({ peer, setStatus }: Rig): Promise<void> {
  assertEquals(await setStatus(0x3, CARD), 0x3);
  await peer.ask(Kind.SET_DRIVER_FEATURES, (m) => {
    m.device = CARD;
    m.count = 2;
    m.words[0] = 0x3000_0000;
    m.words[1] = 1;
  });
  assertEquals(await setStatus(0xb, CARD), 0xb);
}

async function start(rig: Rig, index: number, driver: MockDriver, offset = 0): Promise<void> {
  await rig.setQueue(index, (m) => {
    const { size, descriptorAddress, driverAddress, deviceAddress } = driver.config;
    m.device = CARD;
    m.flags = QUEUE_ENABLED;
    m.queueSize = size;
    m.descriptorAddress = descriptorAddress + offset;
    m.driverAddress = driverAddress;
    m.deviceAddress = deviceAddress;
  });
}

const statusOf = async ({ peer }: Rig) =>
  (await peer.ask(Kind.GET_DEVICE_STATUS, (m) => m.device = CARD)).status;

for (
  const [name, flags] of [["a descriptor", 0], ["a window of --memory", MEMORY_WINDOW]] as const
) {
  cleanTest(
    `confined: memory by ${name} is refused`,
    () =>
      withVmsg(async ({ peer, ask, device, lines }) => {
        using fd = createSealedMemory("vmsg-test", 0x4000);
        const ordinal = flags === 0 ? peer.bus.sendFd(fd) : 0;
        const { result } = await ask(Kind.ADD_MEMORY, (m) => {
          m.flags = flags;
          m.address = 0x1000;
          m.length = 0x4000;
          m.ordinal = ordinal;
        });
        assertEquals([result, device.host.memory.windows.length], [EPERM, 0]);
        assertStringIncludes(lines.join("\n"), "--confined takes a segment only");
      }, { confined: true }),
  );
}

cleanTest(
  "confined: a segment by descriptor is taken where the bus has none",
  () =>
    withVmsg(async ({ peer, ask, device }) => {
      using fd = createSealedMemory("vmsg-test", 0x4000);
      const ordinal = peer.bus.sendFd(fd);
      const { result } = await ask(Kind.ADD_MEMORY, (m) => {
        m.flags = MEMORY_SEGMENT;
        m.length = 0x4000;
        m.ordinal = ordinal;
      });
      const windows = device.host.memory.windows.map(({ at, size }) => [at, size]);
      assertEquals([result, windows], [0, [[0, 0x4000]]]);
    }, { confined: true }),
);

cleanTest(
  "confined: of a bus's memory, what is behind its queues; nothing before, nothing beyond",
  () =>
    withCard(async (rig) => {
      const end = rig.memory.memory.size;
      for (
        const [offset, length] of [
          [0, end],
          [0, 4096],
          [START - 1, 4096],
          [START, end - START + 1],
          [end, 1],
          [START, 0],
          [START, 2 ** 52],
          [2 ** 52, 4096],
        ]
      ) {
        assertEquals(
          (await add(rig, 0, length, offset)).result,
          EINVAL,
          `${length} from ${offset}`,
        );
      }
      assertEquals((await add(rig, 0x5000_0000, end - START, START)).result, 0);
    }),
);

cleanTest(
  "confined: a driver side that is no vmsg has the bus's memory behind its queues",
  () =>
    withCard(async (rig) => {
      await rig.peer.ask(Kind.GET_DEVICE_INFO);
      const windows = rig.device.host.memory.windows.map(({ at, end }) => [at, end]);
      assertEquals(windows, [[START, rig.memory.memory.size]]);
      await negotiate(rig);
      await assertTransmits(rig);
      await assertBreaks(rig, (driver) => driver.add([{ address: START - 1, length: 64 }], []));
    }, true),
);

cleanTest(
  "confined: a driver side that is no vmsg has no memory where the bus has none",
  () =>
    withSide(async ({ peer, device }) => {
      await peer.ask(Kind.GET_DEVICE_INFO);
      assertEquals(device.host.memory.windows.length, 0);
    }, { confined: true }),
);

cleanTest(
  "confined: the prototype's driver side has the bus's memory behind its queues",
  async () => {
    using memory = new MockMemory([{ at: START, size: SIZE }]);
    await withSide(async ({ peer, device }) => {
      await peer.ask(Kind.GET_DEVICE_INFO);
      const windows = device.host.memory.windows.map(({ at, end }) => [at, end]);
      assertEquals(windows, [[START, memory.memory.size]]);
    }, { dialect: "proto", confined: true, segment: { memory: memory.memory, start: START } });
  },
);

/** A frame that lies in the segment is sent. */
async function assertTransmits(rig: Bounded): Promise<void> {
  const driver = new MockDriver(rig.memory, { size: 8, eventIndex: true, indirect: true });
  await start(rig, TRANSMIT, driver);
  await rig.setStatus(0xf, CARD);
  driver.add([{ address: driver.end, length: FRAME }], []);
  driver.publish();
  rig.peer.send(Kind.EVENT_AVAIL, (m) => {
    m.device = CARD;
    m.index = TRANSMIT;
  });
  await rig.peer.nextOf(Kind.EVENT_USED);
  assertEquals([rig.port.sent, await statusOf(rig)], [1, 0xf]);
}

/** What a driver does to the next buffer of a fresh queue breaks the device. */
async function assertBreaks(
  rig: Bounded,
  act: (driver: MockDriver) => void,
  index = TRANSMIT,
): Promise<void> {
  const { sent } = rig.port;
  await rig.setStatus(0, CARD);
  await negotiate(rig);
  rig.memory.bytes(START, SIZE).fill(0);
  const driver = new MockDriver(rig.memory, { size: 8, eventIndex: true, indirect: true });
  act(driver);
  driver.publish();
  const before = rig.memory.bytes(driver.end, START + SIZE - driver.end).slice();
  await start(rig, index, driver);
  rig.peer.send(Kind.SET_DEVICE_STATUS, (m) => {
    m.device = CARD;
    m.status = 0xf;
  });
  await rig.peer.nextOf(Kind.SET_DEVICE_STATUS);
  const event = await rig.peer.nextOf(Kind.EVENT_CONFIG);
  assertEquals([event.device, event.status], [CARD, 0xf | NEEDS_RESET]);
  assertEquals([rig.port.sent, driver.usedIndex], [sent, 0]);
  assertEquals(rig.memory.bytes(driver.end, before.length), before);
}

const END = START + SIZE;

const DESCRIPTORS: readonly (readonly [string, (driver: MockDriver) => void, number?])[] = [
  ["reads the bus's queues", (d) => d.add([{ address: 0, length: 64 }], [])],
  [
    "reads the last byte before the segment",
    (d) => d.add([{ address: START - 1, length: 64 }], []),
  ],
  ["reads the first byte behind it", (d) => d.add([{ address: END - 63, length: 64 }], [])],
  ["reads from far away", (d) => d.add([{ address: 2 ** 40, length: 64 }], [])],
  ["writes to the bus's queues", (d) => d.add([], [{ address: 0, length: 2048 }]), RECEIVE],
  [
    "writes the last byte before the segment",
    (d) => d.add([], [{ address: START - 1, length: 2048 }]),
    RECEIVE,
  ],
  [
    "writes the first byte behind it",
    (d) => d.add([], [{ address: END - 2047, length: 2048 }]),
    RECEIVE,
  ],
  [
    "writes outside with the second element only",
    (d) => d.add([], [{ address: d.end, length: 12 }, { address: END, length: 2048 }]),
    RECEIVE,
  ],
  [
    "has an indirect table in the bus's queues",
    (d) => {
      d.desc(0, 0, 16, INDIRECT);
      d.offer(0);
    },
  ],
  [
    "has an indirect table half outside",
    (d) => {
      d.desc(0, END - 16, 32, INDIRECT);
      d.offer(0);
    },
  ],
  [
    "has an address that wraps at 2^64",
    (d) => {
      d.desc(0, 0xffff_ffff_ffff_fff0n, 4096, WRITE);
      d.offer(0);
    },
    RECEIVE,
  ],
];

for (const [name, act, index] of DESCRIPTORS) {
  cleanTest(
    `confined: a descriptor that ${name}: the device needs a reset, no byte is touched`,
    () =>
      withCard(async (rig) => {
        assertEquals((await add(rig, START, SIZE, START)).result, 0);
        await negotiate(rig);
        await assertTransmits(rig);
        await assertBreaks(rig, act, index);
        // A reset, and it works again.
        await rig.setStatus(0, CARD);
        await negotiate(rig);
        rig.port.sent = 0;
        await assertTransmits(rig);
      }),
  );
}

cleanTest(
  "V50, confined: rings outside the segment are none, neither enabled nor stored",
  () =>
    withCard(async (rig) => {
      assertEquals((await add(rig, START, SIZE, START)).result, 0);
      const cases = [-START, SIZE - 16, 2 ** 40].flatMap((offset) => [
        { offset, flags: QUEUE_ENABLED },
        { offset, flags: 0 },
      ]);
      for (const { offset, flags: asked } of cases) {
        await rig.setStatus(0, CARD);
        await negotiate(rig);
        const driver = new MockDriver(rig.memory, { size: 8, eventIndex: true });
        rig.peer.send(Kind.SET_VQUEUE, (m) => {
          m.device = CARD;
          m.index = TRANSMIT;
          m.flags = asked;
          m.queueSize = 8;
          m.descriptorAddress = driver.descriptorAddress + offset;
          m.driverAddress = driver.driverAddress;
          m.deviceAddress = driver.deviceAddress;
        });
        await rig.peer.nextOf(Kind.SET_VQUEUE);
        const { queueSize, flags } = await rig.peer.ask(Kind.GET_VQUEUE, (m) => {
          m.device = CARD;
          m.index = TRANSMIT;
        });
        assertEquals([queueSize, flags, await statusOf(rig)], [0, 0, 0xb]);
      }
    }),
);
