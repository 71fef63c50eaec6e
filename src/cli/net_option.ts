/** `--net`, `--hub` and `--tap`: network cards, and where their frames go to and come from. */

import type { PacketOptions } from "../network/packet.ts";
import type { PasstOptions } from "../network/passt.ts";
import { parseMac } from "../network/protocols/ethernet.ts";
import { Responder, type ResponderOptions } from "../network/responder/responder.ts";
import type { TapOptions } from "../network/tap.ts";
import type { Option } from "./command.ts";
import { type Group, parseGroup } from "./groups.ts";

/** A network port to be opened; plain data, so that it can be sent to a Worker. */
export type PortSettings =
  | { readonly kind: "responder"; readonly options: ResponderOptions }
  | { readonly kind: "tap"; readonly options: TapOptions }
  | { readonly kind: "packet"; readonly options: PacketOptions }
  | { readonly kind: "passt"; readonly options: PasstOptions };

/** One `--net`. */
export interface NetSettings {
  readonly mac: Uint8Array;
  /** The largest payload of a frame; the port's unless given. */
  readonly mtu: number | undefined;
  readonly port: PortSettings | { readonly kind: "hub"; readonly name: string };
  /** A capture file. */
  readonly capture: string | undefined;
}

/** One `--hub`: a link for several devices, and what joins it to the world. */
export interface HubSettings {
  readonly name: string;
  readonly uplink: PortSettings;
}

const PORT_KEYS = {
  responder: ["address", "address6", "flood"],
  tap: ["bridge", "address", "persistent", "offloads"],
  packet: ["offloads"],
  passt: ["socket"],
} as const;

const DEVICE_KEYS = ["mac", "mtu", "pcap"];

const NET_KEYS = {
  responder: [...PORT_KEYS.responder, ...DEVICE_KEYS],
  tap: [...PORT_KEYS.tap, ...DEVICE_KEYS],
  packet: [...PORT_KEYS.packet, ...DEVICE_KEYS],
  passt: [...PORT_KEYS.passt, ...DEVICE_KEYS],
  hub: DEVICE_KEYS,
};

/** The options' entries in the table of `vmsg device`. */
export const NET_OPTIONS: readonly Option[] = [
  {
    name: "net",
    value: "KIND[=VALUE][,mac=MAC][,mtu=N][,pcap=FILE][,...]",
    repeated: true,
    help:
      "a network card, numbered from 0 in the order given, by default one with `responder`, and " +
      "what its frames reach: " +
      "responder[,address=A][,address6=A][,flood=N]: a host of our own at 10.0.2.2 that answers ARP, " +
      "ping, DHCP and IPv6 discovery, discards port 9, generates from port 19 and serves HTTP; flood " +
      "sends N broadcast frames a second. " +
      "tap[=NAME][,bridge=BR][,address=A/P][,persistent]: the kernel's network, with all offloads. " +
      "passt[,socket=PATH]: the host's network without root, through the program passt. " +
      "packet=INTERFACE: a raw socket on a real interface. " +
      "hub=NAME: a link that several cards share. " +
      "pcap writes all frames to a file; offloads=off offers none",
  },
  {
    name: "hub",
    value: "KIND[=VALUE],name=NAME[,...]",
    repeated: true,
    help: "joins the link of `--net hub=NAME` to a port, as for --net",
  },
];

/** An address in QEMU's range, the last byte by device number. */
function defaultMac(number: number): string {
  // Not what QEMU gives its first card, which may be in the same network.
  return `52:54:00:76:6d:${(number & 0xff).toString(16).padStart(2, "0")}`;
}

/** Parses one `--net`. */
export function parseNet(text: string, number: number): NetSettings {
  const group = parseGroup("net", text, NET_KEYS);
  const mtu = group.text("mtu") === undefined ? undefined : group.number("mtu", 68, 65535, 1500);
  const name = group.text("hub");
  return {
    mac: macOf(group, number),
    mtu,
    capture: group.text("pcap"),
    port: group.kind === "hub"
      ? { kind: "hub", name: name === "on" ? "hub" : name! }
      : parsePort(group, mtu),
  };
}

/** Parses one `--hub`. */
export function parseHub(text: string): HubSettings {
  const keys = Object.fromEntries(
    Object.entries(PORT_KEYS).map(([kind, known]) => [kind, [...known, "name"]]),
  );
  const group = parseGroup("hub", text, keys);
  return { name: group.required("name"), uplink: parsePort(group, undefined) };
}

/** Parses `--tap` of `vmsg driver`: a TAP's name and keys. */
export function parseTap(text: string): PortSettings {
  const group = parseGroup("tap", `tap=${text}`, { tap: [...PORT_KEYS.tap, "mtu"] });
  const mtu = group.text("mtu") === undefined ? undefined : group.number("mtu", 68, 65535, 1500);
  return parsePort(group, mtu);
}

function macOf(group: Group, number: number): Uint8Array {
  try {
    return parseMac(group.text("mac") ?? defaultMac(number));
  } catch (error) {
    throw group.error(error instanceof Error ? error.message : String(error));
  }
}

function parsePort(group: Group, mtu: number | undefined): PortSettings {
  const optional = <T>(key: string, value: T | undefined) =>
    value === undefined ? {} : { [key]: value };
  const text = (key: string) => optional(key, group.text(key));
  const offloads = group.flag("offloads", true) ? {} : { offloads: false };
  switch (group.kind) {
    case "tap": {
      const name = group.text("tap");
      const persistent = group.text("persistent") === undefined
        ? {}
        : { persistent: group.flag("persistent", false) };
      const named = name === "on" ? {} : text("tap");
      const options = {
        ...("tap" in named ? { name: name! } : {}),
        ...text("bridge"),
        ...text("address"),
        ...persistent,
        ...optional("mtu", mtu),
        ...offloads,
      };
      return { kind: "tap", options };
    }
    case "packet": {
      const name = group.text("packet");
      if (name === undefined || name === "on") throw group.error("packet=INTERFACE names none");
      return { kind: "packet", options: { name, ...offloads } };
    }
    case "passt":
      return { kind: "passt", options: text("socket") };
    default:
      return { kind: "responder", options: parseResponder(group) };
  }
}

function parseResponder(group: Group): ResponderOptions {
  const flood = group.number("flood", 0, 1_000_000, 0);
  const [address, address6] = [group.text("address"), group.text("address6")];
  const options = {
    ...(address === undefined ? {} : { address }),
    ...(address6 === undefined ? {} : { address6 }),
    ...(flood > 0 ? { floodFramesPerSecond: flood } : {}),
  };
  try {
    new Responder(options, () => 0);
    return options;
  } catch (error) {
    throw group.error(error instanceof Error ? error.message : String(error));
  }
}
