/** What tests need that use a compiled vmsg; see scripts/lab/executable.ts. */

import { nativeTarget, type Target, TARGETS } from "../../scripts/toolchain.ts";
import type { Lack } from "./needs.ts";

/** What is missing to compile for a target here. */
export function toolchainLacks(target: Target): Lack[] {
  const lack = (what: string): Lack[] => [{ what, requiredBy: "VMSG_COMPILE_TESTS" }];
  const packed = Deno.env.get("VMSG_DENORT_DIR");
  if (packed) {
    const file = `${packed}/denort-${TARGETS[target]}.xz`;
    try {
      Deno.statSync(file);
      return [];
    } catch {
      return lack(`there is no ${file}`);
    }
  }
  const names = ["VMSG_COMPILE_DENO", "DENORT_BIN"];
  if (target === nativeTarget() && names.every((name) => Deno.env.get(name))) return [];
  return lack("no base binary is named, see scripts/toolchain.ts");
}
