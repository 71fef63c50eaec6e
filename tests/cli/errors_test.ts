/**
 * The command line as a new user meets it: what goes wrong is said in one line on standard error that
 * names what was wrong, with exit code 2 for usage and 1 for failure; what waits says for what; a signal
 * ends everything at once and leaves no socket behind.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Command } from "../../src/cli/command.ts";
import { assertInTurn } from "../support/pings.ts";
import { type Processes, processTest } from "../support/processes.ts";

const USAGE = 2;
const FAILURE = 1;
const BUS = "linux-user,socket=lu.sock";

/** One line on standard error, nothing on standard output, this exit code. */
async function assertComplaint(
  vmsg: Processes,
  args: readonly string[],
  code: number,
  pattern: RegExp,
): Promise<void> {
  const ended = await vmsg.run(...args);
  const what = `vmsg ${args.join(" ")}`;
  assertEquals(ended.stderr.length, 1, `${what} said:\n${ended.stderr.join("\n")}`);
  assertMatch(ended.stderr[0]!, pattern, what);
  assert(ended.stderr[0]!.startsWith("vmsg: "), what);
  assertEquals(ended.stdout, [], what);
  assertEquals(ended.code, code, what);
}

const onBus = (subcommand: string, bus: string, ...more: string[]) => [
  subcommand,
  "--bus",
  bus,
  ...more,
];

const OTHER_BUS = "linux-user,socket=b.sock,name=b";
const LONG = "a".repeat(120);

