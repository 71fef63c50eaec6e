/** A live process seen from outside: what it holds, what it uses, what it says. */

import { assert } from "@std/assert";
import { atRest, until, type VmsgProcess } from "../support/processes.ts";
import { assertFew } from "./round_reactor.ts";

/** How long it may take to let go of what a peer gave it. */
const SETTLE_MS = 45_000;
const MOST_GROWTH_KIB = 300 << 10;
/** Clock ticks of /proc/PID/stat in a second. */
const TICKS = 100;

/** See the head of this file; what it held when it had come to rest is what it is to hold again. */
export class Holder {
  readonly #before: string;
  readonly #kib: number;
  readonly #startMs = performance.now();

  private constructor(readonly process: VmsgProcess) {
    this.#before = this.#held();
    this.#kib = this.#residentKib();
  }

  /** Waits until what a process holds does not change. */
  static async of(process: VmsgProcess): Promise<Holder> {
    const holder = new Holder(process);
    await atRest(() => holder.#held());
    return new Holder(process);
  }

  #read(name: string): string {
    return Deno.readTextFileSync(`/proc/${this.process.pid}/${name}`);
  }

  /** Descriptors, and mappings of files. */
  #held(): string {
    const count = [...Deno.readDirSync(`/proc/${this.process.pid}/fd`)].length;
    const shared = this.#read("maps").split("\n").filter((line) => / rw-s /.test(line)).length;
    return `${count} descriptors, ${shared} shared mappings`;
  }

  #residentKib(): number {
    return Number(/VmRSS:\s+(\d+)/.exec(this.#read("status"))![1]);
  }

  /** Milliseconds of processor time that it has used. */
  usedMs(): number {
    const fields = this.#read("stat").replace(/^.*\) /, "").split(" ");
    return (Number(fields[11]) + Number(fields[12])) * 1000 / TICKS;
  }

  async check(): Promise<void> {
    const { process } = this;
    const name = process.args[0];
    const isSo = () => this.#held() === this.#before;
    await until(isSo, SETTLE_MS).catch(() => {
      throw new Error(`vmsg ${name} had ${this.#before} and has ${this.#held()}`);
    });
    const grown = this.#residentKib() - this.#kib;
    assert(grown < MOST_GROWTH_KIB, `vmsg ${name} has grown by ${grown} KiB`);
    assertFew(process.lines.map(({ text }) => text), performance.now() - this.#startMs);
  }
}
