/** `--device rng`: an entropy device. */

import { rngDevice } from "../../devices/rng.ts";
import { parseGroup } from "../groups.ts";
import type { DeviceKind } from "./device_kind.ts";

/** Random bytes of this machine's kernel; there is nothing to choose. */
export const rngKind: DeviceKind<null> = {
  name: "rng",
  usage: "rng",
  help: "an entropy device: random bytes of this machine's kernel",
  parse: (text, option) => {
    parseGroup(option, text, []);
    return null;
  },
  open: (_settings, { reactor, number }) => ({
    model: rngDevice(reactor, `${number} rng`),
    description: "rng",
  }),
};
