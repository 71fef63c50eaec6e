/** Network ports and hubs: what `--net`, `--device net` and `--hub` name. */

import { Hub } from "../network/hub.ts";
import type { Option, Section } from "./command.ts";
import type { Group } from "./groups.ts";
import { Lifetime, outliving } from "./lifetime.ts";
import { type Chosen, findKind, kindsSection, parseKind } from "./kinds.ts";
import type { PlaneContext } from "./plane.ts";
import { hubKind } from "./port_kinds/hub.ts";
import { packetKind } from "./port_kinds/packet.ts";
import { passtKind } from "./port_kinds/passt.ts";
import type { HubLinks, OpenPort, PortContext, PortKind } from "./port_kinds/port_kind.ts";
import { responderKind } from "./port_kinds/responder.ts";
import { tapKind } from "./port_kinds/tap.ts";

/** What can join the link of a hub to the world. */
const UPLINK_KINDS: readonly PortKind[] = [responderKind, tapKind, packetKind, passtKind];
const PORT_KINDS: readonly PortKind[] = [...UPLINK_KINDS, hubKind];

export const PORT_SECTION: Section = kindsSection(
  "What the frames of a network card reach",
  PORT_KINDS,
);

/** One `--hub`: a link for several cards, and what joins it to the world. */
export interface HubSettings {
  readonly name: string;
  readonly uplink: Chosen;
}

export const HUB_OPTION: Option = {
  name: "hub",
  value: "PORT[=VALUE],name=NAME[,...]",
  repeated: true,
  help: "joins the link of `--net hub=NAME` to another port",
};

/** Parses a port; `common` are keys of what it is for, to be read from the group. */
export function parsePort(
  option: string,
  text: string,
  common: readonly string[],
  kinds: readonly PortKind[] = PORT_KINDS,
): { readonly group: Group; readonly port: Chosen } {
  const { kind, group } = parseKind(option, text, kinds, common);
  return { group, port: { kind: kind.name, settings: kind.parse(group) } };
}

export function openPort({ kind, settings }: Chosen, context: PortContext): OpenPort {
  return findKind(PORT_KINDS, "--net", kind).open(settings, context);
}

export function parseHub(text: string): HubSettings {
  const { group, port: uplink } = parsePort("--hub", text, ["name"], UPLINK_KINDS);
  return { name: group.required("name"), uplink };
}

export class Hubs implements HubLinks {
  readonly #hubs = new Map<string, Hub>();

  constructor(
    private readonly settings: readonly HubSettings[],
    private readonly context: Pick<PlaneContext, "reactor" | "log" | "stack">,
  ) {}

  connect(name: string, card: Uint8Array): OpenPort {
    let hub = this.#hubs.get(name);
    if (hub === undefined) {
      const wanted = this.settings.find((hub) => hub.name === name)?.uplink;
      hub = wanted === undefined ? this.#openAlone(name) : this.#openUplink(name, wanted, card);
      this.#hubs.set(name, hub);
    }
    return { port: hub.connect(), mtu: hub.mtu };
  }

  /** @param card of all on it, whichever came first */
  #openUplink(name: string, wanted: Chosen, card: Uint8Array): Hub {
    const { reactor, log, stack } = this.context;
    return outliving(() => {
      const uplink = openPort(wanted, { reactor, log, card }).port;
      return stack.use(new Hub(reactor, { name, uplink }));
    });
  }

  /** For as long as there are cards on it: names come and go with them. */
  #openAlone(name: string): Hub {
    const lifetime = new Lifetime();
    const deserted = () => {
      this.#hubs.delete(name);
      lifetime[Symbol.dispose]();
    };
    return lifetime.during(() => new Hub(this.context.reactor, { name, deserted }));
  }
}