/** Arguments, and what is said of them. */
const WRONG_USAGE: readonly [string[], RegExp][] = [
  [["frobnicate"], /unknown subcommand frobnicate; see: vmsg --help/],
  [["--frobnicate"], /unknown subcommand --frobnicate/],
  [["device", "--frobnicate"], /unknown option --frobnicate; see: vmsg device --help/],
  [["device", "--buss=linux-user,socket=lu.sock"], /unknown option --buss;/],
  [["driver", "-c", "3"], /unknown option -c; see: vmsg driver --help/],
  [["demo", "guest"], /demo guest is run from the sources of vmsg: deno task demo:guest$/],
  [["demo", "ivshmem", "--inner"], /from the sources of vmsg: deno task demo:ivshmem$/],
  [["doctor", "--bus", "x"], /unknown option --bus; see: vmsg doctor --help/],
  [onBus("device", BUS, "extra"), /unexpected argument extra; see: vmsg device --help/],
  [["device"], /--bus KIND,\S* is missing; see: vmsg device --help$/],
  [["device", "--bus"], /--bus needs KIND,/],
  [
    ["proxy", "--vhost-user", "socket=vu.sock"],
    /--bus KIND,\S* is missing; see: vmsg proxy --help/,
  ],
  [["driver"], /--bus KIND,\S* is missing; see: vmsg driver --help/],
  [["ivshmem-server"], /--socket PATH is missing; see: vmsg ivshmem-server --help/],
  [["bridge"], /--bus KIND,\S* is missing; see: vmsg bridge --help/],
  [onBus("bridge", BUS, "--bus", BUS), /--bus: the two buses are one/],
  [onBus("bridge", BUS), /--bus is given twice: where the devices are, then where the drivers/],
  [
    onBus("bridge", BUS, "--bus", OTHER_BUS, "--device", "1", "--device", "2,as=1"),
    /--device: two devices would have the same number: give one another as=/,
  ],
  [
    onBus("bridge", BUS, "--bus", OTHER_BUS, "--device", "1", "--device", "1,as=2"),
    /--device: a device is named twice/,
  ],
  [onBus("bridge", BUS, "--bus", OTHER_BUS, "--device", "x"), /--device: .*not x/],
  [onBus("bridge", BUS, "--bus", OTHER_BUS, "--segment", "file=x"), /--segment: at= is missing/],
  [onBus("bridge", BUS, "--bus", OTHER_BUS, "--segment", "much"), /--segment: size .*much/],
  [onBus("bridge", BUS, "--bus", OTHER_BUS, "--limit", "0"), /--limit takes a whole number from 1/],
  [
    onBus("bridge", `${BUS},dialect=auto`, "--bus", OTHER_BUS),
    /dialect=auto is for the device side/,
  ],
  [onBus("proxy", BUS), /--vhost-user or --xen is missing; see: vmsg proxy --help/],
  [onBus("proxy", BUS, "--xen", "domain=d"), /--xen goes with --confined: what Dom0 maps of a/],
  [onBus("proxy", BUS, "--confined", "--xen", "device=0"), /--xen: domain= is missing/],
  [
    onBus("proxy", BUS, "--confined", "--xen", "domain=d,base=0xd0000000"),
    /--xen: give both base= and irq=/,
  ],
  [
    onBus("proxy", BUS, "--confined", "--xen", "domain=d,base=0xd0000001,irq=5"),
    /--xen: base= is the address of 512 bytes, a multiple of that/,
  ],
  [
    onBus("proxy", BUS, "--confined", "--xen", "domain=d", "--vhost-user", "socket=a,device=1"),
    /--vhost-user, --xen: a device number belongs to one guest, one is given twice/,
  ],
  [
    onBus(
      ...["proxy", BUS, "--confined", "--xen", "domain=d,base=0xd0000000,irq=16"] as const,
      ...["--xen", "domain=d,base=0xd0000000,irq=17"],
    ),
    /--xen: two cards of domain d have the same base=/,
  ],
  [["xen-acpi"], /--vcpus N is missing; see: vmsg xen-acpi --help/],
  [["xen-acpi", "--vcpus", "0"], /--vcpus takes a whole number from 1 to 127, not 0/],
  [["xen-acpi", "--vcpus", "1", "--cards", "9"], /--cards takes a whole number from 1 to 8, not 9/],
  [
    onBus("device", "carrier-pigeon,socket=x"),
    /--bus carrier-pigeon: unknown, one of .*linux-user/,
  ],
  [onBus("device", "linux-user"), /--bus linux-user: socket= is missing/],
  [onBus("device", "linux-user,socket="), /--bus linux-user: socket= is missing/],
  [onBus("device", "linux-user,sokcet=x"), /unknown key sokcet, known are .*socket/],
  [onBus("device", `${BUS},socket=b`), /socket is given twice/],
  [onBus("device", `${BUS},listen=maybe`), /listen is on or off, not maybe/],
  [onBus("device", `${BUS},dialect=v7`), /dialect is one of .*v1.*, not v7/],
  [onBus("device", BUS, "--net", "carrier-pigeon"), /--net carrier-pigeon: unknown, one of/],
  [
    onBus("device", BUS, "--device", "pigeon"),
    /--device pigeon: unknown, one of net, blk, console, rng, .* is/,
  ],
  [onBus("device", BUS, "--device", "vhost-user"), /vhost-user: socket= is missing/],
  [
    onBus("device", BUS, "--device", "vhost-user,socket=s,id=pigeon"),
    /id is a number or one of net, blk, .*, not pigeon/,
  ],
  [
    onBus("device", BUS, "--device", "vhost-user,socket=s,id=2,queue-size=100"),
    /queue-size is a power of two/,
  ],
  [
    onBus("device", BUS, "--device", "vhost-user,socket=s,id=2,config=0"),
    /config has 1 to 256 bytes, each two digits/,
  ],
  [
    onBus("device", BUS, "--device", "vhost-user,socket=s,id=fs,config=00,tag=x"),
    /give one of config= and tag=/,
  ],
  [onBus("device", BUS, "--device", "net,pigeon"), /--device net,pigeon: unknown, one of respond/],
  [onBus("device", BUS, "--device", "net,tap,mtu=1"), /--device net,tap: mtu is a whole number/],
  [onBus("device", BUS, "--device", "rng,fast"), /--device rng,fast: unknown key fast, there are/],
  [onBus("device", BUS, "--device"), /--device needs KIND/],
  [onBus("device", BUS, "--net", "responder,macc=1"), /unknown key macc, known are .*mac/],
  [
    onBus("device", BUS, "--net", "responder,mtu=large"),
    /--net responder: mtu is a whole number from 68 to 65535, not large/,
  ],
  [
    onBus("device", BUS, "--net", "responder,mac=52:54:00:12:34"),
    /--net responder: "52:54:00:12:34" is not a MAC address/,
  ],
  [onBus("device", BUS, "--net", "responder,mac=ff:ff:ff:ff:ff:ff"), /is not a MAC address/],
  [
    onBus("device", BUS, "--net", "responder,address=10.0.2"),
    /--net responder: "10.0.2" is not an IPv4 address/,
  ],
  [onBus("device", BUS, "--net", "packet"), /--net packet: packet=INTERFACE names none/],
  [onBus("device", "ivshmem"), /--bus ivshmem: give either pci=ADDRESS or server=PATH/],
  [onBus("device", "ivshmem,pci=00:10.0,server=x"), /give either pci=ADDRESS or server=PATH/],
  [onBus("device", "ivshmem,server=x,bind"), /--bus ivshmem: bind goes with pci=, not server=/],
  [onBus("device", "ivshmem,server=x,via=sysfs"), /via goes with pci=, not server=/],
  [onBus("device", "ivshmem,pci=00:10.0,via=sysfs,bind"), /bind goes with via=vfio/],
  [onBus("device", "ivshmem,pci=10"), /PCI address 10: give DOMAIN:BUS:DEVICE.FUNCTION/],
  [
    onBus("device", "ivshmem,server=x,peer=70000"),
    /peer is a whole number from 0 to 65535, not 70000/,
  ],
  [onBus("device", "shm"), /--bus shm: file= is missing/],
  [onBus("proxy", "bridge", "--vhost-user", "socket=vu"), /--bus bridge: it goes with vmsg device/],
  [
    onBus("bridge", "bridge", "--bus", BUS),
    /--bus bridge: it goes with vmsg device, or second with vmsg bridge/,
  ],
  [
    onBus("bridge", BUS, "--bus", "bridge", "--memory", "file=ram"),
    /--bus bridge gives the memory: leave --memory out/,
  ],
  [onBus("device", "bridge,dialect=proto"), /--bus bridge: the kernel speaks v1, not proto/],
  [onBus("device", "bridge,reset"), /--bus bridge: reset is for buses whose queues outlive/],
  [onBus("device", "bridge,path=unix:"), /--bus bridge: path is that of a device node, or unix:/],
  [onBus("device", "bridge,endpoint="), /--bus bridge: endpoint is a name such as loopback/],
  [onBus("device", `bridge,endpoint=${LONG}`), /--bus bridge: endpoint has at most 15 bytes/],
  [onBus("device", `bridge,id=${LONG}`), /--bus bridge: id has at most 47 bytes/],
  [onBus("device", "bridge", "--confined"), /--bus bridge gives the memory: leave --memory and/],
  [
    onBus("device", "bridge", "--memory", "file=ram"),
    /--bus bridge gives the memory: leave --memo/,
  ],
  [onBus("device", "shm,file=x,uio=/dev/uio0"), /--bus shm: uio needs notify=uio/],
  [onBus("driver", `${BUS},dialect=auto`), /dialect=auto is for the device side: a driver side/],
  [onBus("driver", BUS, "--memory", "at=0"), /give one of segment, hugepages= and file=/],
  [onBus("driver", BUS, "--memory", "hugepages=0"), /hugepages=0 is no memory, hugepages=10M/],
  [onBus("driver", BUS, "--memory", "pages=10M"), /unknown key pages, known are .*hugepages/],
  [onBus("device", BUS, "--memory", "file=x,at=0,hole=1G"), /--memory: hole= needs low=/],
  [onBus("device", BUS, "--memory", "file=x,at=0,via=wc"), /--memory: via goes with pci=/],
  [onBus("driver", BUS, "--tap"), /--tap needs NAME/],
  [onBus("device", BUS, "--memory", "at=0"), /--memory: give either file= or pci=/],
  [
    onBus("device", BUS, "--memory", "file=x,at=low"),
    /--memory: at is a number of bytes .* not low/,
  ],
  [onBus("device", BUS, "--log-level", "loud"), /--log-level is one of error, .*, not loud/],
  [onBus("device", BUS, "--confined=off"), /--confined takes no value/],
  [onBus("device", BUS, "--trace=off"), /trace filter: off is no device \(0, net0, net\)/],
  [onBus("device", BUS, "--trace-format", "xml"), /--trace-format is one of text, json, not xml/],
  [onBus("device", BUS, "--capture", "c,size=1M"), /--capture c,size=1M: unknown key size/],
  [onBus("device", BUS, "--capture", "c,ring,limit=4K"), /limit is at least 4194304, not 4096/],
  [["trace"], /a file is missing; see: vmsg trace --help/],
  [["trace", "--filter", "x1", "c"], /trace filter: x1 is no device/],
  [onBus("driver", BUS, "--ping", "host"), /--ping takes an IPv4 address, not host/],
  [
    onBus("driver", BUS, "--address", "10.0.2.256"),
    /--address takes an IPv4 address, not 10.0.2.256/,
  ],
  [onBus("driver", BUS, "--count", "many"), /--count takes a whole number from 1 to \d+, not many/],
  [onBus("driver", BUS, "--count", "1.5"), /--count takes a whole number .*, not 1.5/],
  [onBus("driver", BUS, "--count", "0"), /--count takes a whole number .*, not 0/],
  [onBus("driver", BUS, "--interval=-1"), /--interval takes a number from .*, not -1/],
  [onBus("driver", BUS, "--device", "65536"), /--device takes a whole number from 0 to 65535/],
  [
    onBus("proxy", BUS, "--vhost-user", "socket=a", "--vhost-user", "socket=b,device=0"),
    /--vhost-user, --xen: a device number belongs to one guest, one is given twice/,
  ],
  [
    onBus("proxy", BUS, "--vhost-user", "socket=a,frob"),
    /--vhost-user .*: unknown key frob, known/,
  ],
];

