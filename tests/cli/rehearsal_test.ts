import { assert, assertEquals } from "@std/assert";
import { rehearse } from "../../src/cli/rehearsal.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { cleanTest } from "../support/leaks.ts";
import { DIALECTS } from "../../src/message/message.ts";

for (const dialect of DIALECTS) {
  for (const isTraced of [false, true]) {
    const what = `${dialect}${isTraced ? ", traced" : ""}`;
    cleanTest(`a device side rehearses: every request is answered, nothing stays (${what})`, () => {
      const { came, lack } = rehearse([codecFor(dialect)], isTraced);
      assertEquals(lack, 0);
      assert(came >= 2 * 15, `${came} answers`);
    });
  }
}
