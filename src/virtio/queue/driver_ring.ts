/** The driver's side of a virtqueue in either format: what a driver of our own does with one. */

/** See split/driver_queue.ts and packed/driver_queue.ts. */
export interface DriverRing {
  /** Entries. */
  readonly size: number;
  /** Bus addresses of the three areas. */
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  /** How many descriptors are free. */
  readonly free: number;
  /** After {@link nextUsed}: what `add` was given for this buffer, and how many bytes the device wrote. */
  readonly usedToken: number;
  readonly usedLength: number;
  /** Why it is broken; who reads the buffers may find a reason too. */
  broken: string | undefined;
  /** How often buffers were shown to a device that wanted no kick; who counts them sets it back. */
  suppressed: number;
  /** Adds a buffer: what the device reads, then what it writes; false if not enough descriptors are free. */
  add(
    addresses: Float64Array,
    lengths: Uint32Array,
    readableCount: number,
    writableCount: number,
    token: number,
  ): boolean;
  /** Adds one of one element. */
  addOne(address: number, length: number, writable: boolean, token: number): boolean;
  /** Shows what was added; true if the device wants to be kicked. */
  publish(): boolean;
  /** Takes back the next buffer; false if there is none. */
  nextUsed(): boolean;
  /** Asks to be called; true if there is something already. */
  wantCalls(): boolean;
  /** Calls are of no use for now. */
  noCalls(): void;
}

/** What was negotiated of rings. */
export interface RingTerms {
  /** RING_PACKED; split without. */
  readonly packed: boolean;
  /** IN_ORDER. */
  readonly inOrder: boolean;
  /** EVENT_IDX. */
  readonly eventIndex: boolean;
  /** INDIRECT_DESC. */
  readonly indirect: boolean;
}
