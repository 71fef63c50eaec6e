import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  addressOf,
  countAt,
  CounterMemory,
  counterShape,
  countIn,
  retire,
  snapshot,
  uncounted,
} from "../../src/observe/counters.ts";
import { counterDirectories, openCounterFile } from "../../src/observe/counter_file.ts";
import { VmsgError } from "../../src/linux/errors.ts";
import { readCounters } from "../../src/observe/read_counters.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

const Traffic = counterShape("received", "sent", "dropped");
const Errors = counterShape("malformed", "unansweredFull");
const TWO_32 = 2 ** 32;

/** The groups of a file as plain objects. */
function groupsOf(path: string): [string, string, Record<string, number>][] {
  return readCounters(path).groups.map(({ kind, name, counters }) => [
    kind,
    name,
    Object.fromEntries(counters.map(({ name, value }) => [name, value])),
  ]);
}

Deno.test("counters: without a file they count in memory of their own", () => {
  const one = new Traffic("port", "tap0");
  const other = new Traffic("port", "tap0");
  one.received++;
  one.received++;
  one.sent += 1500;
  assertEquals(snapshot(one), { received: 2, sent: 1500, dropped: 0 });
  assertEquals(snapshot(other), { received: 0, sent: 0, dropped: 0 });
  assertEquals(JSON.stringify(one), '{"received":2,"sent":1500,"dropped":0}');
});

Deno.test("counters: exact from 0 to 2^53, over the carry", () => {
  const counters = new Traffic("port", "tap0");
  for (const value of [2 ** 31 - 1, 2 ** 31, TWO_32 - 1, TWO_32, 3 * TWO_32 - 1, 2 ** 53 - 2]) {
    counters.sent = value;
    assertEquals(counters.sent, value);
    counters.sent++;
    assertEquals(counters.sent, value + 1);
    counters.sent += 0;
    assertEquals(snapshot(counters).sent, value + 1);
  }
  assertEquals([counters.received, counters.dropped], [0, 0]);
});

Deno.test("counters: a name that does not fit is our own error", () => {
  counterShape("x".repeat(24));
  assertThrows(() => counterShape("x".repeat(25)), Error, "too long");
});

cleanTest(
  "counters: the file has the layout of its description, and goes with its owner",
  async () => {
    await withDirectory((directory) => {
      let path: string;
      {
        const beforeMs = Date.now();
        using file = openCounterFile("device", [`${directory}/none/vmsg`, `${directory}/vmsg`]);
        path = file.path!;
        assertEquals(path, `${directory}/vmsg/device.${Deno.pid}`);
        assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
        assertEquals(Deno.statSync(`${directory}/vmsg`).mode! & 0o777, 0o700);
        const traffic = new Traffic("port", "tap0");
        const errors = new Errors("bus", "linux-user 'x'");
        traffic.received = 7;
        traffic.sent = TWO_32 + 5;
        errors.unansweredFull++;
        const view = new DataView(Deno.readFileSync(path).buffer);
        assertEquals(view.getUint32(8, true), 1);
        assertEquals(view.getUint32(12, true), Deno.pid);
        const startMs = Number(view.getBigUint64(16, true));
        assert(startMs >= beforeMs && startMs <= Date.now(), `${startMs}`);
        assertEquals(view.getUint32(24, true) % 2, 0);
        const second = 64 + 64 + 3 * 32;
        assertEquals(view.getUint32(28, true), second + 64 + 2 * 32);
        assertEquals([view.getUint32(64, true), view.getUint32(68, true)], [3, 1]);
        assertEquals(view.getBigUint64(128, true), 7n);
        assertEquals(view.getBigUint64(160, true), BigInt(TWO_32 + 5));
        assertEquals(view.getBigUint64(second + 64 + 32, true), 1n);
        assertEquals(groupsOf(path), [
          ["port", "tap0", { received: 7, sent: TWO_32 + 5, dropped: 0 }],
          ["bus", "linux-user 'x'", { malformed: 0, unansweredFull: 1 }],
        ]);
        // A second Worker of the process with the same subcommand has a file of its own.
        using other = openCounterFile("device", [`${directory}/vmsg`]);
        assertEquals(other.path, `${path}.2`);
      }
      assertEquals([...Deno.readDirSync(`${directory}/vmsg`)], []);
      assertThrows(() => readCounters(path), VmsgError, path);
    });
  },
);

