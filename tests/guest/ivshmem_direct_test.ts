/**
 * A guest inside machine B whose own pages machine A's device reads and writes, by physical address: what
 * happens to these pages when the guest, its proxy, or the machine goes under load.
 *
 *     machine A                                   machine B
 *       ping -> TAP <- vmsg device == pages of ==> guest (User-Mode Linux) <- vmsg proxy
 *
 * A floods the guest, so that the device has buffers to write to at every moment. All of B's free memory is filled
 * with a pattern, and what the dead guest leaves is filled at once. A write by a device that has not let
 * go would hit the pattern: no byte of it may change.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type InnerGuest, innerMicrovm, innerUml } from "../../scripts/lab/inner.ts";
import { findProgram, withLibraries } from "../../scripts/lab/libraries.ts";
import { findGuests } from "../../scripts/lab/machines.ts";
import { deviceScript, innerScript } from "../../scripts/lab/pair.ts";
import { pingScript } from "../../scripts/lab/scripts.ts";
import type { Lack } from "../support/needs.ts";
import { delay } from "../support/processes.ts";
import { has } from "../network/support.ts";
import { machineTest } from "./machine_support.ts";
import { type ControlledMachine, PAIR_KIND, withPair } from "./pair_support.ts";
import { programFiles } from "./program_files.ts";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1";
/** How often each goes: a guest by itself, one together with its proxy, all of machine B. */
const GUESTS = FULL ? 20 : 1;
const PROXIES = FULL ? 5 : 1;
const MACHINES = FULL ? 5 : 1;

const B_MIB = 256;
const INNER = "10.0.2.15";
const STEP_TIMEOUT_MS = 300_000;
/** For how long freed memory is taken, from the kill on, and longer until it is so much: a dead proxy's pins last a while. */
const TAKE_S = 2;
const TAKE_MIB = 36;
/** What is left free, in KiB: less than the guest's memory. */
const SPARE = 16 << 10;

/**
 * Shell functions of machine B. `fill NAME SECONDS MIB` takes memory while there is any, in files of 1 MiB, and
 * waits for more for a while, and until it has so many, but a minute at most; `check` prints how many there are, and
 * how many with other contents.
 */
const PATTERN = `
cat >/tmp/pattern.sh <<'END-OF-PATTERN'
free() { sed -n 's/^MemFree: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
fill() {
  mkdir -p /fill/$1
  end=$(($(date +%s) + $2)); n=0
  while [ $(free) -gt ${SPARE} ] || [ $(date +%s) -lt $end ] ||
      { [ $n -lt $3 ] && [ $(date +%s) -lt $((end + 60)) ]; }; do
    if [ $(free) -gt ${SPARE} ]; then
      n=$((n + 1)); cp /fill/source /fill/$1/$n
    else
      sleep 0.02
    fi
  done
  echo "FILLED $n"
}
check() {
  sum=$(md5sum </mnt/pattern)
  find /fill -type f | while read -r file; do md5sum <$file; done >/tmp/sums
  echo "CHECKED $(wc -l </tmp/sums) WRONG $(grep -c -v "$sum" /tmp/sums)"
}
END-OF-PATTERN
if [ ! -e /fill/source ]; then
  mkdir -p /fill
  mount -t tmpfs -o size=100% tmpfs /fill
  cp /mnt/pattern /fill/source
fi
`;

const guests = await findGuests();

function lacksOf(kind: "uml" | "microvm"): Lack[] {
  return guests.missing[kind].map((what) => ({ what, requiredBy: "VMSG_GUEST_TESTS" }));
}

