/** A guest on the host's network, in direct mode; see network_cases.ts. */

import { DIRECT } from "./modes.ts";
import { fetchTest, stockStreamsTest, streamsTest } from "./network_cases.ts";

const FILE_MIB = 64;

for (const kind of ["microvm", "uml"] as const) {
  for (const network of ["tap", "passt"] as const) fetchTest(kind, network, DIRECT, FILE_MIB);
}
stockStreamsTest(DIRECT);
streamsTest("uml", DIRECT);
