/**
 * The driver side's end of an AMP layout (docs/wire.md 4.5), for peers of proto_peer.ts: from the document alone, without src/, and
 * through a file. As a kernel does it: it believes what the block says, steps through the handshake, and then never looks
 * at a status again.
 */

import { MemoryFile, type Wire } from "./proto_peer.ts";

const LAYOUT = 0x4c4f;
const HEAD = 0x514f;
const [INIT, READY, RUN, SHUTDOWN] = [0, 1, 2, 3];

/** One look after the other, until it is so. */
async function until(isSo: () => boolean): Promise<void> {
  for (let looks = 0; !isSo(); looks++) {
    if (looks > 60_000) throw new Error("the device side does not come");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/**
 * Waits for the layout at the start of a file, and for the device side.
 *
 * @param ends it says so at its end; otherwise it vanishes as a machine does that is switched off
 */
export async function ampWire(path: string, ends: boolean): Promise<Wire> {
  const memory = new MemoryFile(path, undefined);
  const u16 = (at: number) => memory.u16(at);
  await until(() => u16(0) === LAYOUT);
  const [length, version] = [u16(2), u16(4)];
  if (length !== 64 || version !== 1) throw new Error(`a block of ${length}, version ${version}`);
  const [count, size] = [u16(10), u16(12)];
  const [theirs, theirElements, own, ownElements] = [24, 32, 48, 56].map((at) =>
    memory.u32(at)
  ) as [
    ...[number, number, number, number],
  ];
  const status = (value: number) => memory.setU16(own + 2, value);
  status(INIT);
  memory.setU16(own, HEAD);
  await until(() => u16(theirs) === HEAD);
  memory.write(ownElements, new Uint8Array(count * size));
  memory.setU16(own + 4, 0);
  memory.setU16(own + 6, 0);
  status(READY);
  await until(() => u16(theirs + 2) % 32 !== INIT);
  status(RUN);
  await until(() => u16(theirs + 2) % 32 === RUN);
  // What a machine that was switched off has not read it drops now, as nothing it asked for.
  memory.setU16(own + 6, u16(theirs + 4));
  const next = (cursor: number) => (cursor + 1) % count;
  return {
    driver: {
      push(message) {
        const tail = u16(own + 4);
        if (next(tail) === u16(theirs + 6)) throw new Error("the queue is full");
        memory.write(ownElements + size * tail, message);
        memory.setU16(own + 4, next(tail));
      },
      pop: () => undefined,
      length: 0,
    },
    device: {
      push() {},
      get length() {
        return (u16(theirs + 4) - u16(own + 6) + count) % count;
      },
      pop() {
        const head = u16(own + 6);
        if (head === u16(theirs + 4)) return undefined;
        const message = new Uint8Array(memory.read(theirElements + size * head, 64).buffer);
        memory.setU16(own + 6, next(head));
        return message;
      },
    },
    async ring() {},
    [Symbol.dispose]() {
      if (ends) status(SHUTDOWN);
      memory[Symbol.dispose]();
    },
  };
}
