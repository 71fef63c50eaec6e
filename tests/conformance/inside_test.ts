/** Rules that no peer can be asked for: they show at both ends of a bus, or inside of a side. */

import { assert, assertEquals } from "@std/assert";
import { mapAnonymous } from "../../src/linux/mapping.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import { withForeign } from "../support/device_rig.ts";
import { FakeDevice } from "../support/fake_device.ts";
import { withReady } from "../support/driver_rig.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { cleanTest } from "../support/leaks.ts";
import { relay } from "./relay.ts";
import { AT, withWhole } from "./whole.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const FORMS = ["v1", "v1-2025"] as const;
const u16 = (bytes: Uint8Array, at: number) => bytes[at]! + 256 * bytes[at + 1]!;
const isAnswer = (bytes: Uint8Array) => (bytes[0]! & 1) !== 0;
const isEvent = (bytes: Uint8Array) => (bytes[1]! & 0x40) !== 0;

/** A device whose queue 0 runs, with its driver side, and what passes between them. */
async function withNotifications(
  form: typeof FORMS[number],
  body: (rig: {
    readonly reactor: Reactor;
    readonly model: FakeDevice;
    readonly remote: RemoteDevice;
    /** Ring each doorbell, although no message is there. */
    readonly rings: readonly (() => void)[];
    readonly passed: readonly Uint8Array[];
  }) => Promise<void>,
): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using stack = new DisposableStack();
  const memory = stack.use(mapAnonymous(1 << 20));
  const [front, back] = [stack.use(inProcessBus(reactor)), stack.use(inProcessBus(reactor))];
  const [codec, log] = [codecFor(form), createLog("test", "error", () => {})];
  const deviceSide = stack.use(new DeviceSide({ reactor, bus: back.device, codec, log }));
  const model = new FakeDevice();
  deviceSide.add(0, model, [{ at: AT, size: 1 << 20, memory, offset: 0 }]);
  const side = stack.use(new DriverSide({ reactor, bus: front.driver, codec, log }));
  const remote = side.device(0);
  const passed: Uint8Array[] = [];
  const record = (_: string, bytes: Uint8Array) => {
    passed.push(bytes);
    return [bytes];
  };
  deviceSide.open();
  relay("device", back.driver, front.device, record);
  relay("driver", front.device, back.driver, record);
  side.open();
  const rings = [front.driver, back.device].map((bus) => () =>
    void (bus as unknown as { rung(): boolean }).rung()
  );
  await reactor.until((async () => {
    while (!side.isReady) await reactor.sleep(1);
    await remote.reset();
    for (const status of [1, 3]) await remote.setStatus(status);
    await remote.setFeatures(Uint32Array.of(0, 1));
    await remote.setStatus(0x0b);
    const areas = { descriptorAddress: AT, driverAddress: AT + 0x1000, deviceAddress: AT + 0x2000 };
    await remote.startQueue(0, { size: 16, ...areas, base: 0 });
    await remote.start(0x0f);
    await body({ reactor, model, remote, rings, passed });
  })());
}

Deno.test("B1 B2 B17 B22 B24: the greatest message is known, large enough, and all that is known", () => {
  for (const form of FORMS) {
    const codec = codecFor(form);
    assertEquals([codec.dialect, codec.maxSize], [form, 64]);
    assert(codec.maxSize >= 52 && codec.maxSize <= 264);
    const { featureBlocks, configBytes, deviceBits } = codec.limits;
    assertEquals([featureBlocks, configBytes, deviceBits], [12, 44, 400]);
    // No feature bits of the bus: nothing names any.
    assert(!Object.keys(codec).some((key) => /feature/i.test(key)));
  }
});

cleanTest("B3 B26: what one end publishes, the other end gets, byte for byte", async () => {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor);
  const got: string[] = [];
  const sent: string[] = [];
  const nobody = { attached() {}, detached() {} };
  const take = (slot: DataView) => {
    got.push(Uint8Array.from({ length: 64 }, (_, i) => slot.getUint8(i)).toHex());
  };
  pair.driver.open({ ...nobody, received: take });
  pair.device.open({ ...nobody, received: take });
  for (let n = 0; n < 60; n++) {
    const bytes = crypto.getRandomValues(new Uint8Array(64));
    const offset = pair.driver.claim();
    bytes.forEach((byte, i) => pair.driver.view.setUint8(offset + i, byte));
    pair.driver.send();
    sent.push(bytes.toHex());
  }
  await reactor.until(reactor.sleep(1));
  assertEquals(got, sent);
});