cleanTest("counters: od shows a counter a line, its value first", async () => {
  await withDirectory(async (directory) => {
    using file = openCounterFile("device", [directory]);
    const traffic = new Traffic("port", "tap0");
    traffic.received = 123456;
    const args = ["-A", "d", "-w32", "-t", "u8z", file.path!];
    const { stdout } = await new Deno.Command("od", { args }).output();
    const line = new TextDecoder().decode(stdout).split("\n").find((line) => /received/.test(line));
    assert(/^0000128 +123456 .*>.{8}received\.+<$/.test(line!), line);
  });
});

cleanTest("counters: another thread counts in a group's place, by its address", async () => {
  await withDirectory((directory) => {
    assertEquals(addressOf(new Traffic("port", "none")), 0);
    using file = openCounterFile("device", [directory]);
    const [one, two] = ["tap0", "tap1"].map((name) => new Traffic("port", name));
    const there = countAt(addressOf(two!), () => new Traffic("", ""));
    there.sent += TWO_32 + 5;
    one!.sent++;
    assertEquals([two!.sent, one!.sent], [TWO_32 + 5, 1]);
    assertEquals(groupsOf(file.path!).map(([, name, { sent }]) => [name, sent]), [
      ["tap0", 1],
      ["tap1", TWO_32 + 5],
    ]);
    // In memory of its own where there is no place.
    const alone = countAt(0, () => new Traffic("port", "alone"));
    alone.sent++;
    assertEquals([addressOf(alone), alone.sent, groupsOf(file.path!).length], [0, 1, 2]);
  });
});

cleanTest("counters: what is not for others to see is in no file", async () => {
  await withDirectory((directory) => {
    using file = openCounterFile("device", [directory]);
    uncounted(() => new Traffic("bus", "rehearsal").sent++);
    assertThrows(() => uncounted(() => assert(false)));
    new Traffic("bus", "real");
    assertEquals(groupsOf(file.path!).map(([, name]) => name), ["real"]);
  });
});

cleanTest("counters: a place that was given back serves a group of the same size", async () => {
  await withDirectory((directory) => {
    using file = openCounterFile("proxy", [directory]);
    const first = new Traffic("queue", "0.0");
    const second = new Errors("queue", "0.1");
    first.sent = 9;
    const { generation } = readCounters(file.path!);
    retire(first);
    assert(readCounters(file.path!).generation > generation);
    assertEquals(groupsOf(file.path!), [["queue", "0.1", { malformed: 0, unansweredFull: 0 }]]);
    const third = new Traffic("queue", "a name that is a good deal longer than forty letters");
    third.dropped++;
    second.malformed++;
    assertEquals(groupsOf(file.path!), [
      ["queue", "a name that is a good deal longer than f", { received: 0, sent: 0, dropped: 1 }],
      ["queue", "0.1", { malformed: 1, unansweredFull: 0 }],
    ]);
    // Rings that come and go without end stay within the file.
    for (let n = 0; n < 10_000; n++) retire(new Traffic("queue", `${n}`));
    assertEquals(readCounters(file.path!).groups.length, 2);
  });
});

cleanTest("counters: when the file is full, what is new counts in memory of its own", async () => {
  await withDirectory((directory) => {
    using file = openCounterFile("device", [directory]);
    const all = Array.from({ length: 1000 }, (_, n) => new Traffic("port", `${n}`));
    all.forEach((counters, n) => counters.sent = n);
    assertEquals(all.map(({ sent }) => sent), all.map((_, n) => n));
    const { groups } = readCounters(file.path!);
    assertEquals(groups.length, Math.floor((65536 - 64) / (64 + 3 * 32)));
    groups.forEach(({ counters }, n) => assertEquals(counters[1], { name: "sent", value: n }));
  });
});

