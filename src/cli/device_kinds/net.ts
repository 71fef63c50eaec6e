/** `--device net`, or `--net`: a network card. */

import { NetDevice } from "../../devices/net/net_device.ts";
import { parseMac } from "../../network/protocols/ethernet.ts";
import { capturingPort } from "../../network/capturing_port.ts";
import { CaptureFile } from "../../observe/capture_file.ts";
import { SteeredPort } from "../../network/steered_port.ts";
import type { Group } from "../groups.ts";
import type { Chosen } from "../kinds.ts";
import { tapKind } from "../port_kinds/tap.ts";
import { parseMtu, parseQueues } from "../port_kinds/port_kind.ts";
import { openPort, parsePort } from "../port_option.ts";
import type { DeviceKind } from "./device_kind.ts";

interface NetSettings {
  readonly mac: Uint8Array;
  /** The largest payload of a frame; the port's unless given. */
  readonly mtu: number | undefined;
  readonly port: Chosen;
  readonly capture: string | undefined;
  /** Queue pairs. */
  readonly queues: number;
}

/** An address in QEMU's range, the last byte by device number. */
function defaultMac(number: number): string {
  // Not what QEMU gives its first card, which may be in the same network.
  return `52:54:00:76:6d:${(number & 0xff).toString(16).padStart(2, "0")}`;
}

function parseCardMac(group: Group, number: number): Uint8Array {
  try {
    return parseMac(group.text("mac") ?? defaultMac(number));
  } catch (error) {
    throw group.error(error instanceof Error ? error.message : String(error));
  }
}

export const netKind: DeviceKind<NetSettings> = {
  name: "net",
  usage: "net[,PORT[=VALUE][,mac=MAC][,mtu=N][,queues=N][,pcap=FILE][,...]]",
  help:
    "a network card, on the port `responder` unless another is named; queues is how many queue pairs its " +
    "driver may use (1 to 8), on a tap each behind the first with a thread of its own; pcap writes all frames " +
    "to a file; what else can be given is the port's, see below",
  parse: (text, option, number) => {
    const { group, port } = parsePort(option, text || "responder", [
      "mac",
      "mtu",
      "queues",
      "pcap",
    ]);
    const mac = parseCardMac(group, number);
    const capture = group.text("pcap");
    return { mac, mtu: parseMtu(group), queues: parseQueues(group), capture, port };
  },
  // Of no other port can a queue be lent; a capture sees all frames in one thread.
  pairThreads: ({ port, capture, queues }) =>
    port.kind === tapKind.name && capture === undefined ? queues - 1 : 0,
  open: (settings, { reactor, log, hubs, number, pairLines, frameCapture }) => {
    const { mac, capture, queues } = settings;
    using stack = new DisposableStack();
    const { port, mtu } = openPort(settings.port, { reactor, log, card: mac, hubs, queues });
    stack.use(port);
    const wide = queues === 1 || port.queues !== undefined
      ? port
      : new SteeredPort(port, queues, reactor);
    const own = capture && stack.use(new CaptureFile({ path: capture }, reactor, log));
    const captures = [[own, true], [frameCapture, false]] as const;
    const watched = captures.reduce(
      (port, [file, isOwn]) => file ? capturingPort(port, file, `net${number}`, isOwn) : port,
      wide,
    );
    const name = `${number} net, ${watched.description}`;
    const lines = pairLines.splice(0, watched !== wide ? 0 : netKind.pairThreads!(settings));
    const options = { mac, mtu: settings.mtu ?? mtu, pairs: queues, lines, name };
    const model = new NetDevice(reactor, watched, options);
    stack.move();
    const { description } = watched;
    return { model, description, counters: model.counters, link: (up) => model.plug(up) };
  },
};
