/** `--device console,...`: a console, and perhaps a port for a program. */

import { ConsoleDevice, type ConsolePort } from "../../devices/console/console_device.ts";
import { type ConsoleEnd, PtyEnd, SocketEnd, StdioEnd } from "../../devices/console/console_end.ts";
import { parseGroup } from "../groups.ts";
import type { DeviceContext, DeviceKind } from "./device_kind.ts";

const MAX_NAME_BYTES = 200;

interface ConsoleSettings {
  readonly at: "pty" | "stdio" | { readonly socket: string };
  readonly port: { readonly name: string; readonly socket: string } | undefined;
}

function openEnd(at: ConsoleSettings["at"], { reactor, log }: DeviceContext): ConsoleEnd {
  if (at === "stdio") return new StdioEnd(reactor);
  return at === "pty" ? new PtyEnd(reactor) : new SocketEnd(reactor, at.socket, log.warn);
}

/** A console for people, and a port for a program. */
export const consoleKind: DeviceKind<ConsoleSettings> = {
  name: "console",
  usage: "console[,pty|stdio|socket=PATH][,port=NAME,port-socket=PATH]",
  help: "a console (hvc0): a pseudo-terminal whose name is said, standard input and output, or a " +
    "Unix socket; port adds /dev/virtio-ports/NAME for a program, at a Unix socket",
  parse: (text, option) => {
    const group = parseGroup(option, text, ["pty", "stdio", "socket", "port", "port-socket"]);
    const given = ["pty", "stdio"].filter((key) => group.flag(key, false));
    const socket = group.text("socket");
    if (given.length + (socket === undefined ? 0 : 1) > 1) {
      throw group.error("give one of pty, stdio and socket=");
    }
    const name = group.text("port");
    if (
      name !== undefined && (name === "" || new TextEncoder().encode(name).length > MAX_NAME_BYTES)
    ) {
      throw group.error(`a port's name has 1 to ${MAX_NAME_BYTES} bytes`);
    }
    if (name === undefined && group.text("port-socket") !== undefined) group.required("port");
    return {
      at: socket !== undefined
        ? { socket: group.required("socket") }
        : given[0] === "stdio"
        ? "stdio"
        : "pty",
      port: name === undefined ? undefined : { name, socket: group.required("port-socket") },
    };
  },
  open: ({ at, port }, context) => {
    const { reactor, log, number } = context;
    using stack = new DisposableStack();
    const end = stack.use(openEnd(at, context));
    const ports: ConsolePort[] = [{ end }];
    if (port !== undefined) {
      const end = stack.use(new SocketEnd(reactor, port.socket, log.warn));
      ports.push({ end, name: port.name });
    }
    log.info(`device ${number}: a console at ${end.description}`);
    const model = new ConsoleDevice(reactor, ports, `${number} console`);
    stack.move();
    return { model, description: `console, ${end.description}`, counters: model.counters };
  },
};
