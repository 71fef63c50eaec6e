/** What the device side does about a driver side that translates addresses: order, bounds and life; in virtual time. */

import { assertEquals } from "@std/assert";
import { mapAnonymous, PAGE_SIZE } from "../../src/linux/mapping.ts";
import { Kind, type Message } from "../../src/message/message.ts";
import { ANSWER_MS, MAX_ASKED } from "../../src/transport/translation.ts";
import { type Rig, RINGS, withSide } from "../support/device_rig.ts";

const MACHINE_AT = 0x10_0000;
const PAGES = 64;

/** A device with the machine's memory, whose driver side has said that it translates. */
async function withTranslation(body: (rig: Rig, pages: () => number[]) => Promise<void>) {
  using memory = mapAnonymous(PAGES * PAGE_SIZE);
  const fixed = [{ at: MACHINE_AT, size: memory.size, memory, offset: 0 }];
  await withSide(async (rig) => {
    await begin(rig);
    await body(rig, () => questions(rig).map(({ address }) => address));
  }, { dialect: "proto", fixed });
}

async function begin({ peer, device }: Rig) {
  await peer.ask(Kind.GET_DEVICE_INFO);
  peer.send(Kind.IOMMU_ENABLE, (m) => m.state = 1);
  await status({ peer }, 0);
  device.takeCalls();
}

async function status({ peer }: Pick<Rig, "peer">, value: number): Promise<number> {
  peer.send(Kind.SET_DEVICE_STATUS, (m) => m.status = value);
  return await statusNow({ peer });
}

/** What comes meanwhile stays. */
async function statusNow({ peer }: Pick<Rig, "peer">): Promise<number> {
  const others: Message[] = [];
  peer.send(Kind.GET_DEVICE_STATUS);
  for (;;) {
    const message = await peer.next();
    if (message.kind === Kind.GET_DEVICE_STATUS) {
      // Events come behind the answer.
      await peer.reactor.sleep(0);
      peer.messages.unshift(...others);
      return message.status;
    }
    others.push(message);
  }
}

/** The questions that came, taken. */
function questions({ peer }: Rig): Message[] {
  return peer.messages.splice(0).filter(({ kind }) => kind === Kind.IOMMU_TRANSLATE);
}

const answer = ({ peer }: Rig, address: number, physical: number, prot = 3) =>
  peer.reply(Object.assign(request(), { address }), (m) => {
    m.address = address;
    m.physicalAddress = physical;
    m.prot = prot;
  });

const request = () => ({ kind: Kind.IOMMU_TRANSLATE, device: 0, token: 0 }) as Message;

function setQueue({ peer }: Rig, index: number, at = 0) {
  peer.send(Kind.SET_VQUEUE, (m) => {
    m.index = index;
    m.queueSize = 64;
    m.descriptorAddress = at + RINGS.descriptorAddress;
    m.driverAddress = at + RINGS.driverAddress;
    m.deviceAddress = at + RINGS.deviceAddress;
  });
}

Deno.test("a queue starts when its rings are translated; requests are answered meanwhile", async () => {
  await withTranslation(async (rig, pages) => {
    await status(rig, 3);
    setQueue(rig, 1);
    assertEquals(await statusNow(rig), 3);
    assertEquals([pages(), rig.device.takeCalls()], [[0x1000, 0x2000, 0x3000], []]);
    // In any order.
    [0x3000, 0x1000, 0x2000].forEach((page, n) => answer(rig, page, MACHINE_AT + n * PAGE_SIZE));
    await statusNow(rig);
    assertEquals(rig.device.takeCalls(), ["start 1", "available 1", "resume"]);
    assertEquals(rig.device.setups.at(-1)!.deviceAddress, 0x3000);
    assertEquals(rig.device.host.terms, undefined, "other threads cannot ask");
    const found = rig.device.host.memory.find(0x3000, 64)!;
    assertEquals(found.byteOffset + 0x3000 - found.at, 0);
    // Known now: no question.
    setQueue(rig, 2);
    await statusNow(rig);
    assertEquals([pages(), rig.device.takeCalls()], [[], ["start 2", "available 2"]]);
  });
});

