/**
 * The vhost-user protocol: numbers, names and the layout of its messages, for either end of it
 * (qemu docs/interop/vhost-user.rst). All fields are little-endian here; a message is a header of
 * three u32 {request, flags, size} and `size` bytes of payload.
 */

/** A region of SET_MEM_TABLE: guest memory, where the front end sees it, where it lies in its file. */
export interface Region {
  /** Guest-physical address, and so the address on the bus. */
  readonly guestAddress: number;
  /** In bytes. */
  readonly size: number;
  /** The address in the front end's own address space, which ring addresses use. */
  readonly userAddress: number;
  /** Bytes into the file that came along. */
  readonly fileOffset: number;
}

/** Requests of a front end. */
export const Request = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SET_BACKEND_REQ_FD: 21,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  RESET_DEVICE: 34,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
} as const;

/** Requests of a back end, on the channel that SET_BACKEND_REQ_FD gives. */
export const BackEndRequest = {
  IOTLB_MSG: 1,
  CONFIG_CHANGE_MSG: 2,
  VRING_HOST_NOTIFIER_MSG: 3,
  VRING_CALL: 4,
  VRING_ERR: 5,
  SHARED_OBJECT_ADD: 6,
  SHARED_OBJECT_REMOVE: 7,
  SHARED_OBJECT_LOOKUP: 8,
  SHMEM_MAP: 9,
  SHMEM_UNMAP: 10,
} as const;

const names = (requests: Readonly<Record<string, number>>): ReadonlyMap<number, string> =>
  new Map(Object.entries(requests).map(([name, id]) => [id, name]));
const NAMES = names(Request);
const BACK_END_NAMES = names(BackEndRequest);

/** The name of a request, for people. */
export function requestName(request: number): string {
  return NAMES.get(request) ?? `request ${request}`;
}

/** The same of a back end's. */
export function backEndRequestName(request: number): string {
  return BACK_END_NAMES.get(request) ?? `request ${request}`;
}

/** Bits of GET_PROTOCOL_FEATURES. */
export const ProtocolFeature = {
  MQ: 0,
  REPLY_ACK: 3,
  BACKEND_REQ: 5,
  CONFIG: 9,
  INFLIGHT_SHMFD: 12,
  RESET_DEVICE: 13,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
} as const;

/** Feature bit 30: the back end has protocol features. It is not a virtio feature. */
export const FEATURE_PROTOCOL_FEATURES = 30;

/** Header flags: version 1, in two bits; a reply; the front end wants a reply. */
export const FLAG_VERSION = 1;
export const FLAG_VERSION_MASK = 3;
export const FLAG_REPLY = 4;
export const FLAG_NEED_REPLY = 8;

export const HEADER_SIZE = 12;
/** More than any message of the protocol has. */
export const MAX_PAYLOAD = 4096;
/** SET_MEM_TABLE holds at most 8 regions. */
export const MAX_REGIONS = 8;
/** In the u64 of SET_VRING_KICK, CALL and ERR: the queue's index, and "no descriptor comes along". */
export const VRING_INDEX_MASK = 0xff;
export const VRING_NO_FD = 0x100;
/** The payload of GET_CONFIG and SET_CONFIG before the data: u32 offset, size, flags. */
export const CONFIG_HEADER = 12;

/** A u64 as a Number; above 2^53 it is inexact, and range checks reject it. */
export function getUint64(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * 0x1_0000_0000;
}

function parseRegion(payload: DataView, at: number): Region {
  return {
    guestAddress: getUint64(payload, at),
    size: getUint64(payload, at + 8),
    userAddress: getUint64(payload, at + 16),
    fileOffset: getUint64(payload, at + 24),
  };
}

/** Reads SET_MEM_TABLE's payload, u32 count, u32 0, regions; undefined if it is malformed. */
export function parseRegions(payload: DataView): Region[] | undefined {
  if (payload.byteLength < 8) return undefined;
  const count = payload.getUint32(0, true);
  if (count > MAX_REGIONS || payload.byteLength < 8 + 32 * count) return undefined;
  return Array.from({ length: count }, (_, i) => parseRegion(payload, 8 + 32 * i));
}

/** Reads ADD_MEM_REG's and REM_MEM_REG's payload, u64 0, one region; undefined if it is malformed. */
export function parseSingleRegion(payload: DataView): Region | undefined {
  return payload.byteLength < 40 ? undefined : parseRegion(payload, 8);
}
