/**
 * One connection between a program of the guest and one of this machine: who is asked, what was said, and how much credit
 * each has.
 *
 *     FREE -> GREETING --CONNECT port--> REQUESTED --RESPONSE--> OPEN     a host program connects
 *       '--REQUEST, and somebody listens-------------------------^        the guest does
 *     OPEN --both directions are over here: SHUTDOWN--> CLOSING --RST--> FREE
 *     OPEN --the guest's SHUTDOWN: RST--> FLUSHING --the host program has all--> FREE
 *
 * A RST, from either side, ends it at once in any state. States that wait for somebody have a deadline.
 *
 * Credit (5.10.6.3). Each side says how much room it has for a connection and how much it has handed on; the difference to what
 * was sent is on its way. We grant the size of the backlog.
 */

import { VsockShutdown } from "../../virtio/vsock.ts";
import type { Backlog, HostStream } from "./host_stream.ts";

export const State = {
  FREE: 0,
  GREETING: 1,
  REQUESTED: 2,
  OPEN: 3,
  CLOSING: 4,
  FLUSHING: 5,
} as const;

/** Packets without payload that are to be said, as masks. */
export const Due = { REQUEST: 1, RESPONSE: 2, CREDIT: 4 } as const;

/** See the head of this file; reused. */
export class Connection {
  state: number = State.FREE;
  stream!: HostStream;
  hostPort = 0;
  guestPort = 0;
  /** {@link Due}. */
  due = 0;
  /** Is it in the queue of those that have something to say? */
  isQueued = false;
  deadlineMs = Infinity;
  /** Another one in the table, of the same hash. */
  next: Connection | undefined = undefined;
  /** What the guest has said: flags of SHUTDOWN, room, bytes handed on. */
  guestShut = 0;
  guestRoom = 0;
  guestTaken = 0;
  /** What we have: flags of SHUTDOWN, bytes sent, bytes handed on, and that it has no room. */
  saidShut = 0;
  sent = 0;
  toldTaken = 0;
  hasAsked = false;

  constructor(readonly backlog: Backlog) {}

  /** Begins anew. */
  begin(state: number, stream: HostStream): void {
    this.state = state;
    this.stream = stream;
    this.hostPort = this.guestPort = 0;
    this.due = 0;
    this.deadlineMs = Infinity;
    this.guestShut = this.guestRoom = this.guestTaken = 0;
    this.saidShut = this.sent = this.toldTaken = 0;
    this.hasAsked = false;
  }

  /** How many bytes the guest has room for. */
  get credit(): number {
    return Math.max(0, this.guestRoom - ((this.sent - this.guestTaken) >>> 0));
  }

  /** What is over on our side: flags of SHUTDOWN. */
  get shut(): number {
    const { stream } = this;
    // Of one who is gone nothing more is read that nobody wants to have.
    const isOver = stream.hasEnded || stream.isGone && this.isUnheard;
    return (isOver ? VsockShutdown.SEND : 0) | (stream.isDeaf ? VsockShutdown.RECEIVE : 0);
  }

  /** Does the guest receive no more? */
  get isUnheard(): boolean {
    return (this.guestShut & VsockShutdown.RECEIVE) !== 0;
  }

  get mayRead(): boolean {
    return this.state === State.OPEN && this.stream.isReadable && !this.isUnheard;
  }

  /** Is there something to be said? */
  get isReady(): boolean {
    if (this.state < State.REQUESTED || this.state > State.OPEN) return this.due !== 0;
    return this.due !== 0 ||
      this.state === State.OPEN && this.shut !== this.saidShut ||
      this.mayRead && !(this.hasAsked && this.credit === 0);
  }

  /** Has the guest less than half of its credit, as far as it knows? */
  get owesCredit(): boolean {
    return ((this.stream.taken - this.toldTaken) >>> 0) >= this.backlog.size / 2;
  }
}
