/**
 * The proxy between a front end and a device side that is under the test's control: what is asked of it,
 * in which order, and what happens when it dies or is replaced between two answers.
 */

import { assert, assertEquals } from "@std/assert";
import { createEventFd, signalEventFd } from "../../../src/linux/eventfd.ts";
import { createSealedMemory, type Fd } from "../../../src/linux/fd.ts";
import { DEVICE_ADDED, Kind, type Message } from "../../../src/message/message.ts";
import { kindName } from "../../../src/message/table.ts";
import { createLog } from "../../../src/observe/log.ts";
import { Request } from "../../../src/vhost_user/protocol.ts";
import { Descriptors } from "../../../src/sharing/descriptors.ts";
import { VhostUserServer } from "../../../src/drivers/vhost_user/server.ts";
import {
  answerHello,
  type DriverRig,
  type DriverRigOptions,
  withDriverSide,
} from "../../support/driver_rig.ts";
import { MEMORY_SIZE, RawFrontEnd, u32s } from "../../support/front_end.ts";
import { cleanTest, withDirectory } from "../../support/leaks.ts";
import { SetQueues } from "../../support/raw_peer.ts";

const FEATURES_OK = 0xb;
const DRIVER_OK = 0xf;

/** A front end, the proxy, and a raw peer that answers as a device unless the test holds a request. */
interface Rig extends DriverRig {
  readonly front: RawFrontEnd;
  readonly memory: Fd;
  readonly kick: Fd;
  /** What the proxy asked: a kind, with the status that was set. */
  readonly asked: string[];
  /** Sees each request; true: it is not answered. */
  hold: (request: Message) => boolean;
  /** Answers as the device. */
  answer(request: Message): void;
  /** Another device side is there. */
  replace(): void;
}

function withDevice(body: (rig: Rig) => Promise<void>, options: DriverRigOptions = {}) {
  return withDirectory((directory) =>
    withDriverSide(async (driver) => {
      const { reactor, side, peer, hellos, hello } = driver;
      using stack = new DisposableStack();
      const memory = stack.use(createSealedMemory("vmsg-test", MEMORY_SIZE));
      const kick = stack.use(createEventFd());
      const log = createLog("test", "info", (line) => driver.lines.push(line));
      const path = `${directory}/vu.sock`;
      const source = { kind: "listen", socket: path } as const;
      const sharing = new Descriptors(side.device(3));
      stack.use(new VhostUserServer(reactor, side, { source, device: 3 }, log, sharing));
      const front = stack.use(new RawFrontEnd(reactor, path));
      const queues = new SetQueues();
      const answer = (request: Message) =>
        peer.reply(request, (m) => {
          m.deviceId = 1;
          m.featureBlocks = 2;
          m.configSize = 12;
          m.maxQueues = 3;
          m.index = request.index;
          m.count = request.count;
          m.words[1] = 1;
          m.status = request.status;
          m.offset = request.offset;
          m.length = request.length;
          m.base = 7;
          queues.answer(request, m);
        });
      const rig: Rig = {
        ...driver,
        front,
        memory,
        kick,
        asked: [],
        hold: () => false,
        answer,
        replace() {
          hello.epoch++;
          answerHello(driver, hellos.at(-1)!);
        },
      };
      const greets = peer.onMessage!;
      peer.onMessage = (message) => {
        if (message.kind === Kind.HELLO) return greets(message);
        if (message.kind === Kind.EVENT_AVAIL) return false;
        const isStatus = message.kind === Kind.SET_DEVICE_STATUS;
        rig.asked.push(kindName(message.kind) + (isStatus ? ` ${message.status}` : ""));
        if (!rig.hold(message)) answer(message);
        return false;
      };
      await driver.wait(() => side.isReady);
      await body(rig);
    }, options)
  );
}

const isStatus = (status: number) => (request: Message) =>
  request.kind === Kind.SET_DEVICE_STATUS && request.status === status;

/** Sets a ring up and lets it run. */
async function start(rig: Rig): Promise<void> {
  await rig.front.setUp(rig.memory);
  rig.front.startRing(0, rig.kick);
  await rig.wait(() => rig.asked.includes(`SET_DEVICE_STATUS ${DRIVER_OK}`));
  await rig.front.barrier();
}

cleanTest(
  "proxy: a device side that is replaced behind its answer is negotiated with anew",
  () =>
    withDevice(async (rig) => {
      let replaced = false;
      rig.hold = (request) => {
        if (replaced || !isStatus(FEATURES_OK)(request)) return false;
        // Both arrive in one turn of the proxy's loop.
        rig.answer(request);
        rig.replace();
        replaced = true;
        rig.asked.length = 0;
        return true;
      };
      await start(rig);
      assertEquals(rig.asked.filter((name) => !name.startsWith("GET_")), [
        "ADD_MEMORY",
        "SET_DEVICE_STATUS 0",
        "SET_DEVICE_STATUS 1",
        "SET_DEVICE_STATUS 3",
        "SET_DRIVER_FEATURES",
        `SET_DEVICE_STATUS ${FEATURES_OK}`,
        "SET_VQUEUE",
        `SET_DEVICE_STATUS ${DRIVER_OK}`,
      ]);
    }),
);