const FAILURES: readonly [string[], RegExp][] = [
  [
    onBus("device", "ivshmem,pci=ff:1f.7"),
    /there is no PCI function 0000:ff:1f.7: vmsg doctor lists those of ivshmem/,
  ],
  [
    onBus("device", "bridge,path=no"),
    /no is not there \(ENOENT\): the kernel needs CONFIG_VIRTIO_MSG_BRIDGE, and its modules loaded/,
  ],
  // Nobody may write this one.
  [
    onBus("device", "bridge,path=/sys/kernel/uevent_seqnum"),
    /uevent_seqnum is not this user's to open \(EACCES\): be given it, or be root/,
  ],
  [onBus("device", "bridge,path=/dev/null"), /\/dev\/null is no virtio-msg bridge \(ENOTTY\)/],
  [
    onBus("device", "bridge,path=/dev/null", "--device", "vhost-user,socket=be,id=rng"),
    /bridge \/dev\/null, .*: a vhost-user back end cannot be given the kernel's memory: use a device/,
  ],
  [
    onBus("device", "bridge,path=/dev/null", ...Array(33).fill(["--device", "rng"]).flat()),
    /bridge \/dev\/null, .*: device numbers are below 32 there, not 32/,
  ],
  [onBus("device", "shm,file=no"), /open no: No such file .*ENOENT/],
  [onBus("device", "shm,file=page"), /bus shm: page has 4096 bytes, not 8192/],
  [
    onBus("device", "shm,file=/dev/null"),
    /bus shm: \/dev\/null: 8192 bytes from 0 on cannot be mapped/,
  ],
  [
    onBus("device", "shm,file=queues,notify=uio"),
    /bus shm: queues gives no interrupts .*: give a UIO device, or leave notify=uio out/,
  ],
  [
    onBus("driver", "shm,file=queues"),
    /--memory segment: bus shm queues has 8192 bytes .*, none of them from 8192 on/,
  ],
  [
    onBus("driver", "shm,file=queues", "--memory", "hugepages=1024G"),
    /524288 free huge pages of 2 MiB are needed: echo 524288 > .*nr_hugepages/,
  ],
  [onBus("device", `linux-user,socket=${LONG}`), /socket path a+ has 120 bytes, Linux allows 107/],
  [onBus("driver", `linux-user,socket=${LONG}`), /socket path a+ has 120 bytes, Linux allows 107/],
  [
    onBus("proxy", `linux-user,socket=${LONG}`, "--vhost-user", "socket=vu.sock"),
    /socket path a+ has 120 bytes, Linux allows 107/,
  ],
  [
    onBus("proxy", BUS, "--vhost-user", `socket=${LONG}`),
    /socket path a+ has 120 bytes, Linux allows 107/,
  ],
  [onBus("device", "linux-user,socket=no/lu.sock"), /socket no\/lu.sock: No such file .*ENOENT/],
  [onBus("device", `${BUS},dir=no`), /open no\/queue-linux-user-driver: No such file .*ENOENT/],
  [onBus("driver", `${BUS},dir=no`), /open no\/queue-linux-user-driver: No such file .*ENOENT/],
  [
    onBus("proxy", BUS, "--vhost-user", "socket=no/vu.sock"),
    /socket no\/vu.sock: No such file .*ENOENT/,
  ],
  // Nobody makes files there, not even root.
  [onBus("device", "linux-user,socket=/sys/lu.sock"), /\/sys\/lu.sock: .*\((EPERM|EACCES|EROFS)\)/],
  [onBus("device", `${BUS},dir=/sys`), /open \/sys\/queue.*\((EPERM|EACCES|EROFS)\)/],
  [
    onBus("proxy", BUS, "--vhost-user", "socket=/sys/vu.sock"),
    /\/sys\/vu.sock: .*\((EPERM|EACCES|EROFS)\)/,
  ],
  [onBus("device", "linux-user,socket=file"), /socket path file is a file that is no socket/],
  [onBus("device", BUS, "--memory", "file=no,at=0"), /open no: No such file .*ENOENT/],
  [onBus("device", BUS, "--memory", "file=file,at=0"), /memory file file has only 0 bytes/],
  [
    onBus("device", BUS, "--memory", "file=page,at=0", "--memory", "file=page,at=4095"),
    /--memory at 0xfff overlaps another --memory/,
  ],
  [
    onBus("device", BUS, "--memory", "file=page,at=0x1fffffffffffff"),
    /--memory: 4096 bytes cannot lie at 0x1fffffffffffff/,
  ],
  [onBus("device", BUS, "--net", "responder,pcap=no/x"), /cannot capture to no\/x: .*ENOENT/],
  [onBus("driver", BUS, "--capture", "no/x"), /cannot capture to no\/x: .*ENOENT/],
  [["trace", "no"], /open no: No such file .*ENOENT/],
  [["trace", "page"], /page cannot be read: it is no pcapng file/],
  [
    onBus("device", BUS, "--net", "passt,socket=no.sock"),
    /nobody listens on no.sock: start passt --socket no.sock first/,
  ],
  [onBus("driver", BUS, "--tap", LONG), /interface name a+ has 120 bytes, Linux allows 15/],
  [onBus("proxy", BUS, "--vhost-user", "fd=999"), /fd 999: Bad file descriptor/],
  [
    onBus("proxy", BUS, "--confined", "--xen", "domain=domu"),
    /\/dev\/xen\/xenbus: .*ENOENT.*: --xen works in Dom0 of Xen, as root/,
  ],
  // A number that Deno itself uses.
  [onBus("proxy", BUS, "--vhost-user", "fd=3"), /vhost-user fd 3 is no socket/],
  [
    onBus("driver", `${BUS},wait=off`),
    /linux-user bus lu.sock: no device side listens there \(wait=off\)/,
  ],
  [
    onBus("proxy", `${BUS},wait=off`, "--vhost-user", "socket=vu.sock"),
    /linux-user bus lu.sock: no device side listens there \(wait=off\)/,
  ],
  [
    onBus("device", `${BUS},listen=off,wait=off`),
    /linux-user bus lu.sock: no driver side listens there \(wait=off\)/,
  ],
];

