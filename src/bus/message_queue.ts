/**
 * One direction of a bus, as QueueBus uses it: slots of one size in shared memory, written by one side and read by the
 * other. How slots and cursors lie there is the layout's own: spsc_queue.ts has the prototype's.
 *
 * Whatever the layout, an index of the peer's that makes no sense counts as "nothing moved".
 */

/** The queue that this side writes. */
export interface OutgoingQueue {
  /** Bytes of a slot, a multiple of 8; the longest message. */
  readonly slotSize: number;
  /** Where messages are encoded, at the offset that {@link claim} gives. */
  readonly view: DataView;
  /** How many messages there is room for. */
  readonly free: number;
  /** A peer is there: goes on where the memory says. */
  attachProducer(): void;
  /** The byte offset in {@link view} of the slot to write, or -1 when the queue is full. */
  claim(): number;
  /** The claimed slot is written, but the reader sees it only with the next one. */
  withhold(): void;
  /** Hands the claimed slot to the reader. */
  publish(): void;
  /** Takes back what was not read, while nobody reads. */
  retract(): void;
  /** Has {@link IncomingQueue.granted} show a number, where the layout has a word for that. */
  grant(number: number): void;
}

/** The queue that this side reads. */
export interface IncomingQueue {
  /** Bytes of a slot, as of the other direction. */
  readonly slotSize: number;
  /**
   * A peer is there: goes on where the memory says.
   *
   * @param discard drop what is queued
   * @param slot takes the newest message that was dropped, if it is wanted
   * @returns whether there was one
   */
  attachConsumer(discard: boolean, slot?: Uint32Array): boolean;
  /**
   * Copies the next message, once, so that what is checked is what is used.
   *
   * @param slot a slot's words that nobody else sees
   * @returns false when the queue is empty
   */
  receive(slot: Uint32Array): boolean;
  /** What its writer grants at this moment; 0 where the layout has no word for that. */
  readonly granted: number;
  /** Where that word is in this process. */
  readonly grantAddress: bigint;
}
