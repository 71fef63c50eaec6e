/** What User-Mode Linux takes from the device, and inherited connections, in direct mode; see link_cases.ts. */

import { linkTests } from "./link_cases.ts";
import { DIRECT } from "./modes.ts";

linkTests(DIRECT);