processTest("cli: wrong usage is one line and exit code 2", async (vmsg) => {
  for (const [args, pattern] of WRONG_USAGE) await assertComplaint(vmsg, args, USAGE, pattern);
  assertEquals(vmsg.files(), [], "wrong usage made files");
});

processTest("cli: a failure is one line and exit code 1", async (vmsg) => {
  await Deno.writeTextFile(`${vmsg.directory}/file`, "");
  await Deno.writeFile(`${vmsg.directory}/page`, new Uint8Array(4096));
  await Deno.writeFile(`${vmsg.directory}/queues`, new Uint8Array(8192));
  for (const [args, pattern] of FAILURES) await assertComplaint(vmsg, args, FAILURE, pattern);
  const left = vmsg.files().filter((name) => name.endsWith(".sock"));
  assertEquals(left, [], "a failed start left sockets");
});

processTest("cli: without a subcommand the overview comes, and what is missing", async (vmsg) => {
  const { code, stdout, stderr } = await vmsg.run();
  assertEquals(code, USAGE);
  assertEquals(stderr, ["vmsg: a subcommand is missing"]);
  assertEquals(stdout, (await vmsg.run("--help")).stdout);
});

processTest("cli: --version", async (vmsg) => {
  const { code, stdout, stderr } = await vmsg.run("--version");
  assertEquals([code, stderr], [0, []]);
  assertMatch(stdout.join("\n"), /^vmsg \d+\.\d+\.\d+\S*$/);
});