cleanTest(
  "proxy: a front end that hangs up while a kick starts its ring ends nothing else",
  () =>
    withDevice(async (rig) => {
      const { front } = rig;
      let held: Message | undefined;
      rig.hold = (request) => {
        if (held !== undefined || !isStatus(FEATURES_OK)(request)) return false;
        held = request;
        return true;
      };
      await front.setUp(rig.memory);
      // Ring 1 is never enabled, so that the kick starts ring 0, beside the requests.
      front.send(Request.SET_VRING_NUM, u32s(1, 64));
      front.send(Request.SET_VRING_ADDR, u32s(1, 0, 0, 0, 0, 0, 0, 0, 0, 0));
      front.send(Request.SET_VRING_KICK, u32s(1, 0), [rig.kick]);
      front.startRing(0, rig.kick);
      await front.barrier();
      signalEventFd(rig.kick);
      await rig.wait(() => held !== undefined);
      front[Symbol.dispose]();
      // Long enough for the proxy to see it.
      await rig.reactor.sleep(20);
      rig.answer(held!);
      await rig.wait(() => rig.lines.some((line) => line.includes("hung up; waiting")));
      assertEquals(rig.asked.slice(-3), [
        "STOP_VQUEUE",
        "REMOVE_MEMORY",
        "SET_DEVICE_STATUS 0",
      ]);
    }),
);

cleanTest(
  "proxy: the configuration is asked again of the device side that comes next",
  () =>
    withDevice(async (rig) => {
      rig.hold = (request) => {
        if (request.kind !== Kind.GET_CONFIG) return false;
        rig.hold = () => false;
        rig.replace();
        return true;
      };
      const config = await rig.front.ask(Request.GET_CONFIG, u32s(0, 6, 0, 0, 0));
      assertEquals(config.byteLength, 18);
    }),
);

cleanTest(
  "proxy: a device with 2^32 - 1 feature blocks is asked for those that exist",
  () =>
    withDevice(async (rig) => {
      let blocks = 0;
      rig.hold = (request) => {
        if (request.kind === Kind.GET_DEVICE_FEATURES) {
          blocks = Math.max(blocks, request.index + request.count);
        }
        if (request.kind !== Kind.GET_DEVICE_INFO) return false;
        rig.peer.reply(request, (m) => {
          m.deviceId = 1;
          m.featureBlocks = 0xffff_ffff;
          m.maxQueues = 3;
        });
        return true;
      };
      rig.replace();
      await rig.front.ask(Request.GET_FEATURES);
      assert(blocks <= 64, `${blocks}`);
    }),
);

cleanTest(
  "proxy: a device side with another kind of device under the number, or with none",
  () =>
    withDevice(async (rig) => {
      await start(rig);
      let deviceId = 0;
      rig.hold = (request) => {
        if (request.kind !== Kind.GET_DEVICE_INFO) return false;
        rig.peer.reply(request, (m) =>
          Object.assign(m, { deviceId, featureBlocks: 2, maxQueues: 3 }));
        return true;
      };
      rig.replace();
      await rig.wait(() =>
        rig.lines.some((line) => line.includes("no device 3: waiting for it"))
      );
      await rig.reactor.sleep(3000);
      assert(!rig.front.hungUp, "it waits for its device");
      deviceId = 2;
      rig.peer.send(Kind.EVENT_DEVICE, (m) => Object.assign(m, { number: 3, state: DEVICE_ADDED }));
      await rig.wait(() => rig.front.hungUp);
      const said = rig.lines.filter((line) => /device id 2, the last one had 1/.test(line));
      assertEquals(said.length, 1);
    }),
);

cleanTest(
  "proxy: to a device side that cannot be reset this is a new attachment",
  () =>
    withDevice(async (rig) => {
      await start(rig);
      rig.hold = (request) => request.kind === Kind.STOP_VQUEUE;
      rig.front[Symbol.dispose]();
      const [{ epoch }] = rig.hellos;
      await rig.wait(() => rig.hellos.at(-1)!.epoch !== epoch);
      assert(rig.lines.some((line) => line.includes("did not answer STOP_VQUEUE within 100 ms")));
      await rig.wait(() => rig.lines.some((line) => line.includes("hung up; waiting")));
    }, { requestTimeoutMs: 100 }),
);