cleanTest(
  "counters: no directory of others, no link, no place: no file, and everything counts",
  async () => {
    await withDirectory((directory) => {
      Deno.mkdirSync(`${directory}/open`);
      Deno.chmodSync(`${directory}/open`, 0o777);
      Deno.mkdirSync(`${directory}/mine`, { mode: 0o700 });
      Deno.symlinkSync(`${directory}/mine`, `${directory}/link`);
      Deno.writeTextFileSync(`${directory}/file`, "");
      for (const name of ["open", "link", "file", "none/vmsg"]) {
        using file = openCounterFile("device", [`${directory}/${name}`]);
        assertEquals(file.path, undefined, name);
        const traffic = new Traffic("port", "tap0");
        traffic.sent++;
        assertEquals(traffic.sent, 1);
      }
      assertEquals([...Deno.readDirSync(`${directory}/mine`)], []);
      // A link in the file's own place is not followed: another name is taken.
      Deno.symlinkSync(`${directory}/target`, `${directory}/mine/device.${Deno.pid}`);
      using file = openCounterFile("device", [`${directory}/mine`]);
      assertEquals(file.path, `${directory}/mine/device.${Deno.pid}.2`);
      assertThrows(() => Deno.lstatSync(`${directory}/target`), Deno.errors.NotFound);
      assertThrows(
        () => readCounters(`${directory}/mine/device.${Deno.pid}`),
        VmsgError,
        "not a file",
      );
    });
  },
);

Deno.test("counters: where the file is looked for", () => {
  const before = Deno.env.get("XDG_RUNTIME_DIR");
  try {
    Deno.env.set("XDG_RUNTIME_DIR", "/run/user/1000");
    assertEquals(counterDirectories(), ["/run/user/1000/vmsg", "/run/vmsg"]);
    // The XDG specification: a relative path is to be ignored.
    Deno.env.set("XDG_RUNTIME_DIR", "run");
    assertEquals(counterDirectories(), ["/run/vmsg"]);
    Deno.env.delete("XDG_RUNTIME_DIR");
    assertEquals(counterDirectories(), ["/run/vmsg"]);
  } finally {
    if (before !== undefined) Deno.env.set("XDG_RUNTIME_DIR", before);
  }
});

/** A process that counts, ended by SIGKILL; the path of what it leaves. */
async function killed(directory: string): Promise<string> {
  const script = new URL("./counters_child.ts", import.meta.url).pathname;
  const args = ["run", "-A", "--no-check", script, directory];
  const child = new Deno.Command(Deno.execPath(), { args, stdout: "piped" }).spawn();
  const reader = child.stdout.getReader();
  const path = new TextDecoder().decode((await reader.read()).value).trim();
  // It counts while we read: every read is whole, and none goes back.
  let last = 0;
  while (last < 1_000_000) {
    const [frames, bytes] = readCounters(path).groups[0]!.counters;
    assert(frames!.value >= last, `${frames!.value} after ${last}`);
    assertEquals(bytes!.name, "bytes");
    last = frames!.value;
  }
  child.kill("SIGKILL");
  await child.status;
  await reader.cancel();
  return path;
}

cleanTest(
  "counters: of a process that was killed they are exact; the newest eight are kept",
  async () => {
    await withDirectory(async (directory) => {
      const path = await killed(directory);
      const { pid, subcommand, groups } = readCounters(path);
      assertEquals([subcommand, path], ["child", `${directory}/child.${pid}`]);
      const [{ kind, name, counters }] = groups as [typeof groups[0]];
      assertEquals([kind, name], ["port", "tap0"]);
      const [frames, bytes] = counters.map(({ value }) => value);
      assert(frames! >= 1_000_000);
      assert(
        bytes === 60 * frames! || bytes === 60 * (frames! - 1),
        `${bytes} of ${frames} frames`,
      );

      // The next start leaves it, being new; one that finds eight newer ones does not.
      openCounterFile("device", [directory])[Symbol.dispose]();
      readCounters(path);
      for (let n = 0; n < 8; n++) {
        const copy = `${directory}/device.${2 ** 30 + n}`;
        Deno.copyFileSync(path, copy);
        Deno.utimeSync(copy, Date.now() / 1000 + 60, Date.now() / 1000 + 60);
      }
      // What no vmsg made, or what a living process has, is left alone.
      Deno.copyFileSync(path, `${directory}/device.1`);
      Deno.utimeSync(`${directory}/device.1`, 0, 0);
      Deno.writeTextFileSync(`${directory}/README.txt`, "");
      openCounterFile("device", [directory])[Symbol.dispose]();
      assertThrows(() => readCounters(path), VmsgError);
      assertEquals([...Deno.readDirSync(directory)].length, 10);
    });
  },
);

