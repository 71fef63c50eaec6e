/**
 * A driver of a block device (VIRTIO 1.3, section 5.2): what the disk says of itself, and requests.
 *
 * A slot is a request: its header, its status, and in a part of its own as much data as goes at once. Data is given to the
 * device in segments as the disk wants them (SIZE_MAX, SEG_MAX).
 *
 *     0 header     16 status     4096 data
 */

import { VmsgError } from "../../linux/errors.ts";
import type { RemoteDevice } from "../../transport/remote_device.ts";
import { BlkConfig, BlkRequest, BlkStatus, SECTOR } from "../../virtio/blk.ts";
import { BlkFeature, DEVICE_BLK, featureNames, hasFeature } from "../../virtio/features.ts";
import { RequestDriver, type RequestDriverOptions, type Slot } from "../request_driver.ts";

const STATUS_AT = BlkRequest.HEADER_SIZE;
const DATA_AT = 4096;
const DATA_SIZE = 64 << 10;
/** Written before each request, and never a status: who finds it was not answered. */
const UNSET = 0xff;
const WORDS: Readonly<Record<number, string>> = {
  [BlkRequest.IN]: "a read",
  [BlkRequest.OUT]: "a write",
  [BlkRequest.FLUSH]: "a flush",
  [BlkRequest.GET_ID]: "the question for its serial number",
};

const FEATURES = [
  BlkFeature.SIZE_MAX,
  BlkFeature.SEG_MAX,
  BlkFeature.RO,
  BlkFeature.BLK_SIZE,
  BlkFeature.FLUSH,
];

/** What a disk says of itself. */
export interface DiskInfo {
  /** Of 512 bytes. */
  readonly sectors: number;
  /** What reads and writes are multiples of, in bytes. */
  readonly blockSize: number;
  readonly readonly: boolean;
  /** All that it offers that we take, by name. */
  readonly features: readonly string[];
  /** Bytes and number of a request's segments. */
  readonly segmentBytes: number;
  readonly segments: number;
}

/** Makes one whose device may not be there yet; see {@link RequestDriver}. */
export class BlkDriver extends RequestDriver {
  #info: DiskInfo | undefined;

  constructor(
    reactor: RequestDriver["reactor"],
    side: RequestDriver["side"],
    log: ConstructorParameters<typeof RequestDriver>[2],
    options: Pick<RequestDriverOptions, "memory" | "number" | "rings">,
  ) {
    super(reactor, side, log, {
      ...options,
      deviceId: DEVICE_BLK,
      what: "a disk",
      features: FEATURES,
      slotSize: DATA_AT + DATA_SIZE,
      depth: 8,
      known: async (device, accepted) => {
        this.#info = await readInfo(device, accepted, this.ringSize);
      },
    });
  }

