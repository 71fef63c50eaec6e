/** What is said on the queues of a socket device (VIRTIO 1.3, section 5.10). */

/** struct virtio_vsock_hdr: where its fields lie; ids of contexts have 64 bits, of which 32 are zero. */
export const VsockHeader = {
  SIZE: 44,
  SRC_CID: 0,
  DST_CID: 8,
  SRC_PORT: 16,
  DST_PORT: 20,
  LEN: 24,
  TYPE: 28,
  OP: 30,
  FLAGS: 32,
  BUF_ALLOC: 36,
  FWD_CNT: 40,
} as const;

/** What a packet is. */
export const VsockOp = {
  REQUEST: 1,
  RESPONSE: 2,
  RST: 3,
  SHUTDOWN: 4,
  RW: 5,
  CREDIT_UPDATE: 6,
  CREDIT_REQUEST: 7,
} as const;

/** Flags of SHUTDOWN: who sends it will not receive, or not send, any more. */
export const VsockShutdown = { RECEIVE: 1, SEND: 2 } as const;

/** The type of stream sockets. */
export const VSOCK_STREAM = 1;
/** The event that all connections are gone, and its size in bytes. */
export const VSOCK_TRANSPORT_RESET = 0;
/** In bytes. */
export const VSOCK_EVENT_SIZE = 4;
/** The context id of the host; those of guests are greater. */
export const HOST_CID = 2;
/** The greatest context id of a guest. */
export const MOST_CID = 0xffff_fffe;
