/** Who may be killed under whom, in direct mode; see restart_cases.ts. */

import { DIRECT } from "./modes.ts";
import { driverRestartTests, restartTests } from "./restart_cases.ts";

for (const kind of ["microvm", "uml"] as const) restartTests(kind, DIRECT);
driverRestartTests(DIRECT);
