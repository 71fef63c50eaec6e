/** docs/examples/own_device.ts, as it stands there and in mod.ts, driven by what mod.ts offers for drivers. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  codecFor,
  createLog,
  DriverQueue,
  DriverSide,
  hasFeature,
  openLinuxUserBus,
  ownMemory,
  Reactor,
  type RemoteDevice,
  RingFeature,
  Status,
  tellRegion,
} from "../../mod.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

const EXAMPLE = fromFileUrl(new URL("../../docs/examples/own_device.ts", import.meta.url));
const CONSOLE = 3;
const TRANSMIT = 1;
const MEMORY_SIZE = 0x10000;
/** Where in the memory the text is. */
const TEXT = 0x8000;
/** More than the example prints at a time. */
const TEXT_SENT = `hello from a driver of our own\n${"x".repeat(10_000)}\n`;

Deno.test("own device: the text in mod.ts is the example's, which has 40 lines at most", async () => {
  const example = await Deno.readTextFile(EXAMPLE);
  assert(example.trimEnd().split("\n").length <= 40);
  const module = await Deno.readTextFile(new URL("../../mod.ts", import.meta.url));
  const shown = module.split("\n").map((line) => line.replace(/^ \* ?/, "")).join("\n");
  const code = example.slice(example.indexOf("import {")).replace("../../mod.ts", "./mod.ts");
  assertStringIncludes(shown, code);
});

/** Brings a device up as VIRTIO 1.3 section 3.1.1 says, with one queue. */
async function bringUp(device: RemoteDevice, queue: DriverQueue): Promise<void> {
  await device.reset();
  let status = await device.setStatus(Status.ACKNOWLEDGE | Status.DRIVER);
  assert(hasFeature(await device.features(2), RingFeature.VERSION_1));
  await device.setFeatures(new Uint32Array([0, 1 << (RingFeature.VERSION_1 - 32)]));
  status = await device.setStatus(status | Status.FEATURES_OK);
  assert((status & Status.FEATURES_OK) !== 0);
  const { size, descriptorAddress, driverAddress, deviceAddress } = queue;
  const setup = { size, descriptorAddress, driverAddress, deviceAddress, base: 0 };
  await device.startQueue(TRANSMIT, setup);
  await device.setStatus(status | Status.DRIVER_OK);
}

/** Finds the device behind the socket, sends it one buffer, and waits until it was used. */
async function writeToConsole(directory: string, text: string): Promise<void> {
  const log = createLog("test", "warn", console.error);
  using reactor = new Reactor();
  using bus = openLinuxUserBus("driver", reactor, { socket: `${directory}/s`, directory }, log);
  using side = new DriverSide({ reactor, bus, codec: codecFor("v1"), log });
  using memory = ownMemory(MEMORY_SIZE);
  const queue = new DriverQueue({ place: memory, size: 8, eventIndex: false, indirect: false });
  const device = side.device(0);
  const ready = reactor.defer<void>();
  side.listen({ ready: () => ready.resolve(), lost: (reason) => reactor.fail(new Error(reason)) });
  side.open();
  await reactor.until((async () => {
    await ready.promise;
    const { deviceId, maxQueues } = await device.info();
    assertEquals([deviceId, maxQueues], [CONSOLE, 2]);
    for (const region of memory.regions) await tellRegion(device, region);
    await bringUp(device, queue);
    const bytes = new TextEncoder().encode(text);
    new Uint8Array(memory.memory.buffer).set(bytes, memory.offset + TEXT);
    queue.addOne(memory.at + TEXT, bytes.length, false, 7);
    if (queue.publish()) device.available(TRANSMIT);
    while (!queue.nextUsed()) await reactor.sleep(1);
    assertEquals([queue.usedToken, queue.usedLength], [7, 0]);
  })());
}

cleanTest(
  "own device: what a driver writes to it is printed",
  () =>
    withDirectory(async (directory) => {
      const child = new Deno.Command(Deno.execPath(), {
        args: ["run", "--quiet", "--allow-all", EXAMPLE, `${directory}/s`],
        cwd: directory,
        stdout: "piped",
        stderr: "null",
      }).spawn();
      try {
        await writeToConsole(directory, TEXT_SENT);
      } finally {
        child.kill();
      }
      const { stdout } = await child.output();
      const printed = new TextDecoder().decode(stdout);
      assertEquals([printed.length, printed === TEXT_SENT], [TEXT_SENT.length, true]);
    }),
);