processTest("cli: --help names every subcommand, and each its options", async (vmsg) => {
  const overview = await vmsg.run("--help");
  assertEquals([overview.code, overview.stderr], [0, []]);
  const rows = overview.stdout.slice(overview.stdout.indexOf("Subcommands:") + 1);
  const names = rows.map((row) => /^ {2}([a-z][a-z-]*) /.exec(row)?.[1]).filter((name) =>
    name !== undefined
  );
  for (const name of ["device", "proxy", "driver", "demo", "doctor"]) assert(names.includes(name));
  for (const name of names) {
    const module: Record<string, unknown> = await import(
      new URL(`../../src/cli/${name.replaceAll("-", "_")}.ts`, import.meta.url).href
    );
    const command = Object.values(module).find((value): value is Command =>
      (value as Command)?.name === name && typeof (value as Command).run === "function"
    );
    if (command === undefined) throw new Error(`src/cli/${name}.ts exports no command`);
    const { code, stdout, stderr } = await vmsg.run(name, "--help");
    assertEquals([code, stderr], [0, []], name);
    const text = stdout.join("\n");
    assert(text.startsWith(`Usage: vmsg ${name} `), text);
    for (const option of [...command.options.map((option) => option.name), "help"]) {
      assertMatch(text, new RegExp(`^  --${option}( |$)`, "m"), `vmsg ${name} --help`);
    }
    for (const example of command.examples) assert(text.includes(example), name);
  }
});

