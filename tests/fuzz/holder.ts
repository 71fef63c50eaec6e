/** A live process seen from outside: what it holds, what it uses, what it says. */

import { assert } from "@std/assert";
import { atRest, until, type VmsgProcess } from "../support/processes.ts";
import { assertFew } from "./round_reactor.ts";

const MOST_GROWTH_KIB = 300 << 10;
/** Clock ticks of /proc/PID/stat in a second. */
const TICKS = 100;

/** Descriptors, and mappings of files. */
interface Held {
  readonly descriptors: number;
  readonly mappings: number;
}

const describe = ({ descriptors, mappings }: Held) =>
  `${descriptors} descriptors, ${mappings} shared mappings`;

/**
 * See the head of this file; what it held when it had come to rest is the most that it is to hold again. (On a busy machine a
 * process that stands still may be one that has not got to closing something.)
 */
export class Holder {
  readonly #before: Held;
  readonly #kib: number;
  readonly #startMs = performance.now();
  readonly #saidBefore: number;

  private constructor(readonly process: VmsgProcess) {
    this.#before = this.#held();
    this.#kib = this.#residentKib();
    this.#saidBefore = process.lines.length;
  }

  /** Waits until what a process holds does not change. */
  static async of(process: VmsgProcess): Promise<Holder> {
    const holder = new Holder(process);
    await atRest(() => describe(holder.#held()));
    return new Holder(process);
  }

  #read(name: string): string {
    return Deno.readTextFileSync(`/proc/${this.process.pid}/${name}`);
  }

  #held(): Held {
    const descriptors = [...Deno.readDirSync(`/proc/${this.process.pid}/fd`)].length;
    const mappings = this.#read("maps").split("\n").filter((line) => / rw-s /.test(line)).length;
    return { descriptors, mappings };
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
    const before = this.#before;
    const isSo = () => {
      const { descriptors, mappings } = this.#held();
      return descriptors <= before.descriptors && mappings <= before.mappings;
    };
    await until(isSo).catch(() => {
      throw new Error(`vmsg ${name} had ${describe(before)} and has ${describe(this.#held())}`);
    });
    const grown = this.#residentKib() - this.#kib;
    assert(grown < MOST_GROWTH_KIB, `vmsg ${name} has grown by ${grown} KiB`);
    const said = process.lines.slice(this.#saidBefore).map(({ text }) => text);
    assertFew(said, performance.now() - this.#startMs);
  }
}
