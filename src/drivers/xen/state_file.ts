/**
 * What a process leaves for the next one that serves the same domain: the ioreq server's number and the registers.
 *
 * `xen-DOMAIN.json` in `/run/vmsg` is replaced as a whole, before an access that changed the state is answered; so
 * whoever finds it may answer once more what was not. `xen-DOMAIN.lock` beside it is locked by who serves the
 * domain. A domain's number may be given again, its name in `/vm` not, or it has another number then: both are kept.
 */

import { VmsgError } from "../../linux/errors.ts";
import { type Fd, tryLockByte, unlinkFile } from "../../linux/fd.ts";
import { openOwnFile, replaceFile } from "../../linux/own_file.ts";
import { lockHolder } from "../../linux/process_files.ts";
import { readText } from "../../linux/sysfs.ts";
import type { RegisterState } from "../mmio/registers.ts";
import type { IoapicState } from "./ioapic.ts";

/** What is left. */
export interface XenState {
  /** The domain, as xenstore names it for ever. */
  readonly vm: string;
  /** The ioreq server; undefined where it was ended in order. */
  readonly server: number | undefined;
  readonly ioapic: IoapicState;
  /** By device number. */
  readonly cards: Readonly<Record<number, RegisterState>>;
}

/** See the head of this file. */
export class StateFile implements Disposable {
  readonly #lock: Fd;
  readonly #path: string;

  /**
   * @param directory of this user's own
   * @throws VmsgError DOMAIN_SERVED if another process has it
   */
  constructor(directory: string, domain: number) {
    this.#path = `${directory}/xen-${domain}`;
    this.#lock = openOwnFile(`${this.#path}.lock`, { what: "lock" }).fd;
    if (tryLockByte(this.#lock, 0)) return;
    const holder = lockHolder(this.#lock, 0);
    this.#lock[Symbol.dispose]();
    const who = holder === undefined ? "another process" : `process ${holder}`;
    throw new VmsgError(
      "DOMAIN_SERVED",
      `domain ${domain} is served by ${who}: give all its cards to one vmsg proxy`,
    );
  }

  /** What was left of this domain. */
  read(vm: string): XenState | undefined {
    try {
      const state: XenState = JSON.parse(readText(`${this.#path}.json`) ?? "");
      return state.vm === vm ? state : undefined;
    } catch {
      // There is none, or it is none.
      return undefined;
    }
  }

  /** Replaces what is left. */
  write(state: XenState): void {
    replaceFile(`${this.#path}.json`, JSON.stringify(state));
  }

  /** The domain is gone, and nothing is left. */
  remove(): void {
    for (const end of ["json.new", "json", "lock"]) unlinkFile(`${this.#path}.${end}`);
  }

  [Symbol.dispose](): void {
    this.#lock[Symbol.dispose]();
  }
}
