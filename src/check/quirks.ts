/**
 * Rules that implementations in use are known to break (docs/wire.md, 2 and 3), so that who finds one broken need
 * not search. They are told beside the failure, which stays one, in the dialects which that implementation speaks.
 */

import type { Dialect } from "../message/codec.ts";
import type { RuleSide } from "./rules.ts";

/** Who is known to break rules (numbers, or fault modes), on which side and in which dialects. */
export interface Quirk {
  readonly side: RuleSide;
  readonly rules: readonly string[];
  readonly dialects: readonly Dialect[];
  readonly text: string;
}

const REVISION_1 = "v1 v1-2025";
const ANY_REVISION_1 = `${REVISION_1} rfc`;

const TABLE: readonly (readonly [RuleSide, rules: string, dialects: string, text: string])[] = [
  [
    ...["device", "G3", "v1-2025"] as const,
    "QEMU of 2025 has buffers of 48 bytes and does not answer longer requests",
  ],
  [
    ...["device", "V2 V19", "v1-2025"] as const,
    "QEMU of 2025 answers GET_VQUEUE with 1024 also for a queue that there is not",
  ],
  [
    ...["device", "B9", "v1-2025"] as const,
    "QEMU of 2025 answers GET_DEVICES with 46 bytes for 32 devices",
  ],
  [
    ...["device", "reordered", "proto"] as const,
    "QEMU's prototype ends itself at a status that it would not store, and its device breaks at EVENT_AVAIL " +
    "before DRIVER_OK",
  ],
  [
    ...["driver", "G8", "v1-2025"] as const,
    "Linux of 2025 sends token 1 with every request, its AMP bus 0",
  ],
  [
    ...["driver", "R12", ANY_REVISION_1] as const,
    "QEMU's vhost-user network card has a configuration of its own, and does not read it again",
  ],
  [
    ...["driver", "R14", ANY_REVISION_1] as const,
    "Linux's network driver, and QEMU's and User-Mode Linux's vhost-user, reset no device that needs it",
  ],
  [
    ...["driver", "R27", REVISION_1] as const,
    "Linux drops an EVENT_CONFIG that names a range without its data",
  ],
  [
    ...["driver", "G2", "rfc"] as const,
    "Linux and Xen of 2025 leave the data out of the sizes of SET_DRIVER_FEATURES and SET_CONFIG",
  ],
  [
    ...["driver", "G6 G21", "rfc"] as const,
    "front ends of Trusty and LK want sizes exact, and zeros behind",
  ],
  [
    ...["driver", "R16", "rfc"] as const,
    "Linux of 2025 sends RESET_VQUEUE for each queue at its end, whatever was negotiated",
  ],
  [...["driver", "R37", "v1"] as const, "Linux gives a device up for good when a request fails"],
  [
    ...["driver", "P4", "proto"] as const,
    "Linux patches of the prototype's time read and write up to 8 bytes of configuration at once",
  ],
  [
    ...["driver", "late", "proto"] as const,
    "QEMU's prototype looks for an answer 1024 times, which are a few tens of milliseconds, and then ends itself",
  ],
];

export const QUIRKS: readonly Quirk[] = TABLE.map(([side, rules, dialects, text]) => ({
  side,
  text,
  rules: rules.split(" "),
  dialects: dialects.split(" ") as Dialect[],
}));

export function quirkOf(side: RuleSide, rule: string, dialect: Dialect): string | undefined {
  return QUIRKS.find((quirk) =>
    quirk.side === side && quirk.rules.includes(rule) && quirk.dialects.includes(dialect)
  )?.text;
}