processTest("cli: what waits says for what, in one line, and goes on waiting", async (vmsg) => {
  const device = await vmsg.start("device", "--bus", BUS);
  const driver = await vmsg.start("driver", "--bus", "linux-user,socket=other.sock,name=other");
  const bus = "linux-user,socket=third.sock,name=third";
  const proxy = await vmsg.start("proxy", "--bus", bus, "--vhost-user", "socket=vu.sock");
  await Promise.all([device, driver, proxy].map((process) => process.waitFor(/waiting/)));
  await proxy.waitFor(/waiting for a front end/);
  // While another command runs they try again, many times.
  await vmsg.run("doctor");
  await Promise.all([device, driver, proxy].map((process) => process.end("SIGTERM")));
  assertEquals(device.stderr, [
    "vmsg device: linux-user bus lu.sock: waiting for the driver side",
  ]);
  assertEquals(driver.stderr, [
    "vmsg driver: linux-user bus other.sock: waiting for the device side",
  ]);
  // It waits at both ends.
  assertEquals(proxy.stderr, [
    "vmsg proxy: linux-user bus third.sock: waiting for the device side",
    "vmsg proxy: vhost-user vu.sock: waiting for a front end",
  ]);
});

processTest("cli: sockets and bus names that are in use", async (vmsg) => {
  const device = await vmsg.start("device", "--bus", BUS);
  const proxy = await vmsg.start("proxy", "--bus", BUS, "--vhost-user", "socket=vu.sock");
  await proxy.waitFor(/a vmsg device side is there/);

  const taken = (side: string) =>
    new RegExp(`bus linux-user,name=linux-user: process \\d+ is the ${side} side already`);
  const complain = (args: string[], pattern: RegExp) =>
    assertComplaint(vmsg, args, FAILURE, pattern);
  await complain(onBus("device", BUS), taken("device"));
  await complain(onBus("device", "linux-user,socket=b.sock"), taken("device"));
  await complain(onBus("driver", BUS), taken("driver"));
  const inUse = (path: string) => new RegExp(`socket ${path} is in use by another process`);
  await complain(onBus("device", `${BUS},name=b`), inUse("lu.sock"));
  const second = onBus("proxy", "linux-user,socket=b.sock,name=b", "--vhost-user");
  await complain([...second, "socket=vu.sock"], inUse("vu.sock"));

  // Those who were there first are none the worse for it.
  assertEquals(vmsg.files().filter((name) => name.endsWith(".sock")), ["lu.sock", "vu.sock"]);
  await proxy.end("SIGTERM");
  const { code } = await vmsg.run("driver", "--bus", BUS, "--count", "1");
  assertEquals(code, 0);
  assertEquals((await device.end("SIGTERM")).code, 0);
});

