/** A process of pin_holder_test.ts: locks a file, has a holder, and waits to be killed. */

import { O_CREAT, openFile, tryLockByte } from "../../src/linux/fd.ts";
import { holdPins } from "../../src/linux/pin_holder.ts";

const fd = openFile(Deno.args[0]!, O_CREAT);
if (!tryLockByte(fd, 0) || holdPins([fd]) === undefined) throw new Error("no holder");
console.log("HELD");
await new Promise((resolve) => setTimeout(resolve, 60_000));
