/** `--xen`: cards of domains, for a proxy in Dom0. */

import { XenServer } from "../drivers/xen/xen_server.ts";
import type { XenCard } from "../drivers/xen/xen_server.ts";
import { MAX_CARDS } from "../drivers/xen/acpi.ts";
import { UsageError, VmsgError } from "../linux/errors.ts";
import { isOurs } from "../observe/counter_file.ts";
import type { Sharing } from "../sharing/sharing.ts";
import type { RemoteDevice } from "../transport/remote_device.ts";
import { ioreqProblem } from "../xen/survey.ts";
import { Xenstore } from "../xen/xenstore.ts";
import type { Option, Options } from "./command.ts";
import { parseGroup } from "./groups.ts";
import type { PlaneContext } from "./plane.ts";

/**
 * Where states are, and who serves a domain is locked: one place for all, since Xen tells nobody that somebody else
 * serves the same addresses.
 */
const DIRECTORY = "/run/vmsg";

export const XEN_OPTION: Option = {
  name: "xen",
  value: "domain=NAME|ID[,device=N][,base=ADDRESS,irq=N]",
  repeated: true,
  help:
    "in Dom0: lend that domain device number N as a virtio-mmio device, with --confined; its place is " +
    "what libxl says (arm64) or what vmsg xen-acpi writes (x86), unless given",
};

export interface XenDomainSettings {
  readonly domain: string;
  readonly cards: readonly XenCard[];
}

/**
 * Parses all `--xen`; those of one domain belong together.
 *
 * @param first the number of the first device that none is named for
 * @throws UsageError also if the mode is another one than confined
 */
export function parseXen(
  options: Options,
  first: number,
  isConfined: boolean,
): XenDomainSettings[] {
  const domains = new Map<string, XenCard[]>();
  for (const [index, text] of options.list("xen").entries()) {
    const group = parseGroup("--xen", text, ["domain", "device", "base", "irq"]);
    const domain = group.required("domain");
    const base = group.text("base") === undefined ? undefined : group.bytes("base");
    if (base !== undefined && (base === 0 || base % 0x200 !== 0)) {
      throw group.error("base= is the address of 512 bytes, a multiple of that");
    }
    const irq = group.text("irq") === undefined ? undefined : group.number("irq", 1, 1019, 0);
    if ((base === undefined) !== (irq === undefined)) throw group.error("give both base= and irq=");
    if (base !== undefined && domains.get(domain)?.some((card) => card.base === base)) {
      throw group.error(`two cards of domain ${domain} have the same base=`);
    }
    const card = { device: group.number("device", 0, 65535, first + index), base, irq };
    domains.set(domain, [...domains.get(domain) ?? [], card]);
  }
  for (const [domain, { length }] of domains) {
    if (length > MAX_CARDS) {
      throw new UsageError(`--xen domain=${domain}: ${length} cards, at most ${MAX_CARDS}`);
    }
  }
  if (domains.size > 0 && !isConfined) {
    throw new UsageError(
      "--xen goes with --confined: what Dom0 maps of a domain has no file that could be sent, and no " +
        "address that another machine knows",
    );
  }
  return [...domains].map(([domain, cards]) => ({ domain, cards }));
}

/** Serves the domains, for the context's stack to own. */
export function openXen(
  domains: readonly XenDomainSettings[],
  lend: (device: number) => { readonly remote: RemoteDevice; readonly sharing: Sharing },
  { reactor, log, stack }: PlaneContext,
): void {
  for (const { domain, cards } of domains) {
    const store = stack.use(new Xenstore(reactor));
    // Who is not root was told so by the store.
    if (!isOurs(DIRECTORY)) {
      throw new VmsgError(
        "NO_DIRECTORY",
        `--xen keeps states in ${DIRECTORY}: it has to be root's own`,
      );
    }
    // Before a domain is built for nothing.
    const problem = ioreqProblem();
    if (problem !== undefined) throw new VmsgError("NO_IOREQ", problem);
    const lent = cards.map((card) => ({ ...card, ...lend(card.device) }));
    stack.use(new XenServer({ reactor, log, store, domain, cards: lent, directory: DIRECTORY }));
  }
}