processTest("cli: a file of bus shm has one process a side, who is named", async (vmsg) => {
  await Deno.writeFile(`${vmsg.directory}/memory`, new Uint8Array(1 << 20));
  const bus = "shm,file=memory,size=1M";
  const device = await vmsg.start("device", "--bus", bus);
  await device.waitFor(/waiting for a driver side/);
  const second = new RegExp(
    `bus shm,file=memory: process ${device.pid} is its device side already$`,
  );
  await assertComplaint(vmsg, onBus("device", bus), FAILURE, second);
  const { code, stderr } = await vmsg.run("driver", "--bus", bus, "--count", "1");
  assertEquals(code, 0, stderr.join("\n"));
  await device.end("SIGKILL");
  const next = await vmsg.start("device", "--bus", bus);
  await next.waitFor(/waiting for a driver side/);
});

processTest(
  "cli: one socket and two directories, both sides name the other's files",
  async (vmsg) => {
    await Deno.mkdir(`${vmsg.directory}/other`);
    const device = await vmsg.start("device", "--bus", BUS);
    await device.waitFor(/waiting for the driver side/);
    const driver = await vmsg.start("driver", "--bus", `${BUS},dir=other`, "--count", "1");
    const has = (pid: number, directory: string) =>
      new RegExp(`process ${pid}, has ${directory}/queue-linux-user-\\w+, this side has .*both`);
    await driver.waitFor(has(device.pid, vmsg.directory));
    await device.waitFor(has(driver.pid, `${vmsg.directory}/other`));
  },
);

processTest(
  "cli: a driver side that speaks another dialect is told by the device side",
  async (vmsg) => {
    const device = await vmsg.start("device", "--bus", `${BUS},dialect=v1`);
    await device.waitFor(/waiting/);
    const memory = `${vmsg.directory}/memory`;
    await Deno.writeFile(memory, new Uint8Array(0));
    await Deno.truncate(memory, 16 << 20);
    const more = ["--memory", "file=memory,at=0x40000000", "--count", "1"];
    const driver = await vmsg.start("driver", "--bus", `${BUS},dialect=proto`, ...more);
    await device.waitFor(/the driver side speaks proto, this device side speaks v1: .*dialect=/);
    // The device is reset after a request that has no answer; who counts its pings does not go on for ever.
    await driver.waitFor(/the device side did not answer .* another dialect/);
    await driver.waitFor(
      /the device side is there, but for 15 s gave no answer that is proto: .*dialect=/,
    );
    assertEquals((await driver.ended()).code, FAILURE);
  },
);