cleanTest(
  "counters: what crashed with our number, as in a container, takes no place for ever",
  async () => {
    await withDirectory((directory) => {
      for (let n = 1; n <= 16; n++) {
        const path = `${directory}/device.${Deno.pid}${n > 1 ? `.${n}` : ""}`;
        Deno.writeFileSync(path, wholeFile());
        Deno.utimeSync(path, n, n);
      }
      using file = openCounterFile("device", [directory]);
      assertEquals(file.path, `${directory}/device.${Deno.pid}`);
      assertEquals([...Deno.readDirSync(directory)].length, 9);
    });
  },
);

/** A file with a device and a bus, to be damaged. */
function wholeFile(): Uint8Array<ArrayBuffer> {
  const memory = new CounterMemory(new ArrayBuffer(1024), "device", 77, 1.7e12);
  countIn(memory);
  try {
    new Traffic("device", "0 net").sent = 5;
    new Errors("bus", "linux-user").malformed = 6;
  } finally {
    countIn(undefined);
  }
  return new Uint8Array(memory.buffer);
}

Deno.test("counters: a file that is damaged, cut off or hostile is refused or shown as far as it goes", async () => {
  await withDirectory((directory) => {
    const path = `${directory}/device.77`;
    const groups = (damage: (view: DataView) => void, length = 1024): string[] => {
      const bytes = wholeFile();
      damage(new DataView(bytes.buffer));
      Deno.writeFileSync(path, bytes.subarray(0, length));
      return readCounters(path).groups.map(({ kind, name, counters }) =>
        `${kind} ${name} ${counters.length}`
      );
    };
    const both = ["device 0 net 3", "bus linux-user 2"];
    assertEquals(groups(() => {}), both);
    const { subcommand, pid, startMs } = readCounters(path);
    assertEquals([subcommand, pid, startMs], ["device", 77, 1.7e12]);

    for (const length of [0, 63]) {
      assertThrows(() => groups(() => {}, length), VmsgError, "not a file of counters");
    }
    assertThrows(() => groups((view) => view.setUint8(0, 0)), VmsgError, "not a file of counters");
    assertThrows(() => groups((view) => view.setUint32(8, 2, true)), VmsgError, "version 2");
    // Cut off inside the second group, or inside the first.
    assertEquals(groups(() => {}, 64 + 160 + 64 + 63), both.slice(0, 1));
    assertEquals(groups(() => {}, 64 + 159), []);
    // Sizes that lie.
    assertEquals(groups((view) => view.setUint32(28, 0xffffffff, true)), [...both]);
    assertEquals(groups((view) => view.setUint32(28, 0, true)), []);
    for (const count of [4, 100, 2 ** 27, 0xffffffff]) {
      assertEquals(groups((view) => view.setUint32(64 + 160, count, true)).slice(0, 1), [both[0]]);
    }
    // Groups that are free, or in a state that we do not know.
    assertEquals(groups((view) => view.setUint32(68, 0, true)), [both[1]]);
    assertEquals(groups((view) => view.setUint32(68, 7, true)), [both[1]]);
    // A process that died while it changed its groups.
    assertEquals(groups((view) => view.setUint32(24, 7, true)), both);
    // Nothing in a text reaches a terminal.
    assertEquals(groups((view) => view.setUint32(64 + 24, 0x6d311b9b, true))[0], "device ??1mt 3");

    // Any bytes at all: an error for people, or what can be shown; each count has its place.
    const seed = Number(Deno.env.get("VMSG_SEED") ?? Date.now() % 2 ** 32);
    let state = seed;
    const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 8;
    for (let round = 0; round < 500; round++) {
      const shown = groups((view) => {
        for (let n = 0; n < 8; n++) view.setUint8(8 + next() % 400, next());
        view.setUint32(8, 1, true);
      }, 64 + next() % 961);
      assert(shown.length <= 15, `seed ${seed} round ${round}: ${shown}`);
    }
    Deno.removeSync(path);
    Deno.mkdirSync(path);
    assertThrows(() => readCounters(path), VmsgError, "not a file of counters");
  });
});
