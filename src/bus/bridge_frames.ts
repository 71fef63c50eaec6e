/**
 * Frames of the kernel's bridge about the bridge itself (docs/wire.md 4.7): memory that comes and goes, the endpoint, which devices
 * there are. They have a header as all messages of `v1` do, bit 1 of the type and bit 7 of the id set, and exact sizes.
 */

/** Frames by their id. */
export const BridgeId = {
  MAP_ADD: 0x89,
  MAP_DEL: 0x8a,
  ENDPOINT_ONLINE: 0xc0,
  ENDPOINT_OFFLINE: 0xc1,
  TOPOLOGY_RESET: 0xc2,
  TOPOLOGY_DEV_ADD: 0xc3,
  TOPOLOGY_COMMIT: 0xc4,
} as const;

/** Type of a request or event about the bus; an answer has bit 0 besides. */
const BUS = 0x02;
const RESPONSE = 0x01;
const TOKEN_AT = 4;
const SIZE_AT = 6;
const PAYLOAD = 8;

/** Bytes of what the kernel sends. */
const SIZES: Readonly<Record<number, number>> = {
  [BridgeId.MAP_ADD]: 72,
  [BridgeId.MAP_DEL]: 56,
  [BridgeId.ENDPOINT_ONLINE]: 40,
  [BridgeId.ENDPOINT_OFFLINE]: 24,
};

/** Bytes of what is sent back about a window, and of what is said about devices. */
const MAP_ANSWER_SIZE = 40;
const TOPOLOGY_SIZE = 24;

/** Is it about the bus, of which the kernel says nothing but what is about the bridge itself? */
export function isBridgeFrame(slot: DataView): boolean {
  return (slot.getUint8(0) & BUS) !== 0;
}

/**
 * The id of a frame that is as the kernel writes it.
 *
 * @returns -1 for one of another form
 */
export function bridgeIdOf(slot: DataView): number {
  const id = slot.getUint8(1);
  const isForm = slot.getUint8(0) === BUS && slot.getUint16(2, true) === 0 &&
    slot.getUint16(SIZE_AT, true) === SIZES[id];
  const isAsked = id === BridgeId.MAP_ADD || id === BridgeId.MAP_DEL;
  return isForm && (slot.getUint16(TOKEN_AT, true) !== 0) === isAsked ? id : -1;
}

/** What any of them begins with: the epoch it belongs to. */
export function epochOf(slot: DataView): bigint {
  return slot.getBigUint64(PAYLOAD, true);
}

/** The endpoint's largest message, of ENDPOINT_ONLINE. */
export function endpointLimitOf(slot: DataView): number {
  return slot.getUint32(PAYLOAD + 24, true);
}

/** Why the endpoint went, of ENDPOINT_OFFLINE. */
export function offlineReasonOf(slot: DataView): string {
  const reason = slot.getUint32(PAYLOAD + 8, true);
  return ["", "removed", "reset"][reason] || `reason ${reason}`;
}

/** MAP_ADD or MAP_DEL. Numbers that are no safe integers are larger than any address or size can be. */
export interface MapRequest {
  readonly id: number;
  readonly token: number;
  readonly epoch: bigint;
  readonly sequence: bigint;
  /** Names the window. */
  readonly map: bigint;
  readonly at: number;
  readonly length: number;
  /** Of MAP_ADD: where it is mapped from, and how much can be. */
  readonly offset: number;
  readonly mapLength: number;
}

/** Reads one. */
export function mapRequestOf(slot: DataView): MapRequest {
  const word = (at: number) => slot.getBigUint64(PAYLOAD + at, true);
  const id = slot.getUint8(1);
  const isAdd = id === BridgeId.MAP_ADD;
  return {
    id,
    token: slot.getUint16(TOKEN_AT, true),
    epoch: word(0),
    sequence: word(8),
    map: word(16),
    at: Number(word(24)),
    length: Number(word(32)),
    offset: isAdd ? Number(word(40)) : 0,
    mapLength: isAdd ? Number(word(48)) : 0,
  };
}

function start(view: DataView, at: number, type: number, id: number, size: number): void {
  for (let i = 0; i < size; i += 8) view.setBigUint64(at + i, 0n, true);
  view.setUint8(at, type);
  view.setUint8(at + 1, id);
  view.setUint16(at + SIZE_AT, size, true);
}

/** Writes the answer to a request. @param status 0 or a negative errno; MAP_DEL has 0 only */
export function writeMapAnswer(
  view: DataView,
  at: number,
  request: Pick<MapRequest, "id" | "token" | "epoch" | "sequence" | "map">,
  status: number,
): void {
  start(view, at, BUS | RESPONSE, request.id, MAP_ANSWER_SIZE);
  view.setUint16(at + TOKEN_AT, request.token, true);
  view.setBigUint64(at + PAYLOAD, request.epoch, true);
  view.setBigUint64(at + PAYLOAD + 8, request.sequence, true);
  view.setBigUint64(at + PAYLOAD + 16, request.map, true);
  view.setInt32(at + PAYLOAD + 24, status, true);
}

/** Writes one of the TOPOLOGY frames. @param value the device's number, or how many there are */
export function writeTopology(
  view: DataView,
  at: number,
  id: number,
  epoch: bigint,
  value = 0,
): void {
  start(view, at, BUS, id, TOPOLOGY_SIZE);
  view.setBigUint64(at + PAYLOAD, epoch, true);
  view.setUint16(at + PAYLOAD + 8, value, true);
}

const EVENT_ID = 0x40;
const SET_DEVICE_STATUS = 0x08;

/** Of a frame about a device that this side sends: which device an event is of, or -1. */
export function eventDevice(view: DataView, at: number): number {
  const isEvent = (view.getUint8(at) & (BUS | RESPONSE)) === 0 &&
    (view.getUint8(at + 1) & EVENT_ID) !== 0;
  return isEvent ? view.getUint16(at + 2, true) : -1;
}

/** Of a frame that came: which device's status is written, or -1. */
export function awokenDevice(slot: DataView): number {
  const isWrite = (slot.getUint8(0) & (BUS | RESPONSE)) === 0 &&
    slot.getUint8(1) === SET_DEVICE_STATUS;
  return isWrite ? slot.getUint16(2, true) : -1;
}
