/** Programs at the two ends of a guest's sockets. */

import { assertMatch } from "@std/assert";

/** Waits for the other end for longer than anything takes. */
export const SOCAT = "socat -t 60 -T 120";

/** A host program that gives back what it reads, to whoever connects. */
export function serveEcho(path: string): Deno.Listener {
  const listener = Deno.listen({ transport: "unix", path });
  (async () => {
    for await (const connection of listener) {
      connection.readable.pipeTo(connection.writable).catch(() => {});
    }
  })();
  return listener;
}

/** Connects to a port of the guest's as firecracker's users do. */
export async function dial(path: string, port: number): Promise<Deno.UnixConn> {
  const connection = await Deno.connect({ transport: "unix", path });
  await connection.write(new TextEncoder().encode(`CONNECT ${port}\n`));
  let answer = "";
  for (const byte = new Uint8Array(1); !answer.endsWith("\n");) {
    if (await connection.read(byte) === null) throw new Error(`no answer but "${answer}"`);
    answer += String.fromCharCode(byte[0]!);
  }
  assertMatch(answer, /^OK \d+\n$/);
  return connection;
}

/** Sends bytes, then no more; what comes back until nothing does. */
export async function exchange(connection: Deno.UnixConn, bytes: Uint8Array): Promise<Uint8Array> {
  const back = new Response(connection.readable).bytes();
  for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at));
  await connection.closeWrite();
  return await back;
}
