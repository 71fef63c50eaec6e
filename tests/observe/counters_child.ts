/** Counts without end in the directory it is given; says its file's path when it has begun. */

import { openCounterFile } from "../../src/observe/counter_file.ts";
import { counterShape } from "../../src/observe/counters.ts";

const Shape = counterShape("frames", "bytes");

const file = openCounterFile("child", [Deno.args[0]!]);
const counters = new Shape("port", "tap0");
console.log(file.path);
for (;;) {
  counters.frames++;
  counters.bytes += 60;
}
