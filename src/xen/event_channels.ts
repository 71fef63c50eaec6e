/**
 * /dev/xen/evtchn: doorbells between Dom0 and a domain.
 *
 * A channel that is bound has a local port. The file can be read, as u32 ports, when others have rung; a port is
 * masked from then on until it is written back.
 */

import { allocate } from "../linux/arena.ts";
import { type Fd, openFile, setNonBlocking } from "../linux/fd.ts";
import { check, libc } from "../linux/libc.ts";

const PATH = "/dev/xen/evtchn";
const IOCTL_BIND_INTERDOMAIN = 0x0008_4501n;
const IOCTL_NOTIFY = 0x0004_4504n;
const IOCTL_RESTRICT = 0x0002_4506n;

/** Ports that one read gives. */
const MAX_PORTS = 128;

const argument = allocate(8);
const ports = allocate(4 * MAX_PORTS);
const one = allocate(4);

/** The channels that one process has with one domain. */
export class EventChannels implements Disposable {
  readonly fd: Fd = openFile(PATH);

  constructor(readonly domain: number) {
    setNonBlocking(this.fd);
  }

  /** Binds a channel that the domain, or Xen for it, has made; its local port. */
  bind(remotePort: number): number {
    argument.view.setUint32(0, this.domain, true);
    argument.view.setUint32(4, remotePort, true);
    const result = libc.ioctl(this.fd.number, IOCTL_BIND_INTERDOMAIN, argument.address);
    return check(result, `domain ${this.domain}: bind event channel ${remotePort}`);
  }

  /** Calls back with every port that was rung, and has it ring again. */
  take(rung: (port: number) => void): void {
    const length = libc.read(this.fd.number, ports.address, 4 * MAX_PORTS);
    for (let at = 0; at < length; at += 4) {
      const port = ports.view.getUint32(at, true);
      // Unmasked first: what comes while it is looked at rings once more.
      one.view.setUint32(0, port, true);
      libc.write(this.fd.number, one.address, 4);
      rung(port);
    }
  }

  /** Rings; nobody hears it where the domain is gone. */
  notify(port: number): void {
    argument.view.setUint32(0, port, true);
    libc.ioctl(this.fd.number, IOCTL_NOTIFY, argument.address);
  }

  /** From here on no other domain's channels can be bound. */
  restrict(): void {
    argument.view.setUint16(0, this.domain, true);
    const result = libc.ioctl(this.fd.number, IOCTL_RESTRICT, argument.address);
    check(result, `restrict ${PATH} to domain ${this.domain}`);
  }

  [Symbol.dispose](): void {
    this.fd[Symbol.dispose]();
  }
}
