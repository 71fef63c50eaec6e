/** Files that will do as a disk, and those that will not; who else has them. */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { Disk } from "../../../src/devices/blk/disk.ts";
import { VmsgError } from "../../../src/linux/errors.ts";
import { testUnless } from "../../support/needs.ts";
import { has } from "../../network/support.ts";
import { until } from "../../support/processes.ts";

function withFile(bytes: number, body: (path: string) => void | Promise<void>): Promise<void> {
  const path = Deno.makeTempFileSync();
  Deno.truncateSync(path, bytes);
  return Promise.resolve(body(path)).finally(() => Deno.removeSync(path));
}

/** What is wrong with it. */
function refusal(path: string, readonly = false): string {
  return assertThrows(() => {
    using _disk = new Disk({ path, readonly, patienceMs: 0 });
  }, VmsgError).message;
}

Deno.test("disk: one process writes, or several read", () =>
  withFile(8192, (path) => {
    {
      using _writer = new Disk({ path, readonly: false });
      assertMatch(
        refusal(path),
        /^disk \S+ is in use by another process, which reads or writes it: /,
      );
      assertMatch(
        refusal(path, true),
        /^disk \S+ is in use by another process, which writes to it: /,
      );
    }
    using _first = new Disk({ path, readonly: true });
    using _second = new Disk({ path, readonly: true });
    assertMatch(refusal(path), /is in use/);
  }));

Deno.test("disk: what is no disk is refused in one line", async () => {
  assertMatch(refusal("/no/such/disk"), /^disk \/no\/such\/disk: cannot be opened \(ENOENT\)$/);
  assertMatch(refusal("/tmp"), /^disk \/tmp: it is neither a file nor a block device$/);
  assertMatch(refusal("/dev/null"), /it is neither a file nor a block device$/);
  await withFile(511, (path) => {
    assertMatch(refusal(path), /is empty: give it the size of the disk \(truncate -s 1G\)$/);
  });
});

Deno.test("disk: what the file system can do is found out without a change to the file", () =>
  withFile(5000, (path) => {
    const before = Deno.statSync(path);
    using disk = new Disk({ path, readonly: false });
    const { size, blocks } = Deno.statSync(path);
    assertEquals([size, blocks], [before.size, before.blocks]);
    assertEquals([disk.sectors, disk.blockSize], [9, 512]);
    assert(disk.punches);
  }));

testUnless(
  "disk: QEMU's storage daemon and we see each other's locks",
  has("qemu-storage-daemon") ? [] : [{
    what: "qemu-storage-daemon is missing: apt-get install qemu-system-common",
    requiredBy: "VMSG_GUEST_TESTS",
  }],
  () =>
    withFile(1 << 20, async (path) => {
      const args = [
        ...["--blockdev", `driver=file,node-name=d,filename=${path},locking=on`],
        ...[
          "--export",
          `type=vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path=${path}.sock`,
        ],
      ];
      const start = () =>
        new Deno.Command("qemu-storage-daemon", { args, stdout: "null", stderr: "piped" });
      {
        using _disk = new Disk({ path, readonly: false });
        const { code, stderr } = await start().output();
        assertEquals(code, 1);
        assertMatch(new TextDecoder().decode(stderr), /Failed to get .*lock/);
      }
      const child = start().spawn();
      try {
        await until(() => Deno.stat(`${path}.sock`).then(() => true, () => false));
        assertMatch(refusal(path), /is in use/);
      } finally {
        child.kill("SIGTERM");
        await child.stderr.cancel();
        await child.status;
        await Deno.remove(`${path}.sock`).catch(() => {});
      }
    }),
);
