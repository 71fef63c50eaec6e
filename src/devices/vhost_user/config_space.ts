/**
 * The configuration space of a device whose back end has it: a copy, so that whoever reads it in pieces does not read of two
 * different ones, and is answered also while there is no back end. It is read anew when the back end says that it
 * changed, when the driver has written to it, and when features were agreed on.
 *
 * Back ends are asked from the first byte on, because there are some that look at the length only; and for as much as they have,
 * which is found out by asking.
 */

import type { BackEnd } from "./back_end.ts";
import type { DeviceType } from "./device_types.ts";

/** See the head of this file. */
export class ConfigSpace {
  /** The copy. */
  bytes: Uint8Array = new Uint8Array();
  #queues = 0;

  /** @param fixed what it is whatever the back end has */
  constructor(readonly type: DeviceType, readonly fixed: Uint8Array | undefined) {}

  /** Does it not come from the back end? */
  get isFixed(): boolean {
    return this.fixed !== undefined;
  }

  /** What a back end has. */
  async read(backEnd: BackEnd): Promise<Uint8Array> {
    if (this.fixed !== undefined) return this.fixed;
    for (const size of this.type.configSizes) {
      const bytes = await backEnd.readConfig(size);
      if (bytes !== undefined) return bytes;
    }
    return new Uint8Array();
  }

  /** Takes the copy. @returns whether it reads otherwise now */
  set(bytes: Uint8Array, queues: number): boolean {
    this.#queues = queues;
    const copy = bytes.slice();
    limitQueues(copy, this.type, queues);
    const isSame = copy.length === this.bytes.length &&
      copy.every((byte, i) => byte === this.bytes[i]);
    this.bytes = copy;
    return !isSame;
  }

  /** Reads it anew. @returns whether it reads otherwise now */
  async refresh(backEnd: BackEnd): Promise<boolean> {
    if (this.isFixed || this.bytes.length === 0) return false;
    const bytes = await backEnd.readConfig(this.bytes.length);
    return bytes !== undefined && this.set(bytes, this.#queues);
  }
}

/** Has the configuration space promise no more queues than there are. */
function limitQueues(config: Uint8Array, { queueCount }: DeviceType, queues: number): void {
  if (queueCount === undefined || config.length < queueCount.at + queueCount.bytes) return;
  const { at, bytes, others } = queueCount;
  const view = new DataView(config.buffer, config.byteOffset + at, bytes);
  const most = Math.max(1, queues - others);
  if (bytes === 2) view.setUint16(0, Math.min(most, view.getUint16(0, true)), true);
  else view.setUint32(0, Math.min(most, view.getUint32(0, true)), true);
}
