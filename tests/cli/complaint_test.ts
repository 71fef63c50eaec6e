/** What is not our own error is one line as well, without colours; the stack comes when asked for. */

import { assertEquals, assertMatch } from "@std/assert";
import { complaintOf } from "../../src/cli/complaint.ts";
import { UsageError } from "../../src/linux/errors.ts";

Deno.test("complaints: one line, whatever was thrown", () => {
  assertEquals(complaintOf(new UsageError("--net is missing")), "--net is missing");
  const colored = new Error("\x1b[31mbad\x1b[0m\n    at here");
  assertEquals(complaintOf(colored), "internal error: bad; at here (VMSG_DEBUG=1 says where)");
  assertMatch(complaintOf("a string"), /^internal error: a string/);
  try {
    Deno.mkdirSync("/proc/vmsg");
  } catch (error) {
    assertMatch(complaintOf(error), /^[^\n]*\(os error \d+\)[^\n]*\/proc\/vmsg[^\n]*$/);
  }
});

Deno.test("complaints: with VMSG_DEBUG the stack is told", () => {
  Deno.env.set("VMSG_DEBUG", "1");
  try {
    assertMatch(
      complaintOf(new Error("bad")),
      /^internal error: Error: bad\n {4}at .*complaint_test/,
    );
  } finally {
    Deno.env.delete("VMSG_DEBUG");
  }
});
