import { assertThrows } from "@std/assert";
import { EMPTY, event, layout } from "../../src/message/layout.ts";

Deno.test("a slip in a table is found when it loads", () => {
  const cases: [string, number, string][] = [
    ["should be at 4", 12, "0 u32 index, 8 u32 count"],
    ["should be at 4", 8, "0 u32 index, 2 u32 count"],
    ["8 bytes listed, size 12", 12, "0 u32 index, 4 u32 count"],
    ["twice", 8, "0 u32 index, 4 u32 index"],
    ["is no field", 8, "0 u32 index, 4 u32 indexes"],
    ["is no field", 8, "0 u32 index, 4 u33 count"],
    ["cannot be u32", 4, "0 u32 words"],
    ["cannot be uuid", 16, "0 uuid index"],
    ["cannot be next", 4, "0 next index"],
    ["must be last", 8, "0 u32 count, 4 words[count] words, 4 u32 index"],
    ["needs length", 4, "0 u32 count, 4 bytes[length] bytes"],
  ];
  for (const [message, size, fields] of cases) {
    assertThrows(() => layout(size, fields), Error, message);
  }
  const wire = { id: 1, request: EMPTY, response: EMPTY };
  assertThrows(() => event("EVENT_USED", "device", { v1: wire }), Error, "event with an answer");
});
