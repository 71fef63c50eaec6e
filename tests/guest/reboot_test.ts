/** A machine that reboots, in direct mode; see reboot_cases.ts. */

import { DIRECT } from "./modes.ts";
import { rebootTest } from "./reboot_cases.ts";

for (const kind of ["microvm", "uml"] as const) rebootTest(kind, DIRECT);
