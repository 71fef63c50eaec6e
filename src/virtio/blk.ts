/** The block device's words (VIRTIO 1.3, 5.2): requests, their statuses, the configuration space. */

/** Bytes of a sector, whatever the block size. */
export const SECTOR = 512;

/** What a request's header says is wanted: u32 type, u32 reserved, u64 sector. */
export const BlkRequest = {
  IN: 0,
  OUT: 1,
  FLUSH: 4,
  GET_ID: 8,
  DISCARD: 11,
  WRITE_ZEROES: 13,
  HEADER_SIZE: 16,
  /** Of GET_ID's answer, filled up with zeros. */
  ID_SIZE: 20,
  /** Of what DISCARD and WRITE_ZEROES are about: u64 sector, u32 sectors, u32 flags. */
  SEGMENT_SIZE: 16,
  /** Flag of a segment of WRITE_ZEROES: room may be given back. */
  UNMAP: 1,
} as const;

/** The last byte of a request's buffer. */
export const BlkStatus = { OK: 0, IOERR: 1, UNSUPP: 2 } as const;

/** Where the fields of the configuration space are. */
export const BlkConfig = {
  CAPACITY: 0,
  SIZE_MAX: 8,
  SEG_MAX: 12,
  BLK_SIZE: 20,
  PHYSICAL_BLOCK_EXP: 24,
  MIN_IO_SIZE: 26,
  WRITEBACK: 32,
  NUM_QUEUES: 34,
  MAX_DISCARD_SECTORS: 36,
  MAX_DISCARD_SEG: 40,
  DISCARD_SECTOR_ALIGNMENT: 44,
  MAX_WRITE_ZEROES_SECTORS: 48,
  MAX_WRITE_ZEROES_SEG: 52,
  WRITE_ZEROES_MAY_UNMAP: 56,
  SIZE: 60,
} as const;
