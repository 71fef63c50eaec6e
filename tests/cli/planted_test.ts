/** What another user could put in the place of files that options name: refused in one line, and left as it is. */

import { assertEquals, assertMatch } from "@std/assert";
import { connectUnix } from "../../src/linux/unix_socket.ts";
import { testUnless } from "../support/needs.ts";
import { type Processes, processTest, VMSG_COMMAND } from "../support/processes.ts";

const BUS = "linux-user,socket=lu.sock";

const rootTest: typeof processTest = (name, body) => {
  if (Deno.uid() === 0) processTest(name, body);
  else testUnless(name, [{ what: "it needs root" }], () => {});
};

/** Each place that an option names, and what is run. */
const PLACES: readonly [string, string, string[]][] = [
  ["queue file", "queue-linux-user-driver", ["device", "--bus", BUS]],
  ["queue file", "queue-linux-user-device", ["device", "--bus", `${BUS},dialect=proto`]],
  ["bus shm: file", "shared", ["device", "--bus", "shm,file=shared"]],
  ["memory file", "memory", ["device", "--bus", BUS, "--memory", "file=memory,at=0x1000"]],
  [
    "memory file",
    "memory",
    ["driver", "--bus", "shm,file=good", "--memory", "file=memory,at=0x1000"],
  ],
  ["memory file", "memory", ["ivshmem-server", "--socket", "iv.sock", "--file", "memory"]],
  ["capture file", "frames", ["device", "--bus", BUS, "--net", "responder,pcap=frames"]],
  ["capture file", "all", ["driver", "--bus", BUS, "--capture", "all"]],
];

async function refused(vmsg: Processes, what: string, place: string, args: string[], why: RegExp) {
  const { code, stderr } = await vmsg.run(...args);
  const command = args.join(" ");
  assertEquals([code, stderr.length], [1, 1], `${command}: ${stderr.join("\n")}`);
  assertMatch(stderr[0]!, new RegExp(`^vmsg: ${what} (\\./)?${place} `), command);
  assertMatch(stderr[0]!, why);
}

processTest(
  "planted: no link is followed, no other name and no foreign file is used",
  async (vmsg) => {
    const path = (name: string) => `${vmsg.directory}/${name}`;
    Deno.writeFileSync(path("good"), new Uint8Array(1 << 16), { mode: 0o600 });
    for (const [what, place, args] of PLACES) {
      const victim = path("victim");
      Deno.writeTextFileSync(victim, "of value", { mode: 0o600 });
      Deno.symlinkSync("victim", path(place));
      await refused(vmsg, what, place, args, /is a symbolic link: name the file itself$/);
      Deno.removeSync(path(place));
      Deno.linkSync(victim, path(place));
      await refused(vmsg, what, place, args, /has 2 names \(hard links\)/);
      assertEquals(Deno.readTextFileSync(victim), "of value");
      Deno.removeSync(path(place));
      Deno.removeSync(victim);
      Deno.writeFileSync(path(place), new Uint8Array(8192));
      Deno.chmodSync(path(place), 0o666);
      await refused(vmsg, what, place, args, /can be written by everybody: chmod go-w it/);
      if (Deno.uid() === 0) {
        Deno.chmodSync(path(place), 0o600);
        Deno.chownSync(path(place), 65534, null);
        await refused(vmsg, what, place, args, /belongs to user 65534, not to 0/);
      }
      assertEquals(Deno.statSync(path(place)).size, 8192);
      Deno.removeSync(path(place));
    }
  },
);

rootTest("planted: an owner that is named is believed", async (vmsg) => {
  const path = `${vmsg.directory}/shared`;
  Deno.writeFileSync(path, new Uint8Array(1 << 22), { mode: 0o600 });
  Deno.chownSync(path, 65534, null);
  const device = await vmsg.start(
    "device",
    "--bus",
    "shm,file=shared,owner=65534,size=4M",
    "--net",
    "responder",
  );
  const { code } = await vmsg.run(
    "driver",
    "--bus",
    "shm,file=shared,owner=nobody,size=4M",
    "--count",
    "2",
  );
  assertEquals(code, 0, device.stderr.join("\n"));
});

/** The lower bits of what is at a path. */
const modeOf = (path: string) => Deno.statSync(path).mode! & 0o777;

processTest("sockets: who may connect is what options say, whatever the umask is", async (vmsg) => {
  const gid = Deno.gid()!;
  const all = [
    ["device", "--bus", `${BUS}`, "lu.sock"],
    ["ivshmem-server", "--socket", "iv.sock", "iv.sock"],
    [
      "proxy",
      "--bus",
      "linux-user,name=x,socket=none",
      "--vhost-user",
      "socket=vu.sock",
      "vu.sock",
    ],
  ];
  for (
    const [mode, group, expected] of [["", "", 0o600], ["0666", "", 0o666], [
      "",
      `${gid}`,
      0o660,
    ]] as const
  ) {
    for (const umask of ["000", "077"]) {
      for (const words of all) {
        const [name, ...rest] = words;
        const socket = rest.pop()!;
        const given = [mode && `mode=${mode}`, group && `group=${group}`].filter((text) =>
          text !== ""
        );
        if (name === "ivshmem-server") {
          rest.push(...given.flatMap((text) => `--${text}`.split("=")));
        } else rest.push([rest.pop(), ...given].join(","));
        const command = [...VMSG_COMMAND, name!, ...rest].join(" ");
        await using process = await vmsg.startProgram(
          "sh",
          "-c",
          `umask ${umask}; exec ${command}`,
        );
        await process.waitFor(/waiting for/);
        const path = `${vmsg.directory}/${socket}`;
        assertEquals([command, modeOf(path)], [command, expected]);
        connectUnix(path)![Symbol.dispose]();
        for (const file of vmsg.files().filter((file) => file.startsWith("queue-linux-user"))) {
          assertEquals(modeOf(`${vmsg.directory}/${file}`), expected & 0o666);
          Deno.removeSync(`${vmsg.directory}/${file}`);
        }
      }
    }
  }
  const { code, stderr } = await vmsg.run("device", "--bus", `${BUS},mode=8`);
  assertEquals(code, 2);
  assertMatch(stderr[0]!, /mode is three octal digits such as 0660, not 8/);
  const connecting = "socket=vu.sock,connect,mode=0660";
  const proxy = await vmsg.run("proxy", "--bus", BUS, "--vhost-user", connecting);
  assertEquals(proxy.code, 2);
  assertMatch(proxy.stderr[0]!, /mode goes with a socket to listen on/);
  const unknown = await vmsg.run("device", "--bus", `${BUS},group=no-such-group`);
  assertEquals(unknown.code, 2);
  assertMatch(unknown.stderr[0]!, /group=no-such-group is not in \/etc\/group: give its number/);
});
