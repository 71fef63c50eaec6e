/** A driver side under test: an in-process bus, and a raw peer that plays the device side. */

import { inProcessBus } from "../../src/bus/in_process_bus.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import type { Dialect } from "../../src/message/codec.ts";
import { Kind, type Message } from "../../src/message/message.ts";
import { createLog } from "../../src/observe/log.ts";
import { DriverSide } from "../../src/transport/driver_side.ts";
import type { RemoteDevice } from "../../src/transport/remote_device.ts";
import { PRIVATE_VERSION } from "../../src/transport/epoch.ts";
import { RawPeer } from "./raw_peer.ts";
import { VirtualClock } from "./virtual_clock.ts";

/** The epoch of the device side that the raw peer plays. */
export const DEVICE_EPOCH = 0x77_0000_0001;

/** A driver side, its device number 3, and the raw peer. */
export interface DriverRig {
  readonly reactor: Reactor;
  readonly side: DriverSide;
  readonly device: RemoteDevice;
  readonly peer: RawPeer;
  /** "ready" and "lost: reason", in order. */
  readonly events: string[];
  readonly lines: string[];
  /** HELLO messages that came. */
  readonly hellos: Message[];
  /** Whether HELLO is answered, and as whom. */
  readonly hello: { answers: boolean; epoch: number };
  /** Waits until something is so. */
  wait(condition: () => boolean): Promise<void>;
}

/** How a rig differs from the usual one. */
export interface DriverRigOptions {
  readonly dialect?: Dialect;
  readonly capacity?: number;
  readonly requestTimeoutMs?: number;
  /** The raw peer answers HELLO. */
  readonly answersHello?: boolean;
}

/** Runs a test's body in the reactor of a fresh rig. The probe GET_DEVICE_INFO goes to the body. */
export async function withDriverSide(
  body: (rig: DriverRig) => Promise<void>,
  options: DriverRigOptions = {},
): Promise<void> {
  const { dialect = "v1", capacity = 64, requestTimeoutMs, answersHello = true } = options;
  const codec = codecFor(dialect);
  using reactor = new Reactor(new VirtualClock());
  using pair = inProcessBus(reactor, undefined, capacity);
  const lines: string[] = [];
  using side = new DriverSide({
    reactor,
    bus: pair.driver,
    codec,
    log: createLog("test", "debug", (line) => lines.push(line)),
    requestTimeoutMs,
  });
  const peer = new RawPeer(reactor, pair.device, codec);
  const events: string[] = [];
  side.listen({
    ready: () => events.push("ready"),
    lost: (reason) => events.push(`lost: ${reason}`),
  });
  const rig: DriverRig = {
    reactor,
    side,
    device: side.device(3),
    peer,
    events,
    lines,
    hellos: [],
    hello: { answers: answersHello, epoch: DEVICE_EPOCH },
    async wait(condition) {
      const endMs = reactor.now() + 4000;
      while (!condition()) {
        if (reactor.now() > endMs) throw new Error(`never so: ${condition}`);
        await reactor.sleep(1);
      }
    },
  };
  peer.onMessage = (message) => {
    if (message.kind !== Kind.HELLO) return true;
    rig.hellos.push(message);
    if (rig.hello.answers) answerHello(rig, message);
    return false;
  };
  side.open();
  peer.open();
  await reactor.until(body(rig));
}

/** Answers a HELLO as a device side with this epoch. */
export function answerHello({ peer, hello, hellos }: DriverRig, message: Message): void {
  peer.reply(message, (m) => {
    m.epoch = hello.epoch;
    m.peerEpoch = message.epoch;
    m.nonce = 1000 + hellos.length;
    m.version = PRIVATE_VERSION;
  });
}

/** As {@link withDriverSide}, once the peer is known as a vmsg and the probes are taken. */
export function withReady(
  body: (rig: DriverRig) => Promise<void>,
  options?: DriverRigOptions,
): Promise<void> {
  return withDriverSide(async (rig) => {
    await rig.wait(() => rig.side.isReady);
    rig.peer.messages.length = 0;
    await body(rig);
  }, options);
}
