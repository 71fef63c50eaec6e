/** A process of pin_holder_test.ts: locks a file, has a holder, and waits to be killed. */

import { O_CREAT, openFile, tryLockByte } from "../../src/linux/fd.ts";
import { holdPins } from "../../src/linux/pin_holder.ts";

const [path = "", holdMs] = Deno.args;
const fd = openFile(path, O_CREAT);
const holder = tryLockByte(fd, 0) ? holdPins([fd], Number(holdMs)) : undefined;
if (holder === undefined) throw new Error("no holder");
console.log(holder.pid);
await new Promise((resolve) => setTimeout(resolve, 3_600_000));
