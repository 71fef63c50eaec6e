/** Back ends that do not keep to the protocol: the connection is cut with one line, nothing hangs, nothing is left open. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { cleanTest } from "../../support/leaks.ts";
import { INFLIGHT, messageOf, MQ, REPLY_ACK, type USUAL } from "../../support/mock_back_end.ts";
import { ACCEPTED, SETUP, withBackEnd } from "./support.ts";

const INTRODUCTION = [
  "GET_FEATURES",
  "GET_PROTOCOL_FEATURES",
  "SET_OWNER",
  "GET_QUEUE_NUM",
  "GET_MAX_MEM_SLOTS",
  "SET_BACKEND_REQ_FD",
];
const WHOLE = [...INTRODUCTION, "SET_FEATURES", "GET_STATUS", "ADD_MEM_REG", "SET_VRING_ADDR"];

type Instead = typeof USUAL.instead;

function at(wanted: string, wrong: (answer: Uint8Array) => ReturnType<Instead>): Instead {
  return (request, answer) => request === wanted ? wrong(answer) : undefined;
}

const WRONG: Readonly<
  Record<string, readonly [(answer: Uint8Array) => ReturnType<Instead>, RegExp]>
> = {
  "too short": [
    (answer) => ({ bytes: messageOf(answer[0]!, 5, answer.slice(12, 15)) }),
    /has 3 bytes, not 8|acknowledges \w+ oddly/,
  ],
  "too long": [
    (answer) => ({ bytes: messageOf(answer[0]!, 5, new Uint8Array(64)) }),
    /has 64 bytes, not 8|acknowledges \w+ oddly/,
  ],
  "longer than any": [
    () => ({ bytes: new Uint8Array([1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0x7f]) }),
    /a message of \d+ bytes/,
  ],
  "another one's": [(answer) => ({ bytes: messageOf(99, 5, answer.slice(12)) }), /no reply to/],
  "no reply": [(answer) => ({ bytes: messageOf(answer[0]!, 1, answer.slice(12)) }), /no reply to/],
  "another version": [
    (answer) => ({ bytes: messageOf(answer[0]!, 6, answer.slice(12)) }),
    /no reply to/,
  ],
  "with descriptors": [(answer) => ({ bytes: answer, fds: 8 }), /sent descriptors with the reply/],
};

for (const [name, [wrong, line]] of Object.entries(WRONG)) {
  cleanTest(`hostile back end: a reply that is ${name}`, async () => {
    for (const request of WHOLE) {
      await withBackEnd(async ({ device, backEnd, lines, start, until }) => {
        backEnd.options.instead = at(request, wrong);
        if (INTRODUCTION.includes(request)) await until(() => lines.length > 0);
        else await start().catch(() => {});
        await until(() => lines.some((said) => line.test(said)));
        // Once, however often it is tried again.
        await until(() => backEnd.asked.filter((said) => said.startsWith(request)).length > 2);
        assertEquals(lines.filter((said) => line.test(said)).length <= 2, true, lines.join("\n"));
        assertEquals(device.counters.connections > 0, !INTRODUCTION.includes(request));
      }).catch((error) => {
        // start() waits for a ring that never runs.
        if (!/never so/.test(String(error))) throw error;
      });
    }
  });
}

cleanTest("hostile back end: one that never answers holds nobody up", async () => {
  await withBackEnd(async ({ lines, until }) => {
    await until(() => lines.some((line) => /does not answer; waits/.test(line)));
  }, { silentTo: ["GET_FEATURES"] });
  await withBackEnd(async ({ device, backEnd, clock, lines, start, until }) => {
    await start();
    backEnd.options.silentTo = ["GET_VRING_BASE", "SET_STATUS", "ADD_MEM_REG", "SET_CONFIG"];
    const begunMs = clock.now();
    assertEquals(await device.stopQueue(0), 0);
    // Less than a device may take (transport/conversation.ts).
    assert(clock.now() - begunMs < 4000);
    await until(() => lines.some((line) => /does not answer; waits/.test(line)));
    backEnd.options.silentTo = [];
    await until(() => device.counters.connections === 2);
  });
});

cleanTest(
  "hostile back end: it has come further than any ring, or speaks of another one",
  async () => {
    for (const [ring, base] of [[0, 0x1_0000], [1, 0]] as const) {
      await withBackEnd(async ({ device, backEnd, lines, start }) => {
        await start();
        backEnd.options.instead = at("GET_VRING_BASE", () => ({
          bytes: messageOf(11, 5, new Uint8Array(Uint32Array.of(ring, base).buffer)),
        }));
        assertEquals(await device.stopQueue(0), 0);
        assert(
          lines.some((line) => line.includes(`asked for ring 0, that it has come to ${base}`)),
        );
      });
    }
  },
);

cleanTest(
  "hostile back end: a configuration that is not what was asked for is none",
  () =>
    withBackEnd(async ({ device }) => {
      await device.ready;
      assertEquals(device.configSize, 0);
    }, {
      instead: at("GET_CONFIG", () => ({ bytes: messageOf(24, 5, new Uint8Array(4000)) })),
    }),
);

cleanTest(
  "hostile back end: counts beyond all measure",
  () =>
    withBackEnd(async ({ device, start }) => {
      await start();
      assertEquals(device.queueCount, 129);
    }, { queues: 2 ** 31, slots: 2 ** 31 }),
);

cleanTest("hostile back end: no usable file for buffers in flight", async () => {
  const reply = (bytes: bigint) => {
    const payload = new Uint8Array(24);
    new DataView(payload.buffer).setBigUint64(0, bytes, true);
    return messageOf(31, 5, payload);
  };
  for (
    const wrong of [
      { bytes: reply(0n), fds: 1 },
      { bytes: reply(1n << 60n), fds: 1 },
      { bytes: reply(4096n) },
      { bytes: messageOf(31, 5, new Uint8Array(8)), fds: 1 },
    ]
  ) {
    await withBackEnd(async ({ device, region, host, lines }) => {
      await device.ready;
      device.connect(host);
      await device.acceptFeatures(ACCEPTED);
      await device.memoryAdded([region]);
      await device.startQueue(0, SETUP);
      assert(lines.some((line) => /no usable file for buffers in flight/.test(line)));
    }, { protocol: MQ | REPLY_ACK | INFLIGHT, instead: at("GET_INFLIGHT_FD", () => wrong) });
  }
});

cleanTest("hostile back end: what it refuses is said to who asked", async () => {
  for (
    const [request, expected, said] of [
      ["ADD_MEM_REG", 1, /refuses ADD_MEM_REG/],
      ["SET_VRING_NUM", 2, /takes no ring of 8 entries: give a smaller queue-size=/],
      ["SET_VRING_ADDR", 2, /refuses SET_VRING_ADDR/],
    ] as const
  ) {
    await withBackEnd(async ({ device, region, host }) => {
      await device.ready;
      device.connect(host);
      assertEquals(await device.acceptFeatures(ACCEPTED), true);
      const answers = [await device.memoryAdded([region]), await device.startQueue(0, SETUP)];
      assertMatch(answers[expected - 1]!, said);
    }, { refuses: [request] });
  }
  await withBackEnd(async ({ device, host, lines }) => {
    await device.ready;
    device.connect(host);
    assertEquals(await device.acceptFeatures(ACCEPTED), false);
    assert(lines.some((line) => /refuses SET_FEATURES/.test(line)));
  }, { refuses: ["SET_FEATURES"] });
});

cleanTest(
  "hostile back end: what it sends unasked, on either channel",
  () =>
    withBackEnd(async ({ device, backEnd, host, start, until }) => {
      await start();
      for (let i = 0; i < 1000; i++) backEnd.say(2);
      await until(() => backEnd.asked.filter((line) => line.startsWith("GET_CONFIG")).length > 3);
      assertEquals(host.changes, 0);
      backEnd.sendBytes(messageOf(11, 5, new Uint8Array(8)));
      // It is taken for the answer to what is asked next.
      await device.writeConfig(0, Uint8Array.of(1));
      await until(() => device.counters.connections === 2);
    }),
);

cleanTest(
  "hostile back end: rings where it writes what it likes",
  () =>
    withBackEnd(async ({ device, backEnd, host, region, start, offer, until }) => {
      await start();
      offer([0, 1]);
      device.available(0);
      backEnd.take(0);
      for (const head of [0, 0xffff, 0xffff_ffff, 1, 1, 1]) backEnd.use(0, head);
      await until(() => host.told[0]! > 0);
      backEnd.die();
      await until(() => !backEnd.isConnected);
      offer([2]);
      backEnd.listen();
      await until(() => host.problems.length > 0);
      assertMatch(host.problems[0]!, /unknown/);
      new DataView(region.memory.buffer).setUint16(0x3002, 0xbeef, true);
      assertEquals(await device.stopQueue(0), 0xbeef);
    }),
);
