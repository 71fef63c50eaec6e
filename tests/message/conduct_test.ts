import { assertEquals } from "@std/assert";
import { codecFor } from "../../src/message/codecs.ts";
import { type Conduct, CONDUCTS } from "../../src/message/conduct.ts";
import { dialectOfAnswer } from "../../src/message/detect.ts";
import { DIALECTS, Kind, Message } from "../../src/message/message.ts";
import type { Dialect } from "../../src/message/message.ts";
import { slotOf } from "./vectors.ts";

/** Habits by name that a dialect has and `v1` has not, or the other way round. */
function differences(dialect: Dialect): string[] {
  const v1 = CONDUCTS["v1"];
  const other = CONDUCTS[dialect];
  return (Object.keys(v1) as (keyof Conduct)[]).filter((habit) => v1[habit] !== other[habit]);
}

Deno.test("conduct: what each dialect does otherwise than v1", () => {
  const of2025 = ["configWriteNamesGeneration", "queueOperationIsNamed", "nextOffsetIsAligned"];
  assertEquals(differences("v1-2025"), of2025);
  assertEquals(differences("proto").length, 9);
  assertEquals(differences("rfc"), ["hasTokens", ...of2025]);
  assertEquals(differences("rfc-q"), [
    ...["hasTokens", "ringsPerMessage", "featuresComeWhole", "configAccessIsPowerOfTwo"],
    ...["configWriteIsEchoed", "queueOperationIsNamed", "queueIsEchoed", "nextOffsetIsAligned"],
  ]);
  for (const dialect of DIALECTS) {
    const { conduct } = codecFor(dialect);
    assertEquals(conduct, CONDUCTS[dialect]);
    const queue = new Message();
    queue.reset(Kind.GET_VQUEUE, true);
    queue.token = 7;
    queue.queueSize = queue.flags = queue.deviceAddress = 1;
    const slot = slotOf(new Uint8Array(0));
    codecFor(dialect).encode(queue, slot, 0);
    codecFor(dialect).decode(slot, 0, queue);
    // What the header and the table hold is what the conduct says they hold.
    assertEquals(queue.token !== 0, conduct.hasTokens, dialect);
    assertEquals(queue.flags !== 0, conduct.queueStateIsNamed, dialect);
  }
});

Deno.test("conduct: the two forms of revision 1 are told apart by one answer's size", () => {
  const answer = (dialect: Dialect): DataView => {
    const message = new Message();
    message.reset(Kind.GET_DEVICE_INFO, true);
    const slot = slotOf(new Uint8Array(0));
    codecFor(dialect).encode(message, slot, 0);
    return slot;
  };
  const refused = (spoken: Dialect, slot: DataView) => {
    const reason = codecFor(spoken).decode(slot, 0, new Message());
    return reason && dialectOfAnswer(spoken, slot, reason);
  };
  assertEquals(refused("v1", answer("v1-2025")), "v1-2025");
  assertEquals(refused("v1-2025", answer("v1")), "v1");
  assertEquals(refused("v1", answer("v1")), undefined);
  assertEquals(refused("v1", slotOf(Uint8Array.of(1, 3, 0, 0, 0, 0, 9, 0))), undefined);
});
