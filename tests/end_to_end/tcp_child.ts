/**
 * One end of a TCP transfer whose every byte is looked at.
 *
 *     tcp_child.ts receive PORT             prints LISTENING, then GOT bytes, at last END bytes, wrong
 *     tcp_child.ts send ADDRESS PORT FILE   sends until that file is there, then closes and prints SENT bytes
 */

/** A prime, so that lost or doubled segments and pages show. */
const PERIOD = 65_521;
const PATTERN = Uint8Array.from({ length: 2 * PERIOD }, (_, i) => {
  const at = i % PERIOD;
  return (at * 7 + (at >>> 8)) & 0xff;
});
const REPORT_MS = 100;

async function receive(port: number): Promise<void> {
  using listener = Deno.listen({ port });
  console.log("LISTENING");
  using connection = await listener.accept();
  const buffer = new Uint8Array(PERIOD);
  let [got, wrong, reportedMs] = [0, 0, 0];
  for (let count; (count = await connection.read(buffer)) !== null; got += count) {
    const at = got % PERIOD;
    for (let i = 0; i < count; i++) if (buffer[i] !== PATTERN[at + i]) wrong++;
    if (performance.now() - reportedMs < REPORT_MS) continue;
    reportedMs = performance.now();
    console.log(`GOT ${got + count}`);
  }
  console.log(`END ${got} bytes, ${wrong} wrong`);
}

function isThere(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

async function send(hostname: string, port: number, stop: string): Promise<void> {
  using connection = await Deno.connect({ hostname, port });
  let sent = 0;
  while (!isThere(stop)) {
    const at = sent % PERIOD;
    sent += await connection.write(PATTERN.subarray(at, at + PERIOD));
  }
  await connection.closeWrite();
  console.log(`SENT ${sent}`);
}

const [mode, ...args] = Deno.args;
if (mode === "receive") await receive(Number(args[0]));
else await send(args[0]!, Number(args[1]), args[2]!);
