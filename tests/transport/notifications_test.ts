/** Events that wait for room: each once, in order, and none for somebody who is gone. */

import { assertEquals } from "@std/assert";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind } from "../../src/message/message.ts";
import { Link } from "../../src/transport/link.ts";
import { Notifications, QueueNotification } from "../../src/transport/notifications.ts";
import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { cleanTest } from "../support/leaks.ts";
import { RawPeer } from "../support/raw_peer.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const CAPACITY = 8;

async function withLink(
  atOnce: boolean,
  body: (rig: {
    reactor: Reactor;
    notifications: Notifications;
    /** Of one device's queues. */
    queues: QueueNotification[];
    /** The peer takes what is there; the queues it was told of. */
    take(): Promise<number[]>;
    /** What the driver side has ready for the peer. */
    stop(): void;
  }) => Promise<void>,
): Promise<void> {
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor, undefined, CAPACITY);
  const codec = codecFor("v1");
  using link = new Link(pair.driver, codec, { reactor, tracer: undefined, pauses: false });
  using notifications = new Notifications(link, reactor, { atOnce, reserve: 0 });
  const peer = new RawPeer(reactor, pair.device, codec);
  pair.driver.open({ attached() {}, detached() {}, received() {} });
  peer.open();
  const incoming = peer.bus as unknown as { rung(): void };
  const { rung } = incoming;
  await reactor.until(body({
    reactor,
    notifications,
    queues: Array.from({ length: 20 }, (_, n) => new QueueNotification(Kind.EVENT_AVAIL, 3, n)),
    stop: () => incoming.rung = () => {},
    async take() {
      incoming.rung = rung;
      incoming.rung();
      await reactor.sleep(10);
      return peer.messages.splice(0).map(({ index }) => index);
    },
  }));
}

cleanTest(
  "notifications: sent once, in the order they were raised, as room comes",
  () =>
    withLink(true, async ({ notifications, queues, stop, take, reactor }) => {
      stop();
      for (const queue of queues) notifications.raise(queue);
      for (const queue of queues) notifications.raise(queue);
      await reactor.sleep(5);
      const order = await take();
      // Those that were sent at once were raised again.
      assertEquals(order, [
        ...Array(CAPACITY - 1).keys(),
        ...Array.from({ length: 20 - CAPACITY + 1 }, (_, n) => n + CAPACITY - 1),
        ...Array(CAPACITY - 1).keys(),
      ]);
    }),
);

cleanTest(
  "notifications: what is cancelled is not sent, and nothing else is lost",
  () =>
    withLink(true, async ({ notifications, queues, stop, take }) => {
      stop();
      for (const queue of queues) notifications.raise(queue);
      for (const index of [19, 0, 7, 12]) notifications.cancel(queues[index]!);
      const sent = [0, 1, 2, 3, 4, 5, 6];
      assertEquals(await take(), [...sent, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18]);
      stop();
      for (const queue of queues) notifications.raise(queue);
      notifications.cancelAll();
      assertEquals(await take(), sent);
      notifications.raise(queues[9]!);
      assertEquals(await take(), [9]);
    }),
);

cleanTest(
  "notifications: by task they wait for the turn's end, and one can be hurried",
  () =>
    withLink(false, async ({ notifications, queues, take }) => {
      notifications.raise(queues[1]!);
      notifications.raise(queues[2]!);
      notifications.hurry(queues[2]!, 0);
      notifications.hurry(queues[2]!, 0);
      assertEquals(await take(), [2, 1]);
    }),
);
