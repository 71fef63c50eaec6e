/** A server in this process, and clients that show every message they get. */

import { type Clock, MONOTONIC } from "../../src/linux/clock.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import type { Fd } from "../../src/linux/fd.ts";
import { allocate } from "../../src/linux/arena.ts";
import { clearEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { libc } from "../../src/linux/libc.ts";
import { connectUnix, type UnixStream } from "../../src/linux/unix_socket.ts";
import { MessageReader } from "../../src/ivshmem/protocol.ts";
import { IvshmemServer, type IvshmemServerOptions } from "../../src/ivshmem/server.ts";
import type { Log } from "../../src/observe/log.ts";
import { withDirectory } from "../support/leaks.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const word = allocate(16);

/** A log that keeps its lines, as in "warn: ...". */
export function keptLog(lines: string[]): Log {
  const at = (level: string) => (line: string) => void lines.push(`${level}: ${line}`);
  return { error: at("error"), warn: at("warn"), info: at("info"), debug: at("debug") };
}

/** Reads an eventfd: how often it was signalled since. */
export function countOf(fd: Fd): number {
  word.view.setBigUint64(0, 0n, true);
  return libc.read(fd.number, word.address, 8) < 0 ? 0 : Number(word.view.getBigUint64(0, true));
}

/** How long anything is waited for: of the reactor's time, and long enough where that is the real one. */
export const TIMEOUT_MS = 60_000;

/** For an end whose server is another process, which may get no processor in the two seconds that it has. */
export const PATIENT: Clock = { now: () => MONOTONIC.now() / 30 };

/** Waits, in turns of a millisecond, until something is so. */
export async function wait(reactor: Reactor, condition: () => boolean): Promise<void> {
  const endMs = reactor.now() + TIMEOUT_MS;
  while (!condition()) {
    if (reactor.now() > endMs) throw new Error(`never so: ${condition}`);
    await reactor.sleep(1);
  }
}

/** A client that follows nothing and keeps everything. */
export class RawClient implements Disposable {
  readonly #reader: MessageReader;
  /** What came and was looked at: the numbers, and a + where a descriptor came along. */
  readonly messages: string[] = [];
  /** The descriptors by number; -1 is the memory. */
  readonly fds = new Map<number, Fd[]>();
  isClosed = false;

  constructor(readonly stream: UnixStream) {
    this.#reader = new MessageReader(stream);
  }

  /** Takes what is there; the number of messages so far. */
  read(): number {
    while (!this.isClosed) {
      const result = this.#reader.read();
      if (result === "nothing") break;
      this.isClosed = result !== "message";
      if (this.isClosed) break;
      const { value } = this.#reader;
      const fd = this.#reader.takeFd();
      this.messages.push(fd === undefined ? `${value}` : `${value}+`);
      if (fd !== undefined) this.fds.set(value, [...this.fds.get(value) ?? [], fd]);
    }
    return this.messages.length;
  }

  /** What came since the last call. */
  news(): string {
    this.read();
    return this.messages.splice(0).join(" ");
  }

  ring(id: number, vector = 0): void {
    signalEventFd(this.fds.get(id)![vector]!);
  }

  clear(id: number, vector = 0): void {
    clearEventFd(this.fds.get(id)![vector]!);
  }

  [Symbol.dispose](): void {
    this.#reader[Symbol.dispose]();
    this.stream[Symbol.dispose]();
    for (const fds of this.fds.values()) for (const fd of fds) fd[Symbol.dispose]();
    this.fds.clear();
  }
}

/** What a test of a server is given. */
export interface ServerRig {
  readonly reactor: Reactor;
  readonly directory: string;
  readonly socket: string;
  readonly server: IvshmemServer;
  readonly lines: string[];
  /** A client that has connected, or undefined; closed after the test at the latest. */
  connect(): RawClient;
  /** A client, when it has all of its list. */
  join(): Promise<RawClient>;
  wait(condition: () => boolean): Promise<void>;
}

/** Runs a test with a server. */
export function withServer(
  options: Partial<IvshmemServerOptions>,
  body: (rig: ServerRig) => Promise<void>,
): Promise<void> {
  return withDirectory(async (directory) => {
    using stack = new DisposableStack();
    const reactor = stack.use(new Reactor(new VirtualClock()));
    const lines: string[] = [];
    const socket = `${directory}/iv.sock`;
    const all = { socket, size: 65536, vectors: 2, log: keptLog(lines), ...options };
    const server = stack.use(new IvshmemServer(reactor, all));
    const rig: ServerRig = {
      reactor,
      directory,
      socket,
      server,
      lines,
      connect: () => stack.use(new RawClient(connectUnix(socket)!)),
      async join() {
        const others = server.peers.length;
        const client = rig.connect();
        await rig.wait(() => client.read() >= 3 + (others + 1) * all.vectors);
        return client;
      },
      wait: (condition) => wait(reactor, condition),
    };
    await reactor.until(body(rig));
  });
}
