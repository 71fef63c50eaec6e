/** `--device vhost-user`: what a back end is told, in which order, and what becomes of a device whose back end comes and goes. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { cleanTest } from "../../support/leaks.ts";
import {
  BACKEND_REQ,
  CONFIG,
  INFLIGHT,
  MQ,
  REPLY_ACK,
  VERSION_1,
} from "../../support/mock_back_end.ts";
import { ACCEPTED, AT, ENTRIES, openMemory, SECOND, SETUP, SIZE, withBackEnd } from "./support.ts";

cleanTest("vhost-user device: it is what its back end is", () =>
  withBackEnd(async ({ device }) => {
    await device.ready;
    assertEquals([device.deviceId, device.queueCount, device.configSize], [2, 2, 60]);
    // VERSION_1, EVENT_IDX, INDIRECT_DESC; RING_RESET and ACCESS_PLATFORM are ours.
    assertEquals([...device.features], [0x3000_0000, 0x103]);
    // What a driver may use is what there is: num_queues at 34.
    assertEquals([...device.readConfig(33, 4)], [33, 2, 0, 36]);
  }));

cleanTest(
  "vhost-user device: a ring runs when the driver does, and its buffers come back",
  () =>
    withBackEnd(async ({ device, backEnd, host, start, offer, cameBack, until }) => {
      await start();
      assertEquals(backEnd.features, VERSION_1 | 0x7000_0000n);
      assertEquals(backEnd.status, 0xf);
      assertEquals(
        backEnd.asked.filter((line) => /VRING|REG|FEATURES|STATUS 15/.test(line)),
        [
          "GET_FEATURES",
          "GET_PROTOCOL_FEATURES",
          `SET_PROTOCOL_FEATURES ${MQ | REPLY_ACK | BACKEND_REQ | CONFIG | 3 << 15} 0`,
          `SET_FEATURES ${0x7000_0000} 1`,
          "ADD_MEM_REG 0 0",
          `SET_VRING_NUM 0 ${ENTRIES}`,
          "SET_VRING_BASE 0 0",
          "SET_VRING_ADDR 0 0",
          "SET_VRING_CALL 0 0",
          "SET_VRING_ERR 0 0",
          "SET_VRING_KICK 0 0",
          "SET_STATUS 15 0",
          "SET_VRING_ENABLE 0 1",
        ],
      );
      assert(backEnd.wasKicked(0), "what is there at first is looked at");
      offer([3, 1]);
      assert(!backEnd.wasKicked(0));
      device.available(0);
      assert(backEnd.wasKicked(0));
      assertEquals(backEnd.take(0), [3, 1]);
      backEnd.use(0, 1);
      await until(() => host.told[0] === 1);
      backEnd.use(0, 3);
      await until(() => host.told[0] === 2);
      assertEquals(cameBack(), [1, 3]);
      assertEquals(await device.stopQueue(0), 2);
      assertEquals(host.problems, []);
    }),
);

cleanTest(
  "vhost-user device: a back end without acknowledgement, slots and status",
  () =>
    withBackEnd(async ({ device, backEnd, start, offer, region }) => {
      await start();
      offer([5]);
      device.available(0);
      assertEquals(backEnd.take(0), [5]);
      backEnd.use(0, 5);
      assertEquals(await device.stopQueue(0), 1);
      await device.memoryRemoved([region]);
      assertEquals(backEnd.asked.filter((line) => /MEM_TABLE/.test(line)), [
        "SET_MEM_TABLE 1 0",
        "SET_MEM_TABLE 1 0",
      ]);
      // At an empty table rust-vmm's back ends end.
      assertEquals(backEnd.regions.map(({ size }) => size), [4096]);
    }, { protocol: CONFIG }),
);

cleanTest(
  "vhost-user device: a ring is kicked when it runs, not when that is on its way",
  () =>
    withBackEnd(async ({ backEnd, start, until }) => {
      await start();
      // rust-vmm's back ends empty the kick of a ring that does not run yet, and the buffers wait for ever.
      await until(() => backEnd.wasKicked(0));
      assertEquals(backEnd.asked.slice(backEnd.asked.lastIndexOf("SET_VRING_ENABLE 0 1")), [
        "SET_VRING_ENABLE 0 1",
        "GET_FEATURES",
      ]);
    }, { protocol: CONFIG }),
);

cleanTest(
  "vhost-user device: memory is taken back before it is unmapped, and more can be shown",
  () =>
    withBackEnd(async ({ device, backEnd, start, region }) => {
      await start();
      using more = openMemory(SIZE, AT + 0x100_0000);
      assertEquals(await device.memoryAdded([more]), undefined);
      assertEquals(backEnd.regions.map(({ guest }) => guest), [AT, more.at]);
      await device.stopQueue(0);
      await device.memoryRemoved([region, more]);
      assertEquals(backEnd.regions.length, 0);
      // A piece of a file, by what is mapped.
      const { memory, at, size } = region;
      const mapped = { ...memory, file: { fd: region.fd!, offset: 0x1000 }, size: 0x8000 };
      assertEquals(
        await device.memoryAdded([{ at, size: 0x4000, memory: mapped, offset: 0x2000 }]),
        undefined,
      );
      assertEquals(backEnd.regions.map(({ offset, size }) => [offset, size]), [[0x3000, 0x4000]]);
      assertMatch((await device.memoryAdded([{ at: 1, size, memory, offset: 0 }]))!, /no file/);
    }),
);

cleanTest(
  "vhost-user device: a stop waits for what the back end still has",
  () =>
    withBackEnd(async ({ device, backEnd, clock, reactor, start, offer }) => {
      await start();
      offer([1, 2]);
      device.available(0);
      assertEquals(backEnd.take(0), [1, 2]);
      const begunMs = clock.now();
      reactor.spawn(async () => {
        await reactor.sleep(200);
        backEnd.use(0, 2);
        backEnd.use(0, 1);
      });
      assertEquals(await device.stopQueue(0), 2);
      assert(clock.now() - begunMs >= 200);
      // One that it keeps is not waited for for ever.
      assertEquals(await device.startQueue(0, { ...SETUP, base: 2 }), undefined);
      await reactor.sleep(1);
      offer([4]);
      assertEquals(backEnd.take(0), [4]);
      assertEquals(await device.stopQueue(0), 3);
    }),
);

cleanTest(
  "vhost-user device: a ring goes on behind what was used when nobody looked",
  () =>
    withBackEnd(async ({ device, backEnd, start, offer }) => {
      await start();
      offer([0, 1, 2]);
      assertEquals(backEnd.take(0), [0, 1, 2]);
      for (const head of [0, 1, 2]) backEnd.use(0, head);
      await device.stopQueue(0);
      // A device side before us died when one was used, and its back end completed the others.
      assertEquals(await device.startQueue(0, { ...SETUP, base: 1 }), undefined);
      assertEquals(backEnd.rings[0]!.base, 3);
    }),
);

cleanTest(
  "vhost-user device: the configuration changes, is written, and is read anew",
  () =>
    withBackEnd(async ({ device, backEnd, host, start, until }) => {
      await start();
      backEnd.options.config = backEnd.options.config.map((byte) => byte + 1);
      backEnd.say(2);
      await until(() => host.changes === 1);
      assertEquals([...device.readConfig(0, 3)], [1, 2, 3]);
      // Said in vain it is no change.
      backEnd.say(2, 9);
      await until(() => backEnd.heard() !== undefined);
      assertEquals(await device.writeConfig(32, Uint8Array.of(7)), true);
      assertEquals([device.readConfig(32, 1)[0], backEnd.options.config[32]], [7, 7]);
      backEnd.options.refuses = ["SET_CONFIG"];
      assertEquals(await device.writeConfig(32, Uint8Array.of(8)), false);
      assertEquals([device.readConfig(32, 1)[0], host.changes], [7, 1]);
    }),
);

cleanTest(
  "vhost-user device: what the back end asks for that we do not do is refused",
  () =>
    withBackEnd(async ({ backEnd, start, until }) => {
      await start();
      let heard: Uint8Array | undefined;
      backEnd.say(6, 9);
      await until(() => (heard = backEnd.heard()) !== undefined);
      assertEquals(heard![12], 1);
    }),
);

cleanTest(
  "vhost-user device: a fixed configuration, more queues than there are, a legacy back end",
  async () => {
    const config = Uint8Array.of(1, 2, 3, 4);
    await withBackEnd(
      async ({ device }) => {
        await device.ready;
        assertEquals([...device.readConfig(0, 4)], [1, 2, 3, 4]);
        device.connect({} as never);
        assertEquals(await device.writeConfig(0, Uint8Array.of(1)), false);
      },
      {},
      { config },
    );
    for (
      const [backEnd, queues, line] of [
        [{}, 3, /has 2 queues, 3 are asked for; waits/],
        [{ features: 0n }, 1, /a legacy device, without VERSION_1; waits/],
      ] as const
    ) {
      await withBackEnd(
        async ({ lines, until }) => {
          await until(() => lines.some((said) => line.test(said)));
        },
        backEnd,
        { queues },
      );
    }
  },
);

cleanTest(
  "vhost-user device: features about fields of a configuration that is not there are not passed on",
  async () => {
    // Of a network card: CSUM, MTU, MAC, MRG_RXBUF, STATUS, SPEED_DUPLEX.
    const features = VERSION_1 | 1n << 63n | 0x1_8029n;
    for (
      const [size, low, high] of [
        [0, 0x8001, 0],
        [6, 0x8021, 0],
        [10, 0x1_8021, 0],
        [12, 0x1_8029, 0],
        [24, 0x1_8029, 0x8000_0000],
      ] as const
    ) {
      await withBackEnd(
        async ({ device }) => {
          await device.ready;
          assertEquals(device.configSize, size);
          // VERSION_1, and what is ours.
          assertEquals([...device.features], [low, (high | 0x103) >>> 0]);
        },
        { features, config: new Uint8Array(size) },
        { deviceId: 1 },
      );
    }
  },
);

cleanTest(
  "vhost-user device: an error that the back end reports",
  () =>
    withBackEnd(async ({ backEnd, host, start, until }) => {
      await start();
      backEnd.signal(backEnd.rings[0]!.error!);
      await until(() => host.problems.length > 0);
      assertMatch(host.problems[0]!, /queue 0: the back end reports an error/);
    }),
);

// --- a back end dies ------------------------------------------------------------------------------

cleanTest(
  "vhost-user device: a back end that comes again is told everything, and the driver notices a pause",
  () =>
    withBackEnd(async ({ device, backEnd, host, start, offer, cameBack, until }) => {
      await start(2);
      offer([1]);
      device.available(0);
      assertEquals(backEnd.take(0), [1]);
      backEnd.die();
      await until(() => !backEnd.isConnected);
      offer([2]);
      device.available(0);
      offer([6], SECOND);
      device.available(1);
      backEnd.listen();
      await until(() => backEnd.rings[1]?.enabled === true);
      assertEquals([backEnd.features, backEnd.status], [VERSION_1 | 0x7000_0000n, 0xf]);
      assert(backEnd.wasKicked(0) && backEnd.wasKicked(1));
      assertEquals([backEnd.take(0), backEnd.take(1)], [[1, 2], [6]]);
      for (const head of [2, 1]) backEnd.use(0, head);
      await until(() => host.told[0]! >= 2);
      assertEquals(cameBack(), [2, 1]);
      assertEquals(host.problems, []);
    }),
);

for (const slots of [true, false]) {
  const protocol = MQ | REPLY_ACK | CONFIG | (slots ? 1 << 15 : 0);
  cleanTest(
    `vhost-user device: nothing is lost when a back end dies that works in any order (${
      slots ? "" : "no "
    }slots)`,
    () =>
      withBackEnd(async ({ device, backEnd, host, start, offer, cameBack, until }) => {
        await start();
        offer([0, 1, 2, 3, 4]);
        device.available(0);
        assertEquals(backEnd.take(0), [0, 1, 2, 3, 4]);
        for (const head of [3, 1]) backEnd.use(0, head);
        await until(() => host.told[0]! > 0);
        // Heads that are used once more, and one without a kick.
        offer([1]);
        device.available(0);
        assertEquals(backEnd.take(0), [1]);
        backEnd.use(0, 2, false);
        backEnd.die();
        await until(() => !backEnd.isConnected);
        offer([2]);
        backEnd.listen();
        await until(() => backEnd.rings[0]?.enabled === true);
        const again = backEnd.take(0);
        assertEquals(again.toSorted(), [0, 1, 2, 4]);
        const given = backEnd.rings[0]!.available;
        assert(given !== SETUP.driverAddress);
        // What is made available meanwhile has its turn afterwards.
        offer([3]);
        device.available(0);
        assertEquals(backEnd.take(0), []);
        for (const head of again) backEnd.use(0, head);
        await until(() =>
          backEnd.rings[0]?.available === SETUP.driverAddress && backEnd.rings[0].enabled
        );
        assertEquals(backEnd.take(0), [3]);
        backEnd.use(0, 3);
        assertEquals(cameBack().length, 8);
        assertEquals(backEnd.regions.length, slots ? 1 : 2);
        assertEquals(await device.stopQueue(0), 8);
        assertEquals(host.problems, []);
        assertEquals(device.counters.repeated, 4);
      }, { protocol }),
  );
}

cleanTest(
  "vhost-user device: a back end dies once more while its successor repeats",
  () =>
    withBackEnd(async ({ device, backEnd, host, start, offer, until }) => {
      await start();
      offer([0, 1, 2]);
      device.available(0);
      backEnd.take(0);
      backEnd.use(0, 2);
      await until(() => host.told[0] === 1);
      for (const left of [[0, 1], [1]]) {
        backEnd.die();
        await until(() => !backEnd.isConnected);
        backEnd.listen();
        await until(() => backEnd.rings[0]?.enabled === true);
        assertEquals(backEnd.take(0), left);
        backEnd.use(0, left[0]!);
      }
      assertEquals(await device.stopQueue(0), 3);
      assertEquals(host.problems, []);
    }),
);

cleanTest(
  "vhost-user device: a stop waits for what is repeated, and the driver's ring goes on behind it",
  () =>
    withBackEnd(async ({ device, backEnd, host, reactor, start, offer, until }) => {
      await start();
      offer([0, 1, 2]);
      device.available(0);
      backEnd.take(0);
      backEnd.use(0, 2);
      await until(() => host.told[0] === 1);
      backEnd.die();
      await until(() => !backEnd.isConnected);
      backEnd.listen();
      await until(() => backEnd.rings[0]?.enabled === true);
      const again = backEnd.take(0);
      reactor.spawn(async () => {
        await reactor.sleep(100);
        for (const head of again) backEnd.use(0, head);
      });
      assertEquals(await device.stopQueue(0), 3);
      assertEquals(backEnd.regions.length, 1);
      assertEquals(await device.startQueue(0, { ...SETUP, base: 3 }), undefined);
      assertEquals(backEnd.rings[0]!.available, SETUP.driverAddress);
    }),
);

cleanTest(
  "vhost-user device: buffers that nobody could count are said to be unknown",
  () =>
    withBackEnd(async ({ device, backEnd, host, start, offer, until }) => {
      await start();
      offer([0, 1]);
      device.available(0);
      assertEquals(backEnd.take(0), [0, 1]);
      backEnd.use(0, 1, false);
      // The ring goes round once and more while nobody looks, and 0 is still with the back end.
      for (let i = 0; i < ENTRIES + 1; i++) {
        offer([1]);
        backEnd.take(0);
        backEnd.use(0, 1, false);
      }
      backEnd.die();
      await until(() => !backEnd.isConnected);
      backEnd.listen();
      await until(() => host.problems.length > 0);
      assertMatch(host.problems[0]!, /queue 0: what became of the buffers .* is unknown/);
      await device.stopQueue(0);
      await device.reset();
      assertEquals(await device.acceptFeatures(ACCEPTED), true);
    }),
);

cleanTest(
  "vhost-user device: what a back end writes of buffers in flight is kept for its successor",
  () =>
    withBackEnd(async ({ device, backEnd, host, start, offer, until }) => {
      await start();
      offer([0, 1]);
      device.available(0);
      backEnd.take(0);
      backEnd.use(0, 1);
      await until(() => host.told[0] === 1);
      const count = (name: string) => backEnd.asked.filter((line) => line.startsWith(name)).length;
      assertEquals([count("GET_INFLIGHT"), count("SET_INFLIGHT")], [1, 1]);
      backEnd.die();
      await until(() => !backEnd.isConnected);
      backEnd.listen();
      await until(() => backEnd.rings[0]?.enabled === true);
      assertEquals([count("GET_INFLIGHT"), count("SET_INFLIGHT")], [1, 2]);
      assert(backEnd.inflight !== undefined);
      // It knows itself which to do again, and takes new ones where it is said.
      assertEquals([backEnd.rings[0]!.base, backEnd.rings[0]!.available], [1, SETUP.driverAddress]);
      await device.stopQueue(0);
      await device.reset();
      // Another driver has nothing in flight.
      assertEquals(await device.acceptFeatures(ACCEPTED), true);
      assertEquals(await device.startQueue(0, SETUP), undefined);
      assertEquals([count("GET_INFLIGHT"), count("SET_INFLIGHT")], [2, 3]);
    }, { protocol: MQ | REPLY_ACK | INFLIGHT }),
);

cleanTest(
  "vhost-user device: a back end that offers less than was agreed on gets no ring, until a reset",
  async () => {
    for (
      const [less, line] of [
        [{ features: VERSION_1 }, /lacks features/],
        [{ queues: 1 }, /has 1 queues, not 2/],
        [{ config: new Uint8Array() }, /has 0 bytes of configuration, not 60/],
      ] as const
    ) {
      await withBackEnd(async ({ device, backEnd, host, start, until }) => {
        await start();
        const before = { ...backEnd.options };
        backEnd.die();
        Object.assign(backEnd.options, less);
        await until(() => !backEnd.isConnected);
        backEnd.listen();
        await until(() => host.problems.length > 0);
        assertMatch(host.problems[0]!, line);
        assertEquals(backEnd.rings.length, 0);
        await device.stopQueue(0);
        await device.reset();
        // Another driver that wants what there is no more is refused, and the back end not told.
        if ("features" in less) assertEquals(await device.acceptFeatures(ACCEPTED), false);
        backEnd.die();
        backEnd.options = before;
        await until(() => !backEnd.isConnected);
        await device.reset();
        backEnd.listen();
        await until(() => device.counters.connections === 3);
        assertEquals(await device.acceptFeatures(ACCEPTED), true);
      });
    }
  },
);

cleanTest(
  "vhost-user device: without a back end every question is answered",
  () =>
    withBackEnd(async ({ device, backEnd, host, region, until }) => {
      await device.ready;
      device.connect(host);
      backEnd.die();
      await until(() => !backEnd.isConnected);
      assertEquals(await device.acceptFeatures(ACCEPTED), true);
      assertEquals(await device.memoryAdded([region]), undefined);
      assertEquals(await device.startQueue(0, SETUP), undefined);
      host.isRunning = true;
      device.resume();
      device.available(0);
      assertEquals(await device.writeConfig(0, Uint8Array.of(1)), false);
      backEnd.listen();
      await until(() => backEnd.rings[0]?.enabled === true);
      backEnd.die();
      await until(() => !backEnd.isConnected);
      assertEquals(await device.stopQueue(0), 0);
      await device.memoryRemoved([region]);
      await device.reset();
    }),
);

cleanTest(
  "vhost-user device: pauses between attempts grow, and the reason is said once",
  () =>
    withBackEnd(async ({ backEnd, device, clock, lines, until }) => {
      await device.ready;
      backEnd.die();
      const begunMs = clock.now();
      await until(() => clock.now() - begunMs > 20_000);
      assertEquals(lines.filter((line) => /nobody listens; waits/.test(line)).length, 1);
      backEnd.listen();
      await until(() => device.counters.connections === 2);
    }),
);
