/**
 * The requests of one virtqueue of a disk that are under way, oldest first.
 *
 * They are begun as they come, several at a time, and end in any order; the driver is told in the order in which it
 * made them. So its used index says where a successor goes on, and what that one does once more are whole requests
 * whose end nobody was told.
 */

import type { IovecList } from "../../memory/mod.ts";
import { BlkStatus } from "../../virtio/blk.ts";
import { Chain, type DeviceQueue } from "../../virtio/queue/mod.ts";

/** What was asked in one buffer; made once and used again and again. */
export class Request {
  readonly chain: Chain;
  /** The line it stands in. */
  line!: RequestLine;
  isDone = false;
  status: number = BlkStatus.OK;
  /** The segment that the status is right behind; -1 where there is no room for it. */
  statusAt = -1;
  /** What is read or written; undefined where it is something else. */
  list: IovecList | undefined;
  operation = 0;
  /** In bytes, of what is left to be done. */
  offset = 0;
  /** In bytes, where there is no list. */
  length = 0;
  /** What it comes to if the disk cannot do such a thing. */
  unsupported: number = BlkStatus.IOERR;
  /** Is it to be on the disk before the driver is told? */
  flushes = false;
  /** Bytes of the buffer's writable part that are filled, but for the status. */
  filled = 0;
  /** Bytes of that part. */
  room = 0;

  /** @param tag its number, from 0 */
  constructor(readonly tag: number, segments: number) {
    this.chain = new Chain(segments);
  }
}

/** See the head of this file. */
export class RequestLine {
  /** The queue as it was last worked on. */
  queue: DeviceQueue | undefined;
  /** Called when none is under way any more. */
  whenStill: (() => void) | undefined;
  /** Would there be more, had there been a request to put it in? */
  waits = false;
  readonly #requests: (Request | undefined)[];
  #first = 0;
  #count = 0;
  #unfinished = 0;

  constructor(readonly index: number, most: number) {
    this.#requests = new Array(most).fill(undefined);
  }

  get isStill(): boolean {
    return this.#unfinished === 0;
  }

  get oldest(): Request | undefined {
    return this.#count === 0 ? undefined : this.#requests[this.#first];
  }

  push(request: Request): void {
    this.#requests[(this.#first + this.#count++) % this.#requests.length] = request;
    this.#unfinished++;
    request.line = this;
    request.isDone = false;
  }

  finished(request: Request): void {
    request.isDone = true;
    this.#unfinished--;
    if (this.isStill) this.whenStill?.();
  }

  shift(): void {
    this.#first = (this.#first + 1) % this.#requests.length;
    this.#count--;
  }
}
