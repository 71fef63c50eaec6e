/**
 * Every connection of a device: a fixed number of them, their backlogs in one mapping (which takes memory where a backlog
 * was used), and a table by port numbers.
 */

import { mapAnonymous, type Mapping } from "../../linux/mapping.ts";
import { Connection, State } from "./connection.ts";

/** Small integers, which a Map finds without making an object of them. A guest that makes many equal has to be looked through. */
function hash(hostPort: number, guestPort: number): number {
  return (Math.imul(hostPort, 0x9e37_79b1) ^ guestPort) & 0x3fff_ffff;
}

/** See the head of this file. */
export class ConnectionTable implements Disposable {
  readonly all: readonly Connection[];
  readonly #free: Connection[];
  readonly #byHash = new Map<number, Connection>();
  readonly #backlogs: Mapping;

  /** @param size of a backlog, a power of two */
  constructor(count: number, size: number) {
    this.#backlogs = mapAnonymous(count * size);
    const { address } = this.#backlogs;
    this.all = Array.from(
      { length: count },
      (_, i) => new Connection({ address: address + BigInt(i * size), size }),
    );
    this.#free = this.all.toReversed();
  }

  get isFull(): boolean {
    return this.#free.length === 0;
  }

  /** One that is free and is not any more, unless there is none. */
  take(): Connection | undefined {
    return this.#free.pop();
  }

  find(hostPort: number, guestPort: number): Connection | undefined {
    let found = this.#byHash.get(hash(hostPort, guestPort));
    while (found !== undefined && (found.hostPort !== hostPort || found.guestPort !== guestPort)) {
      found = found.next;
    }
    return found;
  }

  /** Can be found by its port numbers, which no other one has, from here on. */
  add(connection: Connection, hostPort: number, guestPort: number): void {
    connection.hostPort = hostPort;
    connection.guestPort = guestPort;
    const key = hash(hostPort, guestPort);
    connection.next = this.#byHash.get(key);
    this.#byHash.set(key, connection);
  }

  /** Is not found any more, if it was. */
  remove(connection: Connection): void {
    const key = hash(connection.hostPort, connection.guestPort);
    const first = this.#byHash.get(key);
    if (first === connection) {
      if (connection.next === undefined) this.#byHash.delete(key);
      else this.#byHash.set(key, connection.next);
    } else {
      let before = first;
      while (before !== undefined && before.next !== connection) before = before.next;
      if (before !== undefined) before.next = connection.next;
    }
    connection.next = undefined;
  }

  /** Is free again; its socket is closed. */
  release(connection: Connection): void {
    if (connection.state === State.FREE) return;
    this.remove(connection);
    connection.stream[Symbol.dispose]();
    connection.state = State.FREE;
    connection.due = 0;
    connection.deadlineMs = Infinity;
    this.#free.push(connection);
  }

  [Symbol.dispose](): void {
    for (const connection of this.all) this.release(connection);
    this.#backlogs[Symbol.dispose]();
  }
}
