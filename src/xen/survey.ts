/** What there is of Xen on this machine, for people: everything is only looked at. */

import { LinuxError, VmsgError } from "../linux/errors.ts";
import { Reactor } from "../linux/reactor.ts";
import { readAttribute } from "../linux/sysfs.ts";
import { Privcmd } from "./privcmd.ts";
import { Xenstore } from "./xenstore.ts";

/** No domain has it: DOMID_FIRST_RESERVED - 1. */
const NOBODY = 0x7fef;
/** Directories of back ends that may be ours. */
const KINDS = ["virtio", "virtio_disk"];
/** XenbusState by number. */
const STATES = "Unknown Initialising InitWait Initialised Connected Closing Closed".split(" ");

/** A domain, and its virtio devices as xenstore has them. */
export interface DomainSurvey {
  readonly id: number;
  readonly name: string;
  /** As in "virtio/0 InitWait". */
  readonly backEnds: readonly string[];
}

/** Is Xen below this system, as far as the kernel says? */
export function isUnderXen(): boolean {
  return readAttribute("/sys/hypervisor/type") === "xen";
}

/** Is this Dom0? */
export function isDom0(): boolean {
  return readAttribute("/proc/xen/capabilities")?.includes("control_d") ?? false;
}

/** The version of Xen, as in "4.20.5-pre". */
export function xenVersion(): string {
  const part = (name: string) => readAttribute(`/sys/hypervisor/version/${name}`) ?? "";
  return `${part("major")}.${part("minor")}${part("extra")}`;
}

/** Why there can be no ioreq servers; undefined if they can. */
export function ioreqProblem(): string | undefined {
  try {
    using privcmd = new Privcmd(NOBODY);
    privcmd.processors();
  } catch (error) {
    // There is nobody to be asked about, but the question was understood.
    if (error instanceof LinuxError && error.code === "ESRCH") return undefined;
    if (error instanceof VmsgError) return error.message;
    throw error;
  }
  return undefined;
}

/** The domains but for Dom0. @throws VmsgError if xenstore cannot be asked */
export async function surveyDomains(timeoutMs: number): Promise<DomainSurvey[]> {
  using reactor = new Reactor();
  using store = new Xenstore(reactor);
  const late = reactor.sleep(timeoutMs).then(() => {
    throw new VmsgError("NO_XENSTORE", "xenstored does not answer");
  });
  return await reactor.until(Promise.race([look(store), late]));
}

async function look(store: Xenstore): Promise<DomainSurvey[]> {
  const domains: DomainSurvey[] = [];
  for (const id of await store.list("/local/domain")) {
    if (id === "0") continue;
    const backEnds: string[] = [];
    for (const kind of KINDS) {
      const path = `/local/domain/0/backend/${kind}/${id}`;
      for (const device of await store.list(path)) {
        const state = await store.read(`${path}/${device}/state`);
        backEnds.push(`${kind}/${device} ${STATES[Number(state)] ?? "without a state"}`);
      }
    }
    const name = await store.read(`/local/domain/${id}/name`) ?? "without a name";
    domains.push({ id: Number(id), name, backEnds });
  }
  return domains;
}
