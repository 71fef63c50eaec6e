/** `--device` and its short form `--net`: the devices of a device side. */

import { UsageError } from "../linux/errors.ts";
import { uncounted } from "../observe/counters.ts";
import type { Option, Options, Section } from "./command.ts";
import {
  DEFAULT_DEVICE,
  type DeviceContext,
  type DeviceKind,
  type OpenDevice,
} from "./device_kinds/device_kind.ts";
import { blkKind } from "./device_kinds/blk.ts";
import { consoleKind } from "./device_kinds/console.ts";
import { netKind } from "./device_kinds/net.ts";
import { rngKind } from "./device_kinds/rng.ts";
import { vhostUserKind } from "./device_kinds/vhost_user.ts";
import { vsockKind } from "./device_kinds/vsock.ts";
import { type Chosen, findKind, kindsSection } from "./kinds.ts";

const DEVICE_KINDS: readonly DeviceKind[] = [
  netKind,
  blkKind,
  consoleKind,
  rngKind,
  vhostUserKind,
  vsockKind,
];

/** Of a device side, at a time. */
export const MAX_DEVICES = 64;

export const DEVICE_OPTIONS: readonly Option[] = [
  {
    name: "device",
    value: "KIND[,...]",
    repeated: true,
    help:
      "a device, see Devices below; they are numbered from 0 in the order given, those of --net " +
      "among them; without any there is one net",
  },
  {
    name: "net",
    value: "PORT[=VALUE][,mac=MAC][,mtu=N][,queues=N][,pcap=FILE][,...]",
    repeated: true,
    shortFor: "device",
    help: "a network card: short for --device net,...",
  },
];

export const DEVICE_SECTION: Section = kindsSection("Devices", DEVICE_KINDS);

/** Parses {@link DEVICE_OPTIONS}: the devices in the order of their numbers, as plain data. */
export function parseDevices(options: Options): Chosen[] {
  const given = options.list("device");
  if (given.length > MAX_DEVICES) throw new UsageError(`at most ${MAX_DEVICES} --device and --net`);
  return (given.length > 0 ? given : [DEFAULT_DEVICE]).map(parseDevice);
}

/** One of the values of {@link DEVICE_OPTIONS}. What a kind makes to look at its settings counts nowhere. */
export function parseDevice(value: string, number: number): Chosen {
  return uncounted(() => parseValue(value, number));
}

function parseValue(value: string, number: number): Chosen {
  const port = /^--net (.*)$/s.exec(value)?.[1];
  if (port !== undefined) {
    return { kind: netKind.name, settings: netKind.parse(port, "--net", number) };
  }
  const [name = "", ...rest] = value.split(",");
  const kind = findKind(DEVICE_KINDS, "--device", name);
  return { kind: name, settings: kind.parse(rest.join(","), `--device ${name}`, number) };
}

/** For how many queue pairs of all devices threads are wanted. */
export function pairThreadsOf(devices: readonly Chosen[]): number {
  const wanted = ({ kind, settings }: Chosen) =>
    findKind(DEVICE_KINDS, "--device", kind).pairThreads?.(settings) ?? 0;
  return devices.reduce((sum, device) => sum + wanted(device), 0);
}

export function openDevice({ kind, settings }: Chosen, context: DeviceContext): OpenDevice {
  return findKind(DEVICE_KINDS, "--device", kind).open(settings, context);
}
