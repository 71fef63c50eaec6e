/**
 * xenstore: the tree of names by which domains and their devices are known, and watches on it.
 *
 * xenstored listens on a socket in the domain where it runs, which is Dom0 nearly always; elsewhere /dev/xen/xenbus
 * leads to it. (In Dom0 as well, but there the kernel has a caller stand still until xenstored has answered.) A message is a
 * header of four u32 {type, request, transaction, length} and a body. Answers name their request; a watch event
 * comes by itself.
 *
 * Source: xen/include/public/io/xs_wire.h, docs/misc/xenstore.txt (numbers and layouts).
 */

import { allocate } from "../linux/arena.ts";
import { EAGAIN, LinuxError, VmsgError } from "../linux/errors.ts";
import { type Fd, openFile, setNonBlocking } from "../linux/fd.ts";
import { check, errno, lastError, libc } from "../linux/libc.ts";
import { connectUnix } from "../linux/unix_socket.ts";
import { type Deferred, EPOLLIN, type Reactor } from "../linux/reactor.ts";

const SOCKET_PATH = "/run/xenstored/socket";
const XENBUS_PATH = "/dev/xen/xenbus";

const DIRECTORY = 1;
const READ = 2;
const WATCH = 4;
const UNWATCH = 5;
const WRITE = 11;
const WATCH_EVENT = 15;
const ERROR = 16;
const IS_DOMAIN_INTRODUCED = 17;

const HEADER_SIZE = 16;
/** XENSTORE_PAYLOAD_MAX */
const MAX_BODY = 4096;

const outgoing = allocate(HEADER_SIZE + MAX_BODY);

function openXenstore(): Fd {
  try {
    return connectUnix(SOCKET_PATH)?.fd ?? openFile(XENBUS_PATH);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    throw new VmsgError("NO_XENSTORE", `${error.message}: --xen works in Dom0 of Xen, as root`);
  }
}

/** See the head of this file. */
export class Xenstore implements Disposable {
  readonly #fd: Fd;
  readonly #open = new Map<number, Deferred<string>>();
  readonly #watches = new Map<string, (path: string) => void>();
  #lastRequest = 0;
  /** A message, as far as it has come. */
  readonly #incoming = allocate(HEADER_SIZE + MAX_BODY);
  #filled = 0;

  /**
   * @param fd where xenstored is, which becomes ours
   * @throws VmsgError NO_XENSTORE
   */
  constructor(readonly reactor: Reactor, fd: Fd = openXenstore()) {
    this.#fd = fd;
    setNonBlocking(this.#fd);
    reactor.watch(this.#fd, EPOLLIN, () => this.#receive());
  }

  /** What a path says; undefined if there is no such path. */
  async read(path: string): Promise<string | undefined> {
    return await this.#ask(READ, `${path}\0`);
  }

  /** The names below a path; none if there is no such path. */
  async list(path: string): Promise<string[]> {
    const names = await this.#ask(DIRECTORY, `${path}\0`);
    return names?.split("\0").filter((name) => name !== "") ?? [];
  }

  /** False if it cannot be written. */
  async write(path: string, value: string): Promise<boolean> {
    return await this.#ask(WRITE, `${path}\0${value}`) !== undefined;
  }

  /** Does xenstored know this domain, and is it not gone? */
  async hasDomain(domain: number): Promise<boolean> {
    return await this.#ask(IS_DOMAIN_INTRODUCED, `${domain}\0`) === "T\0";
  }

  /** Has changes at and below a path told from now on, and once at the beginning. */
  async watch(path: string, changed: (path: string) => void): Promise<void> {
    this.#watches.set(path, changed);
    // The token is the path: it says whose event it is.
    await this.#ask(WATCH, `${path}\0${path}\0`);
  }

  /** The opposite of {@link watch}. */
  async unwatch(path: string): Promise<void> {
    this.#watches.delete(path);
    await this.#ask(UNWATCH, `${path}\0${path}\0`);
  }

  /** The body of the answer; undefined for an error. */
  #ask(type: number, body: string): Promise<string | undefined> {
    const request = ++this.#lastRequest;
    const bytes = new TextEncoder().encode(body);
    if (bytes.length > MAX_BODY) throw new Error(`too long for xenstore: ${body.slice(0, 80)}`);
    const { view } = outgoing;
    [type, request, 0, bytes.length].forEach((word, i) => view.setUint32(4 * i, word, true));
    outgoing.bytes.set(bytes, HEADER_SIZE);
    const length = HEADER_SIZE + bytes.length;
    check(libc.write(this.#fd.number, outgoing.address, length), "write to xenstored");
    const answer = this.reactor.defer<string | undefined>();
    this.#open.set(request, answer as Deferred<string>);
    return answer.promise;
  }

  #receive(): void {
    for (;;) {
      const length = this.#filled < HEADER_SIZE
        ? HEADER_SIZE
        : HEADER_SIZE + this.#incoming.view.getUint32(12, true);
      if (length > HEADER_SIZE + MAX_BODY) throw new Error("xenstored sent too long a message");
      const at = this.#incoming.address + BigInt(this.#filled);
      const wanted = length - this.#filled;
      const got = wanted === 0 ? 0 : libc.read(this.#fd.number, at, wanted);
      if (got < 0 && errno() === EAGAIN) return;
      if (got === 0 && wanted > 0) throw new VmsgError("NO_XENSTORE", "xenstored is gone");
      if (got < 0) throw lastError("read from xenstored");
      this.#filled += got;
      if (got < wanted || (this.#filled === HEADER_SIZE && wanted > 0)) continue;
      this.#filled = 0;
      this.#handle(this.#incoming.bytes.slice(HEADER_SIZE, length));
    }
  }

  #handle(bytes: Uint8Array): void {
    const type = this.#incoming.view.getUint32(0, true);
    const body = new TextDecoder().decode(bytes);
    if (type === WATCH_EVENT) {
      const [path = "", token = ""] = body.split("\0");
      return this.#watches.get(token)?.(path);
    }
    const request = this.#incoming.view.getUint32(4, true);
    const answer = this.#open.get(request) as Deferred<string | undefined> | undefined;
    this.#open.delete(request);
    answer?.resolve(type === ERROR ? undefined : body);
  }

  [Symbol.dispose](): void {
    this.reactor.unwatch(this.#fd);
    this.#fd[Symbol.dispose]();
  }
}
