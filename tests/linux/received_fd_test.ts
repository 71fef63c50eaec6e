import { assertEquals } from "@std/assert";
import { openPipe } from "../../src/linux/fd.ts";
import { libc } from "../../src/linux/libc.ts";
import { mayReceive, nameOf, ReceivedFd } from "../../src/linux/received_fd.ts";
import { until } from "../support/processes.ts";

const F_DUPFD = 0;
/** More than are closed at once. */
const COUNT = 70;

Deno.test("received descriptors of other kinds are all closed, however many are let go at once", async () => {
  const { read, write } = openPipe();
  using _read = read;
  using _write = write;
  const name = nameOf(read.number);
  const isOfPipe = (number: string) => nameOf(Number(number)) === name;
  const open = () => [...Deno.readDirSync("/proc/self/fd")].filter((one) => isOfPipe(one.name));
  const received = Array.from(
    { length: COUNT },
    () => new ReceivedFd(libc.fcntl(read.number, F_DUPFD, 0n)),
  );
  const before = open().length;
  for (const fd of received) fd[Symbol.dispose]();
  assertEquals(mayReceive(), false);
  await until(() => open().length <= before - COUNT);
  assertEquals(open().length, before - COUNT);
  // Eight at once are closed, so most are known to be.
  assertEquals(mayReceive(), true);
});
