// deno run -A docs/examples/own_device.ts own.sock: a console that prints what a guest writes to hvc0.
import {
  allocate,
  Chain,
  codecFor,
  createLog,
  type DeviceQueue,
  DeviceSide,
  openLinuxUserBus,
  QueueDevice,
  Reactor,
  take,
} from "../../mod.ts";

const chain = new Chain();
const text = allocate(4096);

function print(queue: DeviceQueue, budget: number): boolean {
  for (let i = 0; i < budget; i++) {
    if (!take(queue, chain)) return false; // no buffer left: sleep until the driver kicks
    for (let at = 0; at < chain.readable.length;) {
      const length = chain.readable.copyOut(at, text.address, text.bytes.length);
      at += Deno.stdout.writeSync(text.bytes.subarray(0, length));
    }
    queue.complete(chain.head, 0);
  }
  return true; // there may be more, after others had their turn
}

async function serve(socket: string): Promise<void> {
  const log = createLog("own device", "info", console.error);
  using reactor = new Reactor();
  using bus = openLinuxUserBus("device", reactor, { socket }, log);
  using side = new DeviceSide({ reactor, bus, codec: codecFor("v1"), log });
  side.add(0, new QueueDevice(reactor, { deviceId: 3, queues: [() => false, print] }));
  side.open();
  await reactor.run();
}

if (import.meta.main) await serve(Deno.args[0]);