processTest(
  "cli: a device side that speaks another dialect is guessed by the driver side",
  async (vmsg) => {
    const device = await vmsg.start("device", "--bus", `${BUS},dialect=proto`);
    await device.waitFor(/waiting/);
    const driver = await vmsg.start("driver", "--bus", `${BUS},dialect=v1`);
    await device.waitFor(/the driver side speaks v1, this device side speaks proto: .*dialect=/);
    await driver.waitFor(/no v1 answer, the peer may speak another dialect .*dialect=/);
    const { stderr } = await driver.end("SIGTERM");
    assertEquals(stderr.filter((line) => line.includes("no v1 answer")).length, 1);
  },
);

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  // One that takes too long to end itself is left behind with exit code 1 (data_plane.ts).
  processTest(`cli: ${signal} ends everything in time`, async (vmsg) => {
    const device = await vmsg.start("device", "--bus", BUS);
    const driver = await vmsg.start("driver", "--bus", BUS, "--interval", "0.05");
    await driver.waitFor(/icmp_seq=3 /);
    const idle = await vmsg.start("device", "--bus", "linux-user,socket=idle.sock,name=idle");
    const bus = "linux-user,socket=none.sock,name=none";
    const proxy = await vmsg.start("proxy", "--bus", bus, "--vhost-user", "socket=vu.sock");
    const lonely = await vmsg.start("driver", "--bus", "linux-user,socket=none.sock,name=lonely");
    await Promise.all([idle, proxy, lonely].map((process) => process.waitFor(/waiting/)));
    await proxy.waitFor(/waiting for a front end/);

    const summary = /^(\d+) packets transmitted, (\d+) received, (\d+)% packet loss$/;
    const { code, stdout, stderr } = await driver.end(signal);
    assertEquals([code, stderr.filter((line) => line.includes("error"))], [0, []]);
    const [, sent, received] = summary.exec(stdout.at(-2)!)!;
    assertMatch(stdout.at(-1)!, /^round trip min\/median\/p99\/max = /);
    assertInTurn(stdout, Number(sent), Number(received));
    assert(Number(received) >= 3, stdout.at(-2));

    // As ping(8): nobody answered.
    const unanswered = await lonely.end(signal);
    assertEquals(unanswered.code, FAILURE);
    assertMatch(unanswered.stdout.at(-1)!, summary);

    for (const process of [device, idle, proxy]) {
      const ended = await process.end(signal);
      assertEquals([ended.code, ended.stdout], [0, []], process.args.join(" "));
    }
    const left = vmsg.files().filter((name) => !name.startsWith("queue-"));
    assertEquals(left, []);
  });
}

processTest("cli: what SIGKILL leaves does not stop the next start", async (vmsg) => {
  const startAll = async () =>
    [
      await vmsg.start("device", "--bus", BUS),
      await vmsg.start("proxy", "--bus", BUS, "--vhost-user", "socket=vu.sock"),
    ] as const;
  const first = await startAll();
  await first[1].waitFor(/a vmsg device side is there/);
  await Promise.all(first.map((process) => process.end("SIGKILL")));
  assertEquals(vmsg.files(), [
    "lu.sock",
    "queue-linux-user-device",
    "queue-linux-user-driver",
    "vu.sock",
  ]);
  const second = await startAll();
  await second[1].waitFor(/a vmsg device side is there/);
  await second[1].waitFor(/waiting for a front end/);
  await Promise.all(second.map((process) => process.end("SIGTERM")));
  assertEquals(vmsg.files(), ["queue-linux-user-device", "queue-linux-user-driver"]);

  // A driver that was killed in the middle of its work, and a device with it.
  const device = await vmsg.start("device", "--bus", BUS);
  const driver = await vmsg.start("driver", "--bus", BUS, "--interval", "0.001");
  await driver.waitFor(/icmp_seq=100 /);
  await Promise.all([driver.end("SIGKILL"), device.end("SIGKILL")]);
  await vmsg.start("device", "--bus", BUS);
  const { code, stdout } = await vmsg.run(
    "driver",
    "--bus",
    BUS,
    "--count",
    "3",
    "--interval",
    "0.01",
  );
  assertEquals(code, 0);
  assertMatch(stdout.join("\n"), /^3 packets transmitted, 3 received, 0% packet loss$/m);
});
