/** Tells systemd about this service's state (sd_notify(3)); nothing happens outside a service. */

import { allocate } from "./arena.ts";
import { libc } from "./libc.ts";
import { Fd } from "./fd.ts";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MAX_PATH = 107;

/** Where systemd hears of this service; to be asked for while the environment may be read. */
export function systemdSocket(): string | undefined {
  return Deno.env.get("NOTIFY_SOCKET");
}

/**
 * Tells a state.
 *
 * @param socket see {@link systemdSocket}
 * @param state as sd_notify takes it, e.g. "READY=1"
 */
export function notifySystemd(socket: string | undefined, state: string): void {
  if (socket === undefined) return;
  // A leading @ stands for the NUL of an abstract address.
  const name = socket.replace(/^@/, "\0");
  const path = new TextEncoder().encode(name);
  if (path.length > MAX_PATH) return;
  const address = allocate(2 + MAX_PATH + 1);
  address.view.setUint16(0, AF_UNIX, true);
  address.bytes.set(path, 2);
  const bytes = new TextEncoder().encode(state);
  const message = allocate(bytes.length);
  message.bytes.set(bytes);
  const number = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (number < 0) return;
  using fd = new Fd(number);
  if (libc.connect(fd.number, address.address, 2 + path.length) < 0) return;
  libc.write(fd.number, message.address, bytes.length);
}