/** 1 MiB whose every byte tells. */
function pattern(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(1 << 20);
  for (let at = 0; at < bytes.length; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

/** Says what happens, and when. */
function say(line: string): void {
  console.log(`${(performance.now() / 1000).toFixed(1)} s: ${line}`);
}

/** The numbers behind words in capitals, as in "CHECKED 3 WRONG 0". */
function numbers(output: string): number[] {
  return [...output.matchAll(/[A-Z]+ (\d+)/g)].map((match) => Number(match[1]));
}

/** Machine A floods the guest. */
class Flood {
  constructor(readonly a: ControlledMachine) {}

  async start(): Promise<void> {
    await this.a.runUntilDone(`ping -c 1 -W 5 ${INNER}`);
    // Slow enough that the guest's receive buffers, 256 and more, outlast the lease by far.
    await this.a.run(`ping -i 0.005 -s 1400 ${INNER} >/tmp/flood.log 2>&1 &`);
    // Written in blocks of 4 KiB, so this is after 50 answers and more.
    await this.a.runUntilDone(`[ $(grep -c "bytes from" /tmp/flood.log) -gt 30 ]`);
  }

  /** It was answered, and it went on when nobody answered any more. */
  async stop(): Promise<void> {
    const log = await this.a.run(
      "killall -INT ping; while pidof ping >/dev/null; do sleep 0.1; done; tail -n 3 /tmp/flood.log",
    );
    const [, sent = 0, received = 0] =
      /(\d+) packets transmitted, (\d+) packets received/.exec(log)?.map(Number) ?? [];
    say(`flood: ${sent} sent, ${received} answered`);
    assert(received > 20 && sent > received + 50, `no flood: ${log}`);
  }
}

/** Waits, and compares all patterns. */
async function assertUnchanged(b: ControlledMachine, what: string): Promise<void> {
  await delay(1000);
  const startMs = performance.now();
  const [files = 0, wrong] = numbers(await b.run(". /tmp/pattern.sh; check", STEP_TIMEOUT_MS));
  const took = ((performance.now() - startMs) / 1000).toFixed(1);
  say(`${what}: ${files} MiB compared in ${took} s`);
  assert(files >= TAKE_MIB, `${files} MiB are no check`);
  assertEquals(wrong, 0, `${what}: pieces of 1 MiB that somebody has written to`);
}

async function umlInside(): Promise<InnerGuest> {
  if (guests.uml?.kind !== "uml") throw new Error("no User-Mode Linux");
  const script = pingScript({ address: `${INNER}/24`, peer: "10.0.2.2", count: 1 });
  return await innerUml(guests.uml, { script: `${script}\nwhile :; do sleep 1000; done` });
}

/** Shell: the pattern's functions, the proxy, and a script that boots the guest. */
function scriptOfB(guest: InnerGuest): string {
  const boot = (socket: string) => `
cat >/tmp/boot.sh <<'END-OF-BOOT'
${guest.boot(socket)}
END-OF-BOOT`;
  return `${PATTERN}\n${innerScript({ mode: "", guest: boot })}`;
}

async function bootGuest(b: ControlledMachine): Promise<void> {
  await b.runUntilDone("[ -S /tmp/inner.sock ] && [ -e /tmp/boot.sh ]");
  await b.run("sh /tmp/boot.sh >/dev/console 2>&1 &");
}

machineTest(
  "ivshmem, direct: no byte of B changes but the guest's own",
  PAIR_KIND,
  async (test) => {
    const guest = await umlInside();
    const files = [...guest.files, { path: "pattern", bytes: pattern(), mode: 0o644 }];
    await withPair(test, { files, memoryMiB: B_MIB }, async ({ startA, startB, kind }) => {
      const starting = startA({ script: deviceScript({ kind, net: "tap" }) });
      const { memoryMiB: _, ...machine } = guest.machine;
      const b = await startB({ ...machine, script: scriptOfB(guest), hugePages: 1, reboots: true });
      const a = await starting;
      await Promise.all([a.booted(), b.booted()]);
      const flood = new Flood(a);
      const startUnderFlood = async () => {
        await bootGuest(b);
        await flood.start();
      };
      await startUnderFlood();
      const line = await b.machine.waitFor(/of the guest's memory at .* lie in/, STEP_TIMEOUT_MS);
      assertMatch(line, / lie in \d{2,} pieces/, "a file's pages are scattered");
      say(line.trim());

      const fillRest = async () => {
        const [filled] = numbers(await b.run(". /tmp/pattern.sh; fill rest 0 0", STEP_TIMEOUT_MS));
        say(`${filled} MiB filled`);
      };
      /** Kills what is named, and takes at once what it leaves. */
      const kill = async (names: string, then: string) => {
        const filling = `{ . /tmp/pattern.sh; fill freed ${TAKE_S} ${TAKE_MIB}; }`;
        const output = await b.run(`killall -9 ${names}; ${then} ${filling}`, STEP_TIMEOUT_MS);
        const [filled = 0] = numbers(output);
        say(`${names} killed: ${filled} MiB taken at once`);
        assert(filled >= TAKE_MIB, `the dead guest's memory was not taken: ${filled} MiB`);
        await flood.stop();
        await assertUnchanged(b, `${names} killed`);
        await b.run("rm -r /fill/freed");
        await startUnderFlood();
      };

      await fillRest();
      for (let round = 0; round < GUESTS; round++) await kill("linux.uml", "");
      for (let round = 0; round < PROXIES; round++) {
        // A proxy that is started at once finds the pins of the one that was killed.
        await kill(
          "vmsg linux.uml",
          "{ while pidof vmsg; do sleep 0.1; done; rm -f /tmp/inner.sock; exec sh /tmp/start.sh; } >/dev/console 2>&1 &",
        );
      }
      for (let round = 0; round < MACHINES; round++) {
        if (round > 0) await startUnderFlood();
        await b.reset();
        await b.runUntilDone("[ -e /fill/source ]");
        await fillRest();
        await flood.stop();
        await assertUnchanged(b, "B reset");
        await b.run("rm -r /fill/rest");
      }
      assertEquals(b.count(/internal error|panic|BUG:/), 0);
      assertEquals(a.count(/vmsg device: .*: waiting for a driver side$/), 1);
    });
  },
  lacksOf("uml"),
);

const ONE_RANGE_LACKS: readonly Lack[] = [
  ...lacksOf("microvm"),
  ...(FULL ? [] : [{ what: "it runs with VMSG_GUEST_FULL=1" }]),
  ...(has("iperf3") ? [] : [{
    what: "iperf3 is missing: apt-get install iperf3",
    requiredBy: "VMSG_GUEST_TESTS" as const,
  }]),
];

/** What the inner guest of one range does; machine A's kernel is 10.0.2.2. */
const ONE_RANGE_SCRIPT = `
${pingScript({ address: `${INNER}/24`, peer: "10.0.2.2", count: 3 })}
echo "SUM $(wget -q -O - http://10.0.2.2/pattern | sha256sum)"
iperf3 -c 10.0.2.2 -t 3 -f m && echo "SENT rc=$?"
iperf3 -c 10.0.2.2 -t 3 -f m -R && echo "RECEIVED rc=$?"
echo "INNER DONE"
`;

machineTest(
  "ivshmem, direct: a microvm inside B whose memory is one huge page",
  PAIR_KIND,
  async (test) => {
    const { microvm } = guests;
    if (microvm === undefined || microvm.kind === "uml") throw new Error("no microvm");
    const iperf3 = await programFiles("iperf3");
    const options = { script: ONE_RANGE_SCRIPT, files: iperf3, oneRange: true };
    const guest = await innerMicrovm(microvm, options);
    const { memoryMiB = 0, ...machine } = guest.machine;
    const bytes = pattern();
    const files = [...guest.files, { path: "www/pattern", bytes, mode: 0o644 }];
    const ofA = await withLibraries(await findProgram("iperf3") ?? "", "/bin/iperf3");
    await withPair(test, { files: [...files, ...ofA], memoryMiB }, async (pair) => {
      const device = deviceScript({ kind: pair.kind, net: "tap", memoryMiB });
      const servers = `
httpd -h /mnt/www
iperf3 -s -D`;
      const starting = pair.startA({ script: `${servers}\n${device}` });
      const script = innerScript({ mode: "", guest: guest.boot });
      const b = await pair.startB({ ...machine, script, hugePages: 1 });
      await starting;
      await b.machine.waitFor(/^INNER DONE/, 2 * STEP_TIMEOUT_MS);
      const text = b.machine.console();
      const pieces = [...text.matchAll(/(\d+) bytes of the guest's memory .* lie in (\d+) piece/g)];
      for (const [line] of pieces) say(line);
      assert(pieces.length > 0 && pieces.every(([, , count]) => count === "1"));
      const size = pieces.reduce((sum, [, length]) => sum + Number(length), 0);
      assert(size > 1000 << 20, `${size} bytes`);
      assertMatch(text, /the device works on the guest's own rings/);
      assertMatch(text, /^PING rc=0/m);
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
      assertMatch(text, new RegExp(`^SUM ${digest}  -`, "m"));
      for (const word of ["SENT", "RECEIVED"]) assertMatch(text, new RegExp(`^${word} rc=0`, "m"));
      for (const [rate] of text.matchAll(/[\d.]+ Mbits\/sec.*receiver/g)) say(`iperf3: ${rate}`);
    });
  },
  ONE_RANGE_LACKS,
);
