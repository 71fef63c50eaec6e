/**
 * A bus between two halves of one process, which talks to itself before others come, or is tested: the queues lie
 * in anonymous memory, the doorbell is a socket pair, so that descriptors travel as on the linux-user bus.
 */

import { mapAnonymous } from "../linux/mapping.ts";
import type { Reactor } from "../linux/reactor.ts";
import { type UnixStream, unixStreamPair } from "../linux/unix_socket.ts";
import type { BusListener, BusOptions, SharedSegment, Side } from "./bus.ts";
import { SpscQueue, spscSize } from "./spsc_queue.ts";
import { StreamBus } from "./stream_bus.ts";

class InProcessBus extends StreamBus {
  readonly description: string = "in-process bus";
  #stream: UnixStream | undefined;

  constructor(
    side: Side,
    reactor: Reactor,
    options: BusOptions,
    outgoing: SpscQueue,
    incoming: SpscQueue,
    stream: UnixStream,
    override readonly segment: SharedSegment | undefined,
  ) {
    super(side, reactor, options, outgoing, incoming);
    this.#stream = stream;
  }

  override open(listener: BusListener): void {
    super.open(listener);
    if (this.#stream !== undefined) this.connected(this.#stream);
    this.#stream = undefined;
  }

  protected override disconnected(): void {}

  /** Attaches anew, to another peer for all that it knows. */
  attachAgain(stream: UnixStream): void {
    this.drop("the rig attaches it anew");
    this.connected(stream);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    // One that was never opened still has its end of the socket pair.
    this.#stream?.[Symbol.dispose]();
    this.#stream = undefined;
  }
}

/** The two ends of an in-process bus. Each attaches when it is opened. */
export interface InProcessPair extends Disposable {
  /** The driver side's end. */
  readonly driver: StreamBus;
  /** The device side's end. */
  readonly device: StreamBus;
  /** Detaches both ends, if they are attached, and attaches them again; whoever is to listen has opened them. */
  attachAgain(): void;
}

/**
 * Makes an in-process bus.
 *
 * @param capacity slots per queue
 * @param segment memory that both sides see, if there is any
 */
export function inProcessBus(
  reactor: Reactor,
  options: BusOptions = { discardOnAttach: false, ringPerMessage: false },
  capacity = 64,
  segment?: SharedSegment,
): InProcessPair {
  using stack = new DisposableStack();
  const size = spscSize(capacity);
  const memory = stack.use(mapAnonymous(2 * size));
  const [a, b] = unixStreamPair();
  const queue = (offset: number) => new SpscQueue(memory, offset, size);
  const driver = stack.use(
    new InProcessBus("driver", reactor, options, queue(0), queue(size), a, segment),
  );
  const device = stack.use(
    new InProcessBus("device", reactor, options, queue(size), queue(0), b, segment),
  );
  const owner = stack.move();
  const attachAgain = () => {
    const [a, b] = unixStreamPair();
    driver.attachAgain(a);
    device.attachAgain(b);
  };
  return { driver, device, attachAgain, [Symbol.dispose]: () => owner.dispose() };
}
