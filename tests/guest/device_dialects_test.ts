/**
 * A disk, a console and sockets of one device side under one guest, in every dialect: the whole way, from a driver of Linux to
 * a file and to programs of this machine. (Cards are in dialects_test.ts, which also says how memory is told where a
 * dialect has no words for it.)
 */

import { assert, assertEquals } from "@std/assert";
import { type Dialect, DIALECTS } from "../../src/message/message.ts";
import { until } from "../support/processes.ts";
import { umlMemory } from "./dialects_support.ts";
import { programFiles } from "./program_files.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";
import { dial, exchange, serveEcho, SOCAT } from "./vsock_support.ts";

const DISK = "disk.img", CONSOLE = "console.sock", VSOCK = "vsock.sock";
/** Device ids, in the order of the device side's numbers. */
const TYPES = [2, 3, 19];
const MIB = 1 << 20;
const ECHO_PORT = 7, HOST_ECHO_PORT = 1009;

const SCRIPT = `
ip link set lo up
${SOCAT} VSOCK-LISTEN:${ECHO_PORT},fork EXEC:cat &
head -c ${MIB} /dev/urandom >/tmp/data
dd if=/tmp/data of=/dev/vda bs=64k conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
head -c ${MIB} /dev/vda | cmp - /tmp/data && echo "DISK $(sha256sum </tmp/data | cut -c 1-64)"
until ${SOCAT} - VSOCK-CONNECT:2:${HOST_ECHO_PORT} </tmp/data >/tmp/back 2>/dev/null; do sleep 0.1; done
cmp /tmp/back /tmp/data && echo "SOCKET same"
exec 3<>/dev/hvc0
stty raw -echo <&3
echo "from the guest" >&3
read line <&3; echo "CONSOLE $line"
sleep 1000
`;

function devicesTest(dialect: Dialect, confined: boolean): void {
  const bus = confined ? "shm,file=bus.shm,size=8M" : "linux-user,socket=lu.sock";
  const args = ["--bus", `${bus},dialect=${dialect}`, ...confined ? ["--confined"] : []];
  const how = confined ? `${dialect}, confined` : dialect;
  guestTest(
    `uml: a disk, a console and sockets in ${how}`,
    { guest: "uml", programs: { socat: "socat" } },
    async ({ vmsg, directory, boot }) => {
      await Deno.writeFile(`${directory}/${DISK}`, new Uint8Array(2 * MIB));
      if (confined) await Deno.writeFile(`${directory}/bus.shm`, new Uint8Array(8 * MIB));
      const sockets = TYPES.map((type) => `${directory}/vu${type}.sock`);
      const proxy = await vmsg.start(
        "proxy",
        ...[...args, ...sockets.flatMap((path) => ["--vhost-user", `socket=${path}`])],
      );
      await proxy.waitFor(/waiting for a front end/);
      const booting = boot({
        script: SCRIPT,
        modules: ["virtio_blk", "virtio_console", "vmw_vsock_virtio_transport"],
        files: await programFiles("socat"),
        memoryMiB: 256,
        kernelArgs: TYPES.map((type, i) => `virtio_uml.device=${sockets[i]}:${type}`),
      });
      let told: string[] = [];
      if (dialect !== "v1" && !confined) {
        let file: string | undefined;
        await until(async () => (file = await umlMemory(sockets[0]!)) !== undefined);
        told = ["--memory", `file=${file},at=0`];
      }
      const device = await vmsg.start(
        "device",
        ...[...args, ...told, "--device", `blk,file=${DISK}`],
        ...["--device", `console,socket=${CONSOLE}`, "--device", `vsock,socket=${VSOCK}`],
      );
      const guest = await booting;
      const timeoutMs = GUEST_TIMEOUT_MS.uml;
      await device.waitFor(/driver side is there/);
      // The guest waits for the echo, and so until somebody is at its console.
      using person = await Deno.connect({ transport: "unix", path: `${directory}/${CONSOLE}` });
      using _echo = serveEcho(`${directory}/${VSOCK}_${HOST_ECHO_PORT}`);
      const sum = (await guest.waitFor(/^DISK /, timeoutMs)).slice("DISK ".length);
      const written = (await Deno.readFile(`${directory}/${DISK}`)).subarray(0, MIB);
      const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", written));
      assertEquals(hash.toHex(), sum);

      assertEquals(await guest.waitFor(/^SOCKET /, timeoutMs), "SOCKET same");
      // What comes before somebody has it open is lost.
      let text = "";
      for await (const bytes of person.readable.values({ preventCancel: true })) {
        text += new TextDecoder().decode(bytes);
        if (text.endsWith("\n")) break;
      }
      assertEquals(text, "from the guest\n");
      await person.write(new TextEncoder().encode("from the host\n"));
      assertEquals(await guest.waitFor(/^CONSOLE /, timeoutMs), "CONSOLE from the host");

      using connection = await dial(`${directory}/${VSOCK}`, ECHO_PORT);
      const back = await exchange(connection, written);
      assert(back.length === MIB && back.every((byte, i) => byte === written[i]), "other bytes");
    },
  );
}

for (const dialect of ["v1-2025", "proto"] as const) devicesTest(dialect, false);
if (Deno.env.get("VMSG_GUEST_FULL") === "1") {
  for (const dialect of DIALECTS) devicesTest(dialect, true);
}
