/**
 * `vmsg device --device vsock` under unmodified guests: their socat and one of this machine, each connecting to the other
 * by way of the Unix sockets that firecracker has. What went to and fro is the same; one who sends no more still
 * receives; connections die with the device, and others are made with the next.
 *
 * QEMU keeps the event queue to itself, through which a guest is told that its connections are gone: there it finds out
 * when it sends.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { GuestKind } from "../../scripts/lab/machines.ts";
import { delay, type Processes, type VmsgProcess } from "../support/processes.ts";
import { programFiles } from "./program_files.ts";
import { type BootOptions, GUEST_TIMEOUT_MS, guestTest } from "./support.ts";
import { dial, exchange, serveEcho, SOCAT } from "./vsock_support.ts";

/** An arm64 guest would need a socat of its own. */
type Kind = Exclude<GuestKind, "arm64">;

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const PREFIX = "vsock.sock";
const CID = 77;
const DEVICE_VSOCK = 19;
const MISSING_MS = 300;
/** Of a file that goes to and fro, in bytes: emulated guests take their time. */
const sizeFor = (kind: Kind) => kind === "uml" ? 10 << 20 : 1 << 20;
const ECHO_PORT = 7, HOST_ECHO_PORT = 1009, IDLE_PORT = 1011;

/** What is on an idle connection: where nobody says that it is gone, something has to be sent. */
const IDLE: Readonly<Record<"told" | "untold", string>> = {
  told: `${SOCAT} -u VSOCK-CONNECT:2:${IDLE_PORT} -`,
  untold: `while sleep 0.2; do echo; done | ${SOCAT} - VSOCK-CONNECT:2:${IDLE_PORT}`,
};

const script = (size: number, idle: string) => `
ip link set lo up
${SOCAT} VSOCK-LISTEN:${ECHO_PORT},fork EXEC:cat &
head -c ${size} /dev/urandom >/tmp/sent
${SOCAT} - VSOCK-CONNECT:2:${HOST_ECHO_PORT} </tmp/sent >/tmp/got; echo "CONNECTED rc=$?"
cmp /tmp/sent /tmp/got && echo "SAME yes" || echo "SAME no"
${SOCAT} - VSOCK-CONNECT:2:999 </dev/null; echo "NOBODY rc=$?"
echo "READY"
${idle}; echo "ENDED rc=$?"
until echo after | ${SOCAT} - VSOCK-CONNECT:2:${HOST_ECHO_PORT} >/tmp/again; do sleep 0.1; done
echo "AGAIN $(cat /tmp/again)"
sleep 1000
`;

function startDevice(vmsg: Processes, args: readonly string[]): Promise<VmsgProcess> {
  return vmsg.start("device", ...args, "--device", `vsock,socket=${PREFIX},cid=${CID}`);
}

function frontEnd(kind: Kind, socket: string): Partial<BootOptions> {
  const device = {
    microvm: "vhost-user-vsock-device,chardev=c0",
    q35: "vhost-user-vsock-pci,chardev=c0,vectors=0",
  };
  if (kind === "uml") return { kernelArgs: [`virtio_uml.device=${socket}:${DEVICE_VSOCK}`] };
  return {
    extraArgs: [
      ...["-chardev", `socket,id=c0,path=${socket}`],
      ...["-global", "virtio-mmio.force-legacy=false", "-device", device[kind]],
    ],
  };
}

function vsockTest(kind: Kind, ...args: string[]): void {
  guestTest(
    `${
      [kind, ...args].join(" ")
    }: vsock, the same both ways whoever connects; connections die with the device`,
    { guest: kind, programs: { socat: "socat" } },
    async (test) => {
      const { vmsg, directory } = test;
      const timeoutMs = GUEST_TIMEOUT_MS[kind];
      const size = sizeFor(kind);
      using _echo = serveEcho(`${directory}/${PREFIX}_${HOST_ECHO_PORT}`);
      using idle = Deno.listen({ transport: "unix", path: `${directory}/${PREFIX}_${IDLE_PORT}` });
      const device = await startDevice(vmsg, [...BUS, ...args]);
      const proxy = await vmsg.start("proxy", ...BUS, ...args, "--vhost-user", "socket=vu.sock");
      await proxy.waitFor(/waiting for a front end/);
      const guest = await test.boot({
        script: script(size, IDLE[kind === "uml" ? "told" : "untold"]),
        modules: ["vmw_vsock_virtio_transport"],
        files: await programFiles("socat"),
        memoryMiB: 256,
        ...frontEnd(kind, `${vmsg.directory}/vu.sock`),
      });
      assertEquals(await guest.waitFor(/^CONNECTED /, timeoutMs), "CONNECTED rc=0");
      assertEquals(await guest.waitFor(/^SAME /, timeoutMs), "SAME yes");
      assertEquals(await guest.waitFor(/^NOBODY /, timeoutMs), "NOBODY rc=1");
      await guest.waitFor(/^READY/, timeoutMs);
      const sent = crypto.getRandomValues(new Uint8Array(1 << 16));
      const bytes = new Uint8Array(size).map((_, i) => sent[(i * 31 + (i >> 9)) & 0xffff]!);
      using connection = await dial(`${directory}/${PREFIX}`, ECHO_PORT);
      const back = await exchange(connection, bytes);
      assertEquals(back.length, bytes.length);
      assert(back.every((byte, i) => byte === bytes[i]), "other bytes came back");

      using _held = await idle.accept();
      await device.end("SIGKILL");
      await delay(MISSING_MS);
      await startDevice(vmsg, [...BUS, ...args]);
      await guest.waitFor(/^ENDED /, timeoutMs);
      assertEquals(await guest.waitFor(/^AGAIN /, timeoutMs), "AGAIN after");
      // The guest's listener has stayed; the program is another one than ours.
      const { stdout } = await new Deno.Command("bash", {
        args: ["-c", `printf 'CONNECT ${ECHO_PORT}\nby socat\n' | socat -t 60 - UNIX:${PREFIX}`],
        cwd: directory,
      }).output();
      assertMatch(new TextDecoder().decode(stdout), /^OK \d+\nby socat\n$/);
    },
  );
}

for (const kind of ["uml", "microvm"] as const) vsockTest(kind);
if (Deno.env.get("VMSG_GUEST_FULL") === "1") {
  vsockTest("q35");
  vsockTest("uml", "--confined");
}
