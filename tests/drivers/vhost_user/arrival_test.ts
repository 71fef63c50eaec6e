/** A front end whose device is not there yet, is taken away, and comes back. */

import { assert, assertEquals } from "@std/assert";
import { VhostUserServer } from "../../../src/drivers/vhost_user/server.ts";
import { createLog } from "../../../src/observe/log.ts";
import { listenUnix } from "../../../src/linux/unix_socket.ts";
import { Descriptors } from "../../../src/sharing/descriptors.ts";
import { REST_MS } from "../../../src/transport/arrivals.ts";
import { Request } from "../../../src/vhost_user/protocol.ts";
import { FakeDevice } from "../../support/fake_device.ts";
import { MEMORY_SIZE, type ProxyRig, RawFrontEnd, withProxy } from "../../support/front_end.ts";
import { cleanTest } from "../../support/leaks.ts";

const exists = (path: string) => {
  try {
    return Deno.lstatSync(path).isSocket === true;
  } catch {
    return false;
  }
};

/** A front end at work with ring 0 of a device. */
async function atWork(rig: ProxyRig, device: FakeDevice): Promise<RawFrontEnd> {
  const front = rig.connect();
  await front.setUp(rig.memory);
  front.startRing(0, rig.kick);
  await rig.wait(() => device.calls.includes("start 0"));
  await front.barrier();
  return front;
}

for (const confined of [undefined, MEMORY_SIZE]) {
  const how = confined === undefined ? "shared memory" : "confined";
  cleanTest(
    `${how}: a front end whose device is removed is let go of, and finds it when it is back`,
    () =>
      withProxy(async (rig) => {
        const { deviceSide, device, reactor, path, lines } = rig;
        const front = await atWork(rig, device);
        device.takeCalls();
        await deviceSide.remove(0);
        assertEquals(device.takeCalls().filter((call) => call !== "available 0"), [
          "stop 0",
          "dispose",
        ]);
        await rig.wait(() => front.hungUp && !exists(path));
        await reactor.sleep(REST_MS);
        assertEquals(lines.filter((line) => line.includes("device 0 was removed")).length, 1);
        const again = new FakeDevice();
        deviceSide.add(0, again);
        await rig.wait(() => exists(path));
        await atWork(rig, again);
        assertEquals(lines.filter((line) => /refused|needs a reset|error/.test(line)), []);
      }, confined === undefined ? {} : { confined }),
  );
}

cleanTest(
  "a front end whose device is not there yet waits for it, and goes on",
  () =>
    withProxy(async (rig) => {
      const { deviceSide, driverSide, reactor, lines } = rig;
      await rig.wait(() => driverSide.isReady);
      const log = createLog("test", "info", (line) => lines.push(line));
      const path = `${rig.path}.1`;
      const source = { kind: "listen", socket: path } as const;
      const sharing = new Descriptors(driverSide.device(1));
      using _server = new VhostUserServer(reactor, driverSide, { source, device: 1 }, log, sharing);
      using front = new RawFrontEnd(reactor, path);
      const features = front.ask(Request.GET_FEATURES);
      await reactor.sleep(1000);
      assert(!front.hungUp);
      const late = new FakeDevice();
      deviceSide.add(1, late);
      await features;
      await front.setUp(rig.memory);
      front.startRing(0, rig.kick);
      await rig.wait(() => late.calls.includes("start 0"));
      // The other device has its own.
      await atWork(rig, rig.device);
    }),
);

cleanTest(
  "a proxy that connects leaves a front end's socket alone until the device is back",
  () =>
    withProxy(async (rig) => {
      const { deviceSide, driverSide, reactor, lines } = rig;
      const log = createLog("test", "info", (line) => lines.push(line));
      deviceSide.add(1, new FakeDevice());
      await rig.wait(() => driverSide.isReady);
      const path = `${rig.path}.1`;
      using listener = listenUnix(path);
      const source = { kind: "connect", socket: path } as const;
      const sharing = new Descriptors(driverSide.device(1));
      using _server = new VhostUserServer(reactor, driverSide, { source, device: 1 }, log, sharing);
      using first = listener.accept()!;
      await deviceSide.remove(1);
      await rig.wait(() => first.isPeerGone);
      await reactor.sleep(5 * REST_MS);
      assertEquals(listener.accept(), undefined);
      deviceSide.add(1, new FakeDevice());
      await reactor.sleep(100);
      using second = listener.accept();
      assert(second !== undefined);
    }),
);

cleanTest(
  "a path that somebody else has taken meanwhile is said, and tried again",
  () =>
    withProxy(async (rig) => {
      const { deviceSide, reactor, path, lines, driverSide } = rig;
      await rig.wait(() => driverSide.isReady);
      await deviceSide.remove(0);
      await rig.wait(() => !exists(path));
      const taken = listenUnix(path);
      await reactor.sleep(REST_MS);
      deviceSide.add(0, new FakeDevice());
      await reactor.sleep(100);
      assertEquals(lines.filter((line) => line.includes("is in use by another process")).length, 1);
      taken[Symbol.dispose]();
      await reactor.sleep(REST_MS);
      await rig.wait(() => exists(path));
      await rig.connect().setUp(rig.memory);
    }),
);
