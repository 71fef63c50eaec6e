/** A disk with an ext4 file system, and a guest that writes files to it while something is killed that serves it. */

import { assert, assertEquals } from "@std/assert";
import { delay, PATIENCE_MS } from "../support/processes.ts";

/** What the host needs, with its packages. */
export const DISK_PROGRAMS = { "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs" };

/** Files of a mebibyte. The first two are removed again. */
export const FILES = 24;
const REMOVED = 2;

/** Whatever is killed is missing for so long. */
export const MISSING_MS = 300;

/** Writes files, each with its checksum in memory; then looks at them behind the file system's cache. */
export const diskScript = (files: number): string => `
cd /sys/block/vda
echo "DISK size=$(cat size) serial=$(cat serial) ro=$(cat ro) cache=$(cat queue/write_cache)"
mkdir /disk
mount -t ext4 -o discard /dev/vda /disk || echo "MOUNT failed"
cd /disk
for i in $(seq ${files}); do
  dd if=/dev/urandom of=file$i bs=64k count=16 conv=fsync 2>/dev/null || echo "WRITE $i failed"
  echo "WROTE $i"
  sha256sum file$i >>/tmp/sums
done
rm file1 file2
sync
cd /
umount /disk
mount -t ext4 /dev/vda /disk
cd /disk
sed 1,${REMOVED}d /tmp/sums | sha256sum -c >/tmp/checked; echo "SUMS rc=$? $(grep -c OK /tmp/checked)"
cd /
umount /disk; echo "UMOUNT rc=$?"
`;

/** What the script says in the end of files that are whole. */
export const sums = (files: number): string => `SUMS rc=0 ${files - REMOVED}`;

export const DISK_SCRIPT = diskScript(FILES);

/** Runs a program of the host, which must succeed. */
export async function run(directory: string, program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(program, { args, cwd: directory })
    .output();
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  assertEquals(code, 0, `${program} ${args.join(" ")}: ${text}`);
  return text;
}

/** Makes an image with an empty file system. */
export async function makeDisk(directory: string, name: string, bytes: number): Promise<void> {
  using file = await Deno.open(`${directory}/${name}`, { write: true, createNew: true });
  await file.truncate(bytes);
  await run(directory, "mkfs.ext4", "-q", name);
}

/** Finds nothing to mend. */
export async function assertClean(directory: string, name: string): Promise<void> {
  await run(directory, "e2fsck", "-f", "-n", name);
}

/** What runs a guest, or a machine with the guest inside. */
interface Watched {
  console(): string;
  waitFor(pattern: RegExp, timeoutMs: number): Promise<string>;
}

/** Waits until so many files are written. */
export async function untilWritten(guest: Watched, count: number): Promise<void> {
  const deadlineMs = performance.now() + PATIENCE_MS;
  while ((guest.console().match(/^WROTE /gm)?.length ?? 0) < count) {
    assert(performance.now() < deadlineMs, `${count} files were not written`);
    await delay(5);
  }
}

/** What was written reads back. */
export async function assertWhole(guest: Watched, timeoutMs: number): Promise<void> {
  assertEquals(await guest.waitFor(/^SUMS /, timeoutMs), sums(FILES));
  assertEquals(await guest.waitFor(/^UMOUNT /, timeoutMs), "UMOUNT rc=0");
  assert(!/^(MOUNT|WRITE) /m.test(guest.console()));
}
