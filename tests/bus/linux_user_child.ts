/** A device side of its own process for linux_user_test.ts: answers PING, lives until it is killed. */

import { LinuxUserBus } from "../../src/bus/linux_user.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { Kind } from "../../src/message/message.ts";
import { RawPeer } from "../support/raw_peer.ts";

const [directory = "."] = Deno.args;
const reactor = new Reactor();
const bus = new LinuxUserBus("device", reactor, {
  name: "test",
  directory,
  socket: `${directory}/socket`,
  listen: true,
  wait: true,
  reset: false,
  lock: true,
  discardOnAttach: true,
  ringPerMessage: false,
  log: () => {},
});
const peer = new RawPeer(reactor, bus, codecFor("v1"));
peer.onMessage = (message) => {
  if (message.kind === Kind.PING) peer.reply(message, (m) => m.data = message.data);
};
peer.open();
await reactor.run();
