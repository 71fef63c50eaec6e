/** A console at standard input and output, in another process: pipes, and a terminal that it has changed and gives back. */

import { assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { allocate } from "../../../src/linux/arena.ts";
import { openFile } from "../../../src/linux/fd.ts";
import { libc } from "../../../src/linux/libc.ts";
import { openPty } from "../../../src/linux/terminal.ts";
import { until } from "../../support/processes.ts";

const CHILD = fromFileUrl(new URL("stdio_child.ts", import.meta.url));
const O_NOCTTY = 0o400;
const TIOCSWINSZ = 0x5414n;
const buffer = allocate(4096);
const decoder = new TextDecoder();

const command = (...args: string[]) => [Deno.execPath(), "run", "-A", "--quiet", CHILD, ...args];

Deno.test("console: standard input goes to the guest and its output comes back; input that ends ends nothing", async () => {
  const [program, ...args] = command("goes on");
  await using child = new Deno.Command(program!, {
    args,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const output = new Response(child.stdout).text();
  const errors = new Response(child.stderr).text();
  const input = child.stdin.getWriter();
  await input.write(new TextEncoder().encode("hello\nq"));
  await input.close();
  assertEquals(await output, "HELLO\nQ\nafter the end, in few batches", await errors);
  assertEquals(await errors, "");
  assertEquals((await child.status).code, 0);
});

async function modes(path: string, ...wanted: string[]): Promise<string> {
  const stty = new Deno.Command("stty", { args: ["-F", path, ...wanted] });
  return decoder.decode((await stty.output()).stdout);
}

Deno.test("console: a person's terminal passes bytes as they are, tells its size, and is given back as it was", async () => {
  const { master, path } = openPty();
  using _master = master;
  // Open all the time, or it would be another terminal each time.
  using slave = openFile(path, O_NOCTTY);
  await modes(path, "sane", "cols", "90", "rows", "30");
  const before = await modes(path, "-g");
  await using child = new Deno.Command("bash", {
    args: ["-c", 'exec "$@" <"$0" >"$0"', path, ...command()],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  let errors = "";
  const reading = child.stderr.pipeThrough(new TextDecoderStream()).pipeTo(
    new WritableStream({ write: (text) => void (errors += text) }),
  );
  await until(() => /^SIZE 90 30$/m.test(errors));
  // Signals of keys stay, lines and echo do not.
  assertMatch(await modes(path, "-a"), /(?<!-)isig -icanon[\s\S]* -echo /);
  let shown = "";
  const look = () => {
    const count = libc.read(master.number, buffer.address, buffer.bytes.length);
    if (count > 0) shown += decoder.decode(buffer.bytes.slice(0, count));
    return shown;
  };
  const type = (text: string) => {
    buffer.bytes.set(new TextEncoder().encode(text));
    assertEquals(libc.write(master.number, buffer.address, text.length), text.length);
  };
  type("a\r");
  await until(() => look().includes("A\r"));
  assertEquals(shown, "A\r");
  buffer.view.setUint16(0, 41, true);
  buffer.view.setUint16(2, 132, true);
  libc.ioctl(slave.number, TIOCSWINSZ, buffer.address);
  await until(() => /^SIZE 132 41$/m.test(errors));
  type("q");
  await until(() => look().endsWith("Q"));
  assertEquals((await child.status).code, 0);
  await reading;
  assertEquals(await modes(path, "-g"), before);
});