Deno.test("all zeros refuse the oldest question, and one that a reset overtook refuses nothing", async () => {
  await withTranslation(async (rig, pages) => {
    await status(rig, 3);
    setQueue(rig, 0);
    await statusNow(rig);
    assertEquals(pages().length, 3);
    await status(rig, 0);
    await status(rig, 3);
    setQueue(rig, 0);
    await statusNow(rig);
    assertEquals(pages(), [0x1000, 0x2000, 0x3000], "asked anew");
    for (let i = 0; i < 3; i++) answer(rig, 0, 0, 0);
    assertEquals(await statusNow(rig), 3);
    answer(rig, 0x1000, MACHINE_AT);
    answer(rig, 0, 0, 0);
    answer(rig, 0x3000, MACHINE_AT);
    assertEquals(await statusNow(rig), 0x43);
    assertEquals(rig.device.takeCalls().filter((call) => call !== "resume"), []);
    assertEquals(
      rig.lines.filter((line) => /needs a reset/.test(line)),
      [
        "test: device 0 needs a reset: queue 0: ring at 0x2000 is in a page that the driver side " +
        "refuses to translate",
      ],
    );
  });
});

Deno.test("questions have a bound; nobody who answers none is waited for for ever", async () => {
  await withTranslation(async (rig, pages) => {
    await status(rig, 3);
    for (let index = 0; index < 3; index++) {
      rig.peer.send(Kind.SET_VQUEUE, (m) => {
        m.index = index;
        m.queueSize = 256;
        m.descriptorAddress = 0x1_0000 * (index + 1) + 0x10;
        m.driverAddress = 0x1_0000 * (index + 1) + 0x2000;
        m.deviceAddress = 0x1_0000 * (index + 1) + 0x3ff0;
      });
    }
    await statusNow(rig);
    const asked = pages();
    assertEquals(asked.length <= MAX_ASKED, true);
    const before = rig.clock.now();
    await rig.reactor.sleep(ANSWER_MS - 1000);
    assertEquals(await statusNow(rig), 3);
    await rig.reactor.sleep(2000);
    assertEquals(await statusNow(rig), 0x43);
    assertEquals(rig.clock.now() - before < ANSWER_MS + 2000, true);
    assertEquals(rig.lines.filter((line) => /has not translated/.test(line)).length, 1);
    // What comes now is nobody's; a reset cures it.
    rig.peer.messages.length = 0;
    asked.forEach((page) => answer(rig, page, MACHINE_AT));
    assertEquals([await status(rig, 0), await status(rig, 3)], [0, 3]);
    setQueue(rig, 0);
    await statusNow(rig);
    assertEquals(pages(), [0x1000, 0x2000, 0x3000]);
  });
});

Deno.test("translation lasts until a driver that begins anew does not ask for it", async () => {
  await withTranslation(async (rig, pages) => {
    await status(rig, 0);
    await status(rig, 3);
    setQueue(rig, 0);
    await statusNow(rig);
    assertEquals(pages().length, 3, "still, after two resets");
    await rig.peer.ask(Kind.GET_DEVICE_INFO);
    await status(rig, 0);
    await status(rig, 3);
    setQueue(rig, 0, MACHINE_AT);
    await statusNow(rig);
    assertEquals(pages(), []);
    assertEquals(rig.device.takeCalls().filter((call) => call === "start 0"), ["start 0"]);
    assertEquals(rig.device.host.memory.find(MACHINE_AT, 64)?.at, MACHINE_AT);
    // Under a queue it cannot change: the device stands still until it is reset, then it does.
    rig.peer.send(Kind.IOMMU_ENABLE, (m) => m.state = 1);
    assertEquals(await statusNow(rig), 0x43);
    assertEquals(rig.device.host.memory.find(MACHINE_AT, 64)?.at, MACHINE_AT);
    rig.peer.messages.length = 0;
    await status(rig, 0);
    await status(rig, 3);
    setQueue(rig, 0);
    await statusNow(rig);
    assertEquals(pages().length, 3);
    rig.peer.send(Kind.IOMMU_ENABLE, (m) => m.state = 0);
    setQueue(rig, 0, MACHINE_AT);
    await statusNow(rig);
    assertEquals(pages(), []);
  });
});
