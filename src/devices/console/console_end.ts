/**
 * What a port of a console is connected to on this side: a pseudo-terminal, standard input and output, a Unix socket.
 *
 * While nobody is there (no terminal opened, no client connected) what the guest writes is thrown away, so that it never
 * waits for a person; what is to be read comes when somebody is. A window's size is looked at twice a second.
 */

import { Acceptor } from "../../linux/acceptor.ts";
import { duplicate, ISIG, openPty, passBytes, windowSize } from "../../linux/terminal.ts";
import type { Fd } from "../../linux/fd.ts";
import type { Reactor, Timer } from "../../linux/reactor.ts";
import { listenUnix, type UnixStream } from "../../linux/unix_socket.ts";
import type { IovecList } from "../../memory/mod.ts";
import { ByteStream, isHungUp } from "./byte_stream.ts";

const LOOK_MS = 500;

/** What a port is told. */
export interface EndEvents {
  readable(): void;
  writable(): void;
  /** Somebody came or went, or the window has another size. */
  changed(): void;
}

/** See the head of this file. */
export abstract class ConsoleEnd implements Disposable {
  columns = 0;
  rows = 0;
  protected events!: EndEvents;
  protected stream: ByteStream | undefined;

  /** @param description for people */
  constructor(readonly reactor: Reactor, readonly description: string) {}

  /** Called once. */
  open(events: EndEvents): void {
    this.events = events;
  }

  /** Is somebody there? */
  get isOpen(): boolean {
    return this.stream !== undefined;
  }

  read(list: IovecList): number {
    return this.stream?.read(list) ?? 0;
  }

  write(list: IovecList): number {
    return this.stream === undefined ? list.length : this.stream.write(list);
  }

  protected begin(reader: Fd, writer: Fd): void {
    const { events } = this;
    this.stream = new ByteStream(this.reactor, reader, writer, {
      readable: () => events.readable(),
      writable: () => events.writable(),
      ended: () => this.ended(),
    });
    events.changed();
    // What waited for room is thrown away, or goes to who is there now.
    events.writable();
  }

  protected ended(): void {
    this.stream?.[Symbol.dispose]();
    this.stream = undefined;
    this.events.changed();
    this.events.writable();
  }

  protected look(fd: Fd): void {
    const { columns, rows } = windowSize(fd);
    if (columns === this.columns && rows === this.rows) return;
    this.columns = columns;
    this.rows = rows;
    this.events.changed();
  }

  [Symbol.dispose](): void {
    this.stream?.[Symbol.dispose]();
    this.stream = undefined;
  }
}

/** A pseudo-terminal, for `screen /dev/pts/N` and its kind; closed and opened as often as one likes. */
export class PtyEnd extends ConsoleEnd {
  readonly #master: Fd;
  readonly #timer: Timer;

  constructor(reactor: Reactor) {
    const { master, path } = openPty();
    super(reactor, `pty ${path}`);
    this.#master = master;
    this.#timer = reactor.timer(() => this.#look());
  }

  override open(events: EndEvents): void {
    super.open(events);
    this.#timer.arm(LOOK_MS);
  }

  #look(): void {
    this.#timer.arm(LOOK_MS);
    if (isHungUp(this.#master)) return;
    const { number } = this.#master;
    if (!this.isOpen) this.begin(duplicate(number), duplicate(number));
    this.look(this.#master);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.reactor.dropTimer(this.#timer);
    this.#master[Symbol.dispose]();
  }
}

/** This process's standard input and output. A terminal passes bytes as they are, but for Ctrl-C, which is ours. */
export class StdioEnd extends ConsoleEnd {
  readonly #restore: (() => void) | undefined;
  readonly #input = duplicate(0);
  readonly #timer: Timer;

  constructor(reactor: Reactor) {
    super(reactor, "standard input and output");
    this.#restore = passBytes(this.#input, ISIG);
    this.#timer = reactor.timer(() => {
      this.#timer.arm(LOOK_MS);
      this.look(this.#input);
    });
  }

  override open(events: EndEvents): void {
    super.open(events);
    this.begin(duplicate(0), duplicate(1));
    this.look(this.#input);
    if (this.#restore !== undefined) this.#timer.arm(LOOK_MS);
  }

  /** Input has ended, output goes on. */
  protected override ended(): void {}

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.reactor.dropTimer(this.#timer);
    this.#restore?.();
    this.#input[Symbol.dispose]();
  }
}

/** A Unix socket with one client at a time; another one waits until that has left. */
export class SocketEnd extends ConsoleEnd {
  readonly #acceptor: Acceptor;

  /** @param warn takes a line if nobody can be let in */
  constructor(reactor: Reactor, path: string, warn: (line: string) => void) {
    super(reactor, `socket ${path}`);
    this.#acceptor = new Acceptor(reactor, listenUnix(path), (stream) => this.#take(stream), warn);
  }

  #take({ fd }: UnixStream): void {
    this.#acceptor.hold(true);
    this.begin(fd, duplicate(fd.number));
  }

  protected override ended(): void {
    super.ended();
    this.#acceptor.hold(false);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#acceptor[Symbol.dispose]();
  }
}
