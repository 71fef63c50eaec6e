/**
 * Back ends of the rust-vmm project, as crates.io has them, behind `vmsg device --device vhost-user`: entropy and
 * sockets. With VMSG_GUEST_FULL=1, as they are built from source first:
 *
 *     deno run -A scripts/fetch_back_ends.ts
 *
 * vhost-device-console 0.1.0 is not among them: its rings have at most 128 entries, User-Mode Linux gives a ring 256, and
 * QEMU 7.2 has no front end for consoles.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { crateProgram, CRATES } from "../../scripts/lab/back_ends.ts";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { has } from "../network/support.ts";
import type { Lack } from "../support/needs.ts";
import { programFiles } from "./program_files.ts";
import { GUEST_TIMEOUT_MS, type GuestTest, guestTest } from "./support.ts";
import {
  BACK_END_SOCKET,
  frontEnd,
  startBackEnd,
  startDevice,
  startProxy,
} from "./vhost_user_support.ts";

const ECHO_PORT = 7, HOST_ECHO_PORT = 1009, ECHO_BYTES = 1 << 20;

function crateTest(
  crate: keyof typeof CRATES,
  kind: GuestKind,
  what: string,
  body: (test: GuestTest, program: string, timeoutMs: number) => Promise<void>,
): void {
  const program = crateProgram(crate);
  const lacks: Lack[] = [];
  if (Deno.env.get("VMSG_GUEST_FULL") !== "1") {
    lacks.push({ what: "it runs with VMSG_GUEST_FULL=1" });
  }
  if (!has(program)) {
    const how = "deno run -A scripts/fetch_back_ends.ts";
    lacks.push({ what: `${crate} is missing: ${how}`, requiredBy: "VMSG_GUEST_TESTS" });
  }
  guestTest(
    `${kind}: ${crate} ${CRATES[crate]}, ${what}`,
    { guest: kind, programs: { socat: "socat" }, lacks },
    (test) => body(test, program, GUEST_TIMEOUT_MS[kind]),
  );
}

/** Where a program listens that numbers its sockets. */
const NUMBERED_SOCKET = `${BACK_END_SOCKET}0`;

/** So many bytes of a connection. */
async function receive(connection: Deno.Conn, count: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(count);
  for (let at = 0; at < count;) {
    const length = await connection.read(bytes.subarray(at));
    if (length === null) throw new Error(`it ended after ${at} bytes`);
    at += length;
  }
  return bytes;
}

/** A line with its end. */
async function receiveLine(connection: Deno.Conn): Promise<string> {
  let line = "";
  while (!line.endsWith("\n")) line += new TextDecoder().decode(await receive(connection, 1));
  return line;
}

// It is not killed: version 0.1.0 begins a ring that is under way with a used index of 0, whoever gives it that.
for (const kind of ["q35", "microvm"] as const) {
  crateTest("vhost-device-rng", kind, "a guest reads from it", async (test, rng, ms) => {
    const { vmsg } = test;
    const command = [rng, "--socket-path", BACK_END_SOCKET];
    await startBackEnd(vmsg, command, NUMBERED_SOCKET);
    await startDevice(vmsg, "rng", "", NUMBERED_SOCKET);
    await startProxy(vmsg);
    const guest = await test.boot({
      script: `
echo "CURRENT $(cat /sys/class/misc/hw_random/rng_current)"
while :; do echo "READ $(head -c 256 /dev/hwrng | od -An -v -tx1 | tr -d ' \\n')"; sleep 0.02; done
`,
      modules: ["virtio_rng"],
      ...frontEnd(vmsg, kind, "rng"),
    });
    assertMatch(await guest.waitFor(/^CURRENT /, ms), /^CURRENT virtio_rng/);
    const read = (await guest.waitFor(/^READ /, ms)).slice("READ ".length);
    assertEquals(read.length, 2 * 256);
    // Of 256 random bytes about 162 are distinct.
    assert(new Set(read.match(/../g)).size > 110, read);
  });
}

for (const kind of ["uml", "microvm"] as const) {
  crateTest("vhost-device-vsock", kind, "an echo both ways", async (test, vsock, ms) => {
    const { vmsg, directory } = test;
    using echo = Deno.listen({ transport: "unix", path: `${directory}/vs_${HOST_ECHO_PORT}` });
    // This back end does not say that a side sends no more: who has had everything closes.
    const echoed = (async () => {
      using connection = await echo.accept();
      const bytes = await receive(connection, ECHO_BYTES);
      for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at));
    })();
    const command = [vsock, "--guest-cid", "77", "--socket", BACK_END_SOCKET, "--uds-path", "vs"];
    await startBackEnd(vmsg, command);
    await startDevice(vmsg, "vsock");
    await startProxy(vmsg);
    const guest = await test.boot({
      script: `
ip link set lo up
socat VSOCK-LISTEN:${ECHO_PORT},fork EXEC:cat &
head -c ${ECHO_BYTES} /dev/urandom >/tmp/sent
socat -t 60 - VSOCK-CONNECT:2:${HOST_ECHO_PORT} </tmp/sent >/tmp/got; echo "CONNECTED rc=$?"
cmp /tmp/sent /tmp/got && echo "SAME yes" || echo "SAME no"
sleep 1000
`,
      modules: ["vmw_vsock_virtio_transport"],
      files: await programFiles("socat"),
      ...frontEnd(vmsg, kind, "vsock"),
    });
    await guest.waitFor(/^CONNECTED /, ms);
    assertEquals(await guest.waitFor(/^SAME /, ms), "SAME yes");
    await echoed;
    using connection = await Deno.connect({ transport: "unix", path: `${directory}/vs` });
    // It takes what comes with the first line for a part of it.
    for (const [said, heard] of [[`CONNECT ${ECHO_PORT}`, /^OK \d+\n$/], ["hello", /^hello\n$/]]) {
      await connection.write(new TextEncoder().encode(`${said}\n`));
      assertMatch(await receiveLine(connection), heard as RegExp);
    }
  });
}
