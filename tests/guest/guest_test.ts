/** The keeper and the handle of a guest, tried on processes that are no guests. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { type Guest, startGuest } from "../../scripts/lab/guest.ts";
import { openKeeper } from "../../src/cli/keeper.ts";
import { VmsgError } from "../../src/linux/errors.ts";

const TIMEOUT_MS = 180_000;

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

/** True while the process is there and no zombie that waits for its parent. */
async function isAlive(pid: number): Promise<boolean> {
  const stat = await Deno.readTextFile(`/proc/${pid}/stat`).catch(() => ") Z");
  return !stat.slice(stat.lastIndexOf(")")).startsWith(") Z");
}

async function waitUntil(condition: () => Promise<boolean>, what: string): Promise<void> {
  const deadline = performance.now() + TIMEOUT_MS;
  while (!await condition()) {
    assert(performance.now() < deadline, `waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function startShell(script: string, onLine?: (line: string) => void): Promise<Guest> {
  return openKeeper().then((keeper) =>
    startGuest({ kind: "uml", program: "sh", args: ["-c", script] }, keeper, onLine)
  );
}

/** Ignores every signal it can, as does its child. */
const STUBBORN = "trap '' HUP INT TERM; sleep 1000 & echo CHILD $!; wait";

Deno.test("a guest's children are ended with it", async () => {
  const guest = await startShell(STUBBORN);
  const child = Number((await guest.waitFor(/^CHILD/, TIMEOUT_MS)).split(" ")[1]);
  assert(await isAlive(child));
  await guest[Symbol.asyncDispose]();
  assertEquals((await guest.status).signal, "SIGKILL");
  assertEquals(await isAlive(child), false);
});

Deno.test("children that outlive a guest are ended, and do not hold its end up", async () => {
  await using guest = await startShell("sleep 1000 & echo CHILD $!; exit 3");
  const child = Number((await guest.waitFor(/^CHILD/, TIMEOUT_MS)).split(" ")[1]);
  assertEquals((await guest.status).code, 3);
  assertEquals(await isAlive(child), false);
});

Deno.test("the console has every line of both outputs, the last without its end too", async () => {
  const heard: string[] = [];
  await using guest = await startShell("printf 'a\\r\\nb'; echo c >&2", (line) => heard.push(line));
  await guest.status;
  assertEquals(heard.toSorted(), ["a", "b", "c"]);
  assertEquals(guest.console(), heard.map((line) => line + "\n").join(""));
  assertEquals(await guest.waitFor(/^b/, 0), "b");
});

Deno.test("what a program writes is a line although the kernel's came in between", async () => {
  const parts = [
    "PING rc=[    4.2] no\\n",
    "U| [   65.741223] other\\n",
    "PING rc=[   87.315311] kvm: one\\r\\n",
    "[   87.315312] two\\n",
  ];
  const script = `printf '${
    [...parts, "0\\r[  101.000001] kvm: three\\n\\nSUM 5\\nla[ 1.000000] four\\nst"].join("")
  }'`;
  await using guest = await startShell(script);
  await guest.status;
  assertEquals(guest.console().split("\n"), [
    ...[
      "PING rc=[    4.2] no",
      "U| [   65.741223] other",
      "[   87.315311] kvm: one",
      "[   87.315312] two",
    ],
    ...["[  101.000001] kvm: three", "PING rc=0", "SUM 5", "[ 1.000000] four", "last", ""],
  ]);
});

Deno.test("waiting in vain is an error that says why", async () => {
  await using silent = await startShell("sleep 1000");
  const late = await assertRejects(() => silent.waitFor(/hello/, 20), VmsgError, "nothing");
  assertEquals(late.code, "GUEST_TIMEOUT");

  await using brief = await startShell("echo something else; exit 3");
  const both = [brief.waitFor(/hello/, TIMEOUT_MS), brief.waitFor(/goodbye/, TIMEOUT_MS)];
  for (const { reason } of await Promise.allSettled(both) as PromiseRejectedResult[]) {
    assertEquals(reason.code, "GUEST_ENDED");
    assert(reason.message.includes("code 3") && reason.message.includes("something else"));
  }
  await assertRejects(() => brief.waitFor(/hello/, TIMEOUT_MS), VmsgError, "code 3");
});

Deno.test("a program that is not there leaves nothing", async () => {
  const keeper = await openKeeper();
  const command = { kind: "uml", program: "/nowhere/linux.uml", args: [] } as const;
  await assertRejects(() => startGuest(command, keeper), Deno.errors.NotFound);
  assertEquals(await exists(keeper.directory), false);
});

Deno.test("a keeper ends one session when told, the others when it is disposed", async () => {
  const keeper = await openKeeper();
  await Deno.writeTextFile(`${keeper.directory}/file`, "");
  const command = new Deno.Command("sleep", { args: ["1000"], stdout: "null", detached: true });
  const [a, b, other] = [command.spawn(), command.spawn(), command.spawn()] as const;
  await keeper.keep(a.pid);
  await keeper.keep(b.pid);
  await Promise.all([keeper.end(a.pid), a.status]);
  assert(await isAlive(b.pid));
  await keeper[Symbol.asyncDispose]();
  assertEquals((await b.status).signal, "SIGKILL");
  assertEquals(await exists(keeper.directory), false);
  assert(await isAlive(other.pid), "the keeper ended a process that is not its");
  other.kill("SIGKILL");
  await other.status;
  await keeper[Symbol.asyncDispose]();
});

for (const signal of ["SIGKILL", "SIGTERM", "SIGINT"] as const) {
  Deno.test(`nothing is left of an owner that gets ${signal}`, async () => {
    const owner = `
      import { openKeeper } from "${new URL("../../src/cli/keeper.ts", import.meta.url)}";
      import { startGuest } from "${new URL("../../scripts/lab/guest.ts", import.meta.url)}";
      const keeper = await openKeeper();
      const args = ["-c", ${JSON.stringify(STUBBORN)}];
      const guest = await startGuest({ kind: "uml", program: "sh", args }, keeper);
      console.log(keeper.directory, (await guest.waitFor(/CHILD/, ${TIMEOUT_MS})).split(" ")[1]);
      await guest.status;
    `;
    const child = new Deno.Command(Deno.execPath(), {
      args: ["eval", "--ext=ts", owner],
      stdin: "null",
      stdout: "piped",
    }).spawn();
    const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    while (!text.includes("\n")) text += (await reader.read()).value ?? "\n";
    const [directory = "", pid] = text.trim().split(" ");
    assert(await exists(directory) && await isAlive(Number(pid)), text);
    child.kill(signal);
    await child.status;
    await reader.cancel();
    await waitUntil(async () => !await exists(directory), "the directory is removed");
    assertEquals(await isAlive(Number(pid)), false);
  });
}
