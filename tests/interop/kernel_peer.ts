/**
 * What Linux's ivshmem driver of `proto` does (docs/wire.md 2.5): one request at a time, whose answer an interrupt
 * brings and nothing else; SET_* are sent without waiting, and what is answered to them is let pass.
 */

import type { IvshmemWire } from "./ivshmem_wire.ts";
import { DriverPeer, type FoundDevice, type PeerMemory } from "./proto_peer.ts";

/** As the kernel does. */
const TIMEOUT_MS = 100_000;
const ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8;
const bit = (n: number) => 1n << BigInt(n);
/** MAC, MRG_RXBUF, STATUS, INDIRECT_DESC, EVENT_IDX, VERSION_1, ACCESS_PLATFORM. */
const WANTED = bit(5) | bit(15) | bit(16) | bit(28) | bit(29) | bit(32) | bit(33);

type Ask = DriverPeer["ask"];

/** See the head of this file. */
export class KernelPeer extends DriverPeer {
  constructor(override readonly wire: IvshmemWire, memory: PeerMemory) {
    super("driver", "proto", wire, memory);
  }

  /** Looks into the queue only when interrupted. */
  override async ask(...[name, size, fill]: Parameters<Ask>): ReturnType<Ask> {
    await this.push(name, false, size, fill);
    const endMs = performance.now() + TIMEOUT_MS;
    while (await this.wire.interrupted(endMs - performance.now())) {
      let found: Awaited<ReturnType<Ask>> | undefined;
      for (let slot = this.in.pop(); slot !== undefined; slot = this.in.pop()) {
        const message = this.decode(slot);
        if (message.response && message.name === name) found = message;
        else if (!message.response) this.keep(message);
        else if (!["setFeatures", "setConfig"].includes(message.name!)) {
          this.abort(`unexpected answer ${message.name}`);
        }
      }
      if (found !== undefined) return found;
    }
    this.abort(`no interrupt brought an answer to ${name}`);
    throw new Error(this.aborts.at(-1));
  }

  /** Sends a SET_*. */
  #tell(name: "setFeatures" | "setStatus" | "resetQueue", fill: (payload: DataView) => void) {
    return this.push(name, false, 36, fill);
  }

  override async setStatus(status: number): Promise<number> {
    await this.#tell("setStatus", (p) => p.setUint32(0, status, true));
    return await this.status();
  }

  async status(): Promise<number> {
    return (await this.ask("getStatus", 0, () => {})).payload.getUint32(0, true);
  }

  /** `modprobe`: everything from finding the device to DRIVER_OK. */
  async load(): Promise<FoundDevice> {
    const info = await this.ask("info", 0, () => {});
    const [deviceId, vendorId] = [4, 8].map((at) => info.payload.getUint32(at, true));
    for (const status of [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER]) await this.setStatus(status);
    const offered = await this.getFeatures();
    this.features = offered & WANTED;
    await this.#tell("setFeatures", (p) => p.setBigUint64(4, this.features, true));
    const isOk = await this.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if ((isOk & FEATURES_OK) === 0) this.abort("FEATURES_OK refused");
    const mac = new Uint8Array(6);
    for (let i = 0; i < 6; i++) mac.set(await this.getConfig(i, 1), i);
    // A u64 is read in one piece.
    const first = await this.getConfig(0, 8);
    if (mac.some((byte, i) => byte !== first[i])) this.abort("8 bytes of configuration differ");
    const maxSizes = await this.probe();
    for (let index = 0; index < 2; index++) await this.startRing(index);
    const status = await this.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for (let i = 0; i < 16; i++) this.offerReceive(i);
    await this.kick(0);
    return { deviceId: deviceId!, vendorId: vendorId!, offered, maxSizes, status, mac };
  }

  /** `rmmod`: a reset, then the queues go, which nobody answers. */
  async unload(): Promise<void> {
    if (await this.setStatus(0) !== 0) this.abort("no reset");
    for (let index = 0; index < 2; index++) {
      await this.#tell("resetQueue", (p) => p.setUint32(0, index, true));
    }
    if (await this.setStatus(0) !== 0) this.abort("no reset");
  }
}
