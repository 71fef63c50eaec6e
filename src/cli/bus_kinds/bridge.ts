/** `--bus bridge`: the virtio-msg transport of a kernel, through its device node. */

import { BridgeBus } from "../../bus/bridge.ts";
import { BRIDGE_PATH, type BridgeEndpoint, DeviceNode } from "../../bus/bridge_node.ts";
import { SocketNode } from "../../bus/bridge_socket.ts";
import type { BusKind } from "./bus_kind.ts";

interface BridgeSettings {
  readonly path: string;
  readonly endpoint: BridgeEndpoint;
}

/** In place of a path: a Unix socket behind which somebody plays the kernel. */
const SOCKET = "unix:";
/** With their NUL: 16 and 48 bytes. */
const MOST_NAME = 15, MOST_ID = 47;

export const bridgeKind: BusKind<BridgeSettings> = {
  name: "bridge",
  usage: "bridge[,path=PATH][,endpoint=NAME][,id=ID][,create]",
  help:
    `devices for the virtio drivers of a kernel that has virtio-msg itself, by default this machine's: ${BRIDGE_PATH}. ` +
    "endpoint is loopback (default) or ffa with the partition as id; create attaches before it is there. path=unix:PATH is a socket " +
    "at which another program plays the kernel. For the device side, v1 only; the kernel gives the memory",
  keys: ["path", "endpoint", "id", "create"],
  lendsMemory: true,
  parse: (group, side) => {
    if (side === "driver") {
      throw group.error(
        "it goes with vmsg device, or second with vmsg bridge: the driver side is the kernel",
      );
    }
    const dialect = group.text("dialect") ?? "v1";
    if (dialect !== "v1") throw group.error(`the kernel speaks v1, not ${dialect}`);
    if (group.flag("reset", false)) {
      throw group.error("reset is for buses whose queues outlive a process");
    }
    const path = group.text("path") ?? BRIDGE_PATH;
    if (path === "" || path === SOCKET) {
      throw group.error("path is that of a device node, or unix:PATH");
    }
    const limited = (key: string, text: string, most: number) => {
      if (new TextEncoder().encode(text).length <= most) return text;
      throw group.error(`${key} has at most ${most} bytes`);
    };
    const name = limited("endpoint", group.text("endpoint") ?? "loopback", MOST_NAME);
    if (name === "") throw group.error("endpoint is a name such as loopback");
    const id = limited("id", group.text("id") ?? "", MOST_ID);
    return { path, endpoint: { name, id, create: group.flag("create", false) } };
  },
  open: ({ path, endpoint }, { reactor, log, common }) => {
    const node = path.startsWith(SOCKET)
      ? new SocketNode(reactor, path.slice(SOCKET.length), log.info)
      : new DeviceNode(reactor, path);
    return new BridgeBus(reactor, node, endpoint, log, { ...common, discardOnAttach: false });
  },
};