for (const form of FORMS) {
  cleanTest(`G12 B3: a bus that rewrites every token changes nothing, ${form}`, async () => {
    const original = new Map<number, number>();
    let next = 0xfff0;
    await withWhole(
      form,
      async ({ ping, side }) => {
        assertEquals(await ping(), 3);
        await side.device(0).reset();
        assert(original.size > 15);
      },
      (from, bytes) => {
        if (isEvent(bytes)) return [bytes];
        const token = u16(bytes, 4);
        if (from === "driver") {
          next = next === 0xffff ? 1 : next + 1;
          original.set(next, token);
        }
        new DataView(bytes.buffer).setUint16(
          4,
          from === "driver" ? next : original.get(token)!,
          true,
        );
        return [bytes];
      },
    );
  });

  cleanTest(
    `R10 G13: pings, both queues are notified of and each request answered, ${form}`,
    () =>
      withWhole(form, async ({ ping, passed }) => {
        assertEquals(await ping(), 3);
        const kicks = passed.filter(({ bytes }) => bytes[1] === 0x41).map(({ bytes }) => bytes[8]);
        assertEquals(new Set(kicks), new Set([0, 1]));
        const said = passed.map(({ bytes }) => bytes).filter((bytes) => !isEvent(bytes));
        const tokens = (bytes: Uint8Array[]) => bytes.map((bytes) => u16(bytes, 4)).sort();
        const requests = tokens(said.filter((bytes) => !isAnswer(bytes)));
        assertEquals(tokens(said.filter(isAnswer)), requests);
        assertEquals(requests.length, new Set(requests).size);
      }),
  );
}

cleanTest(
  "R32: a queue is empty when SET_VQUEUE is sent, and has buffers when the device is started",
  async () => {
    const buffers: number[][] = [[], []];
    let shown = (_: number): number => 0;
    const areas = [0, 0];
    await withWhole(
      "v1",
      async ({ ping, memory }) => {
        shown = (queue) => new DataView(memory.buffer).getUint16(areas[queue]! + 2, true);
        assertEquals(await ping(), 3);
        assertEquals(buffers[0]![0], 0);
        assertEquals(buffers[1]![0], 0);
        assert(buffers[0]![1]! > 0, "no receive buffers behind SET_VQUEUE");
      },
      (from, bytes) => {
        const view = new DataView(bytes.buffer);
        if (from === "driver" && bytes[1] === 0x0a) {
          areas[bytes[8]!] = Number(view.getBigUint64(32, true)) - AT;
          buffers[bytes[8]!]!.push(shown(bytes[8]!));
        }
        if (from === "driver" && bytes[1] === 0x08 && (bytes[8]! & 4) !== 0) {
          for (const queue of [0, 1]) buffers[queue]!.push(shown(queue));
        }
        return [bytes];
      },
    );
  },
);

for (const form of FORMS) {
  cleanTest(
    `B21 B29: a notification is its message, once, and a doorbell alone is none, ${form}`,
    () =>
      withNotifications(form, async ({ reactor, model, remote, rings, passed }) => {
        const seen = { used: 0, config: 0 };
        remote.onUsed = () => seen.used++;
        remote.onConfig = () => seen.config++;
        for (let n = 0; n < 5; n++) {
          remote.available(0);
          model.host.used(0);
          model.host.configChanged();
          await reactor.sleep(1);
          // Nothing is there: an interrupt is a hint to look.
          for (const ring of rings) ring();
          await reactor.sleep(1);
        }
        const calls = model.takeCalls().filter((call) => call === "available 0").length;
        const count = (id: number) => passed.filter((bytes) => bytes[1] === id).length;
        assertEquals([count(0x41), count(0x42), count(0x40)], [5, 5, 5]);
        // A ring is looked at once more when it is set up.
        assertEquals([calls, seen.used, seen.config], [5 + 1, 5, 5]);
      }),
  );
}

cleanTest(
  "G19 G22: an event of another size, or with an answer's bit, reaches neither device nor driver",
  async () => {
    await withReady(async ({ device, peer }) => {
      const seen: number[] = [];
      device.onUsed = (queue) => seen.push(queue);
      device.onConfig = (status) => seen.push(status);
      peer.putBytes([0, 0x42, 3, 0, 0, 0, 16, 0, 1]);
      peer.putBytes([0, 0x42, 3, 0, 0, 0, 11, 0, 1]);
      peer.putBytes([0, 0x40, 3, 0, 0, 0, 25, 0, 0x0f]);
      // A range of two bytes with one of them.
      peer.putBytes([0, 0x40, 3, 0, 0, 0, 25, 0, 0x0f, ...[0, 0, 0], 1, 0, 0, 0, 0, 0, 0, 0, 2]);
      peer.putBytes([0, 0x42, 3, 0, 0, 0, 12, 0, 2]);
      const token = peer.send(Kind.PING);
      assertEquals((await peer.nextOf(Kind.PING)).token, token);
      assertEquals(seen, [2]);
    });
    await withForeign(async ({ peer, negotiate, setQueue, setStatus, device, quiet }) => {
      await negotiate();
      await setQueue(1);
      await setStatus(0xf);
      device.takeCalls();
      for (const size of [12, 15, 17, 24]) peer.putBytes([0, 0x41, 0, 0, 0, 0, size, 0, 1]);
      peer.putBytes([1, 0x41, 0, 0, 0, 0, 16, 0, 1]);
      await quiet();
      assertEquals(device.takeCalls(), []);
      peer.putBytes([0, 0x41, 0, 0, 0, 0, 16, 0, 1]);
      await quiet();
      assertEquals(device.takeCalls(), ["available 1"]);
    });
  },
);
