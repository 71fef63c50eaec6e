/**
 * A port whose frames are captured, in both directions: one interface of a capture (observe/capture_file.ts).
 *
 * The wrapped port works as before; what it sent or received is copied. A frame is captured as it crosses the port,
 * without its virtio-net header: with offloads it may be as large as 64 KiB, and its checksum not filled in yet.
 */

import type { IovecList } from "../memory/mod.ts";
import type { CaptureFile } from "../observe/capture_file.ts";
import { LINKTYPE_ETHERNET } from "../observe/pcapng.ts";
import { NET_HEADER_SIZE } from "../virtio/net_header.ts";
import type { NetworkPort, PortQueue } from "./port.ts";

/**
 * See the head of this file. Adds an interface to a capture.
 *
 * @param port is disposed with the one that is returned, as the file is if it is this port's own
 * @param name of the interface, as in "net0"
 */
export function capturingPort(
  port: NetworkPort,
  file: CaptureFile,
  name: string,
  isOwn: boolean,
): NetworkPort {
  const { description, features } = port;
  const packets = file.add({ linkType: LINKTYPE_ETHERNET, name, description });
  const capture = (frame: IovecList, length: number, first: number) => {
    const size = length - NET_HEADER_SIZE;
    if (size <= 0) return;
    const kept = file.keptOf(size);
    const at = packets.claim(kept, size);
    if (at >= 0) frame.copyOut(NET_HEADER_SIZE, file.address + BigInt(at), kept, first);
  };
  const watched = (queue: PortQueue): PortQueue => ({
    send: (frame) => {
      if (!queue.send(frame)) return false;
      capture(frame, frame.length, 0);
      return true;
    },
    nextLength: () => queue.nextLength(),
    receive: (into, first) => {
      const length = queue.receive(into, first);
      if (length > 0) capture(into, length, first);
      return length;
    },
    discard: () => queue.discard(),
  });
  const queues = port.queues?.map(watched);
  return {
    ...queues?.[0] ?? watched(port),
    queues,
    description: `${description}, captured in ${file.path}`,
    features,
    setFeatures: (words) => port.setFeatures?.(words),
    startOver: () => port.startOver?.(),
    setMac: (mac) => port.setMac?.(mac),
    open: (listener) => port.open(listener),
    setQueues: (count) => port.setQueues?.(count),
    [Symbol.dispose]: () => {
      if (isOwn) file[Symbol.dispose]();
      port[Symbol.dispose]();
    },
  };
}
