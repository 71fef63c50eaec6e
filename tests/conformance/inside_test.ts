/** Rules that no peer can be asked for: they show at both ends of a bus, or inside of a side. */

import { assert, assertEquals } from "@std/assert";
import { VirtualClock } from "../../src/linux/clock.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind } from "../../src/message/message.ts";
import { withForeign } from "../support/device_rig.ts";
import { withReady } from "../support/driver_rig.ts";
import { inProcessBus } from "../support/in_process_bus.ts";
import { cleanTest } from "../support/leaks.ts";
import { withWhole } from "./whole.ts";

const FORMS = ["v1", "v1-2025"] as const;
const u16 = (bytes: Uint8Array, at: number) => bytes[at]! + 256 * bytes[at + 1]!;
const isAnswer = (bytes: Uint8Array) => (bytes[0]! & 1) !== 0;
const isEvent = (bytes: Uint8Array) => (bytes[1]! & 0x40) !== 0;

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

cleanTest("G19: an event of another size reaches neither device nor driver", async () => {
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
    await quiet();
    assertEquals(device.takeCalls(), []);
    peer.putBytes([0, 0x41, 0, 0, 0, 0, 16, 0, 1]);
    await quiet();
    assertEquals(device.takeCalls(), ["available 1"]);
  });
});
