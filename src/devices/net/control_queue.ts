/**
 * The control queue of a network card (VIRTIO 1.2, 5.1.6.5): commands in, one byte of outcome out.
 *
 *     readable: u8 class, u8 command, data      writable: u8 ack (0 done, 1 refused)
 *
 * A command is copied out of the guest's memory once, then checked, then carried out. What is refused
 * changes nothing.
 */

import { allocate } from "../../linux/arena.ts";
import { NetFeature } from "../../virtio/features.ts";
import type { IovecList } from "../../memory/mod.ts";
import { addressSet, macKey, type ReceiveFilter } from "./receive_filter.ts";

const Class = { RX: 0, MAC: 1, VLAN: 2, ANNOUNCE: 3, MQ: 4, GUEST_OFFLOADS: 5 } as const;
const [MAC_TABLE_SET, MAC_ADDR_SET] = [0, 1];
const VQ_PAIRS_SET = 0;
const [VLAN_ADD, VLAN_DEL] = [0, 1];

/** What the commands of CLASS_RX switch, in their order. */
const RECEIVE_MODES = [
  "promiscuous",
  "allMulticast",
  "allUnicast",
  "noMulticast",
  "noUnicast",
  "noBroadcast",
] as const;

/** The guest offloads that the driver may switch while the card runs. */
export const GUEST_OFFLOADS: readonly number[] = [
  NetFeature.GUEST_CSUM,
  NetFeature.GUEST_TSO4,
  NetFeature.GUEST_TSO6,
  NetFeature.GUEST_ECN,
  NetFeature.GUEST_UFO,
  NetFeature.GUEST_USO4,
  NetFeature.GUEST_USO6,
];

/** The longest command: a MAC table of two times 64 addresses is far below. */
const MAX_COMMAND = 4096;
const command = allocate(MAX_COMMAND);

export interface ControlTarget {
  receiveFilter(): ReceiveFilter;
  readonly has: (feature: number) => boolean;
  setMac(bytes: Uint8Array): void;
  announced(): void;
  /** On how many queue pairs frames are received; false if it cannot be so many. */
  setPairs(count: number): boolean;
  /** Guest offloads, one bit per feature in two words; false if one was not negotiated. */
  setGuestOffloads(low: number, high: number): boolean;
}

export function runCommand(request: IovecList, target: ControlTarget): boolean {
  if (request.length < 2 || request.length > MAX_COMMAND) return false;
  const length = request.copyOut(0, command.address, request.length);
  const { bytes, view } = command;
  const data = length - 2;
  const number = bytes[1];
  switch (bytes[0]) {
    case Class.RX:
      return data >= 1 && setReceiveMode(number, bytes[2] !== 0, target);
    case Class.MAC:
      if (number === MAC_TABLE_SET) return setMacTable(length, target);
      if (number !== MAC_ADDR_SET || data < 6 || !target.has(NetFeature.CTRL_MAC_ADDR)) {
        return false;
      }
      target.setMac(bytes.slice(2, 8));
      return true;
    case Class.VLAN:
      if (data < 2 || !target.has(NetFeature.CTRL_VLAN)) return false;
      if (number !== VLAN_ADD && number !== VLAN_DEL) return false;
      if (view.getUint16(2, true) >= 4096) return false;
      target.receiveFilter().setVlan(view.getUint16(2, true), number === VLAN_ADD);
      return true;
    case Class.ANNOUNCE:
      if (number !== 0 || !target.has(NetFeature.GUEST_ANNOUNCE)) return false;
      target.announced();
      return true;
    case Class.MQ:
      return number === VQ_PAIRS_SET && data >= 2 && target.setPairs(view.getUint16(2, true));
    case Class.GUEST_OFFLOADS:
      if (number !== 0 || data < 8 || !target.has(NetFeature.CTRL_GUEST_OFFLOADS)) return false;
      return target.setGuestOffloads(view.getUint32(2, true), view.getUint32(6, true));
    default:
      return false;
  }
}

function setReceiveMode(mode: number, on: boolean, { receiveFilter, has }: ControlTarget): boolean {
  const name = RECEIVE_MODES[mode];
  if (name === undefined || !has(NetFeature.CTRL_RX)) return false;
  if (mode >= 2 && !has(NetFeature.CTRL_RX_EXTRA)) return false;
  receiveFilter()[name] = on;
  return true;
}

/** Two tables behind one another, unicast and multicast: u32 count, then count times six bytes. */
function setMacTable(length: number, { receiveFilter, has }: ControlTarget): boolean {
  if (!has(NetFeature.CTRL_RX)) return false;
  const unicast = readTable(2, length);
  if (unicast === undefined) return false;
  const multicast = readTable(2 + 4 + 6 * unicast.length, length);
  if (multicast === undefined) return false;
  const filter = receiveFilter();
  filter.unicast = addressSet(unicast);
  filter.multicast = addressSet(multicast);
  return true;
}

function readTable(at: number, length: number): number[] | undefined {
  if (at + 4 > length) return undefined;
  const count = command.view.getUint32(at, true);
  if (at + 4 + 6 * count > length) return undefined;
  return Array.from({ length: count }, (_, i) => {
    const entry = at + 4 + 6 * i;
    return macKey(command.view.getUint16(entry), command.view.getUint32(entry + 2));
  });
}