  /** Of the disk that is there, or was last; waits for the first one. */
  async info(): Promise<DiskInfo> {
    while (this.#info === undefined) await this.whenUp();
    return this.#info;
  }

  /** How many bytes go at once. */
  async pieceSize(): Promise<number> {
    const { blockSize, segmentBytes, segments } = await this.info();
    const most = Math.min(DATA_SIZE, segmentBytes * segments);
    const size = most - most % blockSize;
    if (size > 0) return size;
    const { number } = this.options;
    const what = `blocks of ${blockSize} bytes, of which requests take no more than ${most}`;
    throw new VmsgError("DISK_LIMITS", `device ${number} has ${what}`);
  }

  /** The data of a request in that slot, and where it is in this process. */
  data(slot: Slot): { readonly bytes: Uint8Array; readonly address: bigint } {
    return { bytes: slot.bytes.subarray(DATA_AT), address: slot.address + BigInt(DATA_AT) };
  }

  /** @throws VmsgError DISK_ERROR, with what the disk said */
  async read(slot: Slot, sector: number, length: number): Promise<void> {
    await this.#must(slot, BlkRequest.IN, sector, length);
  }

  async write(slot: Slot, sector: number, length: number): Promise<void> {
    await this.#must(slot, BlkRequest.OUT, sector, length);
  }

  /** What was written is on the disk. Without FLUSH it is at once (5.2.6.2). */
  async flush(slot: Slot): Promise<void> {
    if (!hasFeature(this.accepted, BlkFeature.FLUSH)) return;
    await this.#must(slot, BlkRequest.FLUSH, 0, 0);
  }

  /** The serial number; undefined if it has none to tell. */
  async serial(slot: Slot): Promise<string | undefined> {
    const status = await this.#request(slot, BlkRequest.GET_ID, 0, BlkRequest.ID_SIZE);
    if (status !== BlkStatus.OK) return undefined;
    const bytes = this.data(slot).bytes.slice(0, BlkRequest.ID_SIZE);
    const end = bytes.indexOf(0);
    // Whatever it is, it shall not move a terminal's cursor.
    return Array.from(end < 0 ? bytes : bytes.subarray(0, end), printable).join("");
  }

  async #must(slot: Slot, type: number, sector: number, length: number): Promise<void> {
    const status = await this.#request(slot, type, sector, length);
    if (status === BlkStatus.OK) return;
    const [code, why] = status === BlkStatus.IOERR
      ? ["DISK_ERROR", "an input/output error"]
      : status === BlkStatus.UNSUPP
      ? ["DISK_ERROR", "that it cannot do that"]
      : ["DISK_ERROR", status === UNSET ? "nothing" : `status ${status}, which is none`];
    const where = length === 0 ? "" : ` of ${length} bytes at sector ${sector}`;
    const { number } = this.options;
    throw new VmsgError(code!, `device ${number} answers ${WORDS[type]}${where} with ${why}`);
  }

  async #request(slot: Slot, type: number, sector: number, length: number): Promise<number> {
    const { view } = slot;
    view.setUint32(0, type, true);
    view.setUint32(4, 0, true);
    view.setBigUint64(8, BigInt(sector), true);
    view.setUint8(STATUS_AT, UNSET);
    const { segmentBytes } = this.#info!;
    const addresses = [slot.at], lengths = [BlkRequest.HEADER_SIZE as number];
    for (let done = 0; done < length; done += segmentBytes) {
      addresses.push(slot.at + DATA_AT + done);
      lengths.push(Math.min(segmentBytes, length - done));
    }
    addresses.push(slot.at + STATUS_AT);
    lengths.push(1);
    const isWrite = type === BlkRequest.OUT;
    const readable = isWrite ? addresses.length - 1 : 1;
    await this.ask(slot, {
      addresses: new Float64Array(addresses),
      lengths: new Uint32Array(lengths),
      readable,
      writable: addresses.length - readable,
    });
    return view.getUint8(STATUS_AT);
  }
}

async function readInfo(
  device: RemoteDevice,
  accepted: Uint32Array,
  ringSize: number,
): Promise<DiskInfo> {
  const has = (bit: number) => hasFeature(accepted, bit);
  const field = async (at: number, size: 4 | 8) => {
    const view = new DataView((await device.config(at, size)).buffer);
    return size === 4 ? view.getUint32(0, true) : Number(view.getBigUint64(0, true));
  };
  const optional = async (bit: number, at: number) => has(bit) ? await field(at, 4) : 0;
  const sectors = await field(BlkConfig.CAPACITY, 8);
  const blockSize = await optional(BlkFeature.BLK_SIZE, BlkConfig.BLK_SIZE) || SECTOR;
  if (!Number.isSafeInteger(sectors * SECTOR) || blockSize % SECTOR !== 0) {
    const what = `says it has ${sectors} sectors and blocks of ${blockSize} bytes`;
    throw new VmsgError("BAD_DISK", `device ${device.number} ${what}`);
  }
  return {
    sectors,
    blockSize,
    readonly: has(BlkFeature.RO),
    features: featureNames(accepted, DEVICE_BLK),
    segmentBytes: await optional(BlkFeature.SIZE_MAX, BlkConfig.SIZE_MAX) || DATA_SIZE,
    // Header and status take entries too. One that does not say takes one.
    segments: Math.min(
      ringSize - 2,
      await optional(BlkFeature.SEG_MAX, BlkConfig.SEG_MAX) || 1,
    ),
  };
}

function printable(byte: number): string {
  return byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".";
}
