/**
 * `vmsg device --device console` under User-Mode Linux: somebody logs in at hvc0, the device is killed and started
 * anew under the session, and a program of the guest speaks to one of this machine through a named port. (QEMU 7.2 has
 * no vhost-user front end for consoles.)
 */

import { assertEquals, assertMatch } from "@std/assert";
import { allocate } from "../../src/linux/arena.ts";
import { openFile } from "../../src/linux/fd.ts";
import { libc } from "../../src/linux/libc.ts";
import { delay, PATIENCE_MS, type Processes, type VmsgProcess } from "../support/processes.ts";
import { confinedMode, DIRECT, type Mode } from "./modes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const DEVICE_CONSOLE = 3;
const MISSING_MS = 300;

const SCRIPT = `
echo 'root::0:0:root:/root:/bin/sh' >/etc/passwd
tries=0
while [ ! -e /dev/vport0p1 ] && [ "$tries" -lt 1200 ]; do sleep 0.1; tries=$((tries + 1)); done
echo "PORT $(cat /sys/class/virtio-ports/vport0p1/name)"
# A port that nobody holds at the other end reads as ended.
line=
exec 3<>/dev/vport0p1
while [ -z "$line" ]; do read line <&3 || sleep 0.1; done
echo "heard $line" >/tmp/heard
echo "HEARD $(cat /tmp/heard)"
getty -L 115200 hvc0 vt100
echo "SESSION over"
echo "bye" >&3
line=
while [ -z "$line" ]; do read line <&3 || sleep 0.1; done
echo "AGAIN $line"
`;

/** A client of a Unix socket: what has come so far. */
class Client implements AsyncDisposable {
  text = "";
  readonly #reading: Promise<void>;

  constructor(readonly connection: Deno.UnixConn) {
    this.#reading = this.#read();
  }

  static async connect(path: string): Promise<Client> {
    return new Client(await Deno.connect({ transport: "unix", path }));
  }

  async #read(): Promise<void> {
    try {
      for await (const bytes of this.connection.readable.values({ preventCancel: true })) {
        this.text += new TextDecoder().decode(bytes);
      }
    } catch { /* closed */ }
  }

  async type(text: string): Promise<void> {
    await this.connection.write(new TextEncoder().encode(text));
  }

  async until(pattern: RegExp): Promise<void> {
    const deadlineMs = performance.now() + PATIENCE_MS;
    while (!pattern.test(this.text)) {
      if (performance.now() > deadlineMs) throw new Error(`no ${pattern} in ${this.text}`);
      await delay(10);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.connection.close();
    } catch { /* the device has */ }
    await this.#reading;
  }
}

function startDevice(vmsg: Processes, mode: Mode): Promise<VmsgProcess> {
  const kind = "console,socket=console.sock,port=org.example.agent,port-socket=agent.sock";
  return vmsg.start("device", ...BUS, "--device", kind, ...mode.device);
}

const sessionTest = (mode: Mode) =>
  guestTest(
    `${mode.prefix}uml: console, a login whose session outlives the device, and a port for programs`,
    "uml",
    async (test) => {
      const { vmsg } = test;
      const device = await startDevice(vmsg, mode);
      const args = ["--vhost-user", "socket=vu.sock", ...mode.driverSide];
      const proxy = await vmsg.start("proxy", ...BUS, ...args);
      await proxy.waitFor(/waiting for a front end/);
      const guest = await test.boot({
        script: SCRIPT,
        modules: ["virtio_console"],
        kernelArgs: [`virtio_uml.device=${vmsg.directory}/vu.sock:${DEVICE_CONSOLE}`],
      });
      const timeoutMs = GUEST_TIMEOUT_MS.uml;
      assertEquals(await guest.waitFor(/^PORT /, timeoutMs), "PORT org.example.agent");
      {
        await using agent = await Client.connect(`${vmsg.directory}/agent.sock`);
        await agent.type("what is said\n");
        assertEquals(await guest.waitFor(/^HEARD /, timeoutMs), "HEARD heard what is said");
      }
      {
        await using person = await Client.connect(`${vmsg.directory}/console.sock`);
        await person.type("\n");
        await person.until(/login: $/);
        await person.type("root\n");
        await person.until(/# /);
        await person.type("echo $((6 * 7)) >/tmp/answer; cat /tmp/answer\n");
        await person.until(/^42\r?$/m);
      }
      await device.end("SIGKILL");
      await delay(MISSING_MS);
      const again = await startDevice(vmsg, mode);
      await again.waitFor(/a console at/);
      await using agent = await Client.connect(`${vmsg.directory}/agent.sock`);
      await using person = await Client.connect(`${vmsg.directory}/console.sock`);
      await person.type("echo still $(cat /tmp/answer)\n");
      await person.until(/^still 42\r?$/m);
      await person.type("exit\n");
      await guest.waitFor(/^SESSION over/, timeoutMs);
      await agent.until(/^bye$/m);
      // The port is in use by what was said to the device that is gone.
      await agent.type("what is said now\n");
      assertEquals(await guest.waitFor(/^AGAIN /, timeoutMs), "AGAIN what is said now");
      await guest.waitFor(/^GUEST-DONE/, timeoutMs);
      assertEquals((await again.end("SIGTERM")).code, 0);
      assertMatch(
        again.lines.map(({ text }) => text).join("\n"),
        /a console at socket console\.sock/,
      );
    },
  );

for (const mode of [DIRECT, confinedMode("4M")]) sessionTest(mode);

const O_NOCTTY = 0o400;
const TIOCSWINSZ = 0x5414n;

guestTest(
  "uml: console at a pseudo-terminal, whose window's size is the guest's",
  "uml",
  async (test) => {
    const { vmsg } = test;
    const device = await vmsg.start("device", ...BUS, "--device", "console,pty");
    const { text } = await device.waitFor(/a console at pty/);
    using terminal = openFile(/\/dev\/pts\/\d+/.exec(text)![0], O_NOCTTY);
    const proxy = await vmsg.start("proxy", ...BUS, "--vhost-user", "socket=vu.sock");
    await proxy.waitFor(/waiting for a front end/);
    const guest = await test.boot({
      script: `
until [ -c /dev/hvc0 ]; do sleep 0.1; done
exec 3<>/dev/hvc0
echo "READY"
until [ "$(stty size <&3)" = "41 132" ]; do sleep 0.1; done; echo "SIZE $(stty size <&3)"
until [ "$(stty size <&3)" = "24 80" ]; do sleep 0.1; done; echo "AGAIN $(stty size <&3)"
`,
      modules: ["virtio_console"],
      kernelArgs: [`virtio_uml.device=${vmsg.directory}/vu.sock:${DEVICE_CONSOLE}`],
    });
    const size = allocate(8);
    const resize = (rows: number, columns: number) => {
      size.view.setUint16(0, rows, true);
      size.view.setUint16(2, columns, true);
      assertEquals(libc.ioctl(terminal.number, TIOCSWINSZ, size.address), 0);
    };
    await guest.waitFor(/^READY/, GUEST_TIMEOUT_MS.uml);
    resize(41, 132);
    assertEquals(await guest.waitFor(/^SIZE /, GUEST_TIMEOUT_MS.uml), "SIZE 41 132");
    resize(24, 80);
    assertEquals(await guest.waitFor(/^AGAIN /, GUEST_TIMEOUT_MS.uml), "AGAIN 24 80");
  },
);
