/** A driver that goes while frames pour in, in direct mode; see unbind_cases.ts. */

import { DIRECT } from "./modes.ts";
import { unbindTest } from "./unbind_cases.ts";

unbindTest(DIRECT);
